//! A small canvas/1 server on quinn, for tests of the load generator: honest, or faulty in one chosen way.
//!
//! It has the canvas crate's server side (tiles, total order, ticks and their packing) and none of the real
//! server's: one thread, one lock, every watcher has the whole canvas in view. What it serves is right;
//! what a [`Fault`] makes wrong, `--verify` must find.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use canvas::codec::control::{ClientFrame, Decoded, PaintAck, ServerFrame, ServerStats, Welcome};
use canvas::codec::datagram::{ClientDatagram, ServerDatagram, diff_header, encode_record};
use canvas::codec::tiles::{ImageEncoder, TilesReason, stream_header};
use canvas::codec::{Change, Pixels};
use canvas::codes::{ALPN, CloseCode, HELLO_DIFFS, HELLO_SNAPSHOT, PROTOCOL_VERSION, Reason};
use canvas::tiles::{TileReader, bytes_needed, create};
use canvas::{Canvas, Geometry, Palette, TILE_PIXELS, TILE_SIDE};
use hugepages::{PageKind, Pages, Region, Request};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, SendStream, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::sync::oneshot;

const TICK: Duration = Duration::from_millis(50);
const FAST_TICK: Duration = Duration::from_millis(10);
/// Not a multiple of 64, so that there are edge tiles.
pub const WIDTH: u16 = 300;
pub const HEIGHT: u16 = 200;
const COLOURS: u8 = 32;

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Loses every fifth datagram to watchers: no fault, but what networks do.
    LoseDiffs,
    /// Leaves one changed pixel out of each tick's diffs. (Of just one tick's it might be painted over.)
    DropPixel,
    /// Sends snapshots, except to watchers, with one wrong pixel.
    CorruptTile,
    /// Acknowledges no PAINT frame.
    NeverAck,
    /// Acknowledges PAINT frames with counts that are not those of their pixels.
    WrongAck,
    /// Acknowledges every PAINT frame twice.
    DoubleAck,
    /// Acknowledges and counts pixels of PAINT frames, but does not paint them.
    LosePaint,
    /// Acknowledges pixels as applied that its STATS do not count.
    Miscount,
    /// Closes all connections with this code, a second after the first pixel was painted.
    CloseAll(u32),
    /// Announces with each acknowledgement that it drains, and closes nothing: what is left of an end whose
    /// closes were lost.
    AnnounceOnly,
    /// Closes connections past this number with SERVER_FULL.
    Full(usize),
    /// Greets nobody: refuses every HELLO's token.
    Unauthorized,
    /// Does nothing at all for so many milliseconds, once, two seconds after its first client painted; and
    /// ticks every 10 ms, so that clients that wait for their diffs are answered often.
    Stall(u64),
}

/// A running server; ends, without a word to its clients, when dropped.
pub struct FakeServer {
    pub addr: SocketAddr,
    pub certificate: Vec<u8>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().expect("dropped once").join();
        if !std::thread::panicking() {
            ended.expect("the server did not panic");
        }
    }
}

impl FakeServer {
    /// Starts a server on a free port of the IPv6 loopback.
    pub fn start(fault: Fault) -> Self {
        Self::start_at(Ipv6Addr::LOCALHOST.into(), fault)
    }

    /// Starts a server on a free port of this address.
    pub fn start_at(ip: IpAddr, fault: Fault) -> Self {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = key.cert.der().to_vec();
        let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
        let mut tls =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![key.cert.der().clone()], private.into())
                .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let mut transport = TransportConfig::default();
        // So that tests need not wait long for clients to notice that the server died.
        transport.max_idle_timeout(Some(Duration::from_secs(5).try_into().unwrap()));
        config.transport_config(Arc::new(transport));
        let (stop, stopped) = oneshot::channel();
        let (started, addr) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let endpoint = Endpoint::server(config, (ip, 0).into()).unwrap();
                started.send(endpoint.local_addr().unwrap()).unwrap();
                let state = Arc::new(Mutex::new(State::new(fault)));
                tokio::spawn(tick(state.clone()));
                tokio::spawn(accept(endpoint, state));
                let _ = stopped.await;
            });
            // Tasks end where they are, and nothing more is sent.
        });
        Self { addr: addr.recv().unwrap(), certificate, stop: Some(stop), thread: Some(thread) }
    }
}

struct State {
    fault: Fault,
    canvas: Canvas,
    tiles: TileReader,
    watchers: Vec<Connection>,
    connections: Vec<Connection>,
    applied: u64,
    rejected: u64,
    datagrams: u64,
    /// When the first pixel was painted.
    first_paint: Option<Instant>,
}

impl State {
    fn new(fault: Fault) -> Self {
        let geometry = Geometry::new(WIDTH.into(), HEIGHT.into()).unwrap();
        let pages = Pages::Exactly(PageKind::Plain);
        let request =
            Request { what: "test", len: bytes_needed(geometry), pages, numa_node: None, prefault: false };
        let (writer, tiles) = create(geometry, Region::map(&request).unwrap()).unwrap();
        let palette = Palette::new((0..COLOURS).map(|c| [c; 3]).collect()).unwrap();
        Self {
            fault,
            canvas: Canvas::new(writer, palette, TICK.as_millis() as u16),
            tiles,
            watchers: Vec::new(),
            connections: Vec::new(),
            applied: 0,
            rejected: 0,
            datagrams: 0,
            first_paint: None,
        }
    }

    /// Paints; how many were applied, how many rejected.
    fn paint(&mut self, pixels: Pixels<'_>) -> (u16, u16) {
        self.first_paint.get_or_insert_with(Instant::now);
        let applied = pixels.iter().filter(|p| self.canvas.paint(p.x, p.y, p.colour).is_ok()).count();
        let rejected = pixels.len() - applied;
        (self.applied, self.rejected) = (self.applied + applied as u64, self.rejected + rejected as u64);
        (applied as u16, rejected as u16)
    }

    /// Whether the first pixel was painted so long ago.
    fn painted_for(&self, time: Duration) -> bool {
        self.first_paint.is_some_and(|first| first.elapsed() > time)
    }

    fn paint_frame(&mut self, pixels: Pixels<'_>) -> (u16, u16) {
        match self.fault {
            Fault::LosePaint => {
                self.applied += pixels.len() as u64;
                (pixels.len() as u16, 0)
            }
            Fault::Miscount => {
                let result = self.paint(pixels);
                self.applied = 0;
                result
            }
            _ => self.paint(pixels),
        }
    }

    fn images(&self, reason: TilesReason, tiles: impl Iterator<Item = u32>, corrupt: bool) -> Vec<u8> {
        let mut out = stream_header(reason).to_vec();
        let mut encoder = ImageEncoder::default();
        let mut pixels = [0; TILE_PIXELS];
        let mut corrupt = corrupt;
        for tile in tiles.filter(|&tile| !self.tiles.is_untouched(tile)) {
            let version = self.tiles.read(tile, &mut pixels);
            if std::mem::take(&mut corrupt) {
                pixels[5] ^= 1;
            }
            encoder.encode(tile, version, &pixels, &mut out);
        }
        out
    }

    fn broadcast(&mut self) {
        let tick = self.canvas.tick();
        let view = self.canvas.geometry().all_tiles();
        let (mut payloads, mut dropped) = (Vec::new(), false);
        tick.pack_diffs(&view, |payload| payloads.push(payload.to_vec()));
        tick.pack_versions(&view, |payload| payloads.push(payload.to_vec()));
        for mut payload in payloads {
            self.datagrams += 1;
            if self.fault == Fault::LoseDiffs && self.datagrams.is_multiple_of(5) {
                continue;
            }
            if self.fault == Fault::DropPixel && !dropped {
                dropped = drop_pixel(&mut payload);
            }
            for watcher in &self.watchers {
                let _ = watcher.send_datagram(payload.clone().into());
            }
        }
    }
}

/// Leaves the first change out of the first record of a DIFF; false if it is no DIFF.
fn drop_pixel(payload: &mut Vec<u8>) -> bool {
    let Ok(ServerDatagram::Diff { tick, records }) = ServerDatagram::decode(payload) else { return false };
    let mut faulty = diff_header(tick).to_vec();
    for (index, record) in records.enumerate() {
        let changes: Vec<Change> = record.changes.iter().skip(usize::from(index == 0)).collect();
        encode_record(&mut faulty, record.tile, record.version, &changes);
    }
    *payload = faulty;
    true
}

async fn tick(state: Arc<Mutex<State>>) {
    let fault = state.lock().unwrap().fault;
    let period = if matches!(fault, Fault::Stall(_)) { FAST_TICK } else { TICK };
    let mut interval = tokio::time::interval(period);
    let mut done = false;
    loop {
        interval.tick().await;
        let mut state = state.lock().unwrap();
        if let (Fault::Stall(ms), false) = (fault, done)
            && state.painted_for(Duration::from_secs(2))
        {
            done = true;
            // The server's one thread: nothing is received, answered or sent meanwhile.
            std::thread::sleep(Duration::from_millis(ms));
            interval.reset();
        }
        state.broadcast();
        if let (Fault::CloseAll(code), false) = (fault, done)
            && state.painted_for(Duration::from_secs(1))
        {
            done = true;
            state.connections.iter().for_each(|c| c.close(VarInt::from_u32(code), b""));
        }
    }
}

async fn accept(endpoint: Endpoint, state: Arc<Mutex<State>>) {
    while let Some(incoming) = endpoint.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                // Its end is the client's affair.
                let _ = serve(connection, state).await;
            }
        });
    }
}

async fn serve(connection: Connection, state: Arc<Mutex<State>>) -> Option<()> {
    {
        let mut state = state.lock().unwrap();
        // Without those that closed: the load generator's own questions come and go.
        state.connections.retain(|connection| connection.close_reason().is_none());
        if state.fault == Fault::Full(state.connections.len()) {
            connection.close(VarInt::from_u32(3), b"");
            return None;
        }
        state.connections.push(connection.clone());
    }
    let (mut send, mut recv) = connection.accept_bi().await.ok()?;
    let mut bytes = Vec::new();
    loop {
        tokio::select! {
            datagram = connection.read_datagram() => {
                let datagram = datagram.ok()?;
                let paint = ClientDatagram::decode(&datagram).expect("a valid PAINT");
                let ClientDatagram::Paint { pixels, .. } = paint;
                state.lock().unwrap().paint(pixels);
            }
            chunk = recv.read_chunk(1 << 16, true) => {
                bytes.extend_from_slice(&chunk.ok()??.bytes);
                while let Some((frame, length)) = ClientFrame::decode(&bytes).expect("valid frames") {
                    let Decoded::Frame(frame) = frame else { panic!("a frame of unknown type") };
                    answer(frame, &connection, &state, &mut send).await?;
                    bytes.drain(..length);
                }
            }
        }
    }
}

async fn answer(
    frame: ClientFrame<'_>,
    connection: &Connection,
    state: &Mutex<State>,
    send: &mut SendStream,
) -> Option<()> {
    let mut out = Vec::new();
    let mut images = None;
    match frame {
        ClientFrame::Hello { version, flags, .. } => {
            assert_eq!(version, PROTOCOL_VERSION);
            let mut state = state.lock().unwrap();
            if state.fault == Fault::Unauthorized {
                connection.close(VarInt::from_u32(4), b"");
                return None;
            }
            let welcome = Welcome {
                version,
                client_id: connection.stable_id() as u64,
                width: WIDTH,
                height: HEIGHT,
                tile_side: TILE_SIDE,
                tick_ms: TICK.as_millis() as u16,
                cooldown_ms: 0,
                palette: state.canvas.palette().colours(),
            };
            ServerFrame::Welcome(welcome).encode(&mut out);
            // Under one lock: what the snapshot lacks, later ticks bring.
            if flags & HELLO_DIFFS != 0 {
                state.watchers.push(connection.clone());
            }
            if flags & HELLO_SNAPSHOT != 0 {
                let corrupt = state.fault == Fault::CorruptTile && flags & HELLO_DIFFS == 0;
                let tiles = 0..state.canvas.geometry().tile_count();
                images = Some(state.images(TilesReason::Snapshot, tiles, corrupt));
            }
        }
        ClientFrame::Paint { seq, pixels, .. } => {
            let mut state = state.lock().unwrap();
            let (mut applied, rejected) = state.paint_frame(pixels);
            if state.fault == Fault::WrongAck {
                applied += 1;
            }
            let reason = if rejected == 0 { 0 } else { Reason::OutsideCanvas.code() };
            let ack = PaintAck { seq, applied, rejected, reason, commit: state.canvas.commit() };
            let times = match state.fault {
                Fault::NeverAck => 0,
                Fault::DoubleAck => 2,
                _ => 1,
            };
            (0..times).for_each(|_| ServerFrame::PaintAck(ack).encode(&mut out));
            if state.fault == Fault::AnnounceOnly {
                ServerFrame::Notice { code: CloseCode::Draining.code(), text: "going" }.encode(&mut out);
            }
        }
        ClientFrame::Repair { tiles } => {
            let state = state.lock().unwrap();
            images = Some(state.images(TilesReason::Repair, tiles.iter().map(|t| t.tile), false));
        }
        ClientFrame::Ping(number) => ServerFrame::Pong(number).encode(&mut out),
        ClientFrame::Stats => {
            let state = state.lock().unwrap();
            let stats = ServerStats {
                applied: state.applied,
                rejected: state.rejected,
                connections: state.connections.len() as u64,
                tick: state.canvas.ticks(),
                commit: state.canvas.commit(),
                ..ServerStats::default()
            };
            ServerFrame::Stats(stats).encode(&mut out);
        }
        ClientFrame::View { .. } => panic!("nobody sends VIEW"),
    }
    send.write_all(&out).await.ok()?;
    if let Some(images) = images {
        let connection = connection.clone();
        // Beside the control stream: PINGs are answered while images are under way.
        tokio::spawn(async move {
            let mut stream = connection.open_uni().await.ok()?;
            stream.write_all(&images).await.ok()?;
            stream.finish().ok()
        });
    }
    Some(())
}
