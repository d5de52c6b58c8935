//! A client on quiche, turned by hand.

use canvas::Geometry;
use canvas::codec::control::{ClientFrame, Decoded, PaintAck, ServerFrame, ServerStats};
use canvas::codec::datagram::ClientDatagram;
use canvas::codec::tiles::{TilesDecoder, TilesReason};
use canvas::codec::{Entry, Pixel, Pixels, TileVersions};
use canvas::codes::{ALPN, HELLO_DIFFS, HELLO_SNAPSHOT, MIN_DATAGRAM_FRAME_SIZE};
use canvas::mirror::{Mirror, MirrorOptions};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use xdp_server::net::sim::SimClient;

/// Time between two PINGs of a client that keeps its connection alive.
const KEEP_ALIVE: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub struct ClientOptions {
    /// HELLO flags; with the diffs a mirror is kept.
    pub flags: u16,
    pub token: Vec<u8>,
    pub datagrams: bool,
    /// Say HELLO as soon as the handshake is complete.
    pub hello: bool,
    /// Largest stream data that the client takes at once.
    pub window: u64,
    /// Supply the server with spare connection IDs.
    pub spare_ids: bool,
    /// Send a PING now and then.
    pub keep_alive: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            flags: HELLO_SNAPSHOT | HELLO_DIFFS,
            token: Vec::new(),
            datagrams: true,
            hello: true,
            window: 1 << 20,
            spare_ids: true,
            keep_alive: true,
        }
    }
}

impl ClientOptions {
    /// Neither snapshot nor diffs.
    pub fn painter() -> Self {
        Self { flags: 0, ..Self::default() }
    }
}

/// The server's WELCOME, owned.
#[derive(Clone, Debug)]
pub struct Welcome {
    pub client_id: u64,
    pub cooldown_ms: u32,
    pub palette: usize,
}

pub struct Client {
    pub quic: quiche::Connection,
    pub link: SimClient,
    pub mirror: Option<Mirror>,
    geometry: Geometry,
    pub welcome: Option<Welcome>,
    pub acks: Vec<PaintAck>,
    pub pongs: Vec<u64>,
    pub stats: Vec<ServerStats>,
    pub notices: Vec<u8>,
    /// Payloads of DIFF and VERSIONS, in the order of arrival.
    pub payloads: Vec<Vec<u8>>,
    /// Streams of images that ended: reason and tiles.
    pub images: Vec<(TilesReason, Vec<u32>)>,
    /// Packets sent and received.
    pub packets: (u64, u64),
    /// Bytes of the last packet received.
    pub last_received: usize,
    /// The last packet sent.
    pub last_sent: Vec<u8>,
    /// What it sends is lost.
    pub mute: bool,
    /// QUIC's timers do not run: it says nothing but answers.
    pub patient: bool,
    /// Which of the server's addresses something on the way has it talk to, unknown to itself.
    pub via: SocketAddr,
    options: ClientOptions,
    said_hello: bool,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    streams: HashMap<u64, (TilesDecoder, Vec<u32>)>,
    started: Instant,
    kept_alive: Instant,
}

impl Client {
    pub fn new(link: SimClient, server: SocketAddr, geometry: Geometry, options: ClientOptions) -> Self {
        let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION).unwrap();
        config.set_application_protos(&[ALPN]).unwrap();
        config.verify_peer(false);
        config.set_max_idle_timeout(20_000);
        config.set_initial_max_data(options.window);
        config.set_initial_max_stream_data_bidi_local(options.window);
        config.set_initial_max_stream_data_uni(options.window);
        config.set_initial_max_streams_uni(4);
        config.set_active_connection_id_limit(8);
        if options.datagrams {
            config.enable_dgram(true, 4096, 4096);
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        let scid = quiche::ConnectionId::from_ref(&id);
        let quic = quiche::connect(Some("localhost"), &scid, link.local_addr(), server, &mut config).unwrap();
        // Images and diffs may overtake WELCOME, so the mirror is there before it.
        let mirror = (options.flags & HELLO_DIFFS != 0).then(|| {
            let snapshot = options.flags & HELLO_SNAPSHOT != 0;
            Mirror::new(geometry, MirrorOptions { snapshot, ..MirrorOptions::default() })
        });
        Self {
            quic,
            link,
            geometry,
            mirror,
            welcome: None,
            acks: Vec::new(),
            pongs: Vec::new(),
            stats: Vec::new(),
            notices: Vec::new(),
            payloads: Vec::new(),
            images: Vec::new(),
            packets: (0, 0),
            last_received: 0,
            last_sent: Vec::new(),
            via: server,
            mute: false,
            patient: false,
            said_hello: !options.hello,
            options,
            inbox: Vec::new(),
            outbox: Vec::new(),
            streams: HashMap::new(),
            started: Instant::now(),
            kept_alive: Instant::now(),
        }
    }

    /// Sends a control frame.
    pub fn frame(&mut self, frame: &ClientFrame<'_>) {
        frame.encode(&mut self.outbox);
    }

    /// Sends bytes on the control stream as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.outbox.extend_from_slice(bytes);
    }

    /// Says HELLO.
    pub fn hello(&mut self) {
        let (flags, token) = (self.options.flags, self.options.token.clone());
        self.said_hello = true;
        self.frame(&ClientFrame::Hello { version: 1, flags, token: &token });
    }

    /// Paints by datagram.
    pub fn paint(&mut self, pixels: &[Pixel]) {
        let wire: Vec<[u8; 5]> = pixels.iter().map(|pixel| pixel.to_wire()).collect();
        let mut payload = Vec::new();
        ClientDatagram::Paint { seq: 0, pixels: Pixels::new(&wire) }.encode(&mut payload);
        self.datagram(&payload);
    }

    /// Sends a datagram.
    pub fn datagram(&mut self, payload: &[u8]) {
        self.quic.dgram_send(payload).unwrap();
    }

    /// Paints by frame.
    pub fn paint_frame(&mut self, seq: u32, pixels: &[Pixel]) {
        let wire: Vec<[u8; 5]> = pixels.iter().map(|pixel| pixel.to_wire()).collect();
        self.frame(&ClientFrame::Paint { seq, flags: 0, pixels: Pixels::new(&wire) });
    }

    /// Asks for images of tiles.
    pub fn repair(&mut self, tiles: &[(u32, u32)]) {
        let wire: Vec<[u8; 8]> = tiles
            .iter()
            .map(|(tile, version)| canvas::codec::TileVersion { tile: *tile, version: *version }.to_wire())
            .collect();
        self.frame(&ClientFrame::Repair { tiles: TileVersions::new(&wire) });
    }

    /// Changes the view, in the mirror too.
    pub fn view(&mut self, x0: u16, y0: u16, x1: u16, y1: u16, kbit_per_s: u32) {
        self.frame(&ClientFrame::View { x0, y0, x1, y1, kbit_per_s });
        if let Some(mirror) = &mut self.mirror {
            let rect = mirror.geometry().tile_rect(x0, y0, x1, y1);
            mirror.set_view(rect);
        }
    }

    /// The code with which the server closed the connection.
    pub fn close_code(&self) -> Option<u64> {
        self.quic.peer_error().map(|error| if error.is_app { error.error_code } else { u64::MAX })
    }

    /// For a failed test.
    pub fn describe(&self) -> String {
        format!(
            "{}: established {}, closed {:?}, welcome {}, mirror {:?} settled {:?}, unread {} unsent {}",
            self.link.local_addr(),
            self.quic.is_established(),
            self.close_code(),
            self.welcome.is_some(),
            self.mirror.as_ref().map(|mirror| *mirror.counters()),
            self.mirror.as_ref().map(Mirror::is_settled),
            self.inbox.len(),
            self.outbox.len(),
        )
    }

    /// Receives, answers, sends.
    pub fn step(&mut self) {
        let (to, server) = self.quic_addresses();
        while let Some((from, mut packet)) = self.link.recv() {
            self.packets.1 += 1;
            self.last_received = packet.len();
            let from = if from == self.via { server } else { from };
            let _ = self.quic.recv(&mut packet, quiche::RecvInfo { from, to });
        }
        if !self.patient && self.quic.timeout().is_some_and(|left| left.is_zero()) {
            self.quic.on_timeout();
        }
        // As real clients do: a server that lost its way to a client finds it again by what the client sends.
        if self.options.keep_alive && self.kept_alive.elapsed() >= KEEP_ALIVE && self.quic.is_established() {
            self.kept_alive = Instant::now();
            let _ = self.quic.send_ack_eliciting();
        }
        if self.quic.is_established() {
            while self.options.spare_ids && self.quic.scids_left() > 0 {
                let mut id = [0; 16];
                getrandom::fill(&mut id).unwrap();
                self.quic.new_scid(&quiche::ConnectionId::from_ref(&id), 7, false).unwrap();
            }
            if !self.said_hello {
                self.hello();
            }
            self.read();
            self.ask_repairs();
            self.write();
        }
        let mut packet = [0; 1350];
        while let Ok((len, _)) = self.quic.send(&mut packet) {
            self.packets.0 += 1;
            if !self.mute {
                self.link.send_to(self.via, &packet[..len]);
            }
            self.last_sent = packet[..len].to_vec();
        }
    }

    /// The client's own idea of its address and the server's: a NAT does not tell it that they changed.
    fn quic_addresses(&self) -> (SocketAddr, SocketAddr) {
        let path = self.quic.path_stats().next().expect("its only path");
        (path.local_addr, path.peer_addr)
    }

    fn write(&mut self) {
        while !self.outbox.is_empty() {
            match self.quic.stream_send(0, &self.outbox, false) {
                Ok(sent) if sent > 0 => drop(self.outbox.drain(..sent)),
                _ => break,
            }
        }
    }

    fn ask_repairs(&mut self) {
        let now = self.started.elapsed().as_millis() as u64;
        let mut tiles = Vec::new();
        if let Some(mirror) = &mut self.mirror {
            mirror.repairs_due(now, &mut tiles);
        }
        if !tiles.is_empty() {
            let tiles: Vec<_> = tiles.iter().map(|held| (held.tile, held.version)).collect();
            self.repair(&tiles);
        }
    }

    fn read(&mut self) {
        let mut chunk = [0; 4096];
        while let Ok(len) = self.quic.dgram_recv(&mut chunk) {
            self.on_payload(&chunk[..len]);
        }
        while let Some(stream) = self.quic.stream_readable_next() {
            while let Ok((len, fin)) = self.quic.stream_recv(stream, &mut chunk) {
                if stream == 0 {
                    self.inbox.extend_from_slice(&chunk[..len]);
                } else {
                    self.on_tiles(stream, &chunk[..len], fin);
                }
            }
        }
        let inbox = std::mem::take(&mut self.inbox);
        let mut used = 0;
        while let Some((decoded, len)) = ServerFrame::decode(&inbox[used..]).unwrap() {
            used += len;
            if let Decoded::Frame(frame) = decoded {
                self.on_frame(&frame);
            }
        }
        self.inbox = inbox[used..].to_vec();
    }

    fn on_frame(&mut self, frame: &ServerFrame<'_>) {
        match *frame {
            ServerFrame::Welcome(welcome) => {
                assert!(self.welcome.is_none(), "a second WELCOME");
                self.welcome = Some(Welcome {
                    client_id: welcome.client_id,
                    cooldown_ms: welcome.cooldown_ms,
                    palette: welcome.palette.len(),
                });
                assert_eq!(welcome.geometry().unwrap(), self.geometry);
            }
            ServerFrame::PaintAck(ack) => self.acks.push(ack),
            ServerFrame::Pong(number) => self.pongs.push(number),
            ServerFrame::Stats(stats) => self.stats.push(stats),
            ServerFrame::Notice { code, .. } => self.notices.push(code),
            ServerFrame::Datagram(payload) => {
                assert!(!self.options.datagrams, "a client that takes datagrams gets them");
                self.on_payload(payload);
            }
        }
    }

    fn on_payload(&mut self, payload: &[u8]) {
        assert!(payload.len() <= 1100, "{} bytes", payload.len());
        if let Some(mirror) = &mut self.mirror {
            mirror.on_datagram(payload, |_, _| ()).unwrap();
        }
        self.payloads.push(payload.to_vec());
    }

    fn on_tiles(&mut self, stream: u64, bytes: &[u8], fin: bool) {
        let (decoder, tiles) = self.streams.entry(stream).or_default();
        let mirror = &mut self.mirror;
        decoder
            .push(bytes, |reason, image| {
                tiles.push(image.tile);
                if let Some(mirror) = mirror {
                    mirror.on_image(reason, image).unwrap();
                }
            })
            .unwrap();
        if fin {
            let (decoder, tiles) = self.streams.remove(&stream).unwrap();
            let reason = decoder.finish().unwrap();
            if reason == TilesReason::Snapshot
                && let Some(mirror) = &mut self.mirror
            {
                mirror.on_snapshot_end();
            }
            self.images.push((reason, tiles));
        }
    }
}

/// What the tests count on: this client's datagrams are as large as the server asks for.
const _: () = assert!(MIN_DATAGRAM_FRAME_SIZE as usize <= 1350);
