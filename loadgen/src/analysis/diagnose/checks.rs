//! Checks of what is refused, lost, late or growing.

use super::super::measure::{Counted, mean};
use super::super::plot::short;
use super::{Facts, Outcome, Severity, found, unknown};

/// Share of packets lost from which on losses are a limit: at one in a thousand the resending shows in p99.9
/// and congestion control slows senders down; below it QUIC repairs unnoticed.
const LOSS: f64 = 1e-3;
/// Fullness of the connection tracking table that counts as full: the kernel drops new flows at 100 %, and a
/// sample a second is past the peak.
const TABLE_FULL: f64 = 0.95;
/// Times that the submission queue was full, for each packet sent, from which on it costs: a worker submits
/// some tens of packets at once, so one forced submission in a hundred packets is half as many system calls
/// again.
const SQ_FULL: f64 = 0.01;
/// Samples without which no growth of memory is judged: three in each third of the window.
const MEMORY_SAMPLES: usize = 9;
/// Growth of memory over the window that counts, as a share of what it was: allocators keep some percent in
/// reserve and move within it.
const MEMORY_GROWTH: f64 = 0.05;
/// What each third of the window must add to that, so that warming up, which ends, is no growth.
const MEMORY_STEP: f64 = 0.01;
/// How far connections may move, as a share, and still count as constant: less than [`MEMORY_GROWTH`] by far.
const CONSTANT: f64 = 0.01;
/// Most connections that a worker can be given.
const MOST_CONNECTIONS: f64 = 65_536.0;

pub(super) fn connection_cap(facts: Facts<'_>) -> Outcome {
    let told = facts.clients().map(|clients| {
        let causes =
            clients.report.failures_by_cause.iter().filter(|(cause, _)| cause.contains("SERVER_FULL"));
        causes.map(|(_, count)| count).sum::<u64>()
    });
    let table_full = facts.measured.drops.get("drop_full").copied();
    let refused = facts.measured.refused_full;
    if told.is_none() && refused.is_none() {
        return unknown("neither a load generator's report nor the server's summary is there");
    }
    let count = told.unwrap_or(0).max(refused.unwrap_or(0)).max(table_full.unwrap_or(0));
    if count == 0 {
        return Outcome::Clear("no connection was refused".to_owned());
    }
    let wanted = facts.clients().map_or(0, |clients| clients.report.clients) as f64;
    let workers = facts.measured.queues.len().max(1) as f64;
    // Half as many again: hashing does not deal connections out evenly.
    let room = (wanted / workers * 1.5).max(1.0);
    let remedy = if room <= MOST_CONNECTIONS {
        format!("xdp-server --max-connections-per-worker {}", (room as u64).next_power_of_two())
    } else {
        format!("more workers: xdp-server --queues {}", (wanted * 1.5 / MOST_CONNECTIONS).ceil())
    };
    found(
        Severity::Limit,
        "the server is full: it refuses connections",
        format!(
            "{} clients were told SERVER_FULL; the server counts {} refusals; {} of {wanted} connected",
            told.map_or("?".to_owned(), |count| count.to_string()),
            refused.map_or("?".to_owned(), |count| count.to_string()),
            facts.clients().map_or(0, |clients| clients.report.connections),
        ),
        format!("{remedy}; or fewer --clients"),
    )
}

pub(super) fn conntrack_full(facts: Facts<'_>) -> Outcome {
    let said = facts.measured.conntrack_said;
    let fullness = facts.measured.conntrack.map(|(count, max)| count / max);
    let table = match facts.measured.conntrack {
        Some((count, max)) => format!("at most {count:.0} of {max:.0} entries"),
        None => "entries unknown".to_owned(),
    };
    if said.unwrap_or(0) == 0 && fullness.is_none_or(|share| share < TABLE_FULL) {
        return match (said, fullness) {
            // Without the module there are no figures, and nothing to fill.
            (None, None) => unknown("no connection tracking in monitor.csv, and no dmesg.txt"),
            (_, None) => Outcome::Clear("no table in use, and the kernel's log is silent".to_owned()),
            (_, Some(_)) => Outcome::Clear(table),
        };
    }
    found(
        Severity::Limit,
        "the connection tracking table is full: the kernel drops packets of new clients",
        format!(
            "{table}; {} lines of the kernel's log say so",
            said.map_or("?".to_owned(), |n| n.to_string())
        ),
        "sudo scripts/tune_server.sh apply --only conntrack,notrack; on the clients' machines, too: sudo \
         scripts/tune_client.sh apply --only conntrack,notrack",
    )
}

pub(super) fn fill_ring_empty(facts: Facts<'_>) -> Outcome {
    if facts.measured.backend.as_deref().is_some_and(|backend| backend != "xdp") {
        return Outcome::Clear("no fill ring: the backend is not xdp".to_owned());
    }
    let Some(share) = Lost::of(facts, facts.measured.fill_ring_empty) else {
        return unknown("no fill_ring_empty: neither monitor.csv nor the server's summary is there");
    };
    share.outcome(
        "packets",
        "an AF_XDP fill ring ran empty: packets came faster than their buffers came back",
        "a worker that is held up returns no buffers: give each a core of its own (--cpus, and interrupts \
         elsewhere: sudo scripts/pin_irqs.sh IFACE apply), xdp-server --poll busy, or more of them \
         (--queues)",
    )
}

pub(super) fn receive_buffer_overflow(facts: Facts<'_>) -> Outcome {
    let measured = facts.measured;
    let xdp = measured.backend.as_deref() == Some("xdp");
    let mut drops = measured.kernel_drops;
    if xdp {
        // The kernel counts a packet without a fill descriptor under both; it is `fill_ring_empty`'s. The two
        // are sampled at different times, so what they have in common is taken from the whole run.
        let empty = measured.fill_ring_empty.run.unwrap_or(0.0);
        let rest = 1.0 - (empty / drops.run.unwrap_or(0.0).max(1.0)).min(1.0);
        drops = Counted { window: drops.window.map(|n| n * rest), run: drops.run.map(|n| n * rest) };
    }
    // The host counts other programs' sockets, too; so its word is taken where the server's is missing, and
    // what it has beyond the server's is only told.
    let host = measured.host_rcvbuf_errors;
    if drops.judged().is_none() {
        drops = host;
    } else if drops.judged() == Some(0.0) && host.judged().is_some_and(|count| count > 0.0) {
        return found(
            Severity::Note,
            "receive buffer overflow on this host, but not of the server's sockets",
            format!("RcvbufErrors grew by {}", short(host.judged().unwrap_or(0.0))),
            "ss -uanpm shows whose (d in skmem)",
        );
    }
    let Some(share) = Lost::of(facts, drops) else {
        return unknown("no rx_kernel_drops or rcvbuf_err: neither server.jsonl nor monitor.csv is there");
    };
    if xdp {
        share.outcome(
            "packets",
            "an AF_XDP receive ring overflows: packets come faster than its worker takes them",
            "a worker that is held up takes none: give each a core of its own (--cpus), xdp-server --poll \
             busy, or more of them (--queues)",
        )
    } else {
        share.outcome(
            "packets",
            "receive buffer overflow: packets come faster than the workers take them",
            "sudo scripts/tune_server.sh apply --only sockets --backend socket, and xdp-server \
             --socket-recv-buffer 128MiB; if it goes on, more workers (--queues)",
        )
    }
}

pub(super) fn paint_queue_full(facts: Facts<'_>) -> Outcome {
    let overload = facts.measured.drops.get("pixels_overload").copied().map(|count| count as f64);
    let known = facts.results.server.as_ref().is_some_and(|server| !server.seconds.is_empty());
    let counted = Counted { window: overload.or(known.then_some(0.0)), run: None };
    let Some(share) = Lost::of(facts, counted) else {
        return unknown("no pixels_overload: server.jsonl has no seconds");
    };
    share.outcome(
        "pixels",
        "the paint queue to the master is full: pixels are rejected as overload",
        "xdp-server --paint-queue 1048576 for bursts; if it goes on, the master is too slow: a core of \
         its own, the first of --cpus",
    )
}

pub(super) fn client_limited(facts: Facts<'_>) -> Outcome {
    let Some(clients) = facts.clients() else {
        return unknown("no load generator's report");
    };
    let report = &clients.report;
    let side = &report.client;
    let figures = format!(
        "client CPU {:.0}%, its busiest thread {:.0}%; sent late by p99 {}; {} unsent, {} receive errors",
        side.cpu_share * 100.0,
        side.max_thread_cpu_share * 100.0,
        side.late_ms.p99.map_or("?".to_owned(), |ms| format!("{ms:.1} ms")),
        side.unsent,
        side.udp_rcvbuf_errors,
    );
    let Some(why) = &report.limited_by_client else {
        return Outcome::Clear(figures);
    };
    found(
        Severity::Limit,
        "the client is the limit: these are its figures, not the server's",
        format!("{why}; {figures}"),
        "more machines, or more cores: loadgen run paint --processes N on each of several (scripts/bench.sh \
         --client HOST --client HOST); sudo scripts/tune_client.sh apply; on one machine, fewer --clients",
    )
}

pub(super) fn submission_queue_full(facts: Facts<'_>) -> Outcome {
    let measured = facts.measured;
    if measured.backend.as_deref().is_some_and(|backend| backend != "io_uring") {
        return Outcome::Clear("no submission queue: the backend is not io_uring".to_owned());
    }
    let Some(times) = measured.sq_full.judged() else {
        return unknown("no sq_full: neither monitor.csv nor the server's summary is there");
    };
    let share = times / measured.tx_packets.max(1.0);
    let evidence = format!("full {times:.0} times in {:.0} packets sent", measured.tx_packets);
    if times == 0.0 {
        return Outcome::Clear(evidence);
    }
    found(
        if share >= SQ_FULL { Severity::Fault } else { Severity::Note },
        "the io_uring submission queue is full: each time costs a system call",
        evidence,
        "xdp-server --io-uring-sq-depth 32768",
    )
}

pub(super) fn memory_growing(facts: Facts<'_>) -> Outcome {
    let samples = &facts.measured.rss_mb;
    let Some((low, high)) = facts.measured.connections else {
        return unknown("no count of connections in the window");
    };
    if high - low > high * CONSTANT {
        return Outcome::Unknown(format!("connections were not constant: {low:.0} to {high:.0}"));
    }
    if samples.len() < MEMORY_SAMPLES {
        return unknown(
            "fewer than 9 samples of rss_mb in the window: monitor.csv is missing, or it was short",
        );
    }
    let third = samples.len() / 3;
    let level = |from: usize| mean(samples[from..from + third].iter().map(|sample| sample.1)).unwrap_or(0.0);
    let levels = [level(0), level(third), level(samples.len() - third)];
    let growth = slope(samples);
    let minutes = (samples[samples.len() - 1].0 - samples[0].0) / 60.0;
    let evidence = format!(
        "resident memory of the server {:.1} to {:.1} MB, {:+.1} MB a minute, with {high:.0} connections",
        levels[0],
        levels[2],
        growth * 60.0,
    );
    let steady = levels.windows(2).all(|pair| pair[1] - pair[0] >= levels[0] * MEMORY_STEP);
    if !steady || growth * 60.0 * minutes < levels[0] * MEMORY_GROWTH {
        return Outcome::Clear(evidence);
    }
    found(
        Severity::Fault,
        "the server's memory grows though its connections do not",
        evidence,
        "run for longer, to tell a leak from warming up: scripts/bench.sh --duration 600; if it goes on, see \
         whether it depends on clients that vanish (xdp-server --idle-timeout-ms 10000), and report it",
    )
}

pub(super) fn connections_failed(facts: Facts<'_>) -> Outcome {
    let Some(clients) = facts.clients() else {
        return unknown("no load generator's report");
    };
    let causes: Vec<String> =
        clients.report.failures_by_cause.iter().map(|(cause, count)| format!("{count} x {cause}")).collect();
    let evidence = format!("{} of {} failed", clients.report.failed, clients.report.clients);
    if clients.report.failed == 0 {
        return Outcome::Clear(evidence);
    }
    found(
        Severity::Fault,
        format!("{} of {} connections failed", clients.report.failed, clients.report.clients),
        format!(
            "{evidence}: {}",
            if causes.is_empty() { "no cause told".to_owned() } else { causes.join(", ") }
        ),
        "timeouts in the ramp: spread it, --max-conn-jitter 60000; connections lost later: see server.log, \
         and the drops in this report",
    )
}

pub(super) fn run_failed(facts: Facts<'_>) -> Outcome {
    let Some(clients) = facts.clients() else {
        return unknown("no load generator's report");
    };
    let errors = clients.errors();
    if errors.is_empty() {
        return Outcome::Clear("it ended as asked".to_owned());
    }
    found(
        Severity::Limit,
        "the run failed",
        errors.join("; "),
        "see server.log and the load generators' own words (client-*.log), mend that, and run again",
    )
}

/// Packets or pixels lost, against all.
struct Lost {
    count: f64,
    all: f64,
    /// Those outside of the window.
    outside: f64,
}

impl Lost {
    fn of(facts: Facts<'_>, counted: Counted) -> Option<Lost> {
        let count = counted.judged()?;
        let outside = (counted.run.unwrap_or(count) - count).max(0.0);
        Some(Lost { count, all: facts.measured.rx_packets + count, outside })
    }

    fn outcome(&self, things: &str, title: &str, remedy: &str) -> Outcome {
        let share = if self.all > 0.0 { self.count / self.all } else { 0.0 };
        let outside = match self.outside {
            0.0 => String::new(),
            n => format!("; {n:.0} outside of the window"),
        };
        let (count, all) = (short(self.count), short(self.all));
        let evidence = format!("{count} lost of {all} {things} ({:.4}%){outside}", share * 100.0);
        if self.count + self.outside == 0.0 {
            return Outcome::Clear(evidence);
        }
        found(if share >= LOSS { Severity::Limit } else { Severity::Note }, title, evidence, remedy)
    }
}

/// Least-squares slope of samples, per second; 0 of fewer than two times.
fn slope(samples: &[(f64, f64)]) -> f64 {
    let (Some(t), Some(y)) = (mean(samples.iter().map(|s| s.0)), mean(samples.iter().map(|s| s.1))) else {
        return 0.0;
    };
    let covariance: f64 = samples.iter().map(|s| (s.0 - t) * (s.1 - y)).sum();
    let variance: f64 = samples.iter().map(|s| (s.0 - t).powi(2)).sum();
    if variance > 0.0 { covariance / variance } else { 0.0 }
}
