//! Where a worker's time goes, by regime: a polling core always looks 100% busy from outside.
//!
//! Each stage of a turn that found work charges the time since the last charge to its regime; stages that
//! found none charge nothing, and what they took falls to the next that did. So an idle turn reads the clock
//! once, at its start, and a turn that receives 64 packets and sends adds two or three readings (about 25 ns
//! each) to some 50 us of work. Regimes add up to the time since start, to the nanosecond.

use crate::stats::WorkerStats;
use std::time::Instant;

/// What a worker does with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regime {
    /// Nothing to do: polling, or asleep where the core is shared.
    Waiting,
    /// Packets of established connections, from the ring to the paint queue.
    Receiving,
    /// Packets of handshakes, TLS included.
    Handshaking,
    /// Handing a tick to subscribers.
    FanningOut,
    /// Sealing packets and passing them to the kernel.
    Sending,
    /// Something to send, and no transmit buffer for it.
    Blocked,
    /// Timers, acknowledged PAINT frames, housekeeping; the master, where it shares the thread.
    Other,
}

/// Charges time to regimes. See the [module](self).
pub struct Meter {
    /// Everything before this is charged.
    mark: Instant,
    /// Nanoseconds since `mark` that are charged already.
    apart: u64,
}

impl Meter {
    /// Time counts from `now`.
    pub fn new(now: Instant) -> Self {
        Self { mark: now, apart: 0 }
    }

    /// Charges what is not charged yet to `regime`.
    pub fn charge(&mut self, regime: Regime, now: Instant, stats: &mut WorkerStats) {
        let elapsed = now.saturating_duration_since(self.mark).as_nanos() as u64;
        *counter(regime, stats) += elapsed.saturating_sub(self.apart);
        (self.mark, self.apart) = (now, 0);
    }

    /// Charges to `regime` what was done since `began`, within a stage that will be charged to another one.
    pub fn charge_apart(&mut self, regime: Regime, began: Instant, now: Instant, stats: &mut WorkerStats) {
        let elapsed = now.saturating_duration_since(began).as_nanos() as u64;
        *counter(regime, stats) += elapsed;
        self.apart += elapsed;
    }
}

fn counter(regime: Regime, stats: &mut WorkerStats) -> &mut u64 {
    match regime {
        Regime::Waiting => &mut stats.waiting_ns,
        Regime::Receiving => &mut stats.receiving_ns,
        Regime::Handshaking => &mut stats.handshaking_ns,
        Regime::FanningOut => &mut stats.fanning_out_ns,
        Regime::Sending => &mut stats.sending_ns,
        Regime::Blocked => &mut stats.blocked_ns,
        Regime::Other => &mut stats.other_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn regimes_add_up_to_the_time() {
        let start = Instant::now();
        let at = |us| start + Duration::from_micros(us);
        let (mut meter, mut stats) = (Meter::new(start), WorkerStats::default());
        meter.charge(Regime::Waiting, at(5), &mut stats);
        meter.charge_apart(Regime::Handshaking, at(6), at(206), &mut stats);
        meter.charge_apart(Regime::Handshaking, at(210), at(310), &mut stats);
        meter.charge(Regime::Receiving, at(320), &mut stats);
        meter.charge(Regime::Sending, at(330), &mut stats);
        meter.charge(Regime::Waiting, at(330), &mut stats);
        assert_eq!((stats.waiting_ns, stats.handshaking_ns), (5_000, 300_000));
        assert_eq!((stats.receiving_ns, stats.sending_ns), (15_000, 10_000));
        assert_eq!(stats.waiting_ns + stats.working_ns(), 330_000);
    }

    #[test]
    fn a_clock_that_steps_back_charges_nothing() {
        let start = Instant::now();
        let (mut meter, mut stats) = (Meter::new(start + Duration::from_secs(1)), WorkerStats::default());
        meter.charge_apart(Regime::Handshaking, start + Duration::from_secs(1), start, &mut stats);
        meter.charge(Regime::Receiving, start, &mut stats);
        assert_eq!(stats, WorkerStats::default());
    }
}
