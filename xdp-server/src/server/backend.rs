//! Packet I/O for all workers: which backend, and why not a better one.
//!
//! `--backend auto` takes AF_XDP if an interface is named and the host can, else io_uring if the host allows
//! it, else ordinary sockets; each rung that was not taken is one note. A backend that is named is that one
//! or an error.

use crate::cli::{self, HugePages, Settings};
use crate::host::diagnose::{Step, why_denied};
use crate::host::topology::{Poll, Topology};
use crate::net::socket::{BindError, SocketConfig, SocketGroup, SocketIo, enable_offloads, steer};
use crate::net::uring::{self, Rings, UringConfig, UringError, UringIo};
use crate::net::xdp::socket::{FRAME_SIZE, FRAMES_PER_QUEUE};
use crate::net::xdp::{ModeGot, OpenError, OpenRequest, XdpIo, XdpMode};
use crate::report::WorkerIo;
use hugepages::{PageKind, Report};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::time::Duration;
use xdp_prog::XdpProgram;

/// How long a read on a busy-polled socket polls the NIC, in microseconds of the guide to SO_BUSY_POLL; the
/// kernel's own suggestion (Documentation/admin-guide/sysctl/net.rst, `busy_read`).
const SOCKET_BUSY_POLL: Duration = Duration::from_micros(50);

/// Why there is no packet I/O.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// AF_XDP.
    #[error("{explained}")]
    Xdp {
        /// What failed, why, and what to type.
        explained: String,
        /// What failed.
        source: Box<OpenError>,
    },
    /// io_uring.
    #[error(transparent)]
    Uring(#[from] UringError),
    /// Ordinary sockets.
    #[error(transparent)]
    Socket(#[from] BindError),
}

/// The packet I/O of all workers.
pub enum Backend {
    /// AF_XDP, with ordinary sockets beside it.
    Xdp(Box<Xdp>),
    /// io_uring over ordinary sockets.
    Uring(Sockets<UringIo>),
    /// Ordinary sockets.
    Socket(Sockets<SocketIo>),
}

impl Backend {
    /// Whether this thread can still use the XDP program's maps, if there is one. See `host::privileges`.
    pub fn works_without_bpf(&self) -> bool {
        match self {
            Self::Xdp(xdp) => xdp.steering.program.counters().is_ok(),
            Self::Uring(_) | Self::Socket(_) => true,
        }
    }
}

/// All queues of an interface.
pub struct Xdp {
    /// By worker.
    pub ios: Vec<XdpIo<SocketIo>>,
    /// What each got.
    pub io: Vec<WorkerIo>,
    /// Packet memory that did not get the huge pages that it wanted.
    pub short: Vec<Report>,
    /// The XDP program, attached.
    pub steering: Steering,
}

/// All sockets of the port.
pub struct Sockets<I> {
    /// By worker.
    pub ios: Vec<I>,
    /// What each got.
    pub io: Vec<WorkerIo>,
}

/// The XDP program on the interface. Dropping it detaches.
pub struct Steering {
    program: XdpProgram,
    interface: String,
    listen: IpAddr,
    addresses: Vec<IpAddr>,
}

impl Steering {
    /// Tells the program which addresses the interface has now. Returns what there is to say if they changed.
    pub fn follow_addresses(&mut self) -> Option<String> {
        let now = steered_addresses(&self.interface, self.listen).ok()?;
        if now == self.addresses {
            return None;
        }
        let sentence = match self.program.set_addresses(&now) {
            Ok(()) => format!("{} has other addresses now: AF_XDP serves {}", self.interface, list(&now)),
            Err(error) => format!("{} has other addresses now, but: {error}", self.interface),
        };
        self.addresses = now;
        Some(sentence)
    }
}

/// Opens the packet I/O that `settings` ask for. What falls short is added to `notes`.
///
/// # Errors
/// [`BackendError`]: the backend that was named, or the last one left, cannot be had.
pub fn open(
    settings: &Settings,
    topology: &Topology,
    notes: &mut Vec<String>,
) -> Result<Backend, BackendError> {
    match (settings.backend, &settings.iface) {
        (cli::Backend::Auto | cli::Backend::Xdp, Some(interface)) => {
            let sockets = bind(settings, topology, false, notes)?;
            match open_xdp(settings, topology, interface, notes) {
                Ok(opened) => {
                    notes.extend(topology.unserved_queues.clone());
                    return Ok(Backend::Xdp(Box::new(opened.with_sockets(sockets))));
                }
                Err(error) if settings.backend == cli::Backend::Xdp => {
                    return Err(BackendError::Xdp { explained: explain(&error), source: Box::new(error) });
                }
                Err(error) => notes.push(format!("AF_XDP not taken: {}", explain(&error))),
            }
            let rings = open_rings(settings, topology, notes)?;
            return Ok(over_sockets(settings, rings, sockets, notes));
        }
        (cli::Backend::Auto, None) => notes.push("AF_XDP not tried: it needs --iface IF".into()),
        _ => {}
    }
    let rings = open_rings(settings, topology, notes)?;
    // Sockets of the ring are not read from, so that nobody would poll the NIC as they ask for.
    let busy_poll = topology.poll == Poll::Busy && rings.is_none();
    let sockets = bind(settings, topology, busy_poll, notes)?;
    Ok(over_sockets(settings, rings, sockets, notes))
}

/// The rings, if io_uring is wanted and can be had.
fn open_rings(
    settings: &Settings,
    topology: &Topology,
    notes: &mut Vec<String>,
) -> Result<Option<Rings>, UringError> {
    if settings.backend == cli::Backend::Socket {
        return Ok(None);
    }
    let opened = uring::open(&UringConfig {
        workers: workers(topology),
        connections: settings.max_connections_per_worker,
        sq_depth: settings.io_uring_sq_depth,
        sqpoll: settings.sqpoll,
    });
    match opened {
        Ok(rings) => {
            notes.extend(rings.notes.iter().map(ToString::to_string));
            Ok(Some(rings))
        }
        Err(error) if settings.backend == cli::Backend::Uring => Err(error),
        Err(error) => {
            notes.push(format!("io_uring not taken: {error}"));
            Ok(None)
        }
    }
}

/// The lower rungs: io_uring if there are `rings`, else the sockets by themselves.
fn over_sockets(
    settings: &Settings,
    rings: Option<Rings>,
    mut sockets: Vec<SocketIo>,
    notes: &mut Vec<String>,
) -> Backend {
    notes.extend(enable_offloads(&mut sockets).iter().map(ToString::to_string));
    let memory = format!("{} MiB receive buffer", settings.socket_recv_buffer >> 20);
    let Some(rings) = rings else {
        let io = vec![WorkerIo { backend: "socket", mode: None, memory }; sockets.len()];
        return Backend::Socket(Sockets { ios: sockets, io });
    };
    let ios = rings.serve(sockets);
    let buffers = ios.first().map_or(0, UringIo::buffers);
    let memory = format!("{memory}, ring of {buffers}");
    let io = vec![WorkerIo { backend: "io_uring", mode: None, memory }; ios.len()];
    Backend::Uring(Sockets { ios, io })
}

fn workers(topology: &Topology) -> NonZeroUsize {
    NonZeroUsize::new(topology.workers.len()).unwrap_or(NonZeroUsize::MIN)
}

/// `error` in words; where the kernel denied something, with the gate that is closed.
fn explain(error: &OpenError) -> String {
    let step = match error {
        OpenError::Permission { .. } => Step::XdpSocket,
        OpenError::Program(xdp_prog::Error::Permission { .. }) => Step::XdpProgram,
        OpenError::MemoryLock { bytes, .. } => Step::LockMemory { bytes: *bytes },
        _ => return error.to_string(),
    };
    why_denied(step)
}

fn bind(
    settings: &Settings,
    topology: &Topology,
    busy_poll: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<SocketIo>, BindError> {
    let group = SocketGroup::bind(&SocketConfig {
        listen: settings.listen,
        workers: workers(topology),
        rcvbuf: settings.socket_recv_buffer,
        sndbuf: settings.socket_send_buffer,
        busy_poll: busy_poll.then_some(SOCKET_BUSY_POLL),
    })?;
    notes.extend(group.notes.iter().map(ToString::to_string));
    if settings.steering == cli::Steering::Auto
        && let Err(error) = steer::attach(&group.sockets)
    {
        notes.push(format!(
            "sockets not steered by connection ID ({error}), so workers pass on the packets of clients that \
             move: it takes Linux 4.5, see uname -r; --steering off does without"
        ));
    }
    Ok(group.sockets)
}

/// AF_XDP queues that do not have their sockets beside them yet.
struct OpenedXdp {
    opened: crate::net::xdp::open::Opened,
    steering_of: (String, IpAddr, Vec<IpAddr>),
    /// Huge pages were asked for.
    wants_huge: bool,
    /// NUMA node of each queue's memory.
    nodes: Vec<Option<u32>>,
}

impl OpenedXdp {
    fn with_sockets(self, sockets: Vec<SocketIo>) -> Xdp {
        let mode = match self.opened.mode {
            ModeGot::ZeroCopy => "zerocopy",
            ModeGot::Copy => "copy",
            ModeGot::Generic => "generic",
        };
        let umem = (FRAMES_PER_QUEUE * FRAME_SIZE) >> 20;
        let describe = |pages: PageKind| WorkerIo {
            backend: "xdp",
            mode: Some(mode),
            memory: format!("UMEM {umem} MiB on {pages} pages"),
        };
        let io = self.opened.queues.iter().map(|queue| describe(queue.pages())).collect();
        let bytes = (FRAMES_PER_QUEUE * FRAME_SIZE) as usize;
        let plain = self.opened.queues.iter().zip(self.nodes);
        let plain = plain.filter(|(queue, _)| self.wants_huge && queue.pages() == PageKind::Plain);
        let short = plain.map(|(_, node)| Report::of_plain("UMEM", bytes, PageKind::Huge2M, node)).collect();
        let ios =
            self.opened.queues.into_iter().zip(sockets).map(|(queue, socket)| queue.with_kernel(socket));
        let (interface, listen, addresses) = self.steering_of;
        let steering = Steering { program: self.opened.program, interface, listen, addresses };
        Xdp { ios: ios.collect(), io, short, steering }
    }
}

fn open_xdp(
    settings: &Settings,
    topology: &Topology,
    interface: &str,
    notes: &mut Vec<String>,
) -> Result<OpenedXdp, OpenError> {
    let listen = settings.listen.ip();
    let wants_huge = !matches!(settings.huge_pages, HugePages::Transparent | HugePages::Plain);
    let opened = crate::net::xdp::open(&OpenRequest {
        interface: interface.to_owned(),
        queues: topology.workers.len() as u32,
        port: settings.listen.port(),
        listen,
        mode: match settings.xdp_mode {
            cli::XdpMode::Auto => XdpMode::Auto,
            cli::XdpMode::ZeroCopy => XdpMode::ZeroCopy,
            cli::XdpMode::Copy => XdpMode::Copy,
            cli::XdpMode::Generic => XdpMode::Generic,
        },
        busy_poll: topology.poll == Poll::Busy,
        cpus: topology.workers.iter().map(|worker| worker.cpu).collect(),
        huge_pages: wants_huge,
        frames: FRAMES_PER_QUEUE,
    })?;
    notes.extend(opened.notes.iter().cloned());
    let addresses = steered_addresses(interface, listen).unwrap_or_default();
    let nodes = topology.workers.iter().map(|worker| worker.node).collect();
    Ok(OpenedXdp { opened, steering_of: (interface.to_owned(), listen, addresses), wants_huge, nodes })
}

/// The addresses whose packets AF_XDP takes: those of the interface that `listen` covers.
fn steered_addresses(interface: &str, listen: IpAddr) -> std::io::Result<Vec<IpAddr>> {
    let mut addresses = match listen {
        IpAddr::V6(all) if all.is_unspecified() => xdp_prog::interface_addresses(interface)?,
        IpAddr::V4(all) if all.is_unspecified() => {
            let all = xdp_prog::interface_addresses(interface)?;
            all.into_iter().filter(IpAddr::is_ipv4).collect()
        }
        one => vec![one],
    };
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Addresses that clients can use, best first: the one listened on; or else those of the interface; or else
/// the one that this host would use to reach the world.
pub fn reachable_addresses(settings: &Settings) -> Vec<IpAddr> {
    if !settings.listen.ip().is_unspecified() {
        return vec![settings.listen.ip()];
    }
    let of_interface = settings.iface.as_deref().map(xdp_prog::interface_addresses);
    let mut addresses: Vec<IpAddr> = match of_interface {
        Some(Ok(addresses)) => addresses.into_iter().filter(|ip| !is_link_local(ip)).collect(),
        _ => default_source().into_iter().collect(),
    };
    addresses.sort_unstable(); // IPv4 first: what people can type
    addresses
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The source address of the default route. Connecting a UDP socket sends nothing.
fn default_source() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // An address of the range set aside for documentation (RFC 5737): routed like any that is not here.
    socket.connect(SocketAddr::from(([192, 0, 2, 1], 9))).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
