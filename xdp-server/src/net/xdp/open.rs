//! Opening all queues of an interface in the best mode that it can do.
//!
//! Theory of operation
//! -------------------
//! [`open`] walks down a ladder, with all queues on the same rung:
//!
//! | rung | program | sockets | what it needs |
//! |---|---|---|---|
//! | [`ModeGot::ZeroCopy`] | in the driver | zero-copy | a driver with AF_XDP |
//! | [`ModeGot::Copy`] | in the driver | copy | a driver with XDP: veth, virtio, most NICs |
//! | [`ModeGot::Generic`] | in the stack | copy | any interface |
//!
//! What sends it a rung down is said in one line. Only a reason that lies in the mode does: a queue that is
//! taken or a right that is missing would be the same a rung below, and ends the attempt. So does any reason
//! when the mode was named, since who names a mode wants that one or an explanation.
//!
//! The order on each rung: the program is attached (zero-copy drivers want it there before the bind), then
//! for each queue the UMEM is mapped and the socket bound, on the queue's own core so that the memory is of
//! its NUMA node, the fill ring is filled, and only then is the socket registered with the program, so that
//! no packet is redirected to a socket without frames.
//!
//! Start-up only: it may block, allocate, and take seconds on NICs that reset their link.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use hugepages::PageKind;
use socket2::{Domain, Socket, Type};
use xdp_prog::{Config, XdpProgram};

use super::error::OpenError;
use super::io::XdpIo;
use super::memory::{Pinned, on_huge_pages};
use super::nic::Nic;
use super::queue::Queue;
use super::socket::{FRAME_SIZE, MAX_MTU, SocketError, SocketRequest, XskRings};
use crate::net::PacketIo;

/// The mode asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// The best that works.
    #[default]
    Auto,
    /// Zero-copy or nothing.
    ZeroCopy,
    /// Copy mode with the program in the driver, or nothing.
    Copy,
    /// Copy mode with the program in the network stack.
    Generic,
}

/// The mode got, by all queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeGot {
    /// The NIC reads and writes the UMEM itself.
    ZeroCopy,
    /// The driver runs the program, the kernel copies into and out of the UMEM.
    Copy,
    /// The network stack runs the program, on packets that the kernel has allocated; it copies those into and
    /// out of the UMEM.
    Generic,
}

impl fmt::Display for ModeGot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
            Self::Generic => "generic",
        })
    }
}

/// What to open.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// Name of the interface.
    pub interface: String,
    /// Number of queues, from queue 0 on.
    pub queues: u32,
    /// UDP port whose packets to take.
    pub port: u16,
    /// Address whose packets to take: `::` for all IPv4 and IPv6 addresses of the interface, `0.0.0.0` for
    /// all IPv4 ones, else just that one.
    pub listen: IpAddr,
    /// Mode.
    pub mode: XdpMode,
    /// Prepare the sockets for busy polling; each worker must have a core of its own then.
    pub busy_poll: bool,
    /// The core of each queue's worker. Queues beyond the end are opened wherever the calling thread runs.
    pub cpus: Vec<usize>,
    /// UMEMs on huge pages of 2 MiB, as long as there are any free.
    pub huge_pages: bool,
    /// Frames of each UMEM, half of them to receive, half to send. Rounded up to whole huge pages. See
    /// [`FRAMES_PER_QUEUE`](super::socket::FRAMES_PER_QUEUE).
    pub frames: u32,
}

/// A queue that is open and receives already, but has no ordinary socket beside it yet.
#[derive(Debug)]
pub struct OpenQueue {
    queue: Queue<XskRings>,
    busy_poll: bool,
    pages: PageKind,
}

impl OpenQueue {
    /// The memory that its UMEM got: huge pages of 2 MiB, or plain ones.
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Adds the ordinary socket on the same port.
    pub fn with_kernel<K: PacketIo>(self, kernel: K) -> XdpIo<K> {
        XdpIo::new(self.queue, self.busy_poll, kernel)
    }
}

/// An interface with all its queues open.
#[derive(Debug)]
pub struct Opened {
    /// The program, attached. Dropping it detaches: keep it as long as the queues are in use.
    pub program: XdpProgram,
    /// The queues, by number.
    pub queues: Vec<OpenQueue>,
    /// The mode that they got.
    pub mode: ModeGot,
    /// Lines for the user: why not a better mode, why not huge pages, what would make it faster.
    pub notes: Vec<String>,
}

/// Opens all queues. Attaches the XDP program and binds one AF_XDP socket to each queue.
///
/// # Errors
/// See [`OpenError`]. The interface is then as it was before.
pub fn open(request: &OpenRequest) -> Result<Opened, OpenError> {
    if request.queues == 0 {
        return Err(OpenError::NoQueues);
    }
    let nic = Nic::find(&request.interface)?;
    if request.queues > nic.queues {
        return Err(OpenError::TooManyQueues {
            interface: nic.name,
            asked: request.queues,
            queues: nic.queues,
        });
    }
    check_af_xdp()?;
    let addresses = addresses(&nic, request.listen)?;
    let program = XdpProgram::load(&Config { port: request.port, queues: request.queues, addresses })?;
    let mut opening = Opening { request, nic: &nic, program, attached: None, notes: Vec::new() };

    let (better, last): (&[ModeGot], ModeGot) = match request.mode {
        XdpMode::Auto => (&[ModeGot::ZeroCopy, ModeGot::Copy], ModeGot::Generic),
        XdpMode::ZeroCopy => (&[], ModeGot::ZeroCopy),
        XdpMode::Copy => (&[], ModeGot::Copy),
        XdpMode::Generic => (&[], ModeGot::Generic),
    };
    for &mode in better {
        match opening.all_queues(mode) {
            Ok(queues) => return Ok(opening.finish(queues, mode)),
            Err(error) if is_about_mode(&error) => {
                opening.notes.push(format!("{}: not in {mode} mode: {error}", nic.name));
                if matches!(error, OpenError::Program(_)) {
                    // No program in the driver: every rung but the last would say the same.
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    let queues = opening.all_queues(last)?;
    Ok(opening.finish(queues, last))
}

/// Whether a lower rung may do where `error` came from a higher one.
fn is_about_mode(error: &OpenError) -> bool {
    use xdp_prog::Error::{Attach, NoNativeXdp};
    matches!(
        error,
        OpenError::NoZeroCopy { .. }
            | OpenError::MtuTooLarge { .. }
            | OpenError::Program(NoNativeXdp { .. } | Attach { mode: xdp_prog::Mode::Native, .. })
    )
}

struct Opening<'a> {
    request: &'a OpenRequest,
    nic: &'a Nic,
    program: XdpProgram,
    attached: Option<xdp_prog::Mode>,
    notes: Vec<String>,
}

impl Opening<'_> {
    fn finish(self, queues: Vec<OpenQueue>, mode: ModeGot) -> Opened {
        let Self { request, nic, program, mut notes, .. } = self;
        if request.busy_poll {
            notes.extend(nic.busy_poll_advice());
        }
        if request.huge_pages && queues.iter().any(|queue| queue.pages == PageKind::Plain) {
            let without = queues.iter().filter(|queue| queue.pages == PageKind::Plain).count() as u64;
            // How many are missing in all, only the caller knows: other memory wants huge pages too.
            notes.push(format!("{}: {without} of {} UMEMs have plain pages", nic.name, queues.len()));
        }
        Opened { program, queues, mode, notes }
    }

    /// One rung: the program, then every queue.
    fn all_queues(&mut self, mode: ModeGot) -> Result<Vec<OpenQueue>, OpenError> {
        let nic = self.nic;
        if mode == ModeGot::ZeroCopy && nic.mtu > MAX_MTU {
            return Err(OpenError::MtuTooLarge { interface: nic.name.clone(), mtu: nic.mtu });
        }
        let place = match mode {
            ModeGot::ZeroCopy | ModeGot::Copy => xdp_prog::Mode::Native,
            ModeGot::Generic => xdp_prog::Mode::Generic,
        };
        if self.attached != Some(place) {
            self.attached = None;
            self.program.attach(nic.index, place)?;
            self.attached = Some(place);
        }
        let all: Vec<OpenQueue> =
            (0..self.request.queues).map(|queue| self.queue(queue, mode)).collect::<Result<_, _>>()?;
        for (number, open) in (0..).zip(&all) {
            self.program.register(number, open.queue.rings().as_fd())?;
        }
        Ok(all)
    }

    /// One queue: UMEM, socket, full fill ring.
    fn queue(&self, queue: u32, mode: ModeGot) -> Result<OpenQueue, OpenError> {
        let _here = self.request.cpus.get(queue as usize).map(|&cpu| Pinned::to(cpu)).transpose()?;
        let (rings, pages) = self.rings(queue, mode)?;
        let zero_copy = rings.is_zero_copy().map_err(|error| self.explain(queue, mode, error))?;
        if mode == ModeGot::ZeroCopy && !zero_copy {
            let interface = self.nic.name.clone();
            let source = io::Error::other("the kernel made it a copy-mode socket");
            return Err(OpenError::NoZeroCopy { interface, queue, source });
        }
        let limits = rings.limits();
        Ok(OpenQueue { queue: Queue::new(rings, limits), busy_poll: self.request.busy_poll, pages })
    }

    /// The socket and its UMEM, from huge pages if wanted and there.
    fn rings(&self, queue: u32, mode: ModeGot) -> Result<(XskRings, PageKind), OpenError> {
        let request = self.request;
        let attempt = |frames, huge_pages| {
            XskRings::open(&SocketRequest {
                interface: &self.nic.name,
                queue,
                zero_copy: mode == ModeGot::ZeroCopy,
                busy_poll: request.busy_poll,
                frames,
                huge_pages,
            })
        };
        if let Some(frames) = on_huge_pages(request.frames).filter(|_| request.huge_pages) {
            match attempt(frames, true) {
                // Not so many free.
                Err(SocketError::Map(_)) => {}
                Ok(rings) => return Ok((rings, PageKind::Huge2M)),
                Err(error) => return Err(self.explain(queue, mode, error)),
            }
        }
        let rings = attempt(request.frames, false).map_err(|error| self.explain(queue, mode, error))?;
        Ok((rings, PageKind::Plain))
    }

    /// What `error` means, and what to do about it.
    fn explain(&self, queue: u32, mode: ModeGot, error: SocketError) -> OpenError {
        let interface = self.nic.name.clone();
        let code = error.os_error().raw_os_error();
        match (error, code) {
            (error @ SocketError::BusyPoll { .. }, _) => {
                OpenError::BusyPoll { interface, queue, source: error }
            }
            (SocketError::Umem(source) | SocketError::Bind(source), Some(libc::EPERM | libc::EACCES)) => {
                OpenError::Permission { source }
            }
            (SocketError::Umem(_), Some(libc::ENOBUFS)) => {
                OpenError::MemoryLock { queue, bytes: u64::from(self.request.frames) * u64::from(FRAME_SIZE) }
            }
            (SocketError::Bind(_), Some(libc::EBUSY)) => OpenError::QueueBusy { interface, queue },
            (SocketError::Bind(source), _) if mode == ModeGot::ZeroCopy => {
                OpenError::NoZeroCopy { interface, queue, source }
            }
            (source, _) => OpenError::Socket { interface, queue, source },
        }
    }
}

/// Whether there are AF_XDP sockets, and for us. Asked before anything else, for the clearest answer.
fn check_af_xdp() -> Result<(), OpenError> {
    match Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            Err(OpenError::NoAfXdp { release: release.trim().to_owned() })
        }
        Err(source) if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
            Err(OpenError::Permission { source })
        }
        // Another error will come again where it can be explained better.
        _ => Ok(()),
    }
}

/// The addresses whose packets to take.
fn addresses(nic: &Nic, listen: IpAddr) -> Result<Vec<IpAddr>, OpenError> {
    if !listen.is_unspecified() {
        return Ok(vec![listen.to_canonical()]);
    }
    let interface = nic.name.clone();
    let mut addresses = match xdp_prog::interface_addresses(&nic.name) {
        Ok(addresses) => addresses,
        Err(source) => return Err(OpenError::Addresses { interface, source }),
    };
    if listen.is_ipv4() {
        addresses.retain(IpAddr::is_ipv4);
    }
    if addresses.is_empty() {
        let family = if listen.is_ipv4() { "IPv4" } else { "IP" };
        return Err(OpenError::NoAddress { interface, family });
    }
    Ok(addresses)
}
