//! What a message costs: a whole worker beside QUIC alone, on packets of the same kind.
//!
//! Each of the two has clients of its own, which shake hands with it and prepare all their packets: PAINT
//! datagrams of one pixel, one a packet, from all clients in random order. Then they take turns, a *round* of
//! packets each, the one that begins changing with every round, so that a machine that is now fast, now slow
//! is so for both; ratios are taken within a round, and their median counts.
//!
//! - The floor is `recv()` and `dgram_recv_buf()` on a connection that is found by index, and nothing else.
//!   It is not told to acknowledge; what an acknowledgement costs it is measured apart.
//! - The worker does all that it does: headers, connection ID, table, QUIC, session, paint queue, timers, and
//!   the acknowledgements that are due. Its clock is moved as if messages came at the rate that was asked
//!   for. The master works between the rounds, and is measured apart.

use super::clients::Clients;
use super::frames::Frames;
use super::rig::{Floor, Identities, Rig};
use super::{BenchError, Progress, Settings, cpu_time, median};
use std::time::Duration;

/// Messages of a round, at least: 20 ms or more, against a clock of thread CPU time with a resolution of
/// nanoseconds, and the caches are warm for most of it.
const ROUND: usize = 20_000;

/// Packets that a worker receives in a turn; see [`super::Settings::rate`].
const TURN: u32 = 64;

/// What messages cost with one number of connections. Times in nanoseconds a message unless said otherwise;
/// medians over the rounds.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MessageCost {
    /// Connections that the messages came on.
    pub connections: u32,
    /// Messages measured, in all rounds.
    pub messages: usize,
    /// The whole worker.
    pub worker_ns: f64,
    /// Of that: sending acknowledgements.
    pub sending_ns: f64,
    /// Packets that the worker sent for each message.
    pub acks_per_message: f64,
    /// QUIC alone.
    pub floor_ns: f64,
    /// An acknowledgement, by QUIC alone, in nanoseconds each.
    pub floor_ack_ns: f64,
    /// The master, a pixel.
    pub master_ns: f64,
    /// Worker to floor.
    pub ratio: f64,
    /// Worker without sending, to floor.
    pub receive_ratio: f64,
}

/// One round's figures.
struct Round {
    worker: f64,
    sending: f64,
    floor: f64,
    floor_ack: f64,
    master: f64,
}

/// Measures with `connections` connections.
///
/// # Errors
/// The rig cannot be set up, or counts do not add up: then the figures would mean nothing.
pub fn measure(
    identities: &Identities,
    connections: u32,
    settings: &Settings,
    progress: &Progress,
) -> Result<MessageCost, BenchError> {
    let round = settings.round.unwrap_or(ROUND.max(connections as usize));
    let messages = round * settings.rounds as usize;

    let mut rig = Rig::new(identities, connections)?;
    progress.stage(&format!("{connections} connections: worker"));
    let mut clients = Clients::new(1, 0)?;
    clients.connect(connections, &mut rig, progress)?;
    let (order, warm_up) = clients.order(connections, messages);
    let mut frames = clients.paint(&order, rig.geometry())?;
    drop(clients);
    rig.settle(Duration::from_secs(TURN.into()) / settings.rate.max(1));
    let before = rig.stats();
    rig.io().swap(&mut frames);
    rig.io().offer(warm_up);
    rig.turn_until_idle();
    rig.apply();

    let mut floor = Floor::new(identities)?;
    progress.stage(&format!("{connections} connections: QUIC alone"));
    let mut clients = Clients::new(2, 0)?;
    clients.connect(connections, &mut floor, progress)?;
    let (floor_order, floor_warm_up) = clients.order(connections, messages);
    let mut frames = clients.paint(&floor_order, rig.geometry())?;
    drop(clients);
    let mut received = 0;
    for n in 0..floor_warm_up {
        received += floor.receive(&mut frames, n);
    }

    progress.stage(&format!("{connections} connections: messages"));
    let mut rounds = Vec::new();
    let sent_before = rig.stats().tx_packets;
    for number in 0..settings.rounds as usize {
        let first = floor_warm_up + number * round;
        let (mut worker, mut alone) = (Duration::ZERO, Duration::ZERO);
        rig.io().take_sends().for_each(drop);
        for turn in [number % 2, 1 - number % 2] {
            let began = cpu_time();
            if turn == 0 {
                rig.io().offer(round);
                measured_worker(&mut rig);
                worker = cpu_time() - began;
            } else {
                received += measured_floor(&mut floor, &mut frames, first..first + round);
                alone = cpu_time() - began;
            }
        }
        // The median of them: the clock that is cheap enough to read here counts other programs' time, too.
        let sends: Vec<f64> = rig.io().take_sends().collect();
        let sending = median(sends.iter().copied()) * sends.len() as f64 / round as f64;
        let master = rig.apply();
        let per = |time: Duration, count: usize| time.as_nanos() as f64 / count as f64;
        let mut senders = floor_order[first..first + round].to_vec();
        senders.sort_unstable();
        senders.dedup();
        let began = cpu_time();
        let acks = floor_acknowledges(&mut floor, &senders);
        rounds.push(Round {
            worker: per(worker, round),
            sending,
            floor: per(alone, round),
            floor_ack: per(cpu_time() - began, acks.max(1) as usize),
            master: per(master, round),
        });
        progress.step(number + 1, settings.rounds as usize);
    }

    let after = rig.stats();
    let prepared = order.len() as u64;
    super::must_equal("messages that the worker counted", after.messages - before.messages, prepared)?;
    super::must_equal("pixels on the canvas", rig.pixels_applied(), prepared)?;
    super::must_equal("datagrams that QUIC alone received", received, floor_order.len() as u64)?;
    let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
    Ok(MessageCost {
        connections,
        messages,
        worker_ns: of(|round| round.worker),
        sending_ns: of(|round| round.sending),
        acks_per_message: (after.tx_packets - sent_before) as f64 / messages as f64,
        floor_ns: of(|round| round.floor),
        floor_ack_ns: of(|round| round.floor_ack),
        master_ns: of(|round| round.master),
        ratio: of(|round| round.worker / round.floor),
        receive_ratio: of(|round| (round.worker - round.sending) / round.floor),
    })
}

/// The worker's part of a round. Not inlined: valgrind collects by this name.
#[inline(never)]
fn measured_worker(rig: &mut Rig) {
    rig.turn_until_idle();
}

/// The floor's part of a round; returns the datagrams received. Not inlined: as [`measured_worker`].
#[inline(never)]
fn measured_floor(floor: &mut Floor, frames: &mut Frames, round: std::ops::Range<usize>) -> u64 {
    round.map(|n| floor.receive(frames, n)).sum()
}

/// One acknowledgement for each of `clients`; returns the packets sent.
#[inline(never)]
fn floor_acknowledges(floor: &mut Floor, clients: &[u32]) -> u64 {
    let mut packet = [0; 1500];
    clients.iter().map(|client| floor.send(*client, &mut packet)).sum()
}
