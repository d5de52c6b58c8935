//! `server.jsonl`: what `xdp-server --json` says at start, each second, and at the end.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The server's own account of the run.
#[derive(Debug, Default)]
pub struct Server {
    /// Unix milliseconds of its first line.
    pub origin_ms: Option<u64>,
    /// `xdp`, `io_uring`, `socket`, or `mixed`.
    pub backend: Option<String>,
    /// `zerocopy`, `copy` or `generic`, with `xdp`.
    pub xdp_mode: Option<String>,
    /// Workers, each with its queue.
    pub queues: usize,
    /// One entry each second.
    pub seconds: Vec<ServerSecond>,
    /// Each worker's counters at the end, by name; empty when the server did not end by itself.
    pub totals: Vec<BTreeMap<String, u64>>,
    /// Regimes that the server tells apart, as its counters `REGIME_ns` do, waiting last.
    pub regimes: Vec<String>,
}

/// What the server did in one second. Rates are per second.
#[derive(Debug, Default)]
pub struct ServerSecond {
    /// The end of the interval.
    pub t_s: f64,
    /// How long the interval was.
    pub interval_s: f64,
    /// Connections at its end.
    pub connections: f64,
    /// Client messages received.
    pub messages_per_s: f64,
    /// Diffs handed out.
    pub diffs_per_s: f64,
    /// UDP payloads received.
    pub rx_packets_per_s: f64,
    /// UDP payloads sent.
    pub tx_packets_per_s: f64,
    /// Drops in this interval, by cause.
    pub drops: BTreeMap<String, u64>,
    /// Share of the master's time spent working.
    pub master_working: Option<f64>,
    /// By worker.
    pub workers: Vec<WorkerSecond>,
}

/// What one worker did in one second.
#[derive(Clone, Debug, Default)]
pub struct WorkerSecond {
    /// Connections at the end of the interval.
    pub connections: f64,
    /// Client messages received.
    pub messages_per_s: f64,
    /// UDP payloads received.
    pub rx_packets_per_s: f64,
    /// Drops of all causes.
    pub drops_per_s: f64,
    /// Share of time working.
    pub working: Option<f64>,
    /// Share of time by regime, as [`Server::regimes`]; all zero where it is not known.
    pub regimes: Vec<f64>,
}

/// What is told of the time where the server names no regimes.
const WORKING: &str = "working";
/// The regime of having nothing to do.
const WAITING: &str = "waiting";

impl Server {
    /// Takes what there is from the lines; times count from `origin_ms`, or from the first line.
    pub(super) fn parse(lines: &[Value], origin_ms: Option<u64>) -> Option<Server> {
        let first_ms = lines.iter().find_map(unix_ms);
        let origin_ms = origin_ms.or(first_ms)?;
        let mut server = Server { origin_ms: first_ms, regimes: regimes(lines), ..Server::default() };
        let mut before: Vec<Vec<u64>> = Vec::new();
        for line in lines {
            match text(line, "event") {
                Some("start") => {
                    server.backend = text(line, "backend").map(str::to_owned);
                    server.xdp_mode = text(line, "xdp_mode").map(str::to_owned);
                    server.queues = number(line, "queues") as usize;
                }
                Some("second") => {
                    if let Some(ms) = unix_ms(line) {
                        let t_s = (ms as f64 - origin_ms as f64) / 1000.0;
                        let second = ServerSecond::parse(line, t_s, &server.regimes, &mut before);
                        server.queues = server.queues.max(second.workers.len());
                        server.seconds.push(second);
                    }
                }
                Some("summary") => server.totals = items(line, "workers").map(counters).collect(),
                _ => {}
            }
        }
        Some(server)
    }

    /// The seconds that are wholly in `window`. The server tells the time in whole seconds, rounded down: one
    /// that is said to end at 7 may end anywhere before 8.
    pub fn within(&self, window: (f64, f64)) -> impl Iterator<Item = &ServerSecond> + '_ {
        let is_in = move |second: &&ServerSecond| {
            second.t_s - second.interval_s >= window.0 && second.t_s + 1.0 <= window.1
        };
        self.seconds.iter().filter(is_in)
    }

    /// The sum over the workers of a counter at the end.
    pub fn total(&self, counter: &str) -> Option<u64> {
        let known: Vec<u64> = self.totals.iter().filter_map(|worker| worker.get(counter).copied()).collect();
        (!known.is_empty()).then(|| known.iter().sum())
    }
}

impl ServerSecond {
    fn parse(line: &Value, t_s: f64, regimes: &[String], before: &mut Vec<Vec<u64>>) -> ServerSecond {
        let workers: Vec<&Value> = items(line, "workers").collect();
        before.resize(workers.len(), vec![0; regimes.len()]);
        ServerSecond {
            t_s,
            interval_s: number(line, "interval_s"),
            connections: number(line, "connections"),
            messages_per_s: number(line, "messages_per_s"),
            diffs_per_s: number(line, "diffs_per_s"),
            rx_packets_per_s: number(line, "rx_packets_per_s"),
            tx_packets_per_s: number(line, "tx_packets_per_s"),
            drops: line.get("drops").map(counters).unwrap_or_default(),
            master_working: line.get("master_working").and_then(Value::as_f64),
            workers: workers
                .iter()
                .zip(before)
                .map(|(worker, before)| WorkerSecond::parse(worker, regimes, before))
                .collect(),
        }
    }
}

impl WorkerSecond {
    /// `before` has the regimes' counters of the last second, and is given those of this one.
    fn parse(worker: &Value, regimes: &[String], before: &mut Vec<u64>) -> WorkerSecond {
        let working = worker.get(WORKING).and_then(Value::as_f64);
        let now: Vec<Option<u64>> =
            regimes.iter().map(|name| worker.get(format!("{name}_ns")).and_then(Value::as_u64)).collect();
        let shares = if now.iter().all(Option::is_none) {
            let share = |name: &String| match (working, name.as_str()) {
                (Some(working), WORKING) => working,
                (Some(working), WAITING) => 1.0 - working,
                _ => 0.0,
            };
            regimes.iter().map(share).collect()
        } else {
            let now: Vec<u64> = now.into_iter().map(Option::unwrap_or_default).collect();
            let spent: Vec<f64> =
                now.iter().zip(&*before).map(|(now, before)| now.saturating_sub(*before) as f64).collect();
            *before = now;
            let whole = spent.iter().sum::<f64>().max(1.0);
            spent.iter().map(|ns| ns / whole).collect()
        };
        WorkerSecond {
            connections: number(worker, "connections"),
            messages_per_s: number(worker, "messages_per_s"),
            rx_packets_per_s: number(worker, "rx_packets_per_s"),
            drops_per_s: number(worker, "drops_per_s"),
            working,
            regimes: shares,
        }
    }
}

/// The names of the regimes in the workers of the seconds: whatever the server counts in `_ns`. Without any,
/// it is working or waiting.
fn regimes(lines: &[Value]) -> Vec<String> {
    let second = lines.iter().find(|line| text(line, "event") == Some("second"));
    let worker = second.and_then(|line| items(line, "workers").next()).and_then(Value::as_object);
    let mut names: Vec<String> = worker
        .into_iter()
        .flat_map(Map::keys)
        .filter_map(|key| key.strip_suffix("_ns").map(str::to_owned))
        .collect();
    if names.is_empty() {
        names = vec![WORKING.to_owned(), WAITING.to_owned()];
    }
    names.sort_by_key(|name| name == WAITING);
    names
}

fn unix_ms(line: &Value) -> Option<u64> {
    let time = OffsetDateTime::parse(text(line, "time")?, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// A figure; what is not there is 0.
fn number(object: &Value, key: &str) -> f64 {
    object.get(key).and_then(Value::as_f64).unwrap_or(0.0)
}

fn items<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    object.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn counters(object: &Value) -> BTreeMap<String, u64> {
    let entries = object.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn regimes_are_the_differences_of_whatever_is_counted_in_ns() {
        let second = |t: &str, waiting: u64, sending: u64| {
            json!({"event": "second", "time": t, "interval_s": 1.0,
                   "workers": [{"waiting_ns": waiting, "sending_ns": sending, "working": 0.5}]})
        };
        let lines = [
            second("2025-01-01T12:00:01Z", 750, 250),
            second("2025-01-01T12:00:02Z", 1150, 850),
            json!({"event": "summary", "time": "2025-01-01T12:00:02Z", "workers": [{"sq_full": 2}]}),
        ];
        let server = Server::parse(&lines, Some(1_735_732_800_000)).unwrap();
        assert_eq!(server.regimes, ["sending", "waiting"]);
        assert_eq!(server.seconds[1].t_s, 2.0);
        assert_eq!(server.seconds[0].workers[0].regimes, [0.25, 0.75]);
        assert_eq!(server.seconds[1].workers[0].regimes, [0.6, 0.4]);
        assert_eq!((server.total("sq_full"), server.total("other")), (Some(2), None));
        assert_eq!(server.within((1.0, 9.0)).count(), 1);
        assert_eq!(server.within((0.0, 2.9)).count(), 1);
    }

    #[test]
    fn without_regimes_it_is_working_or_waiting() {
        let lines = [json!({"event": "second", "time": "2025-01-01T12:00:01Z",
                            "workers": [{"working": 0.25}, {}]})];
        let server = Server::parse(&lines, None).unwrap();
        assert_eq!(server.regimes, ["working", "waiting"]);
        assert_eq!(server.seconds[0].workers[0].regimes, [0.25, 0.75]);
        assert_eq!(server.seconds[0].workers[1].regimes, [0.0, 0.0]);
        assert_eq!(server.queues, 2);
    }

    #[test]
    fn lines_that_say_nothing_are_no_server() {
        assert!(Server::parse(&[json!(1), json!({"event": "second"})], None).is_none());
    }
}
