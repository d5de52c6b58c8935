//! The host: what it has, and how the server's threads are laid out on it.
//!
//! Theory of operation ------------------- [`cpus`], [`nic`] and [`ethtool`] read facts, from system calls
//! and sysfs; [`HostFacts`] is all of them at one moment. [`topology::plan`] turns settings and facts into a
//! [`topology::Topology`] and touches nothing, so that hosts with 96 cores are tested on one with two.
//! [`diagnose`] says which gate is closed when the kernel denies something. Only [`cpus::pin`] changes
//! anything, for the calling thread, and [`privileges`], for the process.
//!
//! Used once, at start, before any worker runs.

pub mod cpus;
pub mod diagnose;
pub mod ethtool;
pub mod nic;
pub mod privileges;
pub mod topology;

use std::collections::BTreeMap;
use std::path::Path;

use nic::Nic;

/// Where the kernel shows its devices.
pub(crate) const SYSFS: &str = "/sys";

/// What the host has, as far as the topology depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// CPUs that this process may run on (its affinity mask), ascending. Never empty.
    pub allowed: Vec<usize>,
    /// CPUs that are online, ascending, whether this process may use them or not.
    pub online: Vec<usize>,
    /// Number of CPUs' worth of time that the process gets: `allowed`, or fewer where a cgroup sets a quota.
    pub cpu_quota: usize,
    /// NUMA node of each CPU. Empty where the kernel does not tell (then there is one node).
    pub nodes: BTreeMap<usize, u32>,
    /// The interface that was asked for, if there is such.
    pub nic: Option<Nic>,
    /// Names of all interfaces, sorted.
    pub interfaces: Vec<String>,
}

/// Why the host's facts could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The affinity mask.
    #[error(
        "cannot read the CPU affinity mask (sched_getaffinity); \
         hosts with more than 1024 CPUs are not supported"
    )]
    Affinity,
    /// The interface.
    #[error(transparent)]
    Nic(#[from] nic::NicError),
}

impl HostFacts {
    /// The NUMA node of `cpu`; 0 where the kernel does not tell, as it is where there is only one.
    pub fn node_of(&self, cpu: usize) -> u32 {
        self.nodes.get(&cpu).copied().unwrap_or(0)
    }

    /// Whether `cpu` is on NUMA node `node`.
    pub fn is_on(&self, cpu: usize, node: u32) -> bool {
        self.node_of(cpu) == node
    }

    /// Reads the facts of this host, and of interface `iface` if one is named. That there is no such
    /// interface is a fact (`nic` is `None`), not an error.
    ///
    /// # Errors
    /// When the affinity mask, or an interface that exists, cannot be read.
    pub fn gather(iface: Option<&str>) -> Result<HostFacts, HostError> {
        let sysfs = Path::new(SYSFS);
        let allowed = cpus::affinity_mask().ok_or(HostError::Affinity)?;
        let nic = match iface {
            Some(name) => nic::probe(sysfs, name)?,
            None => None,
        };
        Ok(HostFacts {
            online: cpus::online(sysfs).unwrap_or_else(|| allowed.clone()),
            cpu_quota: std::thread::available_parallelism().map_or(allowed.len(), usize::from),
            nodes: cpus::numa_nodes(sysfs),
            nic,
            interfaces: nic::list(),
            allowed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_facts_that_agree_with_each_other() {
        let facts = HostFacts::gather(Some("lo")).unwrap();
        assert!(!facts.allowed.is_empty());
        assert!(facts.allowed.iter().all(|cpu| facts.online.contains(cpu)), "{facts:?}");
        assert!((1..=facts.allowed.len()).contains(&facts.cpu_quota), "{facts:?}");
        assert!(facts.interfaces.contains(&"lo".to_owned()));
        assert_eq!(facts.nic.unwrap().name, "lo");
        assert_eq!(HostFacts::gather(Some("no-such-iface")).unwrap().nic, None);
    }
}
