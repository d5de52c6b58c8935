//! The kernel's side: pools of explicit huge pages, the switch of transparent ones, the nodes; and the
//! commands that make them what a request needs.
//!
//! Everything is read from sysfs and `/proc` at the time of asking. Nothing is written: changing the host is
//! the operator's act, so what comes out of here is text to type.

use crate::kind::{Bytes, GIB1, MIB2, PageKind};
use std::{fs, path::Path};

/// Pages of one node in the pool of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePages {
    /// The NUMA node's number.
    pub node: u32,
    /// Pages in the pool, used and free.
    pub total: usize,
    /// Pages that nobody has faulted in.
    pub free: usize,
}

/// The kernel's pool of explicit huge pages of one size, as it was when read. All counts are in pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// Which pages these are.
    pub kind: PageKind,
    /// Pages in the pool, used and free, over all nodes.
    pub total: usize,
    /// Pages that nobody has faulted in, promised ones included.
    pub free: usize,
    /// Free pages already promised to mappings that will fault them in later.
    pub reserved: usize,
    /// Whether `vm.nr_hugepages` speaks of this size (the kernel has one default size).
    pub is_default: bool,
    /// The share of each node, by node number. Empty on kernels without NUMA.
    pub nodes: Vec<NodePages>,
}

/// Pages of `kind` that hold `len` bytes.
pub fn needed_pages(len: usize, kind: PageKind) -> usize {
    len.div_ceil(kind.size())
}

impl HugePages {
    /// Reads the pool of `kind`. `None` if the kind has no pool (THP, plain) or the processor and the kernel
    /// do not offer that size.
    pub fn read(kind: PageKind) -> Option<Self> {
        Self::read_under(Path::new("/"), kind)
    }

    /// The same with another root, so that tests can show hosts that they do not have.
    fn read_under(root: &Path, kind: PageKind) -> Option<Self> {
        if !kind.is_explicit() {
            return None;
        }
        let folder = pool_folder(kind);
        let pool = root.join("sys/kernel/mm/hugepages").join(folder);
        let mut nodes: Vec<_> = online_nodes_under(root)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|node| {
                let pool = root.join(format!("sys/devices/system/node/node{node}/hugepages")).join(folder);
                let total = read_number(&pool.join("nr_hugepages"))?;
                Some(NodePages { node, total, free: read_number(&pool.join("free_hugepages"))? })
            })
            .collect();
        nodes.sort_by_key(|node| node.node);
        Some(Self {
            kind,
            total: read_number(&pool.join("nr_hugepages"))?,
            free: read_number(&pool.join("free_hugepages"))?,
            reserved: read_number(&pool.join("resv_hugepages"))?,
            is_default: default_size_under(root) == Some(kind.size()),
            nodes,
        })
    }

    /// Pages that a new mapping can get now, on `node` if given.
    pub fn available(&self, node: Option<u32>) -> usize {
        // Promises are not tied to a node: a node has what it has free, but never more than is unpromised in
        // all.
        let unpromised = self.free.saturating_sub(self.reserved);
        self.on(node).map_or(unpromised, |here| here.free.min(unpromised))
    }

    /// Pages by which a mapping of `pages`, on `node` if given, falls short now.
    pub fn missing(&self, pages: usize, node: Option<u32>) -> usize {
        pages.saturating_sub(self.available(node))
    }

    /// What to type so that a mapping of `pages`, on `node` if given, fits: the new total is the present one
    /// and what is missing, so pages that others use are not taken from them.
    pub fn advice(&self, pages: usize, node: Option<u32>) -> String {
        let (kind, available) = (self.kind, self.available(node));
        let place = node.map(|node| format!(" on node {node}")).unwrap_or_default();
        let missing = self.missing(pages, node);
        if missing == 0 {
            let limit = match kind {
                PageKind::Huge1G => "hugetlb.1GB.max",
                _ => "hugetlb.2MB.max",
            };
            return format!(
                "{pages} pages of {kind} wanted{place} and {available} free now, but not granted: \
                 see the limit {limit} of the process's cgroup, and that `uname -r` says 5.14 or newer"
            );
        }
        let command = self.command(pages, node);
        let boot = match kind {
            // A whole aligned GiB is seldom free once the host has run for a while.
            PageKind::Huge1G => format!(
                " (if the kernel finds fewer, boot with hugepagesz=1G hugepages={})",
                self.total.saturating_add(missing)
            ),
            _ => String::new(),
        };
        format!("{pages} pages of {kind} wanted{place}, {available} free; type: {command}{boot}")
    }

    /// The command of [`HugePages::advice`] alone.
    pub fn command(&self, pages: usize, node: Option<u32>) -> String {
        let (kind, missing) = (self.kind, self.missing(pages, node));
        // With one node, or none in particular, the pool's own file serves.
        match self.on(node).filter(|_| self.nodes.len() > 1) {
            Some(here) => format!(
                "echo {} | sudo tee /sys/devices/system/node/node{}/hugepages/{}/nr_hugepages",
                here.total.saturating_add(missing),
                here.node,
                pool_folder(kind)
            ),
            None if self.is_default => {
                format!("sudo sysctl -w vm.nr_hugepages={}", self.total.saturating_add(missing))
            }
            None => format!(
                "echo {} | sudo tee /sys/kernel/mm/hugepages/{}/nr_hugepages",
                self.total.saturating_add(missing),
                pool_folder(kind)
            ),
        }
    }

    fn on(&self, node: Option<u32>) -> Option<&NodePages> {
        self.nodes.iter().find(|pages| Some(pages.node) == node)
    }
}

/// The kernel's default size of huge pages in bytes; `None` if it has none.
pub(crate) fn default_size() -> Option<usize> {
    default_size_under(Path::new("/"))
}

fn default_size_under(root: &Path) -> Option<usize> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib =
        meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?.trim().strip_suffix("kB")?;
    kib.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Numbers of the nodes that are online. A kernel without NUMA has node 0.
pub(crate) fn online_nodes() -> Vec<u32> {
    online_nodes_under(Path::new("/")).unwrap_or_else(|| vec![0])
}

fn online_nodes_under(root: &Path) -> Option<Vec<u32>> {
    parse_list(&fs::read_to_string(root.join("sys/devices/system/node/online")).ok()?)
}

/// Why the kernel will not give this process transparent huge pages of 2 MiB, and what to type; `None` if it
/// may.
pub(crate) fn thp_refusal() -> Option<(String, Option<String>)> {
    thp_refusal_under(Path::new("/"))
}

fn thp_refusal_under(root: &Path) -> Option<(String, Option<String>)> {
    let thp = "sys/kernel/mm/transparent_hugepage";
    let read = |file: &str| fs::read_to_string(root.join(thp).join(file)).ok();
    let Some(enabled) = read("enabled") else {
        return Some(("this kernel has no transparent huge pages".into(), None));
    };
    if let Some(size) = read("hpage_pmd_size").and_then(|text| text.trim().parse::<usize>().ok())
        && size != MIB2
    {
        return Some((
            format!("this kernel's transparent huge pages are of {}, not 2 MiB", Bytes(size)),
            None,
        ));
    }
    // Since kernel 6.8 each size has a switch of its own, which mostly says to follow the common one.
    let (switch, file) = match read("hugepages-2048kB/enabled") {
        Some(own) if !own.contains("[inherit]") => (own, "hugepages-2048kB/enabled"),
        _ => (enabled, "enabled"),
    };
    switch.contains("[never]").then(|| {
        let advice = format!("type: echo madvise | sudo tee /{thp}/{file}");
        ("transparent huge pages are switched off".into(), Some(advice))
    })
}

/// The name of the folder in which sysfs keeps the pool of `kind`.
fn pool_folder(kind: PageKind) -> &'static str {
    const { assert!(GIB1 == 1_048_576 << 10 && MIB2 == 2048 << 10) }
    match kind {
        PageKind::Huge1G => "hugepages-1048576kB",
        _ => "hugepages-2048kB",
    }
}

fn read_number(path: &Path) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Parses the kernel's list format: `0-3,8`. An empty list is a list; anything else that is not one is
/// `None`.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn host(files: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    /// Two nodes; 2 MiB pages: 12 in all, 9 free, 2 of these promised; 1 GiB pages: none.
    fn two_nodes() -> TempDir {
        let (small, large) = ("hugepages-2048kB", "hugepages-1048576kB");
        let mut files = vec![
            ("proc/meminfo".to_owned(), "MemTotal: 1 kB\nHugepagesize:       2048 kB\n"),
            ("sys/devices/system/node/online".to_owned(), "0-1\n"),
        ];
        for (folder, name, value) in [
            (format!("sys/kernel/mm/hugepages/{small}"), "nr_hugepages", "12\n"),
            (format!("sys/kernel/mm/hugepages/{small}"), "free_hugepages", "9\n"),
            (format!("sys/kernel/mm/hugepages/{small}"), "resv_hugepages", "2\n"),
            (format!("sys/kernel/mm/hugepages/{large}"), "nr_hugepages", "0\n"),
            (format!("sys/kernel/mm/hugepages/{large}"), "free_hugepages", "0\n"),
            (format!("sys/kernel/mm/hugepages/{large}"), "resv_hugepages", "0\n"),
            (format!("sys/devices/system/node/node0/hugepages/{small}"), "nr_hugepages", "4\n"),
            (format!("sys/devices/system/node/node0/hugepages/{small}"), "free_hugepages", "1\n"),
            (format!("sys/devices/system/node/node1/hugepages/{small}"), "nr_hugepages", "8\n"),
            (format!("sys/devices/system/node/node1/hugepages/{small}"), "free_hugepages", "8\n"),
            (format!("sys/devices/system/node/node1/hugepages/{large}"), "nr_hugepages", "0\n"),
            (format!("sys/devices/system/node/node1/hugepages/{large}"), "free_hugepages", "0\n"),
        ] {
            files.push((format!("{folder}/{name}"), value));
        }
        host(&files.iter().map(|(path, text)| (path.as_str(), *text)).collect::<Vec<_>>())
    }

    #[test]
    fn a_pool_is_read_with_its_nodes() {
        let root = two_nodes();
        let pool = HugePages::read_under(root.path(), PageKind::Huge2M).unwrap();
        assert_eq!((pool.total, pool.free, pool.reserved, pool.is_default), (12, 9, 2, true));
        assert_eq!(
            pool.nodes,
            [NodePages { node: 0, total: 4, free: 1 }, NodePages { node: 1, total: 8, free: 8 }]
        );
        assert_eq!([None, Some(0), Some(1)].map(|node| pool.available(node)), [7, 1, 7]);
        assert_eq!([None, Some(0), Some(1)].map(|node| pool.missing(7, node)), [0, 6, 0]);
        assert_eq!(HugePages::read_under(root.path(), PageKind::Transparent), None);
        assert_eq!(HugePages::read_under(host(&[]).path(), PageKind::Huge2M), None);
    }

    #[test]
    fn advice_names_the_file_that_counts_and_the_new_total() {
        let root = two_nodes();
        let small = HugePages::read_under(root.path(), PageKind::Huge2M).unwrap();
        // 7 can be had, 10 are wanted: 3 more than the 12.
        assert!(small.advice(10, None).ends_with("7 free; type: sudo sysctl -w vm.nr_hugepages=15"));
        // Node 0 has 1 of its 4 free, 10 are wanted there: 9 more than the 4.
        assert!(small.advice(10, Some(0)).ends_with(
            "on node 0, 1 free; type: echo 13 | sudo tee \
             /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
        ));
        assert_eq!(small.command(10, None), "sudo sysctl -w vm.nr_hugepages=15");
        assert!(small.advice(7, None).contains("hugetlb.2MB.max"));
        let large = HugePages::read_under(root.path(), PageKind::Huge1G).unwrap();
        assert!(
            large.advice(2, None).contains(
                "type: echo 2 | sudo tee /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
            )
        );
        assert!(large.advice(2, None).contains("boot with hugepagesz=1G hugepages=2"));
    }

    #[test]
    fn the_switch_of_transparent_pages() {
        let common = "sys/kernel/mm/transparent_hugepage/enabled";
        let own = "sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled";
        let refusal = |files: &[(&str, &str)]| thp_refusal_under(host(files).path());
        assert_eq!(refusal(&[(common, "always [madvise] never\n")]), None);
        assert_eq!(refusal(&[(common, "[always] madvise never\n")]), None);
        let advice = refusal(&[(common, "always madvise [never]\n")]).unwrap().1.unwrap();
        assert_eq!(advice, format!("type: echo madvise | sudo tee /{common}"));
        // The switch of the size decides, unless it follows the common one.
        assert_eq!(refusal(&[(common, "[never]"), (own, "always inherit [madvise] never")]), None);
        assert!(refusal(&[(common, "[never]"), (own, "always [inherit] madvise never")]).is_some());
        let advice = refusal(&[(common, "[always]"), (own, "always inherit madvise [never]")]);
        assert_eq!(advice.unwrap().1.unwrap(), format!("type: echo madvise | sudo tee /{own}"));
        assert!(refusal(&[]).unwrap().0.contains("no transparent"));
        let size = "sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
        assert!(refusal(&[(common, "[always]"), (size, "33554432\n")]).unwrap().0.contains("32 MiB"));
    }

    #[test]
    fn lists() {
        assert_eq!(parse_list("0-1,4\n"), Some(vec![0, 1, 4]));
        assert_eq!(parse_list("\n"), Some(vec![]));
        assert_eq!(parse_list("x"), None);
        assert_eq!(parse_list("3-"), None);
    }

    #[test]
    fn pages_needed() {
        assert_eq!(needed_pages(1, PageKind::Huge2M), 1);
        assert_eq!(needed_pages(MIB2 + 1, PageKind::Huge2M), 2);
        assert_eq!(needed_pages(GIB1, PageKind::Huge1G), 1);
    }
}
