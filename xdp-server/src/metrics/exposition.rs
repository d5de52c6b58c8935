//! The counters in Prometheus' text format, in its OpenMetrics edition.
//!
//! Names are made from those of [`WorkerStats`] and [`MasterStats`] by rule, so that a new counter is exposed
//! by being declared:
//!
//! | counter of a worker | metric, each with `worker`, and with AF_XDP `queue` |
//! |---|---|
//! | `rx_packets`, `tx_bytes`, ... | `xdp_server_received_packets_total`, `xdp_server_sent_bytes_total` |
//! | a cause of drops (`report::drops`) | `xdp_server_drops_total{cause="its name"}` |
//! | `waiting_ns`, any `..._ns` | `xdp_server_time_seconds_total{regime="waiting"}` |
//! | documented as `Gauge:` | `xdp_server_connections`, a gauge |
//! | any other | `xdp_server_handshakes_completed_total` |
//!
//! The master's have no labels, and its times are `xdp_server_master_time_seconds_total`. What is known of
//! the process itself has the names that all exporters give it, `process_cpu_seconds_total` and so on.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::link::Shared;
use crate::report::is_drop;
use crate::stats::{Field, MasterStats, WorkerStats};

/// The format's name in HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How counters' names begin, and how those of their metrics do, for readers who do not know the code. The
/// first that fits counts.
const SPELLED_OUT: [(&str, &str); 4] =
    [("rx_", "received_"), ("tx_packets", "sent_packets"), ("tx_bytes", "sent_bytes"), ("tx_", "transmit_")];

/// What is exposed.
#[derive(Debug)]
pub struct Source(Registry);

impl Source {
    /// The counters that threads publish in `shared`, with the NIC queue of each worker, by index, that has
    /// one, and what all of them have in common.
    pub fn new(
        shared: Arc<Shared>,
        queues: Vec<Option<u32>>,
        backend: Option<&'static str>,
        xdp_mode: Option<&'static str>,
    ) -> Self {
        let mut registry = Registry::default();
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION")),
            ("backend", backend.unwrap_or_default()),
            ("xdp_mode", xdp_mode.unwrap_or_default()),
        ]);
        registry.register("xdp_server_build", "What serves here: version, backend and mode of AF_XDP", build);
        registry.register_collector(Box::new(Server { shared, queues }));
        registry.register_collector(Box::new(Process { started: SystemTime::now() }));
        Self(registry)
    }

    /// All metrics now.
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0).expect("a String takes all text");
        text
    }
}

/// The server's counters.
struct Server {
    shared: Arc<Shared>,
    queues: Vec<Option<u32>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("queues", &self.queues).finish_non_exhaustive()
    }
}

impl Collector for Server {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let workers: Vec<WorkerStats> = self.shared.workers.iter().map(|cell| cell.snapshot()).collect();
        let mut families = families_of_workers(&workers, &self.queues);
        families.extend(families_of_master(&self.shared.master_stats()));
        families.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

/// The process as its kernel sees it.
#[derive(Debug)]
struct Process {
    started: SystemTime,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = |name: &str, help, unit, value| {
            let samples = vec![(Labels::new(), Value::Count(value))];
            Family { name: name.into(), help, unit, kind: MetricType::Gauge, samples }
        };
        let since_epoch = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let help = "Start of the process, in seconds since 1970 UTC.";
        let mut families = vec![gauge("process_start_time", help, Some(Unit::Seconds), since_epoch)];
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let spent = [usage.user_time(), usage.system_time()];
            let seconds = spent.map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).iter().sum();
            families.push(Family {
                name: "process_cpu".into(),
                help: "CPU time of the process, user and system.",
                unit: Some(Unit::Seconds),
                kind: MetricType::Counter,
                samples: vec![(Labels::new(), Value::Seconds(seconds))],
            });
        }
        if let Some((virtual_memory, resident)) = memory() {
            let bytes = Some(Unit::Bytes);
            families.push(gauge("process_virtual_memory", "Mapped memory.", bytes.clone(), virtual_memory));
            families.push(gauge(
                "process_resident_memory",
                "Resident memory, but for huge pages of the pool.",
                bytes,
                resident,
            ));
        }
        families.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

/// Bytes of memory mapped and resident; without huge pages of the pool, which the kernel counts elsewhere.
fn memory() -> Option<(u64, u64)> {
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split(' ').map(str::parse::<u64>);
    Some((pages.next()?.ok()? * page, pages.next()?.ok()? * page))
}

/// The labels of a sample, in order.
type Labels = Vec<(&'static str, String)>;

/// One metric and all its samples: they must stand together.
#[derive(Debug)]
struct Family {
    /// Without unit and `_total`, which are put behind it.
    name: String,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    samples: Vec<(Labels, Value)>,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Count(u64),
    Seconds(f64),
}

impl Family {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(&self.name, self.help, self.unit.as_ref(), self.kind)?;
        for (labels, value) in &self.samples {
            match labels.is_empty() {
                true => self.encode_value(*value, &mut metric)?,
                false => self.encode_value(*value, &mut metric.encode_family(labels)?)?,
            }
        }
        Ok(())
    }

    fn encode_value(&self, value: Value, sample: &mut MetricEncoder<'_>) -> fmt::Result {
        match (self.kind, value) {
            (MetricType::Counter, Value::Count(count)) => {
                sample.encode_counter::<NoLabelSet, _, u64>(&count, None)
            }
            (MetricType::Counter, Value::Seconds(time)) => {
                sample.encode_counter::<NoLabelSet, _, u64>(&time, None)
            }
            (_, Value::Count(count)) => sample.encode_gauge(&count.cast_signed()),
            (_, Value::Seconds(time)) => sample.encode_gauge(&time),
        }
    }
}

/// The workers' counters as metrics.
fn families_of_workers(workers: &[WorkerStats], queues: &[Option<u32>]) -> Vec<Family> {
    let mut families = Vec::new();
    for (index, worker) in workers.iter().enumerate() {
        let mut labels = vec![("worker", index.to_string())];
        let queue = queues.get(index).copied().flatten();
        labels.extend(queue.map(|queue| ("queue", queue.to_string())));
        worker.fields().for_each(|field| add(&mut families, "xdp_server_", field, &labels));
    }
    families
}

/// The master's counters as metrics.
fn families_of_master(master: &MasterStats) -> Vec<Family> {
    let mut families = Vec::new();
    for field in master.fields() {
        // Both kinds of threads keep times; all other names differ.
        let prefix = if field.name.ends_with(NANOSECONDS) { "xdp_server_master_" } else { "xdp_server_" };
        add(&mut families, prefix, field, &Labels::new());
    }
    families
}

/// How the name of a time ends. What is before it names what the time was spent with.
const NANOSECONDS: &str = "_ns";

/// Adds one counter's sample to its metric, which is made if it is not there yet.
fn add(families: &mut Vec<Family>, prefix: &str, field: Field, common: &Labels) {
    let Field { name, doc, value } = field;
    let mut labels = common.clone();
    let (name, help, unit, kind, value) = if let Some(regime) = name.strip_suffix(NANOSECONDS) {
        labels.push(("regime", regime.to_owned()));
        let help = "Time of the thread, by what it was spent with.";
        (
            "time".to_owned(),
            help,
            Some(Unit::Seconds),
            MetricType::Counter,
            Value::Seconds(value as f64 / 1e9),
        )
    } else if is_drop(name) {
        labels.push(("cause", name.to_owned()));
        let help = "Packets, datagrams, pixels and diffs dropped, each in its own unit, by cause.";
        ("drops".to_owned(), help, None, MetricType::Counter, Value::Count(value))
    } else if let Some(help) = doc.strip_prefix("Gauge: ") {
        (name.to_owned(), help, None, MetricType::Gauge, Value::Count(value))
    } else {
        let spelled = SPELLED_OUT.iter().find_map(|(short, long)| Some((long, name.strip_prefix(short)?)));
        let name = spelled.map_or_else(|| name.to_owned(), |(long, rest)| format!("{long}{rest}"));
        // A unit is the end of the name, and is told apart.
        let (name, unit) = match name.strip_suffix("_bytes") {
            Some(name) => (name.to_owned(), Some(Unit::Bytes)),
            None => (name, None),
        };
        (name, doc, unit, MetricType::Counter, Value::Count(value))
    };
    let name = format!("{prefix}{name}");
    match families.iter_mut().find(|family| family.name == name && family.unit.is_some() == unit.is_some()) {
        Some(family) => family.samples.push((labels, value)),
        None => families.push(Family { name, help, unit, kind, samples: vec![(labels, value)] }),
    }
}

#[cfg(test)]
mod tests;
