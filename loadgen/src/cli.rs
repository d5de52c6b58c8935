//! The command line: flags, their checks, and the settings that the rest of the program runs by.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::rss::{AlignArgs, Alignment};
use crate::target::{Target, TargetError};

/// Clients for each UDP socket where `--num-endpoints` names no number. 250 makes 60 source ports of the
/// guide's 15,000 clients, enough for an RSS hash to fill 47 queues; fewer sockets load the queues
/// unevenly, more cost file descriptors and receive buffers, and quinn a task each.
const CLIENTS_PER_ENDPOINT: usize = 250;
/// Sockets that even a small run has (never more than clients): two queues, say, then get about half of
/// them each.
const MIN_ENDPOINTS: usize = 16;
/// Watchers where `--verify` is asked for without `--watchers`. Each holds a copy of the canvas and decodes
/// every diff; one would do to verify, a few show that all see the same.
const VERIFY_WATCHERS: usize = 8;
/// Percent of paints on the control stream where `--verify` is asked for without `--frame-share`: enough to
/// prove thousands of pixels in seconds, few enough to leave the load what the guide's is.
const VERIFY_FRAME_SHARE: f64 = 5.0;
/// UDP ports that one address has.
const MAX_ENDPOINTS: usize = 60_000;

/// The end of `--help`.
const AFTER_HELP: &str = "\
The server's certificate is NOT verified against any authority: this is a test tool, and test servers sign \
their own. The handshake's signatures are checked all the same; --cert-sha256 pins one certificate.

Exit codes:
  0  the run went as asked
  1  the run failed: too many connections did (--max-failed), the server died, or --verify found a fault
  2  wrong usage
  3  target unreachable: nobody connected

Ctrl-C ends a run early but cleanly: painting stops, --verify verifies, the report is printed. A second \
Ctrl-C quits at once, with exit code 130.";

/// Loads a canvas/1 server with clients that paint, and proves that every pixel arrived.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, max_term_width = 110, after_help = AFTER_HELP)]
pub struct Cli {
    /// The server: https://HOST[:PORT]; HOST is a name, an IPv4 address or an [IPv6 address], PORT is 4433
    /// if not given
    #[arg(long, value_name = "URL")]
    target: String,

    /// Connections to make, each a client that paints; one more asks for the server's figures
    #[arg(long, value_name = "N", default_value_t = 1000)]
    clients: usize,

    /// Name of this process in its output, to tell several apart
    #[arg(long, value_name = "NAME", default_value = "loadgen")]
    id: String,

    /// Each client waits a random time up to this before it connects, so that handshakes spread
    #[arg(long, value_name = "MS", default_value_t = 0)]
    max_conn_jitter: u64,

    /// Shortest time between two paints of a client
    #[arg(long, value_name = "MS", default_value_t = 20)]
    min_pixel_wait: u64,

    /// Longest time between two paints of a client; each wait is random between the two
    #[arg(long, value_name = "MS", default_value_t = 50)]
    max_pixel_wait: u64,

    /// UDP sockets in total, and so source ports; clients are dealt out over them. A NIC deals its queues
    /// by hash of ports, so few sockets load few queues [default: one for each 250 clients, but at least
    /// 16]
    #[arg(long, value_name = "N")]
    num_endpoints: Option<usize>,

    /// How long to paint, from when all clients have connected (or failed to); 0: until Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    duration: f64,

    /// At the end, prove that every watcher's canvas equals a fresh snapshot to the byte, and that every
    /// pixel painted with PAINT frames was acknowledged and, where nobody painted over it, is there. Nobody
    /// else may paint meanwhile
    #[arg(long)]
    verify: bool,

    /// With --verify: write the snapshot that the canvases were equal to into this file, one byte a pixel,
    /// row by row
    #[arg(long, value_name = "FILE", requires = "verify")]
    dump: Option<PathBuf>,

    /// Once all clients have connected, each UDP socket is replaced by one of another source port every so
    /// often, as if a NAT had rebound it. The connections must survive that [default: never]
    #[arg(long, value_name = "SECONDS", conflicts_with = "align_queues")]
    rebind: Option<f64>,

    /// Clients that also mirror the canvas, and measure the time from paint to diff [default: 8 with
    /// --verify, else 1]
    #[arg(long, value_name = "N")]
    watchers: Option<usize>,

    /// Share of paints sent as acknowledged PAINT frames on the control stream instead of datagrams
    /// [default: 5 with --verify, else 0]
    #[arg(long, value_name = "PERCENT")]
    frame_share: Option<f64>,

    /// Threads, each a runtime of its own with its share of sockets and clients [default: the cores it may
    /// run on]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Share of the connections that may fail or be lost before the run counts as failed
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    max_failed: f64,

    /// Time for a connection to come up, handshake and WELCOME, before it counts as failed
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    connect_timeout: f64,

    /// Accept only the server certificate with this SHA-256 (64 hex digits, colons allowed)
    #[arg(long, value_name = "HEX")]
    cert_sha256: Option<String>,

    /// Seed of all that is random, to repeat a run's choices [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Print one JSON object, the last line on stdout, instead of the summary table
    #[arg(long)]
    json: bool,

    /// No progress on stderr
    #[arg(long)]
    quiet: bool,

    #[command(flatten)]
    align: AlignArgs,
}

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
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server.
    pub target: Target,
    /// Connections to make; at least 1.
    pub clients: usize,
    /// Name of this process in its output.
    pub id: String,
    /// Upper bound of each client's random wait before it connects.
    pub max_conn_jitter: Duration,
    /// Lower bound of the interval between two paints of a client.
    pub min_pixel_wait: Duration,
    /// Upper bound of it; not zero.
    pub max_pixel_wait: Duration,
    /// UDP sockets in total; at least one for each thread.
    pub endpoints: usize,
    /// How long to paint after the ramp; `None`: until told to stop.
    pub duration: Option<Duration>,
    /// Whether to verify at the end.
    pub verify: bool,
    /// Where to write the verified canvas.
    pub dump: Option<PathBuf>,
    /// Time after which each UDP socket is replaced by one of another source port; `None`: never.
    pub rebind: Option<Duration>,
    /// Clients that mirror the canvas, the first ones.
    pub watchers: usize,
    /// Share of paints that are PAINT frames, 0 to 1.
    pub frame_share: f64,
    /// Threads, each with its own runtime; at least 1, at most `clients`.
    pub threads: usize,
    /// Share of connections that may fail, 0 to 1.
    pub max_failed: f64,
    /// Time for a connection to come up.
    pub connect_timeout: Duration,
    /// SHA-256 of the only certificate to accept.
    pub cert_sha256: Option<[u8; 32]>,
    /// Seed of all that is random.
    pub seed: u64,
    /// One JSON object instead of a table.
    pub json: bool,
    /// No progress.
    pub quiet: bool,
    /// How to deal out connections to the server's queues; `None`: as chance has it.
    pub align: Option<Alignment>,
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
        let cli = Cli::try_parse_from([
            "loadgen",
            "--target",
            &target.to_string(),
            "--clients",
            &clients.to_string(),
        ]);
        let cli = cli.expect("flags that the parser knows");
        cli.settings().expect("a checked target and the defaults are valid")
    }
}

impl Cli {
    /// Checks the flags against each other and fills in the defaults that depend on others.
    ///
    /// # Errors
    /// The first wrong flag.
    pub fn settings(self) -> Result<Settings, UsageError> {
        let target = self.target.parse().map_err(|error| UsageError::Target(self.target.clone(), error))?;
        if self.min_pixel_wait > self.max_pixel_wait {
            return Err(UsageError::Waits { min: self.min_pixel_wait, max: self.max_pixel_wait });
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // 15,000 connections in one process is the aim; more than a million is a slip of the finger.
        let clients = within("--clients", self.clients, 1, 1_000_000, "from 1 to 1000000")?;
        let threads =
            within("--threads", self.threads.unwrap_or(cores), 1, 1024, "from 1 to 1024")?.min(clients);
        let endpoints =
            self.num_endpoints.unwrap_or((clients / CLIENTS_PER_ENDPOINT).max(MIN_ENDPOINTS).min(clients));
        let endpoints =
            within("--num-endpoints", endpoints, 1, MAX_ENDPOINTS, "from 1 to 60000")?.max(threads);
        let watchers = match self.watchers {
            None => if self.verify { VERIFY_WATCHERS } else { 1 }.min(clients),
            Some(n) if self.verify => {
                within("--watchers", n, 1, clients, "from 1 to --clients with --verify")?
            }
            Some(n) => within("--watchers", n, 0, clients, "from 0 to --clients")?,
        };
        let frame_share = self.frame_share.unwrap_or(if self.verify { VERIFY_FRAME_SHARE } else { 0.0 });
        Ok(Settings {
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
            min_pixel_wait: Duration::from_millis(self.min_pixel_wait),
            max_pixel_wait: Duration::from_millis(within(
                "--max-pixel-wait",
                self.max_pixel_wait,
                1,
                86_400_000,
                "from 1 ms to a day (86400000)",
            )?),
            endpoints,
            duration: match seconds("--duration", self.duration, 0.0)? {
                Duration::ZERO => None,
                duration => Some(duration),
            },
            verify: self.verify,
            dump: self.dump,
            rebind: self.rebind.map(|period| seconds("--rebind", period, 0.1)).transpose()?,
            watchers,
            frame_share: percent("--frame-share", frame_share)?,
            threads,
            max_failed: percent("--max-failed", self.max_failed)?,
            connect_timeout: seconds("--connect-timeout", self.connect_timeout, 0.001)?,
            cert_sha256: self.cert_sha256.map(|hex| pin(&hex).ok_or(UsageError::Pin(hex))).transpose()?,
            seed: self.seed.unwrap_or_else(rand::random),
            json: self.json,
            quiet: self.quiet,
            align: Alignment::from_args(&self.align).map_err(|error| UsageError::Align(error.to_string()))?,
            rest: Duration::from_secs(4),
        })
    }
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn settings(flags: &str) -> Result<Settings, UsageError> {
        let words = "loadgen --target https://10.0.0.1".split(' ').chain(flags.split_whitespace());
        Cli::try_parse_from(words).expect("flags parse").settings()
    }

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_guides_command_line_works() {
        let s = settings(
            "--clients 15000 --id machine1-worker-1 --max-conn-jitter 60000 \
             --min-pixel-wait 20 --max-pixel-wait 50",
        )
        .unwrap();
        assert_eq!((s.clients, s.endpoints, s.watchers, s.frame_share), (15_000, 60, 1, 0.0));
        assert_eq!(s.max_conn_jitter, Duration::from_secs(60));
        assert_eq!(
            (s.min_pixel_wait, s.max_pixel_wait),
            (Duration::from_millis(20), Duration::from_millis(50))
        );
        assert_eq!(s.duration, None);
    }

    #[test]
    fn defaults_depend_on_other_flags() {
        let s = settings("--verify --duration 2.5").unwrap();
        assert_eq!((s.watchers, s.frame_share, s.endpoints), (8, 0.05, 16));
        assert_eq!(s.duration, Some(Duration::from_millis(2500)));
        let s = settings("--verify --clients 3").unwrap();
        assert_eq!((s.watchers, s.endpoints), (3, 3));
        assert_eq!((s.rebind, s.dump), (None, None));
        let s = settings("--verify --dump x --rebind 0.5").unwrap();
        assert_eq!((s.rebind, s.dump), (Some(Duration::from_millis(500)), Some("x".into())));
        let s = settings("--clients 100 --threads 7 --num-endpoints 2").unwrap();
        assert_eq!((s.threads, s.endpoints), (7, 7));
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        for (flags, flag) in [
            ("--clients 0", "--clients"),
            ("--threads 0", "--threads"),
            ("--num-endpoints 0", "--num-endpoints"),
            ("--clients 4 --watchers 5", "--watchers"),
            ("--verify --watchers 0", "--watchers"),
            ("--frame-share 101", "--frame-share"),
            ("--frame-share NaN", "--frame-share"),
            ("--max-failed inf", "--max-failed"),
            ("--min-pixel-wait 0 --max-pixel-wait 0", "--max-pixel-wait"),
            ("--min-pixel-wait 51", "--min-pixel-wait"),
            ("--duration inf", "--duration"),
            ("--connect-timeout 0", "--connect-timeout"),
            ("--rebind 0", "--rebind"),
            ("--cert-sha256 abc", "--cert-sha256"),
            ("--target ftp://x", "--target"),
        ] {
            let words = "loadgen --target https://10.0.0.1".split(' ');
            let words: Vec<_> = if flag == "--target" { vec!["loadgen"] } else { words.collect() };
            let cli = Cli::try_parse_from(words.into_iter().chain(flags.split_whitespace())).unwrap();
            let error = cli.settings().expect_err(flags).to_string();
            assert!(error.contains(flag), "{flags}: {error}");
        }
    }

    #[test]
    fn pins_may_have_colons() {
        let plain = "0123456789abcdef".repeat(4);
        let colons =
            plain.as_bytes().chunks(2).map(|b| str::from_utf8(b).unwrap().to_uppercase()).collect::<Vec<_>>();
        let expected = settings(&format!("--cert-sha256 {plain}")).unwrap().cert_sha256.unwrap();
        assert_eq!(expected[..3], [0x01, 0x23, 0x45]);
        let s = settings(&format!("--cert-sha256 {}", colons.join(":"))).unwrap();
        assert_eq!(s.cert_sha256, Some(expected));
    }
}
