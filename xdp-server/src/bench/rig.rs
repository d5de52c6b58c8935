//! The two that are measured beside each other: a whole worker, and QUIC alone.

use super::BenchError;
use super::clients::Server;
use super::frames::{Frames, MemoryIo, TxRing, address, server};
use crate::link::{self, Shared};
use crate::master::Master;
use crate::net::frame::MAX_HEADERS;
use crate::net::{MAX_TX_PAYLOAD, PacketIo};
use crate::quic::cid::{CidCodec, Route};
use crate::quic::config::{Connection, Payload, QuicSettings};
use crate::session::SessionSettings;
use crate::state::{Identity, StateDir};
use crate::stats::WorkerStats;
use crate::worker::{Worker, WorkerParts};
use canvas::tiles::{TileReader, TileWriter};
use canvas::{Canvas, Geometry, Palette};
use hugepages::Pages;
use quiche::{ConnectionId, RecvInfo};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Time between two broadcasts: the server's default.
const TICK_MS: u16 = 50;

/// Side of the square canvas in pixels: the server's default.
const SIDE: u32 = 1000;

/// Entries of the paint queue: the server's default, and more than a round of messages has.
pub const PAINT_QUEUE: usize = 262_144;

/// Entries that the master takes at once: the server's default.
const MASTER_DRAIN: usize = 16_384;

/// Long enough that no connection times out while others are set up, on any machine and under valgrind.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Key of connection IDs: nobody has to be kept from guessing them here.
pub const CONNECTION_ID_KEY: [u8; 16] = [3; 16];

/// Certificate and QUIC settings, the same for all that is measured.
pub struct Identities {
    /// The server's QUIC settings.
    pub quic: QuicSettings,
    _files: TempDir,
}

impl Identities {
    /// A certificate as the server makes it for itself, in a directory of its own that is gone at the end.
    ///
    /// # Errors
    /// The directory for temporary files cannot be written to.
    pub fn new() -> Result<Self, BenchError> {
        let files = tempfile::tempdir()
            .map_err(|e| BenchError(format!("no temporary directory: {e}; set TMPDIR to one")))?;
        let state = StateDir::open(Some(files.path())).map_err(BenchError::new)?;
        let identity =
            Identity::obtain(None, &state, &[], time::OffsetDateTime::now_utc()).map_err(BenchError::new)?;
        let quic = QuicSettings {
            cert: identity.cert_pem_path,
            key: identity.key_pem_path,
            idle_timeout: IDLE_TIMEOUT,
            ticket_key: [0; crate::quic::tls::TICKET_KEY_LEN],
        };
        Ok(Self { quic, _files: files })
    }
}

/// Tiles of an empty canvas.
///
/// # Errors
/// There is no memory for them.
pub fn tiles() -> Result<(TileWriter, TileReader), BenchError> {
    let geometry = Geometry::new(SIDE, SIDE).map_err(BenchError::new)?;
    let region = hugepages::Region::map(&hugepages::Request {
        what: "tiles",
        len: canvas::tiles::bytes_needed(geometry),
        pages: Pages::Auto,
        numa_node: None,
        prefault: true,
    });
    canvas::tiles::create(geometry, region.map_err(BenchError::new)?).map_err(BenchError::new)
}

/// No limits but the server's own.
pub fn session_settings() -> SessionSettings {
    SessionSettings { tick_ms: TICK_MS, client_kbit: 0, client_pixels: 0, token: None }
}

/// A whole worker on [`MemoryIo`], with a canvas and its master.
pub struct Rig {
    worker: Worker<MemoryIo>,
    master: Master,
    shared: Arc<Shared>,
    geometry: Geometry,
    /// The time that the worker is told.
    clock: Instant,
    /// By how much it moves in each turn.
    step: Duration,
    /// The time that the worker was told when its counters were last looked at.
    looked: Instant,
}

impl Rig {
    /// A worker with room for `connections`, which can send them a few packets each until they are taken.
    ///
    /// # Errors
    /// Memory, or one of the things that [`Worker::new`] wants, cannot be had.
    pub fn new(identities: &Identities, connections: u32) -> Result<Self, BenchError> {
        let (writer, tiles) = tiles()?;
        let geometry = tiles.geometry();
        let palette = Palette::default();
        let (mut links, ports) = link::connect(1, PAINT_QUEUE).map_err(BenchError::new)?;
        let link = links.remove(0);
        let shared = link.shared.clone();
        let canvas = Canvas::new(writer, palette.clone(), TICK_MS);
        let tick = Duration::from_millis(TICK_MS.into());
        let master = Master::new(canvas, ports, shared.clone(), MASTER_DRAIN, tick);
        let parts = WorkerParts {
            link,
            tiles,
            palette,
            quic: identities.quic.build().map_err(BenchError)?,
            session: session_settings(),
            max_connections: connections,
            connection_id_key: CONNECTION_ID_KEY,
            reset_key: [4; 32],
            pages: Pages::Auto,
            numa_node: None,
        };
        let worker = Worker::new(MemoryIo::new(2 * connections as usize), parts).map_err(BenchError)?;
        let (clock, step) = (Instant::now(), Duration::ZERO);
        Ok(Self { worker, master, shared, geometry, clock, step, looked: clock })
    }

    /// Size of the canvas.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The worker's packet I/O.
    pub fn io(&mut self) -> &mut MemoryIo {
        self.worker.io()
    }

    /// Ends the conversation with clients. From here on the worker's clock moves by `step` in each turn, so
    /// that what depends on time (acknowledgements) depends neither on the machine nor on valgrind.
    pub fn pace(&mut self, step: Duration) {
        self.io().swallow();
        self.step = step;
    }

    /// Turns the worker, without the master, until it finds nothing to do.
    #[inline]
    pub fn turn_until_idle(&mut self) {
        loop {
            // Never ahead of the real time, by which QUIC sets its timers: they would seem due, and not be.
            self.clock = (self.clock + self.step).min(Instant::now());
            if !self.worker.turn(self.clock, &mut |_| false) {
                break;
            }
        }
    }

    /// Has the master apply what the worker queued.
    pub fn apply(&mut self) {
        while self.master.turn(self.clock) {}
    }

    /// Has the master apply what the worker queued, as far as it does so at once, and publish one tick.
    pub fn tick(&mut self) {
        self.master.turn(self.master.next_tick());
        self.clock = Instant::now();
    }

    /// Connections that the worker has.
    pub fn connections(&self) -> u32 {
        self.worker.connections()
    }

    /// Bytes of the worker's connection table.
    pub fn table_bytes(&self) -> usize {
        self.worker.memory().mapped
    }

    /// Pixels that reached the canvas.
    pub fn pixels_applied(&self) -> u64 {
        self.master.canvas().commit()
    }

    /// Packets that the worker sent.
    pub fn packets_sent(&mut self) -> u64 {
        self.io().counters().tx_packets
    }

    /// The worker's counters as of now, after a turn that makes it publish them.
    pub fn stats(&mut self) -> WorkerStats {
        // The worker publishes in the first turn after a millisecond, by the clock that it is told.
        self.looked = self.looked.max(self.clock) + Duration::from_millis(2);
        self.worker.turn(self.looked, &mut |_| false);
        self.shared.totals()
    }
}

impl Server for Rig {
    fn load(&mut self, frames: &mut Frames) {
        let count = frames.len();
        self.io().swap(frames);
        self.io().offer(count);
        self.clock = Instant::now();
    }

    fn serve(&mut self) {
        self.turn_until_idle();
    }

    fn collect(&mut self, frames: &mut Frames, replies: &mut Vec<(u32, Vec<u8>)>) {
        self.io().swap(frames);
        self.io().take_sent(replies);
    }
}

/// QUIC alone: connections with the server's settings, found by index. What they cost is the floor under
/// every server on quiche. What clients say on streams is left unread.
pub struct Floor {
    connections: Vec<Connection>,
    config: quiche::Config,
    codec: CidCodec,
    frames: Frames,
    tx: TxRing,
    /// Clients that sent something in this exchange.
    heard: Vec<u32>,
}

impl Floor {
    /// No connections yet; up to `packets` that are sent are kept for clients.
    ///
    /// # Errors
    /// quiche refuses the certificate.
    pub fn new(identities: &Identities, packets: usize) -> Result<Self, BenchError> {
        Ok(Self {
            connections: Vec::new(),
            config: identities.quic.build().map_err(BenchError)?.config,
            codec: CidCodec::new(&CONNECTION_ID_KEY),
            frames: Frames::default(),
            tx: TxRing::new(packets),
            heard: Vec::new(),
        })
    }

    /// Its connections, in the order of their clients. Their IDs name worker 0, the client's number as slot,
    /// and generation 0.
    pub fn into_connections(self) -> Vec<Connection> {
        self.connections
    }

    /// Receives frame number `n` of `frames` and its datagrams; returns the number of the latter.
    #[inline]
    pub fn receive(&mut self, frames: &mut Frames, n: usize) -> u64 {
        let Some((client, packet)) = frames.packet_mut(n) else { return 0 };
        let quic = &mut self.connections[client as usize];
        if quic.recv(packet, RecvInfo { from: address(client), to: server() }).is_err() {
            return 0;
        }
        let mut datagrams = 0;
        while let Ok(datagram) = quic.dgram_recv_buf() {
            std::hint::black_box(datagram.as_ref());
            datagrams += 1;
        }
        datagrams
    }

    /// Queues `payload` for `client`. `false`: there is no room for it.
    #[inline]
    pub fn queue(&mut self, client: u32, payload: &Rc<[u8]>) -> bool {
        self.connections[client as usize].dgram_send_buf(Payload::Shared(payload.clone())).is_ok()
    }

    /// Sends what the connection of `client` has; returns the number of packets.
    #[inline]
    pub fn send(&mut self, client: u32) -> u64 {
        let mut packets = 0;
        loop {
            let room = &mut self.tx.buffer()[MAX_HEADERS..MAX_HEADERS + MAX_TX_PAYLOAD];
            let Ok((len, _)) = self.connections[client as usize].send(room) else { return packets };
            self.tx.sent(Some(client), len);
            packets += 1;
        }
    }

    /// Appends the packets sent since the last call to `replies`.
    pub fn take_sent(&mut self, replies: &mut Vec<(u32, Vec<u8>)>) {
        self.tx.take(replies);
    }

    /// From here on nobody listens.
    pub fn swallow(&mut self) {
        self.tx.swallow();
    }

    /// A connection for a client that has none yet.
    fn accept(&mut self, client: u32) {
        let id = self.codec.encode(&Route { worker: 0, slot: client, generation: 0, serial: 0 });
        let id = ConnectionId::from_ref(&id);
        let config = &mut self.config;
        self.connections.extend(quiche::accept_with_buf_factory(
            &id,
            None,
            server(),
            address(client),
            config,
        ));
    }
}

impl Server for Floor {
    fn load(&mut self, frames: &mut Frames) {
        std::mem::swap(&mut self.frames, frames);
    }

    fn serve(&mut self) {
        let mut frames = std::mem::take(&mut self.frames);
        for n in 0..frames.len() {
            let Some((client, packet)) = frames.packet_mut(n) else { break };
            if client as usize == self.connections.len() {
                self.accept(client);
            }
            let Some(quic) = self.connections.get_mut(client as usize) else { continue };
            // What goes wrong here shows as a client that is not connected.
            let _ = quic.recv(packet, RecvInfo { from: address(client), to: server() });
            if self.heard.last() != Some(&client) {
                self.heard.push(client);
            }
        }
        let mut heard = std::mem::take(&mut self.heard);
        for client in heard.drain(..) {
            self.send(client);
        }
        (self.heard, self.frames) = (heard, frames);
    }

    fn collect(&mut self, frames: &mut Frames, replies: &mut Vec<(u32, Vec<u8>)>) {
        std::mem::swap(&mut self.frames, frames);
        self.take_sent(replies);
    }
}
