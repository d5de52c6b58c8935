//! The stages of a run: ramp, warm-up, window, and the wait for the last answers.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{Cues, Failed, LAST_ANSWERS, LAST_PAINTS, POLL};
use crate::host::{self, Usage};
use crate::loss::Loss;
use crate::observer::{Observer, Start, seconds_done};
use crate::probe::Probe;
use crate::progress::Done;
use crate::report::{Failure, PhaseTimes, Report, causes};
use crate::results::ResultsError;
use crate::sample::{Sample, Stage};
use crate::shared::Shared;
use crate::shared::Signals;
use crate::threads::Threads;

/// Time between two lines of progress and of the timeline.
const SECOND: Duration = Duration::from_secs(1);

/// When which stage began.
#[derive(Debug)]
pub struct Timetable {
    start: Start,
    stage: Stage,
    since: Instant,
    past: Vec<PhaseTimes>,
}

impl Timetable {
    /// Of a run that began at `start` and whose ramp begins now.
    pub fn new(start: Start) -> Self {
        Self { start, stage: Stage::Ramp, since: Instant::now(), past: Vec::new() }
    }

    /// The stage of now.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Time since it began.
    pub fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// The next stage begins.
    pub fn enter(&mut self, stage: Stage, now: Instant) {
        let (start_s, end_s) = (self.start.seconds(self.since), self.start.seconds(now));
        self.past.push(PhaseTimes { name: self.stage, start_s, end_s });
        (self.stage, self.since) = (stage, now);
    }

    /// Length of a past stage, in seconds; 0 if it never came.
    pub fn length(&self, stage: Stage) -> f64 {
        let past = self.past.iter().filter(|past| past.name == stage);
        past.map(|past| past.end_s - past.start_s).sum()
    }

    /// All stages, the last one ending now.
    pub fn all(&self, now: Instant) -> Vec<PhaseTimes> {
        let (start_s, end_s) = (self.start.seconds(self.since), self.start.seconds(now));
        let last = PhaseTimes { name: self.stage, start_s, end_s };
        self.past.iter().copied().chain([last]).collect()
    }
}

/// A run whose threads have started.
pub struct Run {
    pub shared: std::sync::Arc<Shared>,
    pub signals: Signals,
    pub threads: Threads,
    pub probe: Probe,
    pub table: Timetable,
    /// Resident bytes before there was any client.
    pub rss_before: u64,
    /// What had been used when the window began.
    pub used_before: Option<Usage>,
    /// What had been used a second ago.
    pub used_lately: Usage,
}

impl Run {
    /// Ramp, warm-up and window, for as long as asked.
    pub async fn load(
        &mut self,
        cues: &mut Cues<'_>,
        observer: &mut Observer,
        report: &mut Report,
    ) -> Result<(), Failed> {
        let mut shown = Instant::now();
        let mut ramped = false;
        loop {
            let now = Instant::now();
            if !ramped && self.shared.ramping() == 0 {
                ramped = true;
                observer.ramped();
            }
            let settings = &self.shared.settings;
            match self.table.stage() {
                Stage::Ramp if ramped && cues.go.came => self.table.enter(Stage::Warmup, now),
                Stage::Warmup if self.table.elapsed(now) >= settings.warmup => {
                    self.used_before = Some(self.shared.footprint.usage());
                    self.table.enter(Stage::Window, now);
                    self.shared.stats.window.open(now);
                }
                Stage::Window if settings.duration.is_some_and(|all| self.table.elapsed(now) >= all) => {
                    report.partial = false;
                    return Ok(());
                }
                _ => {}
            }
            if ramped && self.shared.stats.connections().1 == 0 {
                return Err(self.nobody_left());
            }
            if let Some(error) = self.threads.ended() {
                return Err((Failure::Other, error));
            }
            if now - shown >= SECOND {
                shown = now;
                if let Err(error) = self.second(self.table.stage(), observer) {
                    // Results that are lost need not be waited for.
                    report.fail(Failure::Unwritten, error.to_string());
                    return Ok(());
                }
            }
            tokio::select! {
                () = sleep_until(now + POLL) => {}
                () = cues.go.wait(), if ramped && !cues.go.came => {}
                () = cues.stop.wait() => {
                    // Where no end was set, this is it.
                    let endless = self.shared.settings.duration.is_none();
                    report.partial = !(endless && self.table.stage() == Stage::Window);
                    return Ok(());
                }
            }
        }
    }

    /// Tells of the time since the last call.
    ///
    /// # Errors
    /// The timeline cannot be written.
    pub fn second(&mut self, stage: Stage, observer: &mut Observer) -> Result<(), ResultsError> {
        let now = Instant::now();
        let used = self.shared.footprint.cpu();
        let settings = &self.shared.settings;
        let sample = Sample {
            cpus_busy: used.since(&self.used_lately).cpus_busy,
            cpus: host::allowed_cpus().len() as u64,
            rss: host::resident_bytes(),
            ..Sample::of(&self.shared.stats, stage)
        };
        self.used_lately = used;
        let elapsed = self.table.elapsed(now);
        let done = match stage {
            Stage::Ramp => {
                let up = settings.clients as u64 - self.shared.ramping();
                Done { done: up, of: Some(settings.clients as u64), unit: "clients" }
            }
            Stage::Warmup => seconds_done(elapsed, Some(settings.warmup)),
            Stage::Window => seconds_done(elapsed, settings.duration),
            Stage::Drain => seconds_done(elapsed, None),
        };
        observer.second(now, sample, done)
    }

    /// Tells of a moment of the drain.
    pub fn drain_second(&mut self, observer: &mut Observer, report: &mut Report) {
        if let Err(error) = self.second(Stage::Drain, observer) {
            report.fail(Failure::Unwritten, error.to_string());
        }
    }

    /// The window, if it had begun, ends, and the drain begins. Returns what had been used until then.
    pub fn end_window(&mut self) -> Usage {
        let now = Instant::now();
        self.shared.stats.window.close(now);
        self.table.enter(Stage::Drain, now);
        self.shared.footprint.usage()
    }

    fn nobody_left(&self) -> Failed {
        let failures = self.shared.stats.failures();
        let why = causes(&failures);
        if self.shared.stats.connections().0 == 0 {
            (Failure::Unreachable, format!("no client connected: {why}"))
        } else if failures.keys().any(|cause| Loss::is_protocol(cause)) {
            // It lives, but it was no use to stay.
            (Failure::Other, format!("every connection was lost: {why}"))
        } else {
            (Failure::ServerDied, format!("every connection was lost, the server ended or is cut off: {why}"))
        }
    }

    /// Waits a little for what the last paints bring back.
    pub async fn last_answers(&self) {
        sleep(LAST_PAINTS).await;
        let deadline = Instant::now() + LAST_ANSWERS;
        loop {
            let totals = self.shared.stats.totals();
            let all = totals.frames_settled >= totals.frames_sent
                && totals.confirmed + totals.unconfirmed >= totals.timed;
            if all || Instant::now() >= deadline {
                return;
            }
            sleep(POLL).await;
        }
    }
}
