//! How the run goes, a line a second on stderr: one that is redrawn on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::Percentiles;
use crate::sample::{Sample, Stage};

/// Where progress goes.
#[derive(Debug)]
pub struct Progress {
    id: String,
    show: Show,
    /// Of the last second shown.
    pixels_sent: u64,
    diff_datagrams: u64,
    handshakes: u64,
}

#[derive(Debug)]
enum Show {
    Nothing,
    Lines,
    Bar(ProgressBar),
}

/// How much of something is done, and of how much if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// So much.
    pub done: u64,
    /// Of this.
    pub of: Option<u64>,
    /// Of what: "s" or "clients".
    pub unit: &'static str,
}

impl Progress {
    /// Progress of the run named `id`; `quiet` shows none.
    pub fn new(id: &str, quiet: bool) -> Self {
        let show = if quiet {
            Show::Nothing
        } else if std::io::stderr().is_terminal() {
            Show::Bar(ProgressBar::new_spinner())
        } else {
            Show::Lines
        };
        Self { id: id.to_owned(), show, pixels_sent: 0, diff_datagrams: 0, handshakes: 0 }
    }

    /// Something to know once.
    pub fn say(&self, text: &str) {
        match &self.show {
            Show::Nothing => {}
            Show::Lines => eprintln!("[{}] {text}", self.id),
            Show::Bar(bar) => bar.println(format!("[{}] {text}", self.id)),
        }
    }

    /// The figures of the time since the last call.
    pub fn second(&mut self, sample: &Sample, elapsed: Duration, done: Done) {
        let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        // Saturating: a process that ended takes its counts along.
        let rate =
            |now: u64, last: &mut u64| now.saturating_sub(std::mem::replace(last, now)) as f64 / seconds;
        let paints = rate(sample.pixels_sent, &mut self.pixels_sent);
        let diffs = rate(sample.diff_datagrams, &mut self.diff_datagrams);
        let handshakes = rate(sample.handshakes, &mut self.handshakes);
        let mut line = format!(
            "{} connected, {} failed, {paints:.0} paints/s, {diffs:.0} diffs/s",
            sample.connections, sample.failed
        );
        if sample.handshakes > 0 {
            line += &format!(", {handshakes:.0} handshakes/s");
        }
        let latency = Percentiles::from(&sample.latency_us);
        if let (Some(p50), Some(p99), Some(max)) = (latency.p50, latency.p99, latency.max) {
            line += &format!(", paint to diff p50 {p50:.1} ms p99 {p99:.1} ms max {max:.1} ms");
        }
        match &self.show {
            Show::Nothing => {}
            Show::Lines => eprintln!("[{}] {}: {line}", self.id, sample.stage.name()),
            Show::Bar(bar) => {
                bar.set_style(style(sample.stage, done));
                bar.set_length(done.of.unwrap_or(done.done));
                bar.set_position(done.done);
                bar.set_message(line);
                bar.tick();
            }
        }
    }
}

/// The line on a terminal: stage, how far, figures.
fn style(stage: Stage, Done { of, unit, .. }: Done) -> ProgressStyle {
    let far = if of.is_some() { "[{bar:12}] {pos}/{len}" } else { "{pos}" };
    let template = format!("{{spinner}} {} {far} {unit}  {{wide_msg}}", stage.name());
    ProgressStyle::with_template(&template).expect("a valid template").progress_chars("=> ")
}

impl Drop for Progress {
    /// Leaves the terminal's line to whatever is printed next.
    fn drop(&mut self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_line() {
        for stage in [Stage::Ramp, Stage::Warmup, Stage::Window, Stage::Drain] {
            for of in [None, Some(3)] {
                style(stage, Done { done: 1, of, unit: "s" });
            }
        }
    }
}
