//! The end of a run: all connections close, and the report is filled in.

use std::time::Duration;

use canvas::codec::control::ServerStats;
use tokio::time::{Instant, sleep, timeout};

use super::POLL;
use super::stages::Run;
use crate::host::{self, Usage};
use crate::report::{ClientLoad, Distributions, Report};
use crate::sample::Stage;
use crate::shared::Phase;
use crate::threads::CLOSE_TIMEOUT;

impl Run {
    /// What the load cost this machine in the window, which has just ended.
    pub fn cost(&self, used: &Usage, ports_exhausted: u64) -> ClientLoad {
        // Without a window nothing was measured.
        let before = self.used_before.as_ref().unwrap_or(used);
        let share = used.since(before);
        let (rss, cpus) = (host::resident_bytes(), host::allowed_cpus().len() as u64);
        let (_, live, _) = self.shared.stats.connections();
        ClientLoad {
            cpus,
            cpu_share: share.cpus_busy / cpus.max(1) as f64,
            max_thread_cpu_share: share.busiest_thread,
            rss_mb: rss as f64 / 1e6,
            kb_per_client: rss.saturating_sub(self.rss_before) as f64 / 1e3 / live.max(1) as f64,
            udp_rcvbuf_errors: used.receive_drops.saturating_sub(before.receive_drops),
            udp_sndbuf_errors: used.send_drops.saturating_sub(before.send_drops),
            ports_exhausted,
            ..ClientLoad::default()
        }
    }

    /// Closes all connections and fills in the report.
    pub async fn finish(&mut self, report: &mut Report, before: &ServerStats, after: Option<&ServerStats>) {
        let _ = self.signals.phase.send(Phase::Close);
        // The threads bound their own wait; the second more is for what they do besides.
        let deadline = Instant::now() + CLOSE_TIMEOUT + Duration::from_secs(1);
        let _ = timeout(CLOSE_TIMEOUT, self.probe.finish()).await;
        while !self.threads.all_ended() && Instant::now() < deadline {
            sleep(POLL).await;
        }
        let stats = &self.shared.stats;
        let (run, measured) = (stats.totals(), stats.measured());
        report.phases = self.table.all(Instant::now());
        report.ramp_s = self.table.length(Stage::Ramp);
        report.duration_s = self.table.length(Stage::Window);
        (report.connections, _, report.connections_peak) = stats.connections();
        report.failures_by_cause = stats.failures().clone();
        report.failed = report.failures_by_cause.values().sum();
        report.pixels_sent = measured.pixels_sent_datagram + measured.pixels_sent_frame;
        report.pixels_sent_datagram = measured.pixels_sent_datagram;
        report.pixels_sent_frame = measured.pixels_sent_frame;
        report.pixels_unsent = measured.pixels_unsent;
        report.pixels_acked = measured.pixels_acked;
        report.pixels_rejected = measured.pixels_rejected;
        report.pixels_sent_run = run.pixels_sent_datagram + run.pixels_sent_frame;
        // Less than before: it is another server than the one asked first.
        report.pixels_applied = after.and_then(|after| after.applied.checked_sub(before.applied));
        report.diff_datagrams = measured.diff_datagrams;
        report.records_applied = measured.records_applied;
        report.gaps = measured.gaps;
        report.repairs = measured.repairs;
        report.unconfirmed = measured.unconfirmed;
        report.handshakes = measured.handshakes;
        report.rebinds = run.rebinds;
        let per_second = |n: u64| n as f64 / report.duration_s.max(f64::MIN_POSITIVE);
        report.pixels_per_s = per_second(report.pixels_sent);
        report.handshakes_per_s = per_second(report.handshakes);
        report.set_times(Distributions {
            latency_us: stats.times(|thread| &thread.latency),
            handshake_us: stats.times(|thread| &thread.handshake),
            ping_us: stats.times(|thread| &thread.ping),
            late_us: stats.times(|thread| &thread.late),
        });
        report.client.unsent = measured.pixels_unsent;
        report.limited_by_client = report.client.limit(report.pixels_sent + report.pixels_unsent);
    }
}
