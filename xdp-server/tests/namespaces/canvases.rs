//! The same scenario on every way that packets can take. Sixty clients paint at random, some of them mirror the canvas;
//! at the end every mirror equals a fresh snapshot (the load generator's `--verify`), and that snapshot equals what
//! the server itself has, to the byte.

use std::fs;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::programs::{Clients, Home, Server};
use crate::{GENERIC, NATIVE, SOCKETS, V4, V6, attached, in_namespaces, total};

/// Clients of each run.
const CLIENTS: u64 = 60;
/// Their flags. Sixteen source ports, so that both queues get some: all of them on one is one chance in 32,768.
const LOAD: &[&str] =
    &["--clients", "60", "--num-endpoints", "16", "--watchers", "8", "--frame-share", "10", "--verify"];
/// How long they paint, unless it matters.
const TWO_SECONDS: &[&str] = &["--duration", "2"];

/// What a run ends with.
struct Outcome {
    /// The server's report of its start.
    started: Value,
    /// The load generator's.
    report: Value,
    /// The server's at its end.
    summary: Value,
}

impl Outcome {
    /// Packets that each of the server's queues received.
    fn per_queue(&self) -> Vec<u64> {
        serde_json::from_value(self.summary["rx_packets_per_queue"].clone()).unwrap()
    }

    /// What holds where nobody else painted.
    fn alone(self) -> Self {
        assert_eq!(self.summary["pixels_applied"], self.report["pixels_applied"]);
        let proven = self.report["pixels_proven"].as_u64();
        assert!(proven > Some(50), "pixels with a colour that is certain: {proven:?}");
        self
    }
}

/// Runs the scenario: a server with these flags, clients at the far end of the cable.
fn far_clients(lab: &Lab, server: &[&str], target: &str, clients: &[&str]) -> Outcome {
    same_canvas(server, |flags| Clients::far(lab, target, &[flags, clients].concat())).alone()
}

/// Runs the scenario with clients that `start` starts.
fn same_canvas(server: &[&str], start: impl FnOnce(&[&str]) -> Clients) -> Outcome {
    let home = Home::new();
    let (ours, theirs) = (home.file("server.canvas"), home.file("clients.canvas"));
    let server = Server::start(&home, &[server, &["--dump", &ours]].concat());
    let (code, report) = start(&[LOAD, &["--dump", &theirs]].concat()).end();
    assert_eq!((code, &report["verified"]), (0, &json!(true)), "{report:#}");
    assert_eq!((&report["connections"], &report["failed"]), (&json!(CLIENTS), &json!(0)));

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

/// The scenario on AF_XDP in this mode.
fn on_af_xdp(server: &[&str], mode: &str, target: &str) {
    in_namespaces(|lab| {
        let outcome = far_clients(lab, server, target, TWO_SECONDS);
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
fn native_af_xdp_over_ipv4() {
    on_af_xdp(NATIVE, "copy", V4);
}

#[test]
fn native_af_xdp_over_ipv6() {
    on_af_xdp(NATIVE, "copy", V6);
}

#[test]
fn generic_af_xdp_over_ipv4() {
    on_af_xdp(GENERIC, "generic", V4);
}

#[test]
fn generic_af_xdp_over_ipv6() {
    on_af_xdp(GENERIC, "generic", V6);
}

/// The scenario through the kernel's UDP stack.
fn on_sockets(backend: &str, target: &str) {
    in_namespaces(|lab| {
        let outcome = far_clients(lab, &["--queues", "2", "--backend", backend], target, TWO_SECONDS);
        assert_eq!(
            (&outcome.started["backend"], &outcome.started["xdp_mode"]),
            (&json!(backend), &Value::Null)
        );
        assert!(outcome.per_queue().iter().all(|packets| *packets > 0), "{:?}", outcome.per_queue());
    });
}

#[test]
fn sockets_over_ipv4() {
    on_sockets("socket", V4);
}

#[test]
fn sockets_over_ipv6() {
    on_sockets("socket", V6);
}

#[test]
fn io_uring_over_ipv4() {
    on_sockets("io_uring", V4);
}

#[test]
fn io_uring_over_ipv6() {
    on_sockets("io_uring", V6);
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

/// Drops one packet in twenty. An XDP program, since the traffic control that could do it is not in every kernel.
const LOSS: &str = "
    static unsigned (*random_number)(void) = (void *)7; // BPF_FUNC_get_prandom_u32
    __attribute__((section(\"xdp\"), used)) int lose(void *packet) {
        return random_number() % 20 == 0 ? 1 : 2; // XDP_DROP, XDP_PASS
    }";

#[test]
fn lost_packets_are_made_good() {
    in_namespaces(|lab| {
        let home = Home::new();
        let (source, program) = (home.file("loss.c"), home.file("loss.o"));
        fs::write(&source, LOSS).unwrap();
        lab.server(&format!("clang -O2 -target bpf -c {source} -o {program}"));
        // Where `ip` pins programs.
        lab.server("mount -t bpf bpf /sys/fs/bpf");
        // At the clients' end: what the server sends.
        lab.client(&format!("ip link set dev clnt0 xdpgeneric obj {program} sec xdp"));
        let outcome = far_clients(lab, NATIVE, V6, TWO_SECONDS);
        let counted = |what: &str| outcome.report[what].as_u64().unwrap();
        assert!(counted("gaps") > 0 && counted("repairs") > 0, "{:#}", outcome.report);
    });
}

/// Loopback is not the interface that XDP serves, so these clients come through the ordinary socket beside it.
#[test]
fn clients_beside_the_server_are_served_by_the_kernel() {
    in_namespaces(|lab| {
        for target in ["https://127.0.0.1:4433", "https://[::1]:4433"] {
            let start = |flags: &[&str]| Clients::near(target, &[flags, TWO_SECONDS].concat());
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
        let outcome = same_canvas(NATIVE, |flags| {
            let far = ["--clients", "10", "--duration", "1", "--frame-share", "100"];
            let painters = Clients::far(lab, V6, &far);
            let verifying = Clients::near("https://127.0.0.1:4433", &[flags, TWO_SECONDS].concat());
            let (code, report) = painters.end();
            assert_eq!(code, 0, "{report:#}");
            assert_eq!(report["pixels_acked"], report["pixels_sent"]);
            verifying
        });
        assert!(outcome.per_queue().iter().sum::<u64>() > 0);
        assert!(total(&outcome.summary, "rx_kernel_packets") > 0);
    });
}
