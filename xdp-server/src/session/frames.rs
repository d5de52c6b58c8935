//! What each control frame and datagram of a client does.

use super::control::CONTROL_STREAM;
use super::{Close, Context, Session, View, byte_budget, paint};
use crate::quic::config::Connection;
use canvas::codec::control::{ClientFrame, Decoded, FrameError, ServerFrame, ServerStats, Welcome};
use canvas::codec::datagram::ClientDatagram;
use canvas::codes::{CloseCode, HELLO_DIFFS, HELLO_SNAPSHOT, MAX_MALFORMED_DATAGRAMS, PROTOCOL_VERSION};
use canvas::geometry::{TILE_SIDE, TileRect};
use std::time::Instant;

/// Bytes read from the control stream at once. A PAINT frame of 200 pixels has 1 KB; this takes a full packet
/// and what waited before it.
const READ_SIZE: usize = 4096;

impl Session {
    /// Reads and obeys what came on the control stream.
    pub fn on_control(
        &mut self,
        quic: &mut Connection,
        ctx: &mut Context,
        now: Instant,
    ) -> Result<(), Close> {
        let mut chunk = [0; READ_SIZE];
        loop {
            // Whole frames may be left over from when the client was told to wait.
            if !self.partial.is_empty() {
                let mut frames = std::mem::take(&mut self.partial);
                let used = self.obey_frames(&frames, ctx, now)?;
                frames.drain(..used);
                self.partial = frames;
            }
            if self.is_crowded() {
                self.paused = true;
                return Ok(());
            }
            match quic.stream_recv(CONTROL_STREAM, &mut chunk) {
                Ok((0, _)) => return Ok(()),
                Ok((read, _)) if self.partial.is_empty() => {
                    let used = self.obey_frames(&chunk[..read], ctx, now)?;
                    self.partial.extend_from_slice(&chunk[used..read]);
                }
                Ok((read, _)) => self.partial.extend_from_slice(&chunk[..read]),
                // Nothing more for now, or the client will write no more: it may still watch.
                Err(_) => break,
            }
        }
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(())
    }

    /// Obeys the whole frames at the start of `bytes`, as long as the client fetches its answers; returns
    /// their length.
    fn obey_frames(&mut self, bytes: &[u8], ctx: &mut Context, now: Instant) -> Result<usize, Close> {
        let mut used = 0;
        while !self.is_crowded() {
            match ClientFrame::decode(&bytes[used..]) {
                Ok(Some((decoded, len))) => {
                    used += len;
                    ctx.stats.messages += 1;
                    match decoded {
                        Decoded::Frame(frame) => self.obey(&frame, ctx, now)?,
                        Decoded::Unknown(_) if self.open => {}
                        Decoded::Unknown(_) => return Err(Close::violation("frame before HELLO")),
                    }
                }
                Ok(None) => break,
                Err(error) => return Err(Close::violation(why(&error))),
            }
        }
        Ok(used)
    }

    fn obey(&mut self, frame: &ClientFrame<'_>, ctx: &mut Context, now: Instant) -> Result<(), Close> {
        match *frame {
            ClientFrame::Hello { version, flags, token } => return self.hello(version, flags, token, ctx),
            _ if !self.open => return Err(Close::violation("frame before HELLO")),
            ClientFrame::View { x0, y0, x1, y1, kbit_per_s } => {
                self.change_view(ctx.geometry.tile_rect(x0, y0, x1, y1), kbit_per_s, ctx, now);
            }
            // The durability flag asks for no more than is given: there is no storage behind this canvas yet.
            ClientFrame::Paint { seq, flags: _, pixels } => {
                let from = (self.slot, self.generation);
                let answer = paint::frame(seq, pixels, from, &mut self.paint_limit, ctx, now)?;
                if let Some((pending, ack)) = answer {
                    self.paint_ack(&pending, &ack);
                }
            }
            ClientFrame::Repair { tiles } => tiles
                .iter()
                .filter(|held| held.tile < ctx.geometry.tile_count())
                .for_each(|held| self.images.want_repair(held.tile)),
            ClientFrame::Ping(number) => ServerFrame::Pong(number).encode(self.outbox.buffer()),
            ClientFrame::Stats => self.stats(ctx),
        }
        Ok(())
    }

    fn hello(&mut self, version: u16, flags: u16, token: &[u8], ctx: &mut Context) -> Result<(), Close> {
        if self.open {
            return Err(Close::violation("second HELLO"));
        }
        if version != PROTOCOL_VERSION {
            return Err(Close::violation("HELLO names a version other than 1"));
        }
        if ctx.settings.token.as_deref().is_some_and(|wanted| !same_secret(wanted, token)) {
            return Err(Close { code: CloseCode::Unauthorized, reason: "token refused" });
        }
        self.open = true;
        self.wants_diffs = flags & HELLO_DIFFS != 0;
        if flags & HELLO_SNAPSHOT != 0 {
            self.images.want_snapshot();
            self.view.held = ctx.geometry.all_tiles();
        }
        let client_id = ctx.next_client_id();
        ServerFrame::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            client_id,
            width: ctx.geometry.width(),
            height: ctx.geometry.height(),
            tile_side: TILE_SIDE,
            tick_ms: ctx.settings.tick_ms,
            cooldown_ms: self.paint_limit.cooldown_ms(),
            palette: ctx.palette.colours(),
        })
        .encode(self.outbox.buffer());
        Ok(())
    }

    fn change_view(&mut self, tiles: TileRect, kbit_per_s: u32, ctx: &Context, now: Instant) {
        self.images.want_view(tiles, self.view.held);
        self.view = View { tiles, held: tiles };
        let kbit = if kbit_per_s == 0 { ctx.settings.client_kbit } else { kbit_per_s };
        let (rate, burst) = byte_budget(kbit);
        self.budget.change(rate, burst, now);
    }

    fn stats(&mut self, ctx: &mut Context) {
        // The newest of our own counters; the others' are at most a millisecond of work old.
        let shared = &ctx.link.shared;
        shared.workers[ctx.link.index].publish(&ctx.stats);
        let (workers, master) = (shared.totals(), shared.master_stats());
        ServerFrame::Stats(ServerStats {
            applied: master.pixels_applied,
            rejected: workers.pixels_rejected,
            connections: workers.connections,
            tick: master.ticks,
            uptime_ms: shared.started.elapsed().as_millis() as u64,
            commit: master.pixels_applied,
        })
        .encode(self.outbox.buffer());
    }

    /// Obeys one datagram.
    pub fn on_datagram(&mut self, bytes: &[u8], ctx: &mut Context, now: Instant) -> Result<(), Close> {
        match ClientDatagram::decode(bytes) {
            Ok(ClientDatagram::Paint { seq: _, pixels }) => {
                ctx.stats.messages += 1;
                if self.open {
                    return paint::datagram(pixels, &mut self.paint_limit, ctx, now);
                }
                paint::reject_before_hello(pixels, ctx);
            }
            Err(error) if !error.is_malformed() => ctx.stats.datagrams_unknown += 1,
            Err(_) => {
                ctx.stats.datagrams_malformed += 1;
                self.malformed += 1;
                if self.malformed >= MAX_MALFORMED_DATAGRAMS {
                    return Err(Close::violation("too many malformed datagrams"));
                }
            }
        }
        Ok(())
    }
}

/// The reason phrase for a frame that cannot be read.
fn why(error: &FrameError) -> &'static str {
    match error {
        FrameError::TooLong { .. } => "frame too long",
        FrameError::WrongDirection { .. } => "frame type of the other direction",
        FrameError::WrongSize { .. } => "frame body of the wrong size",
        FrameError::PartEntry { .. } => "list frame with a part of an entry",
        FrameError::NotUtf8 => "text is not UTF-8",
    }
}

/// Compares without telling by its duration where the difference is.
fn same_secret(ours: &[u8], theirs: &[u8]) -> bool {
    ours.len() == theirs.len() && ours.iter().zip(theirs).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0
}
