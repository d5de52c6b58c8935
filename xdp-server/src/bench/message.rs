//! What a message costs: a whole worker beside QUIC alone, on packets of the same kind.
//!
//! Each of the two has clients of its own, which shake hands with it and prepare all their packets: PAINT
//! datagrams of one pixel, one a packet, from all clients in one random order. Then they take turns, a
//! *round* of packets each, the one that begins changing with every round, so that a machine that is now
//! fast, now slow is so for both; ratios are taken of two rounds that follow each other, and their median counts.
//!
//! - The floor is `recv()` and `dgram_recv_buf()` on a connection that is found by index, and nothing else.
//!   It is not told to acknowledge; what an acknowledgement costs it is measured apart.
//! - The worker does all that it does: headers, connection ID, table, QUIC, session, paint queue, timers, and
//!   the acknowledgements that are due. Its clock moves in each turn by the time in which a turn's packets
//!   come at the rate that was asked for. The master works between the rounds, and is measured apart.

use super::clients::{Clients, order};
use super::frames::Frames;
use super::rig::{Floor, Identities, Rig};
use super::{BenchError, Progress, Settings, cpu_time, each, median, must_equal, paired_ratio};
use crate::worker::RECEIVE_BUDGET;
use std::ops::Range;
use std::time::Duration;

/// Messages of a round, at least: some 20 ms, against a clock with a resolution of nanoseconds.
const ROUND: usize = 20_000;

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
    /// Worker to floor, by pairs of rounds.
    pub ratio: f64,
    /// Worker without sending, to floor.
    pub receive_ratio: f64,
}

/// One round's figures.
#[derive(Default)]
struct Round {
    worker: f64,
    sending: f64,
    floor: f64,
    floor_ack: f64,
    master: f64,
}

/// A worker and a floor, each with all its packets prepared.
pub struct Messages {
    rig: Rig,
    floor: Floor,
    /// The floor's.
    frames: Frames,
    /// Clients of all frames, the same for both.
    order: Vec<u32>,
    /// Messages of a round.
    round: usize,
    /// The floor's next frame.
    next: usize,
    /// Datagrams that the floor received.
    received: u64,
    /// Messages that the worker had counted before those of `order`.
    counted: u64,
}

impl Messages {
    /// Sets both up with `connections` connections, and warms them up. `rounds` rounds of `round` messages
    /// can be run, which come at `rate` messages a second.
    ///
    /// # Errors
    /// A part of either cannot be had: says which.
    pub fn new(
        identities: &Identities,
        connections: u32,
        (rounds, round): (usize, usize),
        rate: u32,
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        let (order, warm_up) = order(connections, rounds * round);

        progress.stage(&format!("{connections} connections to the worker"));
        let mut rig = Rig::new(identities, connections)?;
        let mut clients = Clients::new(1, Some(0))?;
        clients.connect(connections, &mut rig, progress)?;
        let mut frames = clients.paint(&order, rig.geometry())?;
        drop(clients);
        rig.pace(Duration::from_secs(RECEIVE_BUDGET as u64) / rate.max(1));
        let counted = rig.stats().messages;
        rig.io().swap(&mut frames);
        for first in (0..warm_up).step_by(ROUND) {
            rig.io().offer(ROUND.min(warm_up - first));
            rig.turn_until_idle();
            rig.apply(); // or the paint queue would be full
        }

        progress.stage(&format!("{connections} connections to QUIC alone"));
        let mut floor = Floor::new(identities, 0)?;
        let mut clients = Clients::new(1, Some(0))?;
        clients.connect(connections, &mut floor, progress)?;
        let mut frames = clients.paint(&order, rig.geometry())?;
        drop(clients);
        floor.swallow();
        let received = (0..warm_up).map(|n| floor.receive(&mut frames, n)).sum();
        Ok(Self { rig, floor, frames, order, round, next: warm_up, received, counted })
    }

    /// The worker.
    pub fn rig(&mut self) -> &mut Rig {
        &mut self.rig
    }

    /// The next round for the worker.
    pub fn worker(&mut self) {
        self.rig.io().offer(self.round);
        measured_worker(&mut self.rig);
    }

    /// The next round for the floor; returns the clients whose messages they were.
    pub fn floor(&mut self) -> &[u32] {
        let round = self.next..(self.next + self.round).min(self.order.len());
        self.next = round.end;
        self.received += measured_floor(&mut self.floor, &mut self.frames, round.clone());
        &self.order[round]
    }

    /// Has the floor acknowledge what it received of each of `clients`; returns the packets sent.
    pub fn acknowledge(&mut self, clients: &[u32]) -> u64 {
        clients.iter().map(|client| self.floor.send(*client)).sum()
    }

    /// Checks that all packets were counted as a message by the worker and reached the canvas, and that the
    /// floor received as many.
    ///
    /// # Errors
    /// Counts do not add up, or rounds were left out.
    pub fn check(&mut self) -> Result<(), BenchError> {
        let prepared = self.order.len() as u64;
        self.rig.apply();
        must_equal("messages that the worker counted", self.rig.stats().messages - self.counted, prepared)?;
        must_equal("pixels on the canvas", self.rig.pixels_applied(), prepared)?;
        must_equal("datagrams that QUIC alone received", self.received, prepared)
    }
}

/// Rounds and messages of each, as `settings` want them for `connections` connections.
pub fn rounds(connections: u32, settings: &Settings) -> (usize, usize) {
    (settings.rounds as usize, settings.round.unwrap_or(ROUND.max(connections as usize)))
}

/// Measures with `connections` connections. `between` is called after each round.
///
/// # Errors
/// The rig cannot be set up, or counts do not add up: then the figures would mean nothing.
pub fn measure(
    identities: &Identities,
    connections: u32,
    settings: &Settings,
    progress: &Progress,
    between: &mut dyn FnMut(),
) -> Result<MessageCost, BenchError> {
    let (rounds, round) = rounds(connections, settings);
    let mut bench = Messages::new(identities, connections, (rounds, round), settings.rate, progress)?;
    progress.stage(&format!("messages on {connections} connections"));
    let sent_before = bench.rig.packets_sent();
    let mut figures = Vec::with_capacity(rounds);
    for number in 0..rounds {
        figures.push(bench.measured_round(number % 2 == 0));
        between();
        progress.step(number + 1, rounds);
    }
    let sent = bench.rig.packets_sent() - sent_before;
    bench.check()?;
    let of = |figure: fn(&Round) -> f64| median(figures.iter().map(figure));
    let ratio = |figure: fn(&Round) -> f64| {
        paired_ratio(&figures.iter().map(|round| (figure(round), round.floor)).collect::<Vec<_>>())
    };
    Ok(MessageCost {
        connections,
        messages: rounds * round,
        worker_ns: of(|round| round.worker),
        sending_ns: of(|round| round.sending),
        acks_per_message: sent as f64 / (rounds * round) as f64,
        floor_ns: of(|round| round.floor),
        floor_ack_ns: of(|round| round.floor_ack),
        master_ns: of(|round| round.master),
        ratio: ratio(|round| round.worker),
        receive_ratio: ratio(|round| round.worker - round.sending),
    })
}

impl Messages {
    /// One round of both. Each begins every other round, and then finds in the caches what it left there itself.
    fn measured_round(&mut self, worker_first: bool) -> Round {
        let mut round = Round::default();
        for workers_turn in [worker_first, !worker_first] {
            if workers_turn {
                self.workers_half(&mut round);
            } else {
                self.floors_half(&mut round);
            }
        }
        round
    }

    fn workers_half(&mut self, round: &mut Round) {
        self.rig.io().take_sends().for_each(drop);
        let began = cpu_time();
        self.worker();
        round.worker = each(cpu_time() - began, self.round);
        // The median of them: the clock that is cheap enough to read there counts other programs' time, too.
        let sends: Vec<f64> = self.rig.io().take_sends().collect();
        round.sending = median(sends.iter().copied()) * sends.len() as f64 / self.round as f64;
        let began = cpu_time();
        self.rig.apply();
        round.master = each(cpu_time() - began, self.round);
    }

    fn floors_half(&mut self, round: &mut Round) {
        let began = cpu_time();
        let senders = self.floor();
        round.floor = each(cpu_time() - began, senders.len());
        let mut senders = senders.to_vec();
        senders.sort_unstable();
        senders.dedup();
        let began = cpu_time();
        let acks = self.acknowledge(&senders);
        round.floor_ack = each(cpu_time() - began, acks as usize);
    }
}

/// The worker's part of a round. Not inlined: valgrind collects by this name.
#[inline(never)]
fn measured_worker(rig: &mut Rig) {
    rig.turn_until_idle();
}

/// The floor's part of a round; returns the datagrams received. Not inlined: as [`measured_worker`].
#[inline(never)]
fn measured_floor(floor: &mut Floor, frames: &mut Frames, round: Range<usize>) -> u64 {
    round.map(|n| floor.receive(frames, n)).sum()
}
