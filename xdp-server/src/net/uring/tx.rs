//! The send side: packets one after the other in memory, neighbours to one peer as one message.
//!
//! Theory of operation
//! -------------------
//! QUIC seals each packet straight behind the one before it ([`TxQueue::room`]), in an arena that is used in
//! a circle. Packets that may leave together, by path and length, form a [`Train`] and are contiguous, so
//! that a train is one vector and one `UDP_SEGMENT` message: the kernel routes, filters and queues it as one
//! packet.
//!
//! A train is in one of these states, in the order of the queue but for `Done`, and a test asserts their sum:
//!
//! ```text
//!   free ──room, push──► queued ──submit──► in flight ──complete──► done ──► free, oldest first
//!                          ▲                    │
//!                          └── sent in parts ───┘
//! ```
//!
//! Mostly the kernel has copied a train before `io_uring_enter` returns. When the socket buffer is full it
//! *parks* the operation until there is room, and its memory must stay; hence the states. Meanwhile nothing
//! more is submitted, so that nothing overtakes; and of two trains in a row to one peer the second waits for
//! the next submission. (Links of operations, `IOSQE_IO_HARDLINK`, would do for one submission, but what is
//! linked is never sent at once: the kernel puts it off to its deferred work.)
//!
//! A train that the kernel refuses is sent again packet by packet, so that it is clear whose fault it was: if
//! its first packet then goes, segmentation as such was refused and is given up for good.

use std::os::fd::RawFd;

use io_uring::{opcode, types::Fd};

use super::super::segment::Train;
use super::super::socket::addr::{Envelope, Family};
use super::super::socket::control::Control;
use super::super::{MAX_TX_PAYLOAD, Path};
use super::memory::Array;
use super::ring::{Completion, Ring, Token};

/// Size of the arena, in bytes: 256 of the largest packets, four turns' worth of answers, which fits the L2
/// cache of the cores that this is meant for. Larger: the first packet of a burst waits longer, by about 1 us
/// for each packet before it. Smaller: more system calls, and `send` is blocked sooner when the socket buffer
/// is full.
pub(super) const TX_BYTES: usize = 256 * MAX_TX_PAYLOAD;

/// Trains that can be queued or in flight: as many as the arena has packets, so that single packets, too,
/// find room. Each takes 0.3 KB. Fewer: more system calls when a fan-out goes to as many peers.
pub(super) const TX_TRAINS: usize = 256;

/// What the kernel follows while a train is in flight. Plain data: zeroes are valid.
#[repr(C)]
struct Message {
    header: libc::msghdr,
    vector: libc::iovec,
    envelope: Envelope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    InFlight,
    Done,
}

/// A train in the queue.
#[derive(Clone, Copy)]
struct Entry {
    state: State,
    path: Path,
    train: Train,
    /// Where its first packet is in the arena.
    start: usize,
    /// Bytes of all its packets.
    bytes: usize,
    /// It goes packet by packet, since it was refused as a whole.
    apart: bool,
    /// Bytes of those packets that are dealt with.
    done: usize,
    /// It was refused with an error that may mean segmentation itself, and its first packet has not gone yet.
    suspect: bool,
}

impl Entry {
    /// What is to be sent next: offset in the arena, bytes, and the segment size if that is several packets.
    fn next(&self) -> (usize, usize, Option<u16>) {
        match self.train.segment_size() {
            Some(size) if self.apart => {
                (self.start + self.done, usize::from(size).min(self.bytes - self.done), None)
            }
            segment_size => (self.start, self.bytes, segment_size),
        }
    }
}

/// Where all trains are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) free: usize,
    pub(super) queued: usize,
    pub(super) in_flight: usize,
    pub(super) done: usize,
}

/// See the [module](self).
pub(super) struct TxQueue {
    family: Family,
    arena: Array<u8>,
    messages: Array<Message>,
    entries: Box<[Option<Entry>]>,
    /// Sequence number of the oldest train that is not free. The place of a train is its number modulo
    /// [`TX_TRAINS`].
    head: u64,
    /// No train before this one is queued.
    next: u64,
    /// Sequence number of the next new train.
    tail: u64,
    /// The youngest train may still grow.
    open: bool,
    /// Where the next packet goes in the arena: right behind the last one, or at the start.
    write: usize,
    queued: usize,
    in_flight: usize,
    /// Trains may leave as one message.
    segmentation: bool,
    trains_refused: u64,
    progress: u64,
}

// SAFETY: the pointers in messages point into arrays that this queue alone owns.
unsafe impl Send for TxQueue {}

impl TxQueue {
    /// An empty queue for a socket of `family`.
    pub(super) fn new(family: Family) -> Self {
        // SAFETY: bytes, and messages of integers and pointers; zeroes are valid.
        let (arena, messages) = unsafe { (Array::zeroed(TX_BYTES), Array::zeroed(TX_TRAINS)) };
        Self {
            family,
            arena,
            messages,
            entries: vec![None; TX_TRAINS].into(),
            head: 0,
            next: 0,
            tail: 0,
            open: false,
            write: 0,
            queued: 0,
            in_flight: 0,
            segmentation: true,
            trains_refused: 0,
            progress: 0,
        }
    }

    /// Trains that the kernel refused. The first that shows that segmentation cannot be had is also the last.
    pub(super) fn trains_refused(&self) -> u64 {
        self.trains_refused
    }

    /// Trains to submit.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Trains that the kernel has.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// True if there is [room](Self::room).
    pub(super) fn has_room(&self) -> bool {
        self.place().is_some()
    }

    /// The memory of the next packet, [`MAX_TX_PAYLOAD`] bytes. `None` if there is no room, be it for a
    /// packet or for a train.
    pub(super) fn room(&mut self) -> Option<&mut [u8]> {
        let at = self.place()?;
        if at != self.write {
            self.write = at;
            self.open = false;
        }
        // SAFETY: `place` found that many bytes within the arena that belong to no train, so that neither the
        // kernel nor anybody else has them.
        Some(unsafe { std::slice::from_raw_parts_mut(self.arena.at(at), MAX_TX_PAYLOAD) })
    }

    /// Where the next packet would go.
    fn place(&self) -> Option<usize> {
        if self.tail - self.head == TX_TRAINS as u64 {
            return None;
        }
        // Always from the start if possible: those lines are in the cache.
        let Some(oldest) = self.entry(self.head) else { return Some(0) };
        if self.write < oldest.start {
            // Never up to the oldest itself: an arena that is full would look like an empty one.
            return (oldest.start - self.write > MAX_TX_PAYLOAD).then_some(self.write);
        }
        if TX_BYTES - self.write >= MAX_TX_PAYLOAD {
            return Some(self.write);
        }
        (oldest.start > MAX_TX_PAYLOAD).then_some(0)
    }

    /// Queues the first `length` bytes of the last [`room`](Self::room) for `path`. False if they cannot be
    /// sent that way: more than the room, or IPv6 on an IPv4 socket.
    pub(super) fn push(&mut self, length: usize, path: &Path) -> bool {
        if length > MAX_TX_PAYLOAD {
            return false;
        }
        let joins = self.open && self.segmentation;
        if joins
            && let Some(last) = &mut self.entries[place_of(self.tail.wrapping_sub(1))]
            && last.path == *path
            && last.train.push(length)
        {
            last.bytes += length;
            self.write += length;
            return true;
        }
        let Some(envelope) = Envelope::new(self.family, path) else { return false };
        let place = place_of(self.tail);
        // SAFETY: the train at this place is free, so that its message is ours.
        unsafe { (*self.messages.at(place)).envelope = envelope };
        self.entries[place] = Some(Entry {
            state: State::Queued,
            path: *path,
            train: Train::new(length),
            start: self.write,
            bytes: length,
            apart: false,
            done: 0,
            suspect: false,
        });
        self.tail += 1;
        self.queued += 1;
        self.open = true;
        self.write += length;
        true
    }

    /// Packets, or trains of them, that the kernel has sent or refused so far.
    pub(super) fn progress(&self) -> u64 {
        self.progress
    }

    /// Moves queued trains to the submission queue, oldest first, as far as that has room. What has to wait
    /// for one of them is left for the next time.
    pub(super) fn submit(&mut self, ring: &mut Ring, socket: RawFd) {
        self.open = false;
        let mut last_peer = None;
        while self.queued > 0 {
            let segmentation = self.segmentation;
            let entry = self.entries[place_of(self.next)].as_mut();
            let Some(entry) = entry.filter(|entry| entry.state == State::Queued) else {
                self.next += 1;
                continue;
            };
            if last_peer.replace(entry.path.peer) == Some(entry.path.peer) {
                return;
            }
            entry.apart |= !segmentation;
            let in_parts = entry.apart && entry.train.packets() > 1;
            let header = self.point(self.next);
            let message = opcode::SendMsg::new(Fd(socket), header).flags(libc::MSG_NOSIGNAL as u32).build();
            // SAFETY: the message and the bytes that it points to are in arrays of this queue. Nothing
            // touches them until the train is free again, after its completion; the arrays are freed only
            // when nothing is in flight.
            if unsafe { ring.push(message, Token::Send(self.next)) }.is_err() {
                return;
            }
            self.set_state(self.next, State::InFlight);
            self.queued -= 1;
            self.in_flight += 1;
            self.next += 1;
            if in_parts {
                return;
            }
        }
    }

    /// Takes note of the completion of the train numbered `sequence`. Returns how many packets the kernel
    /// refused.
    pub(super) fn complete(&mut self, sequence: u64, completion: &Completion) -> u64 {
        let place = place_of(sequence);
        let current = (self.head..self.tail).contains(&sequence);
        let Some(entry) = self.entries[place].as_mut().filter(|_| current) else { return 0 };
        if entry.state != State::InFlight {
            return 0;
        }
        self.in_flight -= 1;
        self.progress += 1;
        let alone = entry.next().2.is_none();
        let mut refused = 0;
        match completion.error() {
            // A signal, or a kernel that does not park. They try again with the next submission.
            Some(libc::EINTR | libc::EAGAIN) => {
                self.progress -= 1;
                self.requeue(sequence);
                return 0;
            }
            Some(error) if !alone => {
                entry.apart = true;
                self.trains_refused += 1;
                entry.suspect = means_segmentation(error);
                self.requeue(sequence);
                return 0;
            }
            // This packet's fault or its peer's: no route, filtered, too long for the interface, no memory.
            Some(_) => refused = 1,
            None if entry.suspect => self.segmentation = false,
            None => {}
        }
        entry.suspect = false;
        entry.done += entry.next().1;
        if entry.apart && entry.done < entry.bytes {
            self.requeue(sequence);
        } else {
            self.set_state(sequence, State::Done);
            self.release();
        }
        refused
    }

    /// Queues cancellations of everything in flight, as far as the submission queue has room, and forgets
    /// what is queued.
    pub(super) fn cancel(&mut self, ring: &mut Ring) {
        for sequence in self.head..self.tail {
            match self.entry(sequence).map(|entry| entry.state) {
                Some(State::InFlight) => {
                    if ring.cancel(Token::Send(sequence)).is_err() {
                        return;
                    }
                }
                Some(State::Queued) => {
                    self.queued -= 1;
                    self.set_state(sequence, State::Done);
                }
                Some(State::Done) | None => {}
            }
        }
        self.release();
    }

    /// Where all trains are. They are counted anew: for tests.
    pub(super) fn census(&self) -> Census {
        let mut census = Census::default();
        for entry in &self.entries {
            match entry.map(|entry| entry.state) {
                None => census.free += 1,
                Some(State::Queued) => census.queued += 1,
                Some(State::InFlight) => census.in_flight += 1,
                Some(State::Done) => census.done += 1,
            }
        }
        census
    }

    /// Gives up the memory without freeing it, since the kernel may still read it.
    pub(super) fn leak(&mut self) {
        self.arena.leak();
        self.messages.leak();
    }

    /// Points the header of the train numbered `sequence`, which is queued, at what is to be sent next.
    fn point(&mut self, sequence: u64) -> *const libc::msghdr {
        let place = place_of(sequence);
        let message = self.messages.at(place);
        let Some((start, bytes, segment_size)) = self.entries[place].as_ref().map(Entry::next) else {
            unreachable!("a queued train has an entry")
        };
        // SAFETY: the message is live and, as its train is queued, not the kernel's; of itself only addresses
        // are taken.
        unsafe {
            (*message).vector = libc::iovec { iov_base: self.arena.at(start).cast(), iov_len: bytes };
            if let Some(bytes) = segment_size {
                (*message).envelope.control.set_segment_size(self.family, bytes);
            }
            (*message).header.msg_name = (&raw mut (*message).envelope.name).cast();
            (*message).header.msg_namelen = self.family.name_len();
            (*message).header.msg_iov = &raw mut (*message).vector;
            (*message).header.msg_iovlen = 1;
            (*message).header.msg_control = (&raw mut (*message).envelope.control).cast();
            (*message).header.msg_controllen = Control::len(self.family, segment_size.is_some()) as _;
            &raw const (*message).header
        }
    }

    fn entry(&self, sequence: u64) -> Option<&Entry> {
        self.entries[place_of(sequence)].as_ref()
    }

    fn set_state(&mut self, sequence: u64, state: State) {
        if let Some(entry) = &mut self.entries[place_of(sequence)] {
            entry.state = state;
        }
    }

    /// Puts a train that was in flight back among the queued.
    fn requeue(&mut self, sequence: u64) {
        self.set_state(sequence, State::Queued);
        self.queued += 1;
        self.next = self.next.min(sequence);
    }

    /// Frees the oldest trains that are done.
    fn release(&mut self) {
        while self.entry(self.head).is_some_and(|entry| entry.state == State::Done) {
            self.entries[place_of(self.head)] = None;
            self.head += 1;
        }
        self.next = self.next.max(self.head);
    }
}

/// Where the train numbered `sequence` is.
fn place_of(sequence: u64) -> usize {
    (sequence % TX_TRAINS as u64) as usize
}

/// True if the error number, with which a train was refused, may be about segmentation: EIO is Linux' word
/// for a route that cannot have it (a NIC without checksum offload, IPsec), EINVAL for a socket that cannot.
/// But EINVAL is also said of packets that would be refused alone.
fn means_segmentation(error: i32) -> bool {
    matches!(error, libc::EIO | libc::EINVAL)
}
