//! The `socket` backend: ordinary UDP sockets, by `recvmmsg` and `sendmmsg`. It needs no privilege and no
//! driver, and serves beside AF_XDP what the XDP program passes on.
//!
//! Theory of operation
//! -------------------
//! [`SocketGroup::bind`] makes one socket for each worker, all on one port (`bind`); [`steer`] lets the
//! kernel deliver each packet to the worker that its connection ID names. Each worker owns its [`SocketIo`]:
//! the socket, a batch of receive slots (`rx`) and a ring of transmit slots (`tx`). Nothing is shared, and
//! nothing is allocated once packets flow.
//!
//! - **In**: one `recvmmsg` fills up to 64 slots; each payload is lent to the worker where it lies. The
//!   address that the peer wrote to comes with each datagram (`IP_PKTINFO`), since a wildcard socket has
//!   many.
//! - **Out**: packets are sealed in the slots of the ring, and one `sendmmsg` takes them all at
//!   [`flush`](PacketIo::flush) or when the ring is full. The source address of each is set to that of its
//!   path, so that a host with many addresses answers from the one that was asked.
//! - **Offloads**, where sockets are the backend and not beside AF_XDP ([`enable_offloads`]): consecutive
//!   packets to one peer leave as one message (GSO), and what the kernel has merged on arrival is taken as
//!   one buffer and handed out payload by payload (GRO). Which packets those are is decided in
//!   [`segment`](super::segment).
//! - **Back pressure**: a full socket buffer keeps packets in the ring, in order; once the ring is full too,
//!   `send` says `blocked`. Every other error belongs to one packet: it is counted and that packet dropped,
//!   as a network may.
//!
//! What the offloads save, in CPU time for each packet of 1200 bytes on a 2-core virtual machine (Linux
//! 6.18), medians of three interleaved runs each. A tick's diffs to one client are a train of a few packets,
//! an image's are trains of 16:
//!
//! | packets in a train | 1 | 2 | 4 | 16 |
//! |---|---|---|---|---|
//! | send one by one | 3.1 us | 3.1 us | 3.1 us | 3.1 us |
//! | send by GSO, cut up by the kernel | | 2.2 us | 1.4 us | 0.79 us |
//! | send by GSO, cut up by the NIC | 3.1 us | 1.6 us | 0.88 us | 0.27 us |
//! | receive one by one | 0.81 us | | 0.84 us | 0.81 us |
//! | receive by GRO | 0.82 us | | 0.24 us | 0.10 us |
//!
//! Sending is over veth, with what the other end does included, receiving from a full socket buffer. In a
//! whole server on loopback, with 60 clients that watch what 200 others paint at 100,000 messages/s, the
//! kernel's part of a packet went from 3.1 to 2.5 us; where clients only paint, in single packets, there was
//! no difference beyond the noise.
//!
//! Fragments are neither sent (see `bind`) nor seen, as the kernel reassembles those received.

pub(super) mod addr;
mod bind;
pub(super) mod control;
pub(super) mod counters;
mod memory;
mod offload;
mod rx;
pub mod steer;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use socket2::Socket;

pub use self::bind::{BindError, SocketConfig, SocketGroup, SocketNote};
pub use self::offload::enable_offloads;

use self::addr::Family;
use self::counters::SocketCounters;
use self::rx::{Received, RxBatch};
use self::tx::TxQueue;
use super::sleep::sleep;
use super::{IoCounters, Link, PacketIo, Path, Sent, Sink};

/// One worker's UDP socket. Made by [`SocketGroup::bind`].
pub struct SocketIo {
    socket: Socket,
    local: SocketAddr,
    rx: RxBatch,
    tx: TxQueue,
    counters: SocketCounters,
}

impl SocketIo {
    /// Takes over `socket`, which is bound to `local`.
    fn new(socket: Socket, local: SocketAddr) -> Self {
        let family = Family::of(&local);
        Self {
            socket,
            local,
            rx: RxBatch::new(family, false),
            tx: TxQueue::new(family),
            counters: SocketCounters::default(),
        }
    }

    /// What the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What to poll [`poll_fd`](Self::poll_fd) for: input, and room for packets that are queued. To be asked
    /// after a [`flush`](PacketIo::flush), when only those are left that the socket buffer had no room for.
    pub fn poll_flags(&self) -> PollFlags {
        if self.tx.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT }
    }

    /// The socket and what it is bound to, for another backend. What was received or queued is lost.
    pub(super) fn into_parts(self) -> (Socket, SocketAddr) {
        (self.socket, self.local)
    }

    fn transmit(&mut self) {
        self.counters.io.tx_errors += self.tx.transmit(self.socket.as_fd());
    }
}

impl AsFd for SocketIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for SocketIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketIo")
            .field("local", &self.local)
            .field("counters", &self.counters.io)
            .finish_non_exhaustive()
    }
}

impl PacketIo for SocketIo {
    fn receive(&mut self, budget: usize, sink: &mut impl Sink) -> usize {
        let mut handed_over = 0;
        let mut emptied = false;
        // Payloads that are refused count against the budget too: a flood of them must not keep the turn from
        // ending.
        let mut left = budget;
        while left > 0 {
            let Some(received) = self.rx.next(self.local.port()) else {
                if emptied {
                    break;
                }
                // An error that is pending on the socket is reported once and is nobody's in particular; like
                // an empty socket it ends this turn, and the next one reads on.
                let Ok(empty) = self.rx.receive(self.socket.as_fd(), left) else { break };
                emptied = empty;
                self.rx.announce(sink);
                continue;
            };
            left -= 1;
            match received {
                Received::Datagram { peer, local, payload } => {
                    self.counters.received(payload.len());
                    handed_over += 1;
                    sink.take(&Path { local, peer, link: Link::Kernel }, payload);
                }
                Received::TooLong => self.counters.io.rx_too_long += 1,
                Received::Nameless => self.counters.io.rx_not_ours += 1,
            }
        }
        handed_over
    }

    fn send(&mut self, fill: &mut impl FnMut(&mut [u8]) -> Option<(usize, Path)>) -> Sent {
        let mut sent = Sent::default();
        loop {
            if self.tx.is_full() {
                self.transmit();
            }
            if self.tx.is_full() {
                self.counters.io.tx_blocked += 1;
                sent.blocked = true;
                return sent;
            }
            let Some((length, path)) = fill(self.tx.room()) else { return sent };
            sent.packets += self.counters.sent(length, self.tx.push(length, &path));
        }
    }

    /// Sends what is queued, every turn: the turn has batched it already, and the kernel's work for each
    /// packet outweighs the system call that more batching would save.
    fn flush(&mut self, _now: Instant) {
        self.transmit();
    }

    /// Nothing: the kernel refills and reclaims its own buffers.
    fn serve(&mut self, _now: Instant) {}

    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> io::Result<()> {
        self.transmit();
        if !self.rx.is_empty() {
            return Ok(()); // the rest of a GRO buffer is to be received, of which the socket knows nothing
        }
        let socket = PollFd::new(self.socket.as_fd(), self.poll_flags());
        sleep(&mut [socket, PollFd::new(wake, PollFlags::POLLIN)], timeout)
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn counters(&mut self) -> IoCounters {
        self.counters.read(self.socket.as_fd(), self.tx.trains_refused())
    }
}
