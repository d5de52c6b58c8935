//! What is said once, at the end: the totals.

use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::drops::Drops;
use super::format::{grouped, rfc3339};
use super::live::Snapshot;
use super::start::Common;
use crate::stats::WorkerStats;

/// The totals since start.
pub(super) struct Summary<'a> {
    pub(super) common: &'a Common,
    pub(super) counters: &'a Snapshot,
    /// Time since start.
    pub(super) elapsed: Duration,
}

impl Summary<'_> {
    fn drops(&self) -> Drops {
        Drops::between(&WorkerStats::default(), &self.counters.total())
    }

    /// The text for humans, all lines ended.
    pub(super) fn text(&self) -> String {
        let total = self.counters.total();
        let drops = self.drops();
        let causes: Vec<String> =
            drops.labelled().map(|(label, count)| format!("{label} {}", grouped(count))).collect();
        let causes = if causes.is_empty() { String::new() } else { format!(" ({})", causes.join(", ")) };
        let advice = match total.sq_full {
            0 => String::new(),
            times => format!(
                "io_uring's submission queue was full {} times: a larger --io-uring-sq-depth saves system \
                 calls\n",
                grouped(times)
            ),
        };
        format!(
            "served {:.1} s: {} connections, {} messages, {} pixels applied, {} diffs sent\n\
             packets: {} in, {} out; drops: {}{causes}\n{advice}",
            self.elapsed.as_secs_f64(),
            grouped(total.handshakes_completed),
            grouped(total.messages),
            grouped(self.counters.master.pixels_applied),
            grouped(total.diffs_sent),
            grouped(total.rx_packets),
            grouped(total.tx_packets),
            grouped(drops.sum()),
        )
    }

    /// The same for programs.
    pub(super) fn json(&self, at: OffsetDateTime) -> Value {
        let total = self.counters.total();
        let workers = &self.counters.workers;
        // What the worker's own queue brought: not what came to it through the ordinary socket beside AF_XDP.
        let from_queue = |worker: &WorkerStats| worker.rx_packets.saturating_sub(worker.rx_kernel_packets);
        json!({
            "event": "summary",
            "time": rfc3339(at),
            "seconds": self.elapsed.as_secs_f64(),
            "backend": self.common.backend,
            "xdp_mode": self.common.mode,
            "queues": workers.len(),
            "connections": total.handshakes_completed,
            "messages": total.messages,
            "pixels_received": total.pixels_received,
            "pixels_applied": self.counters.master.pixels_applied,
            "diff_datagrams": total.diffs_sent,
            "rx_packets": total.rx_packets,
            "tx_packets": total.tx_packets,
            "rx_packets_per_queue": workers.iter().map(from_queue).collect::<Vec<_>>(),
            "drops": self.drops(),
            "master": self.counters.master,
            "workers": workers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::MasterStats;

    fn counters() -> Snapshot {
        let worker = |rx_packets, drop_quic| WorkerStats {
            rx_packets,
            rx_kernel_packets: 2,
            tx_packets: 2000,
            handshakes_completed: 500,
            messages: 700,
            diffs_sent: 1234,
            drop_quic,
            ..Default::default()
        };
        let master = MasterStats { pixels_applied: 1399, ..Default::default() };
        Snapshot { workers: vec![worker(1002, 0), worker(502, 3)], master }
    }

    #[test]
    fn totals_are_the_sums_over_workers() {
        let common = Common { backend: Some("xdp"), mode: Some("copy") };
        let mut counters = counters();
        let elapsed = Duration::from_millis(10_240);
        let summary = Summary { common: &common, counters: &counters, elapsed };
        assert_eq!(
            summary.text(),
            "served 10.2 s: 1,000 connections, 1,400 messages, 1,399 pixels applied, 2,468 diffs sent\n\
             packets: 1,504 in, 4,000 out; drops: 3 (quic 3)\n"
        );
        let json = summary.json(OffsetDateTime::UNIX_EPOCH);
        assert_eq!(json["event"], "summary");
        assert_eq!(json["rx_packets_per_queue"], serde_json::json!([1000, 500]));
        assert_eq!((&json["pixels_applied"], &json["diff_datagrams"]), (&1399.into(), &2468.into()));
        assert_eq!(
            (&json["backend"], &json["xdp_mode"], &json["queues"]),
            (&"xdp".into(), &"copy".into(), &2.into())
        );
        assert_eq!((&json["connections"], &json["drops"]["drop_quic"]), (&1000.into(), &3.into()));
        assert_eq!(json["workers"][1]["drop_quic"], 3);

        counters.workers[1].drop_quic = 0;
        counters.workers[0].sq_full = 1200;
        let text = Summary { common: &common, counters: &counters, elapsed }.text();
        assert!(text.ends_with(
            "io_uring's submission queue was full 1,200 times: a larger --io-uring-sq-depth saves system \
             calls\n"
        ));
        counters.workers[0].sq_full = 0;
        assert!(Summary { common: &common, counters: &counters, elapsed }.text().ends_with("drops: 0\n"));
    }
}
