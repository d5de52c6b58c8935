//! Distributions of times: HDR histograms of microseconds, how clients fill them, and how they travel.
//!
//! All histograms have the same range and precision, so that adding two is adding their buckets: the sum of
//! several threads', processes' or machines' histograms is exactly the histogram of all their samples
//! together. In files and between processes they are HDR's own V2 serialization in base64, which other
//! tools of that format read too.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use serde::{Deserialize, Serialize};

/// Longest time that a histogram tells apart from longer ones. Paints expire after 10 s and connecting
/// after the connect timeout, so nearly nothing is near it; larger costs memory by its logarithm only.
const LONGEST: Duration = Duration::from_secs(3600);
/// Significant digits of a histogram's values. A fourth would cost ten times the memory (some 200 KiB at
/// three).
const DIGITS: u8 = 3;

/// How often each time occurred, in microseconds. As text it is the base64 of HDR's V2 serialization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Distribution(Histogram<u64>);

impl Default for Distribution {
    fn default() -> Self {
        let range = LONGEST.as_micros() as u64;
        Self(Histogram::new_with_max(range, DIGITS).expect("1 us to 1 h at 3 digits is a valid range"))
    }
}

impl Distribution {
    /// Adds one time; anything past an hour counts as an hour.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(time.as_micros().min(LONGEST.as_micros()) as u64);
    }

    /// Adds all of another's times.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all distributions have the same range");
    }

    /// The histogram itself, of microseconds.
    pub fn microseconds(&self) -> &Histogram<u64> {
        &self.0
    }
}

impl From<Distribution> for String {
    fn from(times: Distribution) -> Self {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&times.0, &mut bytes).expect("writing to a Vec cannot fail");
        BASE64.encode(bytes)
    }
}

impl TryFrom<String> for Distribution {
    type Error = String;

    /// Values beyond the range of ours, as other tools may have recorded them, count as the longest.
    fn try_from(text: String) -> Result<Self, String> {
        let bytes = BASE64.decode(&text).map_err(|error| format!("a histogram is not base64: {error}"))?;
        let read: Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| format!("a histogram is not in HDR's V2 format: {error}"))?;
        let mut times = Self::default();
        for bucket in read.iter_recorded() {
            times.0.saturating_record_n(bucket.value_iterated_to(), bucket.count_at_value());
        }
        Ok(times)
    }
}

/// A distribution that one thread's clients fill while the coordinator reads it now and then.
#[derive(Debug, Default)]
pub struct Times(Mutex<Distribution>);

impl Times {
    /// Adds one time.
    pub fn record(&self, time: Duration) {
        self.lock().record(time);
    }

    /// Adds what was recorded to `sum`.
    pub fn add_to(&self, sum: &mut Distribution) {
        sum.add(&self.lock());
    }

    /// Adds what was recorded to `sum`, and forgets it.
    pub fn drain_to(&self, sum: &mut Distribution) {
        // Made before and added after the lock is held: a client that records meanwhile must not wait.
        let empty = Distribution::default();
        let recorded = std::mem::replace(&mut *self.lock(), empty);
        sum.add(&recorded);
    }

    fn lock(&self) -> MutexGuard<'_, Distribution> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(samples: &[u64]) -> Distribution {
        let mut times = Distribution::default();
        samples.iter().for_each(|&us| times.record(Duration::from_micros(us)));
        times
    }

    fn travelled(times: &Distribution) -> Distribution {
        let text = serde_json::to_string(times).expect("a string");
        serde_json::from_str(&text).expect("what was written can be read")
    }

    proptest! {
        /// Two processes' samples, each through a file, merged: as if one process had recorded all.
        #[test]
        fn the_sum_of_distributions_is_that_of_all_samples(
            one in prop::collection::vec(0u64..=4_000_000_000, 0..400),
            other in prop::collection::vec(0u64..=100_000, 0..400),
        ) {
            let mut merged = travelled(&of(&one));
            merged.add(&travelled(&of(&other)));
            let together = of(&[one, other].concat());
            prop_assert_eq!(&merged, &together);
            let counts = |times: &Distribution| {
                let buckets = times.microseconds().iter_recorded();
                buckets.map(|b| (b.value_iterated_to(), b.count_at_value())).collect::<Vec<_>>()
            };
            prop_assert_eq!(counts(&merged), counts(&together));
            for q in [0.5, 0.9, 0.99, 0.999, 0.9999, 1.0] {
                let at = |times: &Distribution| times.microseconds().value_at_quantile(q);
                prop_assert_eq!(at(&merged), at(&together));
            }
        }

        /// Files come from anywhere.
        #[test]
        fn no_text_panics(text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Distribution::try_from(text);
            let _ = Distribution::try_from(BASE64.encode(bytes));
        }
    }

    #[test]
    fn absurd_times_count_as_the_longest() {
        let mut times = Distribution::default();
        times.record(Duration::from_secs(1 << 40));
        assert!(times.microseconds().max() >= LONGEST.as_micros() as u64);
        assert_eq!(travelled(&times), times);
    }

    #[test]
    fn what_is_drained_is_gone() {
        let (times, mut sum) = (Times::default(), Distribution::default());
        times.record(Duration::from_millis(3));
        times.add_to(&mut sum);
        times.drain_to(&mut sum);
        times.drain_to(&mut sum);
        assert_eq!(sum.microseconds().len(), 2);
    }
}
