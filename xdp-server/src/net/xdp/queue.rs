//! One queue: the rings and the book of frames, moved together.
//!
//! Theory of operation
//! -------------------
//! [`Queue`] owns both ends of every hand-over, so that a frame's memory is only touched while the book says
//! that it is the worker's, and all of `net::xdp` above this file is safe code. The frame codec runs here
//! too, since it needs the frame: a received packet is read where the NIC put it, and headers are written in
//! front of a payload where it lies.
//!
//! Where a packet to send starts in its frame is fixed (xsk-rs descriptors have fixed addresses), but how
//! long its headers are is known only with the path, when the payload has been written. So the payload is
//! lent behind headers as long as the previous packet's. When that guess is wrong, where IPv4 and IPv6 peers
//! alternate, the payload moves by 4 to 24 bytes; a memmove of 1200 bytes takes some 30 ns, beside more than
//! 1000 ns for QUIC to make the packet.

use std::ops::Range;

use super::rings::{Descriptor, Rings};
use super::umem::{FrameCensus, Frames, Limits};
use crate::net::frame::{self, MAX_HEADERS, Reject};
use crate::net::{IoCounters, Link, MAX_TX_PAYLOAD, Path, Sink};

/// Most descriptors moved in one ring operation. The budget of a NIC driver for one NAPI poll, so that one
/// burst is what one poll brought. More would evict the first headers from the L1 cache before their packets
/// are read; less would publish ring positions more often, each of which is a cache line that moves between
/// cores.
pub const BURST: usize = 64;

/// Room that a frame must have for a packet to be sent, in bytes.
pub const SEND_ROOM: usize = MAX_HEADERS + MAX_TX_PAYLOAD;

/// What [`Queue::write`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// A packet is queued.
    Packet,
    /// A packet went the detour through the kernel, or cannot be sent at all.
    Detour,
    /// There is nothing (more) to send.
    Nothing,
    /// No frame is free to write into.
    Blocked,
}

/// A received packet between parsing and the sink.
#[derive(Debug)]
struct Parsed<D> {
    frame: u32,
    descriptor: D,
    path: Path,
    payload: Range<usize>,
}

/// The rings, the frames, and the batches between them.
#[derive(Debug)]
pub struct Queue<R: Rings> {
    rings: R,
    frames: Frames,
    descriptors: Box<[R::Descriptor; BURST]>,
    parsed: Vec<Parsed<R::Descriptor>>,
    /// Written packets that the transmit ring has not got yet, `(frame, length)`; at most [`BURST`].
    written: Vec<(u32, usize)>,
    /// Length of the headers of the packet written last.
    headers_guess: usize,
    counters: IoCounters,
}

impl<R: Rings> Queue<R> {
    /// Takes over rings to which the kernel has no frames yet, and fills the fill ring.
    ///
    /// `limits` must not be above the sizes of the rings: then a ring has always room for what may go into
    /// it.
    pub fn new(rings: R, limits: Limits) -> Self {
        let layout = rings.layout();
        let mut queue = Self {
            rings,
            frames: Frames::new(layout.frames, layout.frame_size, limits),
            descriptors: Box::new([R::Descriptor::default(); BURST]),
            parsed: Vec::with_capacity(BURST),
            written: Vec::with_capacity(BURST),
            headers_guess: MAX_HEADERS,
            counters: IoCounters::default(),
        };
        queue.refill();
        queue
    }

    /// The rings, to wake the kernel and to wait.
    pub fn rings(&self) -> &R {
        &self.rings
    }

    /// As [`rings`](Self::rings).
    pub fn rings_mut(&mut self) -> &mut R {
        &mut self.rings
    }

    /// What this queue counted itself: packets, bytes, rejects by cause, and descriptors refused.
    pub fn counters(&self) -> IoCounters {
        IoCounters { invalid_descriptors: self.frames.refused(), ..self.counters }
    }

    /// Whether the kernel has frames that it has not completed.
    pub fn is_transmitting(&self) -> bool {
        self.frames.transmitting() > 0
    }

    /// Where all frames are. Costs a pass over the book: for tests and debugging.
    pub fn census(&mut self) -> FrameCensus {
        let (received, completed) = self.rings.backlog();
        self.frames.census(received, completed)
    }

    /// Takes up to `budget`, but at most [`BURST`], packets off the receive ring, parses all of them, then
    /// hands those that are good to `sink`. Returns how many it took and how many it handed over. All frames
    /// are free again.
    pub fn receive(&mut self, budget: usize, sink: &mut impl Sink) -> (usize, usize) {
        let Self { rings, frames, descriptors, parsed, counters, .. } = self;
        let taken = rings.receive(&mut descriptors[..budget.min(BURST)]);
        // All headers first: their cache misses overlap, and what a payload needs is near when its turn
        // comes.
        for descriptor in &descriptors[..taken] {
            let Some(frame) = frames.received(descriptor.address(), descriptor.length()) else { continue };
            // SAFETY: the book just checked that the packet lies in `frame` and passed that frame to us.
            let packet = unsafe { rings.packet(descriptor) };
            match frame::parse(packet) {
                Ok((path, payload)) => {
                    sink.announce(&packet[payload.clone()]);
                    parsed.push(Parsed { frame, descriptor: *descriptor, path, payload });
                }
                Err(reject) => {
                    match reject {
                        Reject::Truncated => counters.rx_truncated += 1,
                        Reject::NotOurs => counters.rx_not_ours += 1,
                        Reject::TooLong => counters.rx_too_long += 1,
                    }
                    frames.read(frame);
                }
            }
        }
        let handed = parsed.len();
        for Parsed { frame, descriptor, path, payload } in parsed.drain(..) {
            counters.rx_packets += 1;
            counters.rx_bytes += payload.len() as u64;
            // SAFETY: as above; `frame` is still ours.
            let packet = unsafe { rings.packet(&descriptor) };
            sink.take(&path, &mut packet[payload]);
            frames.read(frame);
        }
        (taken, handed)
    }

    /// Gives the kernel frames to receive into, as many as receiving may hold.
    pub fn refill(&mut self) {
        let mut batch = [0; BURST];
        loop {
            let mut count = 0;
            while count < BURST
                && let Some(frame) = self.frames.take_to_fill()
            {
                batch[count] = frame;
                count += 1;
            }
            // SAFETY: the book passed these frames to the kernel just now, and nobody touches them before it
            // returns them.
            if count == 0 || unsafe { self.rings.fill(&batch[..count]) } {
                if count < BURST {
                    return;
                }
            } else {
                // Not expected, since the limits are not above the ring's size.
                batch[..count].iter().for_each(|&frame| self.frames.unfill(frame));
                return;
            }
        }
    }

    /// Lends `fill` the payload part of a free frame and queues what it wrote. Payloads for [`Link::Kernel`]
    /// are handed to `detour` instead.
    pub fn write(
        &mut self,
        fill: &mut impl FnMut(&mut [u8]) -> Option<(usize, Path)>,
        detour: &mut impl FnMut(&Path, &[u8]),
    ) -> Written {
        if self.written.len() == BURST && !self.push() {
            return Written::Blocked;
        }
        let Some(frame) = self.frames.take_to_write() else { return Written::Blocked };
        // SAFETY: the book passed `frame` to us just now.
        let room = unsafe { self.rings.room(frame) };
        let guess = self.headers_guess;
        let Some((length, path)) = fill(&mut room[guess..guess + MAX_TX_PAYLOAD]) else {
            self.frames.unwrite(frame);
            return Written::Nothing;
        };
        if path.link == Link::Kernel && length <= MAX_TX_PAYLOAD {
            detour(&path, &room[guess..guess + length]);
            self.frames.unwrite(frame);
            return Written::Detour;
        }
        let Some(total) = finish(room, guess, length, &path) else {
            self.counters.tx_errors += 1;
            self.frames.unwrite(frame);
            return Written::Detour;
        };
        self.headers_guess = total - length;
        self.counters.tx_packets += 1;
        self.counters.tx_bytes += length as u64;
        self.written.push((frame, total));
        Written::Packet
    }

    /// Puts the queued packets into the transmit ring. `false` when they had to stay queued.
    pub fn push(&mut self) -> bool {
        // SAFETY: the book has these frames as ours to write. They pass to the kernel here, and nobody
        // touches them before it returns them.
        if self.written.is_empty() || !unsafe { self.rings.transmit(&self.written) } {
            return self.written.is_empty();
        }
        for (frame, _) in self.written.drain(..) {
            self.frames.transmit(frame);
        }
        true
    }

    /// Frees the frames that the kernel has transmitted. Returns whether there were any.
    pub fn reclaim(&mut self) -> bool {
        let mut any = false;
        loop {
            let count = self.rings.complete(&mut self.descriptors[..]);
            for descriptor in &self.descriptors[..count] {
                self.frames.completed(descriptor.address());
            }
            any |= count > 0;
            if count < BURST {
                return any;
            }
        }
    }
}

/// Turns `length` bytes of payload at `guess` into a packet at the start of `room`. Returns the packet's
/// length; `None` when `path` has no headers or the payload is longer than what was lent.
#[inline]
fn finish(room: &mut [u8], guess: usize, length: usize, path: &Path) -> Option<usize> {
    let headers = frame::headers_len(path)?;
    if length > MAX_TX_PAYLOAD {
        return None;
    }
    if headers != guess {
        room.copy_within(guess..guess + length, headers);
    }
    frame::write_headers(&mut room[..headers + length], path)?;
    Some(headers + length)
}
