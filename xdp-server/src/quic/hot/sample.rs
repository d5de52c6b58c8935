//! Connections to experiment with: both ends in memory.

use super::Work;
use crate::net::MAX_TX_PAYLOAD;
use crate::quic::config::{Connection, Payload};
use crate::quic::tls;
use canvas::codes::ALPN;
use quiche::{ConnectionId, RecvInfo};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

/// Aligned as the connections of a worker are, so that lines of it are the same lines.
#[repr(C, align(64))]
struct Aligned(Connection);

/// A client's message, in size: one pixel.
const MESSAGE: [u8; 11] = [0; 11];

/// A diff, in size: what fills most of a packet.
const DIFF: usize = 1000;

/// Messages that wait for one acknowledgement, as in a worker under load.
const ACKNOWLEDGE: u32 = 32;

/// Client congestion window, in packets: a client that gets no acknowledgement goes on.
const WINDOW: usize = 1 << 20;

/// A connection from a client to a server in memory.
pub struct Sample {
    client: quiche::Connection,
    server: Box<Aligned>,
    diff: Rc<[u8]>,
    from: SocketAddr,
    to: SocketAddr,
    packet: [u8; MAX_TX_PAYLOAD],
    /// Bytes of the packet that is on its way.
    len: usize,
    received: u32,
}

impl Sample {
    /// Makes `count` connections, whose memory is mixed up as that of clients that come together. `None` if
    /// quiche refuses.
    pub fn several(config: &mut quiche::Config, count: u16) -> Option<Vec<Self>> {
        let mut samples: Vec<_> =
            (0..count).map(|number| Self::new(config, number)).collect::<Option<_>>()?;
        for round in 0.. {
            let mut quiet = true;
            for step in 0..samples.len() {
                // Beginning with another each round, which changes who gets neighbouring memory.
                let sample = (step + round) % samples.len();
                quiet &= !samples[sample].converse()?;
            }
            if quiet {
                break;
            }
        }
        let established = |sample: &Self| sample.client.is_established() && sample.server.0.is_established();
        samples.iter().all(established).then_some(samples)
    }

    fn new(config: &mut quiche::Config, number: u16) -> Option<Self> {
        let mut theirs = quiche::Config::new(quiche::PROTOCOL_VERSION).ok()?;
        theirs.verify_peer(false); // nothing leaves this process
        theirs.set_application_protos(&[ALPN]).ok()?;
        theirs.set_max_recv_udp_payload_size(MAX_TX_PAYLOAD);
        theirs.set_initial_congestion_window_packets(WINDOW);
        theirs.enable_pacing(false);
        theirs.enable_dgram(true, 16, 16);
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (from, to) = (at(1 + number), at(4433));
        let [low, high] = number.to_le_bytes();
        let id = |of| [of, low, high, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let (client_id, server_id) = (id(1), id(2));
        let client =
            quiche::connect(None, &ConnectionId::from_ref(&client_id), from, to, &mut theirs).ok()?;
        let server_id = ConnectionId::from_ref(&server_id);
        let mut server = quiche::accept_with_buf_factory(&server_id, None, to, from, config).ok()?;
        tls::free_settings_after_handshake(&mut server);
        let (server, diff) = (Box::new(Aligned(server)), [0; DIFF].into());
        Some(Self { client, server, diff, from, to, packet: [0; MAX_TX_PAYLOAD], len: 0, received: 0 })
    }

    /// Lets each end send what it has. `Some(true)`: there was something.
    fn converse(&mut self) -> Option<bool> {
        let mut any = false;
        while let Ok((len, _)) = self.client.send(&mut self.packet) {
            self.server_receives(len)?;
            any = true;
        }
        while let Ok((len, _)) = self.server.0.send(&mut self.packet) {
            self.client_receives(len)?;
            any = true;
        }
        Some(any)
    }

    fn server_receives(&mut self, len: usize) -> Option<()> {
        let info = RecvInfo { from: self.from, to: self.to };
        self.server.0.recv(&mut self.packet[..len], info).ok().map(drop)
    }

    fn client_receives(&mut self, len: usize) -> Option<()> {
        let info = RecvInfo { from: self.to, to: self.from };
        self.client.recv(&mut self.packet[..len], info).ok().map(drop)
    }

    /// The server's end.
    pub fn connection(&self) -> usize {
        std::ptr::from_ref(&self.server.0).addr()
    }

    /// Makes all ready for some [`Work`]. To be followed by [`work`](Self::work).
    pub fn prepare(&mut self, work: Work) -> Option<()> {
        match work {
            Work::Receive => {
                self.client.dgram_send(&MESSAGE).ok()?;
                (self.len, _) = self.client.send(&mut self.packet).ok()?;
            }
            Work::Send => {}
            Work::Acknowledged => {
                self.send_diff()?;
                self.client_takes_diff()?;
                (self.len, _) = self.client.send(&mut self.packet).ok()?;
            }
        }
        Some(())
    }

    fn send_diff(&mut self) -> Option<()> {
        let quic = &mut self.server.0;
        quic.dgram_send_buf(Payload::Shared(self.diff.clone())).ok()?;
        let (len, info) = quic.send(&mut self.packet).ok()?;
        std::hint::black_box((info, quic.dgram_send_queue_len(), quic.is_closed(), quic.timeout_instant()));
        self.len = len;
        Some(())
    }

    fn client_takes_diff(&mut self) -> Option<()> {
        self.client_receives(self.len)?;
        while self.client.dgram_recv_buf().is_ok() {}
        Some(())
    }

    fn server_takes(&mut self) -> Option<()> {
        self.server_receives(self.len)?;
        let quic = &mut self.server.0;
        std::hint::black_box((quic.retired_scids(), quic.is_established(), quic.is_draining()));
        while let Ok(message) = quic.dgram_recv_buf() {
            std::hint::black_box(message.as_ref());
        }
        std::hint::black_box(quic.is_readable());
        Some(())
    }

    /// Lets the server's end do `work` once, as a worker does it. To be followed by [`settle`](Self::settle).
    pub fn work(&mut self, work: Work) -> Option<()> {
        match work {
            Work::Receive | Work::Acknowledged => self.server_takes(),
            Work::Send => self.send_diff(),
        }
    }

    /// Lets both ends say what is to be said about it.
    pub fn settle(&mut self, work: Work) -> Option<()> {
        match work {
            Work::Receive => {
                self.received += 1;
                if self.received.is_multiple_of(ACKNOWLEDGE) {
                    while let Ok((len, _)) = self.server.0.send(&mut self.packet) {
                        self.client_receives(len)?;
                    }
                }
            }
            Work::Send => {
                // The client acknowledges, so that the server's window stays open.
                self.client_takes_diff()?;
                while let Ok((len, _)) = self.client.send(&mut self.packet) {
                    self.server_receives(len)?;
                }
            }
            Work::Acknowledged => {}
        }
        Some(())
    }
}
