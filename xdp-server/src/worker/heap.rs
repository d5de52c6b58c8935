//! The heap of a worker's thread, when connections have gone.

use tikv_jemalloc_ctl::raw;

/// Gives back what closed connections leave in the thread's own cache of free memory.
///
/// jemalloc keeps up to some 200 pieces of each size for the thread that freed them, until that thread has
/// allocated a good deal more. After a crowd has left these lie anywhere in what it used, one piece to a page
/// in the worst case, and the page cannot be given back: 2 to 11 MB were kept so of 20,000 connections.
#[derive(Default)]
pub struct Heap {
    /// Connections that had been closed when the cache was last emptied.
    closed: u64,
}

impl Heap {
    /// Empties the cache, if connections have been closed since; `closed` is how many there ever were. To be
    /// called once a second or so: the cache is of use to all that allocates.
    pub fn tidy(&mut self, closed: u64) {
        if closed == std::mem::replace(&mut self.closed, closed) {
            return;
        }
        // Switched off and on again, the cache is empty. An error means that another allocator is in use.
        // SAFETY: the name ends with a zero, and this control's value is a `bool`.
        let off = unsafe { raw::write(b"thread.tcache.enabled\0", false) };
        if off.is_ok() {
            // SAFETY: as above.
            let _ = unsafe { raw::write(b"thread.tcache.enabled\0", true) };
        }
    }
}
