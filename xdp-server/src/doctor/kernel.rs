//! The kernel: its version, AF_XDP sockets, io_uring.
//!
//! Versions tell what a kernel could have; whether this process gets it is found by trying, since a kernel
//! may be built without, and a sandbox may refuse.

use std::io;

use socket2::{Domain, Socket, Type};

use super::root::Root;
use super::row::{Remedy, Row};
use super::wanted::{Need, Wanted};

/// First kernel on which an XDP program is attached by a BPF link, which detaches it whatever happens.
const BPF_LINK: (u32, u32) = (5, 9);
/// First kernel whose io_uring receives messages in multishot mode.
const MULTISHOT: (u32, u32) = (6, 0);

/// What the kernel is, and what it said when it was tried.
#[derive(Clone, Debug)]
pub struct Facts {
    /// As `uname -r` says.
    pub release: String,
    /// Making an AF_XDP socket: the error number, if it failed.
    pub af_xdp: Result<(), i32>,
    /// Making an io_uring: the error number, if it failed.
    pub io_uring: Result<(), i32>,
    /// `kernel.io_uring_disabled`, since 6.6: 0 for nobody, 1 for all without privilege, 2 for all.
    pub io_uring_disabled: Option<u32>,
    /// A seccomp filter watches this process.
    pub filtered: bool,
}

impl Facts {
    /// Reads the files, and tries.
    pub fn gather(root: &Root) -> Self {
        Self {
            release: root.text("proc/sys/kernel/osrelease").unwrap_or_default(),
            af_xdp: try_af_xdp(),
            io_uring: try_io_uring(),
            io_uring_disabled: root.number("proc/sys/kernel/io_uring_disabled"),
            filtered: root.field::<u32>("proc/self/status", "Seccomp").is_some_and(|mode| mode != 0),
        }
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers =
            self.release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// The checks.
    pub fn rows(&self, wanted: &Wanted<'_>) -> Vec<Row> {
        let mut rows = vec![self.kernel(wanted)];
        if wanted.uses_xdp() {
            rows.push(self.af_xdp(wanted.xdp));
        }
        rows.push(self.io_uring(wanted.io_uring));
        rows
    }

    fn kernel(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "kernel";
        let release = &self.release;
        if wanted.uses_xdp() && self.version() < BPF_LINK {
            let found = format!("{release}: attaching by BPF link takes {}.{}", BPF_LINK.0, BPF_LINK.1);
            let remedy = Remedy::flags("--backend socket").or("or boot a newer kernel");
            return wanted.xdp.broken(CHECK, found, remedy);
        }
        Row::ok(CHECK, release)
    }

    fn af_xdp(&self, need: Need) -> Row {
        const CHECK: &str = "AF_XDP";
        match self.af_xdp {
            Ok(()) => Row::ok(CHECK, "sockets can be made"),
            Err(libc::EAFNOSUPPORT) => need.broken(
                CHECK,
                "this kernel is built without CONFIG_XDP_SOCKETS",
                Remedy::flags("--backend socket").or("or boot a kernel that has it"),
            ),
            Err(libc::EPERM | libc::EACCES) if !self.filtered => {
                Row::skip(CHECK, "cannot be tried without CAP_NET_RAW: see privileges")
            }
            Err(errno) => need.broken(
                CHECK,
                format!(
                    "sockets cannot be made: {}{}",
                    io::Error::from_raw_os_error(errno),
                    self.filter_note()
                ),
                Remedy::flags("--backend socket").or("in a container: another seccomp profile"),
            ),
        }
    }

    fn io_uring(&self, need: Need) -> Row {
        const CHECK: &str = "io_uring";
        if need == Need::Unused {
            return Row::skip(CHECK, "not wanted by this --backend");
        }
        let sockets = || Remedy::flags("--backend socket");
        let Err(errno) = self.io_uring else {
            return match self.version() >= MULTISHOT {
                true => Row::ok(CHECK, "allowed, with multishot receive"),
                false => need.broken(
                    CHECK,
                    format!("multishot receive takes kernel {}.{}", MULTISHOT.0, MULTISHOT.1),
                    sockets().or("or boot a newer kernel"),
                ),
            };
        };
        match (errno, self.io_uring_disabled) {
            (libc::EPERM, Some(disabled @ 1..)) => need.broken(
                CHECK,
                format!(
                    "switched off {} (kernel.io_uring_disabled = {disabled})",
                    if disabled == 1 { "for processes without privilege" } else { "for all" }
                ),
                Remedy::command("sudo sysctl -w kernel.io_uring_disabled=0").or("--backend socket"),
            ),
            (libc::ENOSYS, _) if !self.filtered => need.broken(
                CHECK,
                "this kernel is built without it",
                sockets().or("or boot a kernel that has CONFIG_IO_URING"),
            ),
            _ => need.broken(
                CHECK,
                format!("refused: {}{}", io::Error::from_raw_os_error(errno), self.filter_note()),
                sockets().or("in a container: a seccomp profile that allows io_uring_setup"),
            ),
        }
    }

    fn filter_note(&self) -> &'static str {
        if self.filtered { "; a seccomp filter blocks the call" } else { "" }
    }
}

fn try_af_xdp() -> Result<(), i32> {
    Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).map(drop).map_err(errno_of)
}

fn try_io_uring() -> Result<(), i32> {
    /// Words of `struct io_uring_params`.
    const PARAMS_WORDS: usize = 30;
    /// The smallest ring.
    const ENTRIES: libc::c_uint = 1;
    let mut params = [0u32; PARAMS_WORDS];
    // SAFETY: all zeroes are parameters of a plain ring, and the kernel writes no more than they are long.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params.as_mut_ptr()) };
    if ring < 0 {
        return Err(errno_of(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new, and nobody else knows it.
    unsafe { libc::close(ring as libc::c_int) };
    Ok(())
}

fn errno_of(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::super::row::Status::{Fail, Ok as Good, Skip, Warn};
    use super::super::tests::{host, settings, typed};
    use super::*;

    fn facts() -> Facts {
        Facts {
            release: "6.1.0-13-amd64".into(),
            af_xdp: Ok(()),
            io_uring: Ok(()),
            io_uring_disabled: None,
            filtered: false,
        }
    }

    fn statuses(facts: &Facts, flags: &str) -> Vec<super::super::row::Status> {
        let (settings, host) = (settings(flags), host());
        facts.rows(&Wanted::new(&settings, &host)).iter().map(|row| row.status).collect()
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (release, version) in
            [("6.18.44-fc", (6, 18)), ("5.9", (5, 9)), ("4.19.0-x", (4, 19)), ("", (0, 0))]
        {
            assert_eq!(Facts { release: release.into(), ..facts() }.version(), version);
        }
        let old = Facts { release: "5.4.0".into(), ..facts() };
        assert_eq!(statuses(&old, "--iface eth0"), [Warn, Good, Warn]);
        assert_eq!(statuses(&old, "--iface eth0 --backend xdp"), [Fail, Good, Skip]);
        assert_eq!(statuses(&old, "--backend socket"), [Good, Skip]);
        assert_eq!(statuses(&facts(), "--iface eth0"), [Good, Good, Good]);
        assert_eq!(statuses(&facts(), ""), [Good, Good]);
    }

    #[test]
    fn what_blocks_io_uring_is_named() {
        let row = |facts: &Facts| {
            let (settings, host) = (settings(""), host());
            facts.rows(&Wanted::new(&settings, &host)).pop().unwrap()
        };
        let off = row(&Facts { io_uring: Err(libc::EPERM), io_uring_disabled: Some(2), ..facts() });
        assert_eq!(typed(&off), "sudo sysctl -w kernel.io_uring_disabled=0");
        let filtered = row(&Facts { io_uring: Err(libc::EPERM), filtered: true, ..facts() });
        assert!(filtered.found.contains("seccomp") && typed(&filtered) == "--backend socket", "{filtered:?}");
        let without = row(&Facts { io_uring: Err(libc::ENOSYS), ..facts() });
        assert!(without.found.contains("built without"), "{without:?}");
    }

    #[test]
    fn what_blocks_af_xdp_is_named() {
        let row = |facts: &Facts, flags: &str| {
            let (settings, host) = (settings(flags), host());
            facts.rows(&Wanted::new(&settings, &host)).remove(1)
        };
        let without = Facts { af_xdp: Err(libc::EAFNOSUPPORT), ..facts() };
        assert_eq!(row(&without, "--iface eth0 --backend xdp").status, Fail);
        assert_eq!(row(&without, "--iface eth0").status, Warn);
        let unprivileged = Facts { af_xdp: Err(libc::EPERM), ..facts() };
        assert_eq!(row(&unprivileged, "--iface eth0").status, Skip);
        let filtered = Facts { filtered: true, ..unprivileged };
        assert!(row(&filtered, "--iface eth0").found.contains("seccomp"));
    }

    #[test]
    fn this_kernel_is_tried() {
        let facts = Facts::gather(&Root::host());
        assert!(facts.version() > (4, 0), "{facts:?}");
        if nix::unistd::geteuid().is_root() && !facts.filtered {
            assert_eq!(facts.af_xdp, Ok(()));
        }
    }
}
