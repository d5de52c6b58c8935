//! From connections to packets; timers; closing.

use super::conn::{Conn, Life, StreamData};
use super::paths::PROBE_SIZE;
use super::receive::HANDSHAKE_LIMIT;
use super::{Core, SEND_BUDGET, TIMER_BUDGET};
use crate::net::{MAX_TX_PAYLOAD, PacketIo};
use crate::session::Close;
use canvas::codes::CloseCode;
use std::time::{Duration, Instant};

/// Packets that one connection may send before the next one's turn: the initial congestion window of 10 and
/// some, so that a snapshot's start leaves as one train. Larger lets one client's snapshot delay the others.
const TRAIN: u32 = 16;

/// Bytes of a packet that was not filled: what is left of it would hold the start of any stream frame (26
/// bytes at most) or a control frame (at most 42: NEW_CONNECTION_ID).
const SHORT: usize = MAX_TX_PAYLOAD - 64;

/// How long the client's first destination ID is remembered after the handshake: repeated Initials that were
/// long under way must not look like a new client.
const INITIAL_MEMORY: Duration = Duration::from_secs(3);

impl Core {
    /// Sends what waits, as far as there are transmit buffers.
    pub fn transmit<I: PacketIo>(&mut self, io: &mut I, now: Instant) -> bool {
        let mut busy = false;
        while let Some(reply) = self.stateless.pop_front() {
            let mut reply = Some(reply);
            let sent = io.send(&mut |room| {
                let reply = reply.take()?;
                room.get_mut(..reply.payload.len())?.copy_from_slice(&reply.payload);
                Some((reply.payload.len(), reply.path))
            });
            busy = true;
            if sent.blocked && reply.is_some() {
                return true; // lost: these are answers to strangers, who will ask again
            }
        }
        for _ in 0..SEND_BUDGET.min(self.ready.len()) {
            let Some(slot) = self.ready.pop_front() else { break };
            self.ahead.send(|steps| self.ready.get(steps - 1).copied(), &mut self.table);
            busy = true;
            let more = self.transmit_one(slot, io, now);
            if let Some(conn) = self.table.get_mut(slot) {
                conn.queued = more;
                if more {
                    self.ready.push_back(slot);
                }
            }
            if more && self.blocked {
                break;
            }
        }
        busy
    }

    /// Sends what the connection in `slot` has. `true`: it has, or may have, more.
    fn transmit_one<I: PacketIo>(&mut self, slot: u32, io: &mut I, now: Instant) -> bool {
        self.blocked = false;
        let Some(conn) = self.table.get_mut(slot) else { return false };
        if conn.life == Life::Open && conn.session.has_output() && !conn.paths.is_moving() {
            conn.streams = StreamData::Waiting;
            match conn.session.pump(&mut conn.quic, &mut self.ctx, now) {
                Ok(Some(wait)) => self.wheel.arm(slot, now + wait),
                Ok(None) => {}
                Err(close) => self.close(slot, close),
            }
            self.update_subscription(slot); // frames that had to wait may have been obeyed now
        }
        let Some(conn) = self.table.get_mut(slot) else { return false };
        let (mut packets, mut failed, mut short, mut emptied) = (0, false, false, false);
        let (open, moving) = (conn.life == Life::Open, conn.paths.is_moving());
        let drained = conn.is_drained(now);
        // Another path may have packets of its own to send, a probe its double, and those of a handshake are
        // padded.
        let probing = std::mem::take(&mut conn.probing);
        let in_use = conn.paths.in_use();
        let mut others = conn.paths.others(&conn.quic, probing);
        let simple = open && drained && others.is_empty() && !probing && !moving;
        let silent = simple && conn.quic.dgram_send_queue_len() == 0;
        if silent && conn.acks.needs_confirmation() {
            // It fails only where there is no path to ask on.
            let _ = conn.quic.send_ack_eliciting();
        }
        let mut acknowledged = None;
        let sent = io.send(&mut |room| {
            if packets == TRAIN || emptied {
                return None;
            }
            let cramped = moving && open && conn.paths.is_cramped(&conn.quic);
            let mut sent = match in_use {
                Some(_) if cramped && packets > 0 => Err(quiche::Error::Done),
                Some((local, name)) => {
                    let size = if cramped { PROBE_SIZE.min(room.len()) } else { room.len() };
                    match conn.quic.send_on_path(&mut room[..size], Some(local), Some(name)) {
                        // There is no such path, or no ID for it: another packet may change that.
                        Err(quiche::Error::InvalidState | quiche::Error::OutOfIdentifiers) => {
                            Err(quiche::Error::Done)
                        }
                        sent => sent,
                    }
                }
                None => conn.quic.send(room),
            };
            while let (Err(quiche::Error::Done), Some((local, name))) = (&sent, others.last()) {
                sent = conn.quic.send_on_path(room, Some(*local), Some(*name)).or(Err(quiche::Error::Done));
                if sent.is_err() {
                    others.pop();
                }
            }
            match sent {
                Ok((len, info)) => {
                    packets += 1;
                    short = len <= SHORT;
                    acknowledged = silent.then_some(len);
                    // quiche fills a packet with all that may be in it: one with room left is the last. Asking it
                    // to find nothing costs a third of a packet.
                    emptied = simple && short && conn.quic.dgram_send_queue_len() == 0;
                    Some((len, conn.paths.to(info.to)))
                }
                Err(quiche::Error::Done) => {
                    // Unless it was the congestion window that had no room left, or less may be sent there.
                    if short && !moving && conn.quic.dgram_send_queue_len() == 0 {
                        conn.streams = StreamData::UnderWay(conn.quic.stats().lost);
                    }
                    None
                }
                Err(_) => {
                    failed = true;
                    None
                }
            }
        });
        self.blocked = sent.blocked;
        if failed {
            // quiche cannot go on with it: tell the client, once.
            if conn.quic.close(false, INTERNAL_ERROR, b"").is_err() {
                self.remove(slot);
                return false;
            }
            return true;
        }
        if !sent.blocked || packets > 0 {
            conn.acks.sent();
        }
        if let Some(len) = acknowledged {
            conn.acks.acknowledged(len.saturating_sub(conn.quic.destination_id().len()));
        }
        if conn.quic.is_closed() {
            self.remove(slot);
            return false;
        }
        let due = [conn.quic.timeout_instant(), conn.paths.probe_due()];
        if let Some(due) = due.into_iter().flatten().min() {
            self.wheel.arm(slot, due);
        }
        sent.blocked || packets == TRAIN
    }

    /// Fires the timers that are due.
    pub fn expire_timers(&mut self, now: Instant) -> bool {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(now, TIMER_BUDGET, &mut due);
        let busy = !due.is_empty();
        for slot in due.drain(..) {
            self.on_timer(slot, now);
        }
        self.due = due;
        busy
    }

    fn on_timer(&mut self, slot: u32, now: Instant) {
        let Some(conn) = self.table.get_mut(slot) else { return };
        if conn.life == Life::Handshake && now.duration_since(conn.since) >= HANDSHAKE_LIMIT {
            return self.remove(slot);
        }
        if let Some(id) = conn.initial
            && conn.life != Life::Handshake
            && now.duration_since(conn.since) >= INITIAL_MEMORY
        {
            conn.initial = None;
            self.table.forget_initial(&id);
        }
        let Some(conn) = self.table.get_mut(slot) else { return };
        // Transmitting arms QUIC's timer; if it waits for room to transmit, that must not keep QUIC waiting.
        if conn.life == Life::Open && !conn.queued && conn.acks.due().is_some_and(|due| due <= now) {
            return self.make_ready(slot);
        }
        self.supply_ids(slot);
        let Some(conn) = self.table.get_mut(slot) else { return };
        let quic_due = conn.quic.timeout_instant();
        let mut send = conn.session.has_output();
        if quic_due.is_some_and(|due| due <= now) {
            conn.quic.on_timeout();
            (conn.probing, conn.streams) = (true, StreamData::Waiting); // some may count as lost now
            if conn.quic.is_closed() {
                self.ctx.stats.idle_timeouts += u64::from(conn.quic.is_timed_out());
                return self.remove(slot);
            }
            send = true;
        }
        if conn.paths.has_moved() {
            conn.paths.settle(&mut conn.quic, now);
            send |= conn.paths.is_moving(); // to probe it again: it may have nothing to say itself
        }
        if send {
            return self.make_ready(slot); // transmitting arms the timer again
        }
        let handshake = (conn.life == Life::Handshake).then(|| conn.since + HANDSHAKE_LIMIT);
        if let Some(next) = [quic_due, conn.acks.due(), handshake].into_iter().flatten().min() {
            self.wheel.arm(slot, next);
        }
    }

    /// Closes the connection in `slot` with an application error code.
    pub fn close(&mut self, slot: u32, close: Close) {
        match close.code {
            CloseCode::ProtocolViolation => self.ctx.stats.protocol_violations += 1,
            CloseCode::RateLimited => self.ctx.stats.rate_limited += 1,
            _ => {}
        }
        let Some(conn) = self.table.get_mut(slot) else { return };
        // An error means that it is closed already.
        let _ = conn.quic.close(true, close.code.code().into(), close.reason.as_bytes());
        self.leave(slot);
        self.make_ready(slot);
    }

    /// The connection in `slot` is over for the canvas; QUIC may still have to say good-bye.
    pub fn leave(&mut self, slot: u32) {
        let Some(conn) = self.table.get_mut(slot) else { return };
        conn.life = Life::Closing;
        if let Some(timeout) = conn.quic.timeout_instant() {
            self.wheel.arm(slot, timeout);
        }
        self.update_subscription(slot);
    }

    /// Ends a connection that was counted.
    fn remove(&mut self, slot: u32) {
        self.ctx.stats.connections_closed += 1;
        self.leave(slot);
        self.discard(slot);
    }

    /// Takes the connection in `slot` out of the table.
    pub fn discard(&mut self, slot: u32) {
        self.wheel.disarm(slot);
        if let Some(Conn { initial: Some(id), .. }) = self.table.remove(slot) {
            self.table.forget_initial(&id);
        }
        self.ctx.stats.connections = self.table.len().into();
    }
}

/// QUIC's INTERNAL_ERROR (RFC 9000, section 20.1).
const INTERNAL_ERROR: u64 = 0x01;
