//! A whole server in one thread: workers over the simulated network, the master, and clients that are turned
//! by hand.

use crate::client::{Client, ClientOptions};
use canvas::{Canvas, Geometry, Palette, TILE_PIXELS};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xdp_server::link::{self, Phase, Shared};
use xdp_server::master::Master;
use xdp_server::net::sim::{SimConfig, SimIo, SimNet};
use xdp_server::quic::config::QuicSettings;
use xdp_server::quic::tls::TICKET_KEY_LEN;
use xdp_server::session::SessionSettings;
use xdp_server::stats::WorkerStats;
use xdp_server::worker::{Worker, WorkerParts};

/// What a test chooses; the rest is as the server's defaults, but smaller and faster.
#[derive(Clone)]
pub struct Options {
    pub seed: u64,
    pub workers: usize,
    pub sim: SimConfig,
    pub size: (u32, u32),
    pub max_connections: u32,
    pub paint_queue: usize,
    pub idle_timeout: Duration,
    pub session: SessionSettings,
    pub keys: ([u8; 16], [u8; 32]),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            workers: 1,
            sim: SimConfig::default(),
            size: (200, 150),
            max_connections: 64,
            paint_queue: 4096,
            idle_timeout: Duration::from_secs(20),
            session: SessionSettings { tick_ms: 20, client_kbit: 0, client_pixels: 0, token: None },
            keys: ([3; 16], [4; 32]),
        }
    }
}

pub struct World {
    pub workers: Vec<Worker<SimIo>>,
    pub master: Master,
    pub shared: Arc<Shared>,
    pub net: SimNet,
    pub clients: Vec<Client>,
    pub geometry: Geometry,
    tiles: canvas::tiles::TileReader,
    next_port: u16,
    _certificate: TempDir,
}

impl World {
    pub fn new(options: &Options) -> Self {
        let certificate = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (cert, key) = (certificate.path().join("cert.pem"), certificate.path().join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();

        let geometry = Geometry::new(options.size.0, options.size.1).unwrap();
        let region = hugepages::Region::map(&hugepages::Request {
            what: "tiles",
            len: canvas::tiles::bytes_needed(geometry),
            pages: hugepages::Pages::Exactly(hugepages::PageKind::Plain),
            numa_node: None,
            prefault: true,
        })
        .unwrap();
        let (writer, tiles) = canvas::tiles::create(geometry, region).unwrap();
        let palette = Palette::default();
        let server: SocketAddr = "10.0.0.1:4433".parse().unwrap();
        let count = NonZeroUsize::new(options.workers).unwrap();
        let (net, ios) = SimNet::new(options.seed, options.sim, server, count).unwrap();
        let (links, ports) = link::connect(options.workers, options.paint_queue).unwrap();
        let shared = links[0].shared.clone();
        let tick = Duration::from_millis(options.session.tick_ms.into());
        let master = Master::new(
            Canvas::new(writer, palette.clone(), options.session.tick_ms),
            ports,
            shared.clone(),
            16_384,
            tick,
        );
        let quic =
            QuicSettings { cert, key, idle_timeout: options.idle_timeout, ticket_key: [7; TICKET_KEY_LEN] };
        let workers = ios
            .into_iter()
            .zip(links)
            .map(|(io, link)| {
                let parts = WorkerParts {
                    link,
                    tiles: tiles.clone(),
                    palette: palette.clone(),
                    quic: quic.build().unwrap(),
                    session: options.session.clone(),
                    max_connections: options.max_connections,
                    connection_id_key: options.keys.0,
                    reset_key: options.keys.1,
                    pages: hugepages::Pages::Exactly(hugepages::PageKind::Plain),
                    numa_node: None,
                };
                Worker::new(io, parts).unwrap()
            })
            .collect();
        Self {
            workers,
            master,
            shared,
            net,
            clients: Vec::new(),
            geometry,
            tiles,
            next_port: 1000,
            _certificate: certificate,
        }
    }

    /// An address that no client has had yet.
    pub fn fresh_address(&mut self) -> SocketAddr {
        self.next_port += 1;
        SocketAddr::from(([10, 0, 0, 2], self.next_port))
    }

    /// Connects a client whose packets enter by `queue`; returns its number.
    pub fn connect(&mut self, queue: usize, options: ClientOptions) -> usize {
        let address = self.fresh_address();
        let link = self.net.client(address, queue);
        self.clients.push(Client::new(link, self.net.server_addr(), self.geometry, options));
        self.clients.len() - 1
    }

    /// Connects and waits for WELCOME.
    pub fn join(&mut self, queue: usize, options: ClientOptions) -> usize {
        let client = self.connect(queue, options);
        self.until("WELCOME", |world| world.clients[client].welcome.is_some());
        client
    }

    /// One turn of everybody.
    pub fn step(&mut self) {
        let now = Instant::now();
        for worker in &mut self.workers {
            worker.turn(now, &mut |_| false);
        }
        self.master.turn(now);
        for client in &mut self.clients {
            client.step();
        }
    }

    /// Turns until `done`, for 30 s at most.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            if Instant::now() >= deadline {
                let clients: Vec<String> = self.clients.iter().map(Client::describe).collect();
                panic!("waited 30 s for {what}\n{:#?}\n{}", self.shared.totals(), clients.join("\n"));
            }
            self.step();
        }
    }

    /// Turns for a while.
    pub fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.step();
        }
    }

    /// Sum of the workers' counters, as of now.
    pub fn stats(&mut self) -> WorkerStats {
        // Workers publish in the first turn after a millisecond.
        std::thread::sleep(Duration::from_millis(2));
        self.step();
        self.shared.totals()
    }

    /// Begins the drain.
    pub fn drain(&self) {
        self.shared.advance(Phase::Drain);
    }

    /// The first place where `client`'s mirror is not the server's canvas.
    pub fn difference(&self, client: usize) -> Option<String> {
        let mirror = self.clients[client].mirror.as_ref()?;
        let mut pixels = [0; TILE_PIXELS];
        (0..self.geometry.tile_count()).find_map(|tile| {
            let version = self.tiles.read(tile, &mut pixels);
            let (theirs, known) = mirror.tile(tile);
            (known != Some(version) || *theirs != pixels)
                .then(|| format!("client {client}, tile {tile}: version {known:?}, server's {version}"))
        })
    }

    /// Waits until every mirror is the server's canvas, to the byte and the version.
    pub fn converge(&mut self) {
        self.until("mirrors that equal the canvas", |world| {
            (0..world.clients.len()).all(|client| {
                world.clients[client].mirror.as_ref().is_none_or(|mirror| mirror.is_settled())
                    && world.difference(client).is_none()
            })
        });
    }
}
