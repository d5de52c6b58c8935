//! Memory: huge pages needed by this topology against those there, and transparent ones.
//!
//! Three things are asked for on huge pages: each AF_XDP queue's packet memory, each worker's connections,
//! and the canvas. The need is counted as they ask for it when the server is full, in pages of 2 MiB, on the
//! NUMA nodes where they will be; pages of 1 GiB are counted on where there are any that fit.

use hugepages::{HugePages, PageKind, Pages, needed_pages};
use serde::Serialize;
use std::collections::BTreeMap;

use super::root::Root;
use super::row::{Remedy, Row, s};
use super::wanted::Wanted;
use crate::cli;
use crate::net::xdp::socket::{FRAME_SIZE, FRAMES_PER_QUEUE};
use crate::report::grouped;
use crate::worker::connection_memory;

/// The file that says whether the kernel makes transparent huge pages.
const TRANSPARENT: &str = "sys/kernel/mm/transparent_hugepage/enabled";

/// The kernel's pools and switches.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Pages of 2 MiB; `None` if the kernel has none of that size.
    pub small: Option<HugePages>,
    /// Pages of 1 GiB.
    pub large: Option<HugePages>,
    /// The text of the switch of transparent huge pages: `always [madvise] never`.
    pub transparent: Option<String>,
    /// Memory that processes can still have, in bytes.
    pub available: Option<u64>,
}

/// Huge pages of 2 MiB in numbers, for scripts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageNeed {
    /// Bytes in a page.
    pub page_bytes: usize,
    /// Pages that this configuration takes.
    pub needed: usize,
    /// Those that it can get now.
    pub free: usize,
    /// Those in the kernel's pool, used or not.
    pub total: usize,
    /// What the pool should have for all to be got: `vm.nr_hugepages`.
    pub nr_hugepages: usize,
}

/// Memory that is wanted on huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    what: &'static str,
    /// Regions of `len` bytes.
    count: usize,
    len: usize,
    node: Option<u32>,
    /// The ladder that it is asked for on.
    pages: Pages,
}

impl Facts {
    /// Reads the pools as they are now.
    pub fn gather(root: &Root) -> Self {
        Self {
            small: HugePages::read(PageKind::Huge2M),
            large: HugePages::read(PageKind::Huge1G),
            transparent: root.text(TRANSPARENT),
            available: root.field::<u64>("proc/meminfo", "MemAvailable").map(|kib| kib << 10),
        }
    }

    /// The checks.
    pub fn rows(&self, wanted: &Wanted<'_>) -> Vec<Row> {
        vec![self.huge_pages(wanted), self.transparent()]
    }

    /// The need in numbers; `None` if there are no such pages, or none are wanted.
    pub fn need(&self, wanted: &Wanted<'_>) -> Option<PageNeed> {
        let (pool, counts) =
            (self.small.as_ref()?, self.count(wanted, wanted.settings.max_connections_per_worker));
        let missing: usize = counts.iter().map(|(node, pages)| pool.missing(*pages, *node)).sum();
        Some(PageNeed {
            page_bytes: PageKind::Huge2M.size(),
            needed: counts.values().sum(),
            free: pool.available(None),
            total: pool.total,
            nr_hugepages: pool.total + missing,
        })
        .filter(|need| need.needed > 0)
    }

    fn huge_pages(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "huge pages";
        let settings = wanted.settings;
        if matches!(settings.huge_pages, cli::HugePages::Transparent | cli::HugePages::Plain) {
            return Row::ok(CHECK, "none asked for (--huge-pages)");
        }
        let Some(pool) = &self.small else {
            return Row::skip(CHECK, "this kernel has none of 2 MiB; transparent ones serve instead");
        };
        let limit = settings.max_connections_per_worker;
        let counts = self.count(wanted, limit);
        let needed: usize = counts.values().sum();
        let missing: usize = counts.iter().map(|(node, pages)| pool.missing(*pages, *node)).sum();
        let found = format!(
            "{} of 2 MiB free, {} needed: {}",
            grouped(pool.available(None) as u64),
            grouped(needed as u64),
            self.parts(wanted)
        );
        if missing == 0 {
            return Row::ok(CHECK, found);
        }
        let bytes = (missing * PageKind::Huge2M.size()) as u64;
        if self.available.is_some_and(|available| bytes > available) {
            return Row::warn(CHECK, format!("{found}; memory does not suffice for them"), self.less(wanted));
        }
        let short = counts.iter().filter(|(node, pages)| pool.missing(**pages, **node) > 0);
        let commands: Vec<_> = short.map(|(node, pages)| pool.command(*pages, *node)).collect();
        let remedy = match &commands[..] {
            [one] => Remedy::command(one).or(self.script(wanted, pool.total + missing)),
            several => Remedy::command(several.join(" && ")),
        };
        Row::warn(CHECK, found, remedy)
    }

    /// The script that makes the pool one of `pages`. It asks the doctor how many, of whom it knows only
    /// interface and queues: where other settings count too, it is told.
    fn script(&self, wanted: &Wanted<'_>, pages: usize) -> String {
        let iface = wanted.settings.iface.clone();
        let (queues, flags) =
            (wanted.workers(), iface.iter().map(|iface| format!("--iface {iface} ")).collect::<String>());
        let workers = u16::try_from(queues).ok();
        let asked = cli::Settings { iface, workers, ..cli::Settings::default() };
        match self.need(&Wanted::new(&asked, wanted.host)) {
            Some(need) if need.nr_hugepages == pages => {
                format!("sudo scripts/hugepages.sh {flags}--queues {queues}")
            }
            _ => format!("sudo scripts/hugepages.sh --pages {pages}"),
        }
    }

    /// Flags with which the pages that are there suffice.
    fn less(&self, wanted: &Wanted<'_>) -> Remedy {
        let fits = |limit: &u32| {
            let pool = self.small.as_ref();
            let mut counts = self.count(wanted, *limit).into_iter();
            pool.is_some_and(|pool| counts.all(|(node, pages)| pool.missing(pages, node) == 0))
        };
        let limits = std::iter::successors(Some(wanted.settings.max_connections_per_worker), |n| Some(n / 2));
        match limits.take_while(|limit| *limit > 0).find(fits) {
            Some(limit) => Remedy::flags(format!("--max-connections-per-worker {limit}")),
            None => Remedy::flags("--huge-pages thp"),
        }
    }

    /// Pages of 2 MiB that are needed on each node, with tables of `limit` connections.
    fn count(&self, wanted: &Wanted<'_>, limit: u32) -> BTreeMap<Option<u32>, usize> {
        let mut large = self.large.as_ref().map_or(0, |pool| pool.available(None));
        let nodes = self.small.as_ref().map_or(0, |pool| pool.nodes.len());
        let mut counts = BTreeMap::new();
        for item in items(wanted, limit) {
            let in_large = item.count * needed_pages(item.len, PageKind::Huge1G);
            if item.pages.tries(PageKind::Huge1G, item.len) && in_large <= large {
                large -= in_large;
            } else if item.pages.tries(PageKind::Huge2M, item.len) {
                // With one node, which one needs no saying.
                let node = item.node.filter(|_| nodes > 1);
                *counts.entry(node).or_insert(0) += item.count * needed_pages(item.len, PageKind::Huge2M);
            }
        }
        counts
    }

    /// What needs how much, in words.
    fn parts(&self, wanted: &Wanted<'_>) -> String {
        let mut sums: Vec<(&str, usize)> = Vec::new();
        for item in items(wanted, wanted.settings.max_connections_per_worker) {
            let bytes = item.count * item.len;
            match sums.iter_mut().find(|(what, _)| *what == item.what) {
                Some((_, sum)) => *sum += bytes,
                None => sums.push((item.what, bytes)),
            }
        }
        let workers = wanted.workers();
        let connections = wanted.settings.max_connections_per_worker;
        let part =
            |(what, bytes): (&str, usize)| format!("{} MiB {what}", grouped(bytes.div_ceil(1 << 20) as u64));
        let parts: Vec<_> = sums.into_iter().map(part).collect();
        let tables = format!("{workers} worker{} of {} connections", s(workers), grouped(connections.into()));
        format!("{} ({tables})", parts.join(", "))
    }

    fn transparent(&self) -> Row {
        const CHECK: &str = "transparent huge pages";
        match &self.transparent {
            None => Row::skip(CHECK, "this kernel has none"),
            Some(text) if text.contains("[never]") => Row::warn(
                CHECK,
                "never: QUIC's state, some 30 KB a connection, is on small pages",
                Remedy::command(format!("echo madvise | sudo tee /{TRANSPARENT}"))
                    .or("sudo scripts/tune_server.sh apply --only thp"),
            ),
            Some(text) => {
                let chosen = text.split(['[', ']']).nth(1).unwrap_or(text);
                Row::ok(CHECK, chosen)
            }
        }
    }
}

/// All that is wanted on huge pages, with tables of `limit` connections.
fn items(wanted: &Wanted<'_>, limit: u32) -> Vec<Item> {
    let settings = wanted.settings;
    let pages = crate::server::pages(settings);
    let mut items = Vec::new();
    for worker in &wanted.topology.workers {
        let node = worker.node;
        if wanted.uses_xdp() {
            // Of the kernel's default size, whatever was asked for.
            let len = FRAMES_PER_QUEUE as usize * FRAME_SIZE as usize;
            let pages = Pages::AtMost(PageKind::Huge2M);
            items.push(Item { what: "packet memory", count: 1, len, node, pages });
        }
        let (count, len) = connection_memory(limit, pages);
        items.push(Item { what: "connections", count, len, node, pages });
    }
    let node = wanted.topology.workers.first().and_then(|worker| worker.node);
    if let Ok(geometry) = canvas::Geometry::new(settings.width.into(), settings.height.into()) {
        let len = canvas::tiles::bytes_needed(geometry);
        items.push(Item { what: "canvas", count: 1, len, node, pages });
    }
    items
}

#[cfg(test)]
mod tests {
    use super::super::row::Status::{Ok as Good, Skip, Warn};
    use super::super::tests::{host, settings, typed};
    use super::*;
    use hugepages::NodePages;

    fn pool(kind: PageKind, total: usize, free: usize) -> HugePages {
        let nodes = vec![NodePages { node: 0, total, free }];
        HugePages { kind, total, free, reserved: 0, is_default: kind == PageKind::Huge2M, nodes }
    }

    fn facts(total: usize, free: usize) -> Facts {
        Facts {
            small: Some(pool(PageKind::Huge2M, total, free)),
            large: Some(pool(PageKind::Huge1G, 0, 0)),
            transparent: Some("always [madvise] never".into()),
            available: Some(1 << 40),
        }
    }

    fn rows(facts: &Facts, flags: &str) -> Vec<Row> {
        let (settings, host) = (settings(flags), host());
        facts.rows(&Wanted::new(&settings, &host))
    }

    fn need(facts: &Facts, flags: &str) -> Option<PageNeed> {
        let (settings, host) = (settings(flags), host());
        facts.need(&Wanted::new(&settings, &host))
    }

    /// Tables of a few connections take a page of 2 MiB each, at most; so does a small canvas.
    const SMALL: &str = "--max-connections-per-worker 64 --width 1000 --height 1000";

    #[test]
    fn the_need_is_that_of_queues_tables_and_canvas() {
        let without = need(&facts(0, 0), &format!("--queues 2 {SMALL}")).unwrap();
        let with = need(&facts(0, 0), &format!("--iface eth0 --queues 2 {SMALL}")).unwrap();
        assert_eq!(with.needed, without.needed + 2 * 8, "16 MiB of packet memory a queue");
        let wider = need(&facts(0, 0), "--queues 2 --max-connections-per-worker 65536").unwrap();
        let (count, len) = connection_memory(65_536, Pages::Auto);
        let (small_count, small_len) = connection_memory(64, Pages::Auto);
        let difference = 2 * (count * (len >> 21) - small_count * small_len.div_ceil(2 << 20));
        assert_eq!(wider.needed, without.needed + difference);
    }

    #[test]
    fn a_pool_that_is_too_small_is_made_larger_by_what_is_missing() {
        let flags = format!("--iface eth0 --queues 2 {SMALL}");
        let needed = need(&facts(0, 0), &flags).unwrap().needed;
        let facts = facts(30, 10);
        let row = rows(&facts, &flags).remove(0);
        let total = 30 + needed - 10;
        assert_eq!(
            (row.status, typed(&row)),
            (Warn, format!("sudo sysctl -w vm.nr_hugepages={total}").as_str())
        );
        assert_eq!(need(&facts, &flags).unwrap().nr_hugepages, total);
        let also = |flags: &str| rows(&facts, flags).remove(0).remedy.unwrap().also.unwrap();
        assert_eq!(also(&flags), format!("sudo scripts/hugepages.sh --pages {total}"));
        assert_eq!(also("--iface eth0 --queues 2"), "sudo scripts/hugepages.sh --iface eth0 --queues 2");
        let enough = rows(&super::tests::facts(total, needed), &flags).remove(0);
        assert_eq!((enough.status, enough.remedy), (Good, None));
    }

    #[test]
    fn each_node_gets_its_own_command() {
        let (settings, mut host) = (settings(&format!("--queues 3 --cpus 0-3 {SMALL}")), host());
        host.nodes = [(0, 0), (1, 0), (2, 1), (3, 1)].into();
        let mut facts = facts(0, 0);
        facts.small.as_mut().unwrap().nodes.push(NodePages { node: 1, total: 0, free: 0 });
        let row = facts.rows(&Wanted::new(&settings, &host)).remove(0);
        let commands: Vec<_> = typed(&row).split(" && ").collect();
        assert_eq!(commands.len(), 2, "{row:?}");
        assert!(commands[0].contains("/node0/") && commands[1].contains("/node1/"), "{row:?}");
    }

    #[test]
    fn what_memory_cannot_hold_is_not_advised() {
        let facts = Facts { available: Some(10 << 20), ..facts(20, 20) };
        let row = rows(&facts, "--queues 2").remove(0);
        let flags = typed(&row).to_owned();
        assert!(flags.starts_with("--max-connections-per-worker "), "{row:?}");
        assert_eq!(rows(&facts, &format!("--queues 2 {flags}"))[0].status, Good, "{flags}");
        let none = Facts { available: Some(0), ..super::tests::facts(0, 0) };
        let row = rows(&none, "").remove(0);
        assert_eq!(typed(&row), "--huge-pages thp");
        assert_eq!(rows(&none, "--huge-pages thp")[0].status, Good);
    }

    #[test]
    fn pages_of_a_gigabyte_serve_where_they_are() {
        let canvas = "--queues 1 --max-connections-per-worker 64 --width 65535 --height 65535";
        let without = need(&facts(0, 0), canvas).unwrap().needed;
        let with = Facts { large: Some(pool(PageKind::Huge1G, 64, 64)), ..facts(0, 0) };
        assert!(need(&with, canvas).unwrap().needed + 512 < without);
    }

    #[test]
    fn switches_and_absences_are_told_apart() {
        let mut facts = facts(0, 0);
        facts.small = None;
        let [huge, transparent] = rows(&facts, "").try_into().unwrap();
        assert_eq!((huge.status, transparent.status, transparent.found.as_str()), (Skip, Good, "madvise"));
        facts.transparent = Some("always madvise [never]".into());
        let row = rows(&facts, "").remove(1);
        assert_eq!(typed(&row), "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
        facts.transparent = None;
        assert_eq!(rows(&facts, "").remove(1).status, Skip);
    }
}
