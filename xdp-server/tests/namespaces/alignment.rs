//! Source ports chosen for the server's queues: by the server's own count, every queue gets its share, or one
//! queue gets everything. On veth, where the sender's transmit queue decides, four queues each way.

use std::fs::{self, File};
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::programs::{Clients, Home, Server, eventually};
use crate::{V4, V6, total, with_queues};

/// Queues of the cable, and workers of the server.
const QUEUES: usize = 4;
/// Clients of each run. One more connection asks for the server's figures, and may be on any queue.
const CLIENTS: u64 = 180;
/// Their flags. Eighteen ports are ten clients each, and by no luck at all the same number on each of four
/// queues.
const LOAD: &[&str] = &[
    "--clients",
    "180",
    "--num-endpoints",
    "18",
    "--threads",
    "2",
    "--watchers",
    "0",
    "--min-pixel-wait",
    "100",
    "--max-pixel-wait",
    "200",
    "--duration",
    "2",
];
/// What counts as even: issue and README say so.
const EVEN: f64 = 1.05;

/// What the server counted, queue by queue, and what the load generator reported.
struct Counted {
    connections: Vec<u64>,
    packets: Vec<u64>,
    report: Value,
}

/// The file that the server's user makes for the load generator's.
fn rss_config(home: &Home) -> String {
    let file = home.file("rss.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xdp-server"));
    command.args(["rss", "--json", "--iface", "serv0"]).stdout(File::create(&file).unwrap());
    assert!(command.status().unwrap().success());
    file
}

/// Runs a server and clients with these flags more; `RSS` among them stands for the file that describes the
/// interface.
fn count(lab: &Lab, target: &str, more: &[&str]) -> Counted {
    let home = Home::new();
    let rss = rss_config(&home);
    let more: Vec<_> = more.iter().map(|&flag| if flag == "RSS" { &rss } else { flag }).collect();

    let queues = QUEUES.to_string();
    let interface = ["--iface", "serv0", "--queues", &queues, "--listen", "[::]:4433"];
    let server =
        Server::start(&home, &[&interface[..], &["--backend", "xdp", "--xdp-mode", "copy"]].concat());
    let clients = Clients::far(lab, target, &[LOAD, &more].concat());
    let connections = eventually("all clients are connected", || {
        let second = server.last("second")?;
        let of = |worker: &Value| worker["connections"].as_u64();
        (total(&second, "connections") > CLIENTS)
            .then(|| second["workers"].as_array()?.iter().map(of).collect::<Option<Vec<_>>>())
            .flatten()
    });
    let (code, report) = clients.end();
    assert_eq!((code, &report["connections"]), (0, &json!(CLIENTS)), "{report:#}");
    let packets = serde_json::from_value(server.stop()["rx_packets_per_queue"].clone()).unwrap();
    Counted { connections, packets, report }
}

/// The busiest queue over the mean.
fn skew(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    *counts.iter().max().unwrap() as f64 * counts.len() as f64 / total as f64
}

#[test]
fn aligned_connections_load_all_queues_alike() {
    with_queues(QUEUES, |lab| {
        let chance = count(lab, V4, &[]);
        assert!(skew(&chance.connections) > EVEN, "{:?}", chance.connections);
        assert_eq!(chance.report["queues"], Value::Null);

        for target in [V4, V6] {
            let aligned = count(lab, target, &["--align-queues", "--rss-config", "RSS"]);
            assert!(skew(&aligned.connections) <= EVEN, "{target}: {:?}", aligned.connections);
            // Twice as much, since a busy machine makes some send packets again.
            assert!(skew(&aligned.packets) <= 1.0 + 2.0 * (EVEN - 1.0), "{target}: {:?}", aligned.packets);
            // 18 ports asked for, 20 taken: five for each queue.
            let share = |queue| json!({ "queue": queue, "connections": CLIENTS / 4, "ports": 5 });
            let shares: Vec<_> = (0..QUEUES).map(share).collect();
            assert_eq!(aligned.report["queues"], json!(shares));
        }
    });
}

#[test]
fn one_queue_can_be_loaded_alone() {
    with_queues(QUEUES, |lab| {
        let only = count(lab, V4, &["--align-queues", "--rss-config", "RSS", "--only-queue", "2"]);
        // Ours, and perhaps the one that asks for figures.
        assert!(only.connections[2] >= CLIENTS, "{:?}", only.connections);
        assert_eq!(only.report["queues"], json!([{ "queue": 2, "connections": CLIENTS, "ports": 18 }]));
    });
}

#[test]
fn a_host_that_chooses_queues_by_cpu_is_told_so() {
    with_queues(QUEUES, |lab| {
        lab.in_client(|| fs::write("/sys/class/net/clnt0/queues/tx-1/xps_cpus", "1").unwrap());
        let home = Home::new();
        let rss = rss_config(&home);
        let server = Server::start(&home, crate::SOCKETS);
        let clients = Clients::far(lab, V4, &["--clients", "4", "--align-queues", "--rss-config", &rss]);
        let (code, report) = clients.end();
        let error = report["error"].as_str().unwrap();
        assert!(code == 1 && error.contains("clnt0 chooses its transmit queue by CPU (XPS)"), "{report:#}");
        server.stop();
    });
}
