//! What an interface says of XDP before anything is attached to it. Reads only, and needs no privilege; the
//! name of a program that is attached is known to privileged processes alone.

use std::io;
use std::os::fd::AsFd;

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{Xdp, XdpFlags};

use crate::attach::Mode;
use crate::messages;

// Bits of `enum netdev_xdp_act` in linux/netdev.h.
const XDP_BASIC: u64 = 1 << 0;
const XDP_REDIRECT: u64 = 1 << 1;
const XDP_ZERO_COPY: u64 = 1 << 3;

/// XDP on one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Its driver runs programs itself, and redirects: what AF_XDP in native mode needs. False also on kernels
    /// before 6.3, which do not tell.
    pub native: bool,
    /// Its driver has AF_XDP without copies. False also on kernels before 6.3.
    pub zero_copy: bool,
    /// The program that is attached, if there is one.
    pub attached: Option<Attached>,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The kernel's number of it.
    pub id: u32,
    /// Its name; `None` if it has none, or this process may not ask.
    pub name: Option<String>,
    /// Where it runs; `None` if in the NIC itself.
    pub mode: Option<Mode>,
}

/// Inspects the interface with this index in the calling thread's network namespace. `None` if the kernel does
/// not answer: netlink is closed to this process.
pub fn inspect(ifindex: u32) -> Option<Inspection> {
    // The question is about the interface; the descriptor, of a program for other requests, is not used.
    let unused = io::stderr();
    let question = || Xdp::new(unused.as_fd()).query(ifindex.cast_signed(), XdpFlags::NONE);
    let (answer, _) = messages::capture(question);
    let found = answer.ok()?;
    let programs = [
        (found.drv_prog_id, Some(Mode::Native)),
        (found.skb_prog_id, Some(Mode::Generic)),
        (found.hw_prog_id, None),
    ];
    let attached = programs.into_iter().find(|&(id, _)| id != 0);
    Some(Inspection {
        native: found.feature_flags & (XDP_BASIC | XDP_REDIRECT) == XDP_BASIC | XDP_REDIRECT,
        zero_copy: found.feature_flags & XDP_ZERO_COPY != 0,
        attached: attached.map(|(id, mode)| Attached { id, name: name(id), mode }),
    })
}

/// The name of the program with this number.
fn name(id: u32) -> Option<String> {
    let program = ProgInfoIter::default().find(|info| info.id == id)?;
    Some(program.name.to_string_lossy().into_owned()).filter(|name| !name.is_empty())
}
