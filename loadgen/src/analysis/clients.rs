//! The load generators' files, merged: several processes or machines that loaded one server are one run.
//!
//! Counts add up, histograms are added before percentiles are taken of them, and the measured window is the
//! time that all processes were in theirs.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::folder::Files;
use crate::report::Percentiles;

/// Points of a curve for each halving of the distance to 100 %: steps too small to see at 4, whatever the
/// number of samples.
const POINTS_PER_HALVING: u32 = 4;

/// The whole load, of all processes.
#[derive(Debug, Default, Serialize)]
pub struct Clients {
    /// Unix milliseconds at which the first process started; `None` where no file says.
    pub started_unix_ms: Option<u64>,
    /// Names of the processes.
    pub ids: Vec<String>,
    /// Where the load went.
    pub target: String,
    /// The scenario, where the files name one.
    pub scenario: Option<String>,
    /// Whether any process ran a closed loop, whose latencies leave out what a stall held back.
    pub closed_loop: bool,
    /// Processes.
    pub processes: u64,
    /// Ramp, warm-up, window and drain.
    pub phases: Vec<Phase>,
    /// Connections that were to be made.
    pub clients: u64,
    /// Connections that came up.
    pub connections: u64,
    /// Connections that did not, or were lost.
    pub failed: u64,
    /// `failed`, by cause.
    pub failures_by_cause: BTreeMap<String, u64>,
    /// Pixels sent.
    pub pixels_sent: u64,
    /// Pixels that were due, but not sent.
    pub pixels_unsent: u64,
    /// Pixels sent a second.
    pub pixels_per_s: f64,
    /// From paint to diff.
    pub latency_ms: Percentiles,
    /// Of the QUIC handshake.
    pub handshake_ms: Percentiles,
    /// From PING to PONG.
    pub ping_ms: Percentiles,
    /// The same three as curves, where the files have histograms.
    pub curves: Vec<Curve>,
    /// What the clients' own machines did; `None` where no file says.
    pub client: Option<ClientSide>,
    /// Why the client was the limit, by process.
    pub limited_by_client: Vec<String>,
    /// Connections that alignment aimed for, by queue; empty without.
    pub queues: Vec<AimedQueue>,
    /// Why a run failed, by process; and that it ended early.
    pub errors: Vec<String>,
    /// One entry a second.
    pub timeline: Vec<Second>,
}

/// A part of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phase {
    /// `ramp`, `warmup`, `window` or `drain`.
    pub name: String,
    /// Seconds since the run began.
    pub start_s: f64,
    /// The same, of its end.
    pub end_s: f64,
}

/// A distribution, as a curve towards 100 %.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Curve {
    /// What was timed.
    pub name: String,
    /// `[1 / (1 - p), milliseconds]`: 10 is 90 %, 100 is 99 %; the last is the longest.
    pub points: Vec<(f64, f64)>,
}

/// What the load generators' machines ran out of, or nearly did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientSide {
    /// Busy share of the CPUs that the process may use.
    pub cpu_share: f64,
    /// The same of the busiest thread.
    pub max_thread_cpu_share: f64,
    /// Resident memory.
    pub rss_mb: f64,
    /// Memory for each connection.
    pub kb_per_client: f64,
    /// How late the generator itself sent what was due.
    pub late_ms: Percentiles,
    /// Actions that were due but not done.
    pub unsent: u64,
    /// Packets that the clients' sockets had no room for.
    pub udp_rcvbuf_errors: u64,
    /// Packets that the clients' sockets could not send.
    pub udp_sndbuf_errors: u64,
    /// Times that no source port was free.
    pub ports_exhausted: u64,
}

/// What alignment aimed for on one queue of the server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AimedQueue {
    /// Its number.
    pub queue: usize,
    /// Connections of it.
    pub connections: u64,
    /// Source ports of it.
    pub ports: u64,
}

/// What all clients did in one second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Second {
    /// The end of this second.
    pub t_s: f64,
    /// Connections up.
    pub connections: f64,
    /// Connections failed until now.
    pub failed: f64,
    /// Pixels sent.
    pub pixels_per_s: f64,
    /// Pixels due but not sent.
    pub unsent_per_s: f64,
    /// From paint to diff, of this second. Of several processes that of the worst: theirs cannot be merged.
    pub latency_ms: Percentiles,
    /// Busy share of the busiest process's CPUs.
    pub cpu_share: f64,
}

/// One process's report.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    id: String,
    target: String,
    scenario: Option<String>,
    #[serde(rename = "loop")]
    kind: Option<String>,
    started_unix_ms: Option<u64>,
    phases: Vec<Phase>,
    clients: u64,
    connections: u64,
    failed: u64,
    failures_by_cause: BTreeMap<String, u64>,
    pixels_sent: u64,
    pixels_unsent: u64,
    pixels_per_s: f64,
    latency_ms: Percentiles,
    handshake_ms: Percentiles,
    ping_ms: Percentiles,
    histograms: BTreeMap<String, String>,
    client: Option<ClientSide>,
    limited_by_client: Option<String>,
    queues: Option<Vec<AimedQueue>>,
    error: Option<String>,
    verify_error: Option<String>,
    partial: bool,
    interrupted: bool,
    processes: Option<u64>,
}

/// One line of a process's timeline.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    t_s: f64,
    connections: f64,
    failed: f64,
    pixels_sent: f64,
    pixels_unsent: f64,
    latency_ms: Percentiles,
    cpu_share: f64,
}

impl Clients {
    /// Reads and merges what is among `names`; `None` when there is nothing of a load generator's.
    pub(super) fn read(files: &mut Files<'_>, names: &[String]) -> Option<Clients> {
        let ids = |prefix, suffix| {
            names.iter().filter_map(move |name| name.strip_prefix(prefix)?.strip_suffix(suffix))
        };
        let mut reports = Vec::new();
        let mut timelines = Vec::new();
        for id in ids("loadgen-", ".json") {
            if let Some(report) = files.json::<Report>(&format!("loadgen-{id}.json")) {
                reports.push(report);
                timelines.push(timeline(files, id));
            }
        }
        if reports.is_empty() {
            // What a process that was killed left behind: its timeline, from when nobody knows.
            for id in ids("timeline-", ".jsonl") {
                files.notes.push(format!("loadgen-{id}.json is missing: the process did not end by itself"));
                reports.push(Report { id: id.to_owned(), partial: true, ..Report::default() });
                timelines.push(timeline(files, id));
            }
        }
        (!reports.is_empty()).then(|| merge(&reports, &timelines, &mut files.notes))
    }

    /// The measured window; `None` where no process got that far.
    pub fn window(&self) -> Option<(f64, f64)> {
        let window = self.phases.iter().find(|phase| phase.name == WINDOW)?;
        (window.end_s > window.start_s).then_some((window.start_s, window.end_s))
    }
}

/// The phase that counts.
const WINDOW: &str = "window";
/// What comes after it.
const DRAIN: &str = "drain";

fn timeline(files: &mut Files<'_>, id: &str) -> Vec<Line> {
    let lines = files.json_lines(&format!("timeline-{id}.jsonl")).unwrap_or_default();
    let mut lines: Vec<Line> =
        lines.into_iter().filter_map(|line: Value| serde_json::from_value(line).ok()).collect();
    lines.retain(|line| line.t_s.is_finite());
    lines.sort_by(|a, b| a.t_s.total_cmp(&b.t_s));
    lines
}

fn merge(reports: &[Report], timelines: &[Vec<Line>], notes: &mut Vec<String>) -> Clients {
    let started = reports.iter().filter_map(|report| report.started_unix_ms).min();
    let offsets: Vec<f64> = reports
        .iter()
        .map(|report| match (report.started_unix_ms, started) {
            (Some(own), Some(first)) => (own - first) as f64 / 1000.0,
            _ => 0.0,
        })
        .collect();
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).fold(0, u64::saturating_add);
    let mut failures_by_cause = BTreeMap::new();
    for (cause, count) in reports.iter().flat_map(|report| &report.failures_by_cause) {
        *failures_by_cause.entry(cause.clone()).or_default() += count;
    }
    let [latency, handshake, ping] = [
        ("latency_us", "paint to diff", reports.iter().map(|r| &r.latency_ms).collect::<Vec<_>>()),
        ("handshake_us", "handshake", reports.iter().map(|r| &r.handshake_ms).collect()),
        ("ping_us", "ping", reports.iter().map(|r| &r.ping_ms).collect()),
    ]
    .map(|(key, name, percentiles)| distribution(reports, key, name, &percentiles, notes));
    Clients {
        started_unix_ms: started,
        ids: reports.iter().map(|report| report.id.clone()).collect(),
        target: reports[0].target.clone(),
        scenario: reports.iter().find_map(|report| report.scenario.clone()),
        closed_loop: reports.iter().any(|report| report.kind.as_deref() == Some("closed")),
        processes: sum(|report| report.processes.unwrap_or(1)),
        phases: phases(reports, &offsets),
        clients: sum(|report| report.clients),
        connections: sum(|report| report.connections),
        failed: sum(|report| report.failed),
        failures_by_cause,
        pixels_sent: sum(|report| report.pixels_sent),
        pixels_unsent: sum(|report| report.pixels_unsent),
        pixels_per_s: reports.iter().map(|report| report.pixels_per_s).sum(),
        latency_ms: latency.0,
        handshake_ms: handshake.0,
        ping_ms: ping.0,
        curves: [latency.1, handshake.1, ping.1].into_iter().flatten().collect(),
        client: client_side(reports),
        limited_by_client: reports.iter().filter_map(|r| r.limited_by_client.clone()).collect(),
        queues: aimed_queues(reports),
        errors: reports.iter().flat_map(errors).collect(),
        timeline: seconds(timelines, &offsets),
    }
}

/// The phases of all: the window is what the processes' windows have in common, and the others give way.
fn phases(reports: &[Report], offsets: &[f64]) -> Vec<Phase> {
    let all: Vec<Phase> = reports
        .iter()
        .zip(offsets)
        .flat_map(|(report, offset)| {
            report.phases.iter().map(move |phase| Phase {
                name: phase.name.clone(),
                start_s: phase.start_s + offset,
                end_s: phase.end_s + offset,
            })
        })
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for phase in &all {
        if !names.contains(&phase.name.as_str()) {
            names.push(&phase.name);
        }
    }
    let bounds = |name: &str| {
        let of = || all.iter().filter(|phase| phase.name == name);
        match name {
            WINDOW => (
                of().map(|phase| phase.start_s).fold(f64::MIN, f64::max),
                of().map(|phase| phase.end_s).fold(f64::MAX, f64::min),
            ),
            _ => (
                of().map(|phase| phase.start_s).fold(f64::MAX, f64::min),
                of().map(|phase| phase.end_s).fold(f64::MIN, f64::max),
            ),
        }
    };
    let window = names.contains(&WINDOW).then(|| bounds(WINDOW));
    let mut end = f64::MIN;
    names
        .into_iter()
        .map(|name| {
            let (mut start_s, mut end_s) = bounds(name);
            match window {
                Some(window) if name == DRAIN => start_s = window.1,
                Some(window) if name != WINDOW => end_s = end_s.min(window.0),
                _ => {}
            }
            start_s = start_s.max(end);
            end_s = end_s.max(start_s);
            end = end_s;
            Phase { name: name.to_owned(), start_s, end_s }
        })
        .collect()
}

/// A distribution over all processes: from their histograms, or, where one has none, at worst.
fn distribution(
    reports: &[Report],
    key: &str,
    name: &str,
    percentiles: &[&Percentiles],
    notes: &mut Vec<String>,
) -> (Percentiles, Option<Curve>) {
    let histograms: Option<Vec<_>> =
        reports.iter().map(|report| histogram(report.histograms.get(key)?)).collect();
    let Some(histograms) = histograms else {
        if reports.len() > 1 {
            notes.push(format!("{name}: a file has no histogram; the percentiles are the worst process's"));
        }
        return (worst(percentiles.iter().copied()), None);
    };
    let mut sum = Histogram::<u64>::new(3).expect("3 significant digits are valid");
    sum.auto(true);
    for histogram in &histograms {
        if sum.add(histogram).is_err() {
            notes.push(format!("{name}: a histogram is out of all range, and left out"));
        }
    }
    let curve = (!sum.is_empty()).then(|| Curve { name: name.to_owned(), points: curve(&sum) });
    (Percentiles::from(&sum), curve)
}

fn histogram(base64: &str) -> Option<Histogram<u64>> {
    let bytes = BASE64_STANDARD.decode(base64).ok()?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).ok()
}

fn curve(us: &Histogram<u64>) -> Vec<(f64, f64)> {
    let most = us.len() as f64;
    us.iter_quantiles(POINTS_PER_HALVING)
        .map(|step| {
            let inverse = 1.0 / (1.0 - step.quantile_iterated_to()).max(1.0 / most);
            (inverse, step.value_iterated_to() as f64 / 1000.0)
        })
        .collect()
}

/// The largest of each percentile.
fn worst<'a>(all: impl Iterator<Item = &'a Percentiles>) -> Percentiles {
    let max = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    };
    all.fold(Percentiles::default(), |sum, one| Percentiles {
        p50: max(sum.p50, one.p50),
        p90: max(sum.p90, one.p90),
        p99: max(sum.p99, one.p99),
        p999: max(sum.p999, one.p999),
        p9999: max(sum.p9999, one.p9999),
        max: max(sum.max, one.max),
        count: sum.count + one.count,
    })
}

fn client_side(reports: &[Report]) -> Option<ClientSide> {
    let sides = || reports.iter().filter_map(|report| report.client.as_ref());
    sides().next()?;
    let max = |of: fn(&ClientSide) -> f64| sides().map(of).fold(0.0, f64::max);
    let sum = |of: fn(&ClientSide) -> u64| sides().map(of).fold(0, u64::saturating_add);
    Some(ClientSide {
        cpu_share: max(|side| side.cpu_share),
        max_thread_cpu_share: max(|side| side.max_thread_cpu_share),
        rss_mb: sides().map(|side| side.rss_mb).sum(),
        kb_per_client: max(|side| side.kb_per_client),
        late_ms: worst(sides().map(|side| &side.late_ms)),
        unsent: sum(|side| side.unsent),
        udp_rcvbuf_errors: sum(|side| side.udp_rcvbuf_errors),
        udp_sndbuf_errors: sum(|side| side.udp_sndbuf_errors),
        ports_exhausted: sum(|side| side.ports_exhausted),
    })
}

fn aimed_queues(reports: &[Report]) -> Vec<AimedQueue> {
    let mut queues: BTreeMap<usize, AimedQueue> = BTreeMap::new();
    for aimed in reports.iter().filter_map(|report| report.queues.as_ref()).flatten() {
        let sum =
            queues.entry(aimed.queue).or_insert(AimedQueue { queue: aimed.queue, ..AimedQueue::default() });
        sum.connections += aimed.connections;
        sum.ports += aimed.ports;
    }
    queues.into_values().collect()
}

fn errors(report: &Report) -> impl Iterator<Item = String> {
    let named = |error: &String| format!("{}: {error}", report.id);
    let early = (report.partial && !report.interrupted && report.error.is_none())
        .then(|| format!("{}: ended before its time", report.id));
    report.error.iter().chain(&report.verify_error).map(named).chain(early).collect::<Vec<_>>().into_iter()
}

/// The timelines of all on one grid of whole seconds.
fn seconds(timelines: &[Vec<Line>], offsets: &[f64]) -> Vec<Second> {
    let runs: Vec<(f64, &[Line])> =
        offsets.iter().copied().zip(timelines.iter().map(Vec::as_slice)).collect();
    // A day and a bit of seconds: a damaged time must not make this endless.
    let last = runs.iter().filter_map(|(offset, lines)| Some(lines.last()?.t_s + offset)).fold(0.0, f64::max);
    let sum = |t: f64, of: fn(&Line) -> f64| -> f64 {
        runs.iter().map(|(offset, lines)| at(lines, t - offset, of)).sum()
    };
    (1..=last.min(100_000.0) as u64)
        .map(|second| {
            let t = second as f64;
            let ended_now = || {
                runs.iter().flat_map(|(offset, lines)| {
                    lines.iter().filter(move |line| (line.t_s + offset).round() == t)
                })
            };
            Second {
                t_s: t,
                connections: sum(t, |line| line.connections),
                failed: sum(t, |line| line.failed),
                pixels_per_s: sum(t, |line| line.pixels_sent) - sum(t - 1.0, |line| line.pixels_sent),
                unsent_per_s: sum(t, |line| line.pixels_unsent) - sum(t - 1.0, |line| line.pixels_unsent),
                latency_ms: worst(ended_now().map(|line| &line.latency_ms)),
                cpu_share: ended_now().map(|line| line.cpu_share).fold(0.0, f64::max),
            }
        })
        .collect()
}

/// A figure at a time, on a straight line between two lines; before the first it is 0, after the last that.
fn at(lines: &[Line], t: f64, of: fn(&Line) -> f64) -> f64 {
    let next = lines.partition_point(|line| line.t_s < t);
    match (next.checked_sub(1).map(|i| &lines[i]), lines.get(next)) {
        (Some(before), Some(after)) => {
            let share = (t - before.t_s) / (after.t_s - before.t_s);
            of(before) + (of(after) - of(before)) * share
        }
        (None, Some(after)) => {
            if after.t_s > 0.0 {
                of(after) * (t / after.t_s).max(0.0)
            } else {
                of(after)
            }
        }
        (Some(before), None) => of(before),
        (None, None) => 0.0,
    }
}
