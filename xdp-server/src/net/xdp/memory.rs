//! Where a UMEM's memory comes from: which NUMA node, and which pages.
//!
//! Theory of operation
//! -------------------
//! xsk-rs maps a UMEM itself and faults it in at once, from huge pages of the kernel's default size or from
//! plain ones. So the NUMA node is chosen by where the mapping thread runs, [`Pinned`]; and [`HugePages`]
//! knows what there is and what to type to have more. Start-up only.

use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::error::OpenError;
use super::socket::FRAME_SIZE;

/// The calling thread on one core; where it was before when dropped. Memory that it touches meanwhile is of
/// that core's NUMA node.
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Moves the calling thread to core `cpu`.
    ///
    /// # Errors
    /// `OpenError::Cpu`.
    pub fn to(cpu: usize) -> Result<Self, OpenError> {
        let failed = |errno: nix::errno::Errno| OpenError::Cpu { cpu, source: errno.into() };
        let this_thread = Pid::from_raw(0);
        let before = sched_getaffinity(this_thread).map_err(failed)?;
        let mut only = CpuSet::new();
        only.set(cpu).map_err(failed)?;
        sched_setaffinity(this_thread, &only).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed there before; if no longer, staying is the next best thing.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

/// Huge pages of the default size, the only ones that xsk-rs maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// Bytes of one; 0 when the kernel has none.
    pub size: u64,
    /// How many the kernel set aside.
    pub total: u64,
    /// How many of those nobody uses or has reserved.
    pub free: u64,
}

impl HugePages {
    /// What /proc/meminfo says of them now.
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
    }

    fn parse(meminfo: &str) -> Self {
        let value = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        Self {
            size: value("Hugepagesize") * 1024,
            total: value("HugePages_Total"),
            free: value("HugePages_Free").saturating_sub(value("HugePages_Rsvd")),
        }
    }

    /// `frames` rounded up to fill whole pages (the kernel unmaps only those). `None` when one page is larger
    /// than all the frames.
    pub fn frames(&self, frames: u32) -> Option<u32> {
        let in_page = u32::try_from(self.size / u64::from(FRAME_SIZE)).ok()?;
        (in_page > 0 && in_page <= frames).then(|| frames.checked_next_multiple_of(in_page)).flatten()
    }

    /// How many pages are missing for `queues` UMEMs of `frames` frames, and what to type.
    pub fn advice(&self, frames: u32, queues: u64) -> String {
        let mib = self.size >> 20;
        let Some(frames) = self.frames(frames) else {
            return if self.size == 0 {
                "this kernel has no huge pages".to_owned()
            } else {
                format!(
                    "huge pages of {mib} MiB are larger than a UMEM; boot the kernel with \
                     default_hugepagesz=2M, or make the UMEM larger"
                )
            };
        };
        let needed = u64::from(frames) * u64::from(FRAME_SIZE) / self.size * queues;
        format!(
            "they take {needed} huge pages of {mib} MiB, and {} are free; to add them: sysctl -w \
             vm.nr_hugepages={}",
            self.free,
            self.total + needed.saturating_sub(self.free),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 1 kB\nHugePages_Total:      20\nHugePages_Free:       10\n\
                           HugePages_Rsvd:        4\nHugepagesize:       2048 kB\nHugetlb: 40960 kB\n";

    #[test]
    fn huge_pages_are_counted_and_advised() {
        let pages = HugePages::parse(MEMINFO);
        assert_eq!(pages, HugePages { size: 2 << 20, total: 20, free: 6 });
        // 8192 frames are 8 pages: for 2 queues 16, less the 6 that are free, on top of the 20.
        let advice = pages.advice(8_192, 2);
        assert!(
            advice.contains("16 huge pages of 2 MiB") && advice.contains("vm.nr_hugepages=30"),
            "{advice}"
        );
        assert_eq!(pages.frames(8_192), Some(8_192));
        assert_eq!(pages.frames(1_500), Some(2_048));
        assert_eq!(pages.frames(64), None);
    }

    #[test]
    fn huge_pages_that_are_too_large_or_absent_are_not_used() {
        let gigabyte = HugePages { size: 1 << 30, total: 1, free: 1 };
        assert_eq!(gigabyte.frames(8_192), None);
        assert!(gigabyte.advice(8_192, 1).contains("default_hugepagesz=2M"));
        let none = HugePages::parse("MemTotal: 1 kB\n");
        assert_eq!(none.frames(8_192), None);
        assert!(none.advice(8_192, 1).contains("no huge pages"));
    }

    #[test]
    fn pinning_is_undone() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpu = (0..CpuSet::count()).rfind(|&cpu| before.is_set(cpu).unwrap()).unwrap();
        let pinned = Pinned::to(cpu).unwrap();
        let only = sched_getaffinity(Pid::from_raw(0)).unwrap();
        assert_eq!((0..CpuSet::count()).filter(|&cpu| only.is_set(cpu).unwrap()).collect::<Vec<_>>(), [cpu]);
        drop(pinned);
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), before);
        assert!(Pinned::to(CpuSet::count()).is_err());
    }
}
