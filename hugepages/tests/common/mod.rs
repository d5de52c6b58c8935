//! What both test programs need: turns, the pools of huge pages, and a process without memory.

use hugepages::{HugePages, PageKind};
use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The right to change the host's pools, for one test at a time: within the program by a mutex, between
/// programs by a lock on the kernel's file. What was added is taken away again on drop, so that changes which
/// others made meanwhile stay.
pub struct Host {
    added: Vec<(PageKind, usize)>,
    _file: File,
    _turn: MutexGuard<'static, ()>,
}

impl Host {
    /// Waits for its turn.
    pub fn lock() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        // A test that failed has cleaned up while unwinding.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `geteuid` has no preconditions.
        let user = unsafe { libc::geteuid() };
        assert_eq!(user, 0, "run as root: these tests add huge pages and take them away again");
        let file = File::open("/proc/sys/vm/nr_hugepages").expect("a kernel with huge pages");
        // SAFETY: the descriptor is open.
        let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) };
        assert_eq!(locked, 0, "the lock on vm.nr_hugepages: {}", io::Error::last_os_error());
        Self { added: Vec::new(), _file: file, _turn: turn }
    }

    /// Adds pages to a pool. Returns how many the kernel found.
    pub fn add(&mut self, kind: PageKind, pages: usize) -> usize {
        let before = HugePages::read(kind).expect("a pool").total;
        self.set(kind, before + pages)
    }

    /// Makes the pool `total` pages large, as an operator would. Returns how many were added.
    pub fn set(&mut self, kind: PageKind, total: usize) -> usize {
        let before = HugePages::read(kind).expect("a pool").total;
        write_total(kind, total);
        let added = HugePages::read(kind).expect("a pool").total.saturating_sub(before);
        self.added.push((kind, added));
        added
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for (kind, added) in self.added.drain(..) {
            write_total(kind, HugePages::read(kind).expect("a pool").total.saturating_sub(added));
        }
    }
}

fn write_total(kind: PageKind, total: usize) {
    let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", kind.size() >> 10);
    fs::write(&pool, total.to_string()).unwrap_or_else(|error| panic!("{pool}: {error}"));
}

/// Runs `test` with no room for mappings of a MiB or more in this process.
pub fn without_memory<R>(test: impl FnOnce() -> R) -> R {
    let status = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a valid structure.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_AS, &mut limit), 0);
        let tight = libc::rlimit { rlim_cur: pages * PageKind::Plain.size() as u64 + (1 << 20), ..limit };
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &tight), 0);
    }
    let result = test();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    result
}
