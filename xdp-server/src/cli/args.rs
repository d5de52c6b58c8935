//! The command line as clap sees it: names, defaults, ranges, and the text of `--help`.
//!
//! This is the only list of settings there is. [`super::layers`] reads names and aliases from it, so that an
//! option that is added here is at once a flag, an environment variable and a key of the file.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Parser, ValueEnum};

use super::settings::{Backend, CertificateFiles, HugePages, Metrics, PollMode, Settings, Steering, XdpMode};
use super::values::{CpuList, cpu_list, interface, listen_address, metrics, socket_buffer, token};
use super::{CliError, MAX_CONNECTIONS_PER_WORKER, MAX_WORKERS};

const ABOUT: &str =
    "A shared pixel canvas over QUIC, on AF_XDP where the host can, on sockets where it cannot.";

const AFTER_HELP: &str = "\
Settings from elsewhere:
  Each option --some-name is also the environment variable XDP_SERVER_SOME_NAME
  (empty means unset) and the key some-name of the TOML file. A flag wins over the
  environment, the environment over the file, the file over the default.
  A file may look like this:

      iface = \"eth0\"
      queues = 47
      cpus = \"0-47\"
      socket-recv-buffer = \"64MiB\"

Examples:
  Sockets, one worker for each core but one:
      xdp-server
  AF_XDP on 47 queues, with 47 workers and the master on 48 cores:
      sudo xdp-server --iface eth0 --queues 47
  AF_XDP, or an error that says why not:
      sudo xdp-server --iface eth0 --backend xdp
  A small canvas on loopback:
      xdp-server --listen 127.0.0.1:4433 -w 1 --width 256 --height 256
  Ten seconds, and a summary for scripts:
      xdp-server --duration 10 --json --quiet | tail -n 1
  Is this host ready for that? What to type where it is not:
      sudo xdp-server doctor --iface eth0 --queues 47
  How does the NIC choose a queue? For load generators, too:
      xdp-server rss --iface eth0 --json

Exit status:
  0  ended as told: by signal, or by --duration
  1  could not start, or failed while running
  2  a wrong setting
Exit status of doctor:
  0  all is well
  1  warnings: the server runs, more slowly than it could
  2  the server cannot run with these settings, or a setting is wrong
Exit status of rss:
  0  queues are chosen by addresses and ports (on veth by the sender), or there is one
  1  they are chosen otherwise, or the driver does not tell
  2  there is no such interface, or a setting is wrong";

/// The one word that is no option. It is a word, and not a subcommand of clap, so that options may stand on
/// either side of it, and come from environment and file alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Verb {
    /// Run the server; this is also what is done without a command.
    Serve,
    /// Check the host for these settings: a table of what is well, what is not, and what to type.
    Doctor,
    /// Measure what a message, a broadcast, a handshake and a connection cost here; see `bench --help`.
    Bench,
    /// Show how the NIC of --iface spreads clients over its receive queues (RSS): hash, key, table.
    Rss,
}

/// Parsed flags. Doc comments are the help text.
#[derive(Parser, Debug)]
#[command(
    name = "xdp-server",
    bin_name = "xdp-server",
    version,
    about = ABOUT,
    after_help = AFTER_HELP,
    args_override_self = true,
    max_term_width = 100
)]
pub(super) struct Args {
    /// What to do with the settings
    #[arg(value_name = "COMMAND", value_enum, default_value_t = Verb::Serve, hide_default_value = true)]
    pub(super) command: Verb,

    /// Network interface to serve on with AF_XDP. Without it packets come through UDP sockets
    #[arg(long, value_name = "IF", value_parser = interface, help_heading = "Network")]
    iface: Option<String>,

    /// Workers, 1 to 256; with --iface one for each NIC queue, from queue 0 on [default: the interface's
    /// queues or the cores less one, whichever is fewer]
    #[arg(
        long,
        visible_alias = "workers",
        short = 'w',
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_WORKERS)),
        help_heading = "Network"
    )]
    queues: Option<u16>,

    /// Address and UDP port to serve; [::] is all addresses, IPv4 included
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value = "[::]:4433",
        value_parser = listen_address,
        help_heading = "Network"
    )]
    listen: std::net::SocketAddr,

    /// How packets enter and leave. A backend by name works, or ends the program
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Backend::Auto, help_heading = "Network")]
    backend: Backend,

    /// Mode of AF_XDP. A mode by name works, or ends the program
    #[arg(long, value_name = "MODE", value_enum, default_value_t = XdpMode::Auto, help_heading = "Network")]
    xdp_mode: XdpMode,

    /// How the kernel spreads packets over the workers' UDP sockets
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Steering::Auto, help_heading = "Network")]
    steering: Steering,

    /// Entries of each worker's io_uring submission queue, 16 to 32768, rounded up to a power of two. A queue
    /// that is too short costs system calls, and is counted
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(16..=32_768),
        help_heading = "Network"
    )]
    io_uring_sq_depth: u32,

    /// Let a kernel thread for each worker take what is in its io_uring submission queue. It needs a core of
    /// its own
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        hide_default_value = true,
        help_heading = "Network"
    )]
    sqpoll: bool,

    /// Receive buffer of each UDP socket, 4KiB to 1GiB; without root net.core.rmem_max may cut it
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "64MiB",
        value_parser = socket_buffer,
        help_heading = "Network"
    )]
    socket_recv_buffer: usize,

    /// Send buffer of each UDP socket, 4KiB to 1GiB; without root net.core.wmem_max may cut it
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "64MiB",
        value_parser = socket_buffer,
        help_heading = "Network"
    )]
    socket_send_buffer: usize,

    /// Certificate chain to show, leaf first, PEM; goes with --key [default: self-signed, valid 13 days, kept
    /// in --state]
    #[arg(long, value_name = "PEM", help_heading = "Identity")]
    cert: Option<PathBuf>,

    /// Private key of --cert, PEM
    #[arg(long, value_name = "PEM", help_heading = "Identity")]
    key: Option<PathBuf>,

    /// Directory of the connection-ID key, the reset key and the self-signed certificate, kept over restarts
    /// [default: $STATE_DIRECTORY, else /var/lib/xdp-server for root, else $XDG_STATE_HOME/xdp-server, else
    /// ~/.local/state/xdp-server]
    #[arg(long, value_name = "DIR", help_heading = "Identity")]
    state: Option<PathBuf>,

    /// Width of the canvas in pixels, 1 to 65535
    #[arg(
        long,
        value_name = "PIXELS",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u16).range(1..),
        help_heading = "Canvas"
    )]
    width: u16,

    /// Height of the canvas in pixels, 1 to 65535
    #[arg(
        long,
        value_name = "PIXELS",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u16).range(1..),
        help_heading = "Canvas"
    )]
    height: u16,

    /// Milliseconds from one broadcast of changes to the next, 5 to 1000. Shorter is smoother and costs more
    /// packets
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 50,
        value_parser = clap::value_parser!(u64).range(5..=1000),
        help_heading = "Canvas"
    )]
    tick_ms: u64,

    /// Pixels that one worker's queue to the master holds, 1024 to 16777216, any number. Full means pixels
    /// rejected as overload
    #[arg(
        long,
        value_name = "PIXELS",
        default_value_t = 262_144,
        value_parser = clap::value_parser!(u32).range(1024..=1 << 24),
        help_heading = "Canvas"
    )]
    paint_queue: u32,

    /// Pixels that the master takes from one worker before it turns to the next, 1 to 16777216
    #[arg(
        long,
        value_name = "PIXELS",
        default_value_t = 16_384,
        value_parser = clap::value_parser!(u32).range(1..=1 << 24),
        help_heading = "Canvas"
    )]
    master_drain: u32,

    /// Connections that each worker takes, 1 to 65536; more are refused with SERVER_FULL
    #[arg(
        long,
        value_name = "N",
        default_value_t = MAX_CONNECTIONS_PER_WORKER,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CONNECTIONS_PER_WORKER)),
        help_heading = "Clients"
    )]
    max_connections_per_worker: u32,

    /// Diffs, in kbit/s, for a client that names no rate in its VIEW; beyond it diffs are left out and the
    /// client catches up by repair. 0 is no limit. The default is 50 kB a tick, about 16,000 changed pixels
    #[arg(long, value_name = "KBIT/S", default_value_t = 8000, help_heading = "Clients")]
    client_kbit: u32,

    /// Pixels a second that each client may paint, with a second's worth at once; more are rejected, and a
    /// client that goes on painting four times as many is closed. 0 is no limit
    #[arg(long, value_name = "PIXELS/S", default_value_t = 0, help_heading = "Clients")]
    client_pixels: u32,

    /// Token that clients must present in HELLO, 1 to 255 bytes; better given by environment or file, where
    /// other users do not see it [default: none is asked for]
    #[arg(long, value_name = "TOKEN", value_parser = token, hide_env_values = true, help_heading = "Clients")]
    token: Option<String>,

    /// Milliseconds of silence after which a connection is given up, 1000 to 3600000
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 30_000,
        value_parser = clap::value_parser!(u64).range(1000..=3_600_000),
        help_heading = "Clients"
    )]
    idle_timeout_ms: u64,

    /// CPUs to use, such as 0,2-5,8: the first is the master's, the next are the workers' [default: all that
    /// the process's affinity mask allows, those of the NIC's NUMA node first]
    #[arg(long, value_name = "LIST", value_parser = cpu_list, help_heading = "Host")]
    cpus: Option<CpuList>,

    /// NUMA node whose CPUs and memory to use, 0 to 1023 [default: that of --iface, and the others only when
    /// --queues asks for more CPUs than it has]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(..1024),
        help_heading = "Host"
    )]
    numa_node: Option<u32>,

    /// User, by name or number, to become after set-up, when all capabilities are given up, too; root keeps
    /// being root [default: the caller of sudo, if there is one]
    #[arg(
        long,
        value_name = "NAME|UID",
        value_parser = NonEmptyStringValueParser::new(),
        help_heading = "Host"
    )]
    user: Option<String>,

    /// What idle threads do
    #[arg(long, value_name = "POLL", value_enum, default_value_t = PollMode::Auto, help_heading = "Host")]
    poll: PollMode,

    /// Pages of packet buffers, connections and tiles: the size to start from; smaller ones are the fallback
    #[arg(long, value_name = "PAGES", value_enum, default_value_t = HugePages::Auto, help_heading = "Host")]
    huge_pages: HugePages,

    /// TOML file of settings
    #[arg(long, value_name = "FILE", help_heading = "Program")]
    pub(super) config: Option<PathBuf>,

    /// Print nothing but errors (and JSON, with --json)
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        hide_default_value = true,
        help_heading = "Program"
    )]
    quiet: bool,

    /// One JSON object per line on standard output: at start, each second, at the end. Text goes to standard
    /// error
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        hide_default_value = true,
        help_heading = "Program"
    )]
    json: bool,

    /// Seconds after which the server drains and ends by itself [default: run until SIGTERM or Ctrl-C]
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Program"
    )]
    duration: Option<u32>,

    /// Serve all counters by HTTP at this address, path /metrics, for Prometheus and the like; off serves none
    /// [default: 127.0.0.1:9464, if it is free]
    #[arg(long, value_name = "ADDR:PORT|off", value_parser = metrics, help_heading = "Program")]
    metrics: Option<Metrics>,

    /// Write the canvas to this file at the end: one byte a pixel, row by row. It is opened at start, with
    /// the rights of that time
    #[arg(long, value_name = "FILE", help_heading = "Program")]
    dump: Option<PathBuf>,
}

impl TryFrom<Args> for Settings {
    type Error = CliError;

    /// Checks the settings against each other.
    fn try_from(args: Args) -> Result<Settings, CliError> {
        let certificate = match (args.cert, args.key) {
            (Some(cert), Some(key)) => Some(CertificateFiles { cert, key }),
            (None, None) => None,
            (Some(_), None) => return Err(CliError::HalfACertificate { given: "cert", missing: "key" }),
            (None, Some(_)) => return Err(CliError::HalfACertificate { given: "key", missing: "cert" }),
        };
        if args.backend == Backend::Xdp && args.iface.is_none() {
            return Err(CliError::XdpWithoutInterface);
        }
        Ok(Settings {
            iface: args.iface,
            workers: args.queues,
            listen: args.listen,
            backend: args.backend,
            xdp_mode: args.xdp_mode,
            steering: args.steering,
            io_uring_sq_depth: args.io_uring_sq_depth,
            sqpoll: args.sqpoll,
            poll: args.poll,
            certificate,
            width: args.width,
            height: args.height,
            tick: Duration::from_millis(args.tick_ms),
            max_connections_per_worker: args.max_connections_per_worker,
            cpus: args.cpus.map(|list| list.0),
            numa_node: args.numa_node,
            user: args.user,
            state: args.state,
            quiet: args.quiet,
            json: args.json,
            duration: args.duration.map(|seconds| Duration::from_secs(seconds.into())),
            metrics: args.metrics.unwrap_or(Metrics::Usual),
            dump: args.dump,
            socket_recv_buffer: args.socket_recv_buffer,
            socket_send_buffer: args.socket_send_buffer,
            paint_queue: args.paint_queue as usize,
            master_drain: args.master_drain as usize,
            huge_pages: args.huge_pages,
            client_kbit: args.client_kbit,
            client_pixels: args.client_pixels,
            token: args.token,
            idle_timeout: Duration::from_millis(args.idle_timeout_ms),
        })
    }
}
