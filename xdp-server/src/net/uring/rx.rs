//! The receive side: buffers that the kernel fills ahead of us, and the payloads in them.
//!
//! Theory of operation
//! -------------------
//! Each buffer is in one of these places, and a test asserts their sum:
//!
//! ```text
//!   kernel ──completion──► filled (FIFO) ──► open (one, being handed out) ──► kernel
//!                                                                         or idle, until posted
//! ```
//!
//! How the kernel gets its buffers is the [`Supply`]'s matter. Payloads are lent to the worker where the
//! kernel put them. When all of a buffer's are done, the kernel gets it back.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::slice;

use io_uring::opcode;
use io_uring::types::Fd;

use super::super::segment::Segments;
use super::super::socket::addr::Family;
use super::super::{MAX_RX_PAYLOAD, Sink};
use super::memory::Array;
use super::ring::{Completion, Ring, Token};
use super::supply::{Beside, GROUP, STRIDE, Supply};

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

/// The buffer whose payloads are being handed out.
struct Open {
    buffer: u16,
    segments: Segments,
    /// Peer and local address.
    addresses: Option<(SocketAddr, SocketAddr)>,
    /// The kernel cut the tail off.
    cut: bool,
}

/// Where all buffers are.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) kernel: usize,
    pub(super) filled: usize,
    pub(super) open: usize,
    pub(super) idle: usize,
}

/// See the [module](self).
pub(super) struct Receiver {
    socket: RawFd,
    family: Family,
    port: u16,
    count: u16,
    memory: Array<u8>,
    supply: Supply,
    /// Buffers that the kernel has.
    in_kernel: usize,
    /// Buffers that it gave back, oldest first.
    filled: VecDeque<u16>,
    open: Option<Open>,
}

// SAFETY: the pointers in headers and vectors point into arrays that this receiver alone owns.
unsafe impl Send for Receiver {}

impl Receiver {
    /// A receiver for `socket`, of `family` and on `port`, that gets its buffers by `supply`.
    pub(super) fn new(socket: RawFd, (family, port): (Family, u16), supply: Supply) -> Self {
        let count = supply.count();
        // SAFETY: bytes; zero is valid.
        let memory = unsafe { Array::zeroed(usize::from(count) * STRIDE) };
        let filled = VecDeque::with_capacity(count.into());
        let (in_kernel, open) = (0, None);
        let mut this = Self { socket, family, port, count, memory, supply, in_kernel, filled, open };
        (0..count).for_each(|buffer| this.give_back(buffer));
        this
    }

    /// Number of buffers.
    pub(super) fn buffers(&self) -> u16 {
        self.count
    }

    /// True if [`next`](Self::next) has something.
    pub(super) fn is_ready(&self) -> bool {
        !self.filled.is_empty() || self.open.as_ref().is_some_and(|open| open.segments.len() > 0)
    }

    /// Receives under way.
    pub(super) fn under_way(&self) -> usize {
        match &self.supply {
            Supply::Ring(ring) => ring.armed.into(),
            Supply::Posted(_) => self.in_kernel,
        }
    }

    /// Queues the receives that are missing, as far as the submission queue has room.
    pub(super) fn arm(&mut self, ring: &mut Ring) {
        match &mut self.supply {
            Supply::Ring(supply) => {
                if supply.armed || self.in_kernel == 0 {
                    return;
                }
                let entry = opcode::RecvMsgMulti::new(Fd(self.socket), supply.header.at(0), GROUP).build();
                // SAFETY: the header is in an array of this receiver, written before; the buffers that the
                // ring holds are in `memory`, and not borrowed. Both are freed only when nothing is under
                // way.
                supply.armed = unsafe { ring.push(entry, Token::Receive(0)) }.is_ok();
            }
            Supply::Posted(posted) => {
                while let Some(&buffer) = posted.idle.last() {
                    let header = posted.point(buffer, &self.memory);
                    let entry = opcode::RecvMsg::new(Fd(self.socket), header).build();
                    // SAFETY: header, vector and buffer are in arrays of this receiver; nobody touches an
                    // idle buffer's, nor, until its completion, one that the kernel has. All are freed only
                    // when nothing is under way.
                    if unsafe { ring.push(entry, Token::Receive(buffer)) }.is_err() {
                        return;
                    }
                    posted.idle.pop();
                    self.in_kernel += 1;
                }
            }
        }
    }

    /// Queues cancellations of everything under way, as far as the submission queue has room.
    pub(super) fn cancel(&self, ring: &mut Ring) {
        match &self.supply {
            Supply::Ring(supply) if supply.armed => drop(ring.cancel(Token::Receive(0))),
            Supply::Ring(_) => {}
            Supply::Posted(posted) => {
                let posted = (0..self.count).filter(|buffer| !posted.idle.contains(buffer));
                for buffer in posted.filter(|buffer| !self.holds(*buffer)) {
                    if ring.cancel(Token::Receive(buffer)).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// True if `buffer` is filled or open.
    fn holds(&self, buffer: u16) -> bool {
        self.filled.contains(&buffer) || self.open.as_ref().is_some_and(|open| open.buffer == buffer)
    }

    /// Takes note of a receive's completion. `posted` is the number in its token. An error ends the receive,
    /// which is then due to be armed again: no buffer was left, or something was pending on the socket, which
    /// is nobody's in particular.
    pub(super) fn complete(&mut self, posted: u16, completion: &Completion) {
        let buffer = match &mut self.supply {
            Supply::Ring(supply) => {
                supply.armed = completion.more();
                completion.buffer()
            }
            Supply::Posted(_) => Some(posted),
        };
        let Some(buffer) = buffer.filter(|&buffer| buffer < self.count) else { return };
        self.in_kernel -= 1;
        if completion.error().is_some() {
            return self.give_back(buffer);
        }
        if let Supply::Posted(supply) = &self.supply {
            // SAFETY: the receive is over, so the header is ours again.
            let header = unsafe { &*supply.headers.at(buffer.into()) };
            let beside = self.beside(buffer);
            // SAFETY: likewise the buffer. The lengths are what a multishot receive would have written.
            unsafe {
                (*beside).name_len = header.msg_namelen;
                (*beside).control_len = header.msg_controllen as u32;
                (*beside).payload_len = completion.result as u32;
                (*beside).flags = header.msg_flags as u32;
            }
        }
        self.filled.push_back(buffer);
    }

    /// Announces what was received: of datagrams that the kernel joined, the first, whose connection the
    /// others mostly share.
    pub(super) fn announce(&self, sink: &mut impl Sink) {
        for &buffer in &self.filled {
            // SAFETY: aligned, within `memory`, initialised and, as the buffer is filled, not the kernel's.
            let beside = unsafe { &*self.beside(buffer) };
            let length = (beside.payload_len as usize).min(STRIDE - size_of::<Beside>());
            let start = usize::from(buffer) * STRIDE + size_of::<Beside>();
            // SAFETY: likewise; the payload is within the buffer by the line above.
            sink.announce(unsafe { slice::from_raw_parts(self.memory.at(start), length) });
        }
    }

    /// The next payload; `None` until there are further completions.
    pub(super) fn next(&mut self) -> Option<Received<'_>> {
        let (open, range) = loop {
            match &mut self.open {
                Some(open) => match open.segments.next() {
                    Some(range) => break (self.open.as_ref()?, range),
                    None => {
                        let buffer = open.buffer;
                        self.open = None;
                        self.give_back(buffer);
                    }
                },
                None => {
                    let buffer = self.filled.pop_front()?;
                    self.open = Some(self.read(buffer));
                }
            }
        };
        // A buffer that was cut short ends in the middle of a payload.
        if range.len() > MAX_RX_PAYLOAD || (open.cut && open.segments.len() == 0) {
            return Some(Received::TooLong);
        }
        let Some((peer, local)) = open.addresses else { return Some(Received::Nameless) };
        let start = usize::from(open.buffer) * STRIDE + size_of::<Beside>() + range.start;
        // SAFETY: `read` bounded the segments by the buffer; the kernel has given it back, and gets it again
        // only by `give_back`, which needs `self`, borrowed for as long as the payload is.
        let payload = unsafe { slice::from_raw_parts_mut(self.memory.at(start), range.len()) };
        Some(Received::Datagram { peer, local, payload })
    }

    /// What a filled buffer holds.
    fn read(&self, buffer: u16) -> Open {
        // SAFETY: aligned, within `memory`, initialised (zeroed, then written by the kernel) and, as the
        // buffer is filled, not the kernel's.
        let beside = unsafe { &*self.beside(buffer) };
        // A name that was not written would be that of an earlier datagram in this buffer.
        let named = beside.name_len == self.family.name_len();
        let peer = beside.name.address().filter(|_| named);
        let arrival = beside.control.read(beside.control_len as usize, self.port);
        let length = (beside.payload_len as usize).min(STRIDE - size_of::<Beside>());
        Open {
            buffer,
            segments: Segments::new(length, arrival.segment_size),
            addresses: peer.zip(arrival.local),
            cut: beside.flags & libc::MSG_TRUNC as u32 != 0,
        }
    }

    /// Lets the kernel have `buffer` (again).
    fn give_back(&mut self, buffer: u16) {
        match &mut self.supply {
            Supply::Ring(ring) => {
                ring.provide(self.memory.at(usize::from(buffer) * STRIDE), buffer);
                self.in_kernel += 1;
            }
            Supply::Posted(posted) => posted.idle.push(buffer),
        }
    }

    fn beside(&self, buffer: u16) -> *mut Beside {
        self.memory.at(usize::from(buffer) * STRIDE).cast()
    }

    /// Gives up the memory without freeing it, since the kernel may still write to it.
    pub(super) fn leak(&mut self) {
        self.memory.leak();
        self.supply.leak();
    }

    /// Where all buffers are.
    #[cfg(test)]
    pub(super) fn census(&self) -> Census {
        let idle = match &self.supply {
            Supply::Ring(_) => 0,
            Supply::Posted(posted) => posted.idle.len(),
        };
        Census { kernel: self.in_kernel, filled: self.filled.len(), open: self.open.is_some().into(), idle }
    }
}
