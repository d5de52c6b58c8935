//! What is counted of one UDP socket, by both backends that have one: packets in and out, and what the kernel
//! dropped at it. Owned by the worker's packet I/O, and counted on its thread.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::net::IoCounters;

/// One socket's counters.
#[derive(Debug, Default)]
pub struct SocketCounters {
    /// As they are reported, but for those that [`read`](Self::read) adds.
    pub io: IoCounters,
    /// The kernel's count of drops when last read; it wraps around.
    kernel_drops: u32,
}

impl SocketCounters {
    /// Counts a payload of `length` bytes that is handed to the worker.
    pub fn received(&mut self, length: usize) {
        self.io.rx_packets += 1;
        self.io.rx_bytes += length as u64;
    }

    /// Counts a packet of `length` bytes that was `queued`, or has no way out. Returns how many were.
    pub fn sent(&mut self, length: usize, queued: bool) -> u32 {
        if !queued {
            self.io.tx_errors += 1;
            return 0;
        }
        self.io.tx_packets += 1;
        self.io.tx_bytes += length as u64;
        1
    }

    /// All of them, with the kernel's drops at `socket` up to now, and `trains_refused` as the transmit side
    /// counts them. One system call.
    pub fn read(&mut self, socket: BorrowedFd<'_>, trains_refused: u64) -> IoCounters {
        if let Some(drops) = kernel_drops(socket) {
            self.io.rx_kernel_drops += u64::from(drops.wrapping_sub(self.kernel_drops));
            self.kernel_drops = drops;
        }
        IoCounters { tx_trains_refused: trains_refused, ..self.io }
    }
}

/// Datagrams that the kernel dropped at this socket since it was made, modulo 2^32. `SO_MEMINFO` gives it at
/// any time; `SO_RXQ_OVFL` would tell only with the next datagram that does arrive, and lengthen each one's
/// control data. A buffer that GRO made counts once. `None` where it is unknown (before Linux 4.12).
fn kernel_drops(socket: BorrowedFd<'_>) -> Option<u32> {
    const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;
    let mut info = [0_u32; DROPS + 1];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is live and `length` is its size, beyond which the kernel does not write.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    (result == 0 && length as usize == size_of_val(&info)).then_some(info[DROPS])
}
