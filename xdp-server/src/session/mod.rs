//! What a connection means to the canvas (canvas/1, sections 3 to 5).
//!
//! A [`Session`] is the protocol state of one client. The worker calls it with what QUIC delivered, and lets
//! it push what it wants to send ([`Session::pump`], [`Session::broadcast`]); it touches one connection, the
//! worker's [`Context`] and nothing else, never blocks, and ends a connection only by returning [`Close`].
//!
//! - `control`: the control stream's buffers
//! - `images`, `image_cache`: snapshot, views, repairs
//! - `frames`: what each control frame does
//! - `paint`: pixels on their way to the master
//! - `bucket`: byte budgets and rate limits

mod bucket;
mod context;
mod control;
mod frames;
mod image_cache;
mod images;
mod paint;

pub use bucket::Bucket;
pub use context::{Context, PendingAck, SessionSettings};
pub use control::CONTROL_STREAM;

use crate::link::Ack;
use crate::quic::config::{Connection, Payload};
use canvas::codec::control::ServerFrame;
use canvas::codes::{CloseCode, MIN_DATAGRAM_FRAME_SIZE};
use canvas::geometry::TileRect;
use control::Outbox;
use images::{Images, Pumped};
use paint::PaintLimit;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Bytes of diffs as frames that may wait on the control stream of a client without datagrams. Beyond, it
/// loses diffs and repairs, as clients with datagrams do: a tick of 60,000 changed pixels fits.
const DIFF_FRAME_BACKLOG: usize = 256 * 1024;

/// Smallest byte budget's burst, in bytes: a tile image and a few diffs, so that the slowest client gets
/// whole things.
const MIN_BURST: u64 = 8 * 1024;

/// Why the server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// Application error code.
    pub code: CloseCode,
    /// For the person who debugs the client.
    pub reason: &'static str,
}

impl Close {
    /// The client broke the protocol.
    fn violation(reason: &'static str) -> Self {
        Self { code: CloseCode::ProtocolViolation, reason }
    }
}

/// One broadcast, encoded for one view and shared by all clients that have it.
#[derive(Default)]
pub struct Broadcast {
    /// Number of the tick.
    pub tick: u32,
    /// DIFF payloads.
    pub diffs: Vec<Rc<[u8]>>,
    /// VERSIONS payloads.
    pub versions: Vec<Rc<[u8]>>,
}

/// How the pixels of a client's view are known to it.
#[derive(Clone, Copy, Debug)]
struct View {
    /// Tiles whose diffs it gets.
    tiles: TileRect,
    /// Tiles that it has asked images of: what is new in the next view is counted against these.
    held: TileRect,
}

/// Protocol state of one client. See the [module](self).
pub struct Session {
    slot: u32,
    generation: u32,
    /// HELLO came and was accepted.
    open: bool,
    /// HELLO asked for diffs.
    wants_diffs: bool,
    /// The client takes datagrams of the size that ours have.
    datagrams: bool,
    /// The last broadcast did not fit: the next one starts elsewhere, so that no tile is always the one left
    /// out.
    behind: bool,
    /// Malformed datagrams so far.
    malformed: u32,
    view: View,
    /// Bytes that the client may be sent.
    budget: Bucket,
    paint_limit: PaintLimit,
    /// The beginning of a control frame whose rest has not come.
    partial: Vec<u8>,
    /// Frames were left unread until the client has fetched what it asked for.
    paused: bool,
    outbox: Outbox,
    images: Images,
}

impl Session {
    /// The session of a connection that has just been accepted into `slot`.
    pub fn new(slot: u32, generation: u32, ctx: &Context, now: Instant) -> Self {
        let (rate, burst) = byte_budget(ctx.settings.client_kbit);
        Self {
            slot,
            generation,
            open: false,
            wants_diffs: false,
            datagrams: false,
            behind: false,
            malformed: 0,
            view: View { tiles: ctx.geometry.all_tiles(), held: ctx.geometry.no_tiles() },
            budget: Bucket::new(rate, burst, now),
            paint_limit: PaintLimit::new(ctx.settings.client_pixels, now),
            partial: Vec::new(),
            paused: false,
            outbox: Outbox::default(),
            images: Images::default(),
        }
    }

    /// Notes what the client's transport parameters allow. Call when the handshake is complete.
    pub fn established(&mut self, quic: &Connection) {
        let size = quic.peer_transport_params().and_then(|params| params.max_datagram_frame_size);
        self.datagrams = size.is_some_and(|size| size >= u64::from(MIN_DATAGRAM_FRAME_SIZE));
    }

    /// True if the client is to get broadcasts.
    pub fn is_subscriber(&self) -> bool {
        self.open && self.wants_diffs
    }

    /// True if HELLO was accepted.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The tiles whose diffs the client gets.
    pub fn view(&self) -> TileRect {
        self.view.tiles
    }

    /// True if there is something that [`pump`](Self::pump) could send.
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty() || !self.images.is_idle() || self.paused
    }

    /// Hands to QUIC what it has room for. Returns how long to wait before calling again although nothing was
    /// received, if the client's byte budget is what holds its images up.
    pub fn pump(
        &mut self,
        quic: &mut Connection,
        ctx: &mut Context,
        now: Instant,
    ) -> Result<Option<Duration>, Close> {
        // Control frames first: WELCOME tells the client what the images are of.
        if !self.outbox.is_empty() && self.outbox.flush(quic).is_err() {
            return Err(Close::violation("control stream stopped"));
        }
        let mut again = None;
        if !self.images.is_idle() {
            match self.images.pump(quic, ctx, &mut self.budget, now) {
                Ok(Pumped::OverBudget) => again = Some(self.budget.wait(now)),
                Ok(Pumped::Done | Pumped::Blocked) => {}
                Err(_) => return Err(Close::violation("tile stream failed")),
            }
        }
        if self.paused && !self.is_crowded() {
            self.paused = false;
            self.on_control(quic, ctx, now)?;
        }
        Ok(again)
    }

    /// Queues a broadcast's payloads, as far as the client's budget and connection allow.
    pub fn broadcast(&mut self, quic: &mut Connection, ctx: &mut Context, what: &Broadcast, now: Instant) {
        let mut lost = 0;
        if self.datagrams && quic.dgram_send_queue_len() > 0 {
            // Newest state, not history: what the connection could not send within a tick is stale.
            lost = quic.dgram_send_queue_len() as u64;
            quic.dgram_purge_outgoing(|_| true);
            ctx.stats.diffs_congested += lost;
        }
        // Versions first: they are small, and what brings a client back that lost records.
        self.announce(quic, ctx, &what.versions, 0, now);
        let count = what.diffs.len();
        // A client that cannot take a whole broadcast gets a different part of each.
        let start = if self.behind && count > 0 { what.tick as usize * 7 % count } else { 0 };
        for payload in beginning_at(&what.diffs, start) {
            // While images wait for the same budget, diffs leave them the larger part of it.
            let reserve =
                if self.budget.is_unlimited() || self.images.is_idle() { 0 } else { MIN_BURST as i64 };
            if self.budget.level(now) <= reserve {
                ctx.stats.diffs_over_budget += 1;
                lost += 1;
            } else if self.queue_payload(quic, payload) {
                self.budget.spend(payload.len() as u64, now);
                ctx.stats.diffs_sent += 1;
            } else {
                ctx.stats.diffs_congested += 1;
                lost += 1;
            }
        }
        self.behind = lost > 0;
    }

    /// Queues VERSIONS payloads, beginning at `start`, as far as the client's budget and connection allow.
    pub fn announce(
        &mut self,
        quic: &mut Connection,
        ctx: &mut Context,
        payloads: &[Rc<[u8]>],
        start: usize,
        now: Instant,
    ) {
        for payload in beginning_at(payloads, start) {
            if self.budget.spend(payload.len() as u64, now) && self.queue_payload(quic, payload) {
                ctx.stats.versions_sent += 1;
            }
        }
    }

    /// Queues one server datagram payload. `false`: there is no room for it.
    fn queue_payload(&mut self, quic: &mut Connection, payload: &Rc<[u8]>) -> bool {
        if self.datagrams {
            return quic.dgram_send_buf(Payload::Shared(payload.clone())).is_ok();
        }
        let room = self.outbox.len() < DIFF_FRAME_BACKLOG;
        if room {
            ServerFrame::Datagram(payload).encode(self.outbox.buffer());
        }
        room
    }

    /// Queues the answer to a PAINT frame that the master has dealt with.
    pub fn paint_ack(&mut self, pending: &PendingAck, ack: &Ack) {
        paint::encode_ack(pending, ack, self.outbox.buffer());
    }

    /// Queues a NOTICE.
    pub fn notice(&mut self, code: CloseCode, text: &str) {
        if self.open {
            ServerFrame::Notice { code: code.code(), text }.encode(self.outbox.buffer());
        }
    }

    /// True if the client should fetch what it asked for before more of its frames are read.
    fn is_crowded(&self) -> bool {
        self.outbox.is_crowded() || self.images.is_crowded()
    }
}

/// All of `payloads`, the one at `start` first. Who cannot take all gets others the next time.
fn beginning_at(payloads: &[Rc<[u8]>], start: usize) -> impl Iterator<Item = &Rc<[u8]>> {
    payloads[start..].iter().chain(&payloads[..start])
}

/// Rate in bytes a second and burst in bytes of a budget of `kbit` kbit/s (0: none): a second's worth at
/// once.
fn byte_budget(kbit: u32) -> (u64, u64) {
    let rate = u64::from(kbit) * 1000 / 8;
    (rate, rate.max(MIN_BURST))
}
