//! Who owns each frame of a UMEM.
//!
//! Theory of operation
//! -------------------
//! A frame belongs to exactly one of: free list, fill ring, receive ring, worker, transmit ring, completion
//! ring. The sum is constant. [`Frames`] is the book of this: one byte a frame says who has it, and a frame
//! changes hands only by an entry in the book. So what the kernel returns is never believed: an address
//! outside the UMEM, a packet that leaves its frame, a frame that it was not given, a frame returned twice,
//! each is refused and counted, and memory safety does not hang on the kernel.
//!
//! ```text
//!              Fill ──────► Received ──┐
//!   Free ──►  (fill ring,   (worker)   ├──► Free
//!              NIC,                    │
//!              receive ring)           │
//!   Free ──►  Writing  ──► Transmit ───┘      and Writing ──► Free when there was nothing to send
//!             (worker)     (transmit ring,
//!                           NIC, completion ring)
//! ```
//!
//! There is one free list for both directions, last in, first out, so that what was just sent or read is
//! reused while it is in the cache. Neither direction can take all frames from the other: [`Limits`] says how
//! many each may hold at a time. While the sum of the limits is not above the number of frames, the rest is
//! always free for the other one.
//!
//! Owned by one worker, with the rings; no sharing. Nothing is allocated after [`Frames::new`].

/// Who has a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Owner {
    /// The free list.
    Free,
    /// The kernel, to receive into.
    Fill,
    /// The worker, to read from.
    Received,
    /// The worker, to write into.
    Writing,
    /// The kernel, to transmit from.
    Transmit,
}

const OWNERS: usize = 5;

/// Most frames that each direction may hold at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Receiving: given to the kernel to fill, or being read.
    pub receive: u32,
    /// Transmitting: being written, or with the kernel to transmit.
    pub transmit: u32,
}

impl Limits {
    /// Half of `frames` for either direction, and at least one: receiving absorbs bursts while the worker is
    /// busy elsewhere, transmitting absorbs the fan-out of a tick, and here both are of the same order.
    pub fn halves(frames: u32) -> Self {
        let half = (frames / 2).max(1);
        Self { receive: half, transmit: half }
    }
}

/// Where all frames are at one moment. See [`XdpIo::census`](super::XdpIo::census).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCensus {
    /// Frames of the UMEM.
    pub total: u32,
    /// In the free list.
    pub free: u32,
    /// In the fill ring, or taken from it by the NIC and not yet in the receive ring.
    pub fill: u32,
    /// In the receive ring.
    pub receive: u32,
    /// With the worker.
    pub worker: u32,
    /// In the transmit ring, or taken from it by the NIC and not yet in the completion ring.
    pub transmit: u32,
    /// In the completion ring.
    pub completion: u32,
}

impl FrameCensus {
    /// Whether every frame is in exactly one place.
    pub fn is_whole(&self) -> bool {
        let parts = [self.free, self.fill, self.receive, self.worker, self.transmit, self.completion];
        parts.iter().map(|&part| u64::from(part)).sum::<u64>() == u64::from(self.total)
    }

    /// For tests and fuzzers.
    ///
    /// # Panics
    /// When a frame is missing or in two places.
    #[track_caller]
    pub fn assert_whole(&self) {
        assert!(self.is_whole(), "frames were lost or duplicated: {self:?}");
    }
}

/// The book of a UMEM's frames.
#[derive(Debug)]
pub struct Frames {
    owners: Box<[Owner]>,
    /// Frames by owner; `Owner as usize` is the index.
    counts: [u32; OWNERS],
    free: Vec<u32>,
    frame_size: usize,
    limits: Limits,
    /// Descriptors of the kernel's that were refused.
    refused: u64,
}

impl Frames {
    /// A book for `count` frames of `frame_size` bytes, all of them free. The limits are cut down to `count`.
    pub fn new(count: u32, frame_size: usize, limits: Limits) -> Self {
        let limits = Limits { receive: limits.receive.min(count), transmit: limits.transmit.min(count) };
        Self {
            owners: vec![Owner::Free; count as usize].into(),
            counts: [count, 0, 0, 0, 0],
            // The lowest frame is on top.
            free: (0..count).rev().collect(),
            frame_size,
            limits,
            refused: 0,
        }
    }

    /// Frames that the kernel has to receive into.
    pub fn filled(&self) -> u32 {
        self.counts[Owner::Fill as usize]
    }

    /// Frames that the kernel has to transmit from.
    pub fn transmitting(&self) -> u32 {
        self.counts[Owner::Transmit as usize]
    }

    /// How many descriptors of the kernel's were refused: addresses that it was not given, or returned twice.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// How many more frames may go to the fill ring now.
    pub fn fillable(&self) -> usize {
        let held = self.counts[Owner::Fill as usize] + self.counts[Owner::Received as usize];
        (self.limits.receive.saturating_sub(held) as usize).min(self.free.len())
    }

    /// Takes a frame off the free list for the fill ring. `None` when none is free or receiving has its
    /// share.
    #[inline]
    pub fn take_to_fill(&mut self) -> Option<u32> {
        if self.fillable() == 0 { None } else { self.take(Owner::Fill) }
    }

    /// Takes a frame off the free list to write a packet into. `None` when none is free or transmitting has
    /// its share.
    #[inline]
    pub fn take_to_write(&mut self) -> Option<u32> {
        let held = self.counts[Owner::Writing as usize] + self.counts[Owner::Transmit as usize];
        if held >= self.limits.transmit { None } else { self.take(Owner::Writing) }
    }

    /// Undoes [`take_to_fill`](Self::take_to_fill), when the fill ring had no room after all.
    pub fn unfill(&mut self, frame: u32) {
        self.free_from(frame, Owner::Fill);
    }

    /// The kernel returned a packet in the receive ring: `length` bytes at `address`. Returns its frame, now
    /// the worker's; `None`, and counted, if that cannot be.
    #[inline]
    pub fn received(&mut self, address: usize, length: usize) -> Option<u32> {
        let frame = self.frame_at(address, length);
        let frame = frame.filter(|&frame| self.pass(frame, Owner::Fill, Owner::Received));
        self.refused += u64::from(frame.is_none());
        frame
    }

    /// The worker has read the packet in `frame`.
    #[inline]
    pub fn read(&mut self, frame: u32) {
        self.free_from(frame, Owner::Received);
    }

    /// The worker did not want to send what it wrote into `frame`.
    #[inline]
    pub fn unwrite(&mut self, frame: u32) {
        self.free_from(frame, Owner::Writing);
    }

    /// The packet in `frame` went to the transmit ring.
    #[inline]
    pub fn transmit(&mut self, frame: u32) {
        let passed = self.pass(frame, Owner::Writing, Owner::Transmit);
        debug_assert!(passed, "frame {frame} was not the worker's to send");
    }

    /// The kernel returned the frame at `address` in the completion ring. Counted if that cannot be.
    #[inline]
    pub fn completed(&mut self, address: usize) {
        match self.frame_at(address, 0) {
            Some(frame) if self.pass(frame, Owner::Transmit, Owner::Free) => self.free.push(frame),
            _ => self.refused += 1,
        }
    }

    /// Counts the frames anew, owner by owner, and not from the running counts. `receive_backlog` and
    /// `completion_backlog` are the lengths of those rings, as
    /// [`Rings::backlog`](super::rings::Rings::backlog) has them. Costs a pass over all frames: for tests and
    /// for debugging.
    pub fn census(&self, receive_backlog: u32, completion_backlog: u32) -> FrameCensus {
        let owned = |owner| self.owners.iter().filter(|&&other| other == owner).count() as u32;
        FrameCensus {
            total: self.owners.len() as u32,
            // The list itself, so that a frame which is marked free but not in the list is missed.
            free: self.free.len() as u32,
            fill: owned(Owner::Fill).saturating_sub(receive_backlog),
            receive: receive_backlog,
            worker: owned(Owner::Received) + owned(Owner::Writing),
            transmit: owned(Owner::Transmit).saturating_sub(completion_backlog),
            completion: completion_backlog,
        }
    }

    /// The frame that `length` bytes at `address` lie in, when they lie in one.
    #[inline]
    fn frame_at(&self, address: usize, length: usize) -> Option<u32> {
        let frame = address / self.frame_size;
        let room = self.frame_size - address % self.frame_size;
        (frame < self.owners.len() && length <= room).then_some(frame as u32)
    }

    #[inline]
    fn take(&mut self, to: Owner) -> Option<u32> {
        let frame = self.free.pop()?;
        self.pass(frame, Owner::Free, to);
        Some(frame)
    }

    #[inline]
    fn free_from(&mut self, frame: u32, from: Owner) {
        let passed = self.pass(frame, from, Owner::Free);
        debug_assert!(passed, "frame {frame} was not {from:?}");
        if passed {
            self.free.push(frame);
        }
    }

    /// The one place where a frame changes hands. `false`, and nothing done, if it is not `from`'s.
    #[inline]
    fn pass(&mut self, frame: u32, from: Owner, to: Owner) -> bool {
        match self.owners.get_mut(frame as usize) {
            Some(owner) if *owner == from => {
                *owner = to;
                self.counts[from as usize] -= 1;
                self.counts[to as usize] += 1;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_returns_only_once_and_only_from_where_it_went() {
        let mut frames = Frames::new(4, 2_048, Limits { receive: 2, transmit: 2 });
        let filled = frames.take_to_fill().unwrap();
        let written = frames.take_to_write().unwrap();
        let address = filled as usize * 2_048 + 256;

        assert_eq!(frames.received(written as usize * 2_048, 1), None, "not given to receive into");
        frames.completed(address);
        assert_eq!(frames.refused(), 2, "nor to transmit from");

        assert_eq!(frames.received(address, 60), Some(filled));
        assert_eq!(frames.received(address, 60), None, "returned twice");
        frames.read(filled);
        assert_eq!(frames.received(address, 60), None, "it is free");

        frames.completed(written as usize * 2_048);
        assert_eq!(frames.refused(), 5, "still being written");
        frames.transmit(written);
        frames.completed(written as usize * 2_048);
        frames.completed(written as usize * 2_048);
        assert_eq!(frames.refused(), 6);
        let census = frames.census(0, 0);
        assert_eq!(census.free, 4);
        census.assert_whole();
    }

    #[test]
    fn impossible_addresses_are_refused() {
        let mut frames = Frames::new(2, 2_048, Limits { receive: 2, transmit: 0 });
        while frames.take_to_fill().is_some() {}
        let impossible =
            [(4_096, 0), (usize::MAX, 0), (2_048, 2_049), (4_095, 2), (256, 1_793), (0, usize::MAX)];
        for (address, length) in impossible {
            assert_eq!(frames.received(address, length), None, "{length} bytes at {address}");
        }
        assert_eq!(frames.refused(), impossible.len() as u64);
        // Anywhere inside of its frame is fine: the headroom is the driver's business.
        assert_eq!(frames.received(2_048, 2_048), Some(1));
        assert_eq!(frames.received(2_047, 1), Some(0));
    }

    #[test]
    fn neither_direction_starves_the_other() {
        let mut frames = Frames::new(8, 2_048, Limits::halves(8));
        let writes = std::iter::from_fn(|| frames.take_to_write()).count();
        let fills = std::iter::from_fn(|| frames.take_to_fill()).count();
        assert_eq!((writes, fills), (4, 4));
        frames.census(0, 0).assert_whole();
    }

    #[test]
    fn a_census_notices_what_is_missing() {
        let mut frames = Frames::new(4, 2_048, Limits::halves(4));
        frames.free.pop();
        assert!(!frames.census(0, 0).is_whole());
        let mut frames = Frames::new(4, 2_048, Limits::halves(4));
        frames.free.push(0);
        assert!(!frames.census(0, 0).is_whole());
        // More in the receive ring than was ever given to the kernel.
        assert!(!Frames::new(4, 2_048, Limits::halves(4)).census(1, 0).is_whole());
    }
}
