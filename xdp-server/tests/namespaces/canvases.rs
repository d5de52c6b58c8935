//! Every way that packets can take beside those of `scenario.toml`: IPv6, loopback, busy polling, moves to
//! other queues. Sixty clients paint at random, some of them mirror the canvas; at the end every mirror
//! equals a fresh snapshot (the load generator's `--verify`), and that snapshot equals what the server itself
//! has, to the byte.

use std::fs;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::programs::{Clients, Home, Server};
use crate::{GENERIC, NATIVE, SOCKETS, V4, V6, attached, in_namespaces, total};

/// Flags of the clients of each run. Sixteen source ports, so that both queues get some: all of them on one
/// is one chance in 32,768.
const LOAD: &[&str] =
    &["--clients", "60", "--num-endpoints", "16", "--watchers", "8", "--frame-share", "10", "--verify"];
/// How long they paint, unless it matters.
const TWO_SECONDS: &[&str] = &["--duration", "2"];

/// What a run ends with.
pub struct Outcome {
    /// The server's report of its start.
    pub started: Value,
    /// The load generator's.
    pub report: Value,
    /// The server's at its end.
    pub summary: Value,
}

impl Outcome {
    /// Packets that each of the server's queues received.
    pub fn per_queue(&self) -> Vec<u64> {
        serde_json::from_value(self.summary["rx_packets_per_queue"].clone()).unwrap()
    }

    /// What holds where nobody else painted.
    pub fn alone(self) -> Self {
        assert_eq!(self.summary["pixels_applied"], self.report["pixels_applied"]);
        let proven = self.report["pixels_proven"].as_u64();
        assert!(proven > Some(50), "pixels with a colour that is certain: {proven:?}");
        self
    }
}

/// A server with these flags, and clients at the far end of the cable.
fn far_clients(lab: &Lab, server: &[&str], target: &str, clients: &[&str]) -> Outcome {
    same_canvas(server, |_, dump| Clients::far(lab, target, &[LOAD, clients, dump].concat())).alone()
}

/// Runs a server with these flags, and the clients that `start` starts, with the flags that it is given among
/// theirs. Proves that clients, server and snapshot end with the same canvas. Stops the server while whoever
/// else is connected still is.
pub fn same_canvas(server: &[&str], start: impl FnOnce(&Server, &[&str]) -> Clients) -> Outcome {
    let home = Home::new();
    let (ours, theirs) = (home.file("server.canvas"), home.file("clients.canvas"));
    let server = Server::start(&home, &[server, &["--dump", &ours]].concat());
    let (code, report) = start(&server, &["--dump", &theirs]).end();
    assert_eq!((code, &report["verified"]), (0, &json!(true)), "{report:#}");
    assert_eq!((&report["connections"], &report["failed"]), (&report["clients"], &json!(0)));

    // 60 clients, one paint in 35 ms each, 2 s: about 3,400; fewer on a busy machine.
    let sent = report["pixels_sent"].as_u64().unwrap();
    assert!(sent > 1_000, "{sent}");
    assert_eq!(report["pixels_acked"], report["pixels_sent_frame"], "all of it was applied");

    let started = server.started();
    let summary = server.stop();
    let (ours, theirs) = (fs::read(ours).unwrap(), fs::read(theirs).unwrap());
    assert_eq!(ours.len(), 1_000_000);
    assert!(ours == theirs, "the server's canvas is not its snapshot");
    let painted = ours.iter().filter(|colour| **colour != 0).count() as u64;
    assert!(painted > sent / 2, "{painted} of {sent}");
    Outcome { started, report, summary }
}

/// AF_XDP in this mode, over IPv6.
fn on_af_xdp(server: &[&str], mode: &str) {
    in_namespaces(|lab| {
        let outcome = far_clients(lab, server, V6, TWO_SECONDS);
        for report in [&outcome.started, &outcome.summary] {
            assert_eq!((&report["backend"], &report["xdp_mode"]), (&json!("xdp"), &json!(mode)));
        }
        assert_eq!(total(&outcome.summary, "rx_kernel_packets"), 0, "nothing took the slow way");
        // In generic mode veth does not say which queue it was.
        let both = outcome.per_queue().iter().all(|packets| *packets > 0);
        assert!(both || mode == "generic", "{:?}", outcome.per_queue());
        assert_eq!(attached(lab), Value::Null, "the program is still attached");
    });
}

#[test]
fn native_af_xdp_over_ipv6() {
    on_af_xdp(NATIVE, "copy");
}

#[test]
fn generic_af_xdp_over_ipv6() {
    on_af_xdp(GENERIC, "generic");
}

/// The kernel's UDP stack, over IPv6.
fn on_sockets(backend: &str) {
    in_namespaces(|lab| {
        let outcome = far_clients(lab, &["--queues", "2", "--backend", backend], V6, TWO_SECONDS);
        assert_eq!(
            (&outcome.started["backend"], &outcome.started["xdp_mode"]),
            (&json!(backend), &Value::Null)
        );
        assert!(outcome.per_queue().iter().all(|packets| *packets > 0), "{:?}", outcome.per_queue());
    });
}

#[test]
fn sockets_over_ipv6() {
    on_sockets("socket");
}

#[test]
fn io_uring_over_ipv6() {
    on_sockets("io_uring");
}

#[test]
fn busy_polling_works_where_asked_for() {
    in_namespaces(|lab| {
        let outcome = far_clients(lab, &[NATIVE, &["--poll", "busy"]].concat(), V4, TWO_SECONDS);
        assert_eq!(outcome.started["poll"], "busy");
        assert!(outcome.per_queue().iter().all(|packets| *packets > 0), "{:?}", outcome.per_queue());
    });
}

/// A NAT that gives its clients other ports sends their packets to other queues, whose workers pass them on.
fn clients_move(server: &[&str]) {
    in_namespaces(|lab| {
        let outcome = far_clients(lab, server, V4, &["--rebind", "0.5", "--duration", "3"]);
        // 16 sockets, six times each, less on a busy machine.
        assert!(outcome.report["rebinds"].as_u64().unwrap() >= 32, "{}", outcome.report["rebinds"]);
        assert!(total(&outcome.summary, "strays_in") > 0, "no client came by another queue");
        assert_eq!(total(&outcome.summary, "strays_dropped"), 0);
    });
}

#[test]
fn clients_that_move_to_another_queue_stay_connected() {
    clients_move(NATIVE);
}

#[test]
fn clients_that_move_to_another_socket_stay_connected() {
    clients_move(&[SOCKETS, &["--steering", "off"]].concat());
}

/// Loopback is not the interface that XDP serves, so these clients come through the ordinary socket beside
/// it.
#[test]
fn clients_beside_the_server_are_served_by_the_kernel() {
    in_namespaces(|lab| {
        for target in ["https://127.0.0.1:4433", "https://[::1]:4433"] {
            let start =
                |_: &Server, dump: &[&str]| Clients::near(target, &[LOAD, TWO_SECONDS, dump].concat());
            let outcome = same_canvas(NATIVE, start).alone();
            assert_eq!(outcome.started["backend"], "xdp");
            assert_eq!(outcome.per_queue(), [0, 0]);
            assert_eq!(total(&outcome.summary, "rx_kernel_packets"), outcome.summary["rx_packets"]);
        }
        assert_eq!(attached(lab), Value::Null);
    });
}

/// Both ways at once: what clients beside the server paint, those at the far end see.
#[test]
fn clients_of_both_ways_share_a_canvas() {
    in_namespaces(|lab| {
        let outcome = same_canvas(NATIVE, |_, dump| {
            let far = ["--clients", "10", "--duration", "1", "--frame-share", "100"];
            let painters = Clients::far(lab, V6, &far);
            let verifying = Clients::near("https://127.0.0.1:4433", &[LOAD, TWO_SECONDS, dump].concat());
            let (code, report) = painters.end();
            assert_eq!(code, 0, "{report:#}");
            assert_eq!(report["pixels_acked"], report["pixels_sent"]);
            verifying
        });
        assert!(outcome.per_queue().iter().sum::<u64>() > 0);
        assert!(total(&outcome.summary, "rx_kernel_packets") > 0);
    });
}
