//! The result of a run: its figures, as a table for people and as JSON for programs, and its exit code.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The run went as asked.
pub const EXIT_OK: u8 = 0;
/// Too many connections failed, the server died, or verification failed.
pub const EXIT_FAILED: u8 = 1;
/// Wrong usage.
pub const EXIT_USAGE: u8 = 2;
/// Nobody connected.
pub const EXIT_UNREACHABLE: u8 = 3;

/// All figures of a run. The field names are the JSON's.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// `--id`.
    pub id: String,
    /// `--target`.
    pub target: String,
    /// Connections that were to be made.
    pub clients: u64,
    /// Clients of these that mirrored the canvas.
    pub watchers: u64,
    /// Connections that came up, WELCOME included.
    pub connections: u64,
    /// Most connections that were up at a time.
    pub connections_peak: u64,
    /// Connections that did not come up, or were lost before the end.
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
    /// Pixels that the server applied during the run, by its own count, from whomever; null if it could not
    /// be asked.
    pub pixels_applied: Option<u64>,
    /// DIFF datagrams that watchers received.
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
    /// Times that a UDP socket was replaced by one of another source port, as asked with `--rebind`.
    pub rebinds: u64,
    /// From when a watcher's paint was due to the diff that brought it back.
    pub latency_ms: Percentiles,
    /// From the first packet to the end of the QUIC handshake.
    pub handshake_ms: Percentiles,
    /// From PING to PONG, on watchers.
    pub ping_ms: Percentiles,
    /// From the first client's start until all had connected or failed.
    pub ramp_s: f64,
    /// From then until painting stopped.
    pub duration_s: f64,
    /// Pixels painted a second during `duration_s`.
    pub pixels_per_s: f64,
    /// What `--verify` found; null if not asked for.
    pub verified: Option<bool>,
    /// Pixels whose final colour was proven: acknowledged, painted over by nobody, found in the snapshot.
    /// Null if not verified, or if others painted too.
    pub pixels_proven: Option<u64>,
    /// Why `verified` is false.
    pub verify_error: Option<String>,
    /// Why the run failed, verification apart.
    pub error: Option<String>,
    /// Whether `error` is that nobody could connect.
    pub unreachable: bool,
}

/// A distribution of times in milliseconds; null where there were none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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

impl From<&Histogram<u64>> for Percentiles {
    /// From microseconds.
    fn from(us: &Histogram<u64>) -> Self {
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
        match (self.unreachable, self.ok()) {
            (true, _) => EXIT_UNREACHABLE,
            (false, true) => EXIT_OK,
            (false, false) => EXIT_FAILED,
        }
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a struct of numbers and strings is always JSON")
    }

    /// A table for people, several lines.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut row = |name: &str, text: String| {
            writeln!(out, "{name:<16} {text}").expect("writing to a String cannot fail");
        };
        row("run", format!("{} -> {}", self.id, self.target));
        row("time", format!("{:.1} s to connect, {:.1} s of load", self.ramp_s, self.duration_s));
        row(
            "connections",
            format!(
                "{} of {} came up, {} at a time, {} failed; {} watched",
                self.connections, self.clients, self.connections_peak, self.failed, self.watchers
            ),
        );
        for (cause, count) in &self.failures_by_cause {
            row("", format!("{count} x {cause}"));
        }
        row(
            "pixels sent",
            format!(
                "{} ({} in datagrams, {} in frames, {} due but unsent), {:.0}/s",
                self.pixels_sent,
                self.pixels_sent_datagram,
                self.pixels_sent_frame,
                self.pixels_unsent,
                self.pixels_per_s
            ),
        );
        row(
            "pixels applied",
            match self.pixels_applied {
                Some(n) => format!("{n} by the server's count"),
                None => "unknown: the server did not say".to_owned(),
            },
        );
        row("frames' pixels", format!("{} applied, {} rejected", self.pixels_acked, self.pixels_rejected));
        row(
            "watchers got",
            format!(
                "{} diffs, {} records applied, {} gaps, {} repairs asked",
                self.diff_datagrams, self.records_applied, self.gaps, self.repairs
            ),
        );
        row("paint to diff", format!("{}, {} unconfirmed", self.latency_ms.text(), self.unconfirmed));
        row("handshake", self.handshake_ms.text());
        row("ping", self.ping_ms.text());
        row(
            "verified",
            match (self.verified, &self.verify_error, self.pixels_proven) {
                (None, ..) => "not asked for".to_owned(),
                (Some(true), _, Some(n)) => {
                    format!("yes: all watchers equal the snapshot, {n} pixels proven")
                }
                (Some(true), ..) => "yes: all watchers equal the snapshot; others painted too".to_owned(),
                (Some(false), error, _) => format!("NO: {}", error.as_deref().unwrap_or("no reason known")),
            },
        );
        if let Some(error) = &self.error {
            row("failed", error.clone());
        }
        out
    }
}

impl Percentiles {
    fn text(&self) -> String {
        let Self {
            p50: Some(p50),
            p90: Some(p90),
            p99: Some(p99),
            p999: Some(p999),
            max: Some(max),
            count,
            ..
        } = self
        else {
            return "none measured".to_owned();
        };
        format!("p50 {p50:.1} ms, p90 {p90:.1}, p99 {p99:.1}, p99.9 {p999:.1}, max {max:.1} (of {count})")
    }
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
        ] {
            assert!(json.get(field).is_some(), "{field} is missing");
        }
        assert_eq!(json["clients"], 7);
        assert_eq!(json["verified"], true);
        assert_eq!(json["verify_error"], Value::Null);
        assert_eq!(json["latency_ms"]["p50"], 25.5);
        assert_eq!(json["latency_ms"]["max"], Value::Null);
        assert!(!report.json().contains('\n'));
    }

    #[test]
    fn exit_codes() {
        let code = |unreachable, error: Option<&str>, verified| {
            Report { unreachable, error: error.map(str::to_owned), verified, ..Report::default() }.exit_code()
        };
        assert_eq!(code(false, None, None), EXIT_OK);
        assert_eq!(code(false, None, Some(true)), EXIT_OK);
        assert_eq!(code(false, None, Some(false)), EXIT_FAILED);
        assert_eq!(code(false, Some("lost"), Some(true)), EXIT_FAILED);
        assert_eq!(code(true, Some("nobody there"), None), EXIT_UNREACHABLE);
    }

    #[test]
    fn percentiles_are_milliseconds() {
        let mut us = Histogram::<u64>::new(3).unwrap();
        assert_eq!(Percentiles::from(&us), Percentiles::default());
        (1..=1000).for_each(|ms| us.record(ms * 1000).unwrap());
        let p = Percentiles::from(&us);
        let near = |value: Option<f64>, expected: f64| (value.unwrap() - expected).abs() <= expected / 500.0;
        assert!(
            near(p.p50, 500.0) && near(p.p90, 900.0) && near(p.p999, 999.0) && near(p.max, 1000.0),
            "{p:?}"
        );
        assert_eq!(p.count, 1000);
    }
}
