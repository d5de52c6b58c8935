//! Serial-number arithmetic of tile versions (RFC 1982 with 32 bits).
//!
//! Versions wrap, so "newer" means: less than half the number circle ahead. Two versions exactly half the
//! circle apart have no order; both are then "not newer", so that nobody replaces what he has on a coin toss.

/// True when `a` is newer than `b`.
pub const fn newer(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b);
    ahead != 0 && ahead < 1 << 31
}

/// True when `version` is the one that directly follows `held`.
pub const fn follows(version: u32, held: u32) -> bool {
    version == held.wrapping_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_holds_across_the_wrap() {
        for (a, b, expected) in [
            (1, 0, true),
            (0, 1, false),
            (0, 0, false),
            (0, u32::MAX, true),
            (u32::MAX, 0, false),
            (5, u32::MAX - 5, true),
            (u32::MAX - 5, 5, false),
            ((1 << 31) - 1, 0, true),
            (0, (1 << 31) - 1, false),
            // Exactly half the circle: undefined in RFC 1982, neither is newer here.
            (1 << 31, 0, false),
            (0, 1 << 31, false),
            ((1 << 31) + 1, 0, false),
            (0, (1 << 31) + 1, true),
        ] {
            assert_eq!(newer(a, b), expected, "newer({a}, {b})");
        }
    }

    #[test]
    fn zero_follows_the_last() {
        assert!(follows(0, u32::MAX));
        assert!(follows(8, 7));
        assert!(!follows(7, 7));
        assert!(!follows(7, 8));
    }
}
