//! Names the bottleneck: a table of checks, each a pure function from figures to an outcome.
//!
//! A check finds something, finds nothing, or cannot tell, and says by which figures. The verdict is the
//! gravest finding; of equally grave ones that which comes first in [`CHECKS`]: what refuses or loses packets
//! is the cause, a hot core next, and that the client was the limit excuses none of these. Only when no check
//! finds more than a note is a run healthy.

mod checks;
mod queues;
#[cfg(test)]
mod tests;

use serde::{Serialize, Serializer};

use super::folder::{Clients, Results};
use super::measure::Measured;

/// The verdict when nothing limits the run.
pub const HEALTHY: &str = "healthy";

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Seen, but too little to matter.
    Note,
    /// Not what limited this run, but it will limit a larger one.
    Fault,
    /// It limited the run: its figures are those of this limit.
    Limit,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The check's name, for programs.
    pub id: &'static str,
    /// What is wrong.
    pub title: String,
    /// The figures that show it.
    pub evidence: String,
    /// What to type.
    pub remedy: String,
    /// How grave.
    pub severity: Severity,
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing; by these figures.
    Clear(String),
    /// This.
    Found(Finding),
    /// It cannot tell; for this reason.
    Unknown(String),
}

/// A check and its outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Its name, for programs.
    pub id: &'static str,
    /// What it looks for, for people.
    pub name: &'static str,
    /// What it came to.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Serialize for Outcome {
    /// As `state` and `why`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Flat<'a> {
            state: &'static str,
            why: &'a str,
        }
        let (state, why) = match self {
            Outcome::Clear(why) => ("clear", why),
            Outcome::Found(finding) => ("found", &finding.evidence),
            Outcome::Unknown(why) => ("unknown", why),
        };
        Flat { state, why }.serialize(serializer)
    }
}

/// The outcome of all checks; also what `verdict.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The id of the finding that matters most, or [`HEALTHY`].
    pub verdict: &'static str,
    /// The same in a sentence.
    pub sentence: String,
    /// Gravest first.
    pub findings: Vec<Finding>,
    /// All checks, in the order of [`CHECKS`].
    pub checks: Vec<Check>,
}

/// What a check may look at.
#[derive(Clone, Copy)]
struct Facts<'a> {
    results: &'a Results,
    measured: &'a Measured,
}

impl Facts<'_> {
    fn clients(&self) -> Option<&Clients> {
        self.results.clients.as_ref()
    }
}

type Judge = fn(Facts<'_>) -> Outcome;

/// All checks: id, what is looked for, how.
const CHECKS: &[(&str, &str, Judge)] = &[
    ("connection_cap", "clients refused: the server is full", checks::connection_cap),
    ("conntrack_full", "connection tracking table full", checks::conntrack_full),
    ("fill_ring_empty", "fill ring empty", checks::fill_ring_empty),
    ("receive_buffer_overflow", "receive buffer overflow", checks::receive_buffer_overflow),
    ("paint_queue_full", "paint queue to the master full", checks::paint_queue_full),
    ("one_core_busy", "one core busy, the others idle", queues::one_core_busy),
    ("server_cpu", "the server's cores are the limit", queues::server_cpu),
    ("master_busy", "the master's core is the limit", queues::master_busy),
    ("client_limited", "the client is the limit", checks::client_limited),
    ("submission_queue_full", "io_uring submission queue full", checks::submission_queue_full),
    ("memory_growing", "memory growing", checks::memory_growing),
    ("connections_failed", "connections failed", checks::connections_failed),
    ("run_failed", "the run failed", checks::run_failed),
];

/// Judges a run.
pub fn diagnose(results: &Results, measured: &Measured) -> Verdict {
    let facts = Facts { results, measured };
    let checks: Vec<Check> =
        CHECKS.iter().map(|&(id, name, judge)| Check { id, name, outcome: judge(facts) }).collect();
    let mut findings: Vec<Finding> = checks
        .iter()
        .filter_map(|check| match &check.outcome {
            Outcome::Found(finding) => Some(Finding { id: check.id, ..finding.clone() }),
            _ => None,
        })
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity)); // stable: the table's order stays
    let gravest = findings.first().filter(|finding| finding.severity > Severity::Note);
    let (verdict, sentence) = match gravest {
        Some(finding) => (finding.id, finding.title.clone()),
        None => (HEALTHY, healthy(measured, &checks)),
    };
    Verdict { verdict, sentence, findings, checks }
}

fn healthy(measured: &Measured, checks: &[Check]) -> String {
    let unknown: Vec<&str> = checks
        .iter()
        .filter(|check| matches!(check.outcome, Outcome::Unknown(_)))
        .map(|check| check.name)
        .collect();
    let load = match measured.busiest() {
        Some(share) => format!(
            "no bottleneck shows: the server carried what was offered, its busiest worker {:.0}% busy",
            share * 100.0
        ),
        None => "no bottleneck shows".to_owned(),
    };
    match unknown.as_slice() {
        [] => load,
        unknown => format!("{load}; not judged for want of figures: {}", unknown.join(", ")),
    }
}

/// A finding whose id is filled in from the table.
fn found(
    severity: Severity,
    title: impl Into<String>,
    evidence: String,
    remedy: impl Into<String>,
) -> Outcome {
    Outcome::Found(Finding { id: "", title: title.into(), evidence, remedy: remedy.into(), severity })
}

fn unknown(why: &str) -> Outcome {
    Outcome::Unknown(why.to_owned())
}
