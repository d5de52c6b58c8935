//! All connections of `peer-quiche`: finding them, accepting, timers, broadcasts.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use anyhow::Result;
use rand::RngCore;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustc_hash::FxBuildHasher;

use super::conn::Conn;
use crate::session::Board;
use crate::udp::{RxBatch, TxBatch};

/// Bytes of a connection ID: those of quiche's examples. Random ones need no check that they are new.
const CID: usize = 16;

type Cid = [u8; CID];

/// Index of a connection, for as long as it lives.
type Slot = usize;

/// See the [module](self).
pub(super) struct Server {
    pub(super) board: Board,
    config: quiche::Config,
    local: SocketAddr,
    conns: Vec<Option<Conn>>,
    free: Vec<Slot>,
    by_id: HashMap<Cid, Slot, FxBuildHasher>,
    /// By the connection ID that the client chose for its first packets.
    by_first_id: HashMap<Vec<u8>, Slot, FxBuildHasher>,
    timers: BinaryHeap<Reverse<(Instant, Slot)>>,
    /// Connections to look at, each once.
    touched: Vec<Slot>,
    rx: Option<RxBatch>,
    tx: TxBatch,
    scratch: Vec<u8>,
    rng: SmallRng,
}

impl Server {
    pub(super) fn new(config: quiche::Config, board: Board, local: SocketAddr) -> Result<Self> {
        Ok(Self {
            board,
            config,
            local,
            conns: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::default(),
            by_first_id: HashMap::default(),
            timers: BinaryHeap::new(),
            touched: Vec::new(),
            rx: Some(RxBatch::default()),
            tx: TxBatch::default(),
            scratch: vec![0; 1 << 16],
            rng: SmallRng::from_os_rng(),
        })
    }

    /// Takes one batch from the socket. Returns the number of messages.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<usize> {
        // Taken out for the time being, so that what it lends does not borrow all of the server.
        let Some(mut rx) = self.rx.take() else { return Ok(0) };
        let received = rx.receive(&socket);
        for index in 0..*received.as_ref().unwrap_or(&0) {
            if let Some((from, bytes, segment)) = rx.message(index) {
                bytes.chunks_mut(segment).for_each(|packet| self.on_packet(packet, from));
            }
        }
        self.rx = Some(rx);
        Ok(received?)
    }

    fn on_packet(&mut self, packet: &mut [u8], from: SocketAddr) {
        let slot = match packet {
            // A short header: one bit, then the ID.
            [first, rest @ ..] if *first & 0x80 == 0 => {
                rest.first_chunk().and_then(|id| self.by_id.get(id)).copied()
            }
            _ => self.find_or_accept(packet, from),
        };
        let Some(slot) = slot else { return };
        let Some(conn) = self.conns[slot].as_mut() else { return };
        let info = quiche::RecvInfo { from, to: self.local };
        // What quiche refuses is dropped; what is fatal closes the connection, which is noticed when it is
        // looked at.
        let _ = conn.quic.recv(packet, info);
        conn.take_datagrams(&mut self.board, &mut self.scratch);
        self.touch(slot);
    }

    /// The connection of a packet with a long header, a new one if that is what it asks for.
    fn find_or_accept(&mut self, packet: &mut [u8], from: SocketAddr) -> Option<Slot> {
        let header = quiche::Header::from_slice(packet, CID).ok()?;
        let ours = <&Cid>::try_from(header.dcid.as_ref()).ok().and_then(|id| self.by_id.get(id));
        if let Some(slot) = ours.or_else(|| self.by_first_id.get(header.dcid.as_ref())) {
            return Some(*slot);
        }
        if header.ty != quiche::Type::Initial || !quiche::version_is_supported(header.version) {
            return None;
        }
        let mut id = [0; CID];
        self.rng.fill_bytes(&mut id);
        let scid = quiche::ConnectionId::from_ref(&id);
        let quic = quiche::accept(&scid, None, self.local, from, &mut self.config).ok()?;
        let conn = Conn::new(quic, header.dcid.to_vec(), &self.board);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.conns.len() - 1
        });
        self.conns[slot] = Some(conn);
        self.by_id.insert(id, slot);
        self.by_first_id.insert(header.dcid.to_vec(), slot);
        self.board.counts.connections += 1;
        Some(slot)
    }

    fn touch(&mut self, slot: Slot) {
        if let Some(conn) = self.conns[slot].as_mut()
            && !conn.touched
        {
            conn.touched = true;
            self.touched.push(slot);
        }
    }

    /// Lets connections whose time has come act.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(Reverse((at, slot))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            let Some(conn) = self.conns[slot].as_mut().filter(|conn| conn.timer == Some(at)) else {
                continue;
            };
            conn.timer = None;
            // Timers are armed for the earliest time and left there when it moves: it may not be due.
            if conn.quic.timeout_instant().is_some_and(|due| due <= now) {
                conn.quic.on_timeout();
            }
            self.touch(slot);
        }
    }

    /// When the next timer is due.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Ends the tick and queues it for all subscribers.
    pub(super) fn broadcast(&mut self) {
        let mut broadcast = self.board.tick();
        for slot in 0..self.conns.len() {
            let Some(conn) = self.conns[slot].as_mut().filter(|conn| conn.is_subscriber()) else { continue };
            let packed = broadcast.payloads(conn.view());
            if !packed.diffs.is_empty() || !packed.versions.is_empty() {
                conn.broadcast(packed, &mut self.board);
                self.touch(slot);
            }
        }
    }

    /// Works off the connections that were touched, and sends what they have to send.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) {
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            let Some(conn) = self.conns[slot].as_mut() else { continue };
            conn.touched = false;
            conn.work(&mut self.board, &mut self.scratch);
            conn.send(&mut self.tx, |batch| batch.flush(&socket));
            if conn.quic.is_closed() {
                self.remove(slot);
                continue;
            }
            if let Some(due) = conn.quic.timeout_instant()
                && conn.timer.is_none_or(|armed| due < armed)
            {
                conn.timer = Some(due);
                self.timers.push(Reverse((due, slot)));
            }
        }
        self.touched = touched;
        self.tx.flush(&socket);
    }

    fn remove(&mut self, slot: Slot) {
        let Some(conn) = self.conns[slot].take() else { return };
        for id in conn.quic.source_ids() {
            if let Ok(id) = <&Cid>::try_from(id.as_ref()) {
                self.by_id.remove(id);
            }
        }
        self.by_first_id.remove(&conn.first_id);
        self.free.push(slot);
        self.board.counts.connections -= 1;
    }
}
