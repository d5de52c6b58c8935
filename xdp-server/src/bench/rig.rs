//! The two that are measured beside each other: a whole worker, and QUIC alone.

use super::clients::Server;
use super::frames::{Frames, MemoryIo, address, server};
use super::{BenchError, cpu_time};
use crate::link::{self, Shared};
use crate::master::Master;
use crate::quic::cid;
use crate::quic::config::{Connection, QuicSettings};
use crate::session::SessionSettings;
use crate::state::{Identity, StateDir};
use crate::stats::WorkerStats;
use crate::worker::{Worker, WorkerParts};
use canvas::{Canvas, Geometry, Palette};
use hugepages::Pages;
use quiche::{ConnectionId, RecvInfo};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Time between two broadcasts: the server's default.
const TICK_MS: u16 = 50;

/// Side of the square canvas in pixels: the server's default.
const SIDE: u32 = 1000;

/// Entries of the paint queue: the server's default, and more than a round of messages has.
const PAINT_QUEUE: usize = 262_144;

/// Entries that the master takes at once: the server's default.
const MASTER_DRAIN: usize = 16_384;

/// Long enough that no connection times out while others are set up, on any machine and under valgrind.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Certificate and QUIC settings, the same for all that is measured.
pub struct Identities {
    quic: QuicSettings,
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
}

impl Rig {
    /// A worker with room for `connections`.
    ///
    /// # Errors
    /// Memory, or one of the things that [`Worker::new`] wants, cannot be had.
    pub fn new(identities: &Identities, connections: u32) -> Result<Self, BenchError> {
        let geometry = Geometry::new(SIDE, SIDE).map_err(BenchError::new)?;
        let region = hugepages::Region::map(&hugepages::Request {
            what: "tiles",
            len: canvas::tiles::bytes_needed(geometry),
            pages: Pages::Auto,
            numa_node: None,
            prefault: true,
        })
        .map_err(BenchError::new)?;
        let (writer, tiles) = canvas::tiles::create(geometry, region).map_err(BenchError::new)?;
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
            session: SessionSettings { tick_ms: TICK_MS, client_kbit: 0, client_pixels: 0, token: None },
            max_connections: connections,
            connection_id_key: [3; 16],
            reset_key: [4; 32],
            pages: Pages::Auto,
            numa_node: None,
        };
        let worker = Worker::new(MemoryIo::new(), parts).map_err(BenchError)?;
        let (clock, step) = (Instant::now(), Duration::ZERO);
        Ok(Self { worker, master, shared, geometry, clock, step })
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
    pub fn settle(&mut self, step: Duration) {
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

    /// Lets the master apply what the worker queued; returns the CPU time that it took.
    pub fn apply(&mut self) -> Duration {
        let began = cpu_time();
        while self.master.turn(self.clock) {}
        cpu_time() - began
    }

    /// Pixels that reached the canvas.
    pub fn pixels_applied(&self) -> u64 {
        self.master.canvas().commit()
    }

    /// The worker's counters as of now.
    pub fn stats(&mut self) -> WorkerStats {
        self.clock += Duration::from_millis(2); // the worker publishes once a millisecond
        self.worker.turn(self.clock, &mut |_| false);
        self.shared.totals()
    }
}

impl Server for Rig {
    fn exchange(&mut self, frames: &mut Frames, replies: &mut Vec<(u32, Vec<u8>)>) {
        let count = frames.len();
        self.io().swap(frames);
        self.io().offer(count);
        self.clock = Instant::now();
        self.turn_until_idle();
        self.io().swap(frames);
        replies.append(&mut self.io().take_sent());
    }
}

/// QUIC alone: connections with the server's settings, found by index. What they cost is the floor under
/// every server on quiche.
pub struct Floor {
    connections: Vec<Connection>,
    config: quiche::Config,
}

impl Floor {
    /// No connections yet.
    ///
    /// # Errors
    /// quiche refuses the certificate.
    pub fn new(identities: &Identities) -> Result<Self, BenchError> {
        let config = identities.quic.build().map_err(BenchError)?.config;
        Ok(Self { connections: Vec::new(), config })
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

    /// Sends what the connection of `client` has; returns the number of packets.
    #[inline]
    pub fn send(&mut self, client: u32, packet: &mut [u8]) -> u64 {
        let mut packets = 0;
        while let Ok((len, _)) = self.connections[client as usize].send(packet) {
            std::hint::black_box(&packet[..len]);
            packets += 1;
        }
        packets
    }
}

impl Server for Floor {
    fn exchange(&mut self, frames: &mut Frames, replies: &mut Vec<(u32, Vec<u8>)>) {
        let mut clients = Vec::new();
        for n in 0..frames.len() {
            let Some((client, packet)) = frames.packet_mut(n) else { break };
            if client as usize == self.connections.len() {
                let mut id = [0; cid::LEN];
                id[1..5].copy_from_slice(&client.to_le_bytes());
                let id = ConnectionId::from_ref(&id);
                let accepted =
                    quiche::accept_with_buf_factory(&id, None, server(), address(client), &mut self.config);
                self.connections.extend(accepted);
            }
            let Some(quic) = self.connections.get_mut(client as usize) else { continue };
            // What goes wrong here shows as a client that is not connected.
            let _ = quic.recv(packet, RecvInfo { from: address(client), to: server() });
            let mut sink = [0; 1024];
            for stream in quic.readable() {
                while quic.stream_recv(stream, &mut sink).is_ok() {}
            }
            clients.push(client);
        }
        let mut packet = [0; 1500];
        clients.dedup();
        for client in clients {
            while let Ok((len, _)) = self.connections[client as usize].send(&mut packet) {
                replies.push((client, packet[..len].to_vec()));
            }
        }
    }
}
