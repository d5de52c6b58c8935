//! Encrypted packets, made ahead.
//!
//! Each packet is quiche's own: a 1-RTT packet with one PAINT datagram of one pixel, numbered on from those
//! before it, so that a server decrypts and counts all of them. They lie one after another in one piece of
//! memory, in the order in which they will leave. The order is random over the clients, each as often as any
//! other, because that is what a server with many clients sees.
//!
//! quiche keeps a note of each packet, some 300 bytes, as it waits for acknowledgements that nobody reads:
//! after a run the connections are good for nothing, and are dropped.

use anyhow::{Context, Result, bail};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use std::net::SocketAddr;

use super::fleet::{Fleet, PACKET};
use super::paint::Brush;
use crate::packet::{HEADERS, Link};

/// Bytes from one packet to the next: headers of 42 bytes and a QUIC packet of about 53, in two cache lines.
pub const STRIDE: usize = 128;

/// How packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// As whole Ethernet frames from a packet socket: fastest. Needs CAP_NET_RAW, IPv4, and a server that is
    /// a neighbour.
    Packet,
    /// From UDP sockets.
    Udp,
}

/// Packets to send.
pub struct Prepared {
    bytes: Vec<u8>,
    /// Length of each packet.
    lengths: Vec<u8>,
    /// Socket of each packet.
    sockets: Vec<u16>,
}

impl Prepared {
    /// Packets.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Packet `index`, with its headers where it is a whole frame.
    pub fn packet(&self, index: usize) -> &[u8] {
        &self.bytes[index * STRIDE..][..usize::from(self.lengths[index])]
    }

    /// The socket that packet `index` is to leave from.
    pub fn socket(&self, index: usize) -> usize {
        usize::from(self.sockets[index])
    }
}

/// Makes packets.
pub struct Preparer {
    via: Via,
    link: Option<Link>,
    /// For each lane, the clients whose packets may follow each other: all, or those of one socket.
    lanes: Vec<Vec<u32>>,
    rng: SmallRng,
    brush: Brush,
}

/// Packets of one lane in a row, where lanes are sockets: what one system call takes. In frames there is one
/// lane, and no two packets in a row are of one client but by chance.
const RUN: usize = crate::udp::BATCH;

impl Preparer {
    /// A preparer for the clients of `fleet`, all of which must be ready.
    ///
    /// # Errors
    /// Frames cannot be addressed to the server.
    pub fn new(fleet: &Fleet, via: Via) -> Result<Self> {
        let (_, locals) = fleet.sockets();
        let clients = 0..fleet.clients.len() as u32;
        let (link, lanes) = match via {
            Via::Packet => {
                let (SocketAddr::V4(local), SocketAddr::V4(peer)) = (locals[0], fleet.target()) else {
                    bail!("frames are for IPv4 only; use --via udp");
                };
                (Some(Link::find(*local.ip(), *peer.ip())?), vec![clients.collect()])
            }
            Via::Udp => {
                let mut lanes = vec![Vec::new(); locals.len()];
                for client in clients {
                    lanes[fleet.clients[client as usize].socket].push(client);
                }
                lanes.retain(|lane: &Vec<u32>| !lane.is_empty());
                (None, lanes)
            }
        };
        let brush = Brush::new(fleet.shape.context("no WELCOME has come")?);
        // A seed, so that runs are alike.
        Ok(Self { via, link, lanes, rng: SmallRng::seed_from_u64(1), brush })
    }

    /// The cable that frames leave by; `None`: packets leave by UDP sockets.
    pub fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// The next `count` packets. `progress` hears how many there are, now and then.
    ///
    /// # Errors
    /// quiche makes no packet: the window is used up, or a connection has ended.
    pub fn prepare(
        &mut self,
        fleet: &mut Fleet,
        count: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Prepared> {
        let locals = fleet.sockets().1.to_vec();
        let target = fleet.target();
        // Written below, packet by packet: so no page is missing when they are sent.
        let mut prepared = Prepared {
            bytes: vec![0; count * STRIDE],
            lengths: Vec::with_capacity(count),
            sockets: Vec::with_capacity(count),
        };
        let headers = if self.via == Via::Packet { HEADERS } else { 0 };
        let mut cursors = vec![0; self.lanes.len()];
        let mut order: Vec<usize> = (0..self.lanes.len()).collect();
        let mut packet = [0; PACKET];
        'all: loop {
            order.shuffle(&mut self.rng);
            for lane in &order {
                for _ in 0..RUN {
                    if prepared.len() == count {
                        break 'all;
                    }
                    let (clients, cursor) = (&mut self.lanes[*lane], &mut cursors[*lane]);
                    if *cursor == 0 {
                        clients.shuffle(&mut self.rng);
                    }
                    let index = clients[*cursor] as usize;
                    *cursor = (*cursor + 1) % clients.len();
                    let client = &mut fleet.clients[index];
                    client.quic.dgram_send(self.brush.next_payload())?;
                    let (length, _) = client.quic.send(&mut packet).with_context(|| {
                        format!("client {index} cannot send packet {} of {count}", prepared.len())
                    })?;
                    let whole = headers + length;
                    if whole > STRIDE {
                        bail!("quiche made a packet of {length} bytes where about 53 were expected");
                    }
                    let slot = &mut prepared.bytes[prepared.lengths.len() * STRIDE..][..whole];
                    slot[headers..].copy_from_slice(&packet[..length]);
                    if let (Some(link), SocketAddr::V4(from), SocketAddr::V4(to)) =
                        (&self.link, locals[client.socket], target)
                    {
                        link.put_headers(slot, from, to);
                    }
                    prepared.lengths.push(whole as u8);
                    prepared.sockets.push(client.socket as u16);
                    if prepared.len().is_multiple_of(1 << 16) {
                        progress(prepared.len());
                    }
                }
            }
        }
        Ok(prepared)
    }
}
