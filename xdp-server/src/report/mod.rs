//! What the server says: at start, once a second, and at the end; for humans as text, for programs as JSON.
//!
//! Theory of operation
//! -------------------
//! One thread, the one that waits for signals, owns the [`Reporter`] and feeds it snapshots of the counters.
//! The reporter keeps the previous snapshot, so that a line is what happened since the one before. What the
//! text says is made by pure functions (`start`, `live`, `summary`, of `format` and `drops`); only the
//! reporter writes.
//!
//! | | standard output | standard error |
//! |---|---|---|
//! | | text | |
//! | `--quiet` | | |
//! | `--json` | JSON, one object per line | text |
//! | `--json --quiet` | JSON | |
//!
//! The objects have an `event`: `start`, `second`, `note`, `summary`. A reader that goes away (`| head`) ends
//! the output, not the server.

mod drops;
mod format;
mod live;
mod start;
mod summary;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;

use crate::cli::Settings;
use crate::stats::{MasterStats, WorkerStats};
pub(crate) use drops::is_drop;
use format::rfc3339;
pub(crate) use format::{Ink, grouped, minute, paint};
use live::{Interval, Snapshot};
pub(crate) use start::served_queue;
pub use start::{Start, WorkerIo};
use summary::Summary;

/// Live lines between two headers on a terminal: a header is then always in sight on one of 24 lines.
const LINES_PER_HEADER: u64 = 20;

/// Writes the reports. See the [module](self).
pub struct Reporter {
    text: Stream,
    json: Stream,
    /// The text goes to a terminal that shows colours.
    colour: bool,
    /// The text goes to a terminal: repeat the header.
    terminal: bool,
    lines: u64,
    common: start::Common,
    previous: Snapshot,
}

/// Where one kind of report goes, as long as somebody takes it.
struct Stream(Option<Box<dyn Write + Send>>);

impl Stream {
    /// Writes whole lines at once. After an error (a closed pipe, a full disk) the stream is given up: the
    /// server must go on serving.
    fn write(&mut self, lines: &str) {
        if let Some(to) = &mut self.0
            && to.write_all(lines.as_bytes()).and_then(|()| to.flush()).is_err()
        {
            self.0 = None;
        }
    }

    /// Writes one object, if anybody reads.
    fn write_json(&mut self, object: &impl Serialize) {
        if self.0.is_some() {
            let mut line = serde_json::to_string(object).expect("counters and strings are JSON");
            line.push('\n');
            self.write(&line);
        }
    }
}

impl Reporter {
    /// A reporter to standard output and error, as `--quiet` and `--json` say.
    pub fn new(settings: &Settings) -> Reporter {
        let (text, terminal): (Box<dyn Write + Send>, bool) = match settings.json {
            true => (Box::new(io::stderr()), io::stderr().is_terminal()),
            false => (Box::new(io::stdout()), io::stdout().is_terminal()),
        };
        let text = (!settings.quiet).then_some(text);
        let json = settings.json.then(|| Box::new(io::stdout()) as Box<dyn Write + Send>);
        let colour = terminal && colours_wanted(&|variable| std::env::var(variable).ok());
        Reporter::with_streams(text, json, terminal, colour)
    }

    fn with_streams(
        text: Option<Box<dyn Write + Send>>,
        json: Option<Box<dyn Write + Send>>,
        terminal: bool,
        colour: bool,
    ) -> Reporter {
        Reporter {
            text: Stream(text),
            json: Stream(json),
            colour,
            terminal,
            lines: 0,
            common: start::Common::default(),
            previous: Snapshot::default(),
        }
    }

    /// Reports the start. Call it first, when the server can take connections: scripts wait for it.
    pub fn start(&mut self, start: &Start<'_>, now: OffsetDateTime) {
        self.common = start.common();
        self.text.write(&start.text(self.colour));
        self.json.write_json(&start.json(now));
    }

    /// Reports one sentence at any time.
    pub fn note(&mut self, sentence: &str, now: OffsetDateTime) {
        self.text.write(&format!("{} {sentence}\n", paint(self.colour, Ink::Yellow, "note:")));
        self.json.write_json(&json!({ "event": "note", "time": rfc3339(now), "text": sentence }));
    }

    /// Reports what happened in the `interval` since the last call, or since start. `workers` are by index.
    pub fn second(
        &mut self,
        workers: &[WorkerStats],
        master: &MasterStats,
        interval: Duration,
        now: OffsetDateTime,
    ) {
        let snapshot = Snapshot { workers: workers.to_vec(), master: *master };
        let happened = Interval::between(&self.previous, &snapshot, interval, now);
        self.previous = snapshot;

        let header_due =
            if self.terminal { self.lines.is_multiple_of(LINES_PER_HEADER) } else { self.lines == 0 };
        let header = if header_due { live::header(self.colour) + "\n" } else { String::new() };
        self.lines += 1;
        self.text.write(&format!("{header}{}\n", happened.line(self.colour)));

        #[derive(Serialize)]
        struct Second<'a> {
            event: &'static str,
            #[serde(flatten)]
            happened: &'a Interval,
        }
        self.json.write_json(&Second { event: "second", happened: &happened });
    }

    /// Reports the totals at the end, `elapsed` after the start.
    pub fn summary(
        &mut self,
        workers: &[WorkerStats],
        master: &MasterStats,
        elapsed: Duration,
        now: OffsetDateTime,
    ) {
        let counters = Snapshot { workers: workers.to_vec(), master: *master };
        let summary = Summary { common: &self.common, counters: &counters, elapsed };
        self.text.write(&summary.text());
        self.json.write_json(&summary.json(now));
    }
}

/// Whether a terminal should be shown colours: <https://no-color.org>, and terminals that have none.
pub(crate) fn colours_wanted(env: &dyn Fn(&str) -> Option<String>) -> bool {
    env("NO_COLOR").is_none_or(|value| value.is_empty()) && env("TERM").is_some_and(|term| term != "dumb")
}

#[cfg(test)]
mod tests;
