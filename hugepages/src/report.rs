//! What was got, in numbers and in words.

use crate::kind::{Bytes, PageKind};
use crate::pool::{HugePages, needed_pages};
use std::{collections::BTreeMap, fmt};

/// How one region, or all regions of a slab, were had. `Display` is one line, the advice included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The request's name for the memory.
    pub what: String,
    /// Bytes asked for; of a slab, what it takes when full.
    pub asked: usize,
    /// Bytes mapped, in whole pages.
    pub mapped: usize,
    /// The pages got; if they differ within a slab, the smallest.
    pub kind: PageKind,
    /// Bytes that were seen to lie on huge pages. All that is mapped for explicit huge pages; for transparent
    /// ones possibly less, where memory is fragmented, and none as long as nothing has been faulted in.
    pub huge: usize,
    /// Whether all pages were faulted in. If not, each comes on its first touch.
    pub prefaulted: bool,
    /// The node that the memory is bound to. `None` if none was asked for, or the kernel did not let us
    /// (`advice`).
    pub numa_node: Option<u32>,
    /// What was wanted but not got, and what to type.
    pub advice: Option<String>,
    /// Explicit huge pages that were wanted but not got.
    pub(crate) shortfall: Option<Shortfall>,
}

/// Explicit huge pages that a request did without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortfall {
    pub(crate) kind: PageKind,
    pub(crate) node: Option<u32>,
    /// Pages of `kind`.
    pub(crate) pages: usize,
}

impl Shortfall {
    pub(crate) fn of(kind: PageKind, node: Option<u32>, len: usize) -> Self {
        Self { kind, node, pages: needed_pages(len, kind) }
    }

    /// What to type. `None` if the host has no pages of this size at all: then it is not short of any.
    pub(crate) fn advice(self) -> Option<String> {
        Some(HugePages::read(self.kind)?.advice(self.pages, self.node))
    }
}

impl Report {
    /// The report of `len` bytes that something else has mapped on plain pages where those of kind `wanted` would
    /// have been better: so that [`advise`] counts them in.
    pub fn of_plain(what: &str, len: usize, wanted: PageKind, numa_node: Option<u32>) -> Self {
        let shortfall = Shortfall::of(wanted, numa_node, len);
        Self {
            what: what.to_owned(),
            asked: len,
            mapped: len,
            kind: PageKind::Plain,
            huge: 0,
            prefaulted: true,
            numa_node,
            advice: shortfall.advice(),
            shortfall: Some(shortfall),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, Bytes(self.mapped))?;
        if self.mapped < self.asked {
            write!(f, " so far, of {}", Bytes(self.asked))?;
        }
        write!(f, " on {} pages", self.kind)?;
        if self.kind == PageKind::Transparent && self.prefaulted && self.huge < self.mapped {
            write!(f, " (only {} of it)", Bytes(self.huge))?;
        }
        if let Some(node) = self.numa_node {
            write!(f, ", node {node}")?;
        }
        f.write_str(if self.prefaulted { ", pre-faulted" } else { ", faulted on first touch" })?;
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

/// What to type so that all of these get the explicit huge pages that they wanted, or `None` if they have
/// them.
///
/// The advice in each report counts for its region alone; a program with several must ask for the sum.
/// One line for each size and node.
pub fn advise<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Option<String> {
    let mut sums = BTreeMap::new();
    for Shortfall { kind, node, pages } in reports.into_iter().filter_map(|report| report.shortfall) {
        *sums.entry((kind, node)).or_insert(0) += pages;
    }
    let lines: Vec<_> = sums
        .into_iter()
        .filter_map(|((kind, node), pages)| Shortfall { kind, node, pages }.advice())
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_mapped_elsewhere_is_counted_in() {
        let report = |mib: usize| Report::of_plain("UMEM", mib << 20, PageKind::Huge2M, None);
        let pages = |reports: &[Report]| {
            let advice = advise(reports).unwrap();
            let (_, number) = advice.split_once("nr_hugepages=").unwrap();
            number.trim().parse::<usize>().unwrap()
        };
        assert_eq!(pages(&[report(1600), report(1600)]), pages(&[report(1600)]) + 800);
    }

    #[test]
    fn a_report_is_one_line() {
        let mut report = Report {
            what: "umem of queue 3".into(),
            asked: 3 << 20,
            mapped: 4 << 20,
            kind: PageKind::Huge2M,
            huge: 4 << 20,
            prefaulted: true,
            numa_node: Some(1),
            advice: None,
            shortfall: None,
        };
        assert_eq!(report.to_string(), "umem of queue 3: 4 MiB on 2 MiB pages, node 1, pre-faulted");
        report.kind = PageKind::Transparent;
        report.huge = 2 << 20;
        report.asked = 64 << 20;
        report.numa_node = None;
        report.advice = Some("type: x".into());
        assert_eq!(
            report.to_string(),
            "umem of queue 3: 4 MiB so far, of 64 MiB on THP pages (only 2 MiB of it), pre-faulted; type: x"
        );
        report.prefaulted = false;
        assert!(report.to_string().contains("on THP pages, faulted on first touch;"));
    }
}
