//! What this server costs on this machine, measured in memory beside QUIC alone: `xdp-server bench`, and the
//! library behind `cargo bench`.
//!
//! Theory of operation
//! -------------------
//! A whole [`crate::worker::Worker`], with a real canvas and its master, runs over [`frames::MemoryIo`]:
//! packet I/O from and to memory. Real QUIC clients shake hands with it and prepare encrypted packets ahead;
//! only then is anything measured, so that no client's work is ever in a figure. Beside it, in the same run
//! and turn by turn, connections of quiche alone with the same settings receive packets prepared in the same
//! way: the *floor*. Absolute times depend on the machine and on what else runs on it; the ratio to the floor
//! hardly does, and is what counts. Times are CPU time of the one thread that does all.
//!
//! - `frames`: prepared frames, and packet I/O from memory
//! - `clients`: QUIC clients
//! - `rig`: the worker with all around it; the floor
//! - `message`, `stages`: what a message costs, in all and stage by stage
//! - `broadcast`, `handshake`, `memory`: what these cost; `tls`: handshakes without QUIC
//! - `report`: figures as text
//!
//! Instructions of one part alone, counted by valgrind (any build with symbols; the first counts the worker,
//! the second the floor, each over the number of messages that the bench prints):
//!
//! ```text
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*measured_worker*' \
//!     xdp-server bench --only message --connections 1000 --rounds 1
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*measured_floor*' \
//!     xdp-server bench --only message --connections 1000 --rounds 1
//! ```

mod broadcast;
pub mod clients;
pub mod frames;
mod handshake;
mod memory;
pub mod message;
mod report;
pub mod rig;
mod stages;
mod tls;

use nix::time::{ClockId, clock_gettime};
use report::Report;
use stages::Stages;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

/// What to measure, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Numbers of connections to measure with.
    pub connections: Vec<u32>,
    /// Rounds of each case; medians are taken over them.
    pub rounds: u32,
    /// Messages a second at which the worker's clock is moved: decides how many messages wait for one
    /// acknowledgement before its time has come.
    pub rate: u32,
    /// Packets of a round; `None`: enough for the clock, and one for each connection.
    pub round: Option<usize>,
    /// The one case to measure; `None`: all.
    pub only: Option<Case>,
    /// Print JSON instead of a table.
    pub json: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// A message: one pixel in one packet
    Message,
    /// The stages of a message
    Stages,
    /// A packet of a broadcast
    Broadcast,
    /// A handshake, full and resumed
    Handshake,
    /// Memory of an idle connection
    Memory,
}

/// Why nothing was measured. A sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BenchError(String);

impl BenchError {
    /// From what went wrong.
    pub fn new(why: impl ToString) -> Self {
        Self(why.to_string())
    }
}

impl From<quiche::Error> for BenchError {
    fn from(error: quiche::Error) -> Self {
        Self(format!("quiche: {error}"))
    }
}

/// Tells on a terminal how far things are.
#[derive(Default)]
pub struct Progress {
    stage: std::cell::RefCell<String>,
    shown: bool,
}

impl Progress {
    /// Shown on standard error if that is a terminal.
    pub fn on_terminal() -> Self {
        Self { shown: std::io::stderr().is_terminal(), ..Self::default() }
    }

    /// Begins a stage.
    fn stage(&self, name: &str) {
        name.clone_into(&mut self.stage.borrow_mut());
        self.step(0, 0);
    }

    /// Notes that `done` of `all` are done.
    fn step(&self, done: usize, all: usize) {
        if !self.shown {
            return;
        }
        let share = (done * 100).checked_div(all).map(|share| format!("{share:3} %")).unwrap_or_default();
        eprint!("\r\x1b[K{} {share}", self.stage.borrow());
        let _ = std::io::stderr().flush(); // a terminal that is gone needs no progress
    }

    /// Leaves the terminal as it was.
    fn end(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// CPU time of this thread so far: what others do on the same core is not in it.
pub fn cpu_time() -> Duration {
    // The clock exists on every Linux since 2.6.12; without it every figure would be 0, and be seen to be.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The median; of an even number the mean of the two in the middle; 0 of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Worker to floor, of rounds in which they began by turns: the median over the pairs of rounds that follow each
/// other. Who begins finds in the caches what it left there itself, and the other one does not: by single rounds
/// there would be two ratios, far apart, and the median one of them, or the middle.
fn paired_ratio(rounds: &[(f64, f64)]) -> f64 {
    let pairs = rounds.windows(rounds.len().clamp(1, 2));
    median(pairs.map(|pair| {
        let (worker, floor) =
            pair.iter().fold((0.0, 0.0), |sums, round| (sums.0 + round.0, sums.1 + round.1));
        worker / floor
    }))
}

/// Nanoseconds of each of `count` things that took `time`; 0 if there was none.
fn each(time: Duration, count: usize) -> f64 {
    if count == 0 { 0.0 } else { time.as_nanos() as f64 / count as f64 }
}

/// A count that is not what it must be means that something else was measured than is said.
fn must_equal(what: &str, found: u64, expected: u64) -> Result<(), BenchError> {
    if found == expected {
        return Ok(());
    }
    Err(BenchError(format!("{what}: {found}, but {expected} were prepared; nothing can be said")))
}

/// `xdp-server bench`.
pub fn run(settings: &Settings) -> ExitCode {
    let progress = Progress::on_terminal();
    let result = measure(settings, &progress);
    progress.end();
    match result {
        Ok(report) => {
            let text = if settings.json { json(&report) } else { report.text() };
            // A closed pipe (`bench | head`) is no reason to fail.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn json(report: &Report) -> String {
    let mut text = serde_json::to_string(report).unwrap_or_default(); // numbers and names: nothing can fail
    text.push('\n');
    text
}

fn measure(settings: &Settings, progress: &Progress) -> Result<Report, BenchError> {
    let wanted = |case| settings.only.is_none_or(|only| only == case);
    if let Some(most) = settings.connections.iter().max() {
        check_memory(*most)?;
    }
    let identities = rig::Identities::new()?;
    let mut report = Report::default();
    for connections in settings.connections.iter().copied() {
        if wanted(Case::Message) || wanted(Case::Stages) {
            let rounds = message::rounds(connections, settings);
            let mut stages = match wanted(Case::Stages) {
                true => Some(Stages::new(&identities, connections, rounds, progress)?),
                false => None,
            };
            let mut between = || stages.iter_mut().for_each(Stages::round);
            let whole = message::measure(&identities, connections, settings, progress, &mut between)?;
            if let Some(stages) = stages {
                report.stages.push(stages.cost(&whole)?);
            }
            report.messages.push(whole);
        }
        if wanted(Case::Broadcast) {
            report.broadcasts.push(broadcast::measure(&identities, connections, settings, progress)?);
        }
        if wanted(Case::Memory) {
            report.memory.push(memory::measure(&identities, connections, progress)?);
        }
    }
    if wanted(Case::Handshake) {
        report.handshakes.extend(handshake::measure(&identities, settings, progress)?);
    }
    Ok(report)
}

/// Sees to it that the kernel does not have to end the process for its hunger.
fn check_memory(connections: u32) -> Result<(), BenchError> {
    /// Three servers' connections and the clients of one of them, packets prepared included.
    const EACH: u64 = 160 * 1024;
    let file = "/proc/meminfo";
    let text = std::fs::read_to_string(file).map_err(|e| BenchError(format!("{file}: {e}")))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let Some(available) = kilobytes.map(|kilobytes| kilobytes * 1024) else { return Ok(()) };
    let needed = u64::from(connections) * EACH;
    if needed <= available {
        return Ok(());
    }
    Err(BenchError(format!(
        "{connections} connections need {} MiB of memory, but {} MiB are available; try --connections {}",
        needed >> 20,
        available >> 20,
        available / EACH / 2,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Settings {
        Settings {
            connections: vec![5],
            rounds: 2,
            rate: 1_000_000,
            round: Some(64),
            only: None,
            json: false,
        }
    }

    /// Every measurement checks its counts itself: each prepared packet a message, each pixel on the canvas,
    /// each subscriber served, each handshake of its kind.
    #[test]
    fn all_cases_run_and_their_counts_add_up() {
        let report = measure(&tiny(), &Progress::default()).unwrap();
        let message = &report.messages[0];
        assert_eq!((message.connections, message.messages), (5, 128));
        assert!(message.worker_ns > 0.0 && message.floor_ns > 0.0 && message.ratio > 0.0);
        // One for eight packets at most, but for what each of five connections had left over; and one for
        // each of them at least.
        let acks = message.acks_per_message * 128.0;
        assert!((5.0..=21.0).contains(&acks), "{acks} acknowledgements of 128 messages");
        assert!(report.stages[0].quic_ns > 0.0);
        let broadcast = &report.broadcasts[0];
        assert!(broadcast.packets >= 1.0 && broadcast.bytes > 300, "{broadcast:?}");
        let [full, resumed] = &report.handshakes[..] else { panic!("{:?}", report.handshakes) };
        assert!(!full.resumed && resumed.resumed && full.tls_us > 0.0);
        assert_eq!(report.memory[0].connections, 5);

        let text = report.text();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let parsed: serde_json::Value = serde_json::from_str(&json(&report)).unwrap();
        assert_eq!(parsed["messages"][0]["messages"], 128);
    }

    #[test]
    fn a_round_that_is_left_out_is_noticed() {
        let identities = rig::Identities::new().unwrap();
        let new =
            || message::Messages::new(&identities, 3, (2, 10), 1_000_000, &Progress::default()).unwrap();
        let mut messages = new();
        messages.worker();
        messages.floor();
        assert!(messages.check().is_err_and(|e| e.to_string().contains("nothing can be said")));
        let mut messages = new();
        for _ in 0..2 {
            messages.worker();
            messages.floor();
        }
        messages.check().unwrap();
    }

    #[test]
    fn more_connections_than_memory_are_refused() {
        assert!(check_memory(1).is_ok());
        assert!(check_memory(u32::MAX).is_err_and(|e| e.to_string().contains("try --connections")));
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median([].into_iter()), 0.0);
    }

    #[test]
    fn whoever_begins_a_round_is_the_other_in_the_next() {
        // Twice as fast for who begins.
        assert_eq!(paired_ratio(&[(1.0, 2.0), (2.0, 1.0), (1.0, 2.0)]), 1.0);
        assert_eq!(paired_ratio(&[(3.0, 2.0)]), 1.5, "a single round is all there is");
        assert_eq!(paired_ratio(&[]), 0.0);
    }
}
