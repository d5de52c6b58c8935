//! What the settings want of the host: the yardstick of every check.
//!
//! The checks judge one configuration, so the plan of its threads is made first. Where the settings do not
//! fit the host there is none: that is a row of its own, and the other checks use the plan as it will be when
//! the row is mended.

use crate::cli::{Backend, Settings};
use crate::host::HostFacts;
use crate::host::topology::{self, MasterPlacement, PlanError, Poll, Topology, WorkerPlacement};

use super::row::{Remedy, Row};

/// How much the settings want a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// This one or none: it was named.
    Required,
    /// If the host can.
    Preferred,
    /// Not at all.
    Unused,
}

impl Need {
    /// A row about something without which this backend does not work.
    pub fn broken(self, check: &'static str, found: impl Into<String>, remedy: Remedy) -> Row {
        match self {
            Self::Required => Row::fail(check, found, remedy),
            Self::Preferred => Row::warn(check, found, remedy),
            Self::Unused => Row::skip(check, "this backend is not wanted"),
        }
    }
}

/// The configuration that is checked. See the [module](self).
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// As asked for.
    pub settings: &'a Settings,
    /// The host.
    pub host: &'a HostFacts,
    /// AF_XDP.
    pub xdp: Need,
    /// io_uring.
    pub io_uring: Need,
    /// Where the threads go, or will go.
    pub topology: Topology,
    /// Why the settings do not fit the host, if so.
    pub misfit: Option<PlanError>,
}

impl<'a> Wanted<'a> {
    /// What `settings` want on `host`.
    pub fn new(settings: &'a Settings, host: &'a HostFacts) -> Self {
        let has_iface = settings.iface.is_some();
        let (xdp, io_uring) = match settings.backend {
            Backend::Auto if has_iface => (Need::Preferred, Need::Preferred),
            Backend::Auto => (Need::Unused, Need::Preferred),
            Backend::Xdp => (Need::Required, Need::Unused),
            Backend::Uring => (Need::Unused, Need::Required),
            Backend::Socket => (Need::Unused, Need::Unused),
        };
        let (topology, misfit) = match topology::plan(settings, host) {
            Ok(topology) => (topology, None),
            Err(misfit) => (plan_as_if_mended(settings, host), Some(misfit)),
        };
        Self { settings, host, xdp, io_uring, topology, misfit }
    }

    /// AF_XDP is asked for, by name or by naming an interface.
    pub fn uses_xdp(&self) -> bool {
        self.xdp != Need::Unused
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.topology.workers.len()
    }

    /// CPUs of the workers, ascending, each once.
    pub fn worker_cpus(&self) -> Vec<usize> {
        let mut cpus: Vec<usize> = self.topology.workers.iter().map(|worker| worker.cpu).collect();
        cpus.sort_unstable();
        cpus.dedup();
        cpus
    }

    /// CPUs of all threads, ascending, each once.
    pub fn cpus(&self) -> Vec<usize> {
        let mut cpus = self.worker_cpus();
        if let MasterPlacement::OwnCore(cpu) = self.topology.master
            && let Err(at) = cpus.binary_search(&cpu)
        {
            cpus.insert(at, cpu);
        }
        cpus
    }
}

/// The plan once the interface is there, is up and has the queues, and the CPUs are ones that may be used.
fn plan_as_if_mended(settings: &Settings, host: &HostFacts) -> Topology {
    let (mut settings, mut host) = (settings.clone(), host.clone());
    match &mut host.nic {
        Some(nic) => {
            let queues = settings.workers.map_or(1, u32::from);
            nic.up = true;
            nic.rx_queues = nic.rx_queues.max(queues);
            nic.tx_queues = nic.tx_queues.max(queues);
        }
        None => settings.iface = None,
    }
    if let Some(cpus) = &mut settings.cpus {
        cpus.retain(|cpu| host.allowed.contains(cpu));
    }
    settings.cpus.take_if(|cpus| cpus.is_empty());
    // Every misfit there is has been mended above; this is what is left if a new one is not.
    topology::plan(&settings, &host).unwrap_or_else(|_| one_worker(&host))
}

fn one_worker(host: &HostFacts) -> Topology {
    let cpu = host.allowed.first().copied().unwrap_or(0);
    Topology {
        master: MasterPlacement::StageOfWorker0,
        workers: vec![WorkerPlacement { index: 0, queue: None, cpu, node: host.nodes.get(&cpu).copied() }],
        poll: Poll::Adaptive,
        notes: Vec::new(),
        unserved_queues: None,
    }
}
