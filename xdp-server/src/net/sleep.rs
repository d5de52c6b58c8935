//! Sleeping on file descriptors, the same for every backend's [`PacketIo::wait`](super::PacketIo::wait).
//!
//! By ppoll(2): there are two or three descriptors, lent anew with each call. Measured on two, one of them
//! ready: ppoll 0.61 us, epoll_wait 0.43 us. The difference is less than the epoll_ctl that would have to
//! make sure that the same descriptors are still registered, and is paid only when a worker goes to sleep,
//! which costs several microseconds.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, ppoll};
use nix::sys::time::TimeSpec;

/// Longest sleep. Far longer than any timer of the server, and far shorter than what `timespec` can hold,
/// which ppoll(2) would refuse.
const LONGEST: Duration = Duration::from_secs(3600);

/// Sleeps until one of `fds` is ready, a signal comes, or `timeout` (at most an hour) has passed.
///
/// # Errors
/// What ppoll(2) says but `EINTR`, which is a normal return.
pub(super) fn sleep(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<()> {
    match ppoll(fds, Some(TimeSpec::from(timeout.min(LONGEST))), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
