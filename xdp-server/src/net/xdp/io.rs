//! [`PacketIo`] over one AF_XDP queue, with an ordinary socket beside it.
//!
//! Theory of operation
//! -------------------
//! [`XdpIo`] is owned by one worker and joins three parts: the [`Queue`] moves frames, the [`Pacer`] decides
//! when the kernel must be driven, and the *kernel side* `K`, any other [`PacketIo`], carries what does not
//! come through AF_XDP: fragments, packets with IP options, loopback. Answers go out the way that their
//! packets came in, by [`Path::link`](crate::net::Path).
//!
//! The kernel side carries little, and looking at it costs a system call: it is served every
//! `KERNEL_INTERVAL`, or when [`wait`](PacketIo::wait) saw that it is readable. What it has no room for is
//! dropped, as by any UDP socket: making everybody on the AF_XDP side wait for it would be worse.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::pacer::Pacer;
use super::queue::{BURST, Queue, Written};
use super::rings::{RingStatistics, Rings, Wake};
use super::socket::XskRings;
use super::umem::FrameCensus;
use crate::net::sleep::sleep;
use crate::net::{IoCounters, PacketIo, Path, Sent, Sink};

/// Longest time that a packet waits in the ordinary socket while AF_XDP is busy. Larger: fragments and
/// loopback clients see the delay. Smaller: a system call, about 300 ns, that often for nothing; here 0.1% of
/// the time.
const KERNEL_INTERVAL: Duration = Duration::from_micros(250);

/// Most packets taken from the ordinary socket in one turn: a fragment flood must not displace AF_XDP
/// traffic, and a loopback benchmark still gets several 100,000 packets/s.
const KERNEL_BURST: usize = 32;

/// Most calls in one flush to make the kernel send. Copy mode sends 32 packets a call, so that this is 256
/// packets, a fraction of a millisecond. Larger: a fan-out delays receiving. Smaller: it takes more turns.
const WAKE_CALLS: usize = 8;

/// Longest sleep while transmit frames are missing. Nothing wakes a sleeper when completions arrive, which
/// takes tens of microseconds on a NIC.
const BLOCKED_SLEEP: Duration = Duration::from_micros(200);

/// One worker's packet I/O over AF_XDP. See the [module](self).
#[derive(Debug)]
pub struct XdpIo<K, R: Rings = XskRings> {
    queue: Queue<R>,
    pacer: Pacer,
    kernel: K,
    kernel_due: bool,
    kernel_served: Option<Instant>,
    /// The last look into the receive ring found its end.
    drained: bool,
    /// No frame was free to write into.
    blocked: bool,
    /// Calls of `send` that were blocked.
    tx_blocked: u64,
    /// Packets that the kernel side had no room for.
    detour_drops: u64,
    statistics: RingStatistics,
}

impl<K: PacketIo, R: Rings> XdpIo<K, R> {
    /// Joins the parts.
    ///
    /// - `busy_poll`: the queue's socket is set up for busy polling, and this worker's calls drive the NIC.
    /// - `kernel`: an ordinary socket on the same port.
    pub fn new(queue: Queue<R>, busy_poll: bool, kernel: K) -> Self {
        Self {
            queue,
            pacer: Pacer::new(busy_poll),
            kernel,
            kernel_due: true,
            kernel_served: None,
            drained: true,
            blocked: false,
            tx_blocked: 0,
            detour_drops: 0,
            statistics: RingStatistics::default(),
        }
    }

    /// Where all frames are at this moment. Costs a pass over the book of frames: for tests and debugging.
    pub fn census(&mut self) -> FrameCensus {
        self.queue.census()
    }

    /// The rings, for a test that plays the kernel.
    #[cfg(test)]
    pub(super) fn rings_mut(&mut self) -> &mut R {
        self.queue.rings_mut()
    }

    /// The ordinary socket, for a test that plays it.
    #[cfg(test)]
    pub(super) fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Makes the kernel send what is in the transmit ring.
    fn drive_transmit(&mut self, now: Instant) {
        let mut wake = Wake::Again;
        for _ in 0..WAKE_CALLS {
            wake = self.queue.rings_mut().wake_transmit();
            if wake == Wake::Done {
                break;
            }
            // Its budget for one call may not have been what stopped the kernel, but a full completion ring.
            self.reclaim();
        }
        self.pacer.transmitted(now, wake == Wake::Done);
    }

    fn reclaim(&mut self) {
        if self.queue.reclaim() {
            self.blocked = false;
        }
    }
}

impl<K: PacketIo, R: Rings> PacketIo for XdpIo<K, R> {
    fn receive(&mut self, budget: usize, sink: &mut impl Sink) -> usize {
        let mut handed = 0;
        if self.kernel_due {
            let most = budget.min(KERNEL_BURST);
            handed = self.kernel.receive(most, sink);
            // What it did not get rid of in this turn it has for the next.
            self.kernel_due = handed == most;
        }
        // Packets that are refused count against the budget too: a flood of them must not keep the turn from
        // ending.
        let mut left = budget.saturating_sub(handed);
        while left > 0 {
            let asked = left.min(BURST);
            let (taken, good) = self.queue.receive(asked, sink);
            handed += good;
            left -= taken;
            self.drained = taken < asked;
            if self.drained {
                break;
            }
        }
        self.queue.refill();
        handed
    }

    fn send(&mut self, fill: &mut impl FnMut(&mut [u8]) -> Option<(usize, Path)>) -> Sent {
        let mut sent = Sent::default();
        let kernel = &mut self.kernel;
        let drops = &mut self.detour_drops;
        let mut detoured = 0;
        let mut detour = |path: &Path, payload: &[u8]| {
            let mut once = Some(payload);
            let taken = kernel.send(&mut |room| {
                let payload = once.take()?;
                room.get_mut(..payload.len())?.copy_from_slice(payload);
                Some((payload.len(), *path))
            });
            detoured += taken.packets;
            *drops += u64::from(taken.packets == 0);
        };
        loop {
            match self.queue.write(fill, &mut detour) {
                Written::Packet => {
                    sent.packets += 1;
                    self.pacer.queued();
                }
                Written::Detour => {}
                Written::Nothing => break,
                Written::Blocked => {
                    sent.blocked = true;
                    self.blocked = true;
                    self.tx_blocked += 1;
                    break;
                }
            }
        }
        sent.packets += detoured;
        sent
    }

    fn flush(&mut self, now: Instant) {
        self.queue.push();
        self.kernel.flush(now);
        if !self.pacer.transmit_due(now, self.queue.is_transmitting()) {
            return;
        }
        if self.queue.rings().transmit_needs_wakeup() {
            self.drive_transmit(now);
        } else {
            // The driver is at it and will find these packets too.
            self.pacer.transmitted(now, true);
        }
    }

    fn serve(&mut self, now: Instant) {
        self.reclaim();
        self.queue.refill();
        let needs_wakeup = self.queue.rings().fill_needs_wakeup();
        if self.pacer.receive_due(now, self.drained, needs_wakeup) {
            if self.pacer.is_busy() && self.pacer.is_pending() {
                // One call for both sides.
                self.queue.push();
                self.drive_transmit(now);
            } else {
                self.queue.rings_mut().wake_receive();
                self.pacer.received(now);
            }
        }
        let served = self.kernel_served.map(|at| now.saturating_duration_since(at));
        if served.is_none_or(|ago| ago >= KERNEL_INTERVAL) {
            self.kernel.serve(now);
            self.kernel_served = Some(now);
            self.kernel_due = true;
        }
    }

    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> io::Result<()> {
        let now = Instant::now();
        self.queue.push();
        self.kernel.flush(now);
        if self.pacer.is_pending() {
            self.drive_transmit(now);
        }
        let was_blocked = self.blocked;
        self.reclaim();
        self.queue.refill();
        if was_blocked && !self.blocked {
            return Ok(());
        }
        let timeout = if self.blocked { timeout.min(BLOCKED_SLEEP) } else { timeout };

        // `wake` stands in for a descriptor that does not exist: waiting for it twice is harmless.
        let ring = self.queue.rings().poll_fd();
        let kernel = self.kernel.poll_fd();
        let mut fds = [ring, kernel, Some(wake)].map(|fd| PollFd::new(fd.unwrap_or(wake), PollFlags::POLLIN));
        sleep(&mut fds, timeout)?;
        let ready = fds.map(|fd| fd.any().unwrap_or(false));
        self.kernel_due |= kernel.is_some() && ready[1];
        if ready == [false; 3] {
            // Poll reports nothing of a socket whose interface is gone; a call for its rings does. Nothing
            // happened, so that there is time to ask.
            self.queue.rings_mut().wake_receive();
        }
        if self.queue.rings().is_gone() {
            return Err(io::Error::new(
                io::ErrorKind::NetworkDown,
                "the AF_XDP socket lost its interface: it was removed, or went to another network namespace",
            ));
        }
        Ok(())
    }

    fn finish(&mut self) {
        self.kernel.finish();
    }

    fn counters(&mut self) -> IoCounters {
        if let Ok(statistics) = self.queue.rings().statistics() {
            self.statistics = statistics;
        }
        let own = self.queue.counters();
        // Without `..`, so that a new counter cannot be forgotten here.
        let IoCounters {
            rx_packets,
            rx_bytes,
            rx_kernel_packets: _,
            tx_packets,
            tx_bytes,
            tx_blocked,
            tx_errors,
            tx_trains_refused,
            sq_full,
            rx_truncated,
            rx_not_ours,
            rx_too_long,
            rx_kernel_drops,
            fill_ring_empty,
            invalid_descriptors,
        } = self.kernel.counters();
        IoCounters {
            rx_packets: own.rx_packets + rx_packets,
            rx_bytes: own.rx_bytes + rx_bytes,
            rx_kernel_packets: rx_packets,
            tx_packets: own.tx_packets + tx_packets,
            tx_bytes: own.tx_bytes + tx_bytes,
            tx_blocked: self.tx_blocked + tx_blocked,
            tx_errors: own.tx_errors + self.detour_drops + tx_errors,
            tx_trains_refused,
            sq_full,
            rx_truncated: own.rx_truncated + rx_truncated,
            rx_not_ours: own.rx_not_ours + rx_not_ours,
            rx_too_long: own.rx_too_long + rx_too_long,
            rx_kernel_drops: self.statistics.dropped + rx_kernel_drops,
            fill_ring_empty: self.statistics.fill_ring_empty + fill_ring_empty,
            invalid_descriptors: own.invalid_descriptors + self.statistics.invalid + invalid_descriptors,
        }
    }
}
