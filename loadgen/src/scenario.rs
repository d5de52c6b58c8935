//! Scenarios: what a crowd of clients does, as a table of defaults for the flags.
//!
//! There is one kind of run. What makes it a flood of paints or a storm of handshakes is only how many of
//! its clients watch, paint, or come and go, and how fast; so a scenario is a row of this table, and every
//! flag overrides its field.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A row of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// Every client paints a pixel each 20 to 50 ms; one watches
    #[default]
    Paint,
    /// Clients connect, say HELLO, close, and come again, 200 a second
    Handshake,
    /// Connections are held, and nothing is sent: what does a connection cost?
    Idle,
    /// All clients receive all diffs, one in a hundred paints
    Fanout,
    /// As paint, with PAINT frames among the datagrams, and the proof at the end that no pixel was lost
    Verify,
    /// A crowd: half paint once a second, a fifth watch, a twentieth come and go, the others are there
    Mixed,
}

/// A number of clients out of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many, whatever the number of clients.
    Exactly(usize),
    /// A percentage, but at least one.
    Percent(usize),
    /// Those that have no other role.
    Rest,
}

/// What a scenario's flags are where they are not given.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// `--clients`.
    pub clients: usize,
    /// `--watchers`; never `Rest`.
    pub watchers: Amount,
    /// `--viewers`.
    pub viewers: Amount,
    /// `--newcomers`.
    pub newcomers: Amount,
    /// `--painters`; never `Rest`.
    pub painters: Amount,
    /// `--rate`: handshakes a second by all newcomers.
    pub rate: f64,
    /// `--min-pixel-wait` and `--max-pixel-wait`, in milliseconds.
    pub pixel_wait: (u64, u64),
    /// `--frame-share`, in percent.
    pub frame_share: f64,
    /// `--verify`.
    pub verify: bool,
    /// `--duration`, in seconds; 0 is until Ctrl-C.
    pub duration: f64,
}

/// The guide's load, and what the other rows differ from. One watcher times the paints and the PINGs.
const PAINT: Defaults = Defaults {
    clients: 1000,
    watchers: Amount::Exactly(1),
    viewers: Amount::Exactly(0),
    newcomers: Amount::Exactly(0),
    painters: Amount::Percent(100),
    rate: 0.0,
    pixel_wait: (20, 50),
    frame_share: 0.0,
    verify: false,
    duration: 0.0,
};

/// Percent of paints on the control stream where something is verified: enough to prove thousands of pixels
/// in seconds, few enough to leave the load what the guide's is.
pub const VERIFY_FRAME_SHARE: f64 = 5.0;
/// Watchers where something is verified. Each holds a copy of the canvas and decodes every diff; one would
/// do, a few show that all see the same.
pub const VERIFY_WATCHERS: usize = 8;

impl Scenario {
    /// The scenario's row.
    pub fn defaults(self) -> Defaults {
        match self {
            Self::Paint => PAINT,
            Self::Handshake => Defaults {
                clients: 100,
                painters: Amount::Exactly(0),
                newcomers: Amount::Rest,
                rate: 200.0,
                duration: 30.0,
                ..PAINT
            },
            Self::Idle => Defaults { painters: Amount::Exactly(0), duration: 30.0, ..PAINT },
            Self::Fanout => {
                Defaults { viewers: Amount::Rest, painters: Amount::Percent(1), duration: 30.0, ..PAINT }
            }
            Self::Verify => Defaults {
                watchers: Amount::Exactly(VERIFY_WATCHERS),
                frame_share: VERIFY_FRAME_SHARE,
                verify: true,
                duration: 10.0,
                ..PAINT
            },
            Self::Mixed => Defaults {
                viewers: Amount::Percent(20),
                painters: Amount::Percent(50),
                newcomers: Amount::Percent(5),
                rate: 10.0,
                pixel_wait: (500, 1500),
                frame_share: 10.0,
                duration: 30.0,
                ..PAINT
            },
        }
    }

    /// Its name, as it is typed and as it is in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Paint => "paint",
            Self::Handshake => "handshake",
            Self::Idle => "idle",
            Self::Fanout => "fanout",
            Self::Verify => "verify",
            Self::Mixed => "mixed",
        }
    }
}

impl Amount {
    /// The number, of `clients` clients of which `free` have no other role yet.
    pub fn of(self, clients: usize, free: usize) -> usize {
        let wanted = match self {
            Self::Exactly(n) => n,
            Self::Percent(percent) => (clients * percent / 100).max(1),
            Self::Rest => free,
        };
        wanted.min(free)
    }
}
