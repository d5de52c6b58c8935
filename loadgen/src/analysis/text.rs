//! The report for the terminal: the verdict first, then what it rests on. At most 100 columns, but for names
//! that are longer.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::diagnose::{HEALTHY, Outcome, Severity};
use super::measure::{Measured, Queue};
use super::plot::short;
use super::report::Analysis;
use crate::report::{Loop, Percentiles};

/// Columns.
const WIDTH: usize = 100;
/// Columns of the labels.
const LABELS: usize = 13;
/// Queues that are shown one by one. More do not fit a screen with the rest; the page has them all.
const MOST_QUEUES: usize = 16;

pub(super) fn text(analysis: &Analysis) -> String {
    let mut out = String::new();
    let verdict = &analysis.verdict;
    let gravest = verdict.findings.first().map(|finding| finding.severity);
    let colour = if verdict.verdict == HEALTHY { AnsiColor::Green.on_default() } else { ink(gravest) };
    row(&mut out, "verdict", &format!("{}: {}", verdict.verdict, verdict.sentence), colour.bold());
    for finding in &verdict.findings {
        out.push('\n');
        row(&mut out, severity(finding.severity), &finding.title, ink(Some(finding.severity)));
        row(&mut out, "  evidence", &finding.evidence, Style::new());
        row(&mut out, "  to type", &finding.remedy, Style::new());
    }
    out.push('\n');
    load(&mut out, analysis);
    queues(&mut out, analysis);
    out.push('\n');
    let clear = verdict.checks.iter().filter(|check| matches!(check.outcome, Outcome::Clear(_)));
    let clear: Vec<&str> = clear.map(|check| check.name).collect();
    if !clear.is_empty() {
        row(&mut out, "not found", &clear.join("; "), Style::new());
    }
    for check in &verdict.checks {
        if let Outcome::Unknown(why) = &check.outcome {
            row(&mut out, "not judged", &format!("{}: {why}", check.name), AnsiColor::Yellow.on_default());
        }
    }
    for note in &analysis.notes {
        row(&mut out, "note", note, AnsiColor::Yellow.on_default());
    }
    out
}

fn load(out: &mut String, analysis: &Analysis) {
    let measured = &analysis.measured;
    let seconds = measured.window_s.1 - measured.window_s.0;
    if let Some(clients) = analysis.clients.as_ref().map(|clients| &clients.report) {
        let processes = match clients.processes {
            1 => String::new(),
            n => format!(" from {n} processes"),
        };
        let text = format!(
            "{} to {}{processes}, {} loop; {seconds:.1} s measured",
            clients.scenario.name(),
            clients.target,
            if clients.load_loop == Loop::Closed { "CLOSED" } else { "open" },
        );
        row(out, "run", &text, Style::new());
        let text = format!(
            "{} of {} came up, {} failed; {} pixels/s sent, {} unsent in all",
            clients.connections,
            clients.clients,
            clients.failed,
            short(clients.pixels_per_s),
            clients.pixels_unsent
        );
        row(out, "clients", &text, Style::new());
        for (name, times) in [
            ("paint to diff", &clients.latency_ms),
            ("handshake", &clients.handshake_ms),
            ("ping", &clients.ping_ms),
        ] {
            row(out, name, &percentiles(times), Style::new());
        }
    }
    if let Some(backend) = &measured.backend {
        row(out, "server", &format!("{backend}, {}", server(measured)), Style::new());
    }
    let mut drops: Vec<(&String, &u64)> = measured.drops.iter().collect();
    drops.sort_by_key(|drop| std::cmp::Reverse(drop.1));
    let drops: Vec<String> = drops.into_iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    row(
        out,
        "drops",
        if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }.as_str(),
        Style::new(),
    );
}

/// What the server did, in a line.
pub(super) fn server(measured: &Measured) -> String {
    let share = |share: Option<f64>| share.map_or("?".to_owned(), |share| format!("{:.0}%", share * 100.0));
    let master = match measured.master_working {
        Some(_) => format!(", the master {}", share(measured.master_working)),
        None => String::new(),
    };
    format!(
        "{}: {} messages/s; busy {} on average, the busiest {}{master}",
        plural(measured.queues.len(), "worker"),
        short(measured.messages_per_s),
        share(measured.mean_working()),
        share(measured.busiest()),
    )
}

fn queues(out: &mut String, analysis: &Analysis) {
    let queues = &analysis.measured.queues;
    if queues.is_empty() {
        return;
    }
    let heads = ["queue", "connections", "aimed", "messages/s", "packets/s", "drops/s", "busy"];
    let cells = |queue: &Queue| {
        let rate = |value: Option<f64>| value.map_or("?".to_owned(), short);
        [
            queue.queue.to_string(),
            queue.connections.map_or("?".to_owned(), |count| format!("{count:.0}")),
            queue.aimed.map_or("-".to_owned(), |count| count.to_string()),
            rate(queue.messages_per_s),
            rate(queue.packets_per_s),
            rate(queue.drops_per_s),
            queue.working.map_or("?".to_owned(), |share| format!("{:.0}%", share * 100.0)),
        ]
    };
    out.push('\n');
    let mut line = |cells: [String; 7]| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>11}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end()).expect("writing to a String cannot fail");
    };
    line(heads.map(str::to_owned));
    queues.iter().take(MOST_QUEUES).for_each(|queue| line(cells(queue)));
    if queues.len() > MOST_QUEUES {
        let rest = format!("{} more queues are on the page", queues.len() - MOST_QUEUES);
        row(out, "", &rest, Style::new());
    }
    if let Some(skew) = analysis.measured.skew {
        row(out, "skew", &format!("{skew:.2}: packets of the busiest queue over the mean"), Style::new());
    }
}

/// A number of things.
pub(super) fn plural(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A distribution on one line.
pub(super) fn percentiles(times: &Percentiles) -> String {
    let all = [
        ("p50", times.p50),
        ("p90", times.p90),
        ("p99", times.p99),
        ("p99.9", times.p999),
        ("p99.99", times.p9999),
        ("max", times.max),
    ];
    let known: Vec<String> =
        all.into_iter().filter_map(|(name, ms)| Some(format!("{name} {}", short(ms?)))).collect();
    match known.as_slice() {
        [] => "none measured".to_owned(),
        known => format!("{} ms (of {})", known.join(", "), times.count),
    }
}

pub(super) fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Limit => "limit",
        Severity::Fault => "fault",
        Severity::Note => "note",
    }
}

fn ink(severity: Option<Severity>) -> Style {
    match severity {
        Some(Severity::Limit) => AnsiColor::Red.on_default(),
        Some(Severity::Fault) => AnsiColor::Yellow.on_default(),
        _ => Style::new(),
    }
}

/// A label and a text, wrapped under itself.
fn row(out: &mut String, label: &str, text: &str, style: Style) {
    let mut label = label;
    for line in wrap(text, WIDTH - LABELS - 1) {
        writeln!(out, "{label:<LABELS$} {style}{line}{style:#}").expect("writing to a String cannot fail");
        label = "";
    }
}

/// Lines of at most `width` characters, broken at spaces; longer words stay whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
