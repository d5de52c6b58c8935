//! The receive side of a socket: one `recvmmsg` at a time into memory that stays where it is.
//!
//! A [`RxBatch`] owns [`RX_BATCH`] slots (name, control data, payload) and the arrays of headers that point
//! the kernel at them. The headers are written anew for each call, from a fresh pointer to the slots: the
//! kernel overwrites half of their fields anyway, and no pointer has to stay valid between calls.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::super::MAX_RX_PAYLOAD;
use super::addr::{Control, Family, Name};
use super::memory::zeroed_slice;

/// Datagrams of one `recvmmsg`: as many as a worker takes in one turn, so that a turn costs one system call.
/// Each takes 1.5 KB, 97 KB in all: more crowds the connections out of the L2 cache; fewer makes the call,
/// about 0.2 us, a larger part of each packet.
pub(super) const RX_BATCH: usize = 64;

/// Where the kernel puts one datagram. Plain data: zeroes are valid.
#[repr(C)]
struct Slot {
    name: Name,
    control: Control,
    payload: [u8; MAX_RX_PAYLOAD],
}

/// One datagram of a batch.
pub(super) enum Received<'a> {
    /// A payload with its peer and the address on our side, both canonical.
    Datagram { peer: SocketAddr, local: SocketAddr, payload: &'a mut [u8] },
    /// Longer than [`MAX_RX_PAYLOAD`]; the kernel cut it off.
    TooLong,
    /// Without a peer or a local address. Linux gives both with every datagram; checked because it is foreign
    /// input.
    Nameless,
}

/// See the [module](self).
pub(super) struct RxBatch {
    family: Family,
    slots: Box<[Slot]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers in `iovecs` and `headers` are written and used within one call of `receive`, and point
// into memory that this batch alone owns; between calls nobody follows them.
unsafe impl Send for RxBatch {}

impl RxBatch {
    /// A batch for a socket of `family`.
    pub(super) fn new(family: Family) -> Self {
        // SAFETY: slots, iovecs and headers are integers, byte arrays and raw pointers, for all of which zero
        // is valid.
        unsafe {
            Self {
                family,
                slots: zeroed_slice(RX_BATCH),
                iovecs: zeroed_slice(RX_BATCH),
                headers: zeroed_slice(RX_BATCH),
            }
        }
    }

    /// Takes up to `want` datagrams, at most [`RX_BATCH`], from the socket, without blocking. Returns how
    /// many; fewer than asked means that the socket is empty.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, want: usize) -> io::Result<usize> {
        let want = want.min(RX_BATCH);
        let slots = self.slots.as_mut_ptr();
        let iovecs = self.iovecs.as_mut_ptr();
        for (index, header) in self.headers[..want].iter_mut().enumerate() {
            // SAFETY: `index` is below `want`, which is within the length of each array.
            let (slot, iovec) = unsafe { (slots.add(index), iovecs.add(index)) };
            // SAFETY: both point to live elements of arrays that nothing else borrows here; only addresses
            // within the slot are taken.
            unsafe {
                iovec.write(libc::iovec {
                    iov_base: (&raw mut (*slot).payload).cast(),
                    iov_len: MAX_RX_PAYLOAD,
                });
                header.msg_hdr.msg_name = (&raw mut (*slot).name).cast();
                header.msg_hdr.msg_control = (&raw mut (*slot).control).cast();
            }
            header.msg_hdr.msg_namelen = self.family.name_len();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_controllen = self.family.control_len() as _;
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
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// The datagram at `index` of the last batch; `port` is the socket's.
    pub(super) fn get(&mut self, index: usize, port: u16) -> Received<'_> {
        let header = &self.headers[index];
        let slot = &mut self.slots[index];
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return Received::TooLong;
        }
        // A name that was not written would be that of an earlier datagram in this slot.
        let named = header.msg_hdr.msg_namelen == self.family.name_len();
        let peer = slot.name.address().filter(|_| named);
        let local = slot.control.destination(header.msg_hdr.msg_controllen, port);
        match (peer, local) {
            (Some(peer), Some(local)) => {
                Received::Datagram { peer, local, payload: &mut slot.payload[..header.msg_len as usize] }
            }
            _ => Received::Nameless,
        }
    }
}
