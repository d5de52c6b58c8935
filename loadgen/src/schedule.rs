//! When a client acts: an open loop of due times.
//!
//! The next due time is the last *due* time plus a random interval, never the time of sending plus an
//! interval. So a stalled server, or a busy load generator, does not thin the load out: what fell behind is
//! sent at once when it can be, and its latency counts from when it was due. (A closed loop would hide
//! exactly the stalls that are looked for, and can be had for comparison: [`Schedule::restart`].)

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

/// Due times of one client.
#[derive(Clone, Debug)]
pub struct Schedule {
    due: Instant,
    min: Duration,
    max: Duration,
}

impl Schedule {
    /// Starts at `now`; the first action is due after a first random interval, so that clients that connected
    /// together do not act together. `min` must not exceed `max`.
    pub fn start(now: Instant, min: Duration, max: Duration, rng: &mut impl Rng) -> Self {
        let mut schedule = Self { due: now, min, max };
        schedule.advance(rng);
        schedule
    }

    /// When the next action is due; in the past if the client has fallen behind.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The closed loop: the next action is due an interval from `now`, whatever was due before.
    pub fn restart(&mut self, now: Instant, rng: &mut impl Rng) {
        self.due = now;
        self.advance(rng);
    }

    /// Moves on to the next action.
    pub fn advance(&mut self, rng: &mut impl Rng) {
        self.due += rng.random_range(self.min..=self.max);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn intervals_stay_within_their_bounds_and_average_in_the_middle() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (min, max) = (Duration::from_millis(20), Duration::from_millis(50));
        let start = Instant::now();
        let mut schedule = Schedule::start(start, min, max, &mut rng);
        let mut last = start;
        for _ in 0..10_000 {
            let step = schedule.due() - last;
            assert!((min..=max).contains(&step), "{step:?}");
            last = schedule.due();
            schedule.advance(&mut rng);
        }
        let mean = (last - start).as_secs_f64() / 10_000.0;
        assert!((0.0345..0.0355).contains(&mean), "{mean}");
    }

    #[test]
    fn a_stall_does_not_thin_out_the_load() {
        let mut rng = SmallRng::seed_from_u64(2);
        let step = Duration::from_millis(10);
        let start = Instant::now();
        let mut schedule = Schedule::start(start, step, step, &mut rng);
        // The client wakes only once, a second late: everything of that second is due.
        let mut sent = 0;
        while schedule.due() <= start + Duration::from_secs(1) {
            schedule.advance(&mut rng);
            sent += 1;
        }
        assert_eq!(sent, 100);
    }
}
