//! What a message costs stage by stage.
//!
//! The stages of receiving are run as prefixes, each a loop over a round of packets: headers alone; headers,
//! connection ID and table; these and QUIC; these and the session with its paint queue. A stage costs what
//! its prefix costs more than the one before. Prefixes that decrypt have a round of fresh packets each time;
//! those that only look take the packets of the round before, which nobody has touched since. The paint queue
//! is measured alone. All take turns with the whole worker. A processor overlaps the work of neighbouring
//! packets, the more so the simpler a loop is, and a connection's memory is waited for by the stage that
//! first reads it (QUIC: the table's own part is small); so stages add up to somewhat less than the whole
//! worker. What is missing is shown as the rest, with timers, the queue of senders and the clock in it.

use super::clients::{Clients, order};
use super::frames::{Frames, address, server};
use super::message::MessageCost;
use super::rig::{CONNECTION_ID_KEY, Floor, Identities, session_settings, tiles};
use super::{BenchError, Progress, cpu_time, each, median, must_equal};
use crate::link::{self, Entry, EntryKind, MasterPort};
use crate::net::frame;
use crate::net::{Ethernet, Link, Path};
use crate::quic::cid::CidCodec;
use crate::quic::header::{self, Header};
use crate::quic::table::ConnectionTable;
use crate::session::{Context, Session};
use crate::worker::conn::{Conn, Life};
use canvas::palette::Palette;
use hugepages::Pages;
use quiche::RecvInfo;
use std::ops::Range;
use std::time::Instant;

/// What the stages of a message cost, in nanoseconds a message; medians over the rounds.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StageCost {
    /// Connections that the messages came on.
    pub connections: u32,
    /// Reading Ethernet, IP and UDP headers.
    pub frame_ns: f64,
    /// Reading the QUIC header, decrypting the connection ID, finding the connection.
    pub route_ns: f64,
    /// QUIC: decrypting, acknowledgement state, the datagram queue.
    pub quic_ns: f64,
    /// Decoding the datagram, checking pixels.
    pub session_ns: f64,
    /// Queuing a pixel for the master.
    pub paint_queue_ns: f64,
    /// Sending acknowledgements, in the whole worker.
    pub acknowledging_ns: f64,
    /// What the whole worker costs besides.
    pub rest_ns: f64,
}

/// The parts of a worker's receiving side, to be run one by one.
struct Parts {
    table: ConnectionTable<Conn>,
    codec: CidCodec,
    ctx: Context,
    port: MasterPort,
    frames: Frames,
    now: Instant,
}

/// The stages of messages on one number of connections, and what was measured of them so far.
pub struct Stages {
    connections: u32,
    parts: Parts,
    /// Messages of a round.
    round: usize,
    /// The next frame.
    next: usize,
    /// Frames in all.
    prepared: usize,
    /// Datagrams received.
    received: u64,
    /// Nanoseconds of each prefix in each round: headers, to the table, to QUIC, to the paint queue; and of
    /// the paint queue alone.
    figures: Vec<[f64; 5]>,
}

impl Stages {
    /// Sets the parts up for `rounds` rounds of `round` messages, and runs them once uncounted.
    ///
    /// # Errors
    /// The parts cannot be set up.
    pub fn new(
        identities: &Identities,
        connections: u32,
        (rounds, round): (usize, usize),
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        progress.stage(&format!("{connections} connections to the stages"));
        // Two prefixes consume packets, in each round and in the one that is not counted.
        let (order, warm_up) = order(connections, 2 * (rounds + 1) * round);
        let mut parts = Parts::new(identities, connections, &order, progress)?;
        let received = parts.session(0..warm_up);
        parts.drain();
        let (prepared, figures) = (order.len(), Vec::with_capacity(rounds + 1));
        let mut stages = Self { connections, parts, round, next: warm_up, prepared, received, figures };
        stages.round();
        stages.figures.clear();
        Ok(stages)
    }

    /// Runs and measures a round of each prefix. Meant to be called between rounds of the whole worker, so
    /// that both see the same machine.
    pub fn round(&mut self) {
        let (first, round) = (self.next, self.round);
        self.next += 2 * round;
        // Of the round before, or in the first one of the warm-up.
        let before = first.saturating_sub(2 * round)..first.saturating_sub(2 * round) + round.min(first);
        let mut timed = |what: &mut dyn FnMut(&mut Parts)| {
            let began = cpu_time();
            what(&mut self.parts);
            let took = cpu_time() - began;
            self.parts.drain();
            each(took, round)
        };
        let mut received = 0;
        let session = timed(&mut |parts| received += parts.session(first..first + round));
        let quic = timed(&mut |parts| received += parts.quic(first + round..first + 2 * round));
        let frame = timed(&mut |parts| parts.frame(before.clone()));
        let route = timed(&mut |parts| parts.route(before.clone()));
        let paint = timed(&mut |parts| parts.paint_queue(round));
        self.received += received;
        self.figures.push([frame, route, quic, session, paint]);
    }

    /// What the stages cost, beside the `whole` worker between whose rounds they were measured.
    ///
    /// # Errors
    /// Packets were lost: the figures would mean nothing.
    pub fn cost(&self, whole: &MessageCost) -> Result<StageCost, BenchError> {
        must_equal("datagrams that the stages received", self.received, self.prepared as u64)?;
        let of = |figure: fn(&[f64; 5]) -> f64| median(self.figures.iter().map(figure));
        let receiving = of(|[.., session, _]| *session);
        Ok(StageCost {
            connections: self.connections,
            frame_ns: of(|[frame, ..]| *frame),
            route_ns: of(|[frame, route, ..]| route - frame),
            quic_ns: of(|[_, route, quic, ..]| quic - route),
            session_ns: of(|[_, _, quic, session, paint]| session - quic - paint),
            paint_queue_ns: of(|[.., paint]| *paint),
            acknowledging_ns: whole.sending_ns,
            rest_ns: whole.worker_ns - whole.sending_ns - receiving,
        })
    }
}

impl Parts {
    fn new(
        identities: &Identities,
        connections: u32,
        order: &[u32],
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        let mut floor = Floor::new(identities, 0)?;
        let mut clients = Clients::new(3, Some(0))?;
        clients.connect(connections, &mut floor, progress)?;
        let (_, tiles) = tiles()?;
        let frames = clients.paint(order, tiles.geometry())?;
        drop(clients);
        let (mut links, mut ports) =
            link::connect(1, super::rig::PAINT_QUEUE.max(order.len())).map_err(BenchError::new)?;
        let mut ctx = Context::new(tiles, Palette::default(), links.remove(0), session_settings());
        let mut table = ConnectionTable::new(connections, Pages::Auto, None, 0).map_err(BenchError::new)?;
        let now = Instant::now();
        for (client, quic) in floor.into_connections().into_iter().enumerate() {
            let link = Link::Ethernet(Ethernet { local: [0; 6], peer: [0; 6], vlan: None });
            let path = Path { local: server(), peer: address(client as u32), link };
            let slot = table.insert_with(|slot, generation| {
                let mut session = Session::new(slot, generation, &ctx, now);
                let mut quic = quic;
                // HELLO has come; nobody waits for the answer.
                session.on_control(&mut quic, &mut ctx, now).ok()?;
                Some(Conn::new(quic, session, &path, Life::Open, None, now))
            });
            must_equal("slot of a connection", slot.map_or(u64::MAX, u64::from), client as u64)?;
        }
        let port = ports.remove(0);
        Ok(Self { table, codec: CidCodec::new(&CONNECTION_ID_KEY), ctx, port, frames, now })
    }

    /// Empties the paint queue.
    fn drain(&mut self) {
        if let Ok(chunk) = self.port.paints.read_chunk(self.port.paints.slots()) {
            chunk.commit_all();
        }
    }

    /// Headers.
    #[inline(never)]
    fn frame(&mut self, frames: Range<usize>) {
        for n in frames {
            if let Some((_, frame)) = self.frames.get_mut(n) {
                std::hint::black_box(payload(frame));
            }
        }
    }

    /// Headers, connection ID, table.
    #[inline(never)]
    fn route(&mut self, frames: Range<usize>) {
        let Self { table, codec, frames: all, .. } = self;
        for n in frames {
            if let Some((_, frame)) = all.get_mut(n) {
                std::hint::black_box(find(codec, table, frame).is_some());
            }
        }
    }

    /// All up to QUIC; returns the datagrams.
    #[inline(never)]
    fn quic(&mut self, frames: Range<usize>) -> u64 {
        let Self { table, codec, frames: all, .. } = self;
        let mut datagrams = 0;
        for n in frames {
            let Some((_, frame)) = all.get_mut(n) else { break };
            let Some((conn, packet, info)) = find(codec, table, frame) else { continue };
            if conn.quic.recv(packet, info).is_ok() {
                while let Ok(datagram) = conn.quic.dgram_recv_buf() {
                    std::hint::black_box(datagram.as_ref());
                    datagrams += 1;
                }
            }
        }
        datagrams
    }

    /// All up to the paint queue; returns the datagrams.
    #[inline(never)]
    fn session(&mut self, frames: Range<usize>) -> u64 {
        let Self { table, codec, frames: all, ctx, now, .. } = self;
        let mut datagrams = 0;
        for n in frames {
            let Some((_, frame)) = all.get_mut(n) else { break };
            let Some((conn, packet, info)) = find(codec, table, frame) else { continue };
            if conn.quic.recv(packet, info).is_ok() {
                while let Ok(datagram) = conn.quic.dgram_recv_buf() {
                    let obeyed = conn.session.on_datagram(datagram.as_ref(), ctx, *now);
                    datagrams += u64::from(obeyed.is_ok());
                }
            }
        }
        datagrams
    }

    /// Queues `count` pixels as the session does.
    #[inline(never)]
    fn paint_queue(&mut self, count: usize) {
        let paints = &mut self.ctx.link.paints;
        for n in 0..count {
            let entry = Entry { x: n as u16, y: 0, colour: 0, kind: EntryKind::Datagram };
            if paints.slots() > 0 {
                let _ = paints.push(entry); // there is room
            }
        }
    }
}

/// The path and payload of a frame.
#[inline]
fn payload(frame: &mut [u8]) -> Option<(Path, &mut [u8])> {
    let (path, payload) = frame::parse(frame).ok()?;
    Some((path, &mut frame[payload]))
}

/// The connection that a frame is for, and its packet.
#[inline]
fn find<'a>(
    codec: &CidCodec,
    table: &'a mut ConnectionTable<Conn>,
    frame: &'a mut [u8],
) -> Option<(&'a mut Conn, &'a mut [u8], RecvInfo)> {
    let (path, packet) = payload(frame)?;
    let Some(Header::Short { dcid }) = header::parse(packet) else { return None };
    let route = codec.decode(dcid)?;
    let conn = table.find(route.slot, route.generation)?;
    Some((conn, packet, RecvInfo { from: path.peer, to: path.local }))
}
