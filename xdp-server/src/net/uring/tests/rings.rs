//! What is the rings' own: buffers that run out, full queues, operations under way when everything ends.

use std::net::UdpSocket;

use super::super::tx::{TX_BYTES, TX_TRAINS};
use super::*;
use crate::net::MAX_TX_PAYLOAD;
use crate::net::datagram_tests::network::in_own_network;
use crate::net::datagram_tests::{self, PATIENCE, Server, client, keep_order, sleeper};
use crate::net::socket::{SocketConfig, SocketGroup};

/// A server with `buffers` receive buffers and `sq_depth` entries.
fn server(socket: &SocketConfig, buffers: Option<u32>, sq_depth: u32) -> Server<UringIo> {
    let group = SocketGroup::bind(socket).unwrap();
    let limits = Limits { buffers, ..Default::default() };
    let io = over(group.sockets, |workers| UringConfig { sq_depth, ..config(workers) }, limits).remove(0);
    Server { io, wake: sleeper(), local: group.local }
}

fn loopback(buffers: Option<u32>, sq_depth: u32) -> Server<UringIo> {
    server(&datagram_tests::config("127.0.0.1:0", 1), buffers, sq_depth)
}

/// Each buffer and each train is in exactly one place.
fn assert_conserved(io: &UringIo) {
    let rx = io.rx.census();
    assert_eq!(rx.kernel + rx.filled + rx.open + rx.idle, io.buffers(), "{rx:?}");
    let tx = io.tx.census();
    assert_eq!(tx.free + tx.queued + tx.in_flight + tx.done, TX_TRAINS, "{tx:?}");
    assert_eq!((tx.queued, tx.in_flight), (io.tx.queued(), io.tx.in_flight()));
}

#[test]
fn buffers_that_run_out_lose_nothing() {
    keep_order();
    for buffers in [1, 4, 64] {
        let mut server = loopback(Some(buffers), 256);
        let client = client("127.0.0.1:0");
        let mut next = 0_u32;
        for round in 0..20 {
            // Around the number of buffers: just enough, one too many, many times as many.
            let count = [buffers - 1, buffers, buffers + 1, 3 * buffers + 7][round % 4];
            for number in next..next + count {
                client.send_to(&number.to_be_bytes(), server.local).unwrap();
            }
            for (_, payload) in server.receive(count as usize) {
                assert_eq!(payload, next.to_be_bytes());
                next += 1;
                assert_conserved(&server.io);
            }
        }
        assert_eq!(server.io.counters().rx_kernel_drops, 0);
    }
}

#[test]
fn one_receive_serves_many_packets_and_is_armed_again_when_it_ends() {
    keep_order();
    let mut server = loopback(Some(4), 256);
    let client = client("127.0.0.1:0");
    server.wait(Duration::from_millis(1));
    assert_eq!(server.io.rx.under_way(), 1);
    for number in 0..3 {
        client.send_to(&[number], server.local).unwrap();
        assert_eq!(server.receive(1)[0].1, [number]);
        assert_eq!(server.io.rx.under_way(), 1, "packet {number} came by the same receive");
    }
    // More than there are buffers: the receive ends, and the kernel has none left.
    for number in 0..9 {
        client.send_to(&[number], server.local).unwrap();
    }
    server.wait(PATIENCE);
    assert_eq!((server.io.rx.under_way(), server.io.rx.census().kernel), (0, 0));
    assert_conserved(&server.io);
    let payloads: Vec<u8> = server.receive(9).iter().map(|(_, payload)| payload[0]).collect();
    assert!(payloads.into_iter().eq(0..9));
    server.wait(Duration::from_millis(1));
    assert_eq!(server.io.rx.under_way(), 1);
    assert_conserved(&server.io);
}

#[test]
fn a_full_submission_queue_is_counted_and_costs_no_packet() {
    keep_order();
    for (sq_depth, full) in [(8, true), (256, false)] {
        let mut server = loopback(None, sq_depth);
        let clients: Vec<UdpSocket> = (0..40).map(|_| client("127.0.0.1:0")).collect();
        let packets: Vec<_> = clients.iter().map(|client| (server.path_to(client), vec![7; 100])).collect();
        server.send(&packets);
        for client in &clients {
            assert_eq!(server.sent_to(client).1, [7; 100]);
        }
        let counters = server.counters();
        assert_eq!(counters.sq_full > 0, full, "{counters:?}");
        assert_eq!((counters.tx_packets, counters.tx_errors, counters.tx_blocked), (40, 0, 0));
        assert_conserved(&server.io);
    }
}

#[test]
fn the_arena_is_used_in_a_circle_by_packets_of_any_length() {
    keep_order();
    let mut server = loopback(None, 256);
    let client = client("127.0.0.1:0");
    let path = server.path_to(&client);
    let mut length = 1;
    for _ in 0..2000 {
        let payload: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
        let packets: Vec<_> = (0..3).map(|_| (path, payload.clone())).collect();
        server.send(&packets);
        for _ in 0..3 {
            assert_eq!(server.sent_to(&client).1, payload);
        }
        length = (length * 31 + 17) % (MAX_TX_PAYLOAD + 1);
    }
    assert_conserved(&server.io);
}

/// A server that has more to send than a slow network takes, and a client that is to get it.
fn parked() -> (Server<UringIo>, UdpSocket, u32) {
    let small = SocketConfig { sndbuf: 1, ..datagram_tests::config("127.0.0.1:0", 1) };
    let mut server = server(&small, None, 256);
    let client = client("127.0.0.1:0");
    let path = server.path_to(&client);
    let mut next = 0;
    let sent = server.io.send(&mut |_| {
        next += 1;
        Some((MAX_TX_PAYLOAD, path))
    });
    assert!(sent.blocked);
    server.io.flush(Instant::now());
    assert!(server.io.tx.in_flight() > 0);
    assert_conserved(&server.io);
    (server, client, next)
}

const SLOW: &str = "ip link set lo up; tc qdisc add dev lo root tbf rate 80mbit burst 70000 limit 10000000";

#[test]
fn what_is_under_way_at_the_end_is_cancelled_before_its_memory_is_freed() {
    in_own_network(SLOW, || {
        let (mut server, ..) = parked();
        server.wait(Duration::from_millis(1)); // watches the wake-up, too
        server.io.finish();
        assert!(!server.io.is_under_way(), "{:?}", server.io);
        let census = server.io.tx.census();
        assert_eq!((census.queued, census.in_flight, census.free), (0, 0, TX_TRAINS));
        assert_conserved(&server.io);
        drop(server);

        let (server, ..) = parked();
        drop(server); // likewise
    });
}

/// Only the worker's thread may use the ring. Elsewhere the memory stays, as the kernel may be using it.
#[test]
fn an_io_that_was_not_finished_may_be_dropped_anywhere() {
    in_own_network(SLOW, || {
        let (server, client, sent) = parked();
        std::thread::spawn(move || drop(server)).join().unwrap();
        // What the socket buffer had taken still arrives, and is what was sent.
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let (mut buffer, mut received) = ([0; 2048], 0);
        while let Ok(length) = client.recv(&mut buffer) {
            assert_eq!(length, MAX_TX_PAYLOAD);
            received += 1;
        }
        assert!((1..=sent).contains(&received), "{received} of {sent}");
    });
}

#[test]
fn the_arena_is_never_handed_out_twice() {
    in_own_network(SLOW, || {
        let (mut server, client, _) = parked();
        let in_flight = server.io.tx.in_flight();
        assert!(server.io.tx.room().is_none());
        let again = server.io.send(&mut |_| unreachable!("there is no room to fill"));
        assert_eq!(again, Sent { packets: 0, blocked: true });
        assert_eq!(server.io.tx.in_flight(), in_flight);
        // As room comes back it is used again, until everything has arrived.
        let path = server.path_to(&client);
        let (start, mut more) = (Instant::now(), TX_BYTES / MAX_TX_PAYLOAD);
        while more > 0 {
            assert!(start.elapsed() < PATIENCE, "{more} left");
            server.wait(Duration::from_millis(100));
            server.io.send(&mut |_| {
                more = more.checked_sub(1)?;
                Some((MAX_TX_PAYLOAD, path))
            });
            assert_conserved(&server.io);
        }
    });
}
