//! One mapping, had by walking down the ladder of page kinds.

use crate::kind::{Bytes, PageKind, Pages};
use crate::pool;
use crate::report::{Report, Shortfall};
use crate::sys::Mapping;
use std::{io, ptr::NonNull};

/// The longest region, in bytes: 64 TiB, half of the address space that x86-64 gives a process by default.
/// Much larger, and rounding up or making room for alignment could overflow; smaller forbids what a host
/// might have.
const MAX_LEN: usize = 64 << 40;

/// What memory is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// A name for reports and errors, such as `umem of queue 3`.
    pub what: &'a str,
    /// Bytes; rounded up to whole pages.
    pub len: usize,
    /// Which pages, and whether others will do.
    pub pages: Pages,
    /// The NUMA node that the memory must come from; `None` leaves it to the kernel, which takes the node of
    /// the thread that touches a page first.
    pub numa_node: Option<u32>,
    /// Whether to fault all of it in now, so that no page fault happens later. Explicit huge pages always
    /// are.
    pub prefault: bool,
}

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A length, or a slab's capacity, of zero.
    #[error("{what}: asked for no memory at all; the length must be at least 1 byte")]
    Empty {
        /// The request's name.
        what: String,
    },
    /// A length beyond any host's memory.
    #[error("{what}: {} is more than one region can have, {}", Bytes(*len), Bytes(MAX_LEN))]
    TooLong {
        /// The request's name.
        what: String,
        /// Bytes asked for.
        len: usize,
    },
    /// The node is not there.
    #[error("{what}: no NUMA node {node} on this host, which has {online:?}; see `lscpu | grep NUMA`")]
    NoSuchNode {
        /// The request's name.
        what: String,
        /// The node asked for.
        node: u32,
        /// The nodes that are online.
        online: Vec<u32>,
    },
    /// The node is there, but this process may not have its memory.
    #[error(
        "{what}: cannot bind memory to NUMA node {node}: {source}; the node must have memory and be in this \
         process's cpuset, see `grep Mems_allowed_list /proc/self/status`"
    )]
    Bind {
        /// The request's name.
        what: String,
        /// The node asked for.
        node: u32,
        /// What `mbind` said.
        source: io::Error,
    },
    /// Pages asked for by [`Pages::Exactly`] are not to be had.
    #[error("{what}: no {} on {kind} pages: {reason}{}", Bytes(*len), Advice(advice))]
    Unavailable {
        /// The request's name.
        what: String,
        /// Bytes asked for, in whole pages.
        len: usize,
        /// The pages asked for.
        kind: PageKind,
        /// What the kernel said.
        reason: String,
        /// What to type, if anything helps.
        advice: Option<String>,
    },
    /// Not even plain pages are to be had.
    #[error(
        "{what}: no {} of memory: {source}; see `free -h`, the limit `ulimit -v`, vm.overcommit_memory and, \
         for very many mappings, vm.max_map_count",
        Bytes(*len)
    )]
    OutOfMemory {
        /// The request's name.
        what: String,
        /// Bytes asked for, in whole pages.
        len: usize,
        /// What `mmap` or `madvise` said.
        source: io::Error,
    },
}

/// Advice as the end of a sentence, if there is any.
struct Advice<'a>(&'a Option<String>);

impl std::fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_ref().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

/// Zeroed memory of whole pages, unmapped on drop.
///
/// It gives its address and no references: what lies in it, and who may touch it when, is its user's
/// business.
pub struct Region {
    mapping: Mapping,
    report: Report,
}

/// A rung that held.
struct Got {
    mapping: Mapping,
    huge: usize,
    prefaulted: bool,
    binding: Binding,
}

/// A rung that did not.
struct Refused {
    kind: PageKind,
    source: io::Error,
    /// What to type, where it does not follow from the state of a pool.
    advice: Option<String>,
}

/// What became of the wish for a node.
#[derive(Clone, Copy)]
enum Binding {
    None,
    Bound(u32),
    /// `mbind` is closed to this process, as in most containers.
    Forbidden(u32),
}

impl Region {
    /// Maps what `request` describes, on the first rung of its ladder that holds.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::TooLong`], [`Error::NoSuchNode`] and [`Error::Bind`] for requests that
    /// cannot be met on any pages; [`Error::Unavailable`] if the pages named by [`Pages::Exactly`] are not
    /// there; [`Error::OutOfMemory`] if the last rung, plain pages, gave way too.
    pub fn map(request: &Request<'_>) -> Result<Self, Error> {
        let &Request { what, len, pages, numa_node, .. } = request;
        if len == 0 {
            return Err(Error::Empty { what: what.to_owned() });
        }
        if len > MAX_LEN {
            return Err(Error::TooLong { what: what.to_owned(), len });
        }
        let nodes = pool::online_nodes();
        if let Some(node) = numa_node.filter(|node| !nodes.contains(node)) {
            return Err(Error::NoSuchNode { what: what.to_owned(), node, online: nodes });
        }
        let mut missed = Vec::new();
        for kind in pages.rungs(len) {
            match Self::try_rung(request, kind, &nodes)? {
                Ok(got) => return Ok(Self::new(request, kind, got, &missed)),
                Err(refused) => missed.push(refused),
            }
        }
        Err(Self::failed(request, missed))
    }

    /// One rung: map, bind, fault in. The outer error ends the walk, the inner one means the next rung.
    fn try_rung(request: &Request<'_>, kind: PageKind, nodes: &[u32]) -> Result<Result<Got, Refused>, Error> {
        let refused = |source| Ok(Err(Refused { kind, source, advice: None }));
        if kind == PageKind::Transparent
            && let Some((reason, advice)) = pool::thp_refusal()
        {
            return Ok(Err(Refused { kind, source: io::Error::other(reason), advice }));
        }
        let mapping = match Mapping::new(kind, request.len.next_multiple_of(kind.size())) {
            Ok(mapping) => mapping,
            Err(source) => return refused(source),
        };
        let binding = bind(request, &mapping, nodes)?;
        match kind {
            PageKind::Transparent => {
                if let Err(source) = mapping.want_huge(true) {
                    return refused(source);
                }
            }
            // Who names plain pages, to compare or to save memory, must get them on a host where THP is
            // always on; who fell down to them takes anything better that the kernel finds later. A kernel
            // that does not know the advice has no THP to refuse.
            PageKind::Plain if [Pages::Exactly(kind), Pages::AtMost(kind)].contains(&request.pages) => {
                let _ = mapping.want_huge(false);
            }
            _ => {}
        }
        let prefaulted = match kind.is_explicit() || request.prefault {
            false => false,
            true => match mapping.populate() {
                Ok(()) => true,
                // Too old a kernel to fault safely from here: ordinary memory can wait for its first touch.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !kind.is_explicit() => false,
                Err(source) => return refused(explain_populate(source)),
            },
        };
        let huge = match kind {
            PageKind::Huge1G | PageKind::Huge2M => mapping.len(),
            PageKind::Transparent if prefaulted => mapping.transparent_bytes(),
            PageKind::Transparent | PageKind::Plain => 0,
        };
        let enough = match request.pages {
            Pages::Exactly(_) => mapping.len(),
            _ => 1,
        };
        if kind == PageKind::Transparent && prefaulted && huge < enough {
            return Ok(Err(Refused {
                kind,
                source: io::Error::other(format!("the kernel found huge pages for {} only", Bytes(huge))),
                advice: Some(
                    "free memory is in small pieces; type: sudo sysctl -w vm.compact_memory=1".into(),
                ),
            }));
        }
        Ok(Ok(Got { mapping, huge, prefaulted, binding }))
    }

    fn new(request: &Request<'_>, kind: PageKind, got: Got, missed: &[Refused]) -> Self {
        let Got { mapping, huge, prefaulted, binding } = got;
        let (shortfall, pages_advice) = wanted(request, missed);
        let (numa_node, node_advice) = match binding {
            Binding::None => (None, None),
            Binding::Bound(node) => (Some(node), None),
            Binding::Forbidden(node) => (
                None,
                Some(format!(
                    "not bound to node {node}: mbind is not permitted; in a container, run it with \
                     --cap-add SYS_NICE"
                )),
            ),
        };
        let advice: Vec<_> = pages_advice.into_iter().chain(node_advice).collect();
        let report = Report {
            what: request.what.to_owned(),
            asked: request.len,
            mapped: mapping.len(),
            kind,
            huge,
            prefaulted,
            numa_node,
            advice: (!advice.is_empty()).then(|| advice.join("; ")),
            shortfall,
        };
        Self { mapping, report }
    }

    /// The error of a walk on which no rung held.
    fn failed(request: &Request<'_>, mut missed: Vec<Refused>) -> Error {
        let what = request.what.to_owned();
        let (_, advice) = wanted(request, &missed);
        let Some(Refused { kind, source, .. }) = missed.pop() else {
            unreachable!("every ladder has a rung");
        };
        let len = request.len.next_multiple_of(kind.size());
        match kind {
            PageKind::Plain => Error::OutOfMemory { what, len, source },
            _ => Error::Unavailable { what, len, kind, reason: source.to_string(), advice },
        }
    }

    /// The first byte. All [`Region::len`] bytes from here on may be read and written as long as the region
    /// lives.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.mapping.as_ptr()
    }

    /// Bytes mapped: what was asked for, rounded up to whole pages.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// The pages got.
    pub fn kind(&self) -> PageKind {
        self.report.kind
    }

    /// How it was had.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("at", &self.as_ptr()).field("report", &self.report).finish()
    }
}

/// Says what the bare names of errors from `madvise` mean here.
fn explain_populate(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EFAULT) => {
            io::Error::other("the kernel had promised the pages, but could not deliver them")
        }
        Some(libc::EINVAL) => io::Error::other("faulting huge pages in safely needs kernel 5.14 or newer"),
        _ => error,
    }
}

/// Binds `mapping` to the node asked for.
fn bind(request: &Request<'_>, mapping: &Mapping, nodes: &[u32]) -> Result<Binding, Error> {
    let Some(node) = request.numa_node else { return Ok(Binding::None) };
    match mapping.bind(node) {
        Ok(()) => Ok(Binding::Bound(node)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            // With one node there is nowhere else that the memory could come from.
            Ok(if nodes == [node] { Binding::Bound(node) } else { Binding::Forbidden(node) })
        }
        Err(source) => Err(Error::Bind { what: request.what.to_owned(), node, source }),
    }
}

/// What to advise after these refusals: the lowest explicit rung of those missed, because 2 MiB pages can
/// still be had on a running host and bring most of the gain; without one, whatever the best rung missed
/// says. Rungs that this host does not have at all are not missed.
fn wanted(request: &Request<'_>, missed: &[Refused]) -> (Option<Shortfall>, Option<String>) {
    let explicit = missed.iter().rev().filter(|refused| refused.kind.is_explicit()).find_map(|refused| {
        let shortfall = Shortfall::of(refused.kind, request.numa_node, request.len);
        Some((shortfall, shortfall.advice()?))
    });
    match explicit {
        Some((shortfall, advice)) => (Some(shortfall), Some(advice)),
        None => (None, missed.iter().find_map(|refused| refused.advice.clone())),
    }
}
