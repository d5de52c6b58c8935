//! Why there is no io_uring, and what would mend it.

use std::fs;
use std::io;

/// Why the rings cannot be had. Each says what to type.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// `ENOSYS`, and no sandbox.
    #[error(
        "this kernel, Linux {release}, has no io_uring, which came with 5.1 and can be left out \
         (CONFIG_IO_URING=n): --backend socket does without"
    )]
    NotInKernel {
        /// The kernel's release.
        release: String,
    },
    /// The kernel lacks something that this backend cannot do without.
    #[error(
        "io_uring of Linux {release} has no {missing}: it takes {needs} or newer. \
         --backend socket does without"
    )]
    TooOld {
        /// The kernel's release.
        release: String,
        /// What is missing.
        missing: &'static str,
        /// The release that has it.
        needs: &'static str,
    },
    /// `kernel.io_uring_disabled` is 2.
    #[error(
        "io_uring is switched off for every process on this host (kernel.io_uring_disabled = 2): \
         sudo sysctl -w kernel.io_uring_disabled=0"
    )]
    Disabled,
    /// `kernel.io_uring_disabled` is 1, and we are neither privileged nor in the group.
    #[error(
        "io_uring is switched off for processes without CAP_SYS_ADMIN (kernel.io_uring_disabled = 1): \
         sudo sysctl -w kernel.io_uring_group={group} allows it to your group, \
         sudo sysctl -w kernel.io_uring_disabled=0 to all"
    )]
    Unprivileged {
        /// Our group.
        group: u32,
    },
    /// A seccomp filter is in force and the call failed with `EPERM` or `ENOSYS`.
    #[error(
        "a sandbox blocks io_uring_setup ({source}; a seccomp filter is in force, see Seccomp in \
         /proc/self/status), as container runtimes do by default. docker, podman: --security-opt \
         seccomp=PROFILE.json with a profile that allows io_uring_setup, io_uring_enter and \
         io_uring_register; systemd: SystemCallFilter=@aio. --backend socket does without"
    )]
    Sandbox {
        /// What the kernel said.
        source: io::Error,
    },
    /// `EPERM` without any of the above.
    #[error(
        "not permitted to use io_uring ({source}): a security module such as SELinux forbids it. See which: \
         sudo journalctl -k -g avc. --backend socket does without"
    )]
    NotPermitted {
        /// What the kernel said.
        source: io::Error,
    },
    /// `ENOMEM`.
    #[error(
        "no memory for {workers} rings of {sq_depth} entries: before Linux 5.12 they count as locked memory. \
         ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit, or a smaller --io-uring-sq-depth"
    )]
    NoMemory {
        /// Rings wanted.
        workers: usize,
        /// Entries of each.
        sq_depth: u32,
    },
    /// The process has no file descriptor left.
    #[error(
        "out of file descriptors after {rings} of {workers} rings: ulimit -n {need}, or \
         LimitNOFILE={need} in its systemd unit, or fewer --workers", need = 2 * workers + 1024
    )]
    TooManyFiles {
        /// Rings made until then.
        rings: usize,
        /// Rings wanted.
        workers: usize,
    },
    /// Any other failure of a system call.
    #[error("{call} failed: {source}. --backend socket does without")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What the host says about io_uring.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Host {
    /// `kernel.io_uring_disabled`; `None` before Linux 6.6, which allows it to all.
    disabled: Option<u32>,
    /// This thread runs under a seccomp filter.
    filtered: bool,
}

impl Host {
    /// Reads it. What cannot be read counts as absent.
    pub(super) fn read() -> Self {
        let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        // Of the thread, as filters are a thread's.
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let filter = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
        Self {
            disabled: disabled.ok().and_then(|text| text.trim().parse().ok()),
            filtered: filter.is_some_and(|mode| mode.trim() == "2"),
        }
    }

    /// What a failure of io_uring_setup(2) means, for the ring numbered `rings` of `workers`.
    pub(super) fn explain(
        &self,
        source: io::Error,
        rings: usize,
        workers: usize,
        sq_depth: u32,
    ) -> UringError {
        match (source.raw_os_error(), self.disabled) {
            (Some(libc::EPERM), Some(2)) => UringError::Disabled,
            (Some(libc::EPERM), Some(1)) => {
                UringError::Unprivileged { group: nix::unistd::getegid().as_raw() }
            }
            (Some(libc::EPERM | libc::ENOSYS), _) if self.filtered => UringError::Sandbox { source },
            (Some(libc::EPERM | libc::EACCES), _) => UringError::NotPermitted { source },
            (Some(libc::ENOSYS), _) => UringError::NotInKernel { release: release() },
            (Some(libc::ENOMEM), _) => UringError::NoMemory { workers, sq_depth },
            (Some(libc::EMFILE | libc::ENFILE), _) => UringError::TooManyFiles { rings, workers },
            _ => UringError::System { call: "io_uring_setup", source },
        }
    }
}

/// The kernel's release, as `uname -r` has it.
pub(super) fn release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "?".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(host: Host, errno: i32) -> String {
        host.explain(io::Error::from_raw_os_error(errno), 3, 8, 4096).to_string()
    }

    #[test]
    fn each_cause_is_told_apart_and_names_its_remedy() {
        let open = Host { disabled: Some(0), filtered: false };
        let filtered = Host { filtered: true, ..open };
        for (host, errno, remedy) in [
            (Host { disabled: Some(2), ..open }, libc::EPERM, "sysctl -w kernel.io_uring_disabled=0"),
            (Host { disabled: Some(2), ..filtered }, libc::EPERM, "sysctl -w kernel.io_uring_disabled=0"),
            (Host { disabled: Some(1), ..open }, libc::EPERM, "sysctl -w kernel.io_uring_group="),
            (filtered, libc::EPERM, "--security-opt seccomp=PROFILE.json"),
            (filtered, libc::ENOSYS, "SystemCallFilter=@aio"),
            (Host { disabled: None, ..open }, libc::EPERM, "journalctl -k"),
            (open, libc::ENOSYS, "--backend socket"),
            (open, libc::ENOMEM, "ulimit -l unlimited"),
            (open, libc::EMFILE, "ulimit -n 1040"),
            (open, libc::EINVAL, "Invalid argument"),
        ] {
            let text = text(host, errno);
            assert!(text.contains(remedy), "{host:?} {errno}: {text}");
        }
        assert!(text(open, libc::EMFILE).contains("after 3 of 8 rings"));
        assert!(text(open, libc::ENOMEM).contains("8 rings of 4096 entries"));
    }
}
