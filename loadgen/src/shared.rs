//! What the coordinator and all clients of a run share: settings, statistics, and the signals between them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};

use crate::cli::Settings;
use crate::endpoint::Configs;
use crate::host::Footprint;
use crate::session::CanvasShape;
use crate::stats::Stats;
use crate::verify::{Round, Verdict};
use crate::witness::Witness;

/// What clients are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connect and paint.
    Load,
    /// Paint no more; receive on.
    Quiet,
    /// Close the connection and end.
    Close,
}

/// One run's common state.
#[derive(Debug)]
pub struct Shared {
    /// The command line.
    pub settings: Settings,
    /// The server's address, of several the one that answered.
    pub server: SocketAddr,
    /// TLS and transport configurations.
    pub configs: Configs,
    /// The canvas, as the first WELCOME described it.
    pub shape: CanvasShape,
    /// Counters and histograms.
    pub stats: Stats,
    /// What the run takes of this machine.
    pub footprint: Footprint,
    /// Pixels to look for in the end, with `--verify`.
    pub witness: Option<Witness>,
    /// What to do.
    pub phase: watch::Receiver<Phase>,
    /// For watchers: the snapshot to compare with; none before the first round.
    pub round: watch::Receiver<Option<Arc<Round>>>,
    /// Watchers' answers to rounds.
    pub verdicts: mpsc::UnboundedSender<Verdict>,
    /// Clients of which it is not yet known whether they come up.
    ramping: AtomicU64,
    fault: Mutex<Option<String>>,
}

/// The coordinator's ends of the signals in [`Shared`].
#[derive(Debug)]
pub struct Signals {
    /// Tells all clients what to do.
    pub phase: watch::Sender<Phase>,
    /// Tells watchers to compare.
    pub round: watch::Sender<Option<Arc<Round>>>,
    /// Hears what they found.
    pub verdicts: mpsc::UnboundedReceiver<Verdict>,
}

impl Shared {
    /// The state at the start of a run.
    pub fn new(
        settings: Settings,
        server: SocketAddr,
        configs: Configs,
        shape: CanvasShape,
    ) -> (Self, Signals) {
        let (phase_sender, phase) = watch::channel(Phase::Load);
        let (round_sender, round) = watch::channel(None);
        let (verdicts, verdicts_receiver) = mpsc::unbounded_channel();
        let witness = if settings.verify && settings.alone { Witness::new(shape.geometry) } else { None };
        let stats = Stats::new(settings.threads);
        let ramping = AtomicU64::new(settings.clients as u64);
        let fault = Mutex::new(None);
        let signals = Signals { phase: phase_sender, round: round_sender, verdicts: verdicts_receiver };
        (
            Self {
                settings,
                server,
                configs,
                shape,
                stats,
                footprint: Footprint::default(),
                witness,
                phase,
                round,
                verdicts,
                ramping,
                fault,
            },
            signals,
        )
    }

    /// A client came up, failed, or was told to end before it started.
    pub fn decided(&self) {
        self.ramping.fetch_sub(1, Relaxed);
    }

    /// Clients still to come up.
    pub fn ramping(&self) -> u64 {
        self.ramping.load(Relaxed)
    }

    /// Notes that the server answered wrongly: reason enough for `--verify` to fail. The first counts.
    pub fn note_fault(&self, text: impl FnOnce() -> String) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(text);
    }

    /// The first wrong answer, if there was any.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
