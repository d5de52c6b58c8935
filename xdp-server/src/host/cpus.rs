//! CPUs: lists of them, which ones this process may use, their NUMA nodes, and pinning.
//!
//! A CPU is named by the kernel's number, a `usize`. Lists are in the kernel's notation, `0,2-5,8`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use core_affinity::CoreId;

/// CPUs that the kernel's interface to affinity masks, as the C library declares it (`cpu_set_t`), can name.
/// Also bounds the memory that a mistyped list takes.
const MAX_CPUS: usize = 1024;

/// A list of CPUs that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    /// Not a number, or not a range.
    #[error("'{0}' is no CPU number or range; write a list such as 0,2-5,8")]
    Syntax(String),
    /// The range runs backwards.
    #[error("the range '{0}' ends before it begins; write a list such as 0,2-5,8")]
    Backwards(String),
    /// A number that no affinity mask can hold.
    #[error("there is no CPU {0}: the highest number is {max}", max = MAX_CPUS - 1)]
    TooHigh(usize),
    /// A CPU is listed twice.
    #[error("CPU {0} is listed twice")]
    Repeated(usize),
}

/// Parses a list such as `0,2-5,8`. The order is kept; it is the order in which CPUs are given out.
///
/// # Errors
/// On an empty list, bad syntax, repeats, and numbers above 1023.
pub fn parse_list(text: &str) -> Result<Vec<usize>, CpuListError> {
    let mut cpus = Vec::new();
    for item in text.split(',') {
        let item = item.trim();
        let number = |digits: &str| match digits.parse::<usize>() {
            Ok(cpu) if cpu < MAX_CPUS => Ok(cpu),
            Ok(cpu) => Err(CpuListError::TooHigh(cpu)),
            Err(_) => Err(CpuListError::Syntax(item.to_owned())),
        };
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (number(first)?, number(last)?);
        if last < first {
            return Err(CpuListError::Backwards(item.to_owned()));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(CpuListError::Repeated(cpu));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

/// Writes CPUs in the notation that [`parse_list`] reads, runs of three and more as ranges.
pub fn format_list(cpus: &[usize]) -> String {
    let mut items = Vec::new();
    let mut rest = cpus;
    while let [first, ..] = rest {
        let run = rest.iter().zip(*first..).take_while(|(cpu, expected)| *cpu == expected).count();
        match run {
            1 | 2 => items.extend(rest[..run].iter().map(usize::to_string)),
            _ => items.push(format!("{first}-{}", rest[run - 1])),
        }
        rest = &rest[run..];
    }
    items.join(",")
}

/// CPUs that this process may run on, ascending; `None` if the kernel does not say.
pub fn affinity_mask() -> Option<Vec<usize>> {
    let cores = core_affinity::get_core_ids()?;
    (!cores.is_empty()).then(|| cores.into_iter().map(|core| core.id).collect())
}

/// CPUs that are online, from `sysfs`; `None` where it does not tell.
pub fn online(sysfs: &Path) -> Option<Vec<usize>> {
    let list = fs::read_to_string(sysfs.join("devices/system/cpu/online")).ok()?;
    parse_list(list.trim()).ok()
}

/// NUMA node of each CPU, from `sysfs`. Empty where it does not tell: a kernel without NUMA.
pub fn numa_nodes(sysfs: &Path) -> BTreeMap<usize, u32> {
    let mut nodes = BTreeMap::new();
    let Ok(entries) = fs::read_dir(sysfs.join("devices/system/node")) else { return nodes };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(node) = name.to_str().and_then(|name| name.strip_prefix("node")?.parse().ok()) else {
            continue;
        };
        // A node of memory only has an empty list, which does not parse: it has no CPUs to note.
        let list = fs::read_to_string(entry.path().join("cpulist")).unwrap_or_default();
        for cpu in parse_list(list.trim()).unwrap_or_default() {
            nodes.insert(cpu, node);
        }
    }
    nodes
}

/// The kernel refused to pin a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot pin a thread to CPU {0}: it is offline, or outside of the process's affinity mask; \
     `taskset -p $$` shows the mask, --cpus chooses from it"
)]
pub struct PinError(pub usize);

/// Pins the calling thread to `cpu`.
///
/// # Errors
/// When the kernel refuses: the CPU went offline, or a cpuset was narrowed after the plan was made.
pub fn pin(cpu: usize) -> Result<(), PinError> {
    match cpu < MAX_CPUS && core_affinity::set_for_current(CoreId { id: cpu }) {
        true => Ok(()),
        false => Err(PinError(cpu)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_their_order() {
        assert_eq!(parse_list("0,2-5,8"), Ok(vec![0, 2, 3, 4, 5, 8]));
        assert_eq!(parse_list("8, 0-1"), Ok(vec![8, 0, 1]));
        assert_eq!(parse_list("7-7"), Ok(vec![7]));
        assert_eq!(parse_list("1023"), Ok(vec![1023]));
    }

    #[test]
    fn bad_lists_are_refused() {
        for text in ["", ",", "1,", "a", "-1", "1-", "1-2-3", "1.5", "0x1"] {
            assert!(matches!(parse_list(text), Err(CpuListError::Syntax(_))), "{text}");
        }
        assert_eq!(parse_list("5-2"), Err(CpuListError::Backwards("5-2".into())));
        assert_eq!(parse_list("1,0-3"), Err(CpuListError::Repeated(1)));
        assert_eq!(parse_list("0-1024"), Err(CpuListError::TooHigh(1024)));
    }

    #[test]
    fn formatting_is_what_parsing_reads() {
        for (cpus, text) in [
            (&[][..], ""),
            (&[3], "3"),
            (&[0, 1], "0,1"),
            (&[0, 1, 2], "0-2"),
            (&[4, 0, 1, 2, 9], "4,0-2,9"),
            (&[5, 4, 3], "5,4,3"),
        ] {
            assert_eq!(format_list(cpus), text);
            assert!(cpus.is_empty() || parse_list(text).as_deref() == Ok(cpus));
        }
    }

    #[test]
    fn nodes_come_from_sysfs() {
        let sysfs = tempfile::tempdir().unwrap();
        assert!(numa_nodes(sysfs.path()).is_empty());
        assert_eq!(online(sysfs.path()), None);
        let node = |name: &str, list: &str| {
            let dir = sysfs.path().join("devices/system/node").join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cpulist"), list).unwrap();
        };
        node("node0", "0-1,4\n");
        node("node1", "2-3\n");
        node("node2", "\n"); // memory only
        node("power", "9\n"); // no node at all
        let nodes = numa_nodes(sysfs.path());
        assert_eq!(nodes.into_iter().collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 0)]);
    }

    #[test]
    fn a_thread_is_pinned_or_told_why_not() {
        // In a thread of its own: the mask of the test runner's thread stays as it is.
        std::thread::spawn(|| {
            let cpu = *affinity_mask().unwrap().last().unwrap();
            pin(cpu).unwrap();
            assert_eq!(affinity_mask(), Some(vec![cpu]));
            assert_eq!(pin(1023), Err(PinError(1023)));
            assert_eq!(pin(100_000), Err(PinError(100_000)));
        })
        .join()
        .unwrap();
    }
}
