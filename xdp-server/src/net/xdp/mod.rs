//! AF_XDP: packets between the NIC's queues and the workers, past the kernel's network stack.
//!
//! Theory of operation
//! -------------------
//! One queue of the interface is one AF_XDP socket is one UMEM is one worker; nothing is shared between them.
//!
//! ```text
//!                    ┌───────────────────────── XdpIo, one worker ─────────────────────────┐
//!   NIC queue i ──►  │ fill ring ◄── Frames ◄──┐            ┌──► sink(path, &mut payload)  │
//!        │           │ receive ring ───────────┼─ Queue ────┤                              │
//!        │           │ completion ring ────────┘  (parse,   └─── fill(&mut payload) ◄──────│
//!   NIC queue i ◄──  │ transmit ring ◄──────────── headers)                                │
//!        │           │ Pacer: when to call the kernel                                      │
//!        └─ PASS ──► │ K: an ordinary socket, for what the XDP program does not redirect   │
//!                    └─────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! | file | question that it answers |
//! |---|---|
//! | [`rings`] | what do the kernel's rings look like, real or modelled? |
//! | [`umem`] | who owns each frame? |
//! | [`queue`] | how do frames and packets move? all unsafe code is here, in `socket` and in `nic` |
//! | [`pacer`] | when is a system call due? |
//! | [`io`] | how do these make a [`PacketIo`](crate::net::PacketIo)? |
//! | [`socket`] | how is one real queue opened? |
//! | [`nic`] | what is the interface, and is it fit? |
//! | [`memory`] | which pages and which NUMA node does a UMEM get? |
//! | [`mod@open`] | which mode do all queues get, and why not a better one? |

pub mod error;
pub mod io;
pub mod memory;
#[cfg(test)]
mod model;
pub mod nic;
pub mod open;
pub mod pacer;
pub mod queue;
pub mod rings;
pub mod socket;
#[cfg(test)]
mod tests;
pub mod umem;

pub use error::OpenError;
pub use io::XdpIo;
pub use open::{ModeGot, OpenQueue, OpenRequest, Opened, XdpMode, open};
pub use umem::FrameCensus;
