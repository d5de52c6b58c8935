//! The live line: what happened between two snapshots, for one terminal line or one JSON object.

use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use super::drops::Drops;
use super::format::{Ink, clock, paint, percent, rfc3339, short};
use crate::stats::{MasterStats, WorkerStats};

/// Columns that the line takes at most, so long as one cause of drops is named: a terminal's usual width and
/// a bit.
const COLUMNS: usize = 100;

/// From this share of time working on, a thread is marked: it has no room for a burst any more.
const HOT: f64 = 0.9;

/// All counters at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) workers: Vec<WorkerStats>,
    pub(super) master: MasterStats,
}

impl Snapshot {
    /// The sum over the workers.
    pub(super) fn total(&self) -> WorkerStats {
        self.workers.iter().fold(WorkerStats::default(), |mut sum, worker| {
            sum.add(worker);
            sum
        })
    }
}

/// What happened in one interval, about a second. Rates are per second.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Interval {
    #[serde(serialize_with = "as_rfc3339")]
    time: OffsetDateTime,
    interval_s: f64,
    #[serde(flatten)]
    sum: Rates,
    pixels_applied_per_s: u64,
    /// In this interval, by cause.
    drops: Drops,
    /// Mean over the workers of their share of time working.
    working_mean: Option<f64>,
    /// The largest of these shares.
    working_max: Option<f64>,
    busiest_worker: Option<usize>,
    master_working: Option<f64>,
    workers: Vec<Rates>,
}

/// What one worker did, or all of them.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rates {
    /// Not a rate: now.
    connections: u64,
    messages_per_s: u64,
    diffs_per_s: u64,
    drops_per_s: u64,
    rx_packets_per_s: u64,
    tx_packets_per_s: u64,
    /// Share of time working. Only of one worker: a sum over workers has no such share.
    #[serde(skip_serializing_if = "Option::is_none")]
    working: Option<f64>,
    /// Counters since start, not rates: where the time went.
    #[serde(flatten)]
    regimes: Regimes,
}

impl Interval {
    /// What happened from `before` to `now`. Workers that `before` does not have began at zero.
    pub(super) fn between(
        before: &Snapshot,
        now: &Snapshot,
        interval: Duration,
        time: OffsetDateTime,
    ) -> Interval {
        let seconds = interval.as_secs_f64().max(1e-3); // two calls in a row must not divide by nothing
        let zero = WorkerStats::default();
        let pairs =
            now.workers.iter().enumerate().map(|(i, now)| (before.workers.get(i).unwrap_or(&zero), now));
        let workers: Vec<Rates> = pairs.map(|(before, now)| Rates::between(before, now, seconds)).collect();

        let busiest = workers
            .iter()
            .enumerate()
            .filter_map(|(i, rates)| Some((i, rates.working?)))
            .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))); // of equals the first
        let shares: Vec<f64> = workers.iter().filter_map(|rates| rates.working).collect();
        let mean = (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64);

        let (total_before, total) = (before.total(), now.total());
        let mut sum = Rates::between(&total_before, &total, seconds);
        sum.working = None;
        let (master, master_before) = (&now.master, &before.master);
        Interval {
            time,
            interval_s: seconds,
            sum,
            pixels_applied_per_s: rate(master_before.pixels_applied, master.pixels_applied, seconds),
            drops: Drops::between(&total_before, &total),
            working_mean: mean,
            working_max: busiest.map(|(_, share)| share),
            busiest_worker: busiest.map(|(worker, _)| worker),
            master_working: share(
                master.working_ns.saturating_sub(master_before.working_ns),
                master.waiting_ns.saturating_sub(master_before.waiting_ns),
            ),
            workers,
        }
    }

    /// The line, without its end.
    pub(super) fn line(&self, colour: bool) -> String {
        let sum = &self.sum;
        let busiest = match self.busiest_worker {
            Some(worker) => format!("{} (w{worker})", percent(self.working_max)),
            None => "-".to_owned(),
        };
        let hot = |share: Option<f64>, cell: String| match share {
            Some(share) if share >= HOT => paint(colour, Ink::Yellow, &cell),
            _ => cell,
        };
        let drops = format!("{:>7}", short(sum.drops_per_s));
        let drops = if self.drops.sum() > 0 { paint(colour, Ink::Red, &drops) } else { drops };
        format!(
            "{}{:>7}{:>7}{:>7}{drops}{:>7}{:>7}{:>6}{}{}{}",
            clock(self.time.to_offset(time::UtcOffset::UTC)),
            short(sum.connections),
            short(sum.messages_per_s),
            short(sum.diffs_per_s),
            short(sum.rx_packets_per_s),
            short(sum.tx_packets_per_s),
            percent(self.working_mean),
            hot(self.working_max, format!("{busiest:>13}")),
            hot(self.master_working, format!("{:>8}", percent(self.master_working))),
            self.causes(),
        )
    }

    /// The causes of drops, as many as fit, but one at least.
    fn causes(&self) -> String {
        let room = COLUMNS - header_text().len();
        let mut text = String::new();
        for (label, count) in self.drops.labelled() {
            let next = format!("{}{label} {}", if text.is_empty() { "  " } else { ", " }, short(count));
            if !text.is_empty() && text.len() + next.len() > room {
                break;
            }
            text.push_str(&next);
        }
        text
    }
}

impl Rates {
    fn between(before: &WorkerStats, now: &WorkerStats, seconds: f64) -> Rates {
        let working = now.working_ns().saturating_sub(before.working_ns());
        let waiting = now.waiting_ns.saturating_sub(before.waiting_ns);
        Rates {
            connections: now.connections,
            messages_per_s: rate(before.messages, now.messages, seconds),
            diffs_per_s: rate(before.diffs_sent, now.diffs_sent, seconds),
            drops_per_s: rate(0, Drops::between(before, now).sum(), seconds),
            rx_packets_per_s: rate(before.rx_packets, now.rx_packets, seconds),
            tx_packets_per_s: rate(before.tx_packets, now.tx_packets, seconds),
            working: share(working, waiting),
            regimes: Regimes(*now),
        }
    }
}

/// Nanoseconds since start that went to each regime, by their counters' names.
#[derive(Clone, Copy, Debug)]
struct Regimes(WorkerStats);

impl Serialize for Regimes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .fields()
                .filter(|field| field.name.ends_with("_ns"))
                .map(|field| (field.name, field.value)),
        )
    }
}

/// The header over the columns of [`Interval::line`].
pub(super) fn header(colour: bool) -> String {
    paint(colour, Ink::Bold, &header_text())
}

fn header_text() -> String {
    format!(
        "{:<8}{:>7}{:>7}{:>7}{:>7}{:>7}{:>7}{:>6}{:>13}{:>8}",
        "UTC", "conns", "msg/s", "diff/s", "drop/s", "in/s", "out/s", "busy", "busiest", "master"
    )
}

/// Events per second, rounded. A counter that went back (it cannot) gives 0.
fn rate(before: u64, now: u64, seconds: f64) -> u64 {
    (now.saturating_sub(before) as f64 / seconds).round() as u64
}

/// Share of `working` in the whole; `None` of nothing.
fn share(working: u64, waiting: u64) -> Option<f64> {
    let whole = working as f64 + waiting as f64;
    (whole > 0.0).then(|| working as f64 / whole)
}

fn as_rfc3339<S: serde::Serializer>(time: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_735_732_800).unwrap() + time::Duration::seconds(7)
    }

    fn worker(scale: u64, working_percent: u64) -> WorkerStats {
        WorkerStats {
            connections: 500,
            messages: 14_250 * scale,
            diffs_sent: 10_000 * scale,
            rx_packets: 15_000 * scale,
            tx_packets: 20_600 * scale,
            receiving_ns: working_percent * 10_000_000,
            waiting_ns: (100 - working_percent) * 10_000_000,
            ..Default::default()
        }
    }

    fn master() -> MasterStats {
        MasterStats { pixels_applied: 28_000, working_ns: 12, waiting_ns: 88, ..Default::default() }
    }

    fn interval(workers: Vec<WorkerStats>) -> Interval {
        let now = Snapshot { workers, master: master() };
        Interval::between(&Snapshot::default(), &now, Duration::from_secs(1), noon())
    }

    #[test]
    fn the_line_is_aligned_under_its_header() {
        assert_eq!(
            format!("{}\n{}", header(false), interval(vec![worker(1, 41), worker(1, 83)]).line(false)),
            "UTC       conns  msg/s diff/s drop/s   in/s  out/s  busy      busiest  master\n\
             12:00:07   1000  28.5k  20.0k      0  30.0k  41.2k   62%     83% (w1)     12%"
        );
    }

    #[test]
    fn drops_are_named_largest_first_within_the_width() {
        let dropping = WorkerStats { rx_kernel_drops: 12, drop_quic: 3, drop_full: 2, ..worker(1, 5) };
        let line = interval(vec![dropping, dropping]).line(false);
        assert!(
            line.ends_with("     34  30.0k  41.2k    5%      5% (w0)     12%  kernel 24, quic 6"),
            "{line}"
        );
        let worst = WorkerStats { drop_not_initial: u64::MAX / 2, ..worker(1_000_000_000, 100) };
        let line = interval(vec![worst; 2]).line(false);
        assert!(line.len() <= COLUMNS + 4 && line.contains("not initial"), "{line}");
    }

    #[test]
    fn forty_seven_workers_take_one_line_of_a_hundred_columns() {
        let line = interval((0..47).map(|i| worker(1000, 50 + i)).collect()).line(false);
        assert!(!line.contains('\n') && line.len() <= COLUMNS, "{line}");
        assert!(line.contains("96% (w46)") && line.contains("73%"), "{line}");
    }

    #[test]
    fn rates_are_of_the_interval_and_connections_of_now() {
        let before = Snapshot { workers: vec![worker(1, 100)], master: MasterStats::default() };
        let mut later = worker(3, 100);
        later.waiting_ns += 3_000_000_000;
        later.sending_ns += 1_000_000_000;
        let now = Snapshot { workers: vec![later], master: MasterStats::default() };
        let interval = Interval::between(&before, &now, Duration::from_secs(2), noon());
        let line = interval.line(false);
        assert!(
            line.starts_with("12:00:07    500  14.2k  10.0k      0  15.0k  20.6k   25%     25% (w0)       -"),
            "{line}"
        );
    }

    #[test]
    fn nothing_at_all_is_a_line_too() {
        let line =
            Interval::between(&Snapshot::default(), &Snapshot::default(), Duration::ZERO, noon()).line(false);
        assert_eq!(line, "12:00:07      0      0      0      0      0      0     -            -       -");
    }

    #[test]
    fn colours_mark_drops_and_hot_threads_only() {
        assert!(!interval(vec![worker(1, 50)]).line(true).contains('\x1b'));
        let line = interval(vec![WorkerStats { drop_quic: 1, ..worker(1, 95) }]).line(true);
        assert!(
            line.contains("\x1b[31m      1\x1b[0m") && line.contains("\x1b[33m     95% (w0)\x1b[0m"),
            "{line:?}"
        );
    }

    #[test]
    fn json_has_the_sums_and_every_worker() {
        let dropping = WorkerStats { rx_kernel_drops: 4, ..worker(1, 83) };
        let json = serde_json::to_value(interval(vec![worker(1, 41), dropping])).unwrap();
        assert_eq!(json["time"], "2025-01-01T12:00:07Z");
        assert_eq!((&json["connections"], &json["messages_per_s"]), (&1000.into(), &28_500.into()));
        assert_eq!((&json["drops_per_s"], &json["drops"]["rx_kernel_drops"]), (&4.into(), &4.into()));
        assert_eq!((&json["working_max"], &json["busiest_worker"]), (&0.83.into(), &1.into()));
        assert_eq!((&json["master_working"], json.get("working")), (&0.12.into(), None));
        assert_eq!(json["pixels_applied_per_s"], 28_000);
        assert_eq!(json["workers"][0]["rx_packets_per_s"], 15_000);
        assert_eq!(json["workers"][1]["working"], 0.83);
        assert_eq!(json["workers"].as_array().unwrap().len(), 2);
    }
}
