//! The `sim` backend: a network in memory, for tests of a whole worker against real QUIC clients, without
//! sockets or privileges, with every misfortune of a real network and all of it decided by a seed.
//!
//! It is public for the tests of this and other crates. No flag of the program names it, and nothing in the
//! program makes one, so a server never runs on it.
//!
//! Theory of operation
//! -------------------
//! A [`SimNet`] connects one server of some queues, each with its [`SimIo`], to any number of [`SimClient`]s.
//! Each queue and each client has an inbox. On the way into it a packet may be lost, doubled, or held back
//! until up to `reorder_distance` younger packets of that inbox have overtaken it. Time plays no part: a
//! packet moves when somebody sends, flushes or polls, so a single-threaded test is repeatable to the last
//! packet. An inbox that is polled when dry brings what it holds back one packet nearer, so nothing is held
//! for ever.
//!
//! A client's packets enter by the queue that the client is set to, as RSS would choose, and carry its
//! address as the peer's. [`SimClient::rebind`] changes both as a NAT does: what is sent to the old address
//! is lost from then on.
//!
//! All state is behind one lock, held only within calls, so that worker and clients may also run on threads
//! of their own; then the seed still bounds, but no longer orders, what happens. [`PacketIo::wait`] really
//! sleeps.

mod link;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::link::{Direction, Packet, Random};
use super::sleep::sleep;
use super::{IoCounters, Link, MAX_RX_PAYLOAD, MAX_TX_PAYLOAD, PacketIo, Path, Sent, Sink};

/// What the network does to packets, and how much room the server has. The default is a perfect network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimConfig {
    /// Probability that a packet is lost, 0 to 1.
    pub loss: f64,
    /// Probability that a packet arrives twice, 0 to 1.
    pub duplicate: f64,
    /// Probability that a packet is held back, 0 to 1.
    pub reorder: f64,
    /// By how many younger packets at most a packet that is held back is overtaken.
    pub reorder_distance: usize,
    /// Transmit buffers of each queue. They are free again after [`PacketIo::flush`]; few of them make `send`
    /// block.
    pub tx_slots: usize,
    /// Packets that each queue's inbox takes before it drops more, as a kernel does for want of room.
    pub rx_slots: usize,
    /// What the server is told about how packets came in.
    pub link: Link,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_distance: 8,
            tx_slots: 256,
            rx_slots: 4096,
            link: Link::Kernel,
        }
    }
}

/// What became of the packets of both directions so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Packets that entered the network.
    pub sent: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Doubled.
    pub duplicated: u64,
    /// Held back, duplicates included.
    pub reordered: u64,
    /// Lost because a queue's inbox was full.
    pub dropped: u64,
    /// Lost because no client has the address that they were sent to.
    pub unroutable: u64,
}

/// A simulated network. A handle: clones are the same network.
#[derive(Clone)]
pub struct SimNet {
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    config: SimConfig,
    /// One for each queue: readable once something was sent to it.
    doorbells: Vec<EventFd>,
    state: Mutex<State>,
}

struct State {
    random: Random,
    stats: SimStats,
    queues: Vec<Queue>,
    /// Which client has which address; the index is into `clients`.
    addresses: HashMap<SocketAddr, usize>,
    clients: Vec<Direction>,
}

#[derive(Default)]
struct Queue {
    inbox: Direction,
    drops: u64,
}

impl Shared {
    /// A test that failed while it held the lock has left nothing half done here: each change is complete in
    /// itself.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimNet {
    /// A network with a server at `server`, and the server's packet I/O by queue.
    ///
    /// # Errors
    /// If the kernel has no event descriptor to give.
    pub fn new(
        seed: u64,
        config: SimConfig,
        server: SocketAddr,
        queues: NonZeroUsize,
    ) -> io::Result<(Self, Vec<SimIo>)> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let doorbells = (0..queues.get())
            .map(|_| EventFd::from_value_and_flags(0, flags).map_err(io::Error::from))
            .collect::<io::Result<Vec<_>>>()?;
        let state = State {
            random: Random::new(seed),
            stats: SimStats::default(),
            queues: (0..queues.get()).map(|_| Queue::default()).collect(),
            addresses: HashMap::new(),
            clients: Vec::new(),
        };
        let net = Self { shared: Arc::new(Shared { server, config, doorbells, state: Mutex::new(state) }) };
        let ios = (0..queues.get()).map(|queue| SimIo::new(net.shared.clone(), queue)).collect();
        Ok((net, ios))
    }

    /// A client at `address` whose packets enter by `queue`. An address that another client has passes to
    /// this one.
    ///
    /// # Panics
    /// If there is no such queue.
    pub fn client(&self, address: SocketAddr, queue: usize) -> SimClient {
        let mut state = self.shared.lock();
        assert!(queue < state.queues.len(), "the server has {} queues", state.queues.len());
        let id = state.clients.len();
        state.clients.push(Direction::default());
        state.addresses.insert(address, id);
        SimClient { shared: self.shared.clone(), id, address, queue }
    }

    /// Address of the server.
    pub fn server_addr(&self) -> SocketAddr {
        self.shared.server
    }

    /// What became of the packets so far.
    pub fn stats(&self) -> SimStats {
        self.shared.lock().stats
    }

    /// True if no inbox has packets, waiting or held back.
    pub fn is_idle(&self) -> bool {
        let state = self.shared.lock();
        state.queues.iter().all(|queue| queue.inbox.is_empty())
            && state.clients.iter().all(Direction::is_empty)
    }
}

/// A client's end of the network.
pub struct SimClient {
    shared: Arc<Shared>,
    id: usize,
    address: SocketAddr,
    queue: usize,
}

impl SimClient {
    /// The address that the server sees.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Sends `payload` to the server's address.
    pub fn send(&self, payload: &[u8]) {
        self.send_to(self.shared.server, payload);
    }

    /// Sends `payload` to another of the server's addresses: what its [`Path::local`] will be.
    pub fn send_to(&self, server: SocketAddr, payload: &[u8]) {
        let Shared { config, .. } = &*self.shared;
        let path = Path { local: server, peer: self.address, link: config.link };
        {
            let State { random, stats, queues, .. } = &mut *self.shared.lock();
            let queue = &mut queues[self.queue];
            if queue.inbox.len() >= config.rx_slots {
                stats.sent += 1;
                stats.dropped += 1;
                queue.drops += 1;
                return;
            }
            queue.inbox.put(Packet { path, payload: payload.to_vec() }, config, random, stats);
        }
        // Fails only if it has been rung 2^64 times unheard.
        let _ = self.shared.doorbells[self.queue].write(1);
    }

    /// The next packet that has arrived, with the server's address that it came from. `None` may only mean
    /// that the network holds packets back: see [`SimNet::is_idle`].
    pub fn recv(&self) -> Option<(SocketAddr, Vec<u8>)> {
        let packet = self.shared.lock().clients[self.id].take()?;
        Some((packet.path.local, packet.payload))
    }

    /// Moves this client to another address and queue, as a NAT does that forgot the old mapping.
    ///
    /// # Panics
    /// If there is no such queue.
    pub fn rebind(&mut self, address: SocketAddr, queue: usize) {
        let mut state = self.shared.lock();
        assert!(queue < state.queues.len(), "the server has {} queues", state.queues.len());
        if state.addresses.get(&self.address) == Some(&self.id) {
            state.addresses.remove(&self.address);
        }
        state.addresses.insert(address, self.id);
        self.address = address;
        self.queue = queue;
    }
}

impl Drop for SimClient {
    /// A client that is gone is unroutable.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.addresses.get(&self.address) == Some(&self.id) {
            state.addresses.remove(&self.address);
        }
        state.clients[self.id] = Direction::default();
    }
}

/// The packet I/O of one of the server's queues. Made by [`SimNet::new`].
pub struct SimIo {
    shared: Arc<Shared>,
    queue: usize,
    /// The transmit buffers. Those from the front on, as many as `queued` has entries, are in use.
    buffers: Vec<[u8; MAX_TX_PAYLOAD]>,
    /// Length and way of each packet in `buffers`.
    queued: Vec<(usize, Path)>,
    counters: IoCounters,
}

impl SimIo {
    fn new(shared: Arc<Shared>, queue: usize) -> Self {
        let slots = shared.config.tx_slots;
        Self {
            shared,
            queue,
            buffers: vec![[0; MAX_TX_PAYLOAD]; slots],
            queued: Vec::with_capacity(slots),
            counters: IoCounters::default(),
        }
    }

    /// Packets that [`PacketIo::flush`] would send.
    pub fn queued(&self) -> usize {
        self.queued.len()
    }

    fn transmit(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let State { random, stats, addresses, clients, .. } = &mut *self.shared.lock();
        for (buffer, (length, path)) in self.buffers.iter().zip(self.queued.drain(..)) {
            match addresses.get(&path.peer) {
                Some(&client) => {
                    let packet = Packet { path, payload: buffer[..length].to_vec() };
                    clients[client].put(packet, &self.shared.config, random, stats);
                }
                None => {
                    stats.sent += 1;
                    stats.unroutable += 1;
                }
            }
        }
    }
}

impl PacketIo for SimIo {
    fn receive(&mut self, budget: usize, sink: &mut impl Sink) -> usize {
        let mut handed_over = 0;
        for _ in 0..budget {
            // The lock is not held while the worker has the packet: it may send.
            let Some(mut packet) = self.shared.lock().queues[self.queue].inbox.take() else { break };
            if packet.payload.len() > MAX_RX_PAYLOAD {
                self.counters.rx_too_long += 1;
                continue;
            }
            self.counters.rx_packets += 1;
            self.counters.rx_bytes += packet.payload.len() as u64;
            handed_over += 1;
            sink.take(&packet.path, &mut packet.payload);
        }
        handed_over
    }

    fn send(&mut self, fill: &mut impl FnMut(&mut [u8]) -> Option<(usize, Path)>) -> Sent {
        let mut sent = Sent::default();
        loop {
            let Some(buffer) = self.buffers.get_mut(self.queued.len()) else {
                self.counters.tx_blocked += 1;
                sent.blocked = true;
                return sent;
            };
            let Some((length, path)) = fill(buffer) else { return sent };
            if length > MAX_TX_PAYLOAD {
                self.counters.tx_errors += 1;
                continue;
            }
            self.queued.push((length, path));
            self.counters.tx_packets += 1;
            self.counters.tx_bytes += length as u64;
            sent.packets += 1;
        }
    }

    fn flush(&mut self, _now: Instant) {
        self.transmit();
    }

    /// Nothing: [`flush`](PacketIo::flush) has freed the transmit buffers.
    fn serve(&mut self, _now: Instant) {}

    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> io::Result<()> {
        self.transmit();
        let doorbell = &self.shared.doorbells[self.queue];
        // Silence the doorbell before looking: what is sent after the look rings it again. Nothing to silence
        // is fine.
        let _ = doorbell.read();
        if !self.shared.lock().queues[self.queue].inbox.is_empty() {
            return Ok(());
        }
        let doorbell = PollFd::new(doorbell.as_fd(), PollFlags::POLLIN);
        sleep(&mut [doorbell, PollFd::new(wake, PollFlags::POLLIN)], timeout)
    }

    fn counters(&mut self) -> IoCounters {
        IoCounters { rx_kernel_drops: self.shared.lock().queues[self.queue].drops, ..self.counters }
    }
}
