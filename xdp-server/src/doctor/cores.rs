//! Cores: which ones the threads get, how far they are from the NIC, and whether they run at full speed.

use super::root::Root;
use super::row::{Remedy, Row, s};
use super::wanted::Wanted;
use crate::host::cpus::format_list;
use crate::host::topology::{MasterPlacement, PlanError, Poll};

/// Where the kernel shows its CPUs.
const CPUS: &str = "sys/devices/system/cpu";

/// The clock governor of each CPU that has one, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// CPU, and the name of its governor.
    pub governors: Vec<(usize, String)>,
}

impl Facts {
    /// Reads sysfs.
    pub fn gather(root: &Root) -> Self {
        let governor = |name: &String| {
            let cpu = name.strip_prefix("cpu")?.parse().ok()?;
            Some((cpu, root.text(format!("{CPUS}/{name}/cpufreq/scaling_governor"))?))
        };
        Self { governors: root.names(CPUS).iter().filter_map(governor).collect() }
    }

    /// The checks.
    pub fn rows(&self, wanted: &Wanted<'_>) -> Vec<Row> {
        let mut rows = vec![threads(wanted)];
        if wanted.uses_xdp() {
            rows.push(numa(wanted));
        }
        rows.push(self.governor(wanted));
        rows
    }

    fn governor(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "governor";
        let used = wanted.cpus();
        let ours = || self.governors.iter().filter(|(cpu, _)| used.contains(cpu));
        if ours().next().is_none() {
            return Row::ok(CHECK, "none here: the host's firmware or hypervisor sets the clock");
        }
        let slow: Vec<usize> =
            ours().filter(|(_, name)| name != "performance").map(|(cpu, _)| *cpu).collect();
        if slow.is_empty() {
            return Row::ok(CHECK, "performance");
        }
        let name = ours().find(|(cpu, _)| *cpu == slow[0]).map_or("", |(_, name)| name);
        let found = format!("{name} on CPU {}: the clock is slow when load comes", format_list(&slow));
        let command = format!("echo performance | sudo tee /{CPUS}/cpu*/cpufreq/scaling_governor");
        Row::warn(
            CHECK,
            found,
            Remedy::command(command).or("sudo scripts/tune_server.sh apply --only governor"),
        )
    }
}

/// Where the threads run.
fn threads(wanted: &Wanted<'_>) -> Row {
    const CHECK: &str = "cores";
    if let Some(PlanError::CpusOutsideMask { outside, mask }) = &wanted.misfit {
        let found = format!("--cpus names {outside}, which this process may not use: {mask} it may");
        return Row::fail(CHECK, found, Remedy::flags(format!("--cpus {mask}")));
    }
    let workers = wanted.workers();
    let master = match wanted.topology.master {
        MasterPlacement::OwnCore(cpu) => format!("master on CPU {cpu}"),
        MasterPlacement::StageOfWorker0 => "master with worker 0".into(),
    };
    let poll = if wanted.topology.poll == Poll::Busy { "busy" } else { "adaptive" };
    let cpus = wanted.worker_cpus();
    let found = format!(
        "{workers} worker{} on CPU{} {}, {master}, {poll} polling",
        s(workers),
        s(cpus.len()),
        format_list(&cpus)
    );
    if workers > cpus.len() {
        let found = format!("{found}: workers take turns");
        return Row::warn(CHECK, found, Remedy::flags(format!("--queues {}", cpus.len())));
    }
    Row::ok(CHECK, found)
}

/// How far the workers are from the NIC.
fn numa(wanted: &Wanted<'_>) -> Row {
    const CHECK: &str = "NUMA node";
    let host = wanted.host;
    let mut nodes: Vec<u32> = host.nodes.values().copied().collect();
    nodes.sort_unstable();
    nodes.dedup();
    if nodes.len() <= 1 {
        return Row::ok(CHECK, "the host has one");
    }
    let Some(near) = host.nic.as_ref().and_then(|nic| nic.numa_node) else {
        return Row::skip(CHECK, "the interface belongs to none");
    };
    let far = wanted.topology.workers.iter().filter(|worker| worker.node != Some(near)).count();
    if far == 0 {
        return Row::ok(CHECK, format!("{near}, of the interface and of all workers"));
    }
    let found = format!("the interface is on node {near}, {far} of {} workers are not", wanted.workers());
    let there: Vec<usize> =
        host.allowed.iter().copied().filter(|cpu| host.nodes.get(cpu) == Some(&near)).collect();
    let remedy = match there.len() {
        0 => Remedy::command(format!("taskset -acp {} $$", format_list(&of_node(wanted, near)))),
        cores if cores >= wanted.workers() => Remedy::flags(format!("--cpus {}", format_list(&there))),
        cores => {
            let list = format_list(&there);
            Remedy::flags(format!("--cpus {list} --queues {}", cores.saturating_sub(1).max(1)))
        }
    };
    Row::warn(CHECK, found, remedy)
}

fn of_node(wanted: &Wanted<'_>, node: u32) -> Vec<usize> {
    let all = wanted.host.nodes.iter();
    all.filter(|(_, own)| **own == node).map(|(cpu, _)| *cpu).collect()
}

#[cfg(test)]
mod tests {
    use super::super::root::fixture;
    use super::super::row::Status::{Fail, Ok as Good, Skip, Warn};
    use super::super::tests::{host, settings, typed};
    use super::*;
    use crate::host::HostFacts;

    fn row(facts: &Facts, flags: &str, host: &HostFacts, check: &str) -> Row {
        let settings = settings(flags);
        let rows = facts.rows(&Wanted::new(&settings, host));
        rows.into_iter().find(|row| row.check == check).unwrap()
    }

    #[test]
    fn governors_are_those_of_the_cores_in_use() {
        let (_directory, root) = fixture(&[
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/cpuidle/current_driver", "none\n"),
            ("sys/devices/system/cpu/cpu2/topology/core_id", "2\n"),
        ]);
        let facts = Facts::gather(&root);
        assert_eq!(facts.governors, [(0, "performance".into()), (1, "powersave".into())]);
        let slow = row(&facts, "--cpus 0,1 -w 1", &host(), "governor");
        assert_eq!(slow.status, Warn);
        assert_eq!(
            typed(&slow),
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        );
        assert!(slow.found.starts_with("powersave on CPU 1:"), "{slow:?}");
        assert_eq!(row(&facts, "--cpus 0,2 -w 1", &host(), "governor").status, Good);
        let virtual_machine = row(&Facts::default(), "", &host(), "governor");
        assert!(virtual_machine.status == Good && virtual_machine.found.starts_with("none here"));
    }

    #[test]
    fn threads_are_told_and_misplaced_ones_refused() {
        let facts = Facts::default();
        let good = row(&facts, "--queues 3", &host(), "cores");
        assert_eq!(good.found, "3 workers on CPUs 1-3, master on CPU 0, adaptive polling");
        let crowded = row(&facts, "--queues 9", &host(), "cores");
        assert_eq!((crowded.status, typed(&crowded)), (Warn, "--queues 4"));
        assert_eq!(row(&facts, "--queues 4", &host(), "cores").status, Good);
        let outside = row(&facts, "--cpus 2,9", &host(), "cores");
        assert_eq!((outside.status, typed(&outside)), (Fail, "--cpus 0-3"));
    }

    #[test]
    fn workers_belong_on_the_nodes_of_the_interface() {
        let facts = Facts::default();
        let mut host = host();
        let numa =
            |host: &HostFacts, flags: &str| row(&facts, &format!("--iface eth0 {flags}"), host, "NUMA node");
        assert_eq!(numa(&host, "").status, Good);
        host.nodes = [(0, 0), (1, 0), (2, 1), (3, 1)].into();
        assert_eq!(numa(&host, "").status, Skip);
        host.nic.as_mut().unwrap().numa_node = Some(1);
        assert_eq!(numa(&host, "--queues 1").status, Good, "planned there by itself");
        let told = numa(&host, "--cpus 0,1 --queues 1");
        assert_eq!((told.status, typed(&told)), (Warn, "--cpus 2,3"));
        let many = numa(&host, "--queues 3");
        assert_eq!((many.status, typed(&many)), (Warn, "--cpus 2,3 --queues 1"));
        assert_eq!(numa(&host, "--queues 3 --cpus 2,3 --queues 1").status, Good);
    }
}
