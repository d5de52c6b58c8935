//! `--processes N`: the load shared among processes, and one report of all.
//!
//! One process runs thousands of clients well; beyond that its threads share an allocator, a page table and
//! a file table. So more of them: this program again, each pinned to its own CPUs, with its share of the
//! clients. This process carries no load. It starts them, lets the window begin when all have ramped up,
//! adds up what they tell each second, passes Ctrl-C on, and merges their reports, whose distributions add
//! up exactly.

use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::cli::Settings;
use crate::host::allowed_cpus;
use crate::observer::{Message, Observer, Start, seconds_done};
use crate::progress::Done;
use crate::report::{Failure, Origin, Report};
use crate::run::{Signal, blank};
use crate::sample::{Sample, Stage};
use crate::stats::Distribution;
use crate::worker::{GO, Order, STOP};

/// Time between two lines of progress and of the timeline.
const SECOND: Duration = Duration::from_secs(1);
/// Distance of the seeds of two processes: more than there are clients, each of which has its own.
const SEED_STEP: u64 = 1 << 32;

/// What is heard of a worker.
enum Heard {
    Message(Message),
    Ended(std::io::Result<ExitStatus>),
}

/// Runs `settings` in several processes until their end, or until `stop` is ready.
pub async fn run(settings: Settings, stop: impl Future<Output = ()> + Send) -> Report {
    let start = Start::now();
    let mut observer = match Observer::person(&settings, start) {
        Ok(observer) => observer,
        Err(error) => {
            let mut report = blank(&settings, start);
            report.fail(Failure::Unwritten, error.to_string());
            return report;
        }
    };
    let stop = pin!(stop);
    let mut report = match Workers::start(&settings).await {
        Ok(workers) => workers.lead(&settings, start, &mut Signal::new(stop), &mut observer).await,
        Err(error) => {
            let mut report = blank(&settings, start);
            report.fail(Failure::Other, format!("cannot start a process: {error}"));
            report
        }
    };
    if let Err(error) = observer.finish(&report) {
        report.fail(Failure::Unwritten, error.to_string());
    }
    report
}

/// The running processes.
struct Workers {
    inputs: Vec<ChildStdin>,
    heard: mpsc::UnboundedReceiver<(usize, Heard)>,
    states: Vec<State>,
}

/// What is known of one.
#[derive(Default)]
struct State {
    ramped: bool,
    latest: Sample,
    report: Option<Report>,
    /// How it ended, if it did.
    ended: Option<String>,
}

impl Workers {
    /// Starts them all.
    async fn start(settings: &Settings) -> std::io::Result<Self> {
        let program = std::env::current_exe()?;
        let cpus = allowed_cpus();
        let (tell, heard) = mpsc::unbounded_channel();
        let mut workers = Self { inputs: Vec::new(), heard, states: Vec::new() };
        for index in 0..settings.processes {
            let mut child = Command::new(&program)
                .arg("worker")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                // A terminal's Ctrl-C is for this process, which passes it on.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()?;
            workers.inputs.push(child.stdin.take().expect("it is piped"));
            workers.states.push(State::default());
            tokio::spawn(listen(child, index, tell.clone()));
            let cpus = cpus_of(&cpus, index, settings.processes);
            let order = Order { settings: share(settings, index), cpus };
            let order = serde_json::to_string(&order).expect("settings are JSON");
            workers.tell(index, &order).await;
        }
        Ok(workers)
    }

    /// Says something to one. One that has ended says so itself.
    async fn tell(&mut self, index: usize, line: &str) {
        let _ = self.inputs[index].write_all(format!("{line}\n").as_bytes()).await;
    }

    async fn tell_all(&mut self, line: &str) {
        for index in 0..self.inputs.len() {
            self.tell(index, line).await;
        }
    }

    /// Leads the run to its end, and merges the reports.
    async fn lead(
        mut self,
        settings: &Settings,
        start: Start,
        stop: &mut Signal<'_>,
        observer: &mut Observer,
    ) -> Report {
        let mut ticks = interval_at(start.at + SECOND, SECOND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut latency = Distribution::default();
        let (mut stage, mut since) = (Stage::Ramp, start.at);
        let (mut gone, mut unwritten) = (false, None);
        while self.states.iter().any(|state| state.ended.is_none()) {
            tokio::select! {
                Some((index, heard)) = self.heard.recv() => {
                    self.note(index, heard, &mut latency, observer);
                    if !gone && self.states.iter().all(|state| state.ramped || state.ended.is_some()) {
                        gone = true;
                        self.tell_all(GO).await;
                    }
                }
                _ = ticks.tick() => {
                    let now = Instant::now();
                    let sample = self.sum(std::mem::take(&mut latency));
                    if sample.stage != stage {
                        (stage, since) = (sample.stage, now);
                    }
                    let elapsed = now - since;
                    let done = match stage {
                        Stage::Ramp => {
                            let up = sample.connections + sample.failed;
                            Done { done: up, of: Some(settings.clients as u64), unit: "clients" }
                        }
                        Stage::Warmup => seconds_done(elapsed, Some(settings.warmup)),
                        Stage::Window => seconds_done(elapsed, settings.duration),
                        Stage::Drain => seconds_done(elapsed, None),
                    };
                    if let Err(error) = observer.second(now, sample, done) {
                        // Results that are lost need not be waited for.
                        unwritten = Some(error.to_string());
                        self.tell_all(STOP).await;
                    }
                }
                () = stop.wait(), if !stop.came => self.tell_all(STOP).await,
            }
        }
        let mut report = self.merge(settings, start);
        report.interrupted = stop.came;
        if let Some(error) = unwritten {
            report.fail(Failure::Unwritten, error);
        }
        report
    }

    /// Takes note of what a worker said, or that it ended.
    fn note(&mut self, index: usize, heard: Heard, latency: &mut Distribution, observer: &Observer) {
        let state = &mut self.states[index];
        match heard {
            Heard::Message(Message::Say(text)) => observer.say(&format!("process {}: {text}", index + 1)),
            Heard::Message(Message::Ramped) => state.ramped = true,
            Heard::Message(Message::Second(sample)) => {
                latency.add(&sample.latency_us);
                state.latest = *sample;
            }
            Heard::Message(Message::Report(report)) => state.report = Some(*report),
            Heard::Ended(status) => {
                state.ended = Some(match status {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                });
                // Its connections are gone; its counts stay.
                (state.latest.connections, state.latest.cpus_busy, state.latest.rss) = (0, 0.0, 0);
            }
        }
    }

    /// All workers' latest second.
    fn sum(&self, latency_us: Distribution) -> Sample {
        let mut sum = Sample { stage: Stage::Drain, ..Sample::default() };
        self.states.iter().for_each(|state| sum += &state.latest);
        Sample { latency_us, cpus: allowed_cpus().len() as u64, ..sum }
    }

    /// The report of all.
    fn merge(self, settings: &Settings, start: Start) -> Report {
        let count = self.states.len();
        let mut missing = None;
        let mut reports = Vec::with_capacity(count);
        for (index, state) in self.states.into_iter().enumerate() {
            match state.report {
                Some(report) => reports.push(report),
                None => {
                    let how = state.ended.unwrap_or_default();
                    missing.get_or_insert(format!(
                        "process {} of {count} ended without a report ({how})",
                        index + 1
                    ));
                }
            }
        }
        let origin = Origin::OneMachine { cpus: allowed_cpus().len() as u64 };
        let mut report = match Report::merge(&settings.id, &reports, origin) {
            Ok(report) => report,
            Err(error) => {
                let mut report = blank(settings, start);
                report.fail(Failure::Other, missing.take().unwrap_or_else(|| error.to_string()));
                return report;
            }
        };
        if let Some(missing) = missing {
            report.partial = true;
            report.fail(Failure::Other, missing);
        }
        report.clients = settings.clients as u64;
        // From now on times are as in this process's timeline.
        let later = report.started_unix_ms.saturating_sub(start.unix_ms) as f64 / 1000.0;
        for phase in &mut report.phases {
            (phase.start_s, phase.end_s) = (phase.start_s + later, phase.end_s + later);
        }
        report.started_unix_ms = start.unix_ms;
        if let Err(error) = report.tolerates(settings.max_failed) {
            report.fail(Failure::Other, error);
        }
        report
    }
}

/// Tells what a worker says, until it has ended.
async fn listen(mut child: Child, index: usize, tell: mpsc::UnboundedSender<(usize, Heard)>) {
    let output = child.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            // Fails only if the run is over.
            Ok(message) => drop(tell.send((index, Heard::Message(message)))),
            Err(error) => eprintln!("loadgen: process {}: {error}", index + 1),
        }
    }
    let _ = tell.send((index, Heard::Ended(child.wait().await)));
}

/// The share of worker `index`: client `i` of the whole load is with worker `i % processes`.
fn share(whole: &Settings, index: usize) -> Settings {
    let count = whole.processes;
    // How many of the first `total` clients it has.
    let part = |total: usize| total / count + usize::from(index < total % count);
    let clients = part(whole.clients);
    let newcomers = clients - part(whole.clients - whole.newcomers);
    let endpoints = part(whole.endpoints).max(1);
    let before: usize = whole.clients / count * index + index.min(whole.clients % count);
    Settings {
        id: format!("process {}", index + 1),
        clients,
        watchers: part(whole.watchers),
        viewers: part(whole.watchers + whole.viewers) - part(whole.watchers),
        newcomers,
        painters: part(whole.painters),
        rate: whole.rate * newcomers as f64 / whole.newcomers.max(1) as f64,
        threads: whole.threads.min(clients).min(endpoints),
        endpoints,
        align: whole.align.clone().map(|alignment| alignment.after(before)),
        seed: whole.seed.wrapping_add(SEED_STEP.wrapping_mul(index as u64)),
        processes: 1,
        out: None,
        // Whether too many failed shows when all are known.
        max_failed: 1.0,
        ..whole.clone()
    }
}

/// The CPUs of worker `index` of `count`: all in turn if there are enough for each, else one.
fn cpus_of(allowed: &[usize], index: usize, count: usize) -> Vec<usize> {
    match allowed.len() {
        0 => Vec::new(),
        cpus if cpus < count => vec![allowed[index % cpus]],
        _ => allowed.iter().skip(index).step_by(count).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_whole_whatever_the_roles() {
        let target = "https://10.0.0.1".parse().unwrap();
        for (clients, watchers, viewers, newcomers, painters) in
            [(3, 1, 1, 1, 2), (1000, 1, 0, 0, 1000), (101, 8, 40, 33, 50), (4, 4, 0, 0, 0)]
        {
            for processes in 1..=3 {
                let whole = Settings {
                    watchers,
                    viewers,
                    newcomers,
                    painters,
                    processes,
                    rate: 90.0,
                    ..Settings::new(Clone::clone(&target), clients)
                };
                let shares: Vec<_> = (0..processes).map(|index| share(&whole, index)).collect();
                let sum = |of: fn(&Settings) -> usize| shares.iter().map(of).sum::<usize>();
                assert_eq!(sum(|s| s.clients), clients);
                assert_eq!((sum(|s| s.watchers), sum(|s| s.viewers)), (watchers, viewers));
                assert_eq!((sum(|s| s.newcomers), sum(|s| s.painters)), (newcomers, painters));
                for s in &shares {
                    assert!(s.watchers + s.viewers + s.newcomers <= s.clients);
                    assert!(s.painters <= s.clients - s.newcomers);
                    assert!(s.threads >= 1 && s.endpoints >= s.threads);
                }
                let rate: f64 = shares.iter().map(|s| s.rate).sum();
                assert!((rate - 90.0 * (newcomers.min(1) as f64)).abs() < 1e-6, "{rate}");
            }
        }
    }

    #[test]
    fn processes_get_cpus_of_their_own_while_there_are_enough() {
        let cpus = [0, 2, 4, 6, 8];
        assert_eq!(cpus_of(&cpus, 0, 2), [0, 4, 8]);
        assert_eq!(cpus_of(&cpus, 1, 2), [2, 6]);
        assert_eq!((cpus_of(&cpus, 6, 7), cpus_of(&[], 0, 2)), (vec![2], vec![]));
    }
}
