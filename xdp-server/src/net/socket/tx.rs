//! The send side of a socket: a ring of packets that leaves by `sendmmsg`.
//!
//! QUIC seals each packet straight into a slot of the ring ([`TxQueue::room`]), which then stays there until
//! the kernel has copied it ([`TxQueue::transmit`]) or refused it. Packets leave in the order in which they
//! were queued. A full socket buffer keeps them; any other error costs that packet alone.
//!
//! Each packet has a message of its own. Neighbours of one train differ in nothing but their payload, and the
//! headers and the vectors that point at payloads are separate arrays, built in queue order for each call:
//! segmentation offload only has to let one message span several vectors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::super::{MAX_TX_PAYLOAD, Path};
use super::addr::{Envelope, Family};
use super::memory::zeroed_slice;

/// Packets that can be queued: four turns' worth of answers, so that a tick's fan-out goes out in few system
/// calls. Each takes 1.3 KB, 320 KB in all, in the L2 cache of the cores that this is meant for. More delays
/// the first packet of a burst, by about 1 us for each packet queued before it; fewer costs more system
/// calls. At most 1,024 (UIO_MAXIOV).
pub(super) const TX_SLOTS: usize = 256;

/// A packet to send. Plain data: zeroes are valid.
struct Slot {
    envelope: Envelope,
    length: usize,
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
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers in `iovecs` and `headers` are written and used within one call of `transmit`, and
// point into memory that this queue alone owns; between calls nobody follows them.
unsafe impl Send for TxQueue {}

impl TxQueue {
    /// An empty queue for a socket of `family`.
    pub(super) fn new(family: Family) -> Self {
        // SAFETY: slots, iovecs and headers are integers, byte arrays and raw pointers, for all of which zero
        // is valid.
        unsafe {
            Self {
                family,
                slots: zeroed_slice(TX_SLOTS),
                head: 0,
                queued: 0,
                iovecs: zeroed_slice(TX_SLOTS),
                headers: zeroed_slice(TX_SLOTS),
            }
        }
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
        let slot = &mut self.slots[(self.head + self.queued) % TX_SLOTS];
        slot.envelope = envelope;
        slot.length = length;
        self.queued += 1;
        true
    }

    /// Hands as much as possible to the kernel and returns how many packets it refused. What remains queued
    /// is there because the socket buffer is full.
    pub(super) fn transmit(&mut self, socket: BorrowedFd<'_>) -> u64 {
        if self.is_empty() {
            return 0;
        }
        self.point_headers();
        let mut refused = 0;
        let mut done = 0;
        while done < self.queued {
            // sendmmsg stops at the first packet that fails and reports how many went before; the error
            // itself is reported when that packet is the first.
            let rest = &mut self.headers[done..self.queued];
            // SAFETY: `point_headers` has just pointed these headers at packets and vectors of this queue,
            // which nothing else accesses until the call is over.
            match unsafe { sendmmsg(socket, rest) } {
                Ok(sent) => done += sent,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => break,
                    // This packet's fault or its peer's: no route, filtered, too long for the interface, no
                    // memory.
                    _ => {
                        refused += 1;
                        done += 1;
                    }
                },
            }
        }
        self.head = (self.head + done) % TX_SLOTS;
        self.queued -= done;
        refused
    }

    /// Points the first `queued` headers at the queued packets, oldest first.
    fn point_headers(&mut self) {
        let slots = self.slots.as_mut_ptr();
        let iovecs = self.iovecs.as_mut_ptr();
        for (index, header) in self.headers[..self.queued].iter_mut().enumerate() {
            // SAFETY: both indices are below TX_SLOTS, the length of each array.
            let (slot, iovec) = unsafe { (slots.add((self.head + index) % TX_SLOTS), iovecs.add(index)) };
            // SAFETY: both point to live elements of arrays that nothing else borrows here; of the slot only
            // the length is read, and addresses within it are taken.
            unsafe {
                iovec.write(libc::iovec {
                    iov_base: (&raw mut (*slot).payload).cast(),
                    iov_len: (*slot).length,
                });
                header.msg_hdr.msg_name = (&raw mut (*slot).envelope.name).cast();
                header.msg_hdr.msg_control = (&raw mut (*slot).envelope.control).cast();
            }
            header.msg_hdr.msg_namelen = self.family.name_len();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_controllen = self.family.control_len() as _;
        }
    }
}

/// Sends the packets that `headers` describe, without blocking. Returns how many went, at least one.
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
