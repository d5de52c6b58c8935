//! Real QUIC clients in memory: they shake hands, say HELLO, and prepare encrypted packets ahead.
//!
//! Their work is never measured. Once their packets are prepared they can be dropped: a server that only
//! receives does not notice.

use super::frames::{Frames, address, server};
use super::{BenchError, Progress, cpu_time};
use crate::session::CONTROL_STREAM;
use canvas::Geometry;
use canvas::codec::control::ClientFrame;
use canvas::codec::datagram::ClientDatagram;
use canvas::codec::{Entry, Pixel, Pixels};
use canvas::codes::ALPN;
use quiche::{ConnectionId, RecvInfo};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// Clients that shake hands at the same time. More would only hold more packets in memory; much fewer would
/// give the server's turns less to do at once than a real arrival of clients does.
const TOGETHER: u32 = 64;

/// Client congestion window, in packets: all that a client prepares leaves without one acknowledgement.
const WINDOW: usize = 1 << 20;

/// What clients talk to: a whole worker, or QUIC alone. The three calls are one exchange of packets; only the
/// second is the server's own work.
pub trait Server {
    /// Takes over `frames`, to receive them.
    fn load(&mut self, frames: &mut Frames);

    /// Receives all frames and sends what there is to send.
    fn serve(&mut self);

    /// Gives the frames back, and appends what was sent to `replies`: to which client, and the packet.
    fn collect(&mut self, frames: &mut Frames, replies: &mut Vec<(u32, Vec<u8>)>);
}

/// A number of clients.
pub struct Clients {
    connections: Vec<quiche::Connection>,
    config: quiche::Config,
    /// HELLO's flags; without, they stay silent.
    hello: Option<u16>,
    /// TLS session to resume.
    session: Option<Vec<u8>>,
    random: StdRng,
    served: Duration,
    datagram: Vec<u8>,
    datagrams: u64,
}

impl Clients {
    /// No clients yet. `seed` decides their connection IDs and pixels; `hello` are the flags of their HELLO,
    /// if they say it.
    ///
    /// # Errors
    /// quiche refuses a setting, which only a change of its version can cause.
    pub fn new(seed: u64, hello: Option<u16>) -> Result<Self, BenchError> {
        let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION)?;
        config.set_application_protos(&[ALPN])?;
        config.verify_peer(false);
        config.set_initial_max_data(1 << 24);
        config.set_initial_max_stream_data_bidi_local(1 << 24);
        config.set_initial_max_stream_data_uni(1 << 24);
        config.set_initial_max_streams_uni(16);
        config.set_active_connection_id_limit(2);
        config.set_initial_congestion_window_packets(WINDOW);
        config.enable_pacing(false);
        config.enable_dgram(true, 1024, 16);
        Ok(Self {
            connections: Vec::new(),
            config,
            hello,
            session: None,
            random: StdRng::seed_from_u64(seed),
            served: Duration::ZERO,
            datagram: Vec::new(),
            datagrams: 0,
        })
    }

    /// Clients so far.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// CPU time that servers spent serving since the last call.
    pub fn take_served(&mut self) -> Duration {
        std::mem::take(&mut self.served)
    }

    /// The longest datagram that a client was sent since [`paint_some`](Self::paint_some), and the number of
    /// all there ever were.
    pub fn datagrams(&self) -> (&[u8], u64) {
        (&self.datagram, self.datagrams)
    }

    /// Clients from here on resume the session of the last one.
    ///
    /// # Errors
    /// The server gave it no ticket.
    pub fn resume(&mut self) -> Result<(), BenchError> {
        let session = self.connections.last().and_then(|quic| quic.session());
        let session = session.ok_or_else(|| BenchError::new("the server gave no session ticket"))?;
        self.session = Some(session.to_vec());
        Ok(())
    }

    /// Clients whose handshake was a resumed one.
    pub fn resumed(&self) -> usize {
        self.connections.iter().filter(|quic| quic.is_resumed()).count()
    }

    /// Adds clients until there are `count`, connects them to `to` and has them say HELLO.
    ///
    /// # Errors
    /// A client is not connected although nobody has anything left to send.
    pub fn connect(
        &mut self,
        count: u32,
        to: &mut impl Server,
        progress: &Progress,
    ) -> Result<(), BenchError> {
        while (self.connections.len() as u32) < count {
            let first = self.connections.len();
            let last = count.min(first as u32 + TOGETHER);
            for client in first as u32..last {
                let id: [u8; 8] = self.random.random();
                let (id, name) = (ConnectionId::from_ref(&id), Some("localhost"));
                let mut quic = quiche::connect(name, &id, address(client), server(), &mut self.config)?;
                if let Some(session) = &self.session {
                    quic.set_session(session)?;
                }
                self.connections.push(quic);
            }
            self.converse(first, to)?;
            if let Some(flags) = self.hello {
                let mut hello = Vec::new();
                ClientFrame::Hello { version: 1, flags, token: b"" }.encode(&mut hello);
                for quic in &mut self.connections[first..] {
                    quic.stream_send(CONTROL_STREAM, &hello, false)?;
                }
                self.converse(first, to)?;
            }
            progress.step(self.connections.len(), count as usize);
        }
        match self.connections.iter().all(quiche::Connection::is_established) {
            true => Ok(()),
            false => Err(BenchError::new("a client could not connect to the server in memory")),
        }
    }

    /// Exchanges packets between the clients from `first` on and the server until nobody has any left.
    ///
    /// # Errors
    /// A client refuses what the server sent.
    pub fn converse(&mut self, first: usize, to: &mut impl Server) -> Result<(), BenchError> {
        let (mut frames, mut replies) = (Frames::default(), Vec::new());
        let mut packet = [0; 1500];
        loop {
            frames.clear();
            for (n, quic) in self.connections.iter_mut().enumerate().skip(first) {
                while let Ok((len, _)) = quic.send(&mut packet) {
                    frames.push(n as u32, &packet[..len]);
                }
            }
            if frames.is_empty() {
                return Ok(());
            }
            to.load(&mut frames);
            let began = cpu_time();
            to.serve();
            self.served += cpu_time() - began;
            to.collect(&mut frames, &mut replies);
            self.receive(&mut replies)?;
        }
    }

    /// Gives packets to their clients, which read and forget what they are told.
    ///
    /// # Errors
    /// A client refuses a packet.
    pub fn receive(&mut self, packets: &mut Vec<(u32, Vec<u8>)>) -> Result<(), BenchError> {
        let mut sink = [0; 4096];
        for (client, mut packet) in packets.drain(..) {
            let quic = &mut self.connections[client as usize];
            quic.recv(&mut packet, RecvInfo { from: server(), to: address(client) })?;
            for stream in quic.readable() {
                while quic.stream_recv(stream, &mut sink).is_ok() {}
            }
            while let Ok(len) = quic.dgram_recv(&mut sink) {
                if len > self.datagram.len() {
                    self.datagram = sink[..len].to_vec();
                }
                self.datagrams += 1;
            }
        }
        Ok(())
    }

    /// Has client 0 paint `count` pixels, in one datagram, at the next [`converse`](Self::converse).
    ///
    /// # Errors
    /// quiche does not take the datagram: too many pixels for a packet.
    pub fn paint_some(&mut self, count: usize, geometry: Geometry) -> Result<(), BenchError> {
        self.datagram.clear();
        let pixels: Vec<_> = (0..count).map(|_| self.pixel(geometry).to_wire()).collect();
        let mut payload = Vec::new();
        ClientDatagram::Paint { seq: 0, pixels: Pixels::new(&pixels) }.encode(&mut payload);
        Ok(self.connections[0].dgram_send(&payload)?)
    }

    fn pixel(&mut self, geometry: Geometry) -> Pixel {
        Pixel {
            x: self.random.random_range(0..geometry.width()),
            y: self.random.random_range(0..geometry.height()),
            colour: self.random.random_range(0..COLOURS),
        }
    }

    /// Has each client send PAINT datagrams of one pixel of a canvas of `geometry`, a packet each: as many as
    /// it occurs in `order`, which is the order of the frames that this returns.
    ///
    /// # Errors
    /// A client cannot send, which is a bug here.
    pub fn paint(&mut self, order: &[u32], geometry: Geometry) -> Result<Frames, BenchError> {
        let mut frames = Frames::default();
        let mut packet = [0; 1500];
        let mut payload = Vec::new();
        for (seq, client) in order.iter().enumerate() {
            let pixel = self.pixel(geometry);
            payload.clear();
            let pixels = [pixel.to_wire()];
            ClientDatagram::Paint { seq: seq as u32, pixels: Pixels::new(&pixels) }.encode(&mut payload);
            let quic = &mut self.connections[*client as usize];
            quic.dgram_send(&payload)?;
            let (len, _) = quic.send(&mut packet)?;
            frames.push(*client, &packet[..len]);
        }
        Ok(frames)
    }
}

/// An order for `messages` messages of `clients` clients in which all have their turns at random, after 1 to
/// [`MOST_WARM_UP`] of each. Returns it and how many of its start are of the latter.
pub fn order(clients: u32, messages: usize) -> (Vec<u32>, usize) {
    let mut random = StdRng::seed_from_u64(u64::from(clients));
    let mut order = Vec::new();
    for client in 0..clients {
        let count = random.random_range(1..=MOST_WARM_UP);
        order.resize(order.len() + count, client);
    }
    order.shuffle(&mut random);
    let warm_up = order.len();
    order.extend((0..messages).map(|_| random.random_range(0..clients)));
    (order, warm_up)
}

/// Messages of a client before measuring: its first ones make queues grow to their size, and different
/// numbers of them keep all clients' acknowledgements, one for eight packets, from falling due at once.
const MOST_WARM_UP: usize = 8;

/// Colours that are painted: the palettes in use have more.
const COLOURS: u8 = 16;
