//! What can go wrong, and what the user can do about it. Each message says what failed, why, and, where
//! something helps, what to type.

use std::fs;
use std::io;
use std::net::IpAddr;

use crate::attach::Mode;

/// Why the XDP program could not be loaded, attached or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration makes no sense, whatever the host.
    #[error("the XDP program cannot be configured so: {what}")]
    InvalidConfig {
        /// The value, and which would do.
        what: &'static str,
    },
    /// The kernel did not let this process.
    #[error("not permitted to {action}: {remedy}")]
    Permission {
        /// What was tried.
        action: String,
        /// The capabilities that are missing, or else who may have refused, and what to type.
        remedy: String,
    },
    /// The kernel has no BPF links for XDP.
    #[error(
        "this kernel ({}) is too old: BPF links for XDP came with Linux 5.9. Run a newer one, or a backend \
         without XDP",
        kernel_release()
    )]
    KernelTooOld,
    /// The kernel refused the program for another reason.
    #[error(
        "cannot load the XDP program: {source}{}{}",
        if messages.is_empty() { "" } else { "\n" },
        messages.trim_end()
    )]
    Load {
        /// What libbpf reports.
        source: libbpf_rs::Error,
        /// libbpf's warnings, the verifier's log among them; may be empty.
        messages: String,
    },
    /// The interface is not there, or no longer.
    #[error("there is no network interface with index {ifindex}; list them with: ip link")]
    NoSuchInterface {
        /// The index that was asked for.
        ifindex: u32,
    },
    /// Another XDP program is on the interface.
    #[error(
        "{interface} already has an XDP program: {holder}. Stop the other server, or whatever it belongs to; \
         these show what is attached: bpftool net; ip link show dev {interface}. What its owner left behind \
         is removed by: ip link set dev {interface} xdp off (in generic mode: xdpgeneric off)"
    )]
    Busy {
        /// The interface's name.
        interface: String,
        /// The program that is there, by name, id and mode.
        holder: String,
    },
    /// The driver cannot run XDP programs itself.
    #[error(
        "the driver of {interface} has no native XDP (which one it is: ethtool -i {interface}). Generic mode \
         works on any interface, more slowly"
    )]
    NoNativeXdp {
        /// The interface's name.
        interface: String,
    },
    /// The kernel or driver refused to attach for another reason.
    #[error("cannot attach the XDP program to {interface} in {mode} mode: {source}; {hint}")]
    Attach {
        /// The interface's name.
        interface: String,
        /// The mode that was asked for.
        mode: Mode,
        /// What the kernel answered.
        source: io::Error,
        /// What it mostly means.
        hint: &'static str,
    },
    /// The program was loaded for fewer queues.
    #[error("receive queue {queue} is out of range: the XDP program was loaded for {queues}, counted from 0")]
    QueueOutOfRange {
        /// The queue that was asked for.
        queue: u32,
        /// How many there are.
        queues: u32,
    },
    /// The kernel did not take the socket.
    #[error("cannot register the socket of receive queue {queue}: {source}; it must be an AF_XDP socket")]
    Register {
        /// The queue that was asked for.
        queue: u32,
        /// What libbpf reports.
        source: libbpf_rs::Error,
    },
    /// More addresses than the program's map is made for.
    #[error("{given} addresses are too many: the XDP program holds {most}. Listen on fewer")]
    TooManyAddresses {
        /// How many different ones were given.
        given: usize,
        /// How many fit.
        most: usize,
    },
    /// No host answers on this address.
    #[error(
        "{address} is no unicast address, so the XDP program cannot serve it; give one of the interface's"
    )]
    NotUnicast {
        /// The address as it was given.
        address: IpAddr,
    },
    /// A map of the program could not be read or written; only a kernel out of memory does that.
    #[error("cannot {action}: {source}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// What libbpf reports.
        source: libbpf_rs::Error,
    },
}

impl Error {
    /// The error of a load that failed, with what libbpf said meanwhile.
    pub(crate) fn load(source: libbpf_rs::Error, messages: String) -> Self {
        let denied = source.kind() == libbpf_rs::ErrorKind::PermissionDenied;
        // The verifier says EACCES, too, of a program that it finds wrong; then there is a log.
        let verified = messages.contains("BEGIN PROG LOAD LOG");
        if denied && (!verified || !missing_capabilities().is_empty()) {
            Self::permission("load the XDP program")
        } else if kernel_too_old() {
            Self::KernelTooOld
        } else {
            Self::Load { source, messages }
        }
    }

    /// The kernel answered EPERM to `action`.
    pub(crate) fn permission(action: &str) -> Self {
        let missing = missing_capabilities();
        let remedy = if missing.is_empty() {
            "the process has the capabilities for it, so a container's seccomp profile, kernel lockdown or \
             another security module forbids it; in Docker, run with --privileged"
                .to_owned()
        } else {
            format!(
                "missing {}. Run with sudo, or grant them: sudo setcap \
                 cap_bpf,cap_net_admin,cap_net_raw,cap_perfmon=ep PROGRAM",
                missing.join(", ")
            )
        };
        Self::Permission { action: action.to_owned(), remedy }
    }
}

/// CAP_SYS_ADMIN, which the kernel takes in place of any of those below (bits as in linux/capability.h).
const SYS_ADMIN: u64 = 1 << 21;

/// What loading and attaching need, each with the capabilities that provide it.
const NEEDED_CAPABILITIES: [(&str, u64); 3] = [
    ("CAP_BPF", 1 << 39 | SYS_ADMIN),
    ("CAP_NET_ADMIN", 1 << 12 | SYS_ADMIN),
    ("CAP_PERFMON", 1 << 38 | SYS_ADMIN),
];

/// Those of the needed capabilities that this thread lacks; all, when the kernel does not say.
fn missing_capabilities() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    let lacking = NEEDED_CAPABILITIES.iter().filter(|(_, providers)| effective & providers == 0);
    lacking.map(|&(name, _)| name).collect()
}

/// The kernel's release, such as `6.1.0-18-amd64`; `unknown` when it does not say.
fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |release| release.trim().to_owned())
}

/// Whether the kernel is older than 5.9. Only to explain a failure: distributions back-port features.
pub(crate) fn kernel_too_old() -> bool {
    is_too_old(&kernel_release())
}

fn is_too_old(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) < (5, 9),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        for old in ["4.19.0-27-amd64", "5.8.18", "5.4", "3.10.0-1160.el7.x86_64"] {
            assert!(is_too_old(old), "{old}");
        }
        for new in ["5.9.0", "5.10.0-32-amd64", "6.1", "10.0-rc1", "", "unknown"] {
            assert!(!is_too_old(new), "{new}");
        }
    }
}
