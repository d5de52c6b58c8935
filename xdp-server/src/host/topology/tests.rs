use super::*;

/// A host with CPUs 0 to `cpus - 1`, all allowed, one NUMA node.
fn host(cpus: usize) -> HostFacts {
    HostFacts {
        allowed: (0..cpus).collect(),
        online: (0..cpus).collect(),
        cpu_quota: cpus,
        nodes: (0..cpus).map(|cpu| (cpu, 0)).collect(),
        nic: None,
        interfaces: vec!["eth0".into(), "lo".into()],
    }
}

/// The same with `eth0` of so many queues.
fn host_with_nic(cpus: usize, queues: u32) -> HostFacts {
    let nic = Nic {
        name: "eth0".into(),
        index: 2,
        up: true,
        driver: Some("ice".into()),
        rx_queues: queues,
        tx_queues: queues,
        numa_node: None,
        mtu: 1500,
    };
    HostFacts { nic: Some(nic), ..host(cpus) }
}

fn settings(workers: Option<u16>) -> Settings {
    Settings { workers, ..Settings::default() }
}

fn on_eth0(workers: Option<u16>) -> Settings {
    Settings { iface: Some("eth0".into()), ..settings(workers) }
}

fn cpus_of(topology: &Topology) -> Vec<usize> {
    topology.workers.iter().map(|worker| worker.cpu).collect()
}

#[test]
fn threads_are_laid_out_as_the_table_says() {
    use MasterPlacement::{OwnCore, StageOfWorker0};
    use Poll::{Adaptive, Busy};
    for (cpus, workers, master, worker_cpus, poll) in [
        // Default: one worker for each core but one. All cores are taken, so none spins.
        (1, None, StageOfWorker0, vec![0], Adaptive),
        (2, None, OwnCore(0), vec![1], Adaptive),
        (4, None, OwnCore(0), vec![1, 2, 3], Adaptive),
        // As told, with a core left over: busy.
        (4, Some(2), OwnCore(0), vec![1, 2], Busy),
        (3, Some(1), OwnCore(0), vec![1], Busy),
        // No core for the master.
        (2, Some(2), StageOfWorker0, vec![0, 1], Adaptive),
        // Fewer cores than workers: round robin.
        (2, Some(5), StageOfWorker0, vec![0, 1, 0, 1, 0], Adaptive),
        (1, Some(2), StageOfWorker0, vec![0, 0], Adaptive),
    ] {
        let topology = plan(&settings(workers), &host(cpus)).unwrap();
        assert_eq!(topology.master, master, "{cpus} {workers:?}");
        assert_eq!(cpus_of(&topology), worker_cpus, "{cpus} {workers:?}");
        assert_eq!(topology.poll, poll, "{cpus} {workers:?}");
        assert!(topology.workers.iter().all(|worker| worker.queue.is_none()));
        assert!(topology.workers.iter().enumerate().all(|(i, worker)| usize::from(worker.index) == i));
        assert_eq!(poll == Adaptive, topology.notes.iter().any(|note| note.contains("polling is adaptive")));
    }
}

#[test]
fn the_reference_deployment_is_one_master_and_47_busy_workers() {
    let mut facts = host_with_nic(96, 47); // 48 cores, 96 threads
    facts.nic.as_mut().unwrap().numa_node = Some(0);
    let topology = plan(&on_eth0(Some(47)), &facts).unwrap();
    assert_eq!((topology.master, topology.poll), (MasterPlacement::OwnCore(0), Poll::Busy));
    assert_eq!(cpus_of(&topology), (1..48).collect::<Vec<_>>());
    let last = WorkerPlacement { index: 46, queue: Some(46), cpu: 47, node: Some(0) };
    assert_eq!(topology.workers.last(), Some(&last));
    assert_eq!(topology.notes, Vec::<String>::new());
}

#[test]
fn all_256_workers_have_an_index() {
    let topology = plan(&settings(Some(256)), &host(300)).unwrap();
    assert_eq!(topology.workers.len(), 256);
    assert_eq!(topology.workers.last().map(|worker| (worker.index, worker.cpu)), Some((255, 256)));
    assert_eq!(plan(&settings(None), &host(300)).unwrap().workers.len(), 256);
}

#[test]
fn default_workers_are_the_interfaces_queues_but_no_more_than_cores() {
    for (cpus, queues, workers) in [(8, 4, 4), (4, 8, 3), (1, 8, 1), (2, 1, 1)] {
        let topology = plan(&on_eth0(None), &host_with_nic(cpus, queues)).unwrap();
        let expected: Vec<_> = (0..workers).map(Some).collect();
        let got: Vec<_> = topology.workers.iter().map(|worker| worker.queue).collect();
        assert_eq!(got, expected, "{cpus} CPUs, {queues} queues");
        let told = topology.unserved_queues.is_some_and(|note| note.contains("ethtool -L eth0 combined"));
        assert_eq!(told, workers < queues);
    }
}

#[test]
fn more_workers_than_queues_are_refused_unless_on_sockets() {
    let facts = host_with_nic(8, 2);
    let text = plan(&on_eth0(Some(4)), &facts).unwrap_err().to_string();
    assert!(
        text.contains("--queues 4, but eth0 has 2") && text.contains("ethtool -L eth0 combined 4"),
        "{text}"
    );

    let on_sockets = Settings { backend: Backend::Socket, ..on_eth0(Some(4)) };
    let topology = plan(&on_sockets, &facts).unwrap();
    assert!(topology.workers.len() == 4 && topology.workers.iter().all(|worker| worker.queue.is_none()));

    // A queue must work both ways.
    let mut facts = host_with_nic(8, 4);
    facts.nic.as_mut().unwrap().tx_queues = 2;
    assert!(plan(&on_eth0(Some(3)), &facts).is_err());
}

#[test]
fn a_missing_or_downed_interface_is_named_with_the_remedy() {
    let text = plan(&on_eth0(None), &host(4)).unwrap_err().to_string();
    assert_eq!(text, "there is no interface eth0; there are: eth0, lo");
    let mut facts = host_with_nic(4, 1);
    facts.nic.as_mut().unwrap().up = false;
    let text = plan(&on_eth0(None), &facts).unwrap_err().to_string();
    assert!(text.contains("`ip link set eth0 up`"), "{text}");
}

#[test]
fn cpus_are_given_out_in_the_order_told() {
    let chosen = Settings { cpus: Some(vec![6, 2, 4]), ..settings(None) };
    let topology = plan(&chosen, &host(8)).unwrap();
    assert_eq!((topology.master, cpus_of(&topology)), (MasterPlacement::OwnCore(6), vec![2, 4]));
    assert_eq!(topology.poll, Poll::Busy, "five CPUs are left for others");
}

#[test]
fn cpus_outside_of_the_mask_are_named_beside_it() {
    let facts = HostFacts { allowed: vec![0, 1, 2, 5], ..host(8) };
    let chosen = Settings { cpus: Some(vec![1, 3, 4]), ..settings(None) };
    let text = plan(&chosen, &facts).unwrap_err().to_string();
    assert!(text.contains("names CPU 3,4") && text.contains("mask is 0-2,5"), "{text}");
    // Without --cpus the mask itself is used, and CPUs outside of it count as left for the host.
    let topology = plan(&settings(None), &facts).unwrap();
    assert_eq!((cpus_of(&topology), topology.poll), (vec![1, 2, 5], Poll::Busy));
}

#[test]
fn cpus_of_the_interfaces_node_come_first() {
    let mut facts = host_with_nic(8, 8);
    facts.nodes = (0..8).map(|cpu| (cpu, cpu as u32 % 2)).collect();
    facts.nic.as_mut().unwrap().numa_node = Some(1);

    let topology = plan(&on_eth0(Some(3)), &facts).unwrap();
    assert_eq!((topology.master, cpus_of(&topology)), (MasterPlacement::OwnCore(1), vec![3, 5, 7]));
    assert!(topology.workers.iter().all(|worker| worker.node == Some(1)));
    assert!(!topology.notes.iter().any(|note| note.contains("NUMA")));

    let topology = plan(&on_eth0(Some(4)), &facts).unwrap();
    assert_eq!(cpus_of(&topology), [3, 5, 7, 0]);
    let crossing = "1 worker not on the NUMA node of eth0, 1, of which this process may use 4 CPUs: \
                    each of their packets crosses from node to node";
    assert!(topology.notes.contains(&crossing.to_owned()), "{:?}", topology.notes);

    let chosen = Settings { cpus: Some(vec![0, 1, 2]), ..on_eth0(Some(2)) };
    assert_eq!(cpus_of(&plan(&chosen, &facts).unwrap()), [1, 2], "--cpus is obeyed to the letter");
}

#[test]
fn poll_is_obeyed_when_told() {
    let with = |poll, workers| Settings { poll, ..settings(Some(workers)) };
    let topology = plan(&with(PollMode::Busy, 2), &host(2)).unwrap();
    assert_eq!(topology.poll, Poll::Busy);
    assert!(topology.notes.iter().any(|note| note.contains("--poll busy as told, although")));
    let topology = plan(&with(PollMode::Busy, 4), &host(2)).unwrap();
    assert!(topology.notes.iter().any(|note| note == "4 workers share 2 CPUs, in turn"));
    let topology = plan(&with(PollMode::Adaptive, 1), &host(8)).unwrap();
    assert_eq!((topology.poll, topology.notes), (Poll::Adaptive, vec![]));
}

#[test]
fn a_cgroups_quota_bounds_the_default_and_stops_spinning() {
    let facts = HostFacts { cpu_quota: 2, ..host(48) };
    let topology = plan(&settings(None), &facts).unwrap();
    assert_eq!(cpus_of(&topology), [1]);
    assert_eq!(topology.poll, Poll::Busy, "two threads, two CPUs' time, 46 CPUs for the rest");
    assert!(topology.notes[0].contains("quota allows 2 of 48"));

    let topology = plan(&settings(Some(8)), &facts).unwrap();
    assert_eq!((topology.workers.len(), topology.poll), (8, Poll::Adaptive));
    assert!(topology.notes.iter().any(|note| note.contains("9 threads get 2 CPUs' time")));
}

/// CPUs 0 to 3 on node 0, 4 to 7 on node 1, and `eth0` of 8 queues on node `nic`.
fn two_nodes(nic: Option<u32>) -> HostFacts {
    let mut facts = host_with_nic(8, 8);
    facts.nodes = (0..8).map(|cpu| (cpu, cpu as u32 / 4)).collect();
    facts.nic.as_mut().unwrap().numa_node = nic;
    facts
}

/// Master, workers' CPUs, and how many notes say that a worker is far from the interface.
fn layout(settings: &Settings, facts: &HostFacts) -> (MasterPlacement, Vec<usize>, usize) {
    let topology = plan(settings, facts).unwrap();
    for worker in &topology.workers {
        assert_eq!(worker.node, facts.nodes.get(&worker.cpu).copied(), "memory is where its thread is");
    }
    let far = topology.notes.iter().filter(|note| note.contains("crosses from node to node")).count();
    (topology.master, cpus_of(&topology), far)
}

#[test]
fn threads_are_placed_on_the_interfaces_node_and_leave_it_only_when_told() {
    use MasterPlacement::{OwnCore, StageOfWorker0};
    for (nic, workers, expected) in [
        // By default the other node is not used, although there are queues for it.
        (Some(1), None, (OwnCore(4), vec![5, 6, 7], 0)),
        (Some(0), None, (OwnCore(0), vec![1, 2, 3], 0)),
        (Some(1), Some(3), (OwnCore(4), vec![5, 6, 7], 0)),
        // More than the node has, as told: the other one follows, with a note.
        (Some(1), Some(5), (OwnCore(4), vec![5, 6, 7, 0, 1], 1)),
        (Some(1), Some(8), (StageOfWorker0, vec![4, 5, 6, 7, 0, 1, 2, 3], 1)),
        // No node to prefer.
        (None, None, (OwnCore(0), (1..8).collect(), 0)),
    ] {
        assert_eq!(layout(&on_eth0(workers), &two_nodes(nic)), expected, "{nic:?} {workers:?}");
    }

    // One CPU near: the default is one worker there, not one far away.
    let facts = HostFacts { allowed: vec![0, 1, 2, 3, 7], ..two_nodes(Some(1)) };
    assert_eq!(layout(&on_eth0(None), &facts), (StageOfWorker0, vec![7], 0));
    // None: the other node is all there is.
    let facts = HostFacts { allowed: vec![0, 1, 2], ..two_nodes(Some(1)) };
    assert_eq!(layout(&on_eth0(None), &facts), (OwnCore(0), vec![1, 2], 1));
}

#[test]
fn numa_node_overrides_the_interfaces_and_is_never_left() {
    use MasterPlacement::{OwnCore, StageOfWorker0};
    let on_node = |node, settings| Settings { numa_node: Some(node), ..settings };
    for (node, workers, expected) in [
        (0, None, (OwnCore(0), vec![1, 2, 3], 1)),
        (1, None, (OwnCore(4), vec![5, 6, 7], 0)),
        (0, Some(2), (OwnCore(0), vec![1, 2], 1)),
        // More than the node has: its CPUs are shared.
        (1, Some(6), (StageOfWorker0, vec![4, 5, 6, 7, 4, 5], 0)),
    ] {
        let settings = on_node(node, on_eth0(workers));
        assert_eq!(layout(&settings, &two_nodes(Some(1))), expected, "{node} {workers:?}");
    }
    // On sockets, without any interface.
    let facts = HostFacts { nic: None, ..two_nodes(None) };
    assert_eq!(layout(&on_node(1, settings(None)), &facts), (OwnCore(4), vec![5, 6, 7], 0));
    assert_eq!(layout(&settings(None), &facts), (OwnCore(0), (1..8).collect(), 0));
    // A kernel that does not tell of nodes has one, 0.
    let flat = HostFacts { nodes: BTreeMap::new(), ..host(3) };
    assert_eq!(layout(&on_node(0, settings(None)), &flat), (OwnCore(0), vec![1, 2], 0));
}

#[test]
fn a_node_that_cannot_be_used_is_refused_with_a_list_of_those_that_can() {
    let refused = |settings: &Settings, facts: &HostFacts| plan(settings, facts).unwrap_err().to_string();
    let on_node = |node| Settings { numa_node: Some(node), ..settings(None) };
    let text = refused(&on_node(2), &two_nodes(None));
    assert!(text.contains("--numa-node 2") && text.ends_with("0 (CPUs 0-3), 1 (CPUs 4-7)"), "{text}");
    // Nodes outside of the mask are as good as none.
    let facts = HostFacts { allowed: vec![1, 3], ..two_nodes(None) };
    let text = refused(&on_node(1), &facts);
    assert!(text.ends_with("may use are: 0 (CPUs 1,3)"), "{text}");
    assert!(refused(&on_node(1), &HostFacts { nodes: BTreeMap::new(), ..host(2) }).ends_with("0 (CPUs 0,1)"));

    let both = Settings { cpus: Some(vec![3, 4, 5, 6]), ..on_node(0) };
    let text = refused(&both, &two_nodes(None));
    assert!(text.contains("CPU 4-6, which is not on NUMA node 0"), "{text}");
    let both = Settings { cpus: Some(vec![6, 5]), ..on_node(1) };
    assert_eq!(layout(&both, &two_nodes(None)), (MasterPlacement::OwnCore(6), vec![5], 0));
}
