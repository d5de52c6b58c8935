//! The Internet checksum (RFC 1071), over one buffer or the sum of several.
//!
//! Theory of operation
//! -------------------
//! A one's complement sum does not care about byte order or word size, only about which bytes share a 16-bit
//! lane. So [`sum`] adds the buffer as native 32-bit words into a 64-bit accumulator, which cannot overflow
//! below 16 GiB and leaves every carry where it can be folded in once, at the end. The inner loop has no
//! carry chain, so the compiler turns it into vector code. Sums of separate buffers add, as long as each but
//! the last has an even length.
//!
//! Nothing is owned here; any thread may call it.

/// Adds up `bytes` as 16-bit lanes, unfolded. An odd last byte counts as if a zero byte followed it. Add sums
/// together, then [`finish`].
#[inline]
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<4>();
    let total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    total + u64::from(u32::from_ne_bytes(last))
}

/// Folds an accumulated [`sum`] to 16 bits and complements it: the two bytes to put on the wire, in wire
/// order.
#[inline]
pub fn finish(sum: u64) -> [u8; 2] {
    // 64 bits to 33, to 18, to 17, to 16: each step adds the carries of the one before.
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 word by word, as slow as it is plain.
    fn naive(bytes: &[u8]) -> [u8; 2] {
        let mut sum: u32 = 0;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn known_values() {
        // RFC 1071, section 3: the sum of these is ddf2.
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(finish(sum(&example)), (!0xddf2u16).to_be_bytes());
        assert_eq!(finish(sum(&[])), [0xff, 0xff]);
        // The largest sums possible: every fold must carry.
        assert_eq!(finish(sum(&[0xff; 65_536])), naive(&[0xff; 65_536]));
        assert_eq!(finish(u64::MAX), [0, 0]);
    }

    proptest! {
        #[test]
        fn agrees_with_naive(bytes in proptest::collection::vec(any::<u8>(), 0..2_100), start in 0usize..8) {
            // `start` moves the buffer through every alignment.
            let bytes = &bytes[start.min(bytes.len())..];
            prop_assert_eq!(finish(sum(bytes)), naive(bytes));
        }

        #[test]
        fn parts_add_up(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..100) {
            let (head, tail) = bytes.split_at((cut * 2).min(bytes.len() & !1));
            prop_assert_eq!(finish(sum(head) + sum(tail)), naive(&bytes));
        }

        #[test]
        fn folds_any_sum(value in any::<u64>()) {
            let lanes = [value, value >> 16, value >> 32, value >> 48].map(|lane| lane as u16);
            let bytes: Vec<u8> = lanes.iter().flat_map(|lane| lane.to_be_bytes()).collect();
            prop_assert_eq!(u16::from_ne_bytes(finish(value)), u16::from_be_bytes(naive(&bytes)));
        }
    }
}
