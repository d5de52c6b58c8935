//! What this server costs on this machine, measured in memory beside QUIC alone: `xdp-server bench`, and the
//! library behind `cargo bench`.
//!
//! Theory of operation
//! -------------------
//! A whole [`crate::worker::Worker`], with a real canvas and its master, runs over [`frames::MemoryIo`]: packet
//! I/O from and to memory. Real QUIC clients shake hands with it and prepare encrypted packets ahead; only
//! then is anything measured, so that no client's work is ever in a figure. Beside it, in the same run and
//! turn by turn, connections of quiche alone with the same settings receive packets prepared in the same way:
//! the *floor*. Absolute times depend on the machine and on what else runs on it; the ratio to the floor
//! hardly does, and is what counts. Times are CPU time of the one thread that does all.
//!
//! - `frames`: prepared frames, and packet I/O from memory
//! - `clients`: QUIC clients
//! - `rig`: the worker with all around it; the floor
//! - `message`: what a message costs
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

pub mod clients;
pub mod frames;
pub mod message;
pub mod rig;

use nix::time::{ClockId, clock_gettime};
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
    /// A message: one pixel in one packet.
    Message,
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
        let share = (done * 100).checked_div(all).map_or_else(String::new, |share| format!("{share:3} %"));
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
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(settings: &Settings, progress: &Progress) -> Result<(), BenchError> {
    let identities = rig::Identities::new()?;
    println!("conns   messages  worker  sending acks/msg  floor  floor ack  master  ratio  receive ratio");
    for connections in &settings.connections {
        let cost = message::measure(&identities, *connections, settings, progress)?;
        progress.end();
        println!(
            "{:6} {:9} {:7.0} {:8.0} {:8.3} {:6.0} {:10.0} {:7.0} {:6.2} {:14.2}",
            cost.connections,
            cost.messages,
            cost.worker_ns,
            cost.sending_ns,
            cost.acks_per_message,
            cost.floor_ns,
            cost.floor_ack_ns,
            cost.master_ns,
            cost.ratio,
            cost.receive_ratio
        );
    }
    Ok(())
}
