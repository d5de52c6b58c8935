//! Attaching: a BPF link between the program and an interface, and the reasons why there is none.
//!
//! A link, not the older netlink attachment: the kernel undoes it when its descriptor closes, and lets
//! nobody replace the program meanwhile. Where the kernel refuses, this module asks it a second time, for
//! the cause that its error number only hints at.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{Xdp, XdpFlags};
use nix::net::if_::if_indextoname;

use crate::error::{self, Error};

/// Where in the receive path the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel allocates anything for the packet. Needs a driver that can.
    Native,
    /// In the kernel's stack, on any interface. Slower: the packet was allocated and is copied.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// An attachment; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

impl Drop for Link {
    fn drop(&mut self) {
        // Closing the descriptor would do, were it the only one. While another thread starts a process, that
        // has a copy until it executes its program, and the interface would be busy for so long.
        // SAFETY: takes an open descriptor and no pointers.
        unsafe { libbpf_sys::bpf_link_detach(self.0.as_raw_fd()) };
        // It fails when the interface is gone already, and the attachment with it.
    }
}

/// Attaches `program` to the interface.
pub(crate) fn link(program: BorrowedFd<'_>, ifindex: u32, mode: Mode) -> Result<Link, Error> {
    // The kernel answers the same EINVAL for a missing interface and for a missing feature.
    let interface = name(ifindex).ok_or(Error::NoSuchInterface { ifindex })?;
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags: match mode {
            Mode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Mode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        },
        ..Default::default()
    };
    // SAFETY: `program` is an open descriptor, and `options` a valid structure that states its own size;
    // the kernel keeps neither pointer.
    let created = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex.cast_signed(), libbpf_sys::BPF_XDP, &options)
    };
    if created < 0 {
        let source = io::Error::from_raw_os_error(-created);
        return Err(explain(program, ifindex, interface, mode, source));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    Ok(Link(unsafe { OwnedFd::from_raw_fd(created) }))
}

fn name(ifindex: u32) -> Option<String> {
    let name = if_indextoname(ifindex).ok()?.into_string().ok()?;
    // nix 0.31 takes the null pointer of a missing interface for success, and returns an empty name.
    (!name.is_empty()).then_some(name)
}

fn explain(program: BorrowedFd<'_>, ifindex: u32, interface: String, mode: Mode, source: io::Error) -> Error {
    let hint = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            return Error::permission(&format!("attach the XDP program to {interface}"));
        }
        Some(libc::EBUSY | libc::EEXIST) => {
            return Error::Busy { holder: holder(program, ifindex), interface };
        }
        Some(libc::EOPNOTSUPP) if mode == Mode::Native => return Error::NoNativeXdp { interface },
        Some(libc::EINVAL) if error::kernel_too_old() => return Error::KernelTooOld,
        Some(libc::ENOSPC) => {
            "the driver has too few queues for XDP. On veth, give this end as many receive queues as the \
             other has transmit queues: ip link add ... numrxqueues N"
        }
        Some(libc::ERANGE | libc::E2BIG) => {
            "the MTU is probably too large for XDP: lower it with: ip link set dev IFACE mtu 1500 (on veth, \
             that of the other end)"
        }
        _ => "the driver's reason, if it gave one, is at the end of: dmesg",
    };
    Error::Attach { interface, mode, source, hint }
}

/// The programs that are on the interface, in words: `xdp_quic (program id 7, native mode)`.
fn holder(program: BorrowedFd<'_>, ifindex: u32) -> String {
    let Ok(found) = Xdp::new(program).query(ifindex.cast_signed(), XdpFlags::NONE) else {
        return "a program that could not be queried".into();
    };
    let describe = |(id, mode): (u32, &str)| {
        let name = ProgInfoIter::default().find(|info| info.id == id);
        let name = name.map(|info| info.name.to_string_lossy().into_owned());
        format!("{} (program id {id}, {mode} mode)", name.unwrap_or_else(|| "a program without name".into()))
    };
    let attached: Vec<String> =
        [(found.drv_prog_id, "native"), (found.skb_prog_id, "generic"), (found.hw_prog_id, "offloaded")]
            .into_iter()
            .filter(|&(id, _)| id != 0)
            .map(describe)
            .collect();
    if attached.is_empty() {
        // It was there a moment ago, or netlink hides it.
        return "a program that has just gone".into();
    }
    attached.join(", ")
}
