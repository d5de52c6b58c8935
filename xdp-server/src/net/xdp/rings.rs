//! The four AF_XDP rings and the memory behind them, as the rest of `net::xdp` sees them.
//!
//! Theory of operation
//! -------------------
//! [`Rings`] is the seam between what moves frames (the kernel, or a model of it in the tests) and what
//! decides where they go ([`Frames`](super::umem::Frames), [`XdpIo`](super::XdpIo)). A frame is named by its
//! index in the UMEM on the way to the kernel, and by a descriptor with an address on the way back: an
//! address is the kernel's word, to be checked before it becomes an index.
//!
//! Two implementations: [`XskRings`](super::socket::XskRings) over a real socket, and the test model, where
//! the test plays the kernel.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

/// What the kernel hands back: where in the UMEM a packet lies.
pub trait Descriptor: Copy + Debug + Default {
    /// Offset of the packet's first byte from the start of the UMEM, in bytes. It lies inside the frame,
    /// behind the headroom, not at the frame's start.
    fn address(&self) -> usize;
    /// Length of the packet in bytes; 0 in completions.
    fn length(&self) -> usize;
}

/// Size of a UMEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of frames.
    pub frames: u32,
    /// Bytes of each, a power of two, headroom included.
    pub frame_size: usize,
}

/// What came of a system call that asks the kernel to work on a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The kernel did, or scheduled, all there was.
    Done,
    /// It stopped before the end of the ring: out of its budget for one call, or of memory. Call again.
    Again,
}

/// The kernel's drop counters of one socket, since it was opened, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStatistics {
    /// Dropped: no room in the receive ring, or the packet did not fit a frame.
    pub dropped: u64,
    /// Times that the fill ring was empty when a packet came.
    pub fill_ring_empty: u64,
    /// Descriptors that the kernel found invalid.
    pub invalid: u64,
}

/// The fill, receive, transmit and completion rings of one queue, and the UMEM that they describe.
pub trait Rings {
    /// What comes out of the receive and completion rings.
    type Descriptor: Descriptor;

    /// Size of the UMEM.
    fn layout(&self) -> Layout;

    /// Gives the kernel frames to receive into: all of them, or none when the fill ring has not room for all.
    /// Says which.
    ///
    /// # Safety
    /// The frames are valid indices, and nobody touches their memory until [`receive`](Self::receive)
    /// returned them.
    unsafe fn fill(&mut self, frames: &[u32]) -> bool;

    /// Takes received packets off the receive ring; returns how many of `out` it wrote.
    fn receive(&mut self, out: &mut [Self::Descriptor]) -> usize;

    /// Gives the kernel packets to transmit, `(frame, length in bytes)`: all of them, or none when the
    /// transmit ring has not room for all. Says which.
    ///
    /// # Safety
    /// As for [`fill`](Self::fill), until [`complete`](Self::complete) returned them.
    unsafe fn transmit(&mut self, packets: &[(u32, usize)]) -> bool;

    /// Takes transmitted frames off the completion ring; returns how many of `out` it wrote.
    fn complete(&mut self, out: &mut [Self::Descriptor]) -> usize;

    /// Packets that wait in the receive ring, and frames that wait in the completion ring.
    fn backlog(&mut self) -> (u32, u32);

    /// The received packet that `descriptor` describes.
    ///
    /// # Safety
    /// Address and length lie within one frame, which belongs to the caller.
    unsafe fn packet(&mut self, descriptor: &Self::Descriptor) -> &mut [u8];

    /// All the room that `frame` has for a packet to transmit. [`transmit`](Self::transmit) sends from its
    /// start.
    ///
    /// # Safety
    /// `frame` is a valid index and belongs to the caller.
    unsafe fn room(&mut self, frame: u32) -> &mut [u8];

    /// Whether the kernel asked to be told of new frames in the fill ring.
    fn fill_needs_wakeup(&self) -> bool;

    /// Whether the kernel asked to be told of new packets in the transmit ring.
    fn transmit_needs_wakeup(&self) -> bool;

    /// Lets the kernel work on the receive side, for a bounded time.
    fn wake_receive(&mut self);

    /// Lets the kernel work on the transmit side (and, when busy polling, on the receive side), for a bounded
    /// time.
    fn wake_transmit(&mut self) -> Wake;

    /// Whether a wake-up found that the interface is gone, for good: such a ring moves nothing any more.
    fn is_gone(&self) -> bool;

    /// Readable when the receive ring is not empty.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;

    /// The kernel's counters.
    ///
    /// # Errors
    /// Whatever getsockopt(2) says.
    fn statistics(&self) -> io::Result<RingStatistics>;
}
