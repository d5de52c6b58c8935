//! How long to look for work before sleeping.

use std::time::Duration;

/// The longest that a worker on a shared core looks for work before it sleeps. A wake-up costs the kernel about
/// this much, so spinning for as long at most doubles the cost of being idle, and catches what comes in a burst.
const LONGEST: Duration = Duration::from_micros(50);

/// The shortest that is worth it: some fifty looks.
const SHORTEST: Duration = Duration::from_micros(10);

/// The time to spin, which follows what spinning has brought: where work comes in longer intervals than
/// [`LONGEST`], all of it would be for nothing. The rule is that of KVM's halt polling.
#[derive(Clone, Copy, Debug)]
pub struct Spin(Duration);

impl Default for Spin {
    fn default() -> Self {
        Self(LONGEST)
    }
}

impl Spin {
    /// True if a worker that found nothing for `idle` may sleep.
    pub fn is_over(&self, idle: Duration) -> bool {
        idle >= self.0
    }

    /// Notes that there was work after `idle` time.
    pub fn found(&mut self, idle: Duration) {
        if idle > LONGEST {
            self.0 = if self.0 > SHORTEST { self.0 / 2 } else { Duration::ZERO };
        } else if idle > self.0 {
            self.0 = (self.0 * 2).clamp(SHORTEST, LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_spin_follows_what_it_brings() {
        let (burst, seldom) = (Duration::from_micros(20), Duration::from_millis(1));
        let mut spin = Spin::default();
        spin.found(burst);
        assert!(!spin.is_over(LONGEST - burst), "as long as it brings something");
        for _ in 0..4 {
            assert!(!spin.is_over(Duration::ZERO));
            spin.found(seldom);
        }
        assert!(spin.is_over(Duration::ZERO), "it brought nothing four times");
        spin.found(burst);
        assert!(!spin.is_over(Duration::ZERO), "it would have");
        for _ in 0..3 {
            spin.found(LONGEST);
        }
        assert!(!spin.is_over(LONGEST - burst) && spin.is_over(LONGEST));
    }
}
