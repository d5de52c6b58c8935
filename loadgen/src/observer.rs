//! Who hears how a run goes: a person and the result files, or the process that this one works for.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::cli::Settings;
use crate::progress::{Done, Progress};
use crate::report::Report;
use crate::results::{Results, ResultsError};
use crate::sample::Sample;

/// When the run began: the zero of all times in the results.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// For differences.
    pub at: Instant,
    /// For people and other machines, in milliseconds since 1970.
    pub unix_ms: u64,
}

impl Start {
    /// Now.
    pub fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at: Instant::now(), unix_ms: unix.as_millis() as u64 }
    }

    /// Seconds from then to `now`.
    pub fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.at).as_secs_f64()
    }
}

/// What a worker process tells its parent, a line of JSON each on its standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// Something to know once.
    Say(String),
    /// All clients have come up or failed; the worker waits for the others.
    Ramped,
    /// A second has passed.
    Second(Box<Sample>),
    /// The worker is done.
    Report(Box<Report>),
}

/// Hears of a run.
#[derive(Debug)]
pub enum Observer {
    /// A person, and the files of `--out`.
    Person {
        /// On stderr.
        progress: Progress,
        /// The files, if they were asked for.
        results: Option<Results>,
        /// The run's beginning.
        start: Start,
        /// When the last second was shown.
        shown: Instant,
    },
    /// The process that started this one.
    Parent,
}

impl Observer {
    /// The observer of a run with these settings, which begins now.
    ///
    /// # Errors
    /// The result files cannot be made.
    pub fn person(settings: &Settings, start: Start) -> Result<Self, ResultsError> {
        let results = settings.out.as_deref().map(|folder| Results::create(folder, &settings.id));
        let progress = Progress::new(&settings.id, settings.quiet);
        Ok(Self::Person { progress, results: results.transpose()?, start, shown: start.at })
    }

    /// Something to know once.
    pub fn say(&self, text: &str) {
        match self {
            Self::Person { progress, .. } => progress.say(text),
            Self::Parent => tell(&Message::Say(text.to_owned())),
        }
    }

    /// All clients have come up or failed.
    pub fn ramped(&self) {
        if let Self::Parent = self {
            tell(&Message::Ramped);
        }
    }

    /// About a second has passed.
    ///
    /// # Errors
    /// The timeline cannot be written. It is not written any more then.
    pub fn second(&mut self, now: Instant, sample: Sample, done: Done) -> Result<(), ResultsError> {
        match self {
            Self::Parent => tell(&Message::Second(Box::new(sample))),
            Self::Person { progress, results, start, shown } => {
                progress.second(&sample, now - std::mem::replace(shown, now), done);
                if let Some(files) = results {
                    let written = files.timeline(&sample.timeline_line(start.seconds(now)));
                    if written.is_err() {
                        *results = None;
                    }
                    return written;
                }
            }
        }
        Ok(())
    }

    /// The run is over. A person is told elsewhere.
    ///
    /// # Errors
    /// The report cannot be written.
    pub fn finish(self, report: &Report) -> Result<(), ResultsError> {
        match self {
            Self::Parent => tell(&Message::Report(Box::new(report.clone()))),
            Self::Person { progress, results: Some(results), .. } => {
                let path = results.report(report)?;
                progress.say(&format!("results are in {}", path.display()));
            }
            Self::Person { results: None, .. } => {}
        }
        Ok(())
    }
}

/// Tells the parent. If it is gone nobody wants to know: its end of our standard input closes too, which
/// ends this process.
fn tell(message: &Message) {
    let line = serde_json::to_string(message).expect("messages are always JSON");
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// How far a stage of known length is, in seconds.
pub fn seconds_done(elapsed: Duration, of: Option<Duration>) -> Done {
    Done { done: elapsed.as_secs(), of: of.map(|of| of.as_secs_f64().ceil() as u64), unit: "s" }
}
