//! The load generators' files, merged: several processes or machines that loaded one server are one run.
//!
//! [`Report::merge`] does the sums; what is added here is what only several files together tell: one
//! timeline, and the measured window that all of them were in.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::folder::Files;
use crate::report::{Origin, Percentiles, PhaseTimes, Report};
use crate::sample::Stage;
use crate::stats::Distribution;

/// Points of a curve for each halving of the distance to 100 %: steps too small to see at 4, whatever the
/// number of samples.
const POINTS_PER_HALVING: u32 = 4;
/// Longest timeline, in seconds: a day and a bit. A damaged time must not make it endless.
const LONGEST_S: f64 = 100_000.0;

/// The whole load, of all processes.
#[derive(Debug, Serialize)]
pub struct Clients {
    /// The report of all.
    #[serde(flatten)]
    pub report: Report,
    /// The distributions as curves; those that have samples.
    pub curves: Vec<Curve>,
    /// One entry a second.
    pub timeline: Vec<Second>,
}

/// A distribution, as a curve towards 100 %.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Curve {
    /// What was timed.
    pub name: &'static str,
    /// `[1 / (1 - p), milliseconds]`: 10 is 90 %, 100 is 99 %; the last is the longest.
    pub points: Vec<(f64, f64)>,
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
    /// From paint to diff, of this second. Of several processes that of the worst: timelines have no
    /// histograms to merge.
    pub latency_ms: Percentiles,
    /// Busy share of the busiest process's CPUs.
    pub cpu_share: f64,
}

/// One line of a process's timeline, as far as it is needed.
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
        let first = reports.first()?;
        let started_ms = reports.iter().map(|report| report.started_unix_ms).min()?;
        let offset = |report: &Report| (report.started_unix_ms - started_ms) as f64 / 1000.0;
        let offsets: Vec<f64> = reports.iter().map(offset).collect();
        let mut report = match reports.len() {
            1 => first.clone(),
            _ => Report::merge(&joined_id(&reports), &reports, Origin::Machines).unwrap_or_else(|error| {
                files.notes.push(format!("only loadgen-{}.json counts: {error}", first.id));
                first.clone()
            }),
        };
        report.phases = phases(&report.phases, common_window(&reports, &offsets));
        let times = &report.histograms;
        let curves = [
            ("paint to diff", &times.latency_us),
            ("handshake", &times.handshake_us),
            ("ping", &times.ping_us),
        ];
        let curves = curves.into_iter().filter(|(_, times)| !times.microseconds().is_empty());
        let curves = curves.map(|(name, times)| Curve { name, points: points(times) }).collect();
        Some(Clients { curves, timeline: seconds(&timelines, &offsets), report })
    }

    /// Unix milliseconds at which the first process started; `None` where no file says.
    pub fn started_unix_ms(&self) -> Option<u64> {
        Some(self.report.started_unix_ms).filter(|ms| *ms > 0)
    }

    /// The measured window; `None` where no process got that far.
    pub fn window(&self) -> Option<(f64, f64)> {
        let window = self.report.phases.iter().find(|phase| phase.name == Stage::Window)?;
        (window.end_s > window.start_s).then_some((window.start_s, window.end_s))
    }

    /// What went wrong with the run as such.
    pub fn errors(&self) -> Vec<String> {
        let report = &self.report;
        let early = (report.partial && !report.interrupted && report.error.is_none())
            .then(|| "it ended before its time".to_owned());
        report.error.iter().chain(&report.verify_error).cloned().chain(early).collect()
    }
}

fn joined_id(reports: &[Report]) -> String {
    reports.iter().map(|report| report.id.as_str()).collect::<Vec<_>>().join("+")
}

fn timeline(files: &mut Files<'_>, id: &str) -> Vec<Line> {
    let lines = files.json_lines(&format!("timeline-{id}.jsonl")).unwrap_or_default();
    let lines = lines.into_iter().filter_map(|line: Value| serde_json::from_value(line).ok());
    let mut lines: Vec<Line> = lines.filter(|line: &Line| line.t_s.is_finite()).collect();
    lines.sort_by(|a, b| a.t_s.total_cmp(&b.t_s));
    lines
}

/// When all were in their window.
fn common_window(reports: &[Report], offsets: &[f64]) -> Option<(f64, f64)> {
    let windows = reports.iter().zip(offsets).flat_map(|(report, offset)| {
        let windows = report.phases.iter().filter(|phase| phase.name == Stage::Window);
        windows.map(move |phase| (phase.start_s + offset, phase.end_s + offset))
    });
    windows.reduce(|a, b| (a.0.max(b.0), a.1.min(b.1)))
}

/// The phases of all, of which the window is `window`; the others give way to it.
fn phases(all: &[PhaseTimes], window: Option<(f64, f64)>) -> Vec<PhaseTimes> {
    let Some((start, end)) = window else { return all.to_vec() };
    let mut before = f64::MIN;
    let mut phases = Vec::new();
    for phase in all {
        let (start_s, end_s) = match phase.name {
            Stage::Window => (start, end),
            Stage::Drain => (end, phase.end_s),
            Stage::Ramp => (phase.start_s, phase.end_s.min(start)),
            Stage::Warmup => (phase.start_s.max(before), start),
        };
        before = end_s;
        phases.push(PhaseTimes { name: phase.name, start_s, end_s });
    }
    phases
}

fn points(times: &Distribution) -> Vec<(f64, f64)> {
    let us = times.microseconds();
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

/// The timelines of all on one grid of whole seconds.
fn seconds(timelines: &[Vec<Line>], offsets: &[f64]) -> Vec<Second> {
    let runs: Vec<(f64, &[Line])> =
        offsets.iter().copied().zip(timelines.iter().map(Vec::as_slice)).collect();
    let last = runs.iter().filter_map(|(offset, lines)| Some(lines.last()?.t_s + offset)).fold(0.0, f64::max);
    let sum = |t: f64, of: fn(&Line) -> f64| -> f64 {
        runs.iter().map(|(offset, lines)| at(lines, t - offset, of)).sum()
    };
    (1..=last.min(LONGEST_S) as u64)
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
