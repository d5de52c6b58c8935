//! From a packet to its connection: routing by connection ID, accepting, refusing, resetting.

use super::announced::TIMES;
use super::conn::{Conn, Life, Owed};
use super::paths::Arrival;
use super::regime::Regime;
use super::{Core, REFUSAL_SLOTS, Stateless};
use crate::link::{Phase, Stray};
use crate::net::{MAX_TX_PAYLOAD, Path};
use crate::quic::cid::{self, Route};
use crate::quic::header::{self, Header, MIN_INITIAL_LEN};
use crate::quic::table::InitialId;
use crate::quic::tls;
use crate::session::{Close, Session};
use canvas::codes::CloseCode;
use quiche::ConnectionId;
use std::time::{Duration, Instant};

/// Replies without a connection that may wait for transmission: they answer strangers, and are the first to
/// be dropped.
const STATELESS_QUEUE: usize = 64;

/// QUIC's NO_VIABLE_PATH (RFC 9000, section 20.1).
const NO_VIABLE_PATH: u64 = 0x10;

/// QUIC's CRYPTO_ERROR codes: a TLS alert each (RFC 9000, section 20.1).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// Connection IDs that a client has besides the one in use. One lets it move; each more is some 100 bytes a
/// connection.
const SPARE_IDS: usize = 1;

/// A handshake that takes longer is given up. QUIC retransmits after 1, 2 and 4 seconds: this outlasts the
/// third loss.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

impl Core {
    /// Prepares for a payload that [`on_packet`](Self::on_packet) will get soon.
    pub fn expect(&mut self, packet: &[u8]) {
        if let Some(Header::Short { dcid }) = header::parse(packet)
            && usize::from(dcid[0]) == self.index
            && let Some(route) = self.codec.decode(dcid)
        {
            self.ahead.expect(dcid, route, &self.table);
        }
    }

    /// Deals with one received UDP payload. `stray`: another worker received it and found that it is ours.
    pub fn on_packet(&mut self, path: &Path, packet: &mut [u8], now: Instant, stray: bool) {
        match header::parse(packet) {
            Some(Header::Short { dcid }) => {
                let dcid = *dcid;
                if usize::from(dcid[0]) != self.index && !stray {
                    return self.pass_on(dcid[0], path, packet, Some(dcid), now);
                }
                let expected = if stray { None } else { self.ahead.advance(&dcid, &mut self.table) };
                match expected.or_else(|| self.codec.decode(&dcid)).and_then(|route| self.find(&route)) {
                    Some(slot) if self.is_retired(slot, &dcid) => self.ctx.stats.drop_unknown_id += 1,
                    Some(slot) => self.deliver(slot, path, packet, now),
                    None => self.reset(&dcid, path, packet.len(), now),
                }
            }
            Some(Header::Initial { dcid }) => {
                self.on_handshake_packet(dcid.to_vec(), path, packet, now, stray, true);
            }
            Some(Header::Handshake { dcid }) => {
                self.on_handshake_packet(dcid.to_vec(), path, packet, now, stray, false);
            }
            Some(Header::OtherVersion { dcid, scid }) => {
                if packet.len() >= MIN_INITIAL_LEN {
                    self.negotiate_version(path, dcid.to_vec(), scid.to_vec());
                } else {
                    self.ctx.stats.drop_not_initial += 1;
                }
            }
            None => self.ctx.stats.drop_malformed += 1,
        }
    }

    /// The slot of `route`, if that was issued for the connection that is there now.
    fn find(&mut self, route: &Route) -> Option<u32> {
        let ours = usize::from(route.worker) == self.index;
        (ours && self.table.find(route.slot, route.generation).is_some()).then_some(route.slot)
    }

    /// True if the client of `slot` has retired `id`. A packet that was overtaken on its way may still carry
    /// it: quiche would close the connection for that.
    fn is_retired(&mut self, slot: u32, id: &[u8; cid::LEN]) -> bool {
        let conn = self.table.get_mut(slot).filter(|conn| conn.retired_ids);
        conn.is_some_and(|conn| conn.quic.source_ids().all(|active| active.as_ref() != id))
    }

    /// Deals with a packet under a long header: of a connection here or elsewhere, of a handshake, or of
    /// somebody new.
    fn on_handshake_packet(
        &mut self,
        dcid: Vec<u8>,
        path: &Path,
        packet: &mut [u8],
        now: Instant,
        stray: bool,
        initial: bool,
    ) {
        let began = Instant::now();
        self.obey_handshake_packet(&dcid, path, packet, now, stray, initial);
        self.meter.charge_apart(Regime::Handshaking, began, Instant::now(), &mut self.ctx.stats);
    }

    fn obey_handshake_packet(
        &mut self,
        dcid: &[u8],
        path: &Path,
        packet: &mut [u8],
        now: Instant,
        stray: bool,
        initial: bool,
    ) {
        // A client's own random ID may have our length, but never passes the check.
        if let Ok(id) = <&[u8; cid::LEN]>::try_from(dcid)
            && let Some(route) = self.codec.decode(id)
        {
            if usize::from(route.worker) != self.index {
                if !stray {
                    self.pass_on(route.worker, path, packet, None, now);
                }
                return;
            }
            match self.find(&route) {
                Some(slot) => self.deliver(slot, path, packet, now),
                None => self.ctx.stats.drop_unknown_id += 1,
            }
            return;
        }
        let Some(id) = InitialId::new(dcid) else {
            self.ctx.stats.drop_malformed += 1;
            return;
        };
        match self.table.find_initial(&id) {
            Some(slot) => self.deliver(slot, path, packet, now),
            None if initial && packet.len() >= MIN_INITIAL_LEN => self.set_aside(path, packet, now),
            None => self.ctx.stats.drop_not_initial += 1,
        }
    }

    /// Hands a packet to worker `owner`. `reset`: the ID of a 1-RTT packet, to be reset if there is no such
    /// worker.
    fn pass_on(
        &mut self,
        owner: u8,
        path: &Path,
        packet: &[u8],
        reset: Option<[u8; cid::LEN]>,
        now: Instant,
    ) {
        if usize::from(owner) >= self.ctx.link.shared.worker_count() {
            if let Some(id) = reset {
                self.reset(&id, path, packet.len(), now);
            }
            return;
        }
        let sent = Stray::new(path, packet)
            .is_some_and(|stray| self.ctx.link.shared.send_stray(usize::from(owner), stray));
        if sent {
            self.ctx.stats.strays_out += 1;
        } else {
            self.ctx.stats.strays_dropped += 1;
        }
    }

    /// Answers a 1-RTT packet that belongs to no connection.
    fn reset(&mut self, id: &[u8; cid::LEN], path: &Path, received: usize, now: Instant) {
        self.ctx.stats.drop_unknown_id += 1;
        if self.stateless.len() >= STATELESS_QUEUE {
            return;
        }
        let mut packet = [0; MAX_TX_PAYLOAD];
        if let Some(len) = self.resetter.answer(id, received, now, &mut packet) {
            self.ctx.stats.stateless_resets += 1;
            self.stateless.push_back(Stateless { path: *path, payload: packet[..len].to_vec() });
        }
    }

    fn negotiate_version(&mut self, path: &Path, dcid: Vec<u8>, scid: Vec<u8>) {
        if self.stateless.len() >= STATELESS_QUEUE {
            return;
        }
        let mut packet = [0; MAX_TX_PAYLOAD];
        let (dcid, scid) = (ConnectionId::from_vec(dcid), ConnectionId::from_vec(scid));
        if let Ok(len) = quiche::negotiate_version(&scid, &dcid, &mut packet) {
            self.ctx.stats.version_negotiations += 1;
            self.stateless.push_back(Stateless { path: *path, payload: packet[..len].to_vec() });
        }
    }

    /// Makes a connection of an Initial, if there is room for it and the packet is what it says.
    pub fn accept(&mut self, id: InitialId, path: &Path, packet: &mut [u8], now: Instant) {
        let full = self.table.len() >= self.max_connections;
        if self.table.len() >= self.max_connections + REFUSAL_SLOTS || self.drain.is_some() {
            self.ctx.stats.drop_full += 1;
            return;
        }
        let Self { table, codec, resetter, config, ctx, index, .. } = self;
        let slot = table.insert_with(|slot, generation| {
            let route = Route { worker: *index as u8, slot, generation, serial: 0 };
            let scid = codec.encode(&route);
            config.set_stateless_reset_token(Some(u128::from_be_bytes(resetter.token(&scid))));
            let scid = ConnectionId::from_ref(&scid);
            let mut quic =
                quiche::accept_with_buf_factory(&scid, None, path.local, path.peer, config).ok()?;
            tls::free_settings_after_handshake(&mut quic);
            let life = if full { Life::Refused } else { Life::Handshake };
            Some(Conn::new(quic, Session::new(slot, generation, ctx, now), path, life, Some(id), now))
        });
        let Some(slot) = slot else {
            self.ctx.stats.drop_full += 1;
            return;
        };
        self.table.remember_initial(id, slot);
        self.ctx.stats.connections = self.table.len().into();
        let dropped = self.ctx.stats.drop_quic;
        self.deliver(slot, path, packet, now);
        let Some(conn) = self.table.get_mut(slot) else { return };
        // A TLS alert (wrong ALPN, no common group) is told to the client; else, if not one packet in it was
        // authentic, it was no Initial of that connection ID.
        let alert = conn.quic.local_error().is_some_and(|error| TLS_ALERTS.contains(&error.error_code));
        if conn.quic.stats().recv == 0 && !alert {
            self.ctx.stats.drop_quic = dropped + 1;
            self.discard(slot);
            return;
        }
        self.ctx.stats.handshakes_started += 1;
        self.wheel.arm(slot, now + HANDSHAKE_LIMIT);
    }

    /// Gives a packet to the connection in `slot`, and to its session what QUIC makes of it.
    pub fn deliver(&mut self, slot: u32, path: &Path, packet: &mut [u8], now: Instant) {
        let Some(conn) = self.table.get_mut(slot) else { return };
        let arrival = conn.paths.arrive(&mut conn.quic, path);
        let (length, elsewhere) = (packet.len(), !matches!(arrival, Arrival::Here(_)));
        let (Arrival::Here(info) | Arrival::Elsewhere(info) | Arrival::Homeless(info)) = arrival;
        let before = if elsewhere { conn.quic.stats().recv } else { 0 };
        if conn.quic.recv(packet, info).is_err() {
            // The connection is closing for it; its CONNECTION_CLOSE is to be sent.
            self.ctx.stats.drop_quic += 1;
            self.make_ready(slot);
            return;
        }
        let retired = conn.quic.retired_scids() > 0;
        conn.retired_ids |= retired;
        if elsewhere {
            if conn.quic.stats().recv == before {
                // Anybody who saw an ID of the connection may have sent it, from any address.
                self.ctx.stats.drop_quic += 1;
                return;
            }
            if matches!(arrival, Arrival::Homeless(_)) {
                return self.turn_out(slot, path);
            }
            conn.paths.moved(&mut conn.quic, path, now);
        } else if conn.paths.is_moving() {
            conn.paths.settle(&mut conn.quic, now);
        }
        if retired || elsewhere {
            self.supply_ids(slot);
        }
        let Some(conn) = self.table.get_mut(slot) else { return };
        match conn.life {
            Life::Open => {}
            Life::Handshake | Life::Refused if conn.quic.is_established() => {
                return self.established(slot, now);
            }
            _ => return self.make_ready(slot),
        }
        if conn.quic.is_draining() {
            return self.leave(slot);
        }
        if conn.hearing.is_waiting() && !conn.paths.is_moving() {
            self.tell_missed(slot, now);
        }
        match self.serve_session(slot, now) {
            Ok(answer) if answer || elsewhere => self.make_ready(slot),
            Ok(_) => {
                let delay = self.ack_delay;
                let Some(conn) = self.table.get_mut(slot) else { return };
                self.ahead.received(conn);
                match conn.acks.received(length, now, delay) {
                    Owed::Now => self.make_ready(slot),
                    Owed::By(due) => self.wheel.arm(slot, due),
                    Owed::Later => {}
                }
            }
            Err(close) => self.close(slot, close),
        }
    }

    /// Ends the connection in `slot`: its client moved once more than QUIC can follow, and is at the end of
    /// `path`. A new connection costs it a handshake; with this one it would hear nothing any more.
    fn turn_out(&mut self, slot: u32, path: &Path) {
        let Some(conn) = self.table.get_mut(slot) else { return };
        conn.paths.end_at(path);
        // An error means that it is closed already.
        let _ = conn.quic.close(false, NO_VIABLE_PATH, b"moved too often");
        self.ctx.stats.moved_too_often += 1;
        self.leave(slot);
        self.make_ready(slot);
    }

    /// The client of `slot` was heard of: tells it what was announced while it was out of reach.
    fn tell_missed(&mut self, slot: u32, now: Instant) {
        let Some(conn) = self.table.get_mut(slot) else { return };
        let Some((since, before)) = conn.hearing.heard(now) else { return };
        if !conn.session.is_subscriber() {
            return;
        }
        let payloads = self.fanout.announced(since, conn.session.view());
        // What a client, or its window, does not take of a long list now, it gets the next time.
        let start = payloads.len() * usize::from(before) / usize::from(TIMES);
        conn.session.announce(&mut conn.quic, &mut self.ctx, &payloads, start, now);
        self.make_ready(slot);
    }

    /// Lets the session of `slot` read what QUIC has for it. `true`: there is something to send now, not just
    /// to acknowledge some time.
    fn serve_session(&mut self, slot: u32, now: Instant) -> Result<bool, Close> {
        let Some(conn) = self.table.get_mut(slot) else { return Ok(false) };
        let Conn { quic, session, .. } = conn;
        while let Ok(datagram) = quic.dgram_recv_buf() {
            session.on_datagram(datagram.as_ref(), &mut self.ctx, now)?;
        }
        let mut answer = session.has_output();
        if quic.is_readable() {
            session.on_control(quic, &mut self.ctx, now)?;
            answer = true; // stream data is acknowledged at once: a client's window depends on it
            self.update_subscription(slot);
        }
        Ok(answer)
    }

    /// Keeps the client of `slot` in connection IDs, so that it can move unlinkably (RFC 9000, section 9.5).
    pub fn supply_ids(&mut self, slot: u32) {
        let generation = self.table.generation(slot);
        let Some(conn) = self.table.get_mut(slot) else { return };
        if !conn.quic.is_established() {
            return;
        }
        while conn.quic.retired_scid_next().is_some() {}
        while conn.quic.scids_left() > 0 && conn.quic.active_scids() <= SPARE_IDS {
            let serial = conn.next_serial;
            conn.next_serial += 1;
            let id = self.codec.encode(&Route { worker: self.index as u8, slot, generation, serial });
            let token = u128::from_be_bytes(self.resetter.token(&id));
            if conn.quic.new_scid(&ConnectionId::from_ref(&id), token, false).is_err() {
                break;
            }
        }
    }

    /// The handshake of `slot` is complete.
    fn established(&mut self, slot: u32, now: Instant) {
        let Some(conn) = self.table.get_mut(slot) else { return };
        self.ctx.stats.handshakes_completed += 1;
        conn.since = now;
        if conn.life == Life::Refused {
            self.ctx.stats.refused_full += 1;
            let reason = "this worker's connection table is full";
            return self.close(slot, Close { code: CloseCode::ServerFull, reason });
        }
        conn.life = Life::Open;
        conn.session.established(&conn.quic);
        self.supply_ids(slot);
        if self.ctx.link.shared.phase() != Phase::Run {
            let reason = "the server is shutting down";
            return self.close(slot, Close { code: CloseCode::Draining, reason });
        }
        match self.serve_session(slot, now) {
            Ok(_) => self.make_ready(slot),
            Err(close) => self.close(slot, close),
        }
    }
}
