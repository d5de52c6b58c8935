//! Where does big memory come from?
//!
//! A packet server touches gigabytes in no order: frames, connections, tiles. On 4 KiB pages nearly each of
//! those touches misses the TLB as well as the cache. This crate hands out memory on the largest pages that
//! the host gives, close to the core that uses it, and says what it got.
//!
//! Three types, from the outside in:
//! - [`Slab`]: fixed capacity, index-addressed storage of one type, in chunks that are regions;
//! - [`Region`]: one mapping of zeroed memory, with the [`Report`] of how it was had;
//! - [`HugePages`]: the kernel's pool of one page size, from which explicit huge pages come, and the command
//!   that makes it large enough.
//!
//! A region walks down a ladder of four rungs, the [`PageKind`]s: 1 GiB, 2 MiB, transparent huge pages (THP),
//! plain pages. [`Pages`] says where it starts, and whether it may step down. On each rung the order is: map,
//! bind to the node, fault in. Binding comes before faulting because only a fault obeys the binding; and
//! explicit huge pages are always faulted in here, because what the kernel reserved when it mapped them is
//! not tied to the node, nor checked against the cgroup's limit: a missing page would be a SIGBUS on the
//! packet path. Faulted in by `madvise`, it is an error, and the next rung's turn.
//!
//! The memory belongs to the [`Region`] and goes back to the kernel when that is dropped. Any thread may own
//! or share one. Mapping takes microseconds if nothing is faulted in; else the kernel zeroes it all, at about
//! 0.1 ms per MiB on huge pages and 0.5 ms on plain ones. So it is done at start or, by the slab, one chunk
//! at a time.
//!
//! [`prefetch`] asks the processor for a line of it, or of any other memory, ahead of its use.
//!
//! Linux only. Kernel 5.14 (`MADV_POPULATE_WRITE`) for explicit huge pages and pre-faulting; older ones, and
//! sandboxes that imitate them, get plain or transparent pages, faulted on first touch.

mod census;
mod kind;
mod pool;
mod prefetch;
mod region;
mod report;
mod slab;
mod split;
mod sys;

pub use kind::{PageKind, Pages, UnknownPages};
pub use pool::{HugePages, NodePages, needed_pages};
pub use prefetch::prefetch;
pub use region::{Error, Region, Request};
pub use report::{Report, advise};
pub use slab::{InsertError, Iter, IterMut, Slab};
