//! What a broadcast packet costs: fan-out and transmission by a whole worker, beside QUIC's own sending.
//!
//! All connections subscribe to the whole canvas. In each round some pixels are painted, the master publishes
//! a tick, and the worker sends it to every subscriber; QUIC alone queues and sends a payload of the same
//! size on as many connections of its own. Between the rounds clients get their packets and acknowledge them:
//! congestion windows stay as open, and lists of packets in flight as short, as they are in service.
//! Receiving those acknowledgements is measured apart.

use super::clients::Clients;
use super::rig::{Floor, Identities, Rig};
use super::{BenchError, Progress, Settings, cpu_time, each, median, must_equal, paired_ratio};
use canvas::codes::HELLO_DIFFS;
use std::rc::Rc;

/// Pixels painted in a tick: spread over a canvas of 256 tiles, their records fill most of one datagram.
const PIXELS: usize = 90;

/// What a broadcast costs with one number of subscribers; medians over the rounds.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BroadcastCost {
    /// Subscribers.
    pub subscribers: u32,
    /// Bytes of the last diff.
    pub bytes: usize,
    /// Packets that a tick took for each subscriber.
    pub packets: f64,
    /// The whole worker, in nanoseconds a packet.
    pub worker_ns: f64,
    /// QUIC alone, in nanoseconds a packet.
    pub floor_ns: f64,
    /// Worker to floor, by pairs of rounds.
    pub ratio: f64,
    /// Receiving a client's acknowledgement, by the whole worker, in nanoseconds each.
    pub worker_ack_ns: f64,
    /// Likewise by QUIC alone.
    pub floor_ack_ns: f64,
}

/// Measures with `subscribers` subscribers.
///
/// # Errors
/// The rig cannot be set up, or a packet is missing.
pub fn measure(
    identities: &Identities,
    subscribers: u32,
    settings: &Settings,
    progress: &Progress,
) -> Result<BroadcastCost, BenchError> {
    let mut both = Both::new(identities, subscribers, progress)?;
    progress.stage(&format!("broadcasts to {subscribers} subscribers"));
    let rounds = settings.rounds as usize;
    // The first round fills caches and queues, and tells the floor what a diff is like.
    both.worker()?;
    both.floor()?;
    let mut figures = Vec::with_capacity(rounds);
    for number in 0..rounds {
        let (worker, floor) = if number % 2 == 0 {
            let worker = both.worker()?;
            (worker, both.floor()?)
        } else {
            let floor = both.floor()?;
            (both.worker()?, floor)
        };
        figures.push((worker, floor));
        progress.step(number + 1, rounds);
    }
    both.check(rounds as u64 + 1)?;
    let of = |figure: fn(&(Sent, Sent)) -> f64| median(figures.iter().map(figure));
    Ok(BroadcastCost {
        subscribers,
        bytes: both.clients.datagrams().0.len(),
        packets: of(|(worker, _)| worker.packets as f64) / f64::from(subscribers),
        worker_ns: of(|(worker, _)| worker.each),
        floor_ns: of(|(_, floor)| floor.each),
        ratio: paired_ratio(
            &figures.iter().map(|(worker, floor)| (worker.each, floor.each)).collect::<Vec<_>>(),
        ),
        worker_ack_ns: of(|(worker, _)| worker.ack),
        floor_ack_ns: of(|(_, floor)| floor.ack),
    })
}

/// One broadcast by one of the two.
struct Sent {
    packets: usize,
    /// Nanoseconds a packet.
    each: f64,
    /// Nanoseconds to receive the acknowledgement of a packet.
    ack: f64,
}

/// The worker and the floor, each with its clients.
struct Both {
    rig: Rig,
    clients: Clients,
    floor: Floor,
    floor_clients: Clients,
    replies: Vec<(u32, Vec<u8>)>,
}

impl Both {
    fn new(identities: &Identities, subscribers: u32, progress: &Progress) -> Result<Self, BenchError> {
        progress.stage(&format!("{subscribers} subscribers of the worker"));
        let mut rig = Rig::new(identities, subscribers)?;
        let mut clients = Clients::new(5, Some(HELLO_DIFFS))?;
        clients.connect(subscribers, &mut rig, progress)?;
        progress.stage(&format!("{subscribers} connections to QUIC alone"));
        let mut floor = Floor::new(identities, 2 * subscribers as usize)?;
        let mut floor_clients = Clients::new(6, None)?;
        floor_clients.connect(subscribers, &mut floor, progress)?;
        Ok(Self { rig, clients, floor, floor_clients, replies: Vec::new() })
    }

    /// Paints, and has the worker broadcast it.
    fn worker(&mut self) -> Result<Sent, BenchError> {
        let Self { rig, clients, replies, .. } = self;
        clients.paint_some(PIXELS, rig.geometry())?;
        clients.converse(0, rig)?;
        rig.tick();
        let before = rig.packets_sent();
        let began = cpu_time();
        measured_broadcast(rig);
        let took = cpu_time() - began;
        let packets = (rig.packets_sent() - before) as usize;
        rig.io().take_sent(replies);
        must_equal("packets sent by the worker", replies.len() as u64, packets as u64)?;
        clients.receive(replies)?;
        clients.take_served();
        clients.converse(0, rig)?;
        Ok(Sent { packets, each: each(took, packets), ack: each(clients.take_served(), packets) })
    }

    /// Has QUIC alone send what the worker's clients got last.
    fn floor(&mut self) -> Result<Sent, BenchError> {
        let Self { floor, floor_clients: clients, replies, .. } = self;
        let payload: Rc<[u8]> = self.clients.datagrams().0.into();
        let packets = clients.len();
        let began = cpu_time();
        let sent = measured_floor_broadcast(floor, packets as u32, &payload);
        let took = cpu_time() - began;
        must_equal("packets sent by QUIC alone", sent, packets as u64)?;
        floor.take_sent(replies);
        clients.receive(replies)?;
        clients.take_served();
        clients.converse(0, floor)?;
        Ok(Sent { packets, each: each(took, packets), ack: each(clients.take_served(), packets) })
    }

    /// Checks that every subscriber got every datagram of all `ticks`, and one or more in each.
    fn check(&mut self, ticks: u64) -> Result<(), BenchError> {
        let stats = self.rig.stats();
        let sent = stats.diffs_sent + stats.versions_sent;
        must_equal("datagrams that subscribers got", self.clients.datagrams().1, sent)?;
        if stats.diffs_sent < ticks * self.clients.len() as u64 {
            return Err(BenchError::new("a subscriber was left out of a broadcast; nothing can be said"));
        }
        Ok(())
    }
}

/// The worker's fan-out of one tick. Not inlined: valgrind collects by this name.
#[inline(never)]
fn measured_broadcast(rig: &mut Rig) {
    rig.turn_until_idle();
}

/// The same by QUIC alone; returns the packets sent.
#[inline(never)]
fn measured_floor_broadcast(floor: &mut Floor, subscribers: u32, payload: &Rc<[u8]>) -> u64 {
    (0..subscribers).map(|client| if floor.queue(client, payload) { floor.send(client) } else { 0 }).sum()
}
