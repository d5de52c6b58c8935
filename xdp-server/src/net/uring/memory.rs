//! Memory that the kernel reads and writes on its own time.
//!
//! An operation that is under way holds addresses. What they point to must neither move nor be freed nor be
//! claimed as exclusively ours by a Rust reference until the operation's completion was seen; so it is kept
//! by raw pointer, and borrowed only where the owner knows that no operation has it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of every array, in bytes: a page, which `IORING_REGISTER_PBUF_RING` demands of its ring. Larger
/// pages than these are a multiple of them, and glibc and jemalloc map arrays of this size on their own.
const ALIGN: usize = 4096;

/// A fixed array of `T`, zeroed, at an address that never changes. Not touched when made: its pages are
/// placed when the worker first uses them, hence on the worker's NUMA node, although another thread
/// allocates.
pub(super) struct Array<T> {
    first: NonNull<T>,
    len: usize,
    layout: Layout,
    leaked: bool,
}

// SAFETY: an array owns its elements, like a `Box<[T]>`.
unsafe impl<T: Send> Send for Array<T> {}

impl<T> Array<T> {
    /// An array of `len` zeroed `T`.
    ///
    /// # Safety
    /// All-zero bytes must be a valid `T`, which must need no drop.
    pub(super) unsafe fn zeroed(len: usize) -> Self {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= ALIGN && !std::mem::needs_drop::<T>()) };
        assert!(len > 0);
        let layout = Layout::array::<T>(len)
            .and_then(|layout| layout.align_to(ALIGN))
            .expect("buffers are far smaller than the address space");
        // SAFETY: neither `T` nor `len` is of size zero, so the layout is not either.
        let memory = unsafe { alloc_zeroed(layout) }.cast::<T>();
        let Some(first) = NonNull::new(memory) else { handle_alloc_error(layout) };
        Self { first, len, layout, leaked: false }
    }

    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The address of the element at `index`, or, for `len`, of the end.
    pub(super) fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len);
        // SAFETY: within the allocation or one past its end.
        unsafe { self.first.as_ptr().add(index) }
    }

    /// Lets the memory stay when the array is dropped: for when the kernel may still use it.
    pub(super) fn leak(&mut self) {
        self.leaked = true;
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: allocated with this layout, and freed only here.
            unsafe { dealloc(self.first.as_ptr().cast(), self.layout) };
        }
    }
}
