//! Which client is on which source port, and ports that were chosen instead of left to the kernel.
//!
//! A NIC deals packets to its queues by a hash over addresses and ports, so a client's source port decides
//! which queue, and so which worker, serves it. Whoever knows that hash chooses the ports and puts them into
//! [`crate::cli::Settings::source_ports`]; without, the kernel chooses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A source port, and the server's queue that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePort {
    /// The UDP port.
    pub port: u16,
    /// Index of the queue.
    pub queue: u32,
}

/// What one of the server's queues is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueLoad {
    /// Index of the queue.
    pub queue: u32,
    /// Clients on ports that lead to it.
    pub connections: u64,
    /// Ports that lead to it.
    pub ports: u64,
}

/// The thread and the endpoint of client `index`: threads in turn, so that the first clients, which are the
/// watchers, spread over all of them, and on each thread its endpoints in turn. Endpoint `e` is on thread
/// `e % threads`. There are at least as many endpoints as threads.
pub fn place(index: usize, threads: usize, endpoints: usize) -> (usize, usize) {
    let (thread, turn) = (index % threads, index / threads);
    let on_thread = (endpoints - thread).div_ceil(threads);
    (thread, thread + turn % on_thread * threads)
}

/// What each queue is given by `clients` clients on these ports, in the order of the queues.
pub fn queue_loads(ports: &[SourcePort], clients: usize, threads: usize) -> Vec<QueueLoad> {
    let mut loads = BTreeMap::new();
    for &SourcePort { queue, .. } in ports {
        loads.entry(queue).or_insert(QueueLoad { queue, connections: 0, ports: 0 }).ports += 1;
    }
    for client in 0..clients {
        let (_, endpoint) = place(client, threads, ports.len());
        loads.get_mut(&ports[endpoint].queue).expect("of a port that was counted").connections += 1;
    }
    loads.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_deals_its_clients_out_evenly() {
        for (threads, endpoints) in [(1, 1), (1, 5), (2, 5), (3, 16), (4, 4)] {
            let mut carried = vec![0; endpoints];
            for client in 0..endpoints * threads * 2 {
                let (thread, endpoint) = place(client, threads, endpoints);
                assert_eq!((thread, endpoint % threads), (client % threads, thread));
                carried[endpoint] += 1;
            }
            for thread in 0..threads {
                let on_thread = carried.iter().skip(thread).step_by(threads);
                let (least, most) = (on_thread.clone().min().unwrap(), on_thread.max().unwrap());
                assert!(most - least <= 1, "{threads} threads, {endpoints} endpoints: {carried:?}");
            }
        }
    }

    #[test]
    fn every_client_is_on_some_queue() {
        let ports: Vec<_> =
            (0..8u16).map(|i| SourcePort { port: 50_000 + i, queue: u32::from(i % 4) }).collect();
        let loads = queue_loads(&ports, 42, 2);
        assert_eq!(loads.iter().map(|load| load.connections).collect::<Vec<_>>(), [11, 11, 10, 10]);
        assert!(loads.iter().all(|load| load.ports == 2));
    }
}
