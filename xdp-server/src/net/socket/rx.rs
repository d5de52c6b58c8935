//! The receive side of a socket: one `recvmmsg` at a time into memory that stays where it is.
//!
//! An [`RxBatch`] owns [`RX_BATCH`] slots (name, control data, payload) and the arrays of headers that point
//! the kernel at them. The headers are written anew for each call, from a fresh pointer to the slots: the
//! kernel overwrites half of their fields anyway, and no pointer has to stay valid between calls.
//!
//! With GRO a slot may hold several payloads, more than the caller asked for. They are handed out one by one
//! where they lie ([`RxBatch::next`]), over as many calls as it takes; the next `recvmmsg` comes when all
//! are.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::super::segment::{MAX_GRO_BYTES, Segments};
use super::super::{MAX_RX_PAYLOAD, Sink};
use super::addr::{Family, Name};
use super::control;
use super::memory::zeroed_slice;

/// Datagrams, or buffers of GRO, of one `recvmmsg`: as many as a worker takes in one turn, so that a turn
/// costs one system call. More crowds the connections out of the L2 cache, at 1.5 KB for each; fewer makes
/// the call, about 0.2 us, a larger part of each packet.
pub(super) const RX_BATCH: usize = 64;

/// Bytes from one slot's payload to the next. Without GRO: what the longest payload takes. 97 KB in all.
const STRIDE: usize = MAX_RX_PAYLOAD;

/// Likewise with GRO: any buffer and a packet more. 4.3 MB in all of address space, of which there is memory
/// only where packets have been: as clients send short trains, mostly one or two pages a slot. The surplus is
/// for the caches: at 64 KiB sharp, the starts of all slots would compete for the same few lines of L2.
const GRO_STRIDE: usize = 64 * 1024 + 1536;
const _: () = assert!(GRO_STRIDE >= MAX_GRO_BYTES);

/// What the kernel writes beside a payload. Plain data: zeroes are valid.
#[repr(C)]
struct Beside {
    name: Name,
    control: control::Received,
}

/// One payload.
pub(super) enum Received<'a> {
    /// A payload with its peer and the address on our side, both canonical.
    Datagram { peer: SocketAddr, local: SocketAddr, payload: &'a mut [u8] },
    /// Longer than [`MAX_RX_PAYLOAD`].
    TooLong,
    /// Without a peer or a local address. Linux gives both with every datagram; checked because it is foreign
    /// input.
    Nameless,
}

/// See the [module](self).
pub(super) struct RxBatch {
    family: Family,
    /// Bytes from one slot's payload to the next, and room for it.
    stride: usize,
    payloads: Box<[u8]>,
    beside: Box<[Beside]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    /// Slots that the last call filled.
    filled: usize,
    /// The first of those whose payloads have not been looked at.
    next: usize,
    /// What is left of the slot before it.
    open: Open,
}

/// A slot whose payloads are being handed out.
#[derive(Default)]
struct Open {
    segments: Segments,
    /// Where its payload starts in the memory of all.
    start: usize,
    /// Peer and local address.
    addresses: Option<(SocketAddr, SocketAddr)>,
    /// The kernel cut it off, for want of room.
    cut: bool,
}

// SAFETY: the pointers in `iovecs` and `headers` are written and used within one call of `receive`, and point
// into memory that this batch alone owns; between calls nobody follows them.
unsafe impl Send for RxBatch {}

impl RxBatch {
    /// A batch for a socket of `family`, which may have GRO if `gro`.
    pub(super) fn new(family: Family, gro: bool) -> Self {
        let stride = if gro { GRO_STRIDE } else { STRIDE };
        // SAFETY: all of these are integers, byte arrays and raw pointers, for which zero is valid.
        unsafe {
            Self {
                family,
                stride,
                payloads: zeroed_slice(RX_BATCH * stride),
                beside: zeroed_slice(RX_BATCH),
                iovecs: zeroed_slice(RX_BATCH),
                headers: zeroed_slice(RX_BATCH),
                filled: 0,
                next: 0,
                open: Open::default(),
            }
        }
    }

    /// True if nothing received waits to be handed out.
    pub(super) fn is_empty(&self) -> bool {
        self.next == self.filled && self.open.segments.len() == 0
    }

    /// Takes up to `want` datagrams or buffers, at most [`RX_BATCH`], from the socket, without blocking. True
    /// if that emptied the socket. The batch must be [empty](Self::is_empty), or what is left of it is lost.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, want: usize) -> io::Result<bool> {
        debug_assert!(self.is_empty());
        let want = want.min(RX_BATCH);
        let payloads = self.payloads.as_mut_ptr();
        let beside = self.beside.as_mut_ptr();
        let iovecs = self.iovecs.as_mut_ptr();
        for (index, header) in self.headers[..want].iter_mut().enumerate() {
            // SAFETY: `index` is below `want`, which is within the length of each array; `payloads` has a
            // stride for each index.
            let (payload, beside, iovec) =
                unsafe { (payloads.add(index * self.stride), beside.add(index), iovecs.add(index)) };
            // SAFETY: all point to live elements of arrays that nothing else borrows here; only addresses
            // within them are taken.
            unsafe {
                iovec.write(libc::iovec { iov_base: payload.cast(), iov_len: self.stride });
                header.msg_hdr.msg_name = (&raw mut (*beside).name).cast();
                header.msg_hdr.msg_control = (&raw mut (*beside).control).cast();
            }
            header.msg_hdr.msg_namelen = self.family.name_len();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_controllen = control::Received::LEN as _;
            header.msg_hdr.msg_flags = 0;
        }
        // SAFETY: `headers` holds at least `want` headers, whose pointers and lengths describe live memory of
        // this batch that nothing else accesses until the call is over.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                want as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        (self.filled, self.next) = (got, 0);
        Ok(got < want)
    }

    /// Announces what was received: of datagrams that the kernel joined, the first, whose connection the
    /// others mostly share.
    pub(super) fn announce(&self, sink: &mut impl Sink) {
        for (slot, header) in self.headers[..self.filled].iter().enumerate() {
            let start = slot * self.stride;
            sink.announce(&self.payloads[start..start + (header.msg_len as usize).min(self.stride)]);
        }
    }

    /// The next payload, oldest first; `None` when it is time to receive again. `port` is the socket's.
    pub(super) fn next(&mut self, port: u16) -> Option<Received<'_>> {
        let range = loop {
            match self.open.segments.next() {
                Some(range) => break range,
                None if self.next == self.filled => return None,
                None => self.open_next(port),
            }
        };
        let Open { start, addresses, cut, .. } = self.open;
        let Some((peer, local)) = addresses else { return Some(Received::Nameless) };
        if cut || range.len() > MAX_RX_PAYLOAD {
            return Some(Received::TooLong);
        }
        let payload = &mut self.payloads[start + range.start..start + range.end];
        Some(Received::Datagram { peer, local, payload })
    }

    /// Turns to the next slot that was filled.
    fn open_next(&mut self, port: u16) {
        let header = &self.headers[self.next];
        let beside = &self.beside[self.next];
        // A name that was not written would be that of an earlier datagram in this slot.
        let named = header.msg_hdr.msg_namelen == self.family.name_len();
        let peer = beside.name.address().filter(|_| named);
        let arrival = beside.control.read(header.msg_hdr.msg_controllen, port);
        self.open = Open {
            segments: Segments::new(header.msg_len as usize, arrival.segment_size),
            start: self.next * self.stride,
            addresses: peer.zip(arrival.local),
            cut: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
        self.next += 1;
    }
}
