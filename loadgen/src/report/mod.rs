//! The result of a run: its figures, as a table for people and as JSON for programs, and its exit code.
//!
//! The JSON is also the result file, `loadgen-<id>.json`. It carries the distributions themselves beside
//! their percentiles, so that results of several processes or machines can be merged exactly
//! ([`Report::merge`]), which percentiles cannot.

mod client;
mod merge;
mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use client::ClientLoad;
pub use merge::{MergeError, Origin};

use crate::rss::QueueShare;
use crate::sample::Stage;
use crate::scenario::Scenario;
use crate::stats::Distribution;

/// The run went as asked.
pub const EXIT_OK: u8 = 0;
/// Too many connections failed, verification failed, or this host lacks something.
pub const EXIT_FAILED: u8 = 1;
/// Wrong usage.
pub const EXIT_USAGE: u8 = 2;
/// Nobody connected.
pub const EXIT_UNREACHABLE: u8 = 3;
/// All connections were lost in the middle of the run.
pub const EXIT_SERVER_DIED: u8 = 4;
/// The server refused the token, or wants one.
pub const EXIT_TOKEN_REFUSED: u8 = 5;
/// The results could not be written.
pub const EXIT_UNWRITTEN: u8 = 6;
/// After a second Ctrl-C: 128 + SIGINT, as shells have it.
pub const EXIT_INTERRUPTED: u8 = 130;

/// What kind of failure a run's `error` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// See [`EXIT_TOKEN_REFUSED`].
    TokenRefused,
    /// See [`EXIT_UNREACHABLE`].
    Unreachable,
    /// See [`EXIT_SERVER_DIED`].
    ServerDied,
    /// See [`EXIT_UNWRITTEN`].
    Unwritten,
    /// See [`EXIT_FAILED`].
    Other,
}

/// How clients decide when to act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loop {
    /// At times set in advance; a time counts from when its action was due.
    #[default]
    Open,
    /// Some time after the last action was answered; a time counts from when its action was begun. A server
    /// that stalls is asked less, so its stall hardly shows.
    Closed,
}

/// A stage of the run, in seconds since `started_unix_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseTimes {
    /// Which.
    pub name: Stage,
    /// Its start.
    pub start_s: f64,
    /// Its end.
    pub end_s: f64,
}

/// The distributions behind the percentiles, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distributions {
    /// Of `latency_ms`.
    pub latency_us: Distribution,
    /// Of `handshake_ms`.
    pub handshake_us: Distribution,
    /// Of `ping_ms`.
    pub ping_us: Distribution,
    /// Of the client's `late_ms`.
    pub late_us: Distribution,
}

/// All figures of a run. The field names are the JSON's. What is counted and timed is what was due in the
/// measured window, unless said otherwise.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// `--id`.
    pub id: String,
    /// `--target`.
    pub target: String,
    /// What kind of load it was.
    pub scenario: Scenario,
    /// Whether clients waited for answers.
    #[serde(rename = "loop")]
    pub load_loop: Loop,
    /// Processes that were merged into this report.
    pub processes: u64,
    /// Start of the run, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// When each stage was.
    pub phases: Vec<PhaseTimes>,
    /// Whether the window ended before its time, for whatever reason.
    pub partial: bool,
    /// Whether it was ended by Ctrl-C or SIGTERM.
    pub interrupted: bool,
    /// Connections that were to be made.
    pub clients: u64,
    /// Clients of these that mirrored the canvas.
    pub watchers: u64,
    /// Clients that came up, WELCOME included, at any time of the run.
    pub connections: u64,
    /// Most connections that were up at a time, over the whole run.
    pub connections_peak: u64,
    /// Connections that did not come up, or were lost before the end, over the whole run.
    pub failed: u64,
    /// `failed`, by cause. Close codes of the protocol go by their names (SERVER_FULL, DRAINING, ...).
    pub failures_by_cause: BTreeMap<String, u64>,
    /// Pixels painted, both ways.
    pub pixels_sent: u64,
    /// Pixels painted with datagrams, which QUIC does not send again if they are lost.
    pub pixels_sent_datagram: u64,
    /// Pixels painted with PAINT frames.
    pub pixels_sent_frame: u64,
    /// Pixels that were due but not sent, since the connection's send buffer was full.
    pub pixels_unsent: u64,
    /// Pixels of PAINT frames that the server acknowledged as applied.
    pub pixels_acked: u64,
    /// Pixels of PAINT frames that the server acknowledged as rejected.
    pub pixels_rejected: u64,
    /// Pixels painted over the whole run, to compare with `pixels_applied`.
    pub pixels_sent_run: u64,
    /// Pixels that the server applied over the whole run, by its own count, from whomever; null if it could
    /// not be asked.
    pub pixels_applied: Option<u64>,
    /// DIFF datagrams that watchers and viewers received.
    pub diff_datagrams: u64,
    /// Records of these that changed a watcher's mirror.
    pub records_applied: u64,
    /// Times that a watcher found that it had missed a record.
    pub gaps: u64,
    /// Tiles that watchers asked to have repaired.
    pub repairs: u64,
    /// Watchers' paints that no diff brought back within 10 s: lost on the way, rejected, or painted over
    /// within a tick.
    pub unconfirmed: u64,
    /// Handshakes of newcomers that ended with a WELCOME.
    pub handshakes: u64,
    /// Times that a UDP socket was replaced by one of another source port, as asked with `--rebind`, over
    /// the whole run.
    pub rebinds: u64,
    /// From when a watcher's paint was due to the diff that brought it back.
    pub latency_ms: Percentiles,
    /// From when a connection was due to the end of its QUIC handshake: newcomers' in the window, or, where
    /// there are none, everybody's in the ramp.
    pub handshake_ms: Percentiles,
    /// From PING to PONG, on watchers.
    pub ping_ms: Percentiles,
    /// From the first client's start until all had connected or failed.
    pub ramp_s: f64,
    /// Length of the window.
    pub duration_s: f64,
    /// Pixels painted a second.
    pub pixels_per_s: f64,
    /// Newcomers' handshakes a second.
    pub handshakes_per_s: f64,
    /// The distributions.
    pub histograms: Distributions,
    /// What it cost this program and its machine.
    pub client: ClientLoad,
    /// If this program, and not the server, may have been the limit: why.
    pub limited_by_client: Option<String>,
    /// What each queue of the server was to get, with `--align-queues`; null without.
    pub queues: Option<Vec<QueueShare>>,
    /// What `--verify` found; null if not asked for.
    pub verified: Option<bool>,
    /// Pixels whose final colour was proven: acknowledged, painted over by nobody, found in the snapshot.
    /// Null if not verified, or if others painted too.
    pub pixels_proven: Option<u64>,
    /// Why `verified` is false.
    pub verify_error: Option<String>,
    /// Why the run failed, verification apart.
    pub error: Option<String>,
    /// What kind of failure `error` is.
    pub failure: Option<Failure>,
}

/// A distribution of times in milliseconds; null where there were none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: Option<f64>,
    /// 90 % are at most this.
    pub p90: Option<f64>,
    /// 99 % are at most this.
    pub p99: Option<f64>,
    /// 99.9 % are at most this.
    pub p999: Option<f64>,
    /// 99.99 % are at most this.
    pub p9999: Option<f64>,
    /// The longest.
    pub max: Option<f64>,
    /// How many.
    pub count: u64,
}

impl From<&Distribution> for Percentiles {
    fn from(times: &Distribution) -> Self {
        let us = times.microseconds();
        let at = |q| (!us.is_empty()).then(|| us.value_at_quantile(q) as f64 / 1000.0);
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: at(1.0),
            count: us.len(),
        }
    }
}

impl Report {
    /// Whether all went as asked.
    pub fn ok(&self) -> bool {
        self.error.is_none() && self.verified != Some(false)
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self.failure {
            Some(Failure::TokenRefused) => EXIT_TOKEN_REFUSED,
            Some(Failure::Unreachable) => EXIT_UNREACHABLE,
            Some(Failure::ServerDied) => EXIT_SERVER_DIED,
            Some(Failure::Unwritten) => EXIT_UNWRITTEN,
            _ if self.ok() => EXIT_OK,
            _ => EXIT_FAILED,
        }
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a struct of numbers and strings is always JSON")
    }

    /// Notes why the run failed; of several failures the first counts.
    pub fn fail(&mut self, failure: Failure, error: String) {
        if self.error.is_none() {
            (self.failure, self.error) = (Some(failure), Some(error));
        }
    }

    /// Whether few enough connections failed: no larger share than `max_failed`.
    ///
    /// # Errors
    /// How many did, and why.
    pub fn tolerates(&self, max_failed: f64) -> Result<(), String> {
        // Newcomers try again and again.
        let attempts = self.clients + self.handshakes;
        if self.failed as f64 <= max_failed * attempts as f64 {
            return Ok(());
        }
        Err(format!(
            "{} of {attempts} connections failed, --max-failed tolerates {} %: {}",
            self.failed,
            max_failed * 100.0,
            causes(&self.failures_by_cause)
        ))
    }

    /// Sets the distributions, and the percentiles by them.
    pub fn set_times(&mut self, times: Distributions) {
        self.latency_ms = Percentiles::from(&times.latency_us);
        self.handshake_ms = Percentiles::from(&times.handshake_us);
        self.ping_ms = Percentiles::from(&times.ping_us);
        self.client.late_ms = Percentiles::from(&times.late_us);
        self.histograms = times;
    }
}

/// Why connections failed, in a line.
pub fn causes(failures: &BTreeMap<String, u64>) -> String {
    failures.iter().map(|(cause, count)| format!("{count} x {cause}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_json_has_every_promised_field() {
        let report = Report {
            clients: 7,
            verified: Some(true),
            latency_ms: Percentiles { p50: Some(25.5), count: 3, ..Percentiles::default() },
            ..Report::default()
        };
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        for field in [
            "id",
            "target",
            "clients",
            "connections",
            "connections_peak",
            "failed",
            "failures_by_cause",
            "pixels_sent",
            "pixels_sent_datagram",
            "pixels_sent_frame",
            "pixels_acked",
            "pixels_rejected",
            "pixels_applied",
            "diff_datagrams",
            "records_applied",
            "gaps",
            "repairs",
            "unconfirmed",
            "rebinds",
            "latency_ms",
            "handshake_ms",
            "ping_ms",
            "duration_s",
            "verified",
            "verify_error",
            "started_unix_ms",
            "scenario",
            "loop",
            "partial",
            "interrupted",
            "phases",
            "limited_by_client",
            "queues",
            "processes",
        ] {
            assert!(json.get(field).is_some(), "{field} is missing");
        }
        assert_eq!(json["clients"], 7);
        assert_eq!(json["verified"], true);
        assert_eq!(json["verify_error"], Value::Null);
        assert_eq!(json["latency_ms"]["p50"], 25.5);
        assert_eq!(json["latency_ms"]["max"], Value::Null);
        assert_eq!((&json["scenario"], &json["loop"]), (&Value::from("paint"), &Value::from("open")));
        for field in ["latency_us", "handshake_us", "ping_us"] {
            assert!(json["histograms"][field].is_string(), "{field}");
        }
        for field in [
            "cpu_share",
            "max_thread_cpu_share",
            "rss_mb",
            "kb_per_client",
            "late_ms",
            "unsent",
            "udp_rcvbuf_errors",
            "udp_sndbuf_errors",
            "ports_exhausted",
        ] {
            assert!(json["client"].get(field).is_some(), "{field} is missing");
        }
        assert!(!report.json().contains('\n'));
        let again: Report = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(again.json(), report.json());
    }

    #[test]
    fn exit_codes() {
        let code = |failure, verified| {
            let mut report = Report { verified, ..Report::default() };
            if let Some(failure) = failure {
                report.fail(failure, "a reason".to_owned());
                report.fail(Failure::Other, "a later one".to_owned());
            }
            report.exit_code()
        };
        assert_eq!(code(None, None), EXIT_OK);
        assert_eq!(code(None, Some(true)), EXIT_OK);
        assert_eq!(code(None, Some(false)), EXIT_FAILED);
        assert_eq!(code(Some(Failure::Other), Some(true)), EXIT_FAILED);
        assert_eq!(code(Some(Failure::Unreachable), Some(false)), EXIT_UNREACHABLE);
        assert_eq!(code(Some(Failure::ServerDied), Some(false)), EXIT_SERVER_DIED);
        assert_eq!(code(Some(Failure::TokenRefused), None), EXIT_TOKEN_REFUSED);
        assert_eq!(code(Some(Failure::Unwritten), None), EXIT_UNWRITTEN);
    }

    #[test]
    fn percentiles_are_milliseconds() {
        let mut times = Distribution::default();
        assert_eq!(Percentiles::from(&times), Percentiles::default());
        (1..=1000).for_each(|ms| times.record(std::time::Duration::from_millis(ms)));
        let p = Percentiles::from(&times);
        let near = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() <= expected / 500.0;
        assert!(
            near(p.p50, 500.0) && near(p.p90, 900.0) && near(p.p999, 999.0) && near(p.max, 1000.0),
            "{p:?}"
        );
        assert_eq!(p.count, 1000);
    }
}
