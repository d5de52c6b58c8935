//! The ring itself: submitting, completing, waiting.
//!
//! Theory of operation
//! -------------------
//! Main makes the ring *disabled*, so that everything that the host may refuse is refused while a lesser
//! backend can still be taken. The worker enables it by its first call, which makes the worker's thread the
//! ring's only issuer (`SINGLE_ISSUER`); from then on nobody else may use it.
//!
//! With `DEFER_TASKRUN` the kernel does the work of arriving packets only inside our `io_uring_enter`, and
//! says by a flag in shared memory (`TASKRUN_FLAG`) that there is some. So a look for completions costs a
//! system call only when there is something to be had, and a busy worker's call for sending does the
//! receiving too.
//!
//! An entry's [`Token`] comes back with its completion and says whose it is.

use std::io;
use std::thread::{self, ThreadId};
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// Longest sleep: see `LONGEST` in [`crate::net::sleep`].
const LONGEST: Duration = Duration::from_secs(3600);

/// What an entry is for, and its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A receive; of single-shot ones, that into this buffer.
    Receive(u16),
    /// Sending the train of this sequence number.
    Send(u64),
    /// Watching the descriptor that wakes the worker; the number tells one watch from an earlier one.
    Wake(u64),
    /// Cancelling another operation. Its completion says nothing that the other's does not.
    Cancel,
}

impl Token {
    /// Bits that number the operation; the rest says its kind.
    const NUMBER: u32 = 56;

    /// As `user_data` of an entry.
    pub(super) fn pack(self) -> u64 {
        let (kind, number) = match self {
            Self::Receive(buffer) => (1, buffer.into()),
            Self::Send(train) => (2, train),
            Self::Wake(watch) => (3, watch),
            Self::Cancel => (4, 0),
        };
        kind << Self::NUMBER | number & ((1 << Self::NUMBER) - 1)
    }

    /// The token of a completion. `None`: none of ours, which would be a bug in the kernel.
    fn unpack(user_data: u64) -> Option<Self> {
        let number = user_data & ((1 << Self::NUMBER) - 1);
        match user_data >> Self::NUMBER {
            1 => Some(Self::Receive(number as u16)),
            2 => Some(Self::Send(number)),
            3 => Some(Self::Wake(number)),
            4 => Some(Self::Cancel),
            _ => None,
        }
    }
}

/// A completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) token: Token,
    /// The operation's result: negative is an error number.
    pub(super) result: i32,
    flags: u32,
}

impl Completion {
    /// The provided buffer that was used up, if one was.
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// The operation goes on, and will complete again.
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The error that the operation ended with.
    pub(super) fn error(&self) -> Option<i32> {
        (self.result < 0).then_some(-self.result)
    }
}

/// The submission queue has no room. Nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// One worker's ring. See the [module](self).
pub(super) struct Ring {
    uring: IoUring,
    /// The thread that enabled it; `None` before.
    issuer: Option<ThreadId>,
    /// Times that an entry found the submission queue full.
    sq_full: u64,
}

impl Ring {
    /// Takes over a ring that was made disabled.
    pub(super) fn new(disabled: IoUring) -> Self {
        Self { uring: disabled, issuer: None, sq_full: 0 }
    }

    /// Makes this thread the issuer if there is none yet. Cheap when there is.
    ///
    /// # Errors
    /// What io_uring_register(2) says: no memory.
    pub(super) fn start(&mut self) -> io::Result<()> {
        if self.issuer.is_none() {
            self.uring.submitter().register_enable_rings()?;
            self.issuer = Some(thread::current().id());
        }
        Ok(())
    }

    /// True on the thread that may use the ring.
    pub(super) fn is_issuer(&self) -> bool {
        self.issuer == Some(thread::current().id())
    }

    /// Times that an entry found the submission queue full.
    pub(super) fn sq_full(&self) -> u64 {
        self.sq_full
    }

    /// Queues `entry`, for the next [`submit`](Self::submit). A full queue is counted.
    ///
    /// # Safety
    /// Whatever the entry points to must stay valid, in place and free of Rust's exclusive borrows until its
    /// (last) completion was seen.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry, token: Token) -> Result<(), Full> {
        let entry = entry.user_data(token.pack());
        // SAFETY: the caller vouches for what the entry points to.
        unsafe { self.uring.submission().push(&entry) }.map_err(|_| {
            self.sq_full += 1;
            Full
        })
    }

    /// Queues a cancellation of the operation with `token`.
    pub(super) fn cancel(&mut self, token: Token) -> Result<(), Full> {
        // SAFETY: the entry points to nothing.
        unsafe { self.push(opcode::AsyncCancel::new(token.pack()).build(), Token::Cancel) }
    }

    /// Hands what is queued to the kernel, and lets it do what it deferred. No system call if there is
    /// neither.
    ///
    /// # Errors
    /// What io_uring_enter(2) says. Entries that it did not take stay queued.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        let queue = self.uring.submission();
        if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(());
        }
        drop(queue);
        match self.uring.submit() {
            Ok(_) => Ok(()),
            // EBUSY: completions overflowed, and have to be taken in first.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Hands what is queued to the kernel, and sleeps until there is a completion or `timeout` (at most an
    /// hour) has passed.
    ///
    /// # Errors
    /// What io_uring_enter(2) says, but the end of the time and signals, which are normal returns.
    pub(super) fn submit_and_sleep(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::from(timeout.min(LONGEST));
        let arguments = SubmitArgs::new().timespec(&timeout);
        match self.uring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // EBUSY: completions overflowed, so that there are some to be had.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The next completion that there is.
    pub(super) fn next_completion(&mut self) -> Option<Completion> {
        loop {
            let entry = self.uring.completion().next()?;
            if let Some(token) = Token::unpack(entry.user_data()) {
                return Some(Completion { token, result: entry.result(), flags: entry.flags() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        for token in
            [Token::Receive(0), Token::Receive(u16::MAX), Token::Send(1 << 55), Token::Wake(7), Token::Cancel]
        {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(0), None);
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}
