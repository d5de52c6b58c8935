//! What a run cost the load generator and its machine, and whether that was the limit.
//!
//! A load generator that ran out of something measures itself. So before any figure is blamed on the
//! server, this module asks whether the clients could have been the cause; if so, the report says it first.

use serde::{Deserialize, Serialize};

use super::Percentiles;

/// Share of a CPU past which a thread counts as the limit. At 90 % a queue is ten times as long as the work
/// is; a lower bound accuses runs that were fine, a higher one misses those that were not.
const BUSY: f64 = 0.9;
/// Lateness at the 99th percentile, in milliseconds, past which the generator did not keep its own schedule.
/// Timers are exact to 1 ms, and a tick of the server is 50 ms: with less than 10 ms of our own no latency
/// is far off. Larger hides a generator that adds to what it measures, smaller accuses every scheduler.
const LATE_MS: f64 = 10.0;
/// Share of due actions that may be left out without a word.
const UNSENT: f64 = 0.001;

/// What the run took of its machine, in the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientLoad {
    /// CPUs that it might use.
    pub cpus: u64,
    /// Share of these that it used.
    pub cpu_share: f64,
    /// Share of the time that its busiest thread was on a CPU.
    pub max_thread_cpu_share: f64,
    /// Resident memory at the end of the window, in megabytes.
    pub rss_mb: f64,
    /// Resident memory that it grew by since it had no client, in kilobytes for each connection that was up.
    /// Of a few clients it says little: histograms and socket buffers are most of it then.
    pub kb_per_client: f64,
    /// How late it began what was due, by its own doing.
    pub late_ms: Percentiles,
    /// Actions that were due but left out, since the connection's send buffer was full.
    pub unsent: u64,
    /// Datagrams that were dropped since a socket's receive buffer was full.
    pub udp_rcvbuf_errors: u64,
    /// Datagrams that found no send buffer, of everybody in this network namespace.
    pub udp_sndbuf_errors: u64,
    /// Sockets that could not be opened for want of a free port.
    pub ports_exhausted: u64,
}

impl ClientLoad {
    /// If the load generator was a limit of this run, in which `actions` were due: why, in a sentence.
    pub fn limit(&self, actions: u64) -> Option<String> {
        let percent = |share: f64| (share * 100.0).round();
        if self.max_thread_cpu_share > BUSY {
            return Some(format!(
                "a thread of the load generator was busy {} % of the window; use more threads, processes or \
                 machines",
                percent(self.max_thread_cpu_share)
            ));
        }
        if let Some(late) = self.late_ms.p99.filter(|late| *late > LATE_MS) {
            return Some(format!(
                "the load generator began what was due up to {late:.0} ms late (p99), since it got no CPU in \
                 time; give it CPUs of its own, or fewer clients"
            ));
        }
        if self.ports_exhausted > 0 {
            return Some(format!(
                "{} sockets found no free port on this machine; widen net.ipv4.ip_local_port_range, or lower \
                 --num-endpoints",
                self.ports_exhausted
            ));
        }
        if self.udp_rcvbuf_errors > 0 {
            return Some(format!(
                "{} datagrams were dropped at the load generator's own sockets; raise net.core.rmem_max, or \
                 --num-endpoints",
                self.udp_rcvbuf_errors
            ));
        }
        // Full send buffers mean that QUIC was not allowed to send: the path or the server, not this
        // program. Only what the kernel refused is this machine's doing.
        if self.udp_sndbuf_errors as f64 > UNSENT * actions as f64 {
            return Some(format!(
                "{} datagrams found no send buffer on this machine; raise net.core.wmem_max",
                self.udp_sndbuf_errors
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_out_is_named_and_a_fine_run_is_not_accused() {
        let late = |p99| Percentiles { p99: Some(p99), ..Percentiles::default() };
        let fine = ClientLoad {
            max_thread_cpu_share: 0.8,
            late_ms: late(3.0),
            udp_sndbuf_errors: 1,
            unsent: 1000,
            ..ClientLoad::default()
        };
        assert_eq!(fine.limit(10_000), None);
        for (load, words) in [
            (ClientLoad { max_thread_cpu_share: 0.97, ..fine.clone() }, "busy 97 %"),
            (ClientLoad { late_ms: late(40.4), ..fine.clone() }, "up to 40 ms late"),
            (ClientLoad { ports_exhausted: 3, ..fine.clone() }, "3 sockets found no free port"),
            (ClientLoad { udp_rcvbuf_errors: 5, ..fine.clone() }, "5 datagrams were dropped"),
            (ClientLoad { udp_sndbuf_errors: 11, ..fine.clone() }, "11 datagrams found no send buffer"),
        ] {
            let limit = load.limit(10_000).expect(words);
            assert!(limit.contains(words), "{limit}");
        }
    }
}
