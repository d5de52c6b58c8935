//! The system calls, and the one type that owns what they return.
//!
//! A [`Mapping`] is readable and writable zeroed memory of whole pages, unmapped on drop. It is unbound and
//! untouched when made; [`Mapping::bind`] and [`Mapping::populate`] change that, in this order.

use crate::kind::PageKind;
use crate::{census, pool};
use std::{alloc::Layout, io, ptr::NonNull};

/// Bits of the node mask given to `mbind`. The kernel knows at most 1024 nodes (`NODES_SHIFT` 10), and
/// refuses masks that say more.
const MAX_NODES: usize = 1024;

/// Flags of all our mappings: memory of this process alone, backed by no file.
const PRIVATE: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Owned memory, aligned to its kind of pages.
pub(crate) struct Mapping {
    addr: NonNull<u8>,
    len: usize,
    origin: Origin,
}

/// Who mapped it, and so how it is unmapped.
enum Origin {
    /// `hugepage_rs::alloc`, which wants its layout back.
    HugepageRs(Layout),
    /// `mmap`: the whole of it, guards included.
    Mmap { addr: NonNull<u8>, len: usize },
}

// SAFETY: a mapping is an address range of the process, not of a thread, and the type hands out no
// references.
unsafe impl Send for Mapping {}
// SAFETY: as above; the shared methods only read the fields or ask the kernel about the range.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, a multiple of `kind.size()`, on pages of `kind`.
    pub(crate) fn new(kind: PageKind, len: usize) -> io::Result<Self> {
        debug_assert!(len > 0 && len.is_multiple_of(kind.size()));
        match kind {
            // `hugepage-rs` maps the default size only, and panics if the kernel has none.
            _ if kind.is_explicit() && pool::default_size() == Some(kind.size()) => {
                Self::by_hugepage_rs(kind, len)
            }
            PageKind::Huge1G => Self::explicit(len, libc::MAP_HUGE_1GB),
            PageKind::Huge2M => Self::explicit(len, libc::MAP_HUGE_2MB),
            PageKind::Transparent | PageKind::Plain => Self::guarded(kind, len),
        }
    }

    fn by_hugepage_rs(kind: PageKind, len: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(len, kind.size()).map_err(io::Error::other)?;
        // SAFETY: the layout's size is not zero. It is a multiple of the page size, so that `dealloc`, which
        // rounds it up again, unmaps exactly what `alloc` maps.
        let addr =
            NonNull::new(unsafe { hugepage_rs::alloc(layout) }).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { addr, len, origin: Origin::HugepageRs(layout) })
    }

    fn explicit(len: usize, size_flag: libc::c_int) -> io::Result<Self> {
        let flags = PRIVATE | libc::MAP_HUGETLB | size_flag;
        let addr = mmap(len, READ_WRITE, flags).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => io::Error::other("this processor or kernel has no pages of that size"),
            _ => error,
        })?;
        Ok(Self { addr, len, origin: Origin::Mmap { addr, len } })
    }

    /// Ordinary memory, aligned to `kind.size()` and with an inaccessible page on either side. The guards
    /// keep the kernel from merging the range with a neighbour of the same flags, so that `/proc/self/smaps`
    /// counts it alone; and whoever runs over the end faults.
    fn guarded(kind: PageKind, len: usize) -> io::Result<Self> {
        let (align, guard) = (kind.size(), PageKind::Plain.size());
        // Room to find an aligned start in, behind a guard; `Region` keeps lengths far from overflow.
        let room = len + align + 2 * guard;
        let base = mmap(room, libc::PROT_NONE, PRIVATE)?;
        let first = (base.as_ptr().addr() + guard).next_multiple_of(align) - base.as_ptr().addr() - guard;
        let used = len + 2 * guard;
        // SAFETY: `first` is at most `align`, so that start and end of what stays lie within the mapping of
        // `room`.
        let (kept, end) = unsafe { (base.add(first), base.add(first + used)) };
        // SAFETY: both pieces lie within the mapping just made and outside of what stays, and nobody knows
        // them.
        unsafe {
            unmap(base, first);
            unmap(end, room - first - used);
        }
        // SAFETY: the guard is the first page of what stays.
        let addr = unsafe { kept.add(guard) };
        let mapping = Self { addr, len, origin: Origin::Mmap { addr: kept, len: used } };
        // SAFETY: the range is ours alone, and nothing is in it yet.
        check(unsafe { libc::mprotect(addr.as_ptr().cast(), len, READ_WRITE) })?;
        Ok(mapping)
    }

    pub(crate) fn as_ptr(&self) -> NonNull<u8> {
        self.addr
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes pages faulted in from now on come from `node` and from nowhere else.
    pub(crate) fn bind(&self, node: u32) -> io::Result<()> {
        const BITS: usize = libc::c_ulong::BITS as usize;
        let mut mask: [libc::c_ulong; MAX_NODES / BITS] = [0; MAX_NODES / BITS];
        let node = node as usize;
        *mask.get_mut(node / BITS).ok_or(io::ErrorKind::InvalidInput)? |= 1 << (node % BITS);
        // SAFETY: the range is ours, and the mask has the number of bits that the call says: the kernel takes
        // one off the count given.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.addr.as_ptr(),
                self.len,
                libc::MPOL_BIND,
                mask.as_ptr(),
                MAX_NODES + 1,
                0,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Faults all pages in, writable; an error where touching them would have been a signal. `EINVAL` on
    /// kernels before 5.14.
    pub(crate) fn populate(&self) -> io::Result<()> {
        self.madvise(libc::MADV_POPULATE_WRITE)
    }

    /// Asks for transparent huge pages on the next faults, or refuses them.
    pub(crate) fn want_huge(&self, want: bool) -> io::Result<()> {
        self.madvise(if want { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE })
    }

    /// How many bytes lie on transparent huge pages, now. Without `/proc` nothing is known, and what is not
    /// known is not claimed: 0.
    pub(crate) fn transparent_bytes(&self) -> usize {
        let start = self.addr.as_ptr().addr();
        census::transparent_bytes(start, start + self.len)
    }

    fn madvise(&self, advice: libc::c_int) -> io::Result<()> {
        loop {
            // SAFETY: the range is ours, and none of the advice used here changes its contents.
            match check(unsafe { libc::madvise(self.addr.as_ptr().cast(), self.len, advice) }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match self.origin {
            // SAFETY: `alloc` returned this address for this layout, and the owner is going.
            Origin::HugepageRs(layout) => unsafe { hugepage_rs::dealloc(self.addr.as_ptr(), layout) },
            // SAFETY: this is what `mmap` returned, or what was left of it, and the owner is going.
            Origin::Mmap { addr, len } => unsafe { unmap(addr, len) },
        }
    }
}

fn mmap(len: usize, protection: libc::c_int, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: without MAP_FIXED the kernel picks a range that nothing else uses.
    let addr = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    if addr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(addr.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))
}

/// # Safety
/// The range is whole pages of our own mappings, used by nobody from here on; or it is empty.
unsafe fn unmap(addr: NonNull<u8>, len: usize) {
    if len > 0 {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::munmap(addr.as_ptr().cast(), len) };
        // It fails only for ranges that are not whole pages, or if splitting a mapping exceeds
        // vm.max_map_count. The first is a mistake in this file; the second leaves memory mapped that nobody
        // uses.
        debug_assert_eq!(result, 0, "munmap: {}", io::Error::last_os_error());
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::header_range;
    use std::fs;

    /// What a full node or a cgroup's limit does to explicit pages: mapped, but not there when touched.
    #[test]
    fn pages_that_cannot_be_delivered_are_an_error_and_no_signal() {
        let pool = crate::HugePages::read(PageKind::Huge2M).expect("a kernel with pages of 2 MiB");
        // More than there are, mapped without the promise that would have refused them.
        let len = (pool.free + 64) * PageKind::Huge2M.size();
        let flags = PRIVATE | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB | libc::MAP_NORESERVE;
        let addr = mmap(len, READ_WRITE, flags).unwrap();
        let mapping = Mapping { addr, len, origin: Origin::Mmap { addr, len } };
        assert_eq!(mapping.populate().unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn ordinary_memory_is_aligned_and_guarded() {
        for kind in [PageKind::Transparent, PageKind::Plain] {
            let mapping = Mapping::new(kind, 3 * kind.size()).unwrap();
            let start = mapping.as_ptr().as_ptr().addr();
            assert!(start.is_multiple_of(kind.size()));
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            let line = |range: &dyn Fn((usize, usize)) -> bool| {
                maps.lines().find(|line| header_range(line).is_some_and(range)).unwrap_or("none").to_owned()
            };
            let end = start + mapping.len();
            assert!(line(&|range| range == (start, end)).contains("rw-p"), "{maps}");
            assert!(line(&|range| range.1 == start).contains("---p"), "{maps}");
            assert!(line(&|range| range.0 == end).contains("---p"), "{maps}");
        }
    }
}
