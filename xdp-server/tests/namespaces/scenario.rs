//! The scenario of `scenario.toml`, on every backend that it names.
//!
//! ```text
//!   audience   connects ─────── looks on ────────────────────────────────────────► is told DRAINING
//!   painters            connect ── paint, move ── verify, dump ── leave
//!   server     starts ───────────────────────────────────────────── SIGTERM, drains, dumps, exits 0
//!   network    loses packets, both ways, all the time
//! ```
//!
//! At the end the painters' mirrors, the snapshot that they were compared with, and the server's own canvas
//! are equal to the byte.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::canvases::same_canvas;
use crate::lab::Lab;
use crate::programs::{Clients, Server, eventually};
use crate::{V4, attached, in_namespaces, total};

/// What `scenario.toml` says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    loss: u32,
    server: Program,
    backends: BTreeMap<String, Backend>,
    painters: Program,
    audience: Program,
}

/// A program's command line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    flags: String,
}

impl Program {
    fn flags(&self) -> Vec<&str> {
        self.flags.split_whitespace().collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Backend {
    flags: String,
    backend: String,
    xdp_mode: Option<String>,
}

/// Loses packets of the server's port at the clients' end of the cable, each way by itself.
fn lose(lab: &Lab, percent: u32) {
    let chain = |hook: &str, port: &str| {
        format!(
            "chain {hook} {{ type filter hook {hook} device clnt0 priority 0; \
             udp {port} 4433 numgen random mod 100 < {percent} counter drop; }}; "
        )
    };
    let chains = [chain("ingress", "sport"), chain("egress", "dport")].concat();
    lab.client(&format!("echo \"table netdev loss {{ {chains} }}\" | nft -f -"));
}

/// How many packets got lost, by direction.
fn lost(lab: &Lab) -> Vec<u64> {
    let listing: Value = serde_json::from_str(&lab.client("nft -j list table netdev loss")).unwrap();
    let statements =
        listing["nftables"].as_array().unwrap().iter().filter_map(|entry| entry["rule"]["expr"].as_array());
    statements.flatten().filter_map(|statement| statement["counter"]["packets"].as_u64()).collect()
}

fn play(name: &str) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/namespaces/scenario.toml");
    let scenario: Scenario = toml::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let backend = &scenario.backends[name];
    in_namespaces(|lab| {
        lose(lab, scenario.loss);
        let mut audience = None;
        let flags: Vec<&str> = backend.flags.split_whitespace().chain(scenario.server.flags()).collect();
        let outcome = same_canvas(&flags, |server, dump| {
            audience = Some(Clients::far(lab, V4, &scenario.audience.flags()));
            all_connected(server, &scenario.audience);
            Clients::far(lab, V4, &[&scenario.painters.flags()[..], dump].concat())
        });
        let outcome = outcome.alone();
        for report in [&outcome.started, &outcome.summary] {
            assert_eq!(
                (&report["backend"], &report["xdp_mode"]),
                (&json!(backend.backend), &json!(backend.xdp_mode))
            );
            assert_eq!(report["queues"], 2, "workers");
        }

        // It was as bad as it was meant to be.
        let lost = lost(lab);
        assert!(lost.len() == 2 && lost.iter().all(|packets| *packets > 50), "{lost:?}");
        let counted = |what: &str| outcome.report[what].as_u64().unwrap();
        assert!(counted("gaps") > 0 && counted("repairs") > 0, "{:#}", outcome.report);
        // 16 sockets, seven times each or more, less on a busy machine.
        assert!(counted("rebinds") >= 64, "{}", outcome.report["rebinds"]);

        // Who was still there was told why the server ended.
        let (code, report) = audience.expect("it was started").end();
        assert_eq!(
            (code, &report["failures_by_cause"]),
            (4, &json!({ "DRAINING": report["clients"] })),
            "{report:#}"
        );
        assert_eq!(total(&outcome.summary, "strays_dropped"), 0);
        assert_eq!(attached(lab), Value::Null, "the program is still attached");
    });
}

/// Waits until all clients of `program`, and its one connection for questions, are connected.
fn all_connected(server: &Server, program: &Program) {
    let clients: u64 =
        program.flags().windows(2).find(|pair| pair[0] == "--clients").unwrap()[1].parse().unwrap();
    eventually("the audience is connected", || {
        server.last("second").filter(|second| second["connections"].as_u64() > Some(clients))
    });
}

#[test]
fn on_native_af_xdp() {
    play("xdp_native");
}

#[test]
fn on_generic_af_xdp() {
    play("xdp_generic");
}

#[test]
fn on_io_uring() {
    play("io_uring");
}

#[test]
fn on_sockets() {
    play("socket");
}
