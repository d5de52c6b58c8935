//! What was asked for: every setting of the server as a plain value, already checked on its own and against
//! the others.
//!
//! The enums here are what the *user* may say. What the host then gives (which backend, which XDP mode, which
//! pages) is decided and reported elsewhere.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

/// All settings, from flags, environment, file and defaults. The reference for units, ranges and meaning is
/// `xdp-server --help`; the fields repeat only what code needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Interface to serve on with AF_XDP; also gives the number of queues and the NUMA node to plan for.
    pub iface: Option<String>,
    /// Workers, one for each NIC queue from queue 0 on; 1 to 256. `None`: as many as the host suggests.
    pub workers: Option<u16>,
    /// Address and UDP port to serve. The port is never 0.
    pub listen: SocketAddr,
    /// How packets enter and leave.
    pub backend: Backend,
    /// Mode of the AF_XDP backend.
    pub xdp_mode: XdpMode,
    /// How the kernel spreads packets over the workers' UDP sockets.
    pub steering: Steering,
    /// Entries of each worker's io_uring submission queue, 16 to 32,768.
    pub io_uring_sq_depth: u32,
    /// A kernel thread takes what is in an io_uring submission queue.
    pub sqpoll: bool,
    /// What idle workers do.
    pub poll: PollMode,
    /// The certificate to show; `None`: a self-signed one from the state directory.
    pub certificate: Option<CertificateFiles>,
    /// Width of the canvas in pixels, at least 1.
    pub width: u16,
    /// Height of the canvas in pixels, at least 1.
    pub height: u16,
    /// Time between two broadcasts of changes, 5 ms to 1 s.
    pub tick: Duration,
    /// Size of each worker's connection table, 1 to 65,536.
    pub max_connections_per_worker: u32,
    /// CPUs to use, in the order in which they are given out; `None`: all of the affinity mask. Never empty,
    /// no repeats.
    pub cpus: Option<Vec<usize>>,
    /// NUMA node of all threads and their memory; `None`: that of the interface, where there is one.
    pub numa_node: Option<u32>,
    /// User to become after set-up, by name or number; `None`: the caller of sudo, if there is one.
    pub user: Option<String>,
    /// State directory; `None`: the host's usual place.
    pub state: Option<PathBuf>,
    /// No text for humans but errors.
    pub quiet: bool,
    /// JSON objects on standard output; text for humans goes to standard error.
    pub json: bool,
    /// End by itself after this time; `None`: run until told to stop.
    pub duration: Option<Duration>,
    /// Where the counters can be read by HTTP.
    pub metrics: Metrics,
    /// Where to write the canvas at the end.
    pub dump: Option<PathBuf>,
    /// Receive buffer of each UDP socket, in bytes.
    pub socket_recv_buffer: usize,
    /// Send buffer of each UDP socket, in bytes.
    pub socket_send_buffer: usize,
    /// Pixels that one worker's queue to the master holds. Not necessarily a power of two.
    pub paint_queue: usize,
    /// Pixels that the master takes from one worker's queue before it turns to the next.
    pub master_drain: usize,
    /// Pages for UMEM, connections and tiles.
    pub huge_pages: HugePages,
    /// Diff budget, in kbit/s, of a client whose VIEW names none; 0 is no limit.
    pub client_kbit: u32,
    /// Pixels a second that a client may paint; 0 is no limit.
    pub client_pixels: u32,
    /// What HELLO must carry, 1 to 255 bytes; `None`: nothing.
    pub token: Option<String>,
    /// Silence after which a connection is given up.
    pub idle_timeout: Duration,
}

/// A certificate chain and its private key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
}

/// `--backend`. All but `Auto` means that one or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The first of the others, in their order, that the host can, saying why not a better one; AF_XDP only
    /// with --iface.
    Auto,
    /// AF_XDP.
    Xdp,
    /// UDP sockets by io_uring.
    #[value(name = "io_uring", alias = "uring")]
    Uring,
    /// UDP sockets by ordinary system calls.
    Socket,
}

/// `--xdp-mode`. All but `Auto` means that one or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// The first of the others, in their order, that the driver takes.
    Auto,
    /// Native XDP, the NIC reads and writes the UMEM itself.
    #[value(name = "zerocopy")]
    ZeroCopy,
    /// Native XDP, the kernel copies between driver and UMEM.
    Copy,
    /// XDP on socket buffers: any driver, slowest.
    Generic,
}

/// `--steering`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Steering {
    /// To the worker that the connection ID names, if the kernel can.
    Auto,
    /// By a hash of addresses and ports: workers pass on the packets of clients that moved.
    Off,
}

/// `--poll`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PollMode {
    /// Busy if each thread has a CPU to itself and one is left for the rest of the host.
    Auto,
    /// Never sleep.
    Busy,
    /// Sleep when idle.
    Adaptive,
}

/// `--metrics`: where the counters can be read by HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// At [`Metrics::USUAL`] if that is free, else nowhere: several servers can run without a flag.
    Usual,
    /// There, or an error. Port 0 is any that is free.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl Metrics {
    /// The port that Prometheus' list of allocations has for exporters of OpenTelemetry's SDKs, and so a
    /// usual one of programs that export themselves. On loopback: the counters are nobody else's business.
    pub const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
}

/// `--huge-pages`: the size to start from. What cannot be had is replaced by the next smaller, with a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HugePages {
    /// The largest that there are.
    Auto,
    /// 1 GiB pages.
    #[value(name = "1g")]
    OneGib,
    /// 2 MiB pages.
    #[value(name = "2m")]
    TwoMib,
    /// Transparent huge pages.
    #[value(name = "thp")]
    Transparent,
    /// Pages of the base size.
    Plain,
}
