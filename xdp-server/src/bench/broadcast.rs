//! What a broadcast packet costs: fan-out and transmission by a whole worker, beside QUIC's own sending.
//!
//! All connections subscribe to the whole canvas. In each round some pixels are painted, the master publishes
//! a tick, and the worker sends it to every subscriber; QUIC alone queues and sends a payload of the same
//! size on as many connections of its own. Between the rounds clients get their packets and acknowledge them:
//! congestion windows stay as open, and lists of packets in flight as short, as they are in service.
//! Receiving those acknowledgements is measured apart.

use super::clients::Clients;
use super::rig::{Floor, Identities, Rig};
use super::{BenchError, Progress, Settings, cpu_time, each, median, must_equal};
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
    /// Worker to floor.
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
    progress.stage(&format!("{subscribers} subscribers"));
    let mut rig = Rig::new(identities, subscribers)?;
    let mut clients = Clients::new(5, Some(HELLO_DIFFS))?;
    clients.connect(subscribers, &mut rig, progress)?;
    let mut floor = Floor::new(identities, 2 * subscribers as usize)?;
    let mut floor_clients = Clients::new(6, None)?;
    floor_clients.connect(subscribers, &mut floor, progress)?;

    progress.stage(&format!("broadcasts to {subscribers} subscribers"));
    let count = subscribers as usize;
    let mut figures = Vec::new();
    let mut all_packets = 0;
    let mut replies = Vec::new();
    // The first round fills caches and queues, and tells the floor what a diff is like.
    for number in 0..=settings.rounds as usize {
        clients.paint_some(PIXELS, rig.geometry())?;
        clients.converse(0, &mut rig)?;
        rig.tick();
        let sent_before = rig.packets_sent();
        let began = cpu_time();
        measured_broadcast(&mut rig);
        let worker = cpu_time() - began;
        let packets = (rig.packets_sent() - sent_before) as usize;
        rig.io().take_sent(&mut replies);
        must_equal("packets sent by the worker", replies.len() as u64, packets as u64)?;
        clients.receive(&mut replies)?;
        clients.take_served();
        clients.converse(0, &mut rig)?;
        let worker_acks = clients.take_served();

        let payload: Rc<[u8]> = clients.datagrams().0.into();
        let began = cpu_time();
        let floor_packets = measured_floor_broadcast(&mut floor, count as u32, &payload);
        let alone = cpu_time() - began;
        must_equal("packets sent by QUIC alone", floor_packets, count as u64)?;
        floor.take_sent(&mut replies);
        floor_clients.receive(&mut replies)?;
        floor_clients.take_served();
        floor_clients.converse(0, &mut floor)?;
        let floor_acks = floor_clients.take_served();
        if number > 0 {
            all_packets += packets;
            figures.push([
                each(worker, packets),
                each(alone, count),
                each(worker_acks, packets),
                each(floor_acks, count),
            ]);
        }
        progress.step(number, settings.rounds as usize);
    }
    let ticks = u64::from(settings.rounds) + 1;
    if clients.datagrams().1 < ticks * u64::from(subscribers) {
        return Err(BenchError::new("a subscriber missed a broadcast; nothing can be said"));
    }
    let of = |figure: usize| median(figures.iter().map(|round| round[figure]));
    Ok(BroadcastCost {
        subscribers,
        bytes: clients.datagrams().0.len(),
        packets: all_packets as f64 / (figures.len() * count) as f64,
        worker_ns: of(0),
        floor_ns: of(1),
        ratio: median(figures.iter().map(|round| round[0] / round[1])),
        worker_ack_ns: of(2),
        floor_ack_ns: of(3),
    })
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
