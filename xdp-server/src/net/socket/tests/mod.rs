//! The backend over loopback: packets in and out, and sleeping.

mod binding;
mod network;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::tx::TX_SLOTS;
use super::*;
use crate::net::{MAX_RX_PAYLOAD, MAX_TX_PAYLOAD};

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(listen: &str, workers: usize) -> SocketConfig {
    SocketConfig {
        listen: listen.parse().unwrap(),
        workers: NonZeroUsize::new(workers).unwrap(),
        rcvbuf: 1 << 20,
        sndbuf: 1 << 20,
        busy_poll: None,
    }
}

fn bind(config: &SocketConfig) -> SocketGroup {
    SocketGroup::bind(config).unwrap()
}

fn one(listen: &str) -> SocketIo {
    bind(&config(listen, 1)).sockets.remove(0)
}

fn client(address: &str) -> UdpSocket {
    let client = UdpSocket::bind(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn sleeper() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap()
}

/// Binds this thread to one CPU. Loopback queues packets by CPU, so those of a thread that is moved while it
/// sends may overtake each other.
fn keep_order() {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).unwrap();
    let cpu = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap()).unwrap();
    let mut only = CpuSet::new();
    only.set(cpu).unwrap();
    sched_setaffinity(this_thread, &only).unwrap();
}

/// Receives until there are `count` packets.
fn receive(io: &mut SocketIo, count: usize) -> Vec<(Path, Vec<u8>)> {
    let (start, wake) = (Instant::now(), sleeper());
    let mut packets = Vec::new();
    while packets.len() < count {
        assert!(start.elapsed() < PATIENCE, "{} of {count} packets", packets.len());
        let room = count - packets.len();
        let got = io.receive(room, &mut |path, payload| packets.push((*path, payload.to_vec())));
        assert!(got <= room);
        if got == 0 {
            io.wait(PATIENCE, wake.as_fd()).unwrap();
        }
    }
    packets
}

/// Sends `packets` as one train and flushes.
fn send(io: &mut SocketIo, packets: &[(Path, Vec<u8>)]) -> Sent {
    let mut rest = packets.iter();
    let sent = io.send(&mut |buffer| {
        assert_eq!(buffer.len(), MAX_TX_PAYLOAD);
        let (path, payload) = rest.next()?;
        buffer[..payload.len()].copy_from_slice(payload);
        Some((payload.len(), *path))
    });
    io.flush(Instant::now());
    sent
}

fn receive_from(client: &UdpSocket) -> (SocketAddr, Vec<u8>) {
    let mut buffer = [0; 2048];
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    (from, buffer[..length].to_vec())
}

/// `server` must see `from` asking at `to`, and `from` get its answer from `to`.
fn asks_and_is_answered(server: &mut SocketIo, from: &str, to: SocketAddr) {
    let client = client(from);
    client.send_to(b"question", to).unwrap();
    let (path, payload) = receive(server, 1).remove(0);
    assert_eq!(payload, b"question");
    assert_eq!(path, Path { local: to, peer: client.local_addr().unwrap(), link: Link::Kernel });
    send(server, &[(path, b"answer".to_vec())]);
    assert_eq!(receive_from(&client), (to, b"answer".to_vec()));
}

#[test]
fn answers_on_either_family() {
    for (listen, from, to) in [
        ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "[::1]:0", "::1"),
        ("[::]:0", "[::1]:0", "::1"),
        ("[::ffff:127.0.0.1]:0", "127.0.0.1:0", "127.0.0.1"),
    ] {
        let mut server = one(listen);
        let to = SocketAddr::new(to.parse().unwrap(), server.local_addr().port());
        asks_and_is_answered(&mut server, from, to);
    }
}

#[test]
fn answers_from_the_address_that_was_asked() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let mut server = one(listen);
        for address in [[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 1]] {
            let to = (Ipv4Addr::from(address), server.local_addr().port()).into();
            asks_and_is_answered(&mut server, "127.0.0.1:0", to);
        }
    }
}

#[test]
fn more_than_a_batch_arrives_whole_and_in_order() {
    keep_order();
    let mut server = one("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    let count = RX_BATCH * 2 + 9;
    for number in 0..count {
        client.send_to(&number.to_be_bytes(), server.local_addr()).unwrap();
    }
    let packets = receive(&mut server, count);
    for (number, (path, payload)) in packets.iter().enumerate() {
        assert_eq!(payload[..], number.to_be_bytes());
        assert_eq!(path.peer, client.local_addr().unwrap());
    }
    let counters = server.counters();
    assert_eq!(counters.rx_packets, count as u64);
    assert_eq!(counters.rx_bytes, (count * size_of::<usize>()) as u64);
    assert_eq!((counters.rx_kernel_drops, counters.rx_kernel_packets), (0, 0));
}

#[test]
fn payloads_may_be_empty_and_are_lent_mutably() {
    keep_order();
    let mut server = one("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    client.send_to(b"", server.local_addr()).unwrap();
    client.send_to(b"abc", server.local_addr()).unwrap();
    let (start, mut lengths) = (Instant::now(), Vec::new());
    while lengths.len() < 2 && start.elapsed() < PATIENCE {
        server.receive(1, &mut |_, payload| {
            payload.reverse();
            lengths.push(payload.len());
        });
    }
    assert_eq!(lengths, [0, 3]);
}

#[test]
fn trains_longer_than_the_ring_leave_in_one_call() {
    keep_order();
    let mut server = one("[::]:0");
    let clients = [client("127.0.0.1:0"), client("127.0.0.1:0"), client("[::1]:0")];
    let each = TX_SLOTS / 2;
    let mut packets = Vec::new();
    for client in &clients {
        let peer = client.local_addr().unwrap();
        let local = SocketAddr::new(peer.ip(), server.local_addr().port());
        for number in 0..each {
            let mut payload = number.to_be_bytes().to_vec();
            payload.resize(40 + number, 7);
            packets.push((Path { local, peer, link: Link::Kernel }, payload));
        }
    }
    assert_eq!(send(&mut server, &packets), Sent { packets: 3 * each as u32, blocked: false });
    for (client, train) in clients.iter().zip(packets.chunks(each)) {
        for (path, payload) in train {
            assert_eq!(receive_from(client), (path.local, payload.clone()));
        }
    }
    let counters = server.counters();
    assert_eq!(counters.tx_packets, 3 * each as u64);
    assert_eq!(counters.tx_bytes, packets.iter().map(|(_, payload)| payload.len() as u64).sum::<u64>());
    assert_eq!((counters.tx_errors, counters.tx_blocked), (0, 0));
}

#[test]
fn a_packet_that_cannot_be_sent_costs_only_itself() {
    keep_order();
    let mut server = one("0.0.0.0:0");
    let client = client("127.0.0.1:0");
    let good = Path { local: server.local_addr(), peer: client.local_addr().unwrap(), link: Link::Kernel };
    let to = |peer: &str| Path { peer: peer.parse().unwrap(), ..good };
    let not_ours = Path { local: "192.0.2.77:4433".parse().unwrap(), ..good };
    let packets: Vec<(Path, Vec<u8>)> = [
        to("127.0.0.1:0"),
        good,
        to("[::1]:9"),
        good,
        not_ours,
        to("255.255.255.255:9"),
        good,
        to("127.0.0.1:0"),
    ]
    .into_iter()
    .zip(0_u8..)
    .map(|(path, number)| (path, vec![number]))
    .collect();
    send(&mut server, &packets);
    for number in [1, 3, 6] {
        assert_eq!(receive_from(&client).1, [number]);
    }
    assert_eq!(server.counters().tx_errors, 5);
    assert_eq!(server.poll_flags(), PollFlags::POLLIN);
}

#[test]
fn a_length_beyond_the_room_is_refused() {
    let mut server = one("127.0.0.1:0");
    let path = Path { local: server.local_addr(), peer: server.local_addr(), link: Link::Kernel };
    let mut lengths = [MAX_TX_PAYLOAD + 1, MAX_TX_PAYLOAD].into_iter();
    let sent = server.send(&mut |_| Some((lengths.next()?, path)));
    assert_eq!(sent, Sent { packets: 1, blocked: false });
    assert_eq!(server.counters().tx_errors, 1);
    server.flush(Instant::now());
    assert_eq!(receive(&mut server, 1)[0].1.len(), MAX_TX_PAYLOAD);
}

#[test]
fn a_peer_that_is_gone_disturbs_nobody() {
    let mut server = one("127.0.0.1:0");
    let alive = client("127.0.0.1:0");
    let gone = client("127.0.0.1:0").local_addr().unwrap();
    let path = |peer| Path { local: server.local_addr(), peer, link: Link::Kernel };
    let (gone, here) = (path(gone), path(alive.local_addr().unwrap()));
    // The ICMP errors of one flush are back before the next.
    for _ in 0..3 {
        send(&mut server, &[(gone, vec![0]), (here, vec![1]), (gone, vec![2])]);
        assert_eq!(receive_from(&alive).1, [1]);
        alive.send_to(b"still here", server.local_addr()).unwrap();
        assert_eq!(receive(&mut server, 1)[0].1, b"still here");
    }
}

#[test]
fn datagrams_that_are_too_long_are_counted_and_dropped() {
    keep_order();
    let mut server = one("[::]:0");
    let client = client("127.0.0.1:0");
    let to = (Ipv4Addr::LOCALHOST, server.local_addr().port());
    for length in [MAX_RX_PAYLOAD + 1, MAX_RX_PAYLOAD, 40_000, 1] {
        client.send_to(&vec![5; length], to).unwrap();
    }
    let lengths: Vec<usize> = receive(&mut server, 2).iter().map(|(_, payload)| payload.len()).collect();
    assert_eq!(lengths, [MAX_RX_PAYLOAD, 1]);
    assert_eq!((server.counters().rx_too_long, server.counters().rx_packets), (2, 2));
}

#[test]
fn what_the_kernel_drops_is_counted() {
    // The kernel raises this to its smallest receive buffer, of a few packets.
    let mut server = bind(&SocketConfig { rcvbuf: 1, ..config("127.0.0.1:0", 1) }).sockets.remove(0);
    let client = client("127.0.0.1:0");
    for _ in 0..100 {
        client.send_to(&[0; 1000], server.local_addr()).unwrap();
    }
    let (start, mut received) = (Instant::now(), 0);
    while received + server.counters().rx_kernel_drops < 100 {
        assert!(start.elapsed() < PATIENCE, "{received} received, {:?}", server.counters());
        received += server.receive(100, &mut |_, _| ()) as u64;
    }
    let counters = server.counters();
    assert_eq!(counters.rx_packets + counters.rx_kernel_drops, 100);
    assert!(counters.rx_kernel_drops > 0, "{counters:?}");
}

#[test]
fn wait_ends_with_a_packet_a_wake_or_the_timeout() {
    let mut server = one("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    let wake = sleeper();

    let start = Instant::now();
    server.wait(Duration::from_millis(20), wake.as_fd()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));

    let start = Instant::now();
    client.send_to(b"packet", server.local_addr()).unwrap();
    server.wait(PATIENCE, wake.as_fd()).unwrap();
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(receive(&mut server, 1)[0].1, b"packet");

    wake.write(1).unwrap();
    server.wait(Duration::MAX, wake.as_fd()).unwrap();
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn wait_flushes_first() {
    let mut server = one("127.0.0.1:0");
    let path = Path { local: server.local_addr(), peer: server.local_addr(), link: Link::Kernel };
    let mut once = Some((1, path));
    server.send(&mut |_| once.take());
    server.wait(PATIENCE, sleeper().as_fd()).unwrap();
    assert_eq!(receive(&mut server, 1).len(), 1);
}

#[test]
fn can_be_sent_to_its_worker() {
    fn is_send<T: Send>() {}
    is_send::<SocketIo>();
}
