//! Source ports for an equal number of connections on every queue.
//!
//! Ports are tried one after the other, from a random one on, so that several load generators on a host
//! rarely try the same. A port is kept if its queue still lacks some and nobody else has it; it is kept by
//! holding its socket. The sockets are then put in the order of the queues, over and over (0, 1, 2, 3, 0, 1,
//! ...), in which clients are dealt out to them: any number of clients in a row is spread over the queues to
//! within one.

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::AlignError;

/// Ports that anyone may have, where the kernel does not say which it gives out itself.
const UNPRIVILEGED: RangeInclusive<u16> = 1024..=65535;

/// Sockets whose ports lead to chosen queues.
#[derive(Debug)]
pub struct Plan<S = UdpSocket> {
    /// Bound, in the order in which clients are dealt out to them.
    sockets: Vec<S>,
    /// Socket i leads to the queue at i, modulo their number.
    queues: Vec<u16>,
}

/// What one queue of the server is to get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueShare {
    /// The queue.
    pub queue: u16,
    /// Connections that lead to it.
    pub connections: u64,
    /// Source ports that do.
    pub ports: u64,
}

impl<S> Plan<S> {
    /// Chooses `per_queue` ports for each of `queues` among `candidates`: `queue_of` tells the queue of one
    /// (`None`: of no queue known, or not to be had), `bind` takes one.
    ///
    /// # Errors
    /// Those of the functions given, except that a port in use is not an error; and too few candidates.
    pub(super) fn choose(
        queues: Vec<u16>,
        per_queue: usize,
        candidates: impl IntoIterator<Item = u16>,
        mut queue_of: impl FnMut(u16) -> Result<Option<u16>, AlignError>,
        mut bind: impl FnMut(u16) -> io::Result<S>,
    ) -> Result<Self, AlignError> {
        let mut found: BTreeMap<u16, Vec<S>> = queues.iter().map(|&queue| (queue, Vec::new())).collect();
        let mut lacking = per_queue * queues.len();
        let mut candidates = candidates.into_iter();
        while lacking > 0 {
            let Some(port) = candidates.next() else {
                let fewest = found.iter().min_by_key(|(_, sockets)| sockets.len());
                let (queue, found) = fewest.map_or((0, 0), |(&queue, sockets)| (queue, sockets.len()));
                return Err(AlignError::TooFewPorts { queue, found, wanted: per_queue });
            };
            let Some(queue) = queue_of(port)? else { continue };
            let Some(sockets) = found.get_mut(&queue).filter(|sockets| sockets.len() < per_queue) else {
                continue;
            };
            if let Some(socket) = unless_in_use(bind(port))? {
                sockets.push(socket);
                lacking -= 1;
            }
        }
        let mut by_queue: Vec<_> =
            queues.iter().filter_map(|queue| found.remove(queue)).map(Vec::into_iter).collect();
        let mut sockets = Vec::with_capacity(per_queue * queues.len());
        for _ in 0..per_queue {
            sockets.extend(by_queue.iter_mut().filter_map(Iterator::next));
        }
        Ok(Self { sockets, queues })
    }

    /// The sockets, in the order in which clients are to be dealt out to them: client i gets socket i, modulo
    /// their number.
    pub fn into_sockets(self) -> Vec<S> {
        self.sockets
    }

    /// How many sockets there are.
    pub fn endpoints(&self) -> usize {
        self.sockets.len()
    }

    /// What each queue gets when this many clients are dealt out.
    pub fn shares(&self, clients: usize) -> Vec<QueueShare> {
        let count = self.queues.len();
        let of = |total: usize, index: usize| (total / count + usize::from(index < total % count)) as u64;
        let share = |(index, &queue)| QueueShare {
            queue,
            connections: of(clients, index),
            ports: of(self.sockets.len(), index),
        };
        self.queues.iter().enumerate().map(share).collect()
    }
}

/// What binding gave; `None` where another has the port.
///
/// # Errors
/// Any other reason not to bind.
pub fn unless_in_use<S>(bound: io::Result<S>) -> Result<Option<S>, AlignError> {
    match bound {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(AlignError::Bind(error)),
    }
}

/// All ports that this host gives to sockets that do not choose one, from a random one on. Those reserved for
/// programs that ask for them by number (`ip_local_reserved_ports`, a server's, say) are not among them.
pub fn candidates() -> impl Iterator<Item = u16> {
    let setting = |name| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let range = local_range(&setting("ip_local_port_range")).unwrap_or(UNPRIVILEGED);
    let reserved = reserved(&setting("ip_local_reserved_ports"));
    let start = rand::random_range(range.clone());
    let all = (start..=*range.end()).chain(*range.start()..start);
    all.filter(move |port| !reserved.iter().any(|reserved| reserved.contains(port)))
}

fn local_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last && first > 0).then_some(first..=last)
}

/// Of a list such as `4433,8080-8090`.
fn reserved(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |entry: &str| {
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).collect()
}

/// How unevenly a load is spread: the busiest queue's share over the mean, from 1.0 (all equal) to the number
/// of queues (all on one). 1.0 where there is no load at all.
pub fn skew(loads: &[f64]) -> f64 {
    let total: f64 = loads.iter().sum();
    let busiest = loads.iter().copied().fold(0.0, f64::max);
    if total > 0.0 { busiest * loads.len() as f64 / total } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_settings() {
        assert_eq!(local_range("32768\t60999\n"), Some(32768..=60999));
        for wrong in ["", "1024", "0 65535", "60999 32768", "a b", "1 65536"] {
            assert_eq!(local_range(wrong), None, "{wrong}");
        }
        assert_eq!(reserved("4433,8080-8090\n"), [4433..=4433, 8080..=8090]);
        assert_eq!(reserved("\n"), []);
    }

    #[test]
    fn candidates_are_distinct() {
        let mut ports: Vec<_> = candidates().collect();
        let all = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() == all && all > 0, "{} of {all}", ports.len());
    }
}
