//! The figures of the measured window: what the diagnosis judges, and the tables show.

use serde::Serialize;
use std::collections::BTreeMap;

use super::folder::{Results, Server};
use crate::rss::skew;

/// The server's part of a run, over the measured window (over all of it, where no window is known).
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// Start and end of the window, in seconds since the run began.
    pub window_s: (f64, f64),
    /// Whether the load generators named that window.
    pub window_known: bool,
    /// The server's backend, where it says.
    pub backend: Option<String>,
    /// Client messages that the server received a second.
    pub messages_per_s: f64,
    /// UDP payloads that it received.
    pub rx_packets: f64,
    /// UDP payloads that it sent.
    pub tx_packets: f64,
    /// By queue.
    pub queues: Vec<Queue>,
    /// Packets of the busiest queue over their mean.
    pub skew: Option<f64>,
    /// Packets of the busiest queue over the mean of the others.
    pub imbalance: Option<f64>,
    /// Mean share of the master's time spent working.
    pub master_working: Option<f64>,
    /// Drops by cause, by the server's count.
    pub drops: BTreeMap<String, u64>,
    /// Packets lost for want of room in a receive buffer or ring, by the server's count.
    pub kernel_drops: Counted,
    /// The same of all UDP sockets in the server's network namespace, by the kernel's count.
    pub host_rcvbuf_errors: Counted,
    /// Times that the kernel found a fill ring empty, each a packet lost.
    pub fill_ring_empty: Counted,
    /// Times that an io_uring submission queue was full.
    pub sq_full: Counted,
    /// Connections refused with SERVER_FULL, by the server's count; of the whole run.
    pub refused_full: Option<u64>,
    /// Most entries of the connection tracking table, and how many it can hold.
    pub conntrack: Option<(f64, f64)>,
    /// Lines of the kernel's log that say that it was full.
    pub conntrack_said: Option<u64>,
    /// The server's resident memory, in MB, by time in the window.
    pub rss_mb: Vec<(f64, f64)>,
    /// Fewest and most connections in the window.
    pub connections: Option<(f64, f64)>,
}

/// One queue, and the worker that it belongs to. Rates are means over the window.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Queue {
    /// Its number.
    pub queue: usize,
    /// Connections at the end of the window.
    pub connections: Option<f64>,
    /// Connections that alignment aimed for.
    pub aimed: Option<u64>,
    /// UDP payloads received.
    pub packets_per_s: Option<f64>,
    /// Client messages received.
    pub messages_per_s: Option<f64>,
    /// Drops of all causes.
    pub drops_per_s: Option<f64>,
    /// Share of time working.
    pub working: Option<f64>,
}

/// A counter of losses; `None` where nobody counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Counted {
    /// In the window.
    pub window: Option<f64>,
    /// In all of the run.
    pub run: Option<f64>,
}

impl Counted {
    /// The count that is to be judged: that of the window, or, where only the whole is known, that.
    pub fn judged(&self) -> Option<f64> {
        self.window.or(self.run)
    }
}

/// What the kernel's log has when the connection tracking table is full.
const CONNTRACK_FULL: &str = "nf_conntrack: table full";

impl Measured {
    /// Takes the figures from what was read.
    pub fn of(results: &Results) -> Measured {
        let known = results.clients.as_ref().and_then(|clients| clients.window());
        let window = known.unwrap_or((f64::MIN, f64::MAX));
        let mut measured = Measured {
            window_s: known.unwrap_or_else(|| whole_run(results)),
            window_known: known.is_some(),
            queues: queues(results, window),
            conntrack_said: results
                .dmesg
                .as_ref()
                .map(|log| log.lines().filter(|line| line.contains(CONNTRACK_FULL)).count() as u64),
            ..Measured::default()
        };
        measured.take_balance();
        if let Some(server) = &results.server {
            measured.take_server(server, window);
        }
        measured.take_monitor(results, window);
        measured
    }

    fn take_balance(&mut self) {
        let packets: Vec<f64> = self.queues.iter().filter_map(|queue| queue.packets_per_s).collect();
        let sum: f64 = packets.iter().sum();
        if packets.len() < 2 || sum <= 0.0 {
            return;
        }
        let most = packets.iter().copied().fold(0.0, f64::max);
        self.skew = Some(skew(&packets));
        // The others may have none at all; a packet a second is as good as none.
        self.imbalance = Some(most / ((sum - most) / (packets.len() - 1) as f64).max(1.0));
    }

    fn take_server(&mut self, server: &Server, window: (f64, f64)) {
        self.backend = server.backend.clone();
        self.messages_per_s = mean(server.within(window).map(|second| second.messages_per_s)).unwrap_or(0.0);
        self.master_working = mean(server.within(window).filter_map(|second| second.master_working));
        for second in server.within(window) {
            self.rx_packets += second.rx_packets_per_s * second.interval_s;
            self.tx_packets += second.tx_packets_per_s * second.interval_s;
            for (cause, count) in &second.drops {
                *self.drops.entry(cause.clone()).or_default() += count;
            }
        }
        let total = |name| server.total(name).map(|count| count as f64);
        if !server.seconds.is_empty() {
            let kernel =
                |drops: &BTreeMap<String, u64>| drops.get("rx_kernel_drops").copied().unwrap_or(0) as f64;
            let run = server.seconds.iter().map(|second| kernel(&second.drops)).sum();
            self.kernel_drops = Counted { window: Some(kernel(&self.drops)), run: Some(run) };
        }
        self.fill_ring_empty.run = total("fill_ring_empty");
        self.sq_full.run = total("sq_full");
        self.refused_full = server.total("refused_full");
        self.connections = range(server.within(window).map(|second| second.connections));
    }

    fn take_monitor(&mut self, results: &Results, window: (f64, f64)) {
        let Some(monitor) = &results.monitor else { return };
        let always = (f64::MIN, f64::MAX);
        let counted =
            |name| Counted { window: monitor.growth(name, window), run: monitor.growth(name, always) };
        let or = |ours: Counted, theirs: Counted| Counted {
            window: theirs.window.or(ours.window),
            run: ours.run.or(theirs.run),
        };
        self.fill_ring_empty = or(self.fill_ring_empty, counted("fill_ring_empty"));
        self.sq_full = or(self.sq_full, counted("sq_full"));
        self.host_rcvbuf_errors = counted("rcvbuf_err");
        let tables = monitor.column("conntrack_count").zip(monitor.column("conntrack_max"));
        self.conntrack = tables
            .filter(|(count, max)| count.0 == max.0 && max.1 > 0.0)
            .map(|(count, max)| (count.1, max.1))
            .max_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        self.rss_mb = monitor.within("rss_mb", window).collect();
        if self.connections.is_none() {
            self.connections = range(monitor.within("connections", window).map(|(_, count)| count));
        }
    }

    /// The largest share of time working of a worker.
    pub fn busiest(&self) -> Option<f64> {
        self.queues.iter().filter_map(|queue| queue.working).reduce(f64::max)
    }

    /// The mean of these shares.
    pub fn mean_working(&self) -> Option<f64> {
        mean(self.queues.iter().filter_map(|queue| queue.working))
    }
}

fn whole_run(results: &Results) -> (f64, f64) {
    let clients = results.clients.iter().flat_map(|clients| clients.timeline.iter().map(|second| second.t_s));
    let server = results.server.iter().flat_map(|server| server.seconds.iter().map(|second| second.t_s));
    range(clients.chain(server)).unwrap_or((0.0, 0.0))
}

fn queues(results: &Results, window: (f64, f64)) -> Vec<Queue> {
    let aimed =
        results.clients.as_ref().and_then(|clients| clients.report.queues.as_deref()).unwrap_or_default();
    let count = results.server.as_ref().map_or(0, |server| server.queues);
    let count = aimed.iter().map(|aimed| aimed.queue as usize + 1).max().unwrap_or(0).max(count);
    (0..count)
        .map(|queue| {
            let workers = || {
                let seconds = results.server.iter().flat_map(|server| server.within(window));
                seconds.filter_map(|second| second.workers.get(queue))
            };
            let monitored = |name: &str| {
                let monitor = results.monitor.as_ref()?;
                let of = |t: &(f64, f64)| t.0;
                let times: Vec<f64> = monitor.within(name, window).map(|sample| of(&sample)).collect();
                let seconds = times.last()? - times.first()?;
                Some(monitor.growth(name, window)? / seconds).filter(|rate| rate.is_finite())
            };
            Queue {
                queue,
                connections: workers().last().map(|worker| worker.connections),
                aimed: aimed
                    .iter()
                    .find(|aimed| aimed.queue as usize == queue)
                    .map(|aimed| aimed.connections),
                packets_per_s: mean(workers().map(|worker| worker.rx_packets_per_s))
                    .or_else(|| monitored(&format!("rx_packets_q{queue}"))),
                messages_per_s: mean(workers().map(|worker| worker.messages_per_s)),
                drops_per_s: mean(workers().map(|worker| worker.drops_per_s)),
                working: mean(workers().filter_map(|worker| worker.working)).or_else(|| {
                    let monitor = results.monitor.as_ref()?;
                    mean(monitor.within(&format!("working_share_q{queue}"), window).map(|(_, share)| share))
                }),
            }
        })
        .collect()
}

/// The mean; `None` of nothing.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}
