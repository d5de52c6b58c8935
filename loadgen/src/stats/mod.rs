//! What is counted and timed while a run goes on.
//!
//! Each thread has counters and histograms of its own, which only its clients write; the coordinator reads
//! them about once a second and at the end, and sums. So counting costs a client no shared cache line:
//! counters are relaxed atomics that no other thread writes, and the histograms' locks are free but for
//! that one reader. What is rare (a connection that comes, goes or fails) is counted in one place for all.
//!
//! Everything is counted twice: over the whole run, which is what progress shows and verification relies
//! on, and for the measured [`Window`], which is what the report is about.

mod times;
mod window;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use times::{Distribution, Times};
pub use window::{Due, Window};

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
    /// Handshakes of newcomers that ended with a WELCOME.
    handshakes,
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

/// All that one thread records.
#[derive(Debug)]
pub struct ThreadStats {
    /// Its counters, over the whole run.
    pub count: Counters,
    /// Those of its counters that [`ThreadStats::add`] adds to, for the measured window.
    measured: Counters,
    window: Arc<Window>,
    /// From when a connection was due to the end of its QUIC handshake.
    pub handshake: Times,
    /// From when a watcher's paint was due to the diff that brought it back.
    pub latency: Times,
    /// The same of the whole run, emptied by each [`Stats::recent_latency`].
    recent: Times,
    /// From PING to PONG.
    pub ping: Times,
    /// From when an action was due to when this program got round to it.
    pub late: Times,
}

impl ThreadStats {
    fn new(window: Arc<Window>) -> Self {
        Self {
            count: Counters::default(),
            measured: Counters::default(),
            window,
            handshake: Times::default(),
            latency: Times::default(),
            recent: Times::default(),
            ping: Times::default(),
            late: Times::default(),
        }
    }

    /// An action that was due at `at`. To be asked once, when it is begun; see [`Window`].
    pub fn due(&self, at: Instant) -> Due {
        self.window.due(at)
    }

    /// Adds `n` to one of the counters, on account of something that was due then.
    pub fn add(&self, due: Due, which: impl Fn(&Counters) -> &Counter, n: u64) {
        which(&self.count).add(n);
        if due.counts {
            which(&self.measured).add(n);
        }
    }

    /// A paint that was due then came back in a diff, so long after that.
    pub fn paint_confirmed(&self, due: Due, time: Duration) {
        self.add(due, |count| &count.confirmed, 1);
        self.time(due, &self.latency, time);
        self.recent.record(time);
    }

    /// A PING sent at `sent` was answered, so long after that.
    pub fn ponged(&self, sent: Instant, time: Duration) {
        self.time(self.due(sent), &self.ping, time);
    }

    /// A newcomer's handshake that was due at `due` ended, so long after that.
    pub fn greeted(&self, due: Instant, time: Duration) {
        let due = self.due(due);
        self.add(due, |count| &count.handshakes, 1);
        self.time(due, &self.handshake, time);
    }

    /// This program got round to something that was due at `due` so long after that.
    pub fn was_late(&self, due: Instant, time: Duration) {
        self.time(self.due(due), &self.late, time);
    }

    fn time(&self, due: Due, times: &Times, time: Duration) {
        if due.counts {
            times.record(time);
        }
    }
}

/// All that a run records.
#[derive(Debug)]
pub struct Stats {
    /// One for each thread.
    pub threads: Vec<ThreadStats>,
    /// What is measured.
    pub window: Arc<Window>,
    established: AtomicU64,
    live: AtomicU64,
    peak: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
}

impl Stats {
    /// Nothing recorded yet, for this many threads.
    pub fn new(threads: usize) -> Self {
        let window = Arc::new(Window::default());
        Self {
            threads: std::iter::repeat_with(|| ThreadStats::new(window.clone())).take(threads).collect(),
            window,
            established: AtomicU64::new(0),
            live: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            failures: Mutex::default(),
        }
    }

    /// A connection came up: its WELCOME arrived.
    pub fn connected(&self) {
        self.established.fetch_add(1, Relaxed);
        self.recovered();
    }

    /// A connection that had come up, and was lost, is there again: one of a client that comes and goes.
    pub fn recovered(&self) {
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

    /// The sum of the threads' counters over the whole run. Not a snapshot of one instant: counters go on
    /// while they are read.
    pub fn totals(&self) -> Totals {
        self.sum(|thread| &thread.count)
    }

    /// The same for the measured window; what [`ThreadStats::add`] does not count is 0.
    pub fn measured(&self) -> Totals {
        self.sum(|thread| &thread.measured)
    }

    fn sum(&self, which: impl Fn(&ThreadStats) -> &Counters) -> Totals {
        let mut totals = Totals::default();
        self.threads.iter().for_each(|thread| which(thread).add_to(&mut totals));
        totals
    }

    /// The sum of one of the threads' distributions.
    pub fn times(&self, which: impl Fn(&ThreadStats) -> &Times) -> Distribution {
        let mut sum = Distribution::default();
        self.threads.iter().for_each(|thread| which(thread).add_to(&mut sum));
        sum
    }

    /// Times from paint to diff since the last call.
    pub fn recent_latency(&self) -> Distribution {
        let mut sum = Distribution::default();
        self.threads.iter().for_each(|thread| thread.recent.drain_to(&mut sum));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_sum_up_and_only_the_window_is_measured() {
        let (stats, now) = (Stats::new(3), Instant::now());
        let ms = Duration::from_millis;
        let early = stats.threads[0].due(now + ms(1));
        stats.threads[0].add(early, |count| &count.pixels_sent_frame, 1);
        stats.window.open(now + ms(1));
        // Due in the window, but done before that was known: nor does its answer count.
        stats.threads[0].paint_confirmed(early, ms(10));
        for (thread, n) in stats.threads[1..].iter().zip([2, 3]) {
            let due = thread.due(now + ms(1));
            thread.add(due, |count| &count.pixels_sent_frame, n);
            thread.paint_confirmed(due, ms(10 * n));
        }
        assert_eq!(stats.totals(), Totals { pixels_sent_frame: 6, confirmed: 3, ..Totals::default() });
        assert_eq!(stats.measured(), Totals { pixels_sent_frame: 5, confirmed: 2, ..Totals::default() });
        let latency = stats.times(|thread| &thread.latency);
        let us = latency.microseconds();
        assert_eq!((us.len(), us.value_at_quantile(0.5)), (2, us.highest_equivalent(20_000)));
        assert_eq!(stats.recent_latency().microseconds().len(), 3);
        assert_eq!(stats.recent_latency().microseconds().len(), 0);
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
}
