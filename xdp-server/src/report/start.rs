//! What is said once, at start: the topology as a table, the address, the certificate, how to connect.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::format::{Ink, base64, hex, minute, paint, rfc3339};
use crate::cli::Settings;
use crate::host::topology::{MasterPlacement, Poll, Topology, WorkerPlacement};
use crate::state::Identity;

/// What one worker's packet I/O got from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerIo {
    /// Name of the backend: `xdp`, `io_uring`, `socket`.
    pub backend: &'static str,
    /// Mode that the backend got: `zerocopy`, `copy`, `generic`; `None` where there are none.
    pub mode: Option<&'static str>,
    /// The packet memory and its pages, in words, such as `16 MiB UMEM, 2 MiB pages`.
    pub memory: String,
}

/// Everything that the start is reported from.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// What was asked for.
    pub settings: &'a Settings,
    /// Where the threads run.
    pub topology: &'a Topology,
    /// What each worker got, by index.
    pub io: &'a [WorkerIo],
    /// Addresses under which clients can reach the server, best first; may be empty.
    pub addresses: &'a [IpAddr],
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// The certificate.
    pub identity: &'a Identity,
    /// Further notes, one sentence each: rungs not taken, memory not got. Those of topology and identity are
    /// added.
    pub notes: &'a [String],
}

/// What all workers have in common; `mixed` where they differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Common {
    pub(crate) backend: Option<&'static str>,
    pub(crate) mode: Option<&'static str>,
}

/// For workers that do not all have the same.
const MIXED: &str = "mixed";

impl Start<'_> {
    /// What all workers have in common.
    pub(crate) fn common(&self) -> Common {
        let of = |what: fn(&WorkerIo) -> Option<&'static str>| {
            let first = self.io.first().and_then(what);
            if self.io.iter().all(|io| what(io) == first) { first } else { Some(MIXED) }
        };
        Common { backend: of(|io| Some(io.backend)), mode: of(|io| io.mode) }
    }

    fn all_notes(&self) -> impl Iterator<Item = &String> {
        self.notes.iter().chain(&self.topology.notes).chain(&self.identity.notes)
    }

    fn url(&self) -> String {
        let listen = self.settings.listen;
        let host = match listen.ip() {
            ip if !ip.is_unspecified() => Some(ip),
            _ => self.addresses.first().copied(),
        };
        match host {
            Some(ip) => format!("https://{}", SocketAddr::new(ip, listen.port())),
            None => format!("https://localhost:{}", listen.port()),
        }
    }

    /// The text for humans, all lines ended.
    pub(super) fn text(&self, colour: bool) -> String {
        let settings = self.settings;
        let workers = self.topology.workers.len();
        let mut lines = vec![format!(
            "{} {}: canvas {} x {} pixels, tick {} ms, {workers} worker{}, {} polling",
            paint(colour, Ink::Bold, "xdp-server"),
            env!("CARGO_PKG_VERSION"),
            settings.width,
            settings.height,
            settings.tick.as_millis(),
            if workers == 1 { "" } else { "s" },
            poll_name(self.topology.poll),
        )];
        lines.extend(self.table(colour));

        let identity = self.identity;
        let validity = match identity.self_signed {
            true => format!(
                "self-signed, until {} (a start on its last day renews it)",
                minute(identity.not_after)
            ),
            false => format!("valid until {}", minute(identity.not_after)),
        };
        lines.push(format!("listening    {} (UDP)", settings.listen));
        lines.push(format!("certificate  {validity}"));
        lines.push(format!("  file       {}", identity.cert_pem_path.display()));
        lines.push(format!("  SHA-256    {}", hex(&identity.sha256)));
        lines.push(format!("  in base64  {} (serverCertificateHashes)", base64(&identity.sha256)));
        lines.extend(self.metrics.map(|address| format!("metrics      http://{address}/metrics")));
        lines.push(format!("connect      loadgen --target {} --clients 1000 --verify", self.url()));
        lines.extend(self.all_notes().map(|note| format!("{} {note}", paint(colour, Ink::Yellow, "note:"))));
        lines.push(String::new());
        lines.join("\n")
    }

    fn table(&self, colour: bool) -> Vec<String> {
        let iface = self.settings.iface.as_deref().unwrap_or_default();
        let queue_name = |queue| format!("{iface}:{queue}");
        let dash = || "-".to_owned();
        let mut rows = vec![["worker", "queue", "core", "node", "backend", "memory"].map(str::to_owned)];
        if let MasterPlacement::OwnCore(cpu) = self.topology.master {
            rows.push(["master".to_owned(), dash(), cpu.to_string(), dash(), dash(), dash()]);
        }
        for (worker, io) in self.topology.workers.iter().zip(self.io) {
            let with_master = self.topology.master == MasterPlacement::StageOfWorker0 && worker.index == 0;
            rows.push([
                format!("{}{}", worker.index, if with_master { " + master" } else { "" }),
                served_queue(worker, io).map_or_else(dash, queue_name),
                worker.cpu.to_string(),
                worker.node.map_or_else(dash, |node| node.to_string()),
                [io.backend].into_iter().chain(io.mode).collect::<Vec<_>>().join(" "),
                io.memory.clone(),
            ]);
        }
        let mut widths = [0; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let align = |row: &[String; 6]| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            format!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end())
        };
        let mut lines: Vec<String> = rows.iter().map(align).collect();
        lines[0] = paint(colour, Ink::Bold, &lines[0]);
        lines
    }

    /// The same for programs.
    pub(super) fn json(&self, at: OffsetDateTime) -> Value {
        let settings = self.settings;
        let common = self.common();
        let master = match self.topology.master {
            MasterPlacement::OwnCore(cpu) => Some(cpu),
            MasterPlacement::StageOfWorker0 => None,
        };
        let worker = |(worker, io): (&WorkerPlacement, &WorkerIo)| {
            json!({
                "worker": worker.index,
                "queue": served_queue(worker, io),
                "cpu": worker.cpu,
                "node": worker.node,
                "backend": io.backend,
                "xdp_mode": io.mode,
                "memory": io.memory,
            })
        };
        json!({
            "event": "start",
            "time": rfc3339(at),
            "version": env!("CARGO_PKG_VERSION"),
            "listen": settings.listen,
            "metrics": self.metrics,
            "url": self.url(),
            "iface": settings.iface,
            "backend": common.backend,
            "xdp_mode": common.mode,
            "queues": self.topology.workers.len(),
            "poll": poll_name(self.topology.poll),
            "master_cpu": master,
            "workers": self.topology.workers.iter().zip(self.io).map(worker).collect::<Vec<_>>(),
            "width": settings.width,
            "height": settings.height,
            "tick_ms": settings.tick.as_millis() as u64,
            "certificate": {
                "path": self.identity.cert_pem_path.to_string_lossy(),
                "sha256": hex(&self.identity.sha256),
                "sha256_base64": base64(&self.identity.sha256),
                "not_after": rfc3339(self.identity.not_after),
                "self_signed": self.identity.self_signed,
            },
            "notes": self.all_notes().collect::<Vec<_>>(),
        })
    }
}

/// The queue that a worker serves: planned, and not lost by a step down to sockets.
pub(crate) fn served_queue(worker: &WorkerPlacement, io: &WorkerIo) -> Option<u32> {
    worker.queue.filter(|_| io.mode.is_some())
}

fn poll_name(poll: Poll) -> &'static str {
    match poll {
        Poll::Busy => "busy",
        Poll::Adaptive => "adaptive",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::Metrics;

    /// The parts of a start with two workers on `veth-s`.
    pub(in crate::report) struct Parts {
        pub(in crate::report) settings: Settings,
        pub(in crate::report) topology: Topology,
        pub(in crate::report) io: Vec<WorkerIo>,
        identity: Identity,
        addresses: Vec<IpAddr>,
        notes: Vec<String>,
    }

    impl Parts {
        pub(in crate::report) fn new() -> Parts {
            let io = |mode| WorkerIo {
                backend: "xdp",
                mode: Some(mode),
                memory: "16 MiB UMEM, 2 MiB pages".to_owned(),
            };
            let worker = |index| WorkerPlacement {
                index,
                queue: Some(index.into()),
                cpu: 1 + usize::from(index),
                node: Some(0),
            };
            Parts {
                settings: Settings { iface: Some("veth-s".into()), ..Settings::default() },
                topology: Topology {
                    master: MasterPlacement::OwnCore(0),
                    workers: vec![worker(0), worker(1)],
                    poll: Poll::Busy,
                    notes: vec!["of the topology".into()],
                    unserved_queues: None,
                },
                io: vec![io("copy"), io("copy")],
                identity: Identity {
                    cert_pem_path: "/s/cert.pem".into(),
                    key_pem_path: "/s/cert.key".into(),
                    sha256: [0xfb; 32],
                    not_after: OffsetDateTime::from_unix_timestamp(1_735_732_800).unwrap(),
                    self_signed: true,
                    notes: vec!["of the identity".into()],
                },
                addresses: vec!["2001:db8::1".parse().unwrap()],
                notes: vec!["of the backend".into()],
            }
        }

        pub(in crate::report) fn start(&self) -> Start<'_> {
            Start {
                settings: &self.settings,
                topology: &self.topology,
                io: &self.io,
                addresses: &self.addresses,
                metrics: Some(Metrics::USUAL),
                identity: &self.identity,
                notes: &self.notes,
            }
        }
    }

    #[test]
    fn the_text_says_everything_in_a_hundred_columns() {
        let expected = format!(
            "xdp-server {}: canvas 1000 x 1000 pixels, tick 50 ms, 2 workers, busy polling
  worker  queue     core  node  backend   memory
  master  -         0     -     -         -
  0       veth-s:0  1     0     xdp copy  16 MiB UMEM, 2 MiB pages
  1       veth-s:1  2     0     xdp copy  16 MiB UMEM, 2 MiB pages
listening    [::]:4433 (UDP)
certificate  self-signed, until 2025-01-01 12:00 UTC (a start on its last day renews it)
  file       /s/cert.pem
  SHA-256    fbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfb
  in base64  +/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s= (serverCertificateHashes)
metrics      http://127.0.0.1:9464/metrics
connect      loadgen --target https://[2001:db8::1]:4433 --clients 1000 --verify
note: of the backend
note: of the topology
note: of the identity
",
            env!("CARGO_PKG_VERSION")
        );
        let text = Parts::new().start().text(false);
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.len() <= 100));
    }

    #[test]
    fn a_small_host_on_sockets_is_told_apart() {
        let mut parts = Parts::new();
        parts.topology.master = MasterPlacement::StageOfWorker0;
        parts.topology.poll = Poll::Adaptive;
        parts.topology.workers.truncate(1);
        parts.io = vec![WorkerIo { backend: "socket", mode: None, memory: "plain pages".into() }];
        parts.settings.listen = "192.0.2.7:5000".parse().unwrap();
        let text = parts.start().text(false);
        assert!(text.contains("1 worker, adaptive polling"), "{text}");
        assert!(text.contains("\n  0 + master  -      1     0     socket   plain pages\n"), "{text}");
        assert!(text.contains("--target https://192.0.2.7:5000 "), "{text}");

        parts.settings.listen = "0.0.0.0:5000".parse().unwrap();
        parts.addresses.clear();
        assert_eq!(parts.start().url(), "https://localhost:5000");
    }

    #[test]
    fn json_has_what_scripts_read() {
        let mut parts = Parts::new();
        let at = OffsetDateTime::UNIX_EPOCH;
        let json = parts.start().json(at);
        assert_eq!((&json["event"], &json["time"]), (&"start".into(), &"1970-01-01T00:00:00Z".into()));
        assert_eq!(
            (&json["backend"], &json["xdp_mode"], &json["queues"]),
            (&"xdp".into(), &"copy".into(), &2.into())
        );
        assert_eq!((&json["listen"], &json["master_cpu"]), (&"[::]:4433".into(), &0.into()));
        assert_eq!(json["metrics"], "127.0.0.1:9464");
        assert_eq!(json["workers"][1]["cpu"], 2);
        assert_eq!(json["certificate"]["sha256_base64"], "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=");
        assert_eq!(json["notes"].as_array().unwrap().len(), 3);

        parts.io[1].mode = Some("generic");
        assert_eq!(parts.start().json(at)["xdp_mode"], "mixed");
    }
}
