//! The send side of a socket: a ring of packets that leaves by `sendmmsg`, neighbours to one peer as one
//! message.
//!
//! QUIC seals each packet straight into a slot of the ring ([`TxQueue::room`]), which then stays there until
//! the kernel has copied it ([`TxQueue::transmit`]) or refused it. Packets leave in the order in which they
//! were queued. A full socket buffer keeps them; any other error costs that packet alone.
//!
//! With segmentation offload (GSO) neighbours on one path whose lengths allow it ([`Train`]) share one
//! message, whose vectors span their slots: the kernel routes, filters and queues them as one packet, and
//! cuts it up at the very end, or has the NIC do so. A train that the kernel refuses is sent again packet by
//! packet, so that it is clear whose fault it was: if its first packet then goes, segmentation as such was
//! refused and is given up for good (see [`TxQueue::trains_refused`]).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::super::segment::Train;
use super::super::{MAX_TX_PAYLOAD, Path};
use super::addr::{Envelope, Family};
use super::control::Control;
use super::memory::zeroed_slice;

/// Packets that can be queued: four turns' worth of answers, so that a tick's fan-out goes out in few system
/// calls. Each takes 1.3 KB, 330 KB in all, in the L2 cache of the cores that this is meant for. More delays
/// the first packet of a burst, by about 1 us for each packet queued before it; fewer costs more system
/// calls. At most 1,024 (UIO_MAXIOV).
pub(super) const TX_SLOTS: usize = 256;

/// A packet to send. Plain data: zeroes are valid.
struct Slot {
    envelope: Envelope,
    length: usize,
    /// It goes the same way as the packet before it.
    follows: bool,
    payload: [u8; MAX_TX_PAYLOAD],
}

/// See the [module](self).
pub(super) struct TxQueue {
    family: Family,
    slots: Box<[Slot]>,
    /// Slot of the oldest packet.
    head: usize,
    /// Packets queued, from `head` on, around the end.
    queued: usize,
    /// Where the packet queued last goes.
    last: Option<Path>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    /// Packets of the message in the header of the same index.
    packets: Box<[usize]>,
    /// Whether trains may leave as one message.
    segmentation: bool,
    /// So many packets, from `head` on, are of a train that was refused, and go one by one.
    apart: usize,
    /// That train was refused with an error that may mean segmentation itself, and its first packet has not
    /// gone yet.
    suspicion: bool,
    trains_refused: u64,
}

// SAFETY: the pointers in `iovecs` and `headers` are written and used within one call of `transmit`, and
// point into memory that this queue alone owns; between calls nobody follows them.
unsafe impl Send for TxQueue {}

impl TxQueue {
    /// An empty queue for a socket of `family`.
    pub(super) fn new(family: Family) -> Self {
        // SAFETY: slots, iovecs, headers and counts are integers and raw pointers, and a bool, for all of
        // which zero is valid.
        unsafe {
            Self {
                family,
                slots: zeroed_slice(TX_SLOTS),
                head: 0,
                queued: 0,
                last: None,
                iovecs: zeroed_slice(TX_SLOTS),
                headers: zeroed_slice(TX_SLOTS),
                packets: zeroed_slice(TX_SLOTS),
                segmentation: false,
                apart: 0,
                suspicion: false,
                trains_refused: 0,
            }
        }
    }

    /// Lets trains leave as one message each. The kernel must know `UDP_SEGMENT`: one that does not would
    /// ignore it, and send a train as a single huge datagram.
    pub(super) fn enable_segmentation(&mut self) {
        self.segmentation = true;
    }

    /// Trains that the kernel refused. The first that shows that segmentation cannot be had is also the last.
    pub(super) fn trains_refused(&self) -> u64 {
        self.trains_refused
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.queued == TX_SLOTS
    }

    /// The payload memory of the next packet. The queue must not be full, or this is the oldest packet's.
    pub(super) fn room(&mut self) -> &mut [u8] {
        debug_assert!(!self.is_full());
        &mut self.slots[(self.head + self.queued) % TX_SLOTS].payload
    }

    /// Queues the first `length` bytes of [`room`](Self::room) for `path`. False if they cannot be sent that
    /// way: more than the room, or IPv6 on an IPv4 socket.
    pub(super) fn push(&mut self, length: usize, path: &Path) -> bool {
        debug_assert!(!self.is_full());
        let Some(envelope) = Envelope::new(self.family, path) else { return false };
        if length > MAX_TX_PAYLOAD {
            return false;
        }
        let follows = self.last.replace(*path).as_ref() == Some(path);
        let slot = &mut self.slots[(self.head + self.queued) % TX_SLOTS];
        slot.envelope = envelope;
        slot.length = length;
        slot.follows = follows;
        self.queued += 1;
        true
    }

    /// Hands as much as possible to the kernel and returns how many packets it refused. What remains queued
    /// is there because the socket buffer is full.
    pub(super) fn transmit(&mut self, socket: BorrowedFd<'_>) -> u64 {
        let mut refused = 0;
        let (mut next, mut messages) = (0, self.point_headers());
        while next < messages {
            // sendmmsg stops at the first message that fails and reports how many went before; the error
            // itself is reported when that message is the first.
            let rest = &mut self.headers[next..messages];
            // SAFETY: `point_headers` has pointed these headers at packets and vectors of this queue, which
            // nothing has touched since, and nothing else accesses until the call is over.
            match unsafe { sendmmsg(socket, rest) } {
                Ok(sent) => {
                    let packets = self.packets[next..next + sent].iter().sum();
                    self.forget(packets);
                    next += sent;
                    if std::mem::take(&mut self.suspicion) {
                        self.segmentation = false;
                        (next, messages) = (0, self.point_headers());
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => break,
                    // This packet's fault or its peer's: no route, filtered, too long for the interface, no
                    // memory.
                    _ if self.packets[next] == 1 => {
                        self.suspicion = false;
                        refused += 1;
                        self.forget(1);
                        next += 1;
                    }
                    _ => {
                        self.trains_refused += 1;
                        self.apart = self.packets[next];
                        self.suspicion = means_segmentation(&error);
                        (next, messages) = (0, self.point_headers());
                    }
                },
            }
        }
        refused
    }

    /// Takes the oldest `count` packets out.
    fn forget(&mut self, count: usize) {
        self.head = (self.head + count) % TX_SLOTS;
        self.queued -= count;
        self.apart = self.apart.saturating_sub(count);
    }

    /// Points headers at the queued packets, oldest first, and returns how many: one for each train or
    /// packet.
    fn point_headers(&mut self) -> usize {
        let messages = self.form_trains();
        let slots = self.slots.as_mut_ptr();
        let iovecs = self.iovecs.as_mut_ptr();
        let mut first = 0;
        for (header, &count) in self.headers.iter_mut().zip(&self.packets[..messages]) {
            for index in first..first + count {
                // SAFETY: the counts add up to the packets queued, so both indices are below TX_SLOTS, the
                // length of each array. Nothing else borrows these here; of the slot only the length is read,
                // and the address of its payload taken.
                unsafe {
                    let slot = slots.add((self.head + index) % TX_SLOTS);
                    iovecs.add(index).write(libc::iovec {
                        iov_base: (&raw mut (*slot).payload).cast(),
                        iov_len: (*slot).length,
                    });
                }
            }
            let header = &mut header.msg_hdr;
            // SAFETY: as above; addresses within the slot are taken, and its control data written.
            unsafe {
                let slot = slots.add((self.head + first) % TX_SLOTS);
                if count > 1 {
                    (*slot).envelope.control.set_segment_size(self.family, (*slot).length as u16);
                }
                header.msg_name = (&raw mut (*slot).envelope.name).cast();
                header.msg_control = (&raw mut (*slot).envelope.control).cast();
                header.msg_iov = iovecs.add(first);
            }
            header.msg_namelen = self.family.name_len();
            header.msg_iovlen = count as _;
            header.msg_controllen = Control::len(self.family, count > 1) as _;
            first += count;
        }
        messages
    }

    /// Decides which of the queued packets share a message: fills `packets`, and returns how many messages
    /// that makes.
    fn form_trains(&mut self) -> usize {
        let (mut messages, mut first) = (0, 0);
        while first < self.queued {
            let slot = |index: usize| &self.slots[(self.head + index) % TX_SLOTS];
            let mut train = Train::new(slot(first).length);
            if self.segmentation && first >= self.apart {
                let mut followers = (first + 1..self.queued).map(slot);
                while followers.next().is_some_and(|next| next.follows && train.push(next.length)) {}
            }
            first += train.packets();
            self.packets[messages] = train.packets();
            messages += 1;
        }
        messages
    }
}

/// True if `error`, with which a train was refused, may be about segmentation: EIO is Linux' word for a route
/// that cannot have it (a NIC without checksum offload, IPsec), EINVAL for a socket that cannot. But EINVAL
/// is also said of packets that would be refused alone.
fn means_segmentation(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}

/// Sends the messages that `headers` describe, without blocking. Returns how many went, at least one.
///
/// # Safety
/// Each header's pointers and lengths must describe live memory that nobody writes during the call.
unsafe fn sendmmsg(socket: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `headers` is a live array of that length; the caller vouches for what it points at.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as libc::c_uint, flags)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
