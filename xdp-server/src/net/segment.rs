//! Several UDP payloads that cross the kernel as one: how they are told apart on the way in (GRO), and which
//! may go together on the way out (GSO).
//!
//! Pure arithmetic over lengths, without memory or sockets of its own; the socket and the io_uring backend
//! share it. In both directions a buffer is a run of payloads of one *segment size*, back to back, of which
//! only the last may be shorter. What does not fit that rule travels alone.

use std::ops::Range;

/// Most payloads in one train: the kernel's UDP_MAX_SEGMENTS (`include/linux/udp.h`) since GSO came with
/// Linux 4.18. It has become 128 since, but the older kernels refuse longer trains with EINVAL. Smaller: more
/// passes through the network stack for each train. A worker's trains are of 16 packets, so that more would
/// not be used.
pub const MAX_SEGMENTS: usize = 64;

/// Most payload bytes in one train: what an IPv4 packet of 65,535 bytes has room for after its header and
/// that of UDP, since a train passes through the stack as one packet. Larger: EMSGSIZE.
pub const MAX_TRAIN_BYTES: usize = 65_535 - 20 - 8;

/// Room that a receive buffer needs for whatever GRO makes of arriving packets, in bytes: a UDP payload of
/// any length. With less the kernel cuts the tail off, and the payloads in it are lost.
pub const MAX_GRO_BYTES: usize = 65_535;

/// Where the payloads of a received buffer are: an iterator over their ranges, in order of arrival. It
/// borrows nothing, so that it may be kept while some of the payloads wait for the next turn.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    rest: Range<usize>,
    /// Segment size in bytes.
    size: usize,
    /// Payloads not yet yielded.
    left: usize,
}

impl Segments {
    /// The payloads of a buffer of `length` bytes. `size` is the segment size, in bytes, that came with it
    /// (`UDP_GRO`); `None`, or a 0 that no kernel sends, says that the buffer is one payload, which may be
    /// empty.
    pub fn new(length: usize, size: Option<usize>) -> Self {
        let size = size.filter(|&size| size > 0).unwrap_or(length).max(1);
        Self { rest: 0..length, size, left: length.div_ceil(size).max(1) }
    }
}

impl Iterator for Segments {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        self.left = self.left.checked_sub(1)?;
        let start = self.rest.start;
        self.rest.start = self.rest.end.min(start + self.size);
        Some(start..self.rest.start)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Segments {}

/// Payloads that may leave as one message, the first of them given: consecutive ones to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    /// Length of the first payload, in bytes: the segment size.
    size: usize,
    packets: usize,
    bytes: usize,
    /// No further payload may join: the last is shorter than the others, or the train has been ended.
    closed: bool,
}

impl Train {
    /// A train of one payload of `length` bytes.
    pub fn new(length: usize) -> Self {
        // An empty payload has no segment size, and vanishes among others.
        Self { size: length, packets: 1, bytes: length, closed: length == 0 }
    }

    /// Adds a payload of `length` bytes, which must be for the same path as the others. False if it cannot
    /// join, and starts the next train instead.
    pub fn push(&mut self, length: usize) -> bool {
        let fits = self.packets < MAX_SEGMENTS && self.bytes + length <= MAX_TRAIN_BYTES;
        if self.closed || !fits || length == 0 || length > self.size {
            return false;
        }
        self.closed = length < self.size;
        self.packets += 1;
        self.bytes += length;
        true
    }

    /// Payloads in it, at least 1.
    pub fn packets(&self) -> usize {
        self.packets
    }

    /// The value for `UDP_SEGMENT`, in bytes: every payload but the last is this long. `None` for a single
    /// payload, which needs none.
    pub fn segment_size(&self) -> Option<u16> {
        // Trains are shorter than 64 KiB, so the size always fits.
        (self.packets > 1).then_some(self.size as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// What a kernel does to a train: cuts the bytes at every `size`.
    fn cut(bytes: usize, size: usize) -> Vec<usize> {
        (0..bytes).step_by(size).map(|at| size.min(bytes - at)).collect()
    }

    /// All of `lengths` in trains, each as long as the rule allows.
    fn trains(lengths: &[usize]) -> Vec<Train> {
        let mut trains: Vec<Train> = Vec::new();
        for &length in lengths {
            if !trains.last_mut().is_some_and(|train| train.push(length)) {
                trains.push(Train::new(length));
            }
        }
        trains
    }

    #[test]
    fn a_buffer_without_segment_size_is_one_payload_even_if_empty() {
        for (length, size) in [(7, None), (7, Some(0)), (7, Some(7)), (7, Some(9)), (0, None), (0, Some(9))] {
            let mut segments = Segments::new(length, size);
            assert_eq!((segments.next(), segments.next()), (Some(0..length), None), "{size:?}");
        }
        assert_eq!(Segments::default().next(), None);
    }

    #[test]
    fn only_the_last_payload_of_a_train_may_be_shorter() {
        let sizes = |lengths: &[usize]| trains(lengths).iter().map(Train::packets).collect::<Vec<_>>();
        assert_eq!(sizes(&[1200, 1200, 300, 300, 1200]), [3, 1, 1]);
        assert_eq!(sizes(&[300, 1200, 1200]), [1, 2]);
        assert_eq!(sizes(&[0, 0, 5, 0, 5]), [1, 1, 1, 1, 1]);
        assert_eq!(sizes(&[10; 130]), [64, 64, 2]);
        assert_eq!(sizes(&[1200; 60]), [54, 6], "54 payloads are 64,800 bytes");
        assert_eq!(Train::new(1200).segment_size(), None);
        assert_eq!(trains(&[1200, 1200])[0].segment_size(), Some(1200));
    }

    proptest! {
        #[test]
        fn segments_are_those_that_were_joined(
            count in 1usize..80,
            size in 1usize..1500,
            last in 1usize..1500,
        ) {
            let last = last.min(size);
            let length = (count - 1) * size + last;
            let segments = Segments::new(length, Some(size));
            prop_assert_eq!(segments.len(), count);
            let mut at = 0;
            for (index, range) in segments.enumerate() {
                prop_assert_eq!(range.start, at);
                prop_assert_eq!(range.len(), if index + 1 == count { last } else { size });
                at = range.end;
            }
            prop_assert_eq!(at, length);
        }

        /// Whatever the kernel claims, every byte is yielded once and nothing beyond the buffer is.
        #[test]
        fn any_claim_is_within_the_buffer(
            length in 0usize..70_000,
            size in proptest::option::of(0usize..70_000),
        ) {
            let mut at = 0;
            for range in Segments::new(length, size) {
                prop_assert_eq!(range.start, at);
                at = range.end;
            }
            prop_assert_eq!(at, length);
        }

        #[test]
        fn trains_come_apart_into_what_went_in(
            lengths in vec(prop_oneof![Just(1200usize), 0usize..1201], 1..300),
        ) {
            let mut rest = lengths.as_slice();
            for train in trains(&lengths) {
                let (payloads, after) = rest.split_at(train.packets());
                rest = after;
                let bytes: usize = payloads.iter().sum();
                prop_assert!(payloads.len() <= MAX_SEGMENTS && bytes <= MAX_TRAIN_BYTES);
                match train.segment_size() {
                    Some(size) => prop_assert_eq!(cut(bytes, size.into()), payloads),
                    None => prop_assert_eq!(payloads.len(), 1),
                }
                // It ended for a reason: the next payload would have broken the rule.
                if let Some(&next) = rest.first() {
                    let mut longer = train;
                    prop_assert!(!longer.push(next));
                }
            }
            prop_assert!(rest.is_empty());
        }
    }
}
