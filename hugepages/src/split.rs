//! Division by a number that is known late and used often.

/// Splits an index into a chunk and a slot, for chunks of `slots` slots.
///
/// The slots that fit a chunk are no power of two, and a lookup should not wait for a division (10 to 20
/// cycles): multiplying by the reciprocal, in 64 bits of fraction, gives the same quotient in 4. It is exact
/// for all 32-bit indexes and divisors, because the reciprocal's error, below 2^-64, times an index stays
/// below 2^-32, and a quotient's fraction is never closer than that to the next whole number.
#[derive(Clone, Copy)]
pub(crate) struct Split {
    /// 2^64 / slots, rounded up.
    reciprocal: u64,
    /// Slots in a chunk; at least 2, since 2^64 / 1 has no room in 64 bits.
    pub(crate) slots: u32,
}

impl Split {
    pub(crate) fn new(slots: u32) -> Self {
        assert!(slots >= 2, "a chunk has at least two slots");
        Self { reciprocal: u64::MAX / u64::from(slots) + 1, slots }
    }

    /// The chunk of `index`, and the slot in it.
    #[inline]
    pub(crate) fn of(self, index: u32) -> (u32, u32) {
        let chunk = ((u128::from(self.reciprocal) * u128::from(index)) >> 64) as u32;
        (chunk, index - chunk * self.slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_divides_like_the_processor() {
        let mut divisors: Vec<u32> = (2..300).collect();
        divisors.extend([641, 4095, 4096, 4097, 65_535, 65_536, 6_700_417, 1 << 31, u32::MAX - 1, u32::MAX]);
        for slots in divisors {
            let split = Split::new(slots);
            // Around multiples, where rounding would show, at both ends of the range, and a few between.
            let last = u32::MAX / slots;
            for multiple in (0..=300.min(last)).chain(last.saturating_sub(300)..=last) {
                for index in [-1, 0, 1].map(|step| (multiple * slots).wrapping_add_signed(step)) {
                    assert_eq!(split.of(index), (index / slots, index % slots), "{index} / {slots}");
                }
            }
        }
    }
}
