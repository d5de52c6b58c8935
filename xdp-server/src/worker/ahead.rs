//! Asking for memory ahead: while one packet is dealt with, what the next ones need is on its way.
//!
//! A packet of one among 10,000 connections finds nothing of its connection in cache, and each miss takes as
//! long as decrypting it. Two steps ahead of it: *far* ahead the connection itself is asked for, and with it
//! the list of what it points to ([`Hints`](crate::quic::hot::Hints)); *near*, when that list has come, what is
//! on it.

use super::conn::Conn;
use crate::quic::hot::{Plans, Work};
use crate::quic::table::ConnectionTable;
use std::collections::BTreeSet;
use std::mem::offset_of;

/// Packets between asking for a connection and dealing with it. At 0.5 us a packet, [`NEAR`] later it has come
/// from the slowest memory; more only crowds the caches.
const FAR: usize = 24;

/// Packets between asking for what a connection points to and dealing with it.
const NEAR: usize = 12;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Packets after which a connection's hints are made anew: QUIC moves things rarely. It takes about 5 us: more
/// often costs more than lines that have moved do.
const RENEW: u32 = 4096;

/// Packets after which they are made anew for the first time: by then lists have got the size that they keep.
const FIRST_RENEWAL: u32 = 2;

// Lines of quiche's connection are found where they were learned.
const _: () = assert!(align_of::<Conn>() == LINE && offset_of!(Conn, quic).is_multiple_of(LINE));

/// What to ask for. See the [module](self).
pub struct Ahead {
    plans: &'static Plans,
    /// Lines of a [`Conn`] to ask for before it receives, as offsets in bytes.
    receiving: Box<[usize]>,
    /// Before it sends.
    sending: Box<[usize]>,
    /// Slots of the packets of a burst.
    burst: Vec<u32>,
    /// Packets of it that were dealt with.
    done: usize,
}

impl Ahead {
    /// Connections between asking for one and its sending.
    pub const FAR_SENDING: usize = 6;

    /// Connections between asking for what it points to and its sending.
    pub const NEAR_SENDING: usize = 3;

    /// Knows what `plans` tell.
    pub fn new(plans: &'static Plans) -> Self {
        let lines = |works: &[Work]| {
            let quic =
                works.iter().flat_map(|work| plans.own(*work)).map(|line| offset_of!(Conn, quic) + line);
            let rest = (offset_of!(Conn, session)..size_of::<Conn>()).step_by(LINE);
            let lines: BTreeSet<_> = quic.chain(rest).chain([offset_of!(Conn, hints)]).collect();
            lines.into_iter().collect()
        };
        Self {
            plans,
            receiving: lines(&[Work::Receive, Work::Acknowledged]),
            sending: lines(&[Work::Send]),
            burst: Vec::new(),
            done: 0,
        }
    }

    /// A new burst begins.
    pub fn begin(&mut self) {
        self.burst.clear();
        self.done = 0;
    }

    /// A packet for `slot` is the next of the burst.
    #[inline]
    pub fn expect(&mut self, slot: u32, table: &ConnectionTable<Conn>) {
        if self.burst.len() < self.done + FAR {
            table.prefetch(slot, self.receiving.iter().copied());
        }
        self.burst.push(slot);
    }

    /// The next packet of the burst is about to be dealt with.
    #[inline]
    pub fn advance(&mut self, table: &mut ConnectionTable<Conn>) {
        let last = self.done + NEAR;
        let first = if self.done == 0 { 1 } else { last };
        for slot in self.burst.iter().take(last + 1).skip(first) {
            let Some(conn) = table.get_mut(*slot) else { continue };
            // A subscriber's packets rather acknowledge than paint.
            let work = if conn.subscriber.is_some() { Work::Acknowledged } else { Work::Receive };
            self.plans.prefetch(work, &conn.hints);
        }
        if let Some(slot) = self.burst.get(self.done + FAR) {
            table.prefetch(*slot, self.receiving.iter().copied());
        }
        self.done += 1;
    }

    /// One in a row of connections is about to send: `far` and `near` are those that follow it by
    /// [`FAR_SENDING`](Self::FAR_SENDING) and [`NEAR_SENDING`](Self::NEAR_SENDING), where there are so many.
    #[inline]
    pub fn send(&self, far: Option<u32>, near: Option<u32>, table: &mut ConnectionTable<Conn>) {
        if let Some(slot) = far {
            table.prefetch(slot, self.sending.iter().copied());
        }
        if let Some(conn) = near.and_then(|slot| table.get_mut(slot)) {
            self.plans.prefetch(Work::Send, &conn.hints);
        }
    }

    /// Notes that `conn` has received a packet, and sees to it that its hints are right.
    #[inline]
    pub fn received(&self, conn: &mut Conn) {
        conn.received = conn.received.wrapping_add(1);
        if conn.received % RENEW == FIRST_RENEWAL {
            self.locate(conn);
        }
    }

    /// Finds out where things are that `conn` points to.
    #[cold]
    pub fn locate(&self, conn: &mut Conn) {
        conn.hints = self.plans.locate(&conn.quic);
    }
}
