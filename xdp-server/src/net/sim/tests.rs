//! Both ends of the simulated network together. What a direction does to packets is tested in
//! [`super::link`].

use std::thread;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn net(config: SimConfig, queues: usize) -> (SimNet, Vec<SimIo>) {
    SimNet::new(1, config, "192.0.2.1:4433".parse().unwrap(), NonZeroUsize::new(queues).unwrap()).unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn receive(io: &mut SimIo) -> Vec<(Path, Vec<u8>)> {
    let mut packets = Vec::new();
    io.receive(usize::MAX, &mut |path: &Path, payload: &mut [u8]| packets.push((*path, payload.to_vec())));
    packets
}

/// Offers `count` packets of one byte, numbered.
fn send(io: &mut SimIo, path: Path, count: u8) -> Sent {
    let mut numbers = 0..count;
    io.send(&mut |buffer| {
        buffer[0] = numbers.next()?;
        Some((1, path))
    })
}

#[test]
fn packets_reach_the_queue_and_answers_the_client() {
    let (net, mut ios) = net(SimConfig::default(), 2);
    let alice = net.client(address("198.51.100.1:1"), 0);
    let bob = net.client(address("[2001:db8::2]:2"), 1);
    alice.send(b"from alice");
    bob.send(b"from bob");
    let path =
        |client: &SimClient| Path { local: net.server_addr(), peer: client.local_addr(), link: Link::Kernel };
    assert_eq!(receive(&mut ios[0]), [(path(&alice), b"from alice".to_vec())]);
    assert_eq!(receive(&mut ios[1]), [(path(&bob), b"from bob".to_vec())]);

    // Any worker may answer anybody.
    send(&mut ios[0], path(&bob), 2);
    assert_eq!(bob.recv(), None, "nothing leaves before the flush");
    ios[0].flush(Instant::now());
    assert_eq!(bob.recv(), Some((net.server_addr(), vec![0])));
    assert_eq!(bob.recv(), Some((net.server_addr(), vec![1])));
    assert_eq!((bob.recv(), alice.recv()), (None, None));
    assert!(net.is_idle());

    let counters = ios[0].counters();
    assert_eq!((counters.rx_packets, counters.rx_bytes), (1, 10));
    assert_eq!((counters.tx_packets, counters.tx_bytes), (2, 2));
}

#[test]
fn a_budget_is_kept_and_payloads_are_lent_mutably() {
    let (net, mut ios) = net(SimConfig::default(), 1);
    let client = net.client(address("198.51.100.1:1"), 0);
    for number in 0..10 {
        client.send(&[number]);
    }
    let mut seen = Vec::new();
    for expected in [4, 4, 2, 0] {
        let got = ios[0].receive(4, &mut |_: &Path, payload: &mut [u8]| {
            payload[0] += 1;
            seen.push(payload[0]);
        });
        assert_eq!(got, expected);
    }
    assert!(seen.into_iter().eq(1..=10));
}

#[test]
fn transmit_buffers_run_out_until_the_flush() {
    let (net, mut ios) = net(SimConfig { tx_slots: 3, ..SimConfig::default() }, 1);
    let client = net.client(address("198.51.100.1:1"), 0);
    let path = Path { local: net.server_addr(), peer: client.local_addr(), link: Link::Kernel };
    for round in 1..=3 {
        assert_eq!(send(&mut ios[0], path, 5), Sent { packets: 3, blocked: true });
        assert_eq!(ios[0].queued(), 3);
        assert_eq!(ios[0].send(&mut |_| panic!("there is no buffer")), Sent { packets: 0, blocked: true });
        assert_eq!(ios[0].counters().tx_blocked, 2 * round);
        ios[0].flush(Instant::now());
        let numbers: Vec<u8> = std::iter::from_fn(|| client.recv()).map(|(_, payload)| payload[0]).collect();
        assert_eq!(numbers, [0, 1, 2]);
    }
    assert_eq!(send(&mut ios[0], path, 2), Sent { packets: 2, blocked: false });
}

#[test]
fn what_does_not_fit_is_counted() {
    let (net, mut ios) = net(SimConfig { rx_slots: 2, ..SimConfig::default() }, 1);
    let client = net.client(address("198.51.100.1:1"), 0);
    client.send(&[0; MAX_RX_PAYLOAD + 1]);
    client.send(&[0; MAX_RX_PAYLOAD]);
    client.send(b"one too many");
    assert_eq!(receive(&mut ios[0]).len(), 1);
    let counters = ios[0].counters();
    assert_eq!((counters.rx_too_long, counters.rx_kernel_drops), (1, 1));
    assert_eq!(net.stats(), SimStats { sent: 3, dropped: 1, ..SimStats::default() });

    let path = Path { local: net.server_addr(), peer: client.local_addr(), link: Link::Kernel };
    let mut once = Some((MAX_TX_PAYLOAD + 1, path));
    assert_eq!(ios[0].send(&mut |_| once.take()), Sent::default());
    assert_eq!(ios[0].counters().tx_errors, 1);
}

#[test]
fn a_rebound_client_has_a_new_address_and_queue_and_is_lost_at_the_old_one() {
    let (net, mut ios) = net(SimConfig::default(), 2);
    let mut client = net.client(address("198.51.100.1:1"), 0);
    client.send(b"before");
    let (old, _) = receive(&mut ios[0]).remove(0);
    client.rebind(address("198.51.100.1:7777"), 1);
    client.send(b"after");
    assert!(receive(&mut ios[0]).is_empty());
    let (new, payload) = receive(&mut ios[1]).remove(0);
    assert_eq!((new.peer, payload), (address("198.51.100.1:7777"), b"after".to_vec()));

    send(&mut ios[0], old, 1);
    send(&mut ios[1], new, 1);
    ios.iter_mut().for_each(|io| io.flush(Instant::now()));
    assert!(client.recv().is_some() && client.recv().is_none());
    assert_eq!(net.stats().unroutable, 1);

    drop(client);
    send(&mut ios[1], new, 1);
    ios[1].flush(Instant::now());
    assert_eq!(net.stats().unroutable, 2);
}

#[test]
fn an_address_passes_to_its_next_owner() {
    let (net, mut ios) = net(SimConfig::default(), 1);
    let first = net.client(address("198.51.100.1:1"), 0);
    let second = net.client(address("198.51.100.1:1"), 0);
    let path = Path { local: net.server_addr(), peer: first.local_addr(), link: Link::Kernel };
    drop(first);
    send(&mut ios[0], path, 1);
    ios[0].flush(Instant::now());
    assert!(second.recv().is_some());
}

#[test]
fn both_directions_are_impaired_and_the_seed_repeats_it() {
    let config = SimConfig { loss: 0.05, duplicate: 0.05, reorder: 0.2, ..SimConfig::default() };
    let run = || {
        let (net, mut ios) = net(config, 1);
        let client = net.client(address("198.51.100.1:1"), 0);
        let (mut there, mut back) = (Vec::new(), Vec::new());
        for number in 0..2_000_u32 {
            client.send(&number.to_be_bytes());
            let packets = receive(&mut ios[0]);
            let mut echoes = packets.iter();
            ios[0].send(&mut |buffer| {
                let (path, payload) = echoes.next()?;
                buffer[..payload.len()].copy_from_slice(payload);
                Some((payload.len(), *path))
            });
            ios[0].flush(Instant::now());
            there.extend(packets.into_iter().map(|(_, payload)| payload));
            back.extend(std::iter::from_fn(|| client.recv()).map(|(_, payload)| payload));
        }
        (there, back, net.stats())
    };
    let (there, back, stats) = run();
    assert!(stats.lost > 0 && stats.duplicated > 0 && stats.reordered > 0, "{stats:?}");
    assert!(there.iter().all(|payload| payload.len() == 4) && !there.is_sorted());
    assert!(back.iter().all(|payload| there.contains(payload)), "nothing is echoed that did not arrive");
    assert_eq!(run(), (there, back, stats));
}

#[test]
fn wait_ends_with_a_packet_a_wake_or_the_timeout() {
    let (net, mut ios) = net(SimConfig { reorder: 1.0, ..SimConfig::default() }, 1);
    let client = net.client(address("198.51.100.1:1"), 0);
    let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();

    let start = Instant::now();
    ios[0].wait(Duration::from_millis(20), wake.as_fd()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));

    // One that is held back wakes too, and keeps the worker polling until it is there.
    let start = Instant::now();
    let sender = thread::spawn(move || {
        client.send(b"packet");
        client
    });
    while receive(&mut ios[0]).is_empty() {
        assert!(start.elapsed() < PATIENCE);
        ios[0].wait(PATIENCE, wake.as_fd()).unwrap();
    }
    sender.join().unwrap();

    wake.write(1).unwrap();
    ios[0].wait(PATIENCE, wake.as_fd()).unwrap();
    assert!(start.elapsed() < PATIENCE);
}
