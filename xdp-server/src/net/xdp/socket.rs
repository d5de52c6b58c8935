//! A real AF_XDP socket on one queue of an interface: [`XskRings`].
//!
//! Theory of operation
//! -------------------
//! [`XskRings::open`] maps a UMEM, makes the four rings and binds them to one (interface, queue) pair, by way
//! of xsk-rs and libxdp, told to load no XDP program: ours is loaded and attached by `xdp-prog`, and the
//! caller registers [`XskRings::as_fd`] in its map, once there are frames in the fill ring. (xsk-rs hands out
//! the fill ring only after the bind, so that it cannot be filled before; a driver that found it empty at the
//! bind sets `need_wakeup` and is told, since the worker looks at that flag in every turn.)
//!
//! The UMEM belongs to this socket and no other. Its memory comes from the NUMA node of the core that calls
//! `open`, faulted in at once, so call it from the core that will work with it. Received packets lie where
//! the NIC or the kernel put them, 256 bytes (`XDP_PACKET_HEADROOM`) behind the start of their frame; packets
//! to send are written there, too. Dropping it closes the socket; the kernel frees the queue a moment later,
//! on a worker thread of its own.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use super::queue::{BURST, SEND_ROOM};
use super::rings::{Descriptor, Layout, RingStatistics, Rings, Wake};
use super::umem::Limits;

/// Bytes of a frame. The smallest that the kernel takes, and a page holds two: behind the kernel's headroom
/// it has room for 1792 bytes, an Ethernet frame of 1500 bytes with a VLAN tag and then some. The next size,
/// 4096, would double memory and halve what the cache holds, for jumbo frames that QUIC does not send.
pub const FRAME_SIZE: u32 = 2_048;

/// Bytes that the kernel keeps free in front of a packet in its frame (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: u32 = 256;

/// Largest MTU whose frames fit behind the headroom, with Ethernet header and a VLAN tag. Zero-copy drivers
/// refuse more.
pub const MAX_MTU: u32 = FRAME_SIZE - HEADROOM - 18;

const _: () = assert!(SEND_ROOM <= (FRAME_SIZE - HEADROOM) as usize);

/// Frames of a queue unless told otherwise: half of them to receive, half to transmit. At the 20,000 to
/// 1,000,000 packets/s of one worker, 4096 frames to receive are 4 to 200 ms of not looking, and the fan-out
/// of a tick to 4096 clients fits into the other half. 16 MiB, so 8 huge pages a queue. Smaller: drops in
/// bursts. Larger: the working set leaves the L2 and L3 caches, and 47 queues of it leave the memory of the
/// host.
pub const FRAMES_PER_QUEUE: u32 = 8_192;

/// How long to wait for a queue whose last socket was closed just now: the kernel frees it asynchronously,
/// after a grace period of some 10 to 100 ms. Smaller: a restart may find its own queue taken. Larger: the
/// error about a queue that really is taken comes later.
const RELEASE_TIME: Duration = Duration::from_secs(1);

/// How often to look meanwhile.
const RELEASE_CHECK: Duration = Duration::from_millis(10);

/// Value for SO_PREFER_BUSY_POLL: NIC interrupts stay off while the worker polls.
const PREFER_BUSY_POLL: libc::c_int = 1;
/// Value for SO_BUSY_POLL, in microseconds. Our calls do not block and so poll exactly once; this only has to
/// be more than zero, which would turn busy polling off. The value of the kernel's own example.
const BUSY_POLL_MICROS: libc::c_int = 20;
/// Value for SO_BUSY_POLL_BUDGET, in packets: the budget of a NAPI poll by interrupt, with which all drivers
/// are tested, and one [`BURST`]. Larger: sending waits for long polls. Smaller: more system calls.
const BUSY_POLL_BUDGET: libc::c_int = BURST as libc::c_int;

/// What [`XskRings::open`] opens.
#[derive(Clone, Copy, Debug)]
pub struct SocketRequest<'a> {
    /// Name of the interface.
    pub interface: &'a str,
    /// Queue, from 0.
    pub queue: u32,
    /// Bind in zero-copy mode, else in copy mode.
    pub zero_copy: bool,
    /// Prepare for busy polling.
    pub busy_poll: bool,
    /// Frames in the UMEM.
    pub frames: u32,
    /// UMEM from huge pages of the default size, of which `frames` must fill a whole number.
    pub huge_pages: bool,
}

/// Why a queue could not be opened: what was tried, and what the kernel answered.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The UMEM's memory could not be mapped.
    #[error("cannot map memory for the UMEM: {0}")]
    Map(io::Error),
    /// The kernel did not take the memory as a UMEM.
    #[error("cannot register the UMEM: {0}")]
    Umem(io::Error),
    /// The socket could not be bound to its queue.
    #[error("cannot bind to the queue: {0}")]
    Bind(io::Error),
    /// Busy polling could not be set up.
    #[error("cannot set {option} for busy polling: {source}")]
    BusyPoll {
        /// Name of the socket option.
        option: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket does not say which mode it is in.
    #[error("cannot read the socket's mode: {0}")]
    Mode(io::Error),
}

impl SocketError {
    /// The kernel's answer.
    pub fn os_error(&self) -> &io::Error {
        match self {
            Self::Map(source) | Self::Umem(source) | Self::Bind(source) | Self::Mode(source) => source,
            Self::BusyPoll { source, .. } => source,
        }
    }
}

/// How many frames each direction may hold, and the size of all rings, for a UMEM of `frames` frames: the
/// rings have room for all that may go into them, so that none can be found full.
fn sizes(frames: u32) -> (Limits, u32) {
    let limits = Limits::halves(frames);
    (limits, limits.receive.max(limits.transmit).next_power_of_two())
}

/// The rings of one AF_XDP socket and its UMEM.
#[derive(Debug)]
pub struct XskRings {
    umem: Umem,
    /// One descriptor for each frame: with the only address that xsk-rs lets a packet to send start at.
    frames: Box<[FrameDesc]>,
    /// Descriptors on their way into a ring.
    batch: Box<[FrameDesc; BURST]>,
    fill: FillQueue,
    receive: RxQueue,
    transmit: TxQueue,
    complete: CompQueue,
    limits: Limits,
    /// A call said that the socket is bound to nothing any more.
    gone: bool,
}

impl Descriptor for FrameDesc {
    #[inline]
    fn address(&self) -> usize {
        self.addr()
    }

    #[inline]
    fn length(&self) -> usize {
        self.lengths().data()
    }
}

/// The OS error inside one of xsk-rs's errors.
fn os_error(error: &dyn std::error::Error) -> io::Error {
    match error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
    {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}

fn invalid(error: impl std::fmt::Display) -> SocketError {
    SocketError::Umem(io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
}

impl XskRings {
    /// Maps a UMEM and binds a socket with it. Nothing is received before the caller gave it frames and
    /// registered it.
    ///
    /// Waits up to a second for a queue that is taken, since a queue that was closed just now still looks
    /// like that.
    ///
    /// # Errors
    /// `Map` with ENOMEM: not so many huge pages. `Umem` with ENOBUFS: over RLIMIT_MEMLOCK. `Bind` with
    /// EBUSY: the queue has a socket; with EINVAL: no such queue; with EOPNOTSUPP: no zero-copy.
    pub fn open(request: &SocketRequest<'_>) -> Result<Self, SocketError> {
        let (limits, ring) = sizes(request.frames);
        let ring = QueueSize::new(ring).map_err(invalid)?;
        let umem_config = UmemConfig::builder()
            .frame_size(FrameSize::new(FRAME_SIZE).map_err(invalid)?)
            .fill_queue_size(ring)
            .comp_queue_size(ring)
            .build()
            .map_err(invalid)?;
        let frame_count = NonZeroU32::new(request.frames).ok_or_else(|| invalid("a UMEM of 0 frames"))?;
        let (umem, frames) = Umem::new(umem_config, frame_count, request.huge_pages).map_err(|error| {
            // xsk-rs tells its two steps apart only in words.
            let source = os_error(&error);
            if error.to_string().contains("mmap") {
                SocketError::Map(source)
            } else {
                SocketError::Umem(source)
            }
        })?;

        let mode = if request.zero_copy { BindFlags::XDP_ZEROCOPY } else { BindFlags::XDP_COPY };
        let config = SocketConfig::builder()
            .rx_queue_size(ring)
            .tx_queue_size(ring)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(mode | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let interface: Interface = request.interface.parse().map_err(invalid)?;
        let start = Instant::now();
        let (transmit, receive, others) = loop {
            // SAFETY: the UMEM is not shared with another socket, and no program is loaded.
            match unsafe { Socket::new(config, &umem, &interface, request.queue) } {
                Ok(rings) => break rings,
                Err(error) => {
                    let source = os_error(&error);
                    if source.raw_os_error() != Some(libc::EBUSY) || start.elapsed() > RELEASE_TIME {
                        return Err(SocketError::Bind(source));
                    }
                    std::thread::sleep(RELEASE_CHECK);
                }
            }
        };
        let (fill, complete) =
            others.ok_or_else(|| SocketError::Bind(io::Error::other("libxdp gave no fill ring")))?;
        let batch = Box::new([FrameDesc::default(); BURST]);
        let rings = Self {
            umem,
            frames: frames.into(),
            batch,
            fill,
            receive,
            transmit,
            complete,
            limits,
            gone: false,
        };
        if request.busy_poll {
            rings.set_option("SO_PREFER_BUSY_POLL", libc::SO_PREFER_BUSY_POLL, PREFER_BUSY_POLL)?;
            rings.set_option("SO_BUSY_POLL", libc::SO_BUSY_POLL, BUSY_POLL_MICROS)?;
            rings.set_option("SO_BUSY_POLL_BUDGET", libc::SO_BUSY_POLL_BUDGET, BUSY_POLL_BUDGET)?;
        }
        Ok(rings)
    }

    /// Frames for each direction; the rings have room for as many.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether the kernel says that this socket is in zero-copy mode.
    ///
    /// # Errors
    /// Whatever getsockopt(2) says.
    pub fn is_zero_copy(&self) -> Result<bool, SocketError> {
        let mut options = libc::xdp_options { flags: 0 };
        let mut length = size_of::<libc::xdp_options>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `options`, which has as many.
        let result = unsafe {
            libc::getsockopt(
                self.as_fd().as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_OPTIONS,
                (&raw mut options).cast(),
                &mut length,
            )
        };
        Errno::result(result).map_err(|errno| SocketError::Mode(errno.into()))?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    fn set_option(
        &self,
        name: &'static str,
        option: libc::c_int,
        value: libc::c_int,
    ) -> Result<(), SocketError> {
        // SAFETY: the kernel reads `size_of(value)` bytes from `value`, which has as many.
        let result = unsafe {
            libc::setsockopt(
                self.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        };
        Errno::result(result)
            .map_err(|errno| SocketError::BusyPoll { option: name, source: errno.into() })?;
        Ok(())
    }
}

impl AsFd for XskRings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the rings keep the socket open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.receive.fd().as_raw_fd()) }
    }
}

impl Rings for XskRings {
    type Descriptor = FrameDesc;

    fn layout(&self) -> Layout {
        Layout { frames: self.frames.len() as u32, frame_size: FRAME_SIZE as usize }
    }

    unsafe fn fill(&mut self, frames: &[u32]) -> bool {
        let Some(batch) = self.batch.get_mut(..frames.len()) else { return false };
        for (descriptor, &frame) in batch.iter_mut().zip(frames) {
            *descriptor = self.frames[frame as usize];
        }
        // SAFETY: descriptors of this UMEM; the caller leaves their frames alone.
        unsafe { self.fill.produce(batch) == frames.len() }
    }

    #[inline]
    fn receive(&mut self, out: &mut [FrameDesc]) -> usize {
        // SAFETY: `out` is only written.
        unsafe { self.receive.consume(out) }
    }

    unsafe fn transmit(&mut self, packets: &[(u32, usize)]) -> bool {
        let Some(batch) = self.batch.get_mut(..packets.len()) else { return false };
        for (descriptor, &(frame, length)) in batch.iter_mut().zip(packets) {
            *descriptor = self.frames[frame as usize];
            // SAFETY: a descriptor of this UMEM; the frame is the caller's. This sets the descriptor's
            // length.
            unsafe { self.umem.data_mut(descriptor) }.cursor().set_pos(length);
        }
        // SAFETY: descriptors of this UMEM; the caller leaves their frames alone.
        unsafe { self.transmit.produce(batch) == packets.len() }
    }

    #[inline]
    fn complete(&mut self, out: &mut [FrameDesc]) -> usize {
        // SAFETY: `out` is only written.
        unsafe { self.complete.consume(out) }
    }

    fn backlog(&mut self) -> (u32, u32) {
        (self.receive.nb_avail_exact(), self.complete.nb_avail_exact())
    }

    #[inline]
    unsafe fn packet(&mut self, descriptor: &FrameDesc) -> &mut [u8] {
        let mut descriptor = *descriptor;
        // SAFETY: the caller says that the descriptor lies within a frame of this UMEM, which is the
        // caller's. The result borrows from `self`, whose UMEM stays mapped as long.
        unsafe {
            let packet: *mut [u8] = self.umem.data_mut(&mut descriptor).contents_mut();
            &mut *packet
        }
    }

    #[inline]
    unsafe fn room(&mut self, frame: u32) -> &mut [u8] {
        let mut descriptor = self.frames[frame as usize];
        // SAFETY: a descriptor of this UMEM, whose frame is the caller's; the rest as for `packet`.
        unsafe {
            let mut data = self.umem.data_mut(&mut descriptor);
            data.cursor().set_pos(FRAME_SIZE as usize);
            let room: *mut [u8] = data.contents_mut();
            &mut *room
        }
    }

    #[inline]
    fn fill_needs_wakeup(&self) -> bool {
        self.fill.needs_wakeup()
    }

    #[inline]
    fn transmit_needs_wakeup(&self) -> bool {
        self.transmit.needs_wakeup()
    }

    fn wake_receive(&mut self) {
        // Other answers do not matter: a queue without packets, a busy driver and an interface that is down
        // for now are all tried again.
        let answer = recv(self.as_fd().as_raw_fd(), &mut [], MsgFlags::MSG_DONTWAIT);
        self.gone |= answer == Err(Errno::ENXIO);
    }

    fn wake_transmit(&mut self) -> Wake {
        match send(self.as_fd().as_raw_fd(), &[], MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOBUFS) => Wake::Again,
            // Other errors are not mended by calling again at once; the packets stay in the ring.
            answer => {
                self.gone |= answer == Err(Errno::ENXIO);
                Wake::Done
            }
        }
    }

    fn is_gone(&self) -> bool {
        self.gone
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn statistics(&self) -> io::Result<RingStatistics> {
        let statistics = self.receive.fd().xdp_statistics()?;
        Ok(RingStatistics {
            dropped: statistics.rx_dropped() + statistics.rx_ring_full(),
            fill_ring_empty: statistics.rx_fill_ring_empty_descs(),
            invalid: statistics.rx_invalid_descs() + statistics.tx_invalid_descs(),
        })
    }
}
