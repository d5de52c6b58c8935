//! The processor's cache, as far as a program sees it: throwing a line out, and telling from the time of a load
//! whether a line was there. And reading memory that may not be there.

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::io::IoSliceMut;

/// Bytes that a processor fetches at a time.
pub const LINE: usize = 64;

/// Bytes of a pointer.
pub const WORD: usize = size_of::<usize>();

/// Pieces that the kernel reads in one call (UIO_MAXIOV).
const PIECES: usize = 1024;

/// Reads the words at `addresses` of this process through the kernel, for which an address where nothing is, is
/// an error: the word is then 0. `None` if the kernel does not allow it.
pub fn read_words(addresses: &[usize], words: &mut Vec<usize>) -> Option<()> {
    words.clear();
    let mut bytes = vec![0; addresses.len().min(PIECES) * WORD];
    while words.len() < addresses.len() {
        let rest = &addresses[words.len()..];
        let remote: Vec<_> = rest.iter().take(PIECES).map(|&base| RemoteIoVec { base, len: WORD }).collect();
        let bytes = &mut bytes[..remote.len() * WORD];
        // Less than all: the next address is one where nothing is.
        let read = match process_vm_readv(Pid::this(), &mut [IoSliceMut::new(bytes)], &remote) {
            Ok(read) => read / WORD,
            Err(Errno::EFAULT) => 0,
            Err(_) => return None,
        };
        words.extend(bytes.as_chunks().0.iter().take(read).map(|word| usize::from_ne_bytes(*word)));
        if read < remote.len() {
            words.push(0);
        }
    }
    Some(())
}

/// Whether there is memory at `address` that can be read, as far as the kernel tells.
pub fn is_readable(address: usize) -> bool {
    let mut byte = [0];
    let remote = [RemoteIoVec { base: address, len: 1 }];
    process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut byte)], &remote) == Ok(1)
}

/// Finds out whether cache lines are in cache.
pub struct Probe {
    /// Ticks of the time stamp counter: a load that takes longer went to memory.
    longest_hit: u64,
}

/// Loads that are compared to tell a hit from a miss.
const TRIALS: usize = 101;

impl Probe {
    /// `None` where it cannot be told: on another processor than x86-64, or where a load from memory takes
    /// less than twice the time of one from cache.
    pub fn new() -> Option<Self> {
        let own = Box::new([0_u8; 2 * LINE]);
        let address = std::ptr::from_ref(&own[LINE]).addr() & !(LINE - 1);
        let (mut hits, mut misses) = (Vec::with_capacity(TRIALS), Vec::with_capacity(TRIALS));
        for _ in 0..TRIALS {
            // SAFETY: it is a line of `own`.
            unsafe {
                time_load(address);
                hits.push(time_load(address)?);
                evict(address);
                misses.push(time_load(address)?);
            }
        }
        hits.sort_unstable();
        misses.sort_unstable();
        let (hit, miss) = (hits[TRIALS / 2], misses[TRIALS / 2]);
        (miss >= 2 * hit).then_some(Self { longest_hit: (hit + miss) / 2 })
    }

    /// Throws the line at `address` out of all caches.
    ///
    /// # Safety
    /// There is memory at `address` that can be read; else this faults.
    pub unsafe fn evict(&self, address: usize) {
        // SAFETY: as promised by the caller.
        unsafe { evict(address) };
    }

    /// Whether the line at `address` is in cache; afterwards it is.
    ///
    /// # Safety
    /// As for [`evict`](Self::evict).
    pub unsafe fn is_cached(&self, address: usize) -> bool {
        // SAFETY: as promised by the caller.
        unsafe { time_load(address) }.is_some_and(|time| time <= self.longest_hit)
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn evict(address: usize) {
    // SAFETY: a line is written back and dropped from cache; nothing in memory changes. That it can be read is
    // promised by the caller.
    unsafe {
        std::arch::asm!("clflush [{address}]", "mfence", address = in(reg) address, options(nostack, preserves_flags));
    }
}

/// Ticks that a load from `address` takes.
#[cfg(target_arch = "x86_64")]
unsafe fn time_load(address: usize) -> Option<u64> {
    let (before, after): (u64, u64);
    // SAFETY: one byte is loaded and thrown away, by the processor and not by the program's rules of memory,
    // which is why another thread may write it. That it can be read is promised by the caller.
    unsafe {
        std::arch::asm!(
            "mfence", "lfence", "rdtsc", "shl rdx, 32", "or rax, rdx", "mov {before}, rax", "lfence",
            "mov {scratch:l}, [{address}]",
            "lfence", "rdtsc", "shl rdx, 32", "or rax, rdx",
            before = out(reg) before, scratch = out(reg) _, address = in(reg) address,
            out("rax") after, out("rdx") _, options(nostack, readonly),
        );
    }
    Some(after.saturating_sub(before))
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn evict(_address: usize) {}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn time_load(_address: usize) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_where_nothing_is_they_are_zero() {
        let there: Vec<usize> = (0..3000).map(|i| i * i).collect();
        let addresses: Vec<usize> = there.iter().map(|word| std::ptr::from_ref(word).addr()).collect();
        let mut words = Vec::new();
        assert_eq!(read_words(&addresses, &mut words), Some(()));
        assert_eq!(words, there);
        let holes = [8, addresses[2], usize::MAX - 4, addresses[3], addresses[4], 0];
        assert_eq!(read_words(&holes, &mut words), Some(()));
        assert_eq!(words, [0, 4, 0, 9, 16, 0]);
        assert!(is_readable(addresses[0]) && !is_readable(8));
    }

    #[test]
    fn an_evicted_line_is_told_from_one_in_use() {
        let Some(probe) = Probe::new() else { return };
        let own = Box::new([0_u8; 4 * LINE]);
        let address = std::ptr::from_ref(&own[2 * LINE]).addr();
        let count = |evicted: bool| {
            let found = |_: &usize| {
                // SAFETY: it is a line of `own`.
                unsafe {
                    probe.is_cached(address);
                    if evicted {
                        probe.evict(address);
                    }
                    probe.is_cached(address)
                }
            };
            (0..100_usize).filter(found).count()
        };
        // An interrupt may come between.
        assert!(count(false) > 80 && count(true) < 20);
    }
}
