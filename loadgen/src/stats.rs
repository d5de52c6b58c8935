//! What is counted and timed while a run goes on.
//!
//! Each thread has counters and histograms of its own, which only its clients write; the coordinator reads
//! them about once a second and at the end, and sums. So counting costs a client no shared cache line:
//! counters are relaxed atomics that no other thread writes, and the histograms' locks are free but for
//! that one reader. What is rare (a connection that comes, goes or fails) is counted in one place for all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest time that a histogram tells apart from longer ones. Paints expire after 10 s and connecting
/// after the connect timeout, so nearly nothing is near it; larger costs memory by its logarithm only.
const LONGEST: Duration = Duration::from_secs(3600);
/// Significant digits of a histogram's values. A fourth would cost ten times the memory (some 200 KiB at
/// three).
const DIGITS: u8 = 3;

/// Causes of failure that are told apart. There are about twenty by name; a server that breaks the protocol
/// in ever new ways must not fill the memory, or the report.
const MAX_CAUSES: usize = 64;
/// What the rest is counted under.
const OTHER_CAUSES: &str = "other causes";

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One thread's counters; all only grow.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: Counter,)* }

        /// The sum of all threads' counters.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Totals { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            fn add_to(&self, totals: &mut Totals) { $(totals.$name += self.$name.0.load(Relaxed);)* }
        }
    };
}

counters! {
    /// Pixels handed to QUIC in PAINT datagrams.
    pixels_sent_datagram,
    /// Pixels handed to QUIC in PAINT frames.
    pixels_sent_frame,
    /// Pixels that were due but found their connection's send buffer full: the path is slower than the load.
    pixels_unsent,
    /// PAINT frames sent.
    frames_sent,
    /// PAINT frames acknowledged, or whose connection was lost first.
    frames_settled,
    /// Pixels that a PAINT_ACK counted as applied.
    pixels_acked,
    /// Pixels that a PAINT_ACK counted as rejected.
    pixels_rejected,
    /// DIFF datagrams that watchers received.
    diff_datagrams,
    /// Records of them that changed a mirror.
    records_applied,
    /// Tile images that changed a mirror.
    images_applied,
    /// Times that a watcher's record was newer than the next, or a VERSIONS entry newer than its tile.
    gaps,
    /// Tiles that watchers asked for with REPAIR.
    repairs,
    /// Watchers' paints whose diff is waited for.
    timed,
    /// Those of them that a diff brought back.
    confirmed,
    /// Those of them that no diff brought back in time: lost, rejected, or painted over within a tick.
    unconfirmed,
    /// Times that a socket was replaced by one of another source port.
    rebinds,
    /// Watchers that came up.
    watchers,
    /// Watchers whose stream of control frames is known to be drained since painting stopped.
    watchers_settled,
}

/// One counter, written by one thread.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
}

/// Times, in microseconds.
#[derive(Debug)]
pub struct Times(Mutex<Histogram<u64>>);

impl Default for Times {
    fn default() -> Self {
        Self(Mutex::new(new_histogram()))
    }
}

impl Times {
    /// Adds one time; anything past an hour counts as an hour.
    pub fn record(&self, time: Duration) {
        self.lock().saturating_record(time.as_micros().min(LONGEST.as_micros()) as u64);
    }

    fn lock(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST.as_micros() as u64, DIGITS)
        .expect("1 us to 1 h at 3 digits is a valid range")
}

/// All that one thread records.
#[derive(Debug, Default)]
pub struct ThreadStats {
    /// Its counters.
    pub count: Counters,
    /// From connecting to the end of the QUIC handshake.
    pub handshake: Times,
    /// From when a watcher's paint was due to the diff that brought it back.
    pub latency: Times,
    /// The same again, emptied by each [`Stats::recent_latency`].
    recent: Times,
    /// From PING to PONG.
    pub ping: Times,
}

impl ThreadStats {
    /// Adds one time from paint to diff.
    pub fn paint_confirmed(&self, time: Duration) {
        self.count.confirmed.add(1);
        self.latency.record(time);
        self.recent.record(time);
    }
}

/// All that a run records.
#[derive(Debug)]
pub struct Stats {
    /// One for each thread.
    pub threads: Vec<ThreadStats>,
    established: AtomicU64,
    live: AtomicU64,
    peak: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Stats {
    /// Nothing recorded yet, for this many threads.
    pub fn new(threads: usize) -> Self {
        Self {
            threads: std::iter::repeat_with(ThreadStats::default).take(threads).collect(),
            established: AtomicU64::new(0),
            live: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            failures: Mutex::default(),
        }
    }

    /// A connection came up: its WELCOME arrived.
    pub fn connected(&self) {
        self.established.fetch_add(1, Relaxed);
        self.peak.fetch_max(self.live.fetch_add(1, Relaxed) + 1, Relaxed);
    }

    /// A connection that had come up is gone, for whatever reason.
    pub fn disconnected(&self) {
        self.live.fetch_sub(1, Relaxed);
    }

    /// A connection did not come up, or was lost before its time.
    pub fn failed(&self, cause: &str) {
        let mut failures = self.failures();
        let known = failures.len() < MAX_CAUSES || failures.contains_key(cause);
        *failures.entry(if known { cause } else { OTHER_CAUSES }.to_owned()).or_default() += 1;
    }

    /// Connections that came up, those up now, and the most at a time.
    pub fn connections(&self) -> (u64, u64, u64) {
        (self.established.load(Relaxed), self.live.load(Relaxed), self.peak.load(Relaxed))
    }

    /// Connections that failed, by cause.
    pub fn failures(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sum of the threads' counters. Not a snapshot of one instant: counters go on while they are read.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.threads.iter().for_each(|thread| thread.count.add_to(&mut totals));
        totals
    }

    /// The sum of one of the threads' histograms.
    pub fn times(&self, which: impl Fn(&ThreadStats) -> &Times) -> Histogram<u64> {
        let mut sum = new_histogram();
        for thread in &self.threads {
            sum.add(&*which(thread).lock()).expect("all histograms have the same range");
        }
        sum
    }

    /// Times from paint to diff since the last call.
    pub fn recent_latency(&self) -> Histogram<u64> {
        let mut sum = new_histogram();
        for thread in &self.threads {
            let mut recent = thread.recent.lock();
            sum.add(&*recent).expect("all histograms have the same range");
            recent.reset();
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_sum_up() {
        let stats = Stats::new(3);
        for (i, thread) in stats.threads.iter().enumerate() {
            thread.count.pixels_sent_frame.add(i as u64 + 1);
            thread.paint_confirmed(Duration::from_millis(10 * (i as u64 + 1)));
        }
        assert_eq!(stats.totals(), Totals { pixels_sent_frame: 6, confirmed: 3, ..Totals::default() });
        let latency = stats.times(|t| &t.latency);
        assert_eq!((latency.len(), latency.value_at_quantile(0.5)), (3, latency.highest_equivalent(20_000)));
        assert_eq!(stats.recent_latency().len(), 3);
        assert_eq!(stats.recent_latency().len(), 0);
        assert_eq!(stats.times(|t| &t.latency).len(), 3);
    }

    #[test]
    fn connections_have_a_peak_and_failures_a_cause() {
        let stats = Stats::new(1);
        stats.connected();
        stats.connected();
        stats.disconnected();
        stats.connected();
        stats.failed("reset");
        stats.failed("reset");
        assert_eq!(stats.connections(), (3, 2, 2));
        assert_eq!(
            stats.failures().iter().map(|(k, &v)| (k.as_str(), v)).collect::<Vec<_>>(),
            [("reset", 2)]
        );
    }

    #[test]
    fn causes_are_bounded() {
        let stats = Stats::new(1);
        (0..1000).for_each(|i| stats.failed(&format!("cause {i}")));
        stats.failed("cause 3");
        let failures = stats.failures();
        assert_eq!((failures.len(), failures["cause 3"]), (MAX_CAUSES + 1, 2));
        assert_eq!(failures.values().sum::<u64>(), 1001);
    }

    #[test]
    fn absurd_times_count_as_the_longest() {
        let times = Times::default();
        times.record(Duration::from_secs(1 << 40));
        assert!(times.lock().max() >= LONGEST.as_micros() as u64);
    }
}
