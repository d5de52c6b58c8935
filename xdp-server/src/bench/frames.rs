//! Received frames, prepared ahead in one buffer, and the one packet I/O that hands them out.
//!
//! A frame here is what AF_XDP delivers: Ethernet, IPv4 and UDP headers and a QUIC packet, at a place of its
//! own, so that receiving it costs what it costs there but for the rings: headers are parsed, and QUIC
//! decrypts in place. Each frame can therefore be received once only.

use crate::net::frame::{self, MAX_HEADERS};
use crate::net::{Ethernet, IoCounters, Link, MAX_TX_PAYLOAD, PacketIo, Path, Sent, Sink};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Frames begin at multiples of this many bytes, a cache line, as UMEM frames do; and since UMEM frames are
/// further apart, so that no two of them share a line.
const ALIGN: usize = 64;

/// Transmit buffers, used in turn. As many as an AF_XDP queue has to send with: with fewer, what is sealed
/// would always go to memory that is in the cache.
const TX_BUFFERS: usize = 4096;

/// Distance of two transmit buffers in bytes: a UMEM frame.
const TX_STRIDE: usize = 2048;

/// Calls of [`PacketIo::send`] whose duration is kept between two looks; of more, the first.
const SENDS_KEPT: usize = 1 << 16;

/// Address of the server.
pub fn server() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 255, 255, 1), 4433))
}

/// Address of client number `client`, below 2^23.
pub fn address(client: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(10 << 24 | (client + 1)), 50_000))
}

/// The client that has `address`.
fn client_at(address: SocketAddr) -> Option<u32> {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_bits() & 0x00ff_ffff).checked_sub(1),
        SocketAddr::V6(_) => None,
    }
}

/// One frame: where it is, and whose.
#[derive(Clone, Copy)]
struct Place {
    /// Client that sent it.
    client: u32,
    /// Length with headers, in bytes.
    len: u32,
    /// Where it begins.
    at: usize,
}

/// Frames in the order of their arrival. See the [module](self).
#[derive(Default)]
pub struct Frames {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

impl Frames {
    /// Number of frames.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Forgets all frames, and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
    }

    /// Adds what `client` sent.
    pub fn push(&mut self, client: u32, packet: &[u8]) {
        let mac = |last| [2, 0, 0, 0, 0, last];
        let link = Link::Ethernet(Ethernet { local: mac(2), peer: mac(1), vlan: None });
        let path = Path { local: address(client), peer: server(), link };
        let headers = frame::headers_len(&path).expect("an Ethernet path of one family");
        let at = self.bytes.len().next_multiple_of(ALIGN);
        let len = headers + packet.len();
        self.bytes.resize(at + len, 0);
        self.bytes[at + headers..].copy_from_slice(packet);
        frame::write_headers(&mut self.bytes[at..], &path).expect("a UDP payload fits");
        self.places.push(Place { client, len: len as u32, at });
    }

    /// Frame number `n` and the client that sent it.
    #[inline]
    pub fn get_mut(&mut self, n: usize) -> Option<(u32, &mut [u8])> {
        let place = self.places.get(n)?;
        Some((place.client, &mut self.bytes[place.at..place.at + place.len as usize]))
    }

    /// The QUIC packet in frame number `n`, its headers skipped unread, and the client that sent it.
    #[inline]
    pub fn packet_mut(&mut self, n: usize) -> Option<(u32, &mut [u8])> {
        /// Ethernet, IPv4 and UDP.
        const HEADERS: usize = 14 + 20 + 8;
        let (client, frame) = self.get_mut(n)?;
        Some((client, &mut frame[HEADERS..]))
    }
}

/// Transmit buffers, used in turn; each keeps its packet until its turn comes again.
pub struct TxRing {
    bytes: Vec<u8>,
    next: usize,
    /// Packets that were sent: to which client, the place of the QUIC packet and its length. Only while
    /// clients listen.
    kept: Option<Vec<(u32, usize, usize)>>,
}

impl TxRing {
    /// At least as many buffers as an AF_XDP queue has, and `packets`: that many can be kept.
    pub fn new(packets: usize) -> Self {
        let count = packets.max(TX_BUFFERS);
        // Written once, as UMEM is before the first packet: zeroes would be promised by the kernel only, and each
        // page fault counted as the cost of the packet that is first in that page.
        Self { bytes: vec![1; count * TX_STRIDE], next: 0, kept: Some(Vec::with_capacity(count)) }
    }

    /// The next buffer.
    #[inline]
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.bytes[self.next..self.next + TX_STRIDE]
    }

    /// Notes that the next buffer holds a packet of `len` bytes to `client`, behind room for headers.
    #[inline]
    pub fn sent(&mut self, client: Option<u32>, len: usize) {
        if let (Some(kept), Some(client)) = (&mut self.kept, client) {
            kept.push((client, self.next + MAX_HEADERS, len));
        }
        self.next = (self.next + TX_STRIDE) % self.bytes.len();
    }

    /// Appends the packets sent since the last call to `replies`: to whom, and what.
    pub fn take(&mut self, replies: &mut Vec<(u32, Vec<u8>)>) {
        let Some(kept) = &mut self.kept else { return };
        // Of more than there are buffers the first are overwritten: lost, and missed by whoever counts.
        let lost = kept.len().saturating_sub(self.bytes.len() / TX_STRIDE);
        let packets = kept.drain(..).skip(lost);
        replies.extend(packets.map(|(client, at, len)| (client, self.bytes[at..at + len].to_vec())));
    }

    /// From here on nobody listens: what is sent is thrown away.
    pub fn swallow(&mut self) {
        self.kept = None;
    }
}

/// Packet I/O from and to memory: receives prepared [`Frames`], and swallows or keeps what is sent.
pub struct MemoryIo {
    frames: Frames,
    /// Frames of `frames` that wait to be received.
    waiting: Range<usize>,
    /// Frames of the burst under way: number, path, and where the payload is.
    parsed: Vec<(usize, Path, Range<usize>)>,
    tx: TxRing,
    counters: IoCounters,
    /// How long the last calls of [`PacketIo::send`] took, in nanoseconds.
    sends: Vec<u32>,
}

impl MemoryIo {
    /// Nothing to receive yet; up to `packets` that are sent are kept until they are
    /// [taken](Self::take_sent).
    pub fn new(packets: usize) -> Self {
        Self {
            frames: Frames::default(),
            waiting: 0..0,
            parsed: Vec::new(),
            tx: TxRing::new(packets),
            counters: IoCounters::default(),
            sends: Vec::with_capacity(SENDS_KEPT),
        }
    }

    /// Exchanges the frames; the new ones are received only once they are [offered](Self::offer).
    pub fn swap(&mut self, frames: &mut Frames) {
        std::mem::swap(&mut self.frames, frames);
        self.waiting = 0..0;
    }

    /// Lets the next `count` frames be received.
    pub fn offer(&mut self, count: usize) {
        self.waiting.end = (self.waiting.end + count).min(self.frames.len());
    }

    /// Appends the packets sent since the last call to `replies`: to whom, and what.
    pub fn take_sent(&mut self, replies: &mut Vec<(u32, Vec<u8>)>) {
        self.tx.take(replies);
    }

    /// From here on nobody listens: what is sent is counted and thrown away.
    pub fn swallow(&mut self) {
        self.tx.swallow();
    }

    /// Nanoseconds of the calls of [`PacketIo::send`] since the last look, each: it is where QUIC seals
    /// packets.
    pub fn take_sends(&mut self) -> impl Iterator<Item = f64> {
        self.sends.drain(..).map(f64::from)
    }
}

impl PacketIo for MemoryIo {
    fn receive(&mut self, budget: usize, sink: &mut impl Sink) -> usize {
        // All headers first, as the AF_XDP backend does.
        for _ in 0..budget.min(self.waiting.len()) {
            let n = self.waiting.start;
            let Some((_, bytes)) = self.frames.get_mut(n) else { break };
            self.waiting.start += 1;
            match frame::parse(bytes) {
                Ok((path, payload)) => {
                    sink.announce(&bytes[payload.clone()]);
                    self.parsed.push((n, path, payload));
                }
                Err(_) => self.counters.rx_truncated += 1,
            }
        }
        let handed = self.parsed.len();
        for (n, path, payload) in self.parsed.drain(..) {
            let Some((_, bytes)) = self.frames.get_mut(n) else { continue };
            self.counters.rx_packets += 1;
            self.counters.rx_bytes += payload.len() as u64;
            sink.take(&path, &mut bytes[payload]);
        }
        handed
    }

    fn send(&mut self, fill: &mut impl FnMut(&mut [u8]) -> Option<(usize, Path)>) -> Sent {
        let began = Instant::now();
        let mut sent = Sent::default();
        loop {
            let buffer = self.tx.buffer();
            let room = &mut buffer[MAX_HEADERS..MAX_HEADERS + MAX_TX_PAYLOAD];
            let Some((len, path)) = fill(room) else { break };
            let headers = frame::headers_len(&path).unwrap_or(MAX_HEADERS);
            if frame::write_headers(&mut buffer[MAX_HEADERS - headers..MAX_HEADERS + len], &path).is_none() {
                self.counters.tx_errors += 1;
                continue;
            }
            self.tx.sent(client_at(path.peer), len);
            self.counters.tx_packets += 1;
            self.counters.tx_bytes += len as u64;
            sent.packets += 1;
        }
        if self.sends.len() < SENDS_KEPT {
            self.sends.push(began.elapsed().as_nanos() as u32);
        }
        sent
    }

    fn flush(&mut self, _now: Instant) {}

    fn serve(&mut self, _now: Instant) {}

    fn wait(&mut self, _timeout: Duration, _wake: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn counters(&mut self) -> IoCounters {
        self.counters
    }
}
