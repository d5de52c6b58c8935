//! The flags of `loadgen run`, as typed.

use std::path::PathBuf;

use crate::rss::AlignArgs;
use crate::scenario::Scenario;

/// The end of `loadgen run --help`.
const AFTER_HELP: &str = "\
The server's certificate is NOT verified against any authority: this is a test tool, and test servers \
sign their own. The handshake's signatures are checked all the same; --cert-sha256 pins one certificate.

A run has a ramp, in which clients come up, a warm-up, the measured window, and a drain. Only what was due \
in the window counts. Ctrl-C ends the window early but cleanly: painting stops, --verify verifies, the \
report is printed. A second Ctrl-C quits at once, with exit code 130. `loadgen --help` lists all exit codes.";

/// Flags; what a scenario decides is absent unless given.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct RunArgs {
    /// What the clients do
    #[arg(value_enum, default_value_t)]
    pub scenario: Scenario,

    /// The server: https://HOST[:PORT]; HOST is a name, an IPv4 address or an [IPv6 address], PORT is 4433
    /// if not given
    #[arg(long, value_name = "URL")]
    pub target: String,

    /// Connections to make, each a client; one more asks for the server's figures [default: 1000; handshake:
    /// 100]
    #[arg(long, value_name = "N")]
    pub clients: Option<usize>,

    /// Name of this process in its output, to tell several apart
    #[arg(long, value_name = "NAME", default_value = "loadgen")]
    pub id: String,

    /// Each client waits a random time up to this before it connects, so that handshakes spread
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub max_conn_jitter: u64,

    /// Time between the last client's coming up and the measured window
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub warmup: f64,

    /// Length of the measured window; 0: until Ctrl-C [default: 0; verify: 10; others: 30]
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<f64>,

    /// Write loadgen-<id>.json, the result, and timeline-<id>.jsonl, a line a second, into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Clients wait for the answer to an action before the next, and times count from when it was begun.
    /// Hides stalls of the server: for comparison only. All paints are PAINT frames then
    #[arg(long, conflicts_with = "frame_share")]
    pub closed_loop: bool,

    /// Clients that paint, the first ones [default: all; handshake, idle: 0; fanout: 1 %; mixed: 50 %]
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub painters: Option<usize>,

    /// Shortest time between two paints of a client [default: 20; mixed: 500]
    #[arg(long, value_name = "MS", help_heading = "Load")]
    pub min_pixel_wait: Option<u64>,

    /// Longest time between two paints of a client; each wait is random between the two [default: 50;
    /// mixed: 1500]
    #[arg(long, value_name = "MS", help_heading = "Load")]
    pub max_pixel_wait: Option<u64>,

    /// Share of paints sent as acknowledged PAINT frames on the control stream instead of datagrams
    /// [default: 5 with --verify; mixed: 10; else 0]
    #[arg(long, value_name = "PERCENT", help_heading = "Load")]
    pub frame_share: Option<f64>,

    /// Clients that also mirror the canvas, and measure the time from paint to diff [default: 8 with
    /// --verify, else 1]
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub watchers: Option<usize>,

    /// Clients that receive all diffs, but keep no canvas, which costs less than a watcher [default: 0;
    /// fanout: all but the watchers; mixed: 20 %]
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub viewers: Option<usize>,

    /// Clients that connect, say HELLO, close and come again, the last ones [default: 0; handshake: all but
    /// the watchers; mixed: 5 %]
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub newcomers: Option<usize>,

    /// Handshakes a second by all newcomers together [default: handshake: 200; else 10]
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub rate: Option<f64>,

    /// Once all clients have connected, each UDP socket is replaced by one of another source port every so
    /// often, as if a NAT had rebound it. The connections must survive that [default: never]
    #[arg(long, value_name = "SECONDS", conflicts_with = "align_queues", help_heading = "Load")]
    pub rebind: Option<f64>,

    /// Seed of all that is random, to repeat a run's choices [default: another each time]
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub seed: Option<u64>,

    /// Processes to share the clients among, each pinned to its share of the CPUs; one report for all
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Scale")]
    pub processes: usize,

    /// Threads of each process, each a runtime of its own with its share of sockets and clients [default:
    /// the CPUs it may run on]
    #[arg(long, value_name = "N", help_heading = "Scale")]
    pub threads: Option<usize>,

    /// UDP sockets in total, and so source ports; clients are dealt out over them. A NIC deals its queues
    /// by hash of ports, so few sockets load few queues [default: one for each 250 clients, but at least
    /// 16]
    #[arg(long, value_name = "N", help_heading = "Scale")]
    pub num_endpoints: Option<usize>,

    /// At the end, prove that every watcher's canvas equals a fresh snapshot to the byte, and that every
    /// pixel painted with PAINT frames was acknowledged and, where nobody painted over it, is there. Nobody
    /// else may paint meanwhile
    #[arg(long, help_heading = "Proof")]
    pub verify: bool,

    /// With --verify: write the snapshot that the canvases were equal to into this file, one byte a pixel,
    /// row by row
    #[arg(long, value_name = "FILE", help_heading = "Proof")]
    pub dump: Option<PathBuf>,

    /// Share of the connections that may fail or be lost before the run counts as failed
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, help_heading = "Proof")]
    pub max_failed: f64,

    /// Time for a connection to come up, handshake and WELCOME, before it counts as failed
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, help_heading = "Connection")]
    pub connect_timeout: f64,

    /// Accept only the server certificate with this SHA-256 (64 hex digits, colons allowed)
    #[arg(long, value_name = "HEX", help_heading = "Connection")]
    pub cert_sha256: Option<String>,

    /// Token to present in HELLO, where the server wants one; better given by the environment, where other
    /// users of the machine do not see it
    #[arg(
        long,
        value_name = "TOKEN",
        env = "LOADGEN_TOKEN",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true,
        help_heading = "Connection"
    )]
    pub token: String,

    /// Print one JSON object, the last line on stdout, instead of the summary table
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// No progress on stderr
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,

    /// Which source ports, and so which of the server's queues.
    #[command(flatten)]
    pub align: AlignArgs,
}
