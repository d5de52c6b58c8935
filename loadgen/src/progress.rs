//! How the run goes, a line a second on stderr: one that is redrawn on a terminal, plain lines elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::stats::{Stats, Totals};

/// Where progress goes.
pub struct Progress {
    id: String,
    show: Show,
    last: Totals,
}

enum Show {
    Nothing,
    Lines,
    Bar(ProgressBar),
}

impl Progress {
    /// Progress of the run named `id`; `quiet` shows none.
    pub fn new(id: &str, quiet: bool) -> Self {
        let show = if quiet {
            Show::Nothing
        } else if std::io::stderr().is_terminal() {
            let style =
                ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}").expect("a valid template");
            Show::Bar(ProgressBar::new_spinner().with_style(style))
        } else {
            Show::Lines
        };
        Self { id: id.to_owned(), show, last: Totals::default() }
    }

    /// Something to know once.
    pub fn say(&self, text: &str) {
        match &self.show {
            Show::Nothing => {}
            Show::Lines => eprintln!("[{}] {text}", self.id),
            Show::Bar(bar) => bar.println(format!("[{}] {text}", self.id)),
        }
    }

    /// The figures of the last `seconds`, since the last call.
    pub fn second(&mut self, stage: &str, stats: &Stats, seconds: f64) {
        let totals = stats.totals();
        let latency = stats.recent_latency();
        let last = std::mem::replace(&mut self.last, totals);
        let (_, live, _) = stats.connections();
        let failed: u64 = stats.failures().values().sum();
        let painted = |t: &Totals| t.pixels_sent_datagram + t.pixels_sent_frame;
        let paints = (painted(&totals) - painted(&last)) as f64 / seconds;
        let diffs = (totals.diff_datagrams - last.diff_datagrams) as f64 / seconds;
        let mut line =
            format!("{stage}: {live} connected, {failed} failed, {paints:.0} paints/s, {diffs:.0} diffs/s");
        if !latency.is_empty() {
            let ms = |q| latency.value_at_quantile(q) as f64 / 1000.0;
            line += &format!(", paint to diff p50 {:.1} ms p99 {:.1} ms", ms(0.5), ms(0.99));
        }
        match &self.show {
            Show::Nothing => {}
            Show::Lines => eprintln!("[{}] {line}", self.id),
            Show::Bar(bar) => {
                bar.set_message(line);
                bar.tick();
            }
        }
    }
}

impl Drop for Progress {
    /// Leaves the terminal's line to whatever is printed next.
    fn drop(&mut self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
        }
    }
}
