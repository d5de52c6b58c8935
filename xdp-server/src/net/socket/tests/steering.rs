//! Which worker's socket a packet comes to, with the program attached and without.

use std::collections::HashMap;

use super::*;
use crate::quic::cid;

const WORKERS: usize = 4;

fn group(listen: &str, steered: bool) -> Vec<SocketIo> {
    let sockets = bind(&config(listen, WORKERS)).sockets;
    if steered {
        steer::attach(&sockets).unwrap();
    }
    sockets
}

/// A packet under a short header, to the ID that starts with `worker`.
fn short(worker: u8) -> Vec<u8> {
    let mut packet = vec![0x40, worker];
    packet.extend([0xaa; 30]);
    packet
}

/// An Initial, or what its first byte says it is, to `id`.
fn long(first: u8, id: &[u8]) -> Vec<u8> {
    let mut packet = vec![first, 0, 0, 0, 1, id.len() as u8];
    packet.extend(id);
    packet.push(0);
    packet.resize(1200, 0);
    packet
}

/// An ID of ours: of `worker`, and else random.
fn id_of(worker: u8) -> [u8; cid::LEN] {
    let mut id: [u8; cid::LEN] = rand::random();
    id[0] = worker;
    id
}

/// Receives all `count` packets that are under way: the worker of each.
fn workers_of(sockets: &mut [SocketIo], count: usize) -> Vec<(usize, Vec<u8>)> {
    let (start, mut seen) = (Instant::now(), Vec::new());
    while seen.len() < count {
        assert!(start.elapsed() < PATIENCE, "{} of {count} packets", seen.len());
        for (worker, socket) in sockets.iter_mut().enumerate() {
            socket.receive(usize::MAX, &mut |_: &Path, payload: &mut [u8]| {
                seen.push((worker, payload.to_vec()))
            });
        }
    }
    assert_eq!(seen.len(), count, "no packet comes twice");
    seen
}

/// The worker that gets `packet` from `client`.
fn worker_of(sockets: &mut [SocketIo], client: &UdpSocket, packet: &[u8]) -> usize {
    client.send_to(packet, (localhost(client), sockets[0].local_addr().port())).unwrap();
    let (worker, payload) = workers_of(sockets, 1).remove(0);
    assert_eq!(payload, packet);
    worker
}

fn localhost(client: &UdpSocket) -> std::net::IpAddr {
    if client.local_addr().unwrap().is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { "::1".parse().unwrap() }
}

#[test]
fn a_connection_id_of_ours_leads_to_its_worker_from_anywhere() {
    let mut sockets = group("[::]:0", true);
    for from in ["127.0.0.1:0", "[::1]:0"] {
        for _ in 0..8 {
            let client = client(from);
            for worker in 0..WORKERS {
                let id = id_of(worker as u8);
                // Short header; Initial, 0-RTT, Handshake; a version to come.
                let mut packets = vec![short(worker as u8)];
                packets.extend([0xc0, 0xd0, 0xe3, 0x80].map(|first| long(first, &id)));
                for packet in packets {
                    assert_eq!(worker_of(&mut sockets, &client, &packet), worker, "{:x?}", &packet[..8]);
                }
            }
        }
    }
}

#[test]
fn first_packets_spread_evenly_and_repetitions_follow() {
    const CLIENTS: usize = 10_000;
    let mut sockets = group("127.0.0.1:0", true);
    let to = sockets[0].local_addr();
    let mut worker_by_id: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut count = [0_usize; WORKERS];
    for number in 0..CLIENTS {
        // IDs of every length that a client may choose, but for ours: its byte 0 is the client's choice then.
        let length = [8, 12, 16, 20][number % 4];
        let id = (0..length).map(|_| rand::random()).collect::<Vec<u8>>();
        let client = client(&format!("127.1.{}.{}:0", number / 200, number % 200 + 1));
        for _ in 0..2 {
            client.send_to(&long(0xc0, &id), to).unwrap();
        }
        let got = workers_of(&mut sockets, 2);
        assert_eq!(got[0], got[1], "a repetition goes to the same worker");
        count[got[0].0] += 1;
        worker_by_id.insert(id, got[0].0);
    }
    assert_eq!(worker_by_id.len(), CLIENTS);
    // Chi-square with 3 degrees of freedom: an even spread exceeds 30 once in 700,000 times.
    let expected = CLIENTS as f64 / WORKERS as f64;
    let chi_square: f64 = count.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
    assert!(chi_square < 30.0, "{count:?}: {chi_square}");
}

#[test]
fn a_random_id_as_long_as_ours_finds_some_worker_and_the_same_again() {
    let mut sockets = group("127.0.0.1:0", true);
    let client = client("127.0.0.1:0");
    let by_hash = worker_of(&mut sockets, &client, &long(0xc0, &[1; 8]));
    for first in 0..=255 {
        let packet = long(0xc0, &id_of(first));
        let worker = worker_of(&mut sockets, &client, &packet);
        assert_eq!(worker, worker_of(&mut sockets, &client, &packet));
        let expected = if usize::from(first) < WORKERS { first.into() } else { by_hash };
        assert_eq!(worker, expected, "byte 0 is {first}");
    }
    for worker in WORKERS as u8..=255 {
        assert_eq!(worker_of(&mut sockets, &client, &short(worker)), by_hash, "no worker {worker}");
    }
}

#[test]
fn garbage_arrives_too_and_not_all_of_it_at_one_worker() {
    let mut sockets = group("127.0.0.1:0", true);
    let to = sockets[0].local_addr();
    let clients: Vec<UdpSocket> = (0..64).map(|_| client("127.0.0.1:0")).collect();
    let mut sent = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        for length in 0..=30 {
            // Every other one looks like a long header with an ID that is cut off.
            let mut packet = vec![if number % 2 == 0 { 0x40 } else { 0xc0 }; length];
            packet.iter_mut().skip(5).take(1).for_each(|byte| *byte = 17);
            client.send_to(&packet, to).unwrap();
            sent.push(packet);
        }
    }
    let mut got = workers_of(&mut sockets, sent.len());
    // Payloads too short to say anything go by the hash: that one of four gets none of 64 has odds of 4e-8.
    let tiny = |worker: usize| got.iter().filter(|(at, payload)| *at == worker && payload.len() < 2).count();
    let tiny: Vec<usize> = (0..WORKERS).map(tiny).collect();
    assert!(tiny.iter().all(|&count| count > 0), "{tiny:?}");
    got.sort_by(|a, b| a.1.cmp(&b.1));
    sent.sort();
    assert!(got.into_iter().map(|(_, payload)| payload).eq(sent));
}

#[test]
fn without_the_program_the_connection_id_means_nothing() {
    let mut sockets = group("127.0.0.1:0", false);
    let client = client("127.0.0.1:0");
    let one = worker_of(&mut sockets, &client, &short(0));
    for worker in 1..WORKERS {
        assert_eq!(worker_of(&mut sockets, &client, &short(worker as u8)), one);
    }
}

#[test]
fn one_worker_has_nothing_to_steer() {
    let mut sockets = bind(&config("127.0.0.1:0", 1)).sockets;
    steer::attach(&sockets).unwrap();
    let client = client("127.0.0.1:0");
    assert_eq!(worker_of(&mut sockets, &client, &short(3)), 0);
}

/// A train that GRO made of several connections' packets arrives whole, at the worker of the first.
#[test]
fn steering_goes_with_offloads() {
    keep_order();
    let mut sockets = group("127.0.0.1:0", true);
    assert!(enable_offloads(&mut sockets).is_empty());
    let mut sender = one::<Offloaded>("127.0.0.1:0");
    let path = Path { local: sender.local, peer: sockets[0].local_addr(), link: Link::Kernel };
    let packets: Vec<_> = [2, 2, 1].map(|worker| (path, short(worker))).to_vec();
    sender.send(&packets);
    let got = workers_of(&mut sockets, 3);
    assert!(got.iter().all(|(worker, _)| *worker == 2), "{got:?}");
}
