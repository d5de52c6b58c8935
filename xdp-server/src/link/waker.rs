//! Waking a thread that sleeps when idle.
//!
//! The sleeper announces that it is going to sleep, looks at all its queues once more, and only then sleeps
//! on the file descriptor. Whoever queues work for it calls [`Waker::wake`] after queueing. Both sides put a
//! full fence between their write and their read, so at least one of them sees the other's: no wake-up is
//! lost. A thread that is awake costs its wakers one fence and one read of a shared line, no system call.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// See the [module](self).
pub struct Waker {
    event: EventFd,
    asleep: AtomicBool,
}

impl Waker {
    /// A waker for one thread.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { event, asleep: AtomicBool::new(false) })
    }

    /// Wakes the thread if it sleeps or is about to.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // A full counter (2^64 - 2 unread wakes) is the one way to fail; the sleeper wakes all the same.
            let _ = self.event.write(1);
        }
    }

    /// Announces sleep. The caller must look at its queues after this and before it sleeps on
    /// [`fd`](Self::fd).
    pub fn before_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Ends the announced sleep, however it ended, and forgets pending wake-ups.
    pub fn after_sleep(&self) {
        if !self.asleep.swap(false, Ordering::Relaxed) {
            let _ = self.event.read();
        }
    }

    /// Readable when woken.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    fn sleep(waker: &Waker, timeout: u16) -> bool {
        let mut fds = [PollFd::new(waker.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(timeout)).unwrap() > 0
    }

    #[test]
    fn a_wake_before_the_announcement_is_seen_in_the_queue_not_in_the_fd() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.before_sleep();
        assert!(!sleep(&waker, 0), "nobody woke since the announcement");
        waker.wake();
        assert!(sleep(&waker, 0));
        waker.after_sleep();
        assert!(!sleep(&waker, 0), "forgotten");
    }

    /// A producer counts up and wakes; the consumer sleeps without a time-out whenever it has seen all. A
    /// lost wake-up would leave it in poll for the whole 10 s that this test allows.
    #[test]
    fn no_wake_up_is_lost() {
        const N: u64 = 20_000;
        let shared = Arc::new((Waker::new().unwrap(), AtomicU64::new(0)));
        let theirs = shared.clone();
        let producer = std::thread::spawn(move || {
            for n in 1..=N {
                theirs.1.store(n, Ordering::Relaxed);
                theirs.0.wake();
                if n % 64 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let (waker, counter) = &*shared;
        let mut seen = 0;
        while seen < N {
            waker.before_sleep();
            let now = counter.load(Ordering::Relaxed);
            if now == seen {
                assert!(sleep(waker, 10_000), "slept through a wake-up at {seen}");
            }
            waker.after_sleep();
            seen = counter.load(Ordering::Relaxed);
        }
        producer.join().unwrap();
    }
}
