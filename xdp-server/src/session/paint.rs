//! Pixels on their way from a client to the master.
//!
//! The worker checks what it can (bounds, colour, rate), so that this work is spread over the cores and the
//! master only writes. It queues the rest; where the queue is full, pixels are rejected as overload, never
//! waited for.

use super::{Bucket, Close, Context, PendingAck};
use crate::link::{Ack, Entry, EntryKind};
use canvas::codec::control::{PaintAck, ServerFrame};
use canvas::codec::{Pixel, Pixels};
use canvas::codes::{CloseCode, REASON_NONE, Reason};
use std::time::Instant;

/// A client that paints more than this many times its rate, for longer than [`FLOOD_SECONDS`], is closed
/// instead of being told "no" for ever. Lower catches clients with a bad clock.
const FLOOD_FACTOR: u64 = 4;

/// See [`FLOOD_FACTOR`]; seconds.
const FLOOD_SECONDS: u64 = 10;

/// The limits on one client's painting.
pub struct PaintLimit {
    rate: u32,
    pixels: Bucket,
    flood: Bucket,
}

impl PaintLimit {
    /// `rate` pixels a second, a second's worth at once; 0: no limit.
    pub fn new(rate: u32, now: Instant) -> Self {
        let flood = u64::from(rate) * FLOOD_FACTOR;
        Self {
            rate,
            pixels: Bucket::new(u64::from(rate), u64::from(rate), now),
            flood: Bucket::new(flood, flood * FLOOD_SECONDS, now),
        }
    }

    /// What WELCOME tells: milliseconds for each pixel; 0 if there is no limit, or it is less than one.
    pub fn cooldown_ms(&self) -> u32 {
        1000_u32.checked_div(self.rate).unwrap_or(0)
    }

    /// True if one more pixel is within the rate.
    fn allows(&mut self, refused: &mut Refused, now: Instant) -> bool {
        refused.flooding |= !self.flood.spend(1, now);
        self.pixels.spend(1, now)
    }
}

/// Pixels refused here, and why the first of them was.
#[derive(Default)]
struct Refused {
    count: u64,
    first: u8,
    /// The client is so far above its rate that the connection is to be closed.
    flooding: bool,
}

impl Refused {
    fn add(&mut self, reason: Reason) {
        if self.count == 0 {
            self.first = reason.code();
        }
        self.count += 1;
    }

    /// What follows for the connection.
    fn verdict(&self) -> Result<(), Close> {
        if self.flooding {
            return Err(Close { code: CloseCode::RateLimited, reason: "paints far above the rate limit" });
        }
        Ok(())
    }
}

/// Queues pixels, leaving `reserve` entries of the queue free.
fn queue(
    pixels: Pixels<'_>,
    kind: EntryKind,
    reserve: usize,
    limit: &mut PaintLimit,
    ctx: &mut Context,
    now: Instant,
) -> Refused {
    let mut refused = Refused::default();
    for Pixel { x, y, colour } in pixels {
        ctx.stats.pixels_received += 1;
        let checked = if !ctx.geometry.contains(x, y) {
            Err(Reason::OutsideCanvas)
        } else if !ctx.palette.contains(colour) {
            Err(Reason::OutsidePalette)
        } else if !limit.allows(&mut refused, now) {
            Err(Reason::RateLimited)
        } else if ctx.link.paints.slots() <= reserve {
            ctx.stats.pixels_overload += 1;
            Err(Reason::Overloaded)
        } else {
            ctx.link.paints.push(Entry { x, y, colour, kind }).map_err(|_| Reason::Overloaded)
        };
        if let Err(reason) = checked {
            refused.add(reason);
        }
    }
    ctx.stats.pixels_rejected += refused.count;
    refused
}

/// Obeys a PAINT datagram.
pub fn datagram(
    pixels: Pixels<'_>,
    limit: &mut PaintLimit,
    ctx: &mut Context,
    now: Instant,
) -> Result<(), Close> {
    queue(pixels, EntryKind::Datagram, 0, limit, ctx, now).verdict()
}

/// Obeys a PAINT frame of the connection with this slot and generation. Returns the answer if the master has
/// no part in it, because the queue is full.
pub fn frame(
    seq: u32,
    pixels: Pixels<'_>,
    (slot, generation): (u32, u32),
    limit: &mut PaintLimit,
    ctx: &mut Context,
    now: Instant,
) -> Result<Option<(PendingAck, Ack)>, Close> {
    // One entry is kept for the frame's end: once pixels are queued, their acknowledgement must be.
    let refused = queue(pixels, EntryKind::Framed, 1, limit, ctx, now);
    let pending = PendingAck {
        slot,
        generation,
        seq,
        // A frame holds 13,106 pixels at most.
        rejected: refused.count as u16,
        reason: if refused.count == 0 { REASON_NONE } else { refused.first },
    };
    if ctx.link.paints.push(Entry::FRAME_END).is_err() {
        let commit = ctx.link.shared.master_stats().pixels_applied;
        return Ok(Some((pending, Ack { commit, ..Ack::default() })));
    }
    ctx.link.shared.master_waker.wake();
    ctx.pending.push_back(pending);
    refused.verdict()?;
    Ok(None)
}

/// Counts pixels that came before HELLO: rejected with [`Reason::NotAllowed`], which a datagram has no answer
/// to tell.
pub fn reject_before_hello(pixels: Pixels<'_>, ctx: &mut Context) {
    ctx.stats.pixels_received += pixels.len() as u64;
    ctx.stats.pixels_rejected += pixels.len() as u64;
}

/// Writes the PAINT_ACK for a frame.
pub fn encode_ack(pending: &PendingAck, ack: &Ack, out: &mut Vec<u8>) {
    // What the worker refused came before what the master refused of the same frame only by chance: either
    // reason is the first of its kind, and the worker's is the client's own mistake.
    let reason = if pending.reason == REASON_NONE { ack.reason } else { pending.reason };
    let rejected = pending.rejected.saturating_add(ack.rejected);
    ServerFrame::PaintAck(PaintAck {
        seq: pending.seq,
        applied: ack.applied,
        rejected,
        reason,
        commit: ack.commit,
    })
    .encode(out);
}
