//! Flags, checked against each other, with the scenario's defaults filled in.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};

use super::{Cli, Command, RunArgs};
use crate::endpoint::Role;
use crate::rss::Alignment;
use crate::scenario::{Defaults, Scenario, VERIFY_FRAME_SHARE, VERIFY_WATCHERS};
use crate::target::{Target, TargetError};

/// Clients for each UDP socket where `--num-endpoints` names no number. 250 makes 60 source ports of the
/// guide's 15,000 clients, enough for an RSS hash to fill 47 queues; fewer sockets load the queues
/// unevenly, more cost file descriptors and receive buffers, and quinn a task each.
const CLIENTS_PER_ENDPOINT: usize = 250;
/// Sockets that even a small run has (never more than clients): two queues, say, then get about half of
/// them each.
const MIN_ENDPOINTS: usize = 16;
/// UDP ports that one address has.
const MAX_ENDPOINTS: usize = 60_000;
/// Handshakes a second where newcomers are asked for of a scenario that has none.
const DEFAULT_RATE: f64 = 10.0;
/// Bytes of token that a HELLO has room for.
const MAX_TOKEN: usize = 255;

/// Why a command line that parses is wrong all the same.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum UsageError {
    /// See [`TargetError`].
    #[error("--target {0:?}: {1}")]
    Target(String, TargetError),
    /// A count of zero, or too large a one.
    #[error("{flag} must be {range}, not {value}")]
    Range {
        /// The flag.
        flag: &'static str,
        /// What it may be, in words.
        range: &'static str,
        /// What it is.
        value: String,
    },
    /// A shortest wait longer than the longest.
    #[error("--min-pixel-wait {min} is more than --max-pixel-wait {max}; swap them, or raise the second")]
    Waits {
        /// `--min-pixel-wait`.
        min: u64,
        /// `--max-pixel-wait`.
        max: u64,
    },
    /// Roles for more clients than there are.
    #[error(
        "--watchers {watchers}, --viewers {viewers} and --newcomers {newcomers} are together more than \
         --clients {clients}"
    )]
    Roles {
        /// `--watchers`.
        watchers: usize,
        /// `--viewers`.
        viewers: usize,
        /// `--newcomers`.
        newcomers: usize,
        /// `--clients`.
        clients: usize,
    },
    /// A name that makes no file name.
    #[error(
        "--id {0:?} cannot be part of a file's name, which --out needs; use letters, digits, '-', '_' and '.'"
    )]
    Id(String),
    /// Two flags that do not go together.
    #[error("{0} and {1} do not go together: {2}")]
    Conflict(&'static str, &'static str, &'static str),
    /// Not 64 hexadecimal digits.
    #[error(
        "--cert-sha256 {0:?} is no SHA-256: give 64 hex digits, as the server prints them at start, or as \
         `openssl x509 -in cert.pem -noout -fingerprint -sha256` does"
    )]
    Pin(String),
    /// See [`crate::rss::AlignError`].
    #[error("{0}")]
    Align(String),
}

/// A checked command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// What kind of load it is.
    pub scenario: Scenario,
    /// The server.
    pub target: Target,
    /// Connections to make; at least 1.
    pub clients: usize,
    /// Name of this process in its output.
    pub id: String,
    /// Upper bound of each client's random wait before it connects.
    pub max_conn_jitter: Duration,
    /// Time between ramp and window.
    pub warmup: Duration,
    /// Length of the window; `None`: until told to stop.
    pub duration: Option<Duration>,
    /// Folder for the result files.
    pub out: Option<PathBuf>,
    /// Whether clients wait for answers; all paints are PAINT frames then.
    pub closed_loop: bool,
    /// Clients that mirror the canvas, the first ones.
    pub watchers: usize,
    /// Clients that receive diffs without a mirror, those after the watchers.
    pub viewers: usize,
    /// Clients that paint, the first ones; newcomers never do.
    pub painters: usize,
    /// Clients that come and go, the last ones.
    pub newcomers: usize,
    /// Handshakes a second by all newcomers together; more than 0 if there are any.
    pub rate: f64,
    /// Lower bound of the interval between two paints of a client.
    pub min_pixel_wait: Duration,
    /// Upper bound of it; not zero.
    pub max_pixel_wait: Duration,
    /// Share of paints that are PAINT frames, 0 to 1.
    pub frame_share: f64,
    /// Processes to share the clients among; at most `clients`.
    pub processes: usize,
    /// Threads, each with its own runtime; at least 1, at most `clients`.
    pub threads: usize,
    /// UDP sockets in total; at least one for each thread. With `align` up to a few more.
    pub endpoints: usize,
    /// How to deal out connections to the server's queues; `None`: as chance has it.
    pub align: Option<Alignment>,
    /// Whether to verify at the end.
    pub verify: bool,
    /// With `verify`: whether nobody else paints, so that pixels' colours can be certain.
    pub alone: bool,
    /// Where to write the verified canvas.
    pub dump: Option<PathBuf>,
    /// Time after which each UDP socket is replaced by one of another source port; `None`: never.
    pub rebind: Option<Duration>,
    /// Share of connections that may fail, 0 to 1.
    pub max_failed: f64,
    /// Time for a connection to come up.
    pub connect_timeout: Duration,
    /// SHA-256 of the only certificate to accept.
    pub cert_sha256: Option<[u8; 32]>,
    /// Token for HELLO; empty for none.
    pub token: String,
    /// Seed of all that is random.
    pub seed: u64,
    /// One JSON object instead of a table.
    pub json: bool,
    /// No progress.
    pub quiet: bool,
    /// With `verify`: how long no diff must come before the canvas counts as at rest. 4 s is three rounds of
    /// VERSIONS, the least in which a client must learn that it missed a last diff, and one round of repairs.
    pub rest: Duration,
}

impl Settings {
    /// The defaults of the command line for `clients` clients of `target`.
    ///
    /// # Panics
    /// If `--clients` would refuse that number.
    pub fn new(target: Target, clients: usize) -> Self {
        let words = ["loadgen", "run", "--target", &target.to_string(), "--clients", &clients.to_string()];
        let Ok(Cli { command: Command::Run(args) }) = Cli::try_parse_from(words) else {
            unreachable!("flags that the parser knows");
        };
        args.settings().expect("a checked target and the defaults are valid")
    }
}

impl Settings {
    /// What client `index` is to receive.
    pub fn role(&self, index: usize) -> Role {
        match index {
            _ if index < self.watchers => Role::Watcher,
            _ if index < self.watchers + self.viewers => Role::Viewer,
            _ => Role::Painter,
        }
    }
}

/// How many clients have which role.
struct Roles {
    watchers: usize,
    viewers: usize,
    newcomers: usize,
    painters: usize,
}

impl RunArgs {
    /// Checks the flags against each other and fills in the defaults that depend on others.
    ///
    /// # Errors
    /// The first wrong flag.
    pub fn settings(self) -> Result<Settings, UsageError> {
        let defaults = self.scenario.defaults();
        let target = self.target.parse().map_err(|error| UsageError::Target(self.target.clone(), error))?;
        let (min, max) = defaults.pixel_wait;
        let (min, max) = (self.min_pixel_wait.unwrap_or(min), self.max_pixel_wait.unwrap_or(max));
        if min > max {
            return Err(UsageError::Waits { min, max });
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // 15,000 connections in one process is the aim; more than a million is a slip of the finger.
        let clients = self.clients.unwrap_or(defaults.clients);
        let clients = within("--clients", clients, 1, 1_000_000, "from 1 to 1000000")?;
        let processes = within("--processes", self.processes, 1, 1024, "from 1 to 1024")?.min(clients);
        let threads = self.threads.unwrap_or(cores.div_ceil(processes));
        let threads = within("--threads", threads, 1, 1024, "from 1 to 1024")?.min(clients);
        let endpoints =
            self.num_endpoints.unwrap_or((clients / CLIENTS_PER_ENDPOINT).max(MIN_ENDPOINTS).min(clients));
        let endpoints = within("--num-endpoints", endpoints, 1, MAX_ENDPOINTS, "from 1 to 60000")?
            .max((threads * processes).min(clients));
        let verify = self.verify || defaults.verify;
        let roles = self.roles(&defaults, clients, verify, processes)?;
        let rate = match (self.rate, roles.newcomers) {
            (Some(_), 0) => {
                return Err(UsageError::Conflict("--rate", "no --newcomers", "nobody would shake hands"));
            }
            (Some(rate), _) => within("--rate", rate, 0.001, 1e6, "from 0.001 to 1000000")?,
            (None, _) if defaults.rate > 0.0 => defaults.rate,
            (None, _) => DEFAULT_RATE,
        };
        let verified_share = if verify { VERIFY_FRAME_SHARE } else { defaults.frame_share };
        let frame_share = self.frame_share.unwrap_or(if self.closed_loop { 100.0 } else { verified_share });
        if self.dump.is_some() && !verify {
            return Err(UsageError::Conflict("--dump", "no --verify", "there is no verified canvas then"));
        }
        if self.dump.is_some() && processes > 1 {
            return Err(UsageError::Conflict("--dump", "--processes", "each would write the file"));
        }
        if self.out.is_some() && !file_name(&self.id) {
            return Err(UsageError::Id(self.id));
        }
        within("--token", self.token.len(), 0, MAX_TOKEN, "of at most 255 bytes")?;
        Ok(Settings {
            scenario: self.scenario,
            target,
            clients,
            id: self.id,
            max_conn_jitter: Duration::from_millis(within(
                "--max-conn-jitter",
                self.max_conn_jitter,
                0,
                86_400_000,
                "at most a day (86400000)",
            )?),
            warmup: seconds("--warmup", self.warmup, 0.0)?,
            duration: match seconds("--duration", self.duration.unwrap_or(defaults.duration), 0.0)? {
                Duration::ZERO => None,
                duration => Some(duration),
            },
            out: self.out,
            closed_loop: self.closed_loop,
            watchers: roles.watchers,
            viewers: roles.viewers,
            painters: roles.painters,
            newcomers: roles.newcomers,
            rate,
            min_pixel_wait: Duration::from_millis(min),
            max_pixel_wait: Duration::from_millis(within(
                "--max-pixel-wait",
                max,
                1,
                86_400_000,
                "from 1 ms to a day (86400000)",
            )?),
            frame_share: percent("--frame-share", frame_share)?,
            processes,
            threads,
            endpoints,
            align: Alignment::from_args(&self.align).map_err(|error| UsageError::Align(error.to_string()))?,
            verify,
            alone: processes == 1,
            dump: self.dump,
            rebind: self.rebind.map(|period| seconds("--rebind", period, 0.1)).transpose()?,
            max_failed: percent("--max-failed", self.max_failed)?,
            connect_timeout: seconds("--connect-timeout", self.connect_timeout, 0.001)?,
            cert_sha256: self.cert_sha256.map(|hex| pin(&hex).ok_or(UsageError::Pin(hex))).transpose()?,
            token: self.token,
            seed: self.seed.unwrap_or_else(rand::random),
            json: self.json,
            quiet: self.quiet,
            rest: Duration::from_secs(4),
        })
    }

    fn roles(
        &self,
        defaults: &Defaults,
        clients: usize,
        verify: bool,
        processes: usize,
    ) -> Result<Roles, UsageError> {
        let watchers = match self.watchers {
            // Each process verifies what it sees.
            None if verify => VERIFY_WATCHERS.max(processes).min(clients),
            None => defaults.watchers.of(clients, clients),
            Some(n) if verify => {
                within("--watchers", n, processes, clients, "from --processes to --clients with --verify")?
            }
            Some(n) => within("--watchers", n, 0, clients, "from 0 to --clients")?,
        };
        let free = clients - watchers;
        let given = self.newcomers.unwrap_or(0).saturating_add(self.viewers.unwrap_or(0));
        let wrong = |viewers, newcomers| UsageError::Roles { watchers, viewers, newcomers, clients };
        if given > free {
            return Err(wrong(self.viewers.unwrap_or(0), self.newcomers.unwrap_or(0)));
        }
        // What is not given gets what the given ones leave.
        let newcomers = self
            .newcomers
            .unwrap_or_else(|| defaults.newcomers.of(clients, free - self.viewers.unwrap_or(0)));
        let viewers = self.viewers.unwrap_or_else(|| defaults.viewers.of(clients, free - newcomers));
        let staying = clients - newcomers;
        let painters = match self.painters {
            Some(n) => within("--painters", n, 0, staying, "at most --clients less --newcomers")?,
            None => defaults.painters.of(clients, staying),
        };
        Ok(Roles { watchers, viewers, newcomers, painters })
    }
}

/// Whether a name can stand in a file's name on any system.
fn file_name(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 100
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn within<T: PartialOrd + ToString>(
    flag: &'static str,
    value: T,
    min: T,
    max: T,
    range: &'static str,
) -> Result<T, UsageError> {
    if value >= min && value <= max {
        Ok(value)
    } else {
        Err(UsageError::Range { flag, range, value: value.to_string() })
    }
}

/// A share from a percentage.
fn percent(flag: &'static str, value: f64) -> Result<f64, UsageError> {
    Ok(within(flag, value, 0.0, 100.0, "a percentage from 0 to 100")? / 100.0)
}

/// A time of at most a year, so that sums with it cannot overflow.
fn seconds(flag: &'static str, value: f64, min: f64) -> Result<Duration, UsageError> {
    within(flag, value, min, 31_536_000.0, "a positive number of seconds").map(Duration::from_secs_f64)
}

fn pin(hex: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        hex.chars().filter(|&c| c != ':').map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}
