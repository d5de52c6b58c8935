//! Clean ends, unclean ends, and two servers at once.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::programs::{Clients, Home, Server, eventually, refused};
use crate::{NATIVE, SOCKETS, V4, V6, attached, in_namespaces};

/// Clients that stay until the server ends.
const STAYING: &[&str] = &["--clients", "20", "--watchers", "4"];

/// Waits until the server counts so many connections.
fn connected(server: &Server, clients: u64) {
    eventually("all clients are connected", || {
        server.last("second").filter(|second| second["connections"].as_u64() >= Some(clients))
    });
}

/// Proves that a server serves, with a few clients.
fn serves(lab: &Lab, target: &str) {
    let flags = ["--clients", "4", "--duration", "0.3", "--frame-share", "100"];
    let (code, report) = Clients::far(lab, target, &flags).end();
    assert_eq!((code, &report["connections"]), (0, &json!(4)), "{report:#}");
    assert_eq!(report["pixels_acked"], report["pixels_sent"]);
}

/// What the signal does to a server with clients.
fn drains(server: &[&str], signal: Signal) {
    in_namespaces(|lab| {
        let home = Home::new();
        let mut server = Server::start(&home, server);
        let clients = Clients::far(lab, V4, STAYING);
        // And one more, that asks for the server's figures.
        connected(&server, 21);

        let start = Instant::now();
        server.signal(signal);
        let status = server.wait();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(status.code(), Some(0));
        let note = server.last("note").expect("a note of the drain");
        assert!(note["text"].as_str().unwrap().starts_with("draining: telling 21 clients"), "{note}");
        assert_eq!(server.last("summary").expect("a summary")["connections"], 21);
        assert_eq!(attached(lab), Value::Null, "the program is still attached");

        let (code, report) = clients.end();
        assert_eq!(code, 4);
        assert_eq!(report["failures_by_cause"], json!({ "DRAINING": 20 }));
    });
}

#[test]
fn sigterm_drains_a_server_on_af_xdp() {
    drains(NATIVE, Signal::SIGTERM);
}

#[test]
fn sigterm_drains_a_server_on_sockets() {
    drains(SOCKETS, Signal::SIGTERM);
}

#[test]
fn ctrl_c_does_the_same() {
    drains(NATIVE, Signal::SIGINT);
}

#[test]
fn sigkill_leaves_nothing_attached_and_the_next_server_knows_the_clients() {
    in_namespaces(|lab| {
        let home = Home::new();
        let server = Server::start(&home, NATIVE);
        assert_ne!(attached(lab), Value::Null);
        let clients = Clients::far(lab, V4, STAYING);
        connected(&server, 21);
        server.kill();
        assert_eq!(attached(lab), Value::Null, "the program outlived its server");

        // At once, on the same interface and port, with the keys that the first one left.
        let next = Server::start(&home, NATIVE);
        let restarted = Instant::now();
        let (code, report) = clients.end();
        assert_eq!(code, 4);
        let resets = report["failures_by_cause"]["stateless reset"].as_u64();
        assert_eq!(resets, Some(20), "{:#}", report["failures_by_cause"]);
        // Long before any idle timeout.
        assert!(restarted.elapsed() < Duration::from_secs(10), "{:?}", restarted.elapsed());
        serves(lab, V6);
        next.stop();
    });
}

#[test]
fn a_second_server_on_the_same_port_is_told_so() {
    in_namespaces(|lab| {
        let (first, second) = (Home::new(), Home::new());
        let server = Server::start(&first, NATIVE);
        for flags in [NATIVE, SOCKETS] {
            let expected = "error: cannot listen on [::]:4433: UDP port 4433 is taken by another program, perhaps a \
                            second server. See which: sudo ss -ulpn 'sport = :4433'. Stop it, or choose another \
                            port with --listen\n";
            assert_eq!(refused(second.server(flags)), (1, expected.to_owned()));
        }
        // The first one has not noticed.
        assert_ne!(attached(lab), Value::Null);
        serves(lab, V4);
        server.stop();
    });
}

#[test]
fn a_second_server_on_the_same_interface_is_told_so() {
    in_namespaces(|lab| {
        let (first, second) = (Home::new(), Home::new());
        let server = Server::start(&first, NATIVE);
        let program = attached(lab)["prog"]["id"].clone();
        let expected = format!(
            "error: serv0 already has an XDP program: xdp_quic (program id {program}, native mode). Stop the other \
             server, or whatever it belongs to; these show what is attached: bpftool net; ip link show dev serv0. \
             What its owner left behind is removed by: ip link set dev serv0 xdp off (in generic mode: xdpgeneric \
             off)\n"
        );
        let elsewhere = ["--listen", "[::]:4434"];
        assert_eq!(refused(second.server(&[NATIVE, &elsewhere].concat())), (1, expected.clone()));

        // Where the backend is not named, io_uring does, and it is said why.
        let flags = ["--iface", "serv0", "--listen", "[::]:4434"];
        let beside = Server::start(&second, &flags);
        let started = beside.started();
        assert_eq!(started["backend"], "io_uring");
        let why = expected.trim_start_matches("error: ").trim_end();
        let note = format!("AF_XDP not taken: {why}");
        assert!(started["notes"].as_array().unwrap().contains(&json!(note)), "{:#}", started["notes"]);
        serves(lab, "https://10.77.0.1:4434");
        serves(lab, V4);
        beside.stop();
        assert_eq!(attached(lab)["prog"]["id"], program);
        server.stop();
    });
}
