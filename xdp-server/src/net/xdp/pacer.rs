//! When to make the system calls that drive the kernel's side of the rings.
//!
//! Theory of operation
//! -------------------
//! A ring is shared memory: putting a packet into the transmit ring sends nothing, and with busy polling
//! nothing is received either, until a system call lets the kernel look. One call costs as much as several
//! packets, so that calls go by batch and by age, never by packet. [`Pacer`] only decides; it owns no
//! descriptor and reads no clock.
//!
//! Two regimes:
//! - **Interrupts** (adaptive polling, shared cores): the kernel receives by itself. Calls are due for
//!   packets to transmit, and where the driver says by `need_wakeup` that it waits for frames in the fill
//!   ring.
//! - **Busy polling** (a dedicated core): the worker's calls are the only thing that drives the NIC. One is
//!   due whenever the receive ring is empty, at a bounded rate: more often, and an idle receive side would
//!   spend all the time that sending needs; and one is forced when too long passed without.

use std::time::{Duration, Instant};

/// Packets queued since the last call that make the next one due. The transmit budget of one NAPI poll in
/// common drivers, and twice what copy mode sends by one call. Larger: packets of a burst wait for the burst
/// to be made. Smaller: more calls.
const BATCH: u32 = 64;

/// Age of the oldest queued packet that makes a call due. What Firedancer found to be good; about the time
/// that 15 packets take QUIC to make. Larger: adds to every packet's latency at low load. Smaller: one call
/// for each turn.
const MAX_AGE: Duration = Duration::from_micros(20);

/// Least time between two calls for busy polling, as measured by Firedancer on ixgbe, i40e and mlx5. Larger:
/// the NIC's rings are emptied too rarely at full rate. Smaller: calls that find nothing take the time of
/// sending.
const POLL_INTERVAL: Duration = Duration::from_micros(5);

/// A call is made after this time without one even if nothing seems to need it: a guard against lost
/// wake-ups, of which no case is known. Far above every other interval, so that it costs nothing.
const STALL: Duration = Duration::from_micros(150);

/// Decides when a system call is due. `now` is the turn's one clock reading.
#[derive(Debug)]
pub struct Pacer {
    busy: bool,
    /// Packets put into the transmit ring since the last call for it.
    pending: u32,
    /// When the first of them was noticed.
    since: Option<Instant>,
    /// When the kernel was driven last, for whichever side.
    last: Option<Instant>,
}

impl Pacer {
    /// `busy`: busy polling, else interrupts.
    pub fn new(busy: bool) -> Self {
        Self { busy, pending: 0, since: None, last: None }
    }

    /// A packet was queued.
    #[inline]
    pub fn queued(&mut self) {
        self.pending += 1;
    }

    /// Whether this is the busy polling regime, where a call for the transmit side polls the receive side
    /// too.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Whether packets were queued that no call was made for.
    pub fn is_pending(&self) -> bool {
        self.pending > 0
    }

    /// Whether a call for the transmit side is due. `in_flight`: the kernel has frames that it has not
    /// completed.
    pub fn transmit_due(&mut self, now: Instant, in_flight: bool) -> bool {
        if self.pending == 0 {
            return in_flight && self.quiet_for(now, STALL);
        }
        let since = *self.since.get_or_insert(now);
        self.pending >= BATCH || now.saturating_duration_since(since) >= MAX_AGE
    }

    /// Whether a call for the receive side is due. `drained`: the worker found the receive ring's end;
    /// `needs_wakeup`: the driver waits for frames in the fill ring.
    pub fn receive_due(&self, now: Instant, drained: bool, needs_wakeup: bool) -> bool {
        let wanted = needs_wakeup || self.busy && drained;
        wanted && self.quiet_for(now, POLL_INTERVAL) || self.busy && self.quiet_for(now, STALL)
    }

    /// A call was made for the transmit side. `done`: the kernel got to the end of the transmit ring. If not,
    /// the rest is due again by age.
    pub fn transmitted(&mut self, now: Instant, done: bool) {
        self.pending = u32::from(!done);
        self.since = (!done).then_some(now);
        self.last = Some(now);
    }

    /// A call was made for the receive side.
    pub fn received(&mut self, now: Instant) {
        self.last = Some(now);
    }

    fn quiet_for(&self, now: Instant, time: Duration) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) >= time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    #[test]
    fn transmit_is_due_by_batch_or_by_age() {
        let mut pacer = Pacer::new(false);
        let start = Instant::now();
        assert!(!pacer.transmit_due(start, false));
        pacer.queued();
        assert!(!pacer.transmit_due(start, false));
        assert!(!pacer.transmit_due(start + MAX_AGE - MICRO, false));
        assert!(pacer.transmit_due(start + MAX_AGE, false));
        pacer.transmitted(start + MAX_AGE, true);
        assert!(!pacer.transmit_due(start + MAX_AGE * 3, false));

        for _ in 0..BATCH {
            assert!(!pacer.transmit_due(start, false));
            pacer.queued();
        }
        assert!(pacer.transmit_due(start, false));
        // The kernel stopped early: not at once again, but by age.
        pacer.transmitted(start, false);
        assert!(!pacer.transmit_due(start + MICRO, false));
        assert!(pacer.transmit_due(start + MAX_AGE, false));
    }

    #[test]
    fn frames_in_flight_are_not_forgotten() {
        let mut pacer = Pacer::new(false);
        let start = Instant::now();
        pacer.transmitted(start, true);
        assert!(!pacer.transmit_due(start + STALL - MICRO, true));
        assert!(pacer.transmit_due(start + STALL, true));
        assert!(!pacer.transmit_due(start + STALL, false));
    }

    #[test]
    fn interrupts_need_a_call_only_when_the_driver_asks() {
        let mut pacer = Pacer::new(false);
        let start = Instant::now();
        assert!(!pacer.receive_due(start, true, false));
        assert!(pacer.receive_due(start, false, true));
        pacer.received(start);
        assert!(!pacer.receive_due(start + MICRO, true, true));
        assert!(pacer.receive_due(start + POLL_INTERVAL, true, true));
        assert!(!pacer.receive_due(start + STALL * 2, true, false));
    }

    #[test]
    fn busy_polling_is_bounded_both_ways() {
        let mut pacer = Pacer::new(true);
        let start = Instant::now();
        assert!(pacer.receive_due(start, true, false));
        pacer.received(start);
        assert!(!pacer.receive_due(start + POLL_INTERVAL - MICRO, true, false));
        assert!(pacer.receive_due(start + POLL_INTERVAL, true, false));
        // With packets left to read there is no hurry, up to a point.
        assert!(!pacer.receive_due(start + STALL - MICRO, false, false));
        assert!(pacer.receive_due(start + STALL, false, false));
        // A call for sending polls the receive side too.
        pacer.transmitted(start + STALL, true);
        assert!(!pacer.receive_due(start + STALL + MICRO, true, false));
    }
}
