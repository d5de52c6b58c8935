//! Checks of how the load spreads over the server's cores, and how much of them it takes.

use super::super::measure::Queue;
use super::super::plot::short;
use super::super::text::plural;
use super::{Facts, Outcome, Severity, found, unknown};

/// Share of time working from which on a thread is the limit: what is left goes into bursts, and delays grow
/// without bound as it nears 1. Lower would blame cores that have room, higher would miss means over windows
/// in which the thread was full most of the time.
const HOT: f64 = 0.9;
/// How many times the packets of the others' mean the busiest queue must have to count as uneven: the guide's
/// own bound for acting on it. Hashing some tens of ports over a few queues alone makes 1.5; at 2, on two
/// queues, a third of the machine is left unused when the busiest is full.
const UNEVEN: f64 = 2.0;
/// Packets a second on the busiest queue below which nothing is said about balance: an idle server's
/// keep-alives fall where they may.
const FEW_PACKETS_PER_S: f64 = 50.0;

pub(super) fn one_core_busy(facts: Facts<'_>) -> Outcome {
    let measured = facts.measured;
    if measured.queues.len() == 1 {
        return Outcome::Clear("one queue".to_owned());
    }
    let (Some(skew), Some(imbalance)) = (measured.skew, measured.imbalance) else {
        return unknown("no packets by queue: server.jsonl or monitor.csv has none");
    };
    let busiest = busiest(&measured.queues);
    let packets = |queue: &Queue| queue.packets_per_s.unwrap_or(0.0);
    let working =
        |queue: &Queue| queue.working.map_or("?".to_owned(), |share| format!("{:.0}%", share * 100.0));
    let evidence = format!(
        "queue {} has {} packets/s and its worker is {} busy; the mean of the {} is {} packets/s; skew \
         {skew:.2} (busiest over mean)",
        busiest.queue,
        short(packets(busiest)),
        working(busiest),
        plural(measured.queues.len(), "queue"),
        short(packets(busiest) / skew),
    );
    if imbalance < UNEVEN || packets(busiest) < FEW_PACKETS_PER_S {
        return Outcome::Clear(evidence);
    }
    let hot = busiest.working.is_some_and(|share| share >= HOT);
    let severity = if hot { Severity::Limit } else { Severity::Fault };
    let remedy = match measured.backend.as_deref() {
        Some("xdp") => {
            "let the clients choose ports that spread: loadgen run paint --align-queues, or more of them \
             with --num-endpoints; see that the NIC spreads: sudo scripts/set_queues.sh IFACE N apply \
             (generic XDP on veth has one queue only: xdp-server --xdp-mode copy)"
        }
        _ => {
            "more source ports on the clients: loadgen run paint --num-endpoints 64; and on the server \
             --steering auto, which spreads over all workers' sockets"
        }
    };
    found(
        severity,
        format!("one core busy, the others idle: queue {} takes the load", busiest.queue),
        evidence,
        remedy,
    )
}

pub(super) fn server_cpu(facts: Facts<'_>) -> Outcome {
    let measured = facts.measured;
    let (Some(most), Some(mean)) = (measured.busiest(), measured.mean_working()) else {
        return unknown("no share of time working: server.jsonl has no seconds in the window");
    };
    let evidence = format!(
        "workers are busy {:.0}% of their time on average, the busiest {:.0}%",
        mean * 100.0,
        most * 100.0
    );
    // One hot worker among idle ones is `one_core_busy`'s.
    if most < HOT || measured.imbalance.is_some_and(|imbalance| imbalance >= UNEVEN) {
        return Outcome::Clear(evidence);
    }
    let workers = measured.queues.len();
    let rate = short(measured.messages_per_s);
    found(
        Severity::Limit,
        format!("the server's cores are the limit: {rate} messages/s on {}", plural(workers, "worker")),
        evidence,
        format!(
            "more workers: xdp-server --queues {} with as many queues of the NIC (sudo scripts/set_queues.sh \
             IFACE {0} apply); what the time goes into is in the picture of regimes, and in sudo perf top -p \
             $(pidof xdp-server)",
            workers * 2
        ),
    )
}

pub(super) fn master_busy(facts: Facts<'_>) -> Outcome {
    let Some(working) = facts.measured.master_working else {
        return match facts.results.server.as_ref().is_some_and(|server| !server.seconds.is_empty()) {
            true => Outcome::Clear("the master shares worker 0's core".to_owned()),
            false => unknown("no share of time working of the master: server.jsonl has no seconds"),
        };
    };
    let evidence = format!("the master is busy {:.0}% of its time", working * 100.0);
    if working < HOT {
        return Outcome::Clear(evidence);
    }
    found(
        Severity::Limit,
        "the master's core is the limit: it orders all pixels",
        evidence,
        "a core of its own, the first of --cpus (one more than --queues); fewer, larger ticks: xdp-server \
         --tick-ms 100",
    )
}

fn busiest(queues: &[Queue]) -> &Queue {
    let packets = |queue: &Queue| queue.packets_per_s.unwrap_or(0.0);
    queues.iter().max_by(|a, b| packets(a).total_cmp(&packets(b))).expect("balance is known of two or more")
}
