//! The `io_uring` backend: ordinary UDP sockets without a system call for each batch each way.
//!
//! Theory of operation
//! -------------------
//! [`open`] makes a ring for each worker, while main can still take another backend; [`Rings::serve`] puts
//! the rings over the sockets of a [`SocketGroup`](super::socket::SocketGroup). Each worker owns its
//! [`UringIo`]: ring, socket, receive buffers and transmit arena. Nothing is shared, and nothing is allocated
//! once packets flow.
//!
//! ```text
//!                  ┌──────────────────────── UringIo, one worker ────────────────────────┐
//!                  │ completion queue ──► Receiver: buffers, filled ──► sink(path, &mut payload)
//!   kernel  ◄────► │                  └─► TxQueue: trains ◄──────────── fill(&mut payload)
//!                  │ submission queue ◄── one receive for all packets; each flush's trains; the wake-up
//!                  └─────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! - **In**: one multishot receive fills buffers ahead of us (`rx`); payloads are lent to the worker where
//!   they lie.
//! - **Out**: packets are sealed in the arena (`tx`), and one submission takes the trains of a turn, each of
//!   them one message (GSO). That call also lets the kernel do the work of packets that have arrived, so that
//!   a busy worker's turn is one or two system calls.
//! - **Back pressure**: when the socket buffer is full the kernel keeps the operation until there is room.
//!   The packets stay in the arena, in order; once that is full too, `send` says `blocked`.
//! - **Sleep**: in the ring itself, where a poll of the wake-up descriptor waits like any other operation:
//!   with `DEFER_TASKRUN` nothing completes unless we are in there.
//!
//! A ring belongs to one thread. The worker's first call makes it that one's, and
//! [`finish`](PacketIo::finish) cancels what is under way there and waits for its end. Memory that the kernel
//! may still use is never freed: an I/O that is dropped elsewhere without having been finished leaves it
//! behind.
//!
//! What it is worth: CPU time for each packet over loopback, with what the kernel does at the other end
//! included; medians of four interleaved runs on a 2-core virtual machine (Linux 6.18), which vary by 10%:
//!
//! | | socket | io_uring |
//! |---|---|---|
//! | send 1200 bytes, to 64 peers in turn | 2.7 us | 3.2 us |
//! | likewise, trains of 4 | 1.18 us | 1.24 us |
//! | likewise, trains of 16 | 0.63 us | 0.63 us |
//! | receive 60 bytes from a full socket buffer | 0.73 us | 0.77 us |
//! | receive 64 packets, answer each to its peer | 3.3 us | 3.6 us |
//! | receive 1 packet, answer it | 5.0 us | 5.9 us |
//!
//! So an operation costs the kernel slightly more than a message of `sendmmsg`, and segmentation, which both
//! backends have, is worth far more than the choice between them. What io_uring saves is looking: in a whole
//! server with 200 clients that painted 200,000 messages/s, a worker took six times as many turns, and the
//! kernel's part was 1.2 us for each packet against 1.6 us; the sum of both parts was the same within noise.
//!
//! What was tried and lost, in the first three rows:
//!
//! | plain | 2.8 us | 1.26 us | 0.69 us |
//! |---|---|---|---|
//! | zero-copy send (`SENDMSG_ZC`) | 4.5 us | 1.5 us | 0.80 us |
//! | registered file | 3.1 us | 1.24 us | 0.69 us |
//!
//! - Zero-copy send has a second completion for each train, and saves nothing at these lengths. On loopback,
//!   where this was measured, the kernel copies after all.
//! - Registered buffers are for `SEND_ZC` only, which has no control data, hence neither source address nor
//!   segment size.
//! - 64 receive buffers instead of 256 made no difference.
//!
//! | file | question that it answers |
//! |---|---|
//! | `open` | which rings does this kernel give us? |
//! | `error` | why none, and what would mend it? |
//! | `ring` | how are operations submitted, completed and waited for? |
//! | `supply` | how does the kernel get buffers to receive into? |
//! | `rx` | where do packets arrive, and how are they handed out? |
//! | `tx` | where do they leave from, and what may be reused when? |
//! | `memory` | what may the kernel hold on to? |
//!
//! All unsafe code is in `ring`, `supply`, `rx`, `tx`, `memory`, and where the wake-up is watched, here.

mod error;
mod memory;
mod open;
mod ring;
mod rx;
mod supply;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::opcode;
use io_uring::types::Fd;
use socket2::Socket;

pub use self::error::UringError;
pub use self::open::{Rings, UringConfig, UringNote, open};

use self::ring::{Full, Ring, Token};
use self::rx::{Received, Receiver};
use self::supply::Supply;
use self::tx::TxQueue;
use super::socket::addr::Family;
use super::socket::counters::SocketCounters;
use super::{IoCounters, Link, PacketIo, Path, Sent, Sink};

/// Rounds of cancelling and waiting when an I/O is finished. One or two suffice, or a few more if the
/// submission queue has fewer entries than there are operations. More: a stop takes longer if the kernel does
/// not answer. Fewer: memory may be left behind.
const FINISH_ROUNDS: usize = 64;

/// Longest time of one such round. Cancelling takes microseconds, but a kernel thread (`sqpoll`) that has to
/// wake up first may be the one to do it.
const FINISH_SLEEP: Duration = Duration::from_millis(10);

/// One worker's packet I/O over io_uring. Made by [`Rings::serve`].
pub struct UringIo {
    ring: Ring,
    rx: Receiver,
    tx: TxQueue,
    wake: Watch,
    socket: Socket,
    local: SocketAddr,
    /// The last call of `send` found no room.
    blocked: bool,
    counters: SocketCounters,
}

/// The poll of the wake-up descriptor.
#[derive(Default)]
struct Watch {
    /// The descriptor that is being polled.
    armed: Option<RawFd>,
    /// Tells a poll from an earlier one, of which the end may still come.
    number: u64,
}

impl UringIo {
    /// Takes over a ring that is not enabled yet, its supply of receive buffers, and `socket`, which is bound
    /// to `local`.
    fn new(ring: Ring, supply: Supply, socket: Socket, local: SocketAddr) -> Self {
        let family = Family::of(&local);
        Self {
            ring,
            rx: Receiver::new(socket.as_raw_fd(), (family, local.port()), supply),
            tx: TxQueue::new(family),
            wake: Watch::default(),
            socket,
            local,
            blocked: false,
            counters: SocketCounters::default(),
        }
    }

    /// What the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Number of receive buffers.
    pub fn buffers(&self) -> usize {
        self.rx.buffers().into()
    }

    /// Hands what is queued to the kernel, if there is anything or the kernel has something to do, and takes
    /// in what has completed.
    ///
    /// # Errors
    /// What io_uring_enter(2) or io_uring_register(2) says. What is queued stays so.
    fn enter(&mut self) -> io::Result<()> {
        self.ring.start()?;
        self.rx.arm(&mut self.ring);
        let result = self.ring.submit();
        self.reap();
        result
    }

    /// Takes in what has completed.
    fn reap(&mut self) {
        while let Some(completion) = self.ring.next_completion() {
            match completion.token {
                Token::Receive(buffer) => self.rx.complete(buffer, &completion),
                Token::Send(train) => self.counters.io.tx_errors += self.tx.complete(train, &completion),
                Token::Wake(number) if number == self.wake.number => self.wake.armed = None,
                Token::Wake(_) | Token::Cancel => {}
            }
        }
    }

    /// Sends what is queued, until that is all, or the kernel keeps some of it.
    fn transmit(&mut self) {
        if self.ring.start().is_err() {
            return;
        }
        while self.tx.queued() > 0 && self.tx.in_flight() == 0 {
            let before = self.tx.progress();
            self.tx.submit(&mut self.ring, self.socket.as_raw_fd());
            if self.enter().is_err() || self.tx.progress() == before {
                return;
            }
        }
    }

    fn is_under_way(&self) -> bool {
        self.rx.under_way() > 0 || self.tx.in_flight() > 0 || self.wake.armed.is_some()
    }
}

impl Watch {
    /// Polls `wake`, if that is not being done already.
    fn arm(&mut self, ring: &mut Ring, wake: BorrowedFd<'_>) -> Result<(), Full> {
        let wake = wake.as_raw_fd();
        if self.armed == Some(wake) {
            return Ok(());
        }
        self.cancel(ring)?;
        let entry = opcode::PollAdd::new(Fd(wake), libc::POLLIN as u32).build();
        // SAFETY: the entry points to nothing; the kernel keeps the file itself.
        unsafe { ring.push(entry, Token::Wake(self.number + 1)) }?;
        self.number += 1;
        self.armed = Some(wake);
        Ok(())
    }

    fn cancel(&self, ring: &mut Ring) -> Result<(), Full> {
        if self.armed.is_some() { ring.cancel(Token::Wake(self.number)) } else { Ok(()) }
    }
}

impl PacketIo for UringIo {
    fn receive(&mut self, budget: usize, sink: &mut impl Sink) -> usize {
        let mut handed_over = 0;
        // Payloads that are refused count against the budget too: a flood of them must not keep the turn from
        // ending.
        let mut left = budget;
        while left > 0 {
            let Some(received) = self.rx.next() else {
                if self.enter().is_err() || !self.rx.is_ready() {
                    break;
                }
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
            if !self.tx.has_room() {
                self.transmit();
            }
            let Some(room) = self.tx.room() else {
                self.counters.io.tx_blocked += 1;
                self.blocked = true;
                sent.blocked = true;
                return sent;
            };
            let Some((length, path)) = fill(room) else { return sent };
            sent.packets += self.counters.sent(length, self.tx.push(length, &path));
        }
    }

    /// Sends what is queued, every turn: see the socket backend's.
    fn flush(&mut self, _now: Instant) {
        self.transmit();
    }

    /// Takes in what has completed since, which needs no system call: that of [`flush`](Self::flush) has let
    /// the kernel do its part.
    fn serve(&mut self, _now: Instant) {
        self.reap();
    }

    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> io::Result<()> {
        self.transmit();
        self.enter()?;
        let room_is_back = self.blocked && self.tx.has_room();
        self.blocked &= !room_is_back;
        if room_is_back || self.rx.is_ready() {
            return Ok(());
        }
        if self.wake.arm(&mut self.ring, wake).is_err() {
            // It has room again after this, in the next turn.
            return self.ring.submit();
        }
        self.ring.submit_and_sleep(timeout)?;
        self.reap();
        Ok(())
    }

    fn finish(&mut self) {
        if !self.ring.is_issuer() {
            return;
        }
        for _ in 0..FINISH_ROUNDS {
            self.tx.cancel(&mut self.ring);
            self.rx.cancel(&mut self.ring);
            let _ = self.wake.cancel(&mut self.ring);
            if !self.is_under_way() || self.ring.submit_and_sleep(FINISH_SLEEP).is_err() {
                return;
            }
            self.reap();
        }
    }

    fn counters(&mut self) -> IoCounters {
        let counters = self.counters.read(self.socket.as_fd(), self.tx.trains_refused());
        IoCounters { sq_full: self.ring.sq_full(), ..counters }
    }
}

impl Drop for UringIo {
    fn drop(&mut self) {
        self.finish();
        if self.is_under_way() {
            self.rx.leak();
            self.tx.leak();
        }
    }
}

impl std::fmt::Debug for UringIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringIo")
            .field("local", &self.local)
            .field("buffers", &self.rx.buffers())
            .field("trains", &self.tx.census())
            .field("counters", &self.counters.io)
            .finish_non_exhaustive()
    }
}
