//! Packets in and out, one by one, and sleeping.

use super::*;
use crate::net::MAX_RX_PAYLOAD;

/// More packets than any backend takes at once, and no multiple.
const MANY: usize = 137;

/// More packets than any backend has room for.
const MORE_THAN_QUEUED: usize = 390;

pub fn answers_on_either_family<B: Backend>() {
    for (listen, from, to) in [
        ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "[::1]:0", "::1"),
        ("[::]:0", "[::1]:0", "::1"),
        ("[::ffff:127.0.0.1]:0", "127.0.0.1:0", "127.0.0.1"),
    ] {
        let mut server = one::<B>(listen);
        let to = SocketAddr::new(to.parse().unwrap(), server.local.port());
        server.asks_and_is_answered(from, to);
    }
}

pub fn answers_from_the_address_that_was_asked<B: Backend>() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let mut server = one::<B>(listen);
        for address in [[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 1]] {
            let to = (Ipv4Addr::from(address), server.local.port()).into();
            server.asks_and_is_answered("127.0.0.1:0", to);
        }
    }
}

pub fn more_than_a_batch_arrives_whole_and_in_order<B: Backend>() {
    keep_order();
    let mut server = one::<B>("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    for number in 0..MANY {
        client.send_to(&number.to_be_bytes(), server.local).unwrap();
    }
    let packets = server.receive(MANY);
    for (number, (path, payload)) in packets.iter().enumerate() {
        assert_eq!(payload[..], number.to_be_bytes());
        assert_eq!(path.peer, client.local_addr().unwrap());
    }
    let counters = server.counters();
    assert_eq!(counters.rx_packets, MANY as u64);
    assert_eq!(counters.rx_bytes, (MANY * size_of::<usize>()) as u64);
    assert_eq!((counters.rx_kernel_drops, counters.rx_kernel_packets), (0, 0));
}

pub fn payloads_may_be_empty_and_are_lent_mutably<B: Backend>() {
    keep_order();
    let mut server = one::<B>("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    client.send_to(b"", server.local).unwrap();
    client.send_to(b"abc", server.local).unwrap();
    let (start, mut lengths) = (Instant::now(), Vec::new());
    while lengths.len() < 2 && start.elapsed() < PATIENCE {
        server.io.receive(1, &mut |_: &Path, payload: &mut [u8]| {
            payload.reverse();
            lengths.push(payload.len());
        });
    }
    assert_eq!(lengths, [0, 3]);
    let path = server.path_to(&client);
    server.send(&[(path, vec![]), (path, vec![]), (path, vec![1])]);
    assert_eq!([(); 3].map(|()| server.sent_to(&client).1.len()), [0, 0, 1]);
}

pub fn trains_longer_than_the_queue_leave_in_one_call<B: Backend>() {
    keep_order();
    let mut server = one::<B>("[::]:0");
    let clients = [client("127.0.0.1:0"), client("127.0.0.1:0"), client("[::1]:0")];
    let each = MORE_THAN_QUEUED / 3;
    let mut packets = Vec::new();
    for client in &clients {
        let path = server.path_to(client);
        for number in 0..each {
            let mut payload = number.to_be_bytes().to_vec();
            payload.resize(40 + number, 7);
            packets.push((path, payload));
        }
    }
    if B::SENDS_LATER {
        server.send_all(&packets);
    } else {
        assert_eq!(server.send(&packets), Sent { packets: 3 * each as u32, blocked: false });
    }
    for (client, train) in clients.iter().zip(packets.chunks(each)) {
        for (path, payload) in train {
            assert_eq!(server.sent_to(client), (path.local, payload.clone()));
        }
    }
    let counters = server.counters();
    assert_eq!(counters.tx_packets, 3 * each as u64);
    assert_eq!(counters.tx_bytes, packets.iter().map(|(_, payload)| payload.len() as u64).sum::<u64>());
    assert_eq!(counters.tx_errors, 0);
}

pub fn a_packet_that_cannot_be_sent_costs_only_itself<B: Backend>() {
    keep_order();
    let mut server = one::<B>("0.0.0.0:0");
    let client = client("127.0.0.1:0");
    let good = server.path_to(&client);
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
    server.send(&packets);
    for number in [1, 3, 6] {
        assert_eq!(server.sent_to(&client).1, [number]);
    }
    assert_eq!(server.counters().tx_errors, 5);
}

pub fn a_length_beyond_the_room_is_refused<B: Backend>() {
    let mut server = one::<B>("127.0.0.1:0");
    let path = Path { local: server.local, peer: server.local, link: Link::Kernel };
    let mut lengths = [MAX_TX_PAYLOAD + 1, MAX_TX_PAYLOAD].into_iter();
    let sent = server.io.send(&mut |_| Some((lengths.next()?, path)));
    assert_eq!(sent, Sent { packets: 1, blocked: false });
    assert_eq!(server.io.counters().tx_errors, 1);
    server.io.flush(Instant::now());
    assert_eq!(server.receive(1)[0].1.len(), MAX_TX_PAYLOAD);
}

pub fn a_peer_that_is_gone_disturbs_nobody<B: Backend>() {
    let mut server = one::<B>("127.0.0.1:0");
    let alive = client("127.0.0.1:0");
    let gone = server.path_to(&client("127.0.0.1:0"));
    let here = server.path_to(&alive);
    // The ICMP errors of one flush are back before the next.
    for _ in 0..3 {
        server.send(&[(gone, vec![0]), (here, vec![1]), (gone, vec![2])]);
        assert_eq!(server.sent_to(&alive).1, [1]);
        alive.send_to(b"still here", server.local).unwrap();
        assert_eq!(server.receive(1)[0].1, b"still here");
    }
}

pub fn datagrams_that_are_too_long_are_counted_and_dropped<B: Backend>() {
    keep_order();
    let mut server = one::<B>("[::]:0");
    let client = client("127.0.0.1:0");
    for length in [MAX_RX_PAYLOAD + 1, MAX_RX_PAYLOAD, 40_000, 1] {
        client.send_to(&vec![5; length], server.on_localhost()).unwrap();
    }
    let lengths: Vec<usize> = server.receive(2).iter().map(|(_, payload)| payload.len()).collect();
    assert_eq!(lengths, [MAX_RX_PAYLOAD, 1]);
    let counters = server.counters();
    assert_eq!((counters.rx_too_long, counters.rx_packets), (2, 2));
}

pub fn what_the_kernel_drops_is_counted<B: Backend>() {
    // The kernel raises this to its smallest receive buffer, of a few packets.
    let tiny = SocketConfig { rcvbuf: 1, ..config("127.0.0.1:0", 1) };
    let mut server = servers::<B>(&tiny, |_| ()).remove(0);
    let client = client("127.0.0.1:0");
    for _ in 0..100 {
        client.send_to(&[0; 1000], server.local).unwrap();
    }
    let (start, mut received) = (Instant::now(), 0);
    while received + server.io.counters().rx_kernel_drops < 100 {
        assert!(start.elapsed() < PATIENCE, "{received} received, {:?}", server.io.counters());
        received += server.io.receive(100, &mut |_: &Path, _: &mut [u8]| ()) as u64;
    }
    let counters = server.io.counters();
    assert_eq!(counters.rx_packets + counters.rx_kernel_drops, 100);
    assert!(counters.rx_kernel_drops > 0, "{counters:?}");
}

pub fn wait_ends_with_a_packet_a_wake_or_the_timeout<B: Backend>() {
    let mut server = one::<B>("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    for _ in 0..3 {
        let start = Instant::now();
        server.wait(Duration::from_millis(20));
        assert!(start.elapsed() >= Duration::from_millis(20), "after {:?}", start.elapsed());

        let start = Instant::now();
        client.send_to(b"packet", server.local).unwrap();
        server.wait(PATIENCE);
        assert!(start.elapsed() < PATIENCE);
        assert_eq!(server.receive(1)[0].1, b"packet");

        // From another thread, while it sleeps.
        let from = client.try_clone().unwrap();
        let to = server.local;
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            from.send_to(b"later", to).unwrap();
        });
        assert_eq!(server.receive(1)[0].1, b"later");
        assert!(start.elapsed() < PATIENCE);
        sender.join().unwrap();

        server.wake.write(1).unwrap();
        server.wait(Duration::MAX);
        server.wait(Duration::MAX); // it is readable still
        server.wake.read().unwrap();
    }
}

pub fn wait_flushes_first<B: Backend>() {
    let mut server = one::<B>("127.0.0.1:0");
    let path = Path { local: server.local, peer: server.local, link: Link::Kernel };
    let mut once = Some((1, path));
    server.io.send(&mut |_| once.take());
    server.wait(PATIENCE);
    assert_eq!(server.receive(1).len(), 1);
}

pub fn a_group_shares_the_port_and_misses_nothing<B: Backend>() {
    let mut group = servers::<B>(&config("[::]:0", 4), |_| ());
    let clients: Vec<UdpSocket> = (0..128).map(|_| client("127.0.0.1:0")).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], group[0].on_localhost()).unwrap();
    }
    let (start, mut seen) = (Instant::now(), Vec::new());
    let mut by_worker = [0; 4];
    while seen.len() < clients.len() && start.elapsed() < PATIENCE {
        for (server, count) in group.iter_mut().zip(&mut by_worker) {
            *count +=
                server.io.receive(usize::MAX, &mut |_: &Path, payload: &mut [u8]| seen.push(payload[0]));
        }
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..128));
    // That the hash leaves one of four out has a chance of 4 * 0.75^128, or 4e-16.
    assert!(by_worker.iter().all(|&count| count > 0), "{by_worker:?}");
}

/// Main opens it, a worker uses it, and main has it back at the end.
pub fn can_be_sent_to_its_worker<B: Backend<Io: Send>>() {
    let mut server = one::<B>("127.0.0.1:0");
    std::thread::scope(|scope| {
        let server = &mut server;
        scope.spawn(move || {
            let to = server.local;
            server.asks_and_is_answered("127.0.0.1:0", to);
            server.io.finish();
        });
    });
    drop(server);
}
