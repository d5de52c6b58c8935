//! Asking for memory ahead.

/// Asks the processor to fetch the cache line at `address`, which may be any: nothing is read, nothing faults.
/// Does nothing on other processors than x86-64.
#[inline]
pub fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it accesses nothing and faults on no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address; // no stable intrinsic
}
