//! Asking for memory ahead: while one packet is dealt with, what the next ones need is on its way.
//!
//! A packet of one among 10,000 connections finds nothing of its connection in cache, and each miss takes as
//! long as decrypting it. Two steps ahead of it: *far* ahead the connection itself is asked for, and with it
//! the list of what it points to ([`Hints`](crate::quic::hot::Hints)); *near*, when that list has come, what is
//! on it.

use super::conn::Conn;
use crate::quic::cid::{self, Route};
use crate::quic::hot::{LINE, Plans, Work};
use crate::quic::table::ConnectionTable;
use std::collections::BTreeSet;
use std::mem::offset_of;

/// Packets between asking for a connection and dealing with it. Two packets take as long as the slowest memory;
/// the rest is for what is asked for together, 50 lines a packet, of which a processor fetches some 20 at a
/// time. 12 and 6 were tried, too: a tenth slower at 10,000 connections.
const FAR: usize = 24;

/// Packets between asking for what a connection points to and dealing with it.
const NEAR: usize = 12;

/// Connections between asking for one and its sending. It takes longer than receiving, and touches twice as much.
const FAR_SENDING: usize = 6;

/// Connections between asking for what one points to and its sending.
const NEAR_SENDING: usize = 3;

/// Connections from which on asking ahead is worth its instructions. What a message touches of fewer, 5 KB each, is in
/// the second-level cache of the core, 1 MiB here: with 100 connections a message costs a tenth less without asking,
/// with 300 the same, with 650 a sixth more.
const MANY: u32 = 256;

/// Packets that are remembered at most: what backends announce at a time, and some. More were announced and never
/// came.
const MOST: usize = 256;

/// Packets after which a connection's hints are made anew: QUIC moves things rarely, and less the longer a
/// connection lives. It takes two or three system calls: more often costs more than lines that have moved do.
const RENEW: u32 = 4096;

/// Packets after which they are made anew besides: after the second, all there is to a message has been used. At 64
/// and 512 instead of 256 it is the same; without the latter a message of 1,000 connections costs 3 to 5% more.
const EARLY_RENEWALS: [u32; 2] = [2, 256];

// Lines of quiche's connection are found where they were learned.
const _: () = assert!(align_of::<Conn>() == LINE && offset_of!(Conn, quic).is_multiple_of(LINE));

/// What to ask for. See the [module](self).
pub struct Ahead {
    plans: &'static Plans,
    /// Connections from which on it asks before they receive.
    many: u32,
    /// Lines of a [`Conn`] to ask for before it receives, as offsets in bytes.
    receiving: Box<[usize]>,
    /// Before it sends.
    sending: Box<[usize]>,
    /// The packets that were announced.
    burst: Vec<Expected>,
    /// Packets of it that were dealt with.
    done: usize,
    /// Packets of it whose connection was asked for.
    far: usize,
    /// Packets of it for which what their connection points to was asked for.
    near: usize,
}

/// A packet that was announced.
struct Expected {
    /// Its connection ID.
    id: [u8; cid::LEN],
    /// What that says: it is decrypted once.
    route: Route,
}

impl Ahead {
    /// Knows what `plans` tell.
    pub fn new(plans: &'static Plans) -> Self {
        let lines = |works: &[Work]| {
            let quic =
                works.iter().flat_map(|work| plans.own(*work)).map(|line| offset_of!(Conn, quic) + line);
            let rest = (offset_of!(Conn, session)..size_of::<Conn>()).step_by(LINE);
            let hints = (offset_of!(Conn, hints)..offset_of!(Conn, quic)).step_by(LINE);
            // Once each: works have lines in common.
            quic.chain(rest).chain(hints).collect::<BTreeSet<_>>().into_iter().collect()
        };
        Self {
            plans,
            many: MANY,
            receiving: lines(&[Work::Receive, Work::Acknowledged]),
            sending: lines(&[Work::Send]),
            burst: Vec::with_capacity(MOST),
            done: 0,
            far: 0,
            near: 0,
        }
    }

    /// A packet with connection ID `id` will come, after those that this was called for before.
    #[inline]
    pub fn expect(&mut self, id: &[u8; cid::LEN], route: Route, table: &ConnectionTable<Conn>) {
        if self.done == self.burst.len() || self.burst.len() == MOST {
            self.burst.clear();
            (self.done, self.far, self.near) = (0, 0, 0);
        }
        self.burst.push(Expected { id: *id, route });
        self.ask_for_connections(table);
    }

    /// A packet with connection ID `id` has come. Returns what that says if it was announced.
    #[inline]
    pub fn advance(&mut self, id: &[u8; cid::LEN], table: &mut ConnectionTable<Conn>) -> Option<Route> {
        let is = |at: usize| self.burst.get(at).is_some_and(|expected| expected.id == *id);
        // Of joined packets only the first is announced.
        if !is(self.done) && self.done > 0 && is(self.done - 1) {
            return Some(self.burst[self.done - 1].route);
        }
        // What was announced and did not come is passed over.
        let passed = self.burst[self.done..].iter().position(|expected| expected.id == *id)?;
        self.done += passed + 1;
        let route = self.burst[self.done - 1].route;
        self.near = self.near.max(self.done);
        self.far = self.far.max(self.done);
        let (near, _) = self.reach(table);
        while self.near < self.burst.len().min(self.done + near) {
            if let Some(conn) = table.get_mut(self.burst[self.near].route.slot) {
                // A subscriber's packets rather acknowledge than paint.
                let work = if conn.subscriber.is_some() { Work::Acknowledged } else { Work::Receive };
                self.plans.prefetch(work, &conn.hints);
            }
            self.near += 1;
        }
        self.ask_for_connections(table);
        Some(route)
    }

    /// Packets ahead for which to ask: for what their connections point to, and for the connections.
    #[inline]
    fn reach(&self, table: &ConnectionTable<Conn>) -> (usize, usize) {
        if table.len() < self.many { (0, 0) } else { (NEAR, FAR) }
    }

    #[inline]
    fn ask_for_connections(&mut self, table: &ConnectionTable<Conn>) {
        let (_, far) = self.reach(table);
        while self.far < self.burst.len().min(self.done + far) {
            table.prefetch(self.burst[self.far].route.slot, self.receiving.iter().copied());
            self.far += 1;
        }
    }

    /// One in a row of connections is about to send; `after` tells which comes so many steps after it.
    #[inline]
    pub fn send(&self, after: impl Fn(usize) -> Option<u32>, table: &mut ConnectionTable<Conn>) {
        if let Some(slot) = after(FAR_SENDING) {
            table.prefetch(slot, self.sending.iter().copied());
        }
        if let Some(conn) = after(NEAR_SENDING).and_then(|slot| table.get_mut(slot)) {
            self.plans.prefetch(Work::Send, &conn.hints);
        }
    }

    /// Notes that `conn` has received a packet that needs no answer of its own, and sees to it that its hints
    /// are right.
    #[inline]
    pub fn received(&self, conn: &mut Conn) {
        conn.received = conn.received.wrapping_add(1);
        if conn.received.is_multiple_of(RENEW) || EARLY_RENEWALS.contains(&conn.received) {
            self.locate(conn);
        }
    }

    /// Finds out where things are that `conn` points to.
    #[cold]
    fn locate(&self, conn: &mut Conn) {
        conn.hints = self.plans.locate(&conn.quic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{PageKind, Pages};

    fn table() -> ConnectionTable<Conn> {
        ConnectionTable::new(64, Pages::Exactly(PageKind::Plain), None, 0).unwrap()
    }

    fn ahead() -> Ahead {
        Ahead { many: 0, ..Ahead::new(Box::leak(Box::default())) }
    }

    fn route(slot: u32) -> Route {
        Route { worker: 0, slot, generation: 1, serial: 0 }
    }

    fn id(slot: u32) -> [u8; cid::LEN] {
        [slot as u8; cid::LEN]
    }

    #[test]
    fn connections_are_asked_for_in_two_steps_ahead_of_their_packets() {
        let (mut ahead, mut table) = (ahead(), table());
        for slot in 0..40 {
            ahead.expect(&id(slot), route(slot), &table);
        }
        assert_eq!((ahead.done, ahead.near, ahead.far), (0, 0, FAR));
        assert_eq!(ahead.advance(&id(0), &mut table), Some(route(0)));
        assert_eq!((ahead.done, ahead.near, ahead.far), (1, 1 + NEAR, 1 + FAR));
        // 1 to 4 were announced and never came.
        assert_eq!(ahead.advance(&id(5), &mut table), Some(route(5)));
        assert_eq!((ahead.done, ahead.near, ahead.far), (6, 6 + NEAR, 6 + FAR));
        // Joined to the last one; of a stranger; of one that was passed over.
        for (slot, known) in [(5, true), (63, false), (2, false)] {
            assert_eq!(ahead.advance(&id(slot), &mut table), known.then(|| route(slot)));
            assert_eq!(ahead.done, 6);
        }
        for slot in 6..40 {
            assert_eq!(ahead.advance(&id(slot), &mut table), Some(route(slot)));
        }
        assert_eq!((ahead.done, ahead.near, ahead.far), (40, 40, 40));
    }

    #[test]
    fn few_connections_are_not_asked_for_and_their_packets_still_known() {
        let (mut ahead, mut table) = (Ahead { many: 1, ..ahead() }, table());
        for slot in 0..3 {
            ahead.expect(&id(slot), route(slot), &table);
        }
        assert_eq!((ahead.done, ahead.near, ahead.far), (0, 0, 0));
        assert_eq!(ahead.advance(&id(1), &mut table), Some(route(1)));
        assert_eq!((ahead.done, ahead.near, ahead.far), (2, 2, 2));
    }

    #[test]
    fn what_never_comes_is_forgotten() {
        let (mut ahead, mut table) = (ahead(), table());
        for slot in 0..3 * MOST as u32 {
            ahead.expect(&id(slot % 64), route(slot % 64), &table);
            assert!(ahead.burst.len() <= MOST && ahead.far <= ahead.burst.len());
        }
        let _ = ahead.advance(&id(0), &mut table);
        assert!(ahead.done <= ahead.burst.len());
    }
}
