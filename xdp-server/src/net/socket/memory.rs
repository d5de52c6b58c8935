//! Zeroed arrays for the batches.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};

/// A boxed slice of `count` zeroed `T`, neither built on the stack nor touched here: its pages are placed
/// when the worker first uses them, hence on the worker's NUMA node, although another thread made the socket.
///
/// # Safety
/// All-zero bytes must be a valid `T`.
pub(super) unsafe fn zeroed_slice<T>(count: usize) -> Box<[T]> {
    const { assert!(size_of::<T>() > 0) };
    assert!(count > 0);
    let layout = Layout::array::<T>(count).expect("a batch is far smaller than the address space");
    // SAFETY: neither `T` nor `count` is of size zero, so the layout is not either.
    let memory = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: the memory comes from the global allocator with the layout of `[T; count]`, which is the one
    // that `Box` frees it with, and the caller vouches that zeroes are a valid `T`.
    unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(memory, count)) }
}
