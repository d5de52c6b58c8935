//! The topology: which thread runs on which CPU, which worker serves which queue, and whether idle threads
//! spin.
//!
//! [`plan`] is a pure function of settings and facts. Its result is data: it is printed as a table at start,
//! and the threads are then made from it, each pinned to its CPU.
//!
//! All threads, and so their memory, are on one NUMA node if there is one to prefer: that of `--numa-node`,
//! which is obeyed to the letter, or else the interface's, whose CPUs are all that is planned for unless
//! `--queues` asks for more; then the other nodes' follow, with a note. `--cpus` overrules the interface's
//! node. Without any of these the threads are on all nodes, each with its memory on its own.
//!
//! CPUs are given out in order: the master takes the first, worker *i* the *i*-th after it. With fewer CPUs
//! than threads the master becomes a stage of worker 0, since two threads that spin on one CPU take turns of
//! milliseconds each. With fewer CPUs than workers, workers share in round robin, and nobody spins.

#[cfg(test)]
mod tests;

use super::HostFacts;
use super::cpus::format_list;
use super::nic::Nic;
use crate::cli::{Backend, MAX_WORKERS, PollMode, Settings};
use std::collections::BTreeMap;

/// Where the threads go. See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The canvas master.
    pub master: MasterPlacement,
    /// The workers, by index; at least one.
    pub workers: Vec<WorkerPlacement>,
    /// What all threads do when idle.
    pub poll: Poll,
    /// What a human should know about the choices: one sentence each.
    pub notes: Vec<String>,
    /// And this, if AF_XDP is what serves in the end: receive queues have no worker.
    pub unserved_queues: Option<String>,
}

/// Where the master runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MasterPlacement {
    /// In a thread of its own, pinned to this CPU.
    OwnCore(usize),
    /// As a stage of worker 0's turn.
    StageOfWorker0,
}

/// Where one worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerPlacement {
    /// The worker's index, byte 0 of its connection IDs.
    pub index: u8,
    /// The NIC queue that it serves if AF_XDP is used; `None` if it cannot be.
    pub queue: Option<u32>,
    /// The CPU that it is pinned to.
    pub cpu: usize,
    /// NUMA node of that CPU, where its memory belongs; `None` if the host does not tell.
    pub node: Option<u32>,
}

/// What an idle thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Looks again at once.
    Busy,
    /// Sleeps until there is something to do.
    Adaptive,
}

/// The settings do not fit the host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// `--cpus` names CPUs that the process may not use.
    #[error(
        "--cpus names CPU {outside}, which this process may not use; its affinity mask is {mask}: \
         choose from those, or widen the mask (`taskset`, a cgroup's cpuset)"
    )]
    CpusOutsideMask {
        /// The CPUs, as a list.
        outside: String,
        /// The mask, as a list.
        mask: String,
    },
    /// `--numa-node` names a node without a CPU for us.
    #[error("--numa-node {node}: this process may use no CPU there; the nodes that it may use are: {there}")]
    NoSuchNode {
        /// The node given.
        node: u32,
        /// The nodes that there are, with their CPUs.
        there: String,
    },
    /// `--cpus` and `--numa-node` contradict each other.
    #[error(
        "--cpus names CPU {outside}, which is not on NUMA node {node} of --numa-node: leave one of the two \
         out"
    )]
    CpusOutsideNode {
        /// The CPUs, as a list.
        outside: String,
        /// The node given.
        node: u32,
    },
    /// There is no such interface.
    #[error("there is no interface {iface}; there are: {there}")]
    NoSuchInterface {
        /// The name given.
        iface: String,
        /// Names that there are.
        there: String,
    },
    /// The interface is down.
    #[error("interface {0} is down; bring it up with `ip link set {0} up`")]
    InterfaceDown(String),
    /// The interface has fewer queues than workers are wanted.
    #[error(
        "--queues {wanted}, but {iface} has {has}: give --queues {has}, or more queues with \
         `ethtool -L {iface} combined {wanted}` (where the driver has them apart: `rx {wanted} tx {wanted}`)"
    )]
    TooFewQueues {
        /// The interface.
        iface: String,
        /// Queues asked for.
        wanted: usize,
        /// Queues there are.
        has: usize,
    },
}

/// Lays out the threads.
///
/// # Errors
/// [`PlanError`]: the settings do not fit the host.
pub fn plan(settings: &Settings, facts: &HostFacts) -> Result<Topology, PlanError> {
    let nic = usable_nic(settings, facts)?;
    let cpus = usable_cpus(settings, facts, nic)?;
    let mut notes = Vec::new();
    let count = worker_count(settings, facts, nic, &cpus, &mut notes)?;
    let cpus = match settings.workers {
        Some(_) => cpus.for_threads(count + 1),
        None => cpus.near,
    };

    let (master, first) = match cpus.len() > count {
        true => (MasterPlacement::OwnCore(cpus[0]), 1),
        false => (MasterPlacement::StageOfWorker0, 0),
    };
    let workers: Vec<WorkerPlacement> = cpus[first..]
        .iter()
        .cycle()
        .zip(0..=u8::MAX)
        .take(count)
        .map(|(&cpu, index)| WorkerPlacement {
            index,
            queue: nic.map(|_| index.into()),
            cpu,
            node: facts.nodes.get(&cpu).copied(),
        })
        .collect();

    if count > cpus.len() {
        notes.push(format!("{count} workers share {} CPU{}, in turn", cpus.len(), plural(cpus.len())));
    }
    if master == MasterPlacement::StageOfWorker0 {
        notes.push(format!(
            "the master has no core of its own ({count} worker{} on CPU {}): it runs as a stage of worker 0",
            plural(count),
            format_list(&cpus)
        ));
    }
    if let Some((nic, node)) = nic.and_then(|nic| Some((nic, nic.numa_node?))) {
        let far = workers.iter().filter(|worker| worker.node.is_some_and(|own| own != node)).count();
        if far > 0 {
            let near = facts.allowed.iter().filter(|cpu| facts.is_on(**cpu, node)).count();
            notes.push(format!(
                "{far} worker{} not on the NUMA node of {}, {node}, of which this process may use {near} \
                 CPU{}: each of their packets crosses from node to node",
                plural(far),
                nic.name,
                plural(near)
            ));
        }
    }
    let threads = count + usize::from(master != MasterPlacement::StageOfWorker0);
    let poll = poll(settings.poll, facts, &cpus, count, threads, &mut notes);
    let unserved_queues = nic.filter(|nic| count < nic.rx_queues as usize).map(|nic| {
        format!(
            "{0} has {1} receive queues, {count} with a worker: packets of the others take the \
             kernel's slower way; `ethtool -L {0} combined {count}` spreads them over those served",
            nic.name, nic.rx_queues
        )
    });
    Ok(Topology { master, workers, poll, notes, unserved_queues })
}

/// The interface to serve the queues of: none when sockets were asked for by name.
fn usable_nic<'a>(settings: &Settings, facts: &'a HostFacts) -> Result<Option<&'a Nic>, PlanError> {
    let Some(iface) = &settings.iface else { return Ok(None) };
    match &facts.nic {
        None => Err(PlanError::NoSuchInterface { iface: iface.clone(), there: facts.interfaces.join(", ") }),
        Some(nic) if !nic.up => Err(PlanError::InterfaceDown(iface.clone())),
        Some(nic) => Ok((settings.backend != Backend::Socket).then_some(nic)),
    }
}

/// CPUs to give out, in order.
struct Cpus {
    /// Those to plan for; never empty.
    near: Vec<usize>,
    /// Those of other nodes, to take when the near ones are too few for what was asked for.
    far: Vec<usize>,
}

impl Cpus {
    /// The near ones; if there are fewer than `threads`, the far ones too.
    fn for_threads(self, threads: usize) -> Vec<usize> {
        let Self { mut near, far } = self;
        if near.len() < threads {
            near.extend(far);
        }
        near
    }
}

fn usable_cpus(settings: &Settings, facts: &HostFacts, nic: Option<&Nic>) -> Result<Cpus, PlanError> {
    let cpus = settings.cpus.as_ref().unwrap_or(&facts.allowed);
    let outside: Vec<usize> = cpus.iter().copied().filter(|cpu| !facts.allowed.contains(cpu)).collect();
    if !outside.is_empty() {
        let (outside, mask) = (format_list(&outside), format_list(&facts.allowed));
        return Err(PlanError::CpusOutsideMask { outside, mask });
    }
    let chosen = settings.numa_node;
    let near_nic = nic.and_then(|nic| nic.numa_node).filter(|_| settings.cpus.is_none());
    let Some(node) = chosen.or(near_nic) else { return Ok(Cpus { near: cpus.clone(), far: Vec::new() }) };
    let (near, far): (Vec<usize>, Vec<usize>) = cpus.iter().partition(|cpu| facts.is_on(**cpu, node));
    match chosen {
        Some(node) if !facts.allowed.iter().any(|cpu| facts.is_on(*cpu, node)) => {
            Err(PlanError::NoSuchNode { node, there: nodes(facts) })
        }
        Some(node) if settings.cpus.is_some() && !far.is_empty() => {
            Err(PlanError::CpusOutsideNode { outside: format_list(&far), node })
        }
        Some(_) => Ok(Cpus { near, far: Vec::new() }),
        // The affinity mask leaves none of the interface's node.
        None if near.is_empty() => Ok(Cpus { near: far, far: near }),
        None => Ok(Cpus { near, far }),
    }
}

/// The nodes whose CPUs this process may use, such as `0 (CPUs 0-3), 1 (CPUs 4-7)`.
fn nodes(facts: &HostFacts) -> String {
    let mut nodes = BTreeMap::<u32, Vec<usize>>::new();
    for cpu in &facts.allowed {
        nodes.entry(facts.node_of(*cpu)).or_default().push(*cpu);
    }
    let describe = |(node, cpus): (&u32, &Vec<usize>)| format!("{node} (CPUs {})", format_list(cpus));
    nodes.iter().map(describe).collect::<Vec<_>>().join(", ")
}

/// How many workers: as told, or as many as queues and cores allow.
fn worker_count(
    settings: &Settings,
    facts: &HostFacts,
    nic: Option<&Nic>,
    cpus: &Cpus,
    notes: &mut Vec<String>,
) -> Result<usize, PlanError> {
    let queues = nic.map(|nic| (nic, nic.queues() as usize));
    let count = match settings.workers {
        Some(count) => usize::from(count),
        None => {
            let (cpus, quota) = (cpus.near.len(), facts.cpu_quota.max(1));
            if quota < cpus {
                notes.push(format!(
                    "a cgroup's quota allows {quota} of {cpus} CPUs' time: planned for {quota}"
                ));
            }
            let spare_one = cpus.min(quota).saturating_sub(1).clamp(1, MAX_WORKERS.into());
            queues.map_or(spare_one, |(_, queues)| spare_one.min(queues.max(1)))
        }
    };
    match queues {
        Some((nic, has)) if count > has => {
            Err(PlanError::TooFewQueues { iface: nic.name.clone(), wanted: count, has })
        }
        _ => Ok(count),
    }
}

/// What idle threads do: as told, or spinning where that takes nothing from anybody.
fn poll(
    asked: PollMode,
    facts: &HostFacts,
    cpus: &[usize],
    workers: usize,
    threads: usize,
    notes: &mut Vec<String>,
) -> Poll {
    let used = &cpus[..threads.min(cpus.len())];
    let against = if workers > cpus.len() {
        Some("workers share CPUs".to_owned())
    } else if facts.online.iter().all(|cpu| used.contains(cpu)) {
        Some("no CPU would be left for the kernel and the rest of the host".to_owned())
    } else if facts.cpu_quota < threads {
        Some(format!("{threads} threads get {} CPU{}' time", facts.cpu_quota, plural(facts.cpu_quota)))
    } else {
        None
    };
    match (asked, against) {
        (PollMode::Auto | PollMode::Busy, None) => Poll::Busy,
        (PollMode::Auto, Some(reason)) => {
            notes.push(format!("polling is adaptive: {reason}"));
            Poll::Adaptive
        }
        (PollMode::Busy, Some(reason)) => {
            notes.push(format!("--poll busy as told, although {reason}: expect stalls"));
            Poll::Busy
        }
        (PollMode::Adaptive, _) => Poll::Adaptive,
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
