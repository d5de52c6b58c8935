//! Packet I/O: how UDP payloads enter and leave a worker.
//!
//! Theory of operation ------------------- Each worker owns one [`PacketIo`], chosen once at start and
//! monomorphised into the worker's loop. The trait moves whole UDP payloads, in batches, without a copy of
//! its own:
//!
//! - **In**: [`PacketIo::receive`] lends every received payload as `&mut [u8]`, in the very memory that the
//!   backend received it into (a UMEM frame, a `recvmmsg` buffer), so that QUIC decrypts in place. The loan
//!   ends with the call.
//! - **Out**: [`PacketIo::send`] lends the payload part of the next transmit buffer, past the room kept for
//!   headers, so that QUIC seals the packet where it leaves from. The packets of one call are a *train*:
//!   usually all to one peer, which is what a backend with segmentation offload needs to know.
//!
//! Layering: `net` knows descriptors, rings, sockets and headers; it never sees a QUIC type. What is above
//! never sees a file descriptor, but for [`PacketIo::wait`], which sleeps on one that belongs to
//! [`crate::link`].
//!
//! Nothing here allocates, blocks (but for `wait`) or panics on any input. Bad packets are counted by cause
//! in [`IoCounters`].

pub mod checksum;
#[cfg(test)]
mod datagram_tests;
pub mod frame;
pub mod segment;
pub mod sim;
mod sleep;
pub mod socket;
pub mod uring;
pub mod xdp;

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Largest UDP payload that any backend must be able to receive, in bytes: an Ethernet frame of 1500 bytes
/// less the smallest IP and UDP headers. It is what the server advertises as `max_udp_payload_size`, so that
/// a conforming peer never sends more. A larger value needs UMEM frames above 2048 bytes.
pub const MAX_RX_PAYLOAD: usize = 1472;

/// Room that [`PacketIo::send`] lends for one payload, in bytes. QUIC's minimum path MTU (RFC 9000, section
/// 14): it crosses every path, tunnels with an IPv6 MTU of 1280 included. A larger value would need path MTU
/// discovery.
pub const MAX_TX_PAYLOAD: usize = 1200;

/// The Ethernet addresses of a path, as learnt from a received frame: a server that only ever answers needs
/// no ARP table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Our address: destination of what we receive, source of what we send.
    pub local: [u8; 6],
    /// The next hop's address.
    pub peer: [u8; 6],
    /// 802.1Q tag control information (priority, DEI, VLAN id), when the frame was tagged.
    pub vlan: Option<u16>,
}

/// Which way a packet came in, and so its answer goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Through the kernel's UDP stack: the socket backends, and beside AF_XDP what the XDP program passed on
    /// (fragments, IP options, loopback).
    Kernel,
    /// Through an AF_XDP ring.
    Ethernet(Ethernet),
}

/// Where a packet came from; equally, how to reach that peer.
///
/// Addresses are canonical: an IPv4 peer is always `SocketAddr::V4`, never a mapped IPv6 address, whichever
/// backend saw it, so that one peer has one address on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Our address and port, as the peer sees them.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub peer: SocketAddr,
    /// Way in and out.
    pub link: Link,
}

/// What a call of [`PacketIo::send`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets accepted for transmission.
    pub packets: u32,
    /// No transmit buffer was free: the caller has, or may have, more to send and should come back after
    /// [`PacketIo::serve`] reclaimed some.
    pub blocked: bool,
}

/// Counters of a backend, all since start. Packets unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Payloads handed to the worker.
    pub rx_packets: u64,
    /// Their UDP payload bytes.
    pub rx_bytes: u64,
    /// Of `rx_packets`: those that came through the ordinary socket beside AF_XDP.
    pub rx_kernel_packets: u64,
    /// Packets accepted for transmission.
    pub tx_packets: u64,
    /// Their UDP payload bytes.
    pub tx_bytes: u64,
    /// Calls of `send` that found no transmit buffer free.
    pub tx_blocked: u64,
    /// Packets that the kernel refused to send (unreachable, too long, no buffers).
    pub tx_errors: u64,
    /// Trains that the kernel refused to send as one message, and whose packets were then sent one by one.
    pub tx_trains_refused: u64,
    /// Times that an operation found the submission queue full, to wait for the next submission (io_uring).
    pub sq_full: u64,
    /// Frames dropped: too short for their headers, or lengths that contradict each other.
    pub rx_truncated: u64,
    /// Frames dropped: not UDP over IPv4 or IPv6 to us. The XDP program should have passed these to the
    /// kernel.
    pub rx_not_ours: u64,
    /// Payloads dropped: longer than [`MAX_RX_PAYLOAD`].
    pub rx_too_long: u64,
    /// The kernel dropped, for want of room in the receive ring or socket buffer.
    pub rx_kernel_drops: u64,
    /// The kernel found the fill ring empty (AF_XDP).
    pub fill_ring_empty: u64,
    /// Descriptors that the kernel rejected as invalid (AF_XDP). Not zero means a bug here.
    pub invalid_descriptors: u64,
}

/// Who takes received payloads: a worker, or any closure that takes them one by one.
pub trait Sink {
    /// `payload` was received and will be handed over soon, behind others of its burst: the moment to start
    /// fetching from memory what it will need, so that the misses of a burst overlap. A hint: backends give
    /// it where they see a burst ahead, in the order of what follows, but not for every payload.
    fn announce(&mut self, payload: &[u8]) {
        let _ = payload;
    }

    /// Takes one payload, which came along `path`. It may be changed in place; the loan ends with the call.
    fn take(&mut self, path: &Path, payload: &mut [u8]);
}

impl<F: FnMut(&Path, &mut [u8])> Sink for F {
    fn take(&mut self, path: &Path, payload: &mut [u8]) {
        self(path, payload);
    }
}

/// One worker's packet I/O. See the [module](self) for the contract.
pub trait PacketIo {
    /// Hands up to `budget` received payloads to `sink`, oldest first, and returns how many it handed over.
    /// Never blocks. A payload's memory goes back to the backend when `sink` has taken it.
    fn receive(&mut self, budget: usize, sink: &mut impl Sink) -> usize;

    /// Sends packets until `fill` has no more or no transmit buffer is free.
    ///
    /// `fill` gets [`MAX_TX_PAYLOAD`] bytes of the next transmit buffer, writes a payload at their start and
    /// returns its length and where it goes, or `None` when there is nothing (more) to send; what it wrote is
    /// then discarded. It is only called when there is a buffer, so that a packet that QUIC has sealed is
    /// never lost here for want of room. Packets may stay queued in the backend until [`flush`](Self::flush).
    fn send(&mut self, fill: &mut impl FnMut(&mut [u8]) -> Option<(usize, Path)>) -> Sent;

    /// Pushes what was sent towards the wire. Called once a turn; a backend decides by batch and by age
    /// whether a system call is due.
    fn flush(&mut self, now: Instant);

    /// Routine work, once a turn, before `receive`: reclaims transmitted buffers, refills receive rings,
    /// drives the kernel's busy polling.
    fn serve(&mut self, now: Instant);

    /// Sleeps until there is something to receive, `wake` is readable, transmit room that was missing is
    /// back, or `timeout` has passed. Flushes first. `wake` is the same in every call: a backend may keep
    /// watching it.
    ///
    /// # Errors
    /// Whatever poll(2) says but `EINTR`, which is a normal return.
    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> io::Result<()>;

    /// Ends what is under way, for a backend whose operations belong to the worker's thread. The worker's
    /// last call, on that thread; what is queued and not flushed is lost.
    fn finish(&mut self) {}

    /// The descriptor that becomes readable when there is something to receive, for a backend that runs
    /// beside another one, which then waits for both. `None`: never beside another one.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Counters since start. May cost a system call: housekeeping, not the packet path.
    fn counters(&mut self) -> IoCounters;
}
