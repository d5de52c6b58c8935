//! Real QUIC clients in memory: they shake hands, say HELLO, and prepare encrypted packets ahead.
//!
//! Their work is never measured. Once their packets are prepared they can be dropped: a server that only
//! receives does not notice.

use super::frames::{Frames, address, server};
use super::{BenchError, Progress};
use canvas::Geometry;
use canvas::codec::control::ClientFrame;
use canvas::codec::datagram::ClientDatagram;
use canvas::codec::{Entry, Pixel, Pixels};
use canvas::codes::ALPN;
use quiche::{ConnectionId, RecvInfo};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::session::CONTROL_STREAM;

/// Clients that shake hands at the same time. More would only hold more packets in memory; much fewer would
/// give the server's turns less to do at once than a real arrival of clients does.
const TOGETHER: u32 = 64;

/// Client congestion window, in packets: all that a client prepares leaves without one acknowledgement.
const WINDOW: usize = 1 << 20;

/// What the packets of a handshake are exchanged with: a whole worker, or QUIC alone.
pub trait Server {
    /// Receives `frames` and appends to `replies` what it sends: to which client, and the packet.
    fn exchange(&mut self, frames: &mut Frames, replies: &mut Vec<(u32, Vec<u8>)>);
}

/// A number of clients.
pub struct Clients {
    connections: Vec<quiche::Connection>,
    config: quiche::Config,
    hello_flags: u16,
    random: StdRng,
}

impl Clients {
    /// No clients yet. `seed` decides their pixels, and the order in which they send; `hello_flags` what they
    /// ask for.
    ///
    /// # Errors
    /// quiche refuses a setting, which only a change of its version can cause.
    pub fn new(seed: u64, hello_flags: u16) -> Result<Self, BenchError> {
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
        let random = StdRng::seed_from_u64(seed);
        Ok(Self { connections: Vec::new(), config, hello_flags, random })
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
                let id = ConnectionId::from_ref(&id);
                let name = Some("localhost");
                self.connections.push(quiche::connect(
                    name,
                    &id,
                    address(client),
                    server(),
                    &mut self.config,
                )?);
            }
            self.converse(first, to)?;
            progress.step(self.connections.len(), count as usize);
        }
        Ok(())
    }

    /// Exchanges packets between the clients from `first` on and the server until nobody has any left.
    fn converse(&mut self, first: usize, to: &mut impl Server) -> Result<(), BenchError> {
        let mut said_hello = vec![false; self.connections.len() - first];
        let (mut frames, mut replies) = (Frames::default(), Vec::new());
        let mut packet = [0; 1500];
        loop {
            frames.clear();
            for (n, quic) in self.connections.iter_mut().enumerate().skip(first) {
                if quic.is_established() && !std::mem::replace(&mut said_hello[n - first], true) {
                    let mut hello = Vec::new();
                    let flags = self.hello_flags;
                    ClientFrame::Hello { version: 1, flags, token: b"" }.encode(&mut hello);
                    quic.stream_send(CONTROL_STREAM, &hello, false)?;
                }
                while let Ok((len, _)) = quic.send(&mut packet) {
                    frames.push(n as u32, &packet[..len]);
                }
            }
            if frames.is_empty() {
                break;
            }
            to.exchange(&mut frames, &mut replies);
            for (client, mut packet) in replies.drain(..) {
                self.receive(client, &mut packet)?;
            }
        }
        match self.connections[first..].iter().all(quiche::Connection::is_established) {
            true => Ok(()),
            false => Err(BenchError::new("a client could not connect to the server in memory")),
        }
    }

    /// Gives `packet` to `client`, which reads and forgets what it is told.
    fn receive(&mut self, client: u32, packet: &mut [u8]) -> Result<(), BenchError> {
        let quic = &mut self.connections[client as usize];
        quic.recv(packet, RecvInfo { from: server(), to: address(client) })?;
        let mut sink = [0; 4096];
        for stream in quic.readable() {
            while quic.stream_recv(stream, &mut sink).is_ok() {}
        }
        while quic.dgram_recv(&mut sink).is_ok() {}
        Ok(())
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
            let pixel = Pixel {
                x: self.random.random_range(0..geometry.width()),
                y: self.random.random_range(0..geometry.height()),
                colour: self.random.random_range(0..COLOURS),
            };
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

    /// An order for `messages` messages of `clients` clients in which all have their turns at random, after
    /// 1 to [`MOST_WARM_UP`] of each. Returns it and how many of its start are of the latter.
    pub fn order(&mut self, clients: u32, messages: usize) -> (Vec<u32>, usize) {
        let mut order = Vec::new();
        for client in 0..clients {
            let count = self.random.random_range(1..=MOST_WARM_UP);
            order.resize(order.len() + count, client);
        }
        order.shuffle(&mut self.random);
        let warm_up = order.len();
        order.extend((0..messages).map(|_| self.random.random_range(0..clients)));
        (order, warm_up)
    }
}

/// Messages of a client before measuring: its first ones make queues grow to their size, and different
/// numbers of them keep all clients' acknowledgements, one for eight packets, from falling due at once.
const MOST_WARM_UP: usize = 8;

/// Colours that are painted: the palettes in use have more.
const COLOURS: u8 = 16;
