//! What a burst will need from memory, fetched before its packets are dealt with.
//!
//! A packet of one among 10,000 connections finds nothing of its connection in cache, and each miss takes as
//! long as decrypting the packet. So a burst is looked at twice: when it is announced, the connection IDs are
//! decoded and the memory of their connections is asked for; when a packet is taken, its connection is near,
//! and the misses of the whole burst have overlapped. The decoded ID is kept for that second look.

use crate::quic::cid::{LEN, Route};
use std::collections::VecDeque;

/// Decoded IDs that may wait: a few bursts, since one turn may announce more than it takes. More are dropped,
/// and decoded again.
const MOST: usize = 256;

/// Decoded connection IDs of packets that were announced, in their order.
#[derive(Default)]
pub struct Ahead(VecDeque<([u8; LEN], Route)>);

impl Ahead {
    /// Keeps what was decoded of `id`.
    pub fn push(&mut self, id: &[u8; LEN], route: Route) {
        if self.0.len() == MOST {
            self.0.clear();
        }
        self.0.push_back((*id, route));
    }

    /// What was decoded of `id`, if that is the oldest. If not, packets went another way than they were
    /// announced: all is forgotten.
    pub fn take(&mut self, id: &[u8; LEN]) -> Option<Route> {
        let (announced, route) = self.0.pop_front()?;
        if announced != *id {
            self.0.clear();
            return None;
        }
        Some(route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(slot: u32) -> Route {
        Route { worker: 0, slot, generation: 0, serial: 0 }
    }

    #[test]
    fn in_order_or_not_at_all() {
        let mut ahead = Ahead::default();
        (0..4).for_each(|i| ahead.push(&[i; LEN], route(i.into())));
        assert_eq!(ahead.take(&[0; LEN]), Some(route(0)));
        assert_eq!(ahead.take(&[1; LEN]), Some(route(1)));
        assert_eq!(ahead.take(&[3; LEN]), None, "the packet before it was not taken");
        assert_eq!(ahead.take(&[3; LEN]), None);
    }

    #[test]
    fn what_is_never_taken_does_not_grow() {
        let mut ahead = Ahead::default();
        (0..10 * MOST).for_each(|i| ahead.push(&[0; LEN], route(i as u32)));
        assert!(ahead.0.len() <= MOST);
    }
}
