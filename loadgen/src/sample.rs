//! One second of a run: what progress shows, a timeline file keeps, and a process tells its parent.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::report::Percentiles;
use crate::stats::{Distribution, Stats};

/// A stage of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Clients come up.
    #[default]
    Ramp,
    /// All is as it will be, but nothing counts yet.
    Warmup,
    /// What is due now counts.
    Window,
    /// Painting has stopped; answers still come.
    Drain,
}

impl Stage {
    /// Its name, as in the files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ramp => "ramp",
            Self::Warmup => "warmup",
            Self::Window => "window",
            Self::Drain => "drain",
        }
    }
}

/// The figures of a moment; counters since the start of the run, times since the last sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Stage of the run.
    pub stage: Stage,
    /// Connections that are up.
    pub connections: u64,
    /// Connections that failed.
    pub failed: u64,
    /// Pixels painted.
    pub pixels_sent: u64,
    /// Pixels due but not sent.
    pub pixels_unsent: u64,
    /// Watchers' paints that came back.
    pub confirmed: u64,
    /// DIFF datagrams received.
    pub diff_datagrams: u64,
    /// Newcomers' handshakes.
    pub handshakes: u64,
    /// From paint to diff.
    pub latency_us: Distribution,
    /// CPU time since the last sample, in CPUs.
    pub cpus_busy: f64,
    /// CPUs that it may use.
    pub cpus: u64,
    /// Resident memory, in bytes.
    pub rss: u64,
}

impl Sample {
    /// What `stats` say now, without the figures of the process.
    pub fn of(stats: &Stats, stage: Stage) -> Self {
        let totals = stats.totals();
        let (_, connections, _) = stats.connections();
        Self {
            stage,
            connections,
            failed: stats.failures().values().sum(),
            pixels_sent: totals.pixels_sent_datagram + totals.pixels_sent_frame,
            pixels_unsent: totals.pixels_unsent,
            confirmed: totals.confirmed,
            diff_datagrams: totals.diff_datagrams,
            handshakes: totals.handshakes,
            latency_us: stats.recent_latency(),
            ..Self::default()
        }
    }

    /// The line of a timeline file for this sample, `t_s` seconds after the run's start.
    pub fn timeline_line(&self, t_s: f64) -> String {
        let line = Line {
            t_s,
            phase: self.stage,
            connections: self.connections,
            failed: self.failed,
            pixels_sent: self.pixels_sent,
            pixels_unsent: self.pixels_unsent,
            confirmed: self.confirmed,
            diff_datagrams: self.diff_datagrams,
            handshakes: self.handshakes,
            latency_ms: Percentiles::from(&self.latency_us),
            cpu_share: self.cpus_busy / self.cpus.max(1) as f64,
            rss_mb: self.rss as f64 / 1e6,
        };
        serde_json::to_string(&line).expect("a struct of numbers is always JSON")
    }
}

impl AddAssign<&Sample> for Sample {
    /// What two processes did together. The run is in the stage of the one that is behind.
    fn add_assign(&mut self, other: &Self) {
        self.stage = self.stage.min(other.stage);
        self.connections += other.connections;
        self.failed += other.failed;
        self.pixels_sent += other.pixels_sent;
        self.pixels_unsent += other.pixels_unsent;
        self.confirmed += other.confirmed;
        self.diff_datagrams += other.diff_datagrams;
        self.handshakes += other.handshakes;
        self.latency_us.add(&other.latency_us);
        self.cpus_busy += other.cpus_busy;
        self.cpus += other.cpus;
        self.rss += other.rss;
    }
}

/// A line of `timeline-<id>.jsonl`.
#[derive(Serialize)]
struct Line {
    t_s: f64,
    phase: Stage,
    connections: u64,
    failed: u64,
    pixels_sent: u64,
    pixels_unsent: u64,
    confirmed: u64,
    diff_datagrams: u64,
    handshakes: u64,
    latency_ms: Percentiles,
    cpu_share: f64,
    rss_mb: f64,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_line_has_the_promised_fields_and_two_samples_add_up() {
        let mut sample = Sample { stage: Stage::Window, pixels_sent: 7, cpus: 2, ..Sample::default() };
        (sample.cpus_busy, sample.rss) = (1.0, 3_000_000);
        sample.latency_us.record(Duration::from_millis(20));
        let mut sum = sample.clone();
        sum += &Sample { stage: Stage::Warmup, ..sample.clone() };
        let line: Value = serde_json::from_str(&sum.timeline_line(1.5)).unwrap();
        assert_eq!((&line["t_s"], &line["phase"]), (&json!(1.5), &json!("warmup")));
        assert_eq!((&line["pixels_sent"], &line["latency_ms"]["count"]), (&json!(14), &json!(2)));
        assert_eq!((&line["cpu_share"], &line["rss_mb"]), (&json!(0.5), &json!(6.0)));
        for field in ["connections", "failed", "pixels_unsent", "confirmed", "diff_datagrams"] {
            assert_eq!(line[field], 0, "{field}");
        }
        // As it comes from a process.
        let text = serde_json::to_string(&sum).unwrap();
        assert_eq!(serde_json::from_str::<Sample>(&text).unwrap(), sum);
    }
}
