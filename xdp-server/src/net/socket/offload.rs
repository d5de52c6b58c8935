//! Switching on what lets several datagrams cross the kernel as one.
//!
//! A step of its own, after binding: the sockets are bound before it is known whether AF_XDP can be had, and
//! those beside AF_XDP must stay without. A socket with GRO lets the kernel merge the packets of its port on
//! their way up, and in generic mode the XDP program sees them only then; and the few packets of that way are
//! not worth 4 MB a worker.

use std::os::fd::AsFd;

use super::SocketIo;
use super::addr::Family;
use super::bind::{SocketNote, set_option};
use super::rx::RxBatch;

/// Lets `sockets` send trains as one message (GSO), and receive as one buffer what the kernel has merged
/// (GRO), as far as the kernel knows how. To be called before the first packet is received. Returns what it
/// does not know, once for all sockets.
pub fn enable_offloads(sockets: &mut [SocketIo]) -> Vec<SocketNote> {
    let mut notes = Vec::new();
    for socket in sockets {
        let refused = socket.enable_offloads();
        if notes.is_empty() {
            notes = refused;
        }
    }
    notes
}

impl SocketIo {
    fn enable_offloads(&mut self) -> Vec<SocketNote> {
        let mut notes = Vec::new();
        // A segment size of 0 is the default, none: only asks whether the option is known.
        match set_option(self.socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 0) {
            Ok(()) => self.tx.enable_segmentation(),
            Err(error) => notes.push(SocketNote::Segmentation(error)),
        }
        // Room first: a buffer that GRO made may be there as soon as the option is set.
        self.rx = RxBatch::new(Family::of(&self.local), true);
        if let Err(error) = set_option(self.socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1) {
            self.rx = RxBatch::new(Family::of(&self.local), false);
            notes.push(SocketNote::Coalescing(error));
        }
        notes
    }
}
