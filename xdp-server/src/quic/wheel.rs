//! Timer wheel: one deadline for each connection, O(1) to set, nothing allocated after start.
//!
//! Time is counted in ticks of one millisecond since the wheel was made. A connection (its slot) is in at
//! most one bucket. Setting a deadline only ever moves it *earlier*: a later one is left to fire early, and
//! its owner, finding nothing due, sets it anew. That is the right bargain for QUIC, whose timers are pushed
//! back with every packet and almost never expire. Deadlines beyond the wheel's span fire at its end and are
//! set anew in the same way.
//!
//! Buckets are doubly linked lists threaded through arrays indexed by slot.

use std::time::{Duration, Instant};

/// Buckets, a power of two: the span is 4.1 s at 1 ms. Longer deadlines (idle timeouts of 30 s) cost one
/// needless firing each 4 s; a smaller wheel makes more of those, a larger one takes more cache.
const BUCKETS: usize = 4096;

/// Length of a tick. quiche's shortest timers (loss detection) are of this order; finer would only cost
/// turns.
const TICK: Duration = Duration::from_millis(1);

const NIL: u32 = u32::MAX;
const UNARMED: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Node {
    next: u32,
    prev: u32,
    /// Tick at which the slot fires; `UNARMED` if it is in no bucket.
    at: u64,
}

/// See the [module](self).
pub struct TimerWheel {
    start: Instant,
    /// All ticks up to and including this one have been fired.
    fired: u64,
    armed: usize,
    heads: Box<[u32; BUCKETS]>,
    nodes: Box<[Node]>,
}

impl TimerWheel {
    /// A wheel for slots `0..slots` (below 2^32 - 1).
    pub fn new(slots: usize, now: Instant) -> Self {
        Self {
            start: now,
            fired: 0,
            armed: 0,
            heads: Box::new([NIL; BUCKETS]),
            nodes: vec![Node { next: NIL, prev: NIL, at: UNARMED }; slots].into_boxed_slice(),
        }
    }

    /// Makes `slot` fire at `deadline` or soon after, unless it fires earlier already.
    pub fn arm(&mut self, slot: u32, deadline: Instant) {
        // Rounded up: a timer must not fire before its time.
        let ticks =
            deadline.saturating_duration_since(self.start).as_nanos().div_ceil(TICK.as_nanos()) as u64;
        let at = ticks.clamp(self.fired + 1, self.fired + BUCKETS as u64 - 1);
        let current = self.nodes[slot as usize].at;
        if current != UNARMED {
            if current <= at {
                return;
            }
            self.unlink(slot);
        }
        let bucket = at as usize % BUCKETS;
        let head = self.heads[bucket];
        self.nodes[slot as usize] = Node { next: head, prev: NIL, at };
        if head != NIL {
            self.nodes[head as usize].prev = slot;
        }
        self.heads[bucket] = slot;
        self.armed += 1;
    }

    /// Forgets the deadline of `slot`, if it has one.
    pub fn disarm(&mut self, slot: u32) {
        if self.nodes[slot as usize].at != UNARMED {
            self.unlink(slot);
        }
    }

    /// Appends to `due` the slots whose time has come, at most `limit` of them; they are no longer armed.
    pub fn expire(&mut self, now: Instant, limit: usize, due: &mut Vec<u32>) {
        let until = (now.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos()) as u64;
        let mut room = limit;
        while self.fired < until {
            if self.armed == 0 {
                self.fired = until;
                return;
            }
            let bucket = (self.fired + 1) as usize % BUCKETS;
            while self.heads[bucket] != NIL {
                if room == 0 {
                    return; // the rest of this bucket next time
                }
                room -= 1;
                let slot = self.heads[bucket];
                self.unlink(slot);
                due.push(slot);
            }
            self.fired += 1;
        }
    }

    /// When the next slot fires, looking no further than `horizon` ahead; `None` if none does. For deciding
    /// how long to sleep, not for the packet path.
    pub fn next_deadline(&self, horizon: Duration) -> Option<Instant> {
        if self.armed == 0 {
            return None;
        }
        let span = (horizon.as_millis() as u64).min(BUCKETS as u64 - 1);
        (self.fired + 1..=self.fired + span)
            .find(|tick| self.heads[*tick as usize % BUCKETS] != NIL)
            .map(|tick| self.start + Duration::from_millis(tick))
    }

    fn unlink(&mut self, slot: u32) {
        let node = self.nodes[slot as usize];
        match node.prev {
            NIL => self.heads[node.at as usize % BUCKETS] = node.next,
            prev => self.nodes[prev as usize].next = node.next,
        }
        if node.next != NIL {
            self.nodes[node.next as usize].prev = node.prev;
        }
        self.nodes[slot as usize].at = UNARMED;
        self.armed -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Op {
        Arm(u32, u64),
        Disarm(u32),
        Advance(u64, usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u32..20, 0u64..6_000_000).prop_map(|(slot, us)| Op::Arm(slot, us)),
            1 => (0u32..20).prop_map(Op::Disarm),
            4 => (0u64..900_000, 1usize..8).prop_map(|(us, limit)| Op::Advance(us, limit)),
        ]
    }

    proptest! {
        /// Against a map of deadlines: nothing fires early, everything due fires (given enough calls), an
        /// armed slot is never lost, and only a deadline beyond the span may fire before its time.
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec(op(), 1..200)) {
            let start = Instant::now();
            let mut wheel = TimerWheel::new(20, start);
            let mut model: BTreeMap<u32, u64> = BTreeMap::new(); // slot -> tick at which it must fire
            let (mut now, mut due) = (0u64, Vec::new());
            for op in ops {
                match op {
                    Op::Arm(slot, after) => {
                        wheel.arm(slot, start + Duration::from_micros(now + after));
                        let exact = (now + after).div_ceil(1000);
                        let at = exact.clamp(wheel.fired + 1, wheel.fired + BUCKETS as u64 - 1);
                        model.entry(slot).and_modify(|old| *old = at.min(*old)).or_insert(at);
                    }
                    Op::Disarm(slot) => {
                        wheel.disarm(slot);
                        model.remove(&slot);
                    }
                    Op::Advance(us, limit) => {
                        now += us;
                        due.clear();
                        wheel.expire(start + Duration::from_micros(now), limit, &mut due);
                        prop_assert!(due.len() <= limit);
                        for slot in &due {
                            let at = model.remove(slot);
                            prop_assert!(at.is_some_and(|at| at <= now / 1000), "slot {} at {:?}, now {}", slot, at, now);
                        }
                        if due.len() < limit {
                            prop_assert!(model.values().all(|at| *at > now / 1000), "late: {:?} at {}", model, now);
                        }
                        let next = model.values().min().map(|at| start + Duration::from_millis(*at));
                        if due.len() < limit {
                            prop_assert_eq!(wheel.next_deadline(Duration::from_secs(60)), next);
                        }
                    }
                }
                prop_assert_eq!(wheel.armed, model.len());
            }
        }
    }

    #[test]
    fn a_later_deadline_does_not_delay_an_earlier_one() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(1, start);
        let mut due = Vec::new();
        wheel.arm(0, start + Duration::from_millis(10));
        wheel.arm(0, start + Duration::from_millis(500));
        wheel.expire(start + Duration::from_millis(10), 8, &mut due);
        assert_eq!(due, [0]);
    }
}
