//! What a message costs stage by stage.
//!
//! The stages of receiving are run as prefixes, each a loop over a round of packets: headers alone; headers,
//! connection ID and table; these and QUIC; these and the session with its paint queue. A stage costs what
//! its prefix costs more than the one before. Prefixes that decrypt have a round of fresh packets each time;
//! those that only look take the packets of the round before, which nobody has touched since. The paint queue
//! is measured alone. A processor overlaps the work of neighbouring packets, the more so the simpler a loop
//! is, so stages add up to somewhat less than the whole worker; what is missing is shown as the rest, with
//! timers, the queue of senders and the clock in it.

use super::clients::{Clients, order};
use super::frames::{Frames, address, server};
use super::message::MessageCost;
use super::rig::{CONNECTION_ID_KEY, Floor, Identities, session_settings, tiles};
use super::{BenchError, Progress, Settings, cpu_time, each, median, must_equal};
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

/// Measures the stages with as many connections as `whole`, which the last two come from.
///
/// # Errors
/// The parts cannot be set up, or lose packets.
pub fn measure(
    identities: &Identities,
    whole: &MessageCost,
    settings: &Settings,
    progress: &Progress,
) -> Result<StageCost, BenchError> {
    let rounds = settings.rounds as usize;
    let round = whole.messages / rounds;
    progress.stage(&format!("stages on {} connections", whole.connections));
    // Two prefixes consume packets, in each round and in one before that is not counted.
    let (order, warm_up) = order(whole.connections, 2 * (rounds + 1) * round);
    let mut parts = Parts::new(identities, whole.connections, &order, progress)?;
    let mut received = parts.session(0..warm_up);
    let mut figures = Vec::with_capacity(rounds);
    for number in 0..=rounds {
        let first = warm_up + 2 * number * round;
        let before = first.saturating_sub(2 * round)..first.saturating_sub(round);
        let mut timed = |what: &mut dyn FnMut(&mut Parts) -> u64| {
            let began = cpu_time();
            received += what(&mut parts);
            let took = cpu_time() - began;
            parts.drain();
            each(took, round)
        };
        let session = timed(&mut |parts| parts.session(first..first + round));
        let quic = timed(&mut |parts| parts.quic(first + round..first + 2 * round));
        if number == 0 {
            continue;
        }
        let looked = before.len() as u64;
        let frame = timed(&mut |parts| parts.frame(before.clone()) - looked);
        let route = timed(&mut |parts| parts.route(before.clone()) - looked);
        let paint = timed(&mut |parts| parts.paint_queue(round));
        figures.push([frame, route - frame, quic - route, session - quic - paint, paint]);
        progress.step(number, rounds);
    }
    must_equal("datagrams that the stages received", received, order.len() as u64)?;
    let of = |stage: usize| median(figures.iter().map(|round| round[stage]));
    let stages = [of(0), of(1), of(2), of(3), of(4)];
    Ok(StageCost {
        connections: whole.connections,
        frame_ns: stages[0],
        route_ns: stages[1],
        quic_ns: stages[2],
        session_ns: stages[3],
        paint_queue_ns: stages[4],
        acknowledging_ns: whole.sending_ns,
        rest_ns: whole.worker_ns - whole.sending_ns - stages.iter().sum::<f64>(),
    })
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

    /// Headers; returns the frames that had good ones.
    #[inline(never)]
    fn frame(&mut self, frames: Range<usize>) -> u64 {
        frames.filter(|n| self.frames.get_mut(*n).is_some_and(|(_, frame)| payload(frame).is_some())).count()
            as u64
    }

    /// Headers, connection ID, table; returns the packets whose connection was found.
    #[inline(never)]
    fn route(&mut self, frames: Range<usize>) -> u64 {
        let Self { table, codec, frames: all, .. } = self;
        frames.filter(|n| all.get_mut(*n).and_then(|(_, frame)| find(codec, table, frame)).is_some()).count()
            as u64
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

    /// Queues `count` pixels as the session does; returns 0.
    #[inline(never)]
    fn paint_queue(&mut self, count: usize) -> u64 {
        let paints = &mut self.ctx.link.paints;
        for n in 0..count {
            let entry = Entry { x: n as u16, y: 0, colour: 0, kind: EntryKind::Datagram };
            if paints.slots() > 0 {
                let _ = paints.push(entry); // there is room
            }
        }
        0
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
