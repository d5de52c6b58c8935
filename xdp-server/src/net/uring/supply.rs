//! How the kernel gets buffers to receive into.
//!
//! A buffer has room for whatever GRO makes of arriving packets, and in front of the bytes for the peer's
//! name and the control data, in the layout of a multishot `recvmsg` ([`Beside`]).
//!
//! Since Linux 6.0 the kernel gets them by a *provided buffer ring*, of which one multishot receive takes one
//! for each datagram until it finds none (`ENOBUFS`) and has to be armed again; no packet is lost, as the
//! socket buffer keeps them. Before that by single-shot receives, each posted with a buffer of its own.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use super::super::segment::MAX_GRO_BYTES;
use super::super::socket::addr::Name;
use super::super::socket::control;
use super::memory::Array;

/// Connections for each receive buffer. Buffers bridge the time from one look at the ring to the next; what
/// finds none waits in the socket buffer, at the price of arming the receive again, about 1 us. From the
/// reference deployment's 10,000 connections a worker, whose answers to one broadcast then find 64 buffers,
/// one turn's worth. Fewer connections for each: more memory, and more cache lines in the circle that the
/// kernel fills buffers in.
const CONNECTIONS_PER_BUFFER: u32 = 256;

/// Fewest receive buffers: the packets that a worker takes in one turn. With fewer the receive would be armed
/// again in every turn of a busy worker.
const MIN_BUFFERS: u32 = 64;

/// Most receive buffers: 17 MB of address space a worker, of which there is memory only where packets have
/// been, 1 or 2 MB as clients send single packets or short trains.
const MAX_BUFFERS: u32 = 256;

/// Receives posted at a time where there is no multishot. Each arriving packet makes the kernel look at all
/// of them, so that more cost more; fewer than a turn's worth would let packets wait for the next turn.
const POSTED_BUFFERS: u32 = 64;

/// Bytes from one buffer to the next: [`Beside`], the largest payload, and about a packet more. The surplus
/// is for the caches: at 64 KiB sharp, the starts of all buffers would compete for the same few lines of L2.
pub(super) const STRIDE: usize = 64 * 1024 + 1536;
const _: () =
    assert!(STRIDE >= size_of::<Beside>() + MAX_GRO_BYTES && STRIDE.is_multiple_of(align_of::<Beside>()));

/// The only buffer group of the ring.
pub(super) const GROUP: u16 = 0;

/// Room for a peer's name, in bytes: that of an IPv6 peer, and 4 more to align what follows.
const NAME_ROOM: usize = 32;

/// What the kernel writes in front of a payload: `struct io_uring_recvmsg_out`, the name, the control data.
/// Plain data: zeroes are valid.
#[repr(C)]
pub(super) struct Beside {
    pub(super) name_len: u32,
    pub(super) control_len: u32,
    pub(super) payload_len: u32,
    pub(super) flags: u32,
    pub(super) name: Name,
    _align: [u8; NAME_ROOM - size_of::<Name>()],
    pub(super) control: control::Received,
}

// The kernel packs these without gaps.
const _: () = assert!(size_of::<Beside>() == 16 + NAME_ROOM + control::Received::LEN);

/// Number of receive buffers for a worker of at most `connections` connections.
pub(super) fn buffers_for(connections: u32) -> u32 {
    (connections / CONNECTIONS_PER_BUFFER).next_power_of_two().clamp(MIN_BUFFERS, MAX_BUFFERS)
}

/// How the kernel gets buffers.
pub(super) enum Supply {
    /// By a provided buffer ring.
    Ring(BufferRing),
    /// By single-shot receives.
    Posted(Posted),
}

impl Supply {
    /// A buffer ring for `count` buffers, a power of two, registered with `ring`, which need not be enabled
    /// yet; single-shot receives if the kernel does not know such rings.
    ///
    /// # Errors
    /// What io_uring_register(2) says: no memory.
    pub(super) fn register(ring: &Submitter<'_>, count: u32) -> io::Result<Self> {
        Ok(BufferRing::register(ring, count)?.map_or_else(|| Self::single_shot(count), Self::Ring))
    }

    /// Single-shot receives, for at most `count` buffers.
    pub(super) fn single_shot(count: u32) -> Self {
        Self::Posted(Posted::new(count.min(POSTED_BUFFERS) as usize))
    }

    /// Gives up the memory without freeing it, since the kernel may still use it.
    pub(super) fn leak(&mut self) {
        match self {
            Self::Ring(ring) => {
                ring.entries.leak();
                ring.header.leak();
            }
            Self::Posted(posted) => {
                posted.headers.leak();
                posted.vectors.leak();
            }
        }
    }

    /// Number of buffers.
    pub(super) fn count(&self) -> u16 {
        match self {
            Self::Ring(ring) => ring.entries.len() as u16,
            Self::Posted(posted) => posted.headers.len() as u16,
        }
    }
}

/// A provided buffer ring, and the multishot receive that takes from it.
pub(super) struct BufferRing {
    entries: Array<BufRingEntry>,
    tail: u16,
    /// What the receive looks like. The kernel reads it when it is armed; older kernels later, too.
    pub(super) header: Array<libc::msghdr>,
    pub(super) armed: bool,
}

/// Single-shot receives.
pub(super) struct Posted {
    /// By buffer: what the kernel follows, and writes back to.
    pub(super) headers: Array<libc::msghdr>,
    vectors: Array<libc::iovec>,
    /// Buffers that the kernel has not got.
    pub(super) idle: Vec<u16>,
}

impl BufferRing {
    /// An empty ring with room for `count` buffers, a power of two; `None` if the kernel does not know such
    /// rings.
    fn register(submitter: &Submitter<'_>, count: u32) -> io::Result<Option<Self>> {
        debug_assert!(count.is_power_of_two());
        // SAFETY: ring entries and message headers are integers and pointers; zeroes are valid.
        let (entries, header) = unsafe { (Array::<BufRingEntry>::zeroed(count as usize), Array::zeroed(1)) };
        // SAFETY: `entries` is page-aligned, of that many entries, and freed only after the ring of the
        // submitter, which keeps the pages themselves.
        let registered =
            unsafe { submitter.register_buf_ring_with_flags(entries.at(0) as u64, count as u16, GROUP, 0) };
        match registered {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: the array is new, so that nobody else has the header. Of a multishot receive's only these
        // two matter.
        let receive: &mut libc::msghdr = unsafe { &mut *header.at(0) };
        receive.msg_namelen = NAME_ROOM as libc::socklen_t;
        receive.msg_controllen = control::Received::LEN as _;
        Ok(Some(Self { entries, tail: 0, header, armed: false }))
    }

    /// Adds the buffer at `address`, of [`STRIDE`] bytes.
    pub(super) fn provide(&mut self, address: *mut u8, buffer: u16) {
        let index = usize::from(self.tail) & (self.entries.len() - 1);
        // SAFETY: there are as many entries as buffers, so that this one's buffer was taken by the kernel,
        // which reads no entry beyond the tail. The tail itself, which lies in the first entry, is not
        // touched.
        let entry = unsafe { &mut *self.entries.at(index) };
        entry.set_addr(address as u64);
        entry.set_len(STRIDE as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is a live, aligned u16 in the first entry, which the kernel reads and only we
        // write.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.at(0)).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Posted {
    fn new(count: usize) -> Self {
        // SAFETY: headers and vectors are integers and pointers; zeroes are valid.
        let (headers, vectors) = unsafe { (Array::zeroed(count), Array::zeroed(count)) };
        Self { headers, vectors, idle: Vec::with_capacity(count) }
    }

    /// Points the header of an idle `buffer` at its parts, anew, since the kernel overwrites half of its
    /// fields.
    pub(super) fn point(&self, buffer: u16, memory: &Array<u8>) -> *mut libc::msghdr {
        let (header, vector) = (self.headers.at(buffer.into()), self.vectors.at(buffer.into()));
        let start = usize::from(buffer) * STRIDE;
        let beside: *mut Beside = memory.at(start).cast();
        // SAFETY: header and vector are live and, as the buffer is idle, ours alone; of the buffer only
        // addresses are taken.
        unsafe {
            vector.write(libc::iovec {
                iov_base: memory.at(start + size_of::<Beside>()).cast(),
                iov_len: STRIDE - size_of::<Beside>(),
            });
            (*header).msg_name = (&raw mut (*beside).name).cast();
            (*header).msg_namelen = NAME_ROOM as libc::socklen_t;
            (*header).msg_iov = vector;
            (*header).msg_iovlen = 1;
            (*header).msg_control = (&raw mut (*beside).control).cast();
            (*header).msg_controllen = control::Received::LEN as _;
            (*header).msg_flags = 0;
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_follow_connections_within_bounds() {
        let counts = [1, 10_000, 20_000, 65_536, u32::MAX].map(buffers_for);
        assert_eq!(counts, [64, 64, 128, 256, 256]);
    }
}
