//! Where a UMEM's memory comes from: which NUMA node, and which pages.
//!
//! Theory of operation
//! -------------------
//! xsk-rs maps a UMEM itself and faults it in at once, from huge pages of the kernel's default size or from
//! plain ones. So the NUMA node is chosen by where the mapping thread runs, [`Pinned`]; and [`on_huge_pages`]
//! says whether huge pages are worth the attempt. Start-up only.

use hugepages::{HugePages, PageKind};
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

/// `frames` rounded up to fill whole huge pages of 2 MiB (the kernel unmaps only those). `None` when there is nothing to
/// be had of them: one page is larger than all the frames, or xsk-rs, which asks for the kernel's default
/// size, would get another.
pub fn on_huge_pages(frames: u32) -> Option<u32> {
    whole_pages(frames).filter(|_| HugePages::read(PageKind::Huge2M).is_some_and(|pool| pool.is_default))
}

fn whole_pages(frames: u32) -> Option<u32> {
    let in_page = PageKind::Huge2M.size() as u32 / FRAME_SIZE;
    (in_page <= frames).then(|| frames.checked_next_multiple_of(in_page)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn umems_fill_whole_huge_pages_or_use_none() {
        assert_eq!(whole_pages(8_192), Some(8_192));
        assert_eq!(whole_pages(1_500), Some(2_048));
        assert_eq!(whole_pages(64), None);
        assert_eq!(whole_pages(u32::MAX), None);
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
