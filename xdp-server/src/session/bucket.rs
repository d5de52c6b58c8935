//! Token bucket: so many units a second on average, so many at once.

use std::time::{Duration, Instant};

/// A bucket of tokens that refills with time. Units are the owner's: bytes, pixels.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Tokens a second; 0: no limit.
    rate: u64,
    /// Most tokens that it holds.
    burst: i64,
    level: i64,
    refilled: Instant,
}

impl Bucket {
    /// A full bucket of `rate` tokens a second that holds `burst`. A rate of 0 means no limit.
    pub fn new(rate: u64, burst: u64, now: Instant) -> Self {
        let burst = i64::try_from(burst).unwrap_or(i64::MAX);
        Self { rate, burst, level: burst, refilled: now }
    }

    /// Changes rate and burst. What was spent stays spent: asking again does not fill the bucket.
    pub fn change(&mut self, rate: u64, burst: u64, now: Instant) {
        let fresh = Self::new(rate, burst, now);
        let level = if self.rate == 0 { fresh.level } else { self.level(now).min(fresh.level) };
        *self = Self { level, ..fresh };
    }

    /// True if there is no limit.
    pub fn is_unlimited(&self) -> bool {
        self.rate == 0
    }

    /// Tokens there are now. Negative: overdrawn by [`spend`](Self::spend).
    pub fn level(&mut self, now: Instant) -> i64 {
        if self.rate == 0 {
            return i64::MAX;
        }
        let elapsed = now.saturating_duration_since(self.refilled);
        let earned = elapsed.as_nanos().saturating_mul(u128::from(self.rate)) / 1_000_000_000;
        // Keep the time of a fraction of a token: frequent looks must not round the rate down.
        if earned > 0 {
            self.refilled = now;
            self.level = self.level.saturating_add(i64::try_from(earned).unwrap_or(i64::MAX)).min(self.burst);
        }
        self.level
    }

    /// Takes `amount` if the bucket is not empty; it may be overdrawn by that, so that a unit larger than the
    /// bucket still passes now and then. `false`: nothing was taken.
    pub fn spend(&mut self, amount: u64, now: Instant) -> bool {
        if self.rate == 0 {
            return true;
        }
        let allowed = self.level(now) > 0;
        if allowed {
            self.level = self.level.saturating_sub(i64::try_from(amount).unwrap_or(i64::MAX));
        }
        allowed
    }

    /// How long until the bucket is no longer empty; zero if it is not.
    pub fn wait(&mut self, now: Instant) -> Duration {
        let missing = 1 - self.level(now).min(1);
        Duration::from_nanos(
            (missing as u64).saturating_mul(1_000_000_000).checked_div(self.rate).unwrap_or(0),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_its_rate_over_any_pattern_of_looks() {
        for step_us in [7, 1_000, 333_333] {
            let start = Instant::now();
            let mut bucket = Bucket::new(1000, 100, start);
            let mut spent = 0;
            for step in 0..3_000_000 / step_us {
                let now = start + Duration::from_micros(step * step_us);
                while bucket.spend(1, now) {
                    spent += 1;
                }
            }
            // Three seconds at 1000 a second and the burst; fewer if looked at too rarely to use the burst
            // up.
            let most = if step_us > 100_000 { 100 * (3_000_000 / step_us + 1) } else { 3_100 };
            assert!(
                (most - 110..=most + 1).contains(&spent),
                "{spent} of {most} with looks each {step_us} us"
            );
        }
    }

    #[test]
    fn a_large_unit_passes_and_is_paid_off() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, 100, start);
        assert!(bucket.spend(1100, start));
        assert!(!bucket.spend(1, start + Duration::from_millis(999)));
        assert_eq!(bucket.wait(start + Duration::from_millis(999)), Duration::from_millis(2));
        assert!(bucket.spend(1, start + Duration::from_millis(1002)));
    }

    #[test]
    fn a_change_does_not_refill() {
        let now = Instant::now();
        let mut bucket = Bucket::new(1000, 100, now);
        assert!(bucket.spend(150, now));
        bucket.change(2000, 200, now);
        assert_eq!(bucket.level(now), -50);
        bucket.change(0, 0, now);
        assert!(bucket.is_unlimited());
        bucket.change(1000, 100, now);
        assert_eq!(bucket.level(now), 100, "nothing was counted meanwhile");
    }

    #[test]
    fn no_rate_no_limit() {
        let now = Instant::now();
        let mut bucket = Bucket::new(0, 0, now);
        assert!(bucket.is_unlimited() && bucket.spend(u64::MAX, now) && bucket.spend(1, now));
        assert_eq!(bucket.wait(now), Duration::ZERO);
    }
}
