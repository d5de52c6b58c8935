//! Counts the transparent huge pages of a range, because advice to use them is not a promise.
//!
//! The kernel has two ways to tell. The `PAGEMAP_SCAN` call, since 6.7, looks at the range alone.
//! `/proc/self/smaps`, on older ones, walks all page tables of the process, milliseconds when it is large,
//! and counts by mapping, which is why ordinary memory is mapped between guards.
//!
//! Rejected: `MADV_COLLAPSE`, since 6.1, whose success proves that a range is huge, and which also mends it.
//! It first makes every core drain its list of pages, and waits for that: 58 ms for a slab's chunk on a busy
//! host with two cores, longer where a core polls and yields to nobody.

use std::{fs, io, os::fd::AsRawFd};

/// Regions that one call may return (count). The kernel joins neighbours, so one does where memory is not
/// fragmented. Fewer takes more calls where it is; more takes more stack, 24 bytes each.
const REGIONS: usize = 64;

/// The category of `PAGEMAP_SCAN` for pages mapped as huge, from the kernel's `linux/fs.h`.
const PAGE_IS_HUGE: u64 = 1 << 6;

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = libc::_IOWR::<Scan>(b'f' as u32, 16);

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    /// Bytes in this structure.
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    /// Out: where the walk ended, because the range did or the array was full.
    walk_end: u64,
    /// Address and length of an array of [`Found`].
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    /// Pages with all of these categories are found.
    category_mask: u64,
    category_anyof_mask: u64,
    /// Categories to tell about those found.
    return_mask: u64,
}

/// The kernel's `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Found {
    start: u64,
    end: u64,
    categories: u64,
}

/// Bytes of `start..end`, a range between guards, that lie on transparent huge pages; 0 if `/proc` does not
/// tell.
pub(crate) fn transparent_bytes(start: usize, end: usize) -> usize {
    by_scan(start, end).or_else(|_| by_smaps(start, end)).unwrap_or(0)
}

fn by_scan(start: usize, end: usize) -> io::Result<usize> {
    let pagemap = fs::File::open("/proc/self/pagemap")?;
    let mut found = [Found::default(); REGIONS];
    let (mut bytes, mut from, end) = (0, start as u64, end as u64);
    while from < end {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: from,
            end,
            vec: found.as_mut_ptr().addr() as u64,
            vec_len: REGIONS as u64,
            category_mask: PAGE_IS_HUGE,
            return_mask: PAGE_IS_HUGE,
            ..Scan::default()
        };
        // SAFETY: the structure is the one that this call takes, and its array has the length that it says.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
        // A negative count is an error: ENOTTY on kernels without the call.
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        bytes += found.iter().take(count).map(|found| (found.end - found.start) as usize).sum::<usize>();
        if scan.walk_end <= from {
            return Err(io::Error::other("PAGEMAP_SCAN does not advance"));
        }
        from = scan.walk_end;
    }
    Ok(bytes)
}

fn by_smaps(start: usize, end: usize) -> io::Result<usize> {
    Ok(sum_smaps(&fs::read_to_string("/proc/self/smaps")?, start, end))
}

/// Sums `AnonHugePages` over the mappings of `smaps` that lie within `start..end`.
fn sum_smaps(smaps: &str, start: usize, end: usize) -> usize {
    let (mut inside, mut bytes) = (false, 0);
    for line in smaps.lines() {
        if let Some(kib) = line.strip_prefix("AnonHugePages:") {
            let kib: usize = kib.trim().trim_end_matches("kB").trim().parse().unwrap_or(0);
            bytes += if inside { kib << 10 } else { 0 };
        } else if let Some(range) = header_range(line) {
            inside = start <= range.0 && range.1 <= end;
        }
    }
    bytes
}

/// The range of a header line of `smaps` or `maps`, `7f00-7f80 rw-p ...`; `None` for the lines of figures.
pub(crate) fn header_range(line: &str) -> Option<(usize, usize)> {
    let (first, last) = line.split_once(' ')?.0.split_once('-')?;
    Some((usize::from_str_radix(first, 16).ok()?, usize::from_str_radix(last, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{MIB2, PageKind};
    use crate::sys::Mapping;

    #[test]
    fn smaps_are_summed_over_the_range_alone() {
        let smaps = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nAnonHugePages:      64 kB\n\
                     3000-5000 rw-p 00000000 00:00 0 [anon:x y]\nAnonHugePages:    2048 kB\nVmFlags: rd wr\n\
                     5000-6000 rw-p 00000000 00:00 0\nAnonHugePages:    4096 kB\n\
                     6000-9000 rw-p 00000000 00:00 0\nAnonHugePages:       1 kB\n";
        assert_eq!(sum_smaps(smaps, 0x3000, 0x6000), (2048 + 4096) << 10);
        assert_eq!(sum_smaps(smaps, 0x3000, 0x5fff), 2048 << 10);
        assert_eq!(sum_smaps(smaps, 0xa000, 0xb000), 0);
    }

    /// Both ways against what is known: every other 2 MiB were faulted in as small pages, the rest as huge
    /// ones. That is more pieces than one call returns.
    #[test]
    fn both_ways_count_huge_pages_among_small_ones() {
        const PIECES: usize = 2 * REGIONS + 6;
        let mapping = Mapping::new(PageKind::Transparent, PIECES * MIB2).unwrap();
        mapping.want_huge(true).unwrap();
        let start = mapping.as_ptr().as_ptr().addr();
        let end = start + mapping.len();
        let mut expected = 0;
        for number in 0..PIECES {
            let piece = mapping.as_ptr().as_ptr().wrapping_add(number * MIB2);
            let huge = number % 2 == 0;
            let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            // SAFETY: the piece lies in the mapping, which is ours and holds nothing yet.
            unsafe {
                assert_eq!(libc::madvise(piece.cast(), MIB2, advice), 0);
                piece.write_volatile(1);
            }
            expected += if huge { MIB2 } else { 0 };
        }
        assert_eq!(expected, mapping.len() / 2);
        // A host that gives no huge pages at all would say nothing about counting them.
        let thp = crate::pool::thp_refusal();
        let expected = if thp.is_some() { 0 } else { expected };
        assert_eq!(by_smaps(start, end).unwrap(), expected);
        match by_scan(start, end) {
            Ok(bytes) => assert_eq!(bytes, expected),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{error}"),
        }
    }
}
