//! A queue and its packet I/O against the model kernel: no frame is ever lost, whatever the kernel does.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::FrameCensus;
use super::io::XdpIo;
use super::model::{ModelDescriptor, ModelRings, ModelSocket};
use super::queue::Queue;
use super::socket::FRAME_SIZE;
use super::umem::Limits;
use crate::net::{Ethernet, Link, MAX_TX_PAYLOAD, PacketIo, Path, Sent, frame};

type ModelIo = XdpIo<ModelSocket, ModelRings>;

fn io(frames: u32, limits: Limits) -> ModelIo {
    XdpIo::new(Queue::new(ModelRings::new(frames), limits), false, ModelSocket::default())
}

/// The path of client `port`: even ones speak IPv4, odd ones IPv6, every third is on a VLAN.
fn path(port: u16) -> Path {
    let (local, peer): (SocketAddr, SocketAddr) = if port.is_multiple_of(2) {
        ("192.0.2.1:4433".parse().unwrap(), SocketAddr::from(([192, 0, 2, 9], port)))
    } else {
        ("[2001:db8::1]:4433".parse().unwrap(), SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9], port)))
    };
    let vlan = port.is_multiple_of(3).then_some(7);
    Path { local, peer, link: Link::Ethernet(Ethernet { local: [2; 6], peer: [4; 6], vlan }) }
}

fn reversed(path: &Path) -> Path {
    let Link::Ethernet(Ethernet { local, peer, vlan }) = path.link else { return *path };
    let link = Link::Ethernet(Ethernet { local: peer, peer: local, vlan });
    Path { local: path.peer, peer: path.local, link }
}

/// What client `port` puts on the wire.
fn packet(port: u16, payload: &[u8]) -> Vec<u8> {
    let path = reversed(&path(port));
    let mut packet = vec![0; frame::headers_len(&path).unwrap()];
    packet.extend_from_slice(payload);
    frame::write_headers(&mut packet, &path).unwrap();
    packet
}

/// Sends `packets`, as far as there is room.
fn send(io: &mut ModelIo, packets: &mut VecDeque<(Path, Vec<u8>)>) -> Sent {
    io.send(&mut |room| {
        assert_eq!(room.len(), MAX_TX_PAYLOAD);
        let (path, payload) = packets.pop_front()?;
        room[..payload.len()].copy_from_slice(&payload);
        Some((payload.len(), path))
    })
}

fn receive(io: &mut ModelIo, budget: usize) -> Vec<(Path, Vec<u8>)> {
    let mut got = Vec::new();
    let count =
        io.receive(budget, &mut |path: &Path, payload: &mut [u8]| got.push((*path, payload.to_vec())));
    assert_eq!(count, got.len());
    got
}

/// The census is whole, and says of each place what the model says.
#[track_caller]
fn check(io: &mut ModelIo) -> FrameCensus {
    let census = io.census();
    census.assert_whole();
    let rings = io.rings_mut();
    assert_eq!(census.fill as usize, rings.fill.len() + rings.receiving.len());
    assert_eq!(census.receive as usize, rings.receive.len());
    assert_eq!(census.transmit as usize, rings.transmit.len() + rings.transmitting.len());
    assert_eq!(census.completion as usize, rings.complete.len());
    census
}

/// With a single frame any leak ends all traffic at once.
#[test]
fn one_frame_is_enough_for_ever() {
    let mut io = io(1, Limits { receive: 1, transmit: 1 });
    let mut now = Instant::now();
    for round in 0..1_000u16 {
        // Received and dropped, in every way that there is.
        for bad in [&[][..], &[0xff; 200], &packet(4, &[0; 1_473])] {
            assert!(io.rings_mut().nic_receives(bad), "round {round}: no frame to receive into");
            assert!(!io.rings_mut().nic_receives(bad), "round {round}: a second frame");
            assert_eq!(receive(&mut io, 64), []);
            assert_eq!(check(&mut io).fill, 1);
        }
        // Received and handed over.
        assert!(io.rings_mut().nic_receives(&packet(round + 1, b"question")));
        assert_eq!(receive(&mut io, 64), [(path(round + 1), b"question".to_vec())]);
        // The frame is in the fill ring, so sending is blocked.
        let mut answers = VecDeque::from([(path(round + 1), b"answer".to_vec())]);
        assert_eq!(send(&mut io, &mut answers), Sent { packets: 0, blocked: true });
        // It comes back while the fill ring has no room: sent, and until it is complete nothing else can be.
        io.rings_mut().full.0 = true;
        assert!(io.rings_mut().nic_receives(&packet(round + 1, b"another")));
        assert_eq!(receive(&mut io, 64).len(), 1);
        assert_eq!(check(&mut io).free, 1);
        answers.push_back(answers[0].clone());
        assert_eq!(send(&mut io, &mut answers), Sent { packets: 1, blocked: true });
        assert_eq!(check(&mut io).worker, 1);
        now += Duration::from_millis(1);
        io.flush(now);
        io.flush(now + Duration::from_micros(20));
        let sent = io.rings_mut().wire.pop().unwrap();
        let (to, payload) = frame::parse(&sent).unwrap();
        assert_eq!((reversed(&to), &sent[payload]), (path(round + 1), &b"answer"[..]));
        io.rings_mut().nic_completes(1);
        assert_eq!(check(&mut io).completion, 1);
        io.rings_mut().full.0 = false;
        io.serve(now);
        assert_eq!(check(&mut io).fill, 1);
    }
    let counters = io.counters();
    assert_eq!((counters.rx_truncated, counters.rx_not_ours, counters.rx_too_long), (1_000, 1_000, 1_000));
    assert_eq!((counters.rx_packets - 10, counters.tx_packets), (2_000, 1_000));
}

#[test]
fn a_kernel_that_returns_nonsense_is_counted_and_survived() {
    let mut io = io(8, Limits::halves(8));
    let nonsense =
        [(usize::MAX, 60), (8 * FRAME_SIZE as usize, 60), (256, 1_793), (256, usize::MAX), (3_000, 2_000)];
    for (address, length) in nonsense {
        io.rings_mut().receive.push_back(ModelDescriptor { address, length });
        io.rings_mut().complete.push_back(ModelDescriptor { address, length });
    }
    io.serve(Instant::now());
    // A good packet, but returned twice: the second may already be in other hands.
    assert!(io.rings_mut().nic_receives(&packet(2, b"once")));
    let copy = *io.rings_mut().receive.back().unwrap();
    io.rings_mut().receive.push_back(copy);
    assert_eq!(receive(&mut io, 64), [(path(2), b"once".to_vec())]);
    check(&mut io);
    // 5 and 5, one copy; 4 more are what the model's kernel counts itself.
    assert_eq!(io.counters().invalid_descriptors, 11 + 4);
}

#[test]
fn answers_go_out_the_way_that_questions_came_in() {
    let mut io = io(8, Limits::halves(8));
    let by_kernel = Path { link: Link::Kernel, ..path(2) };
    io.kernel_mut().inbox.push_back((by_kernel, b"fragmented".to_vec()));
    assert!(io.rings_mut().nic_receives(&packet(2, b"whole")));
    io.serve(Instant::now());
    let got = receive(&mut io, 64);
    assert_eq!(got, [(by_kernel, b"fragmented".to_vec()), (path(2), b"whole".to_vec())]);

    assert_eq!(send(&mut io, &mut got.into()), Sent { packets: 2, blocked: false });
    io.wait(Duration::ZERO, std::io::stdin().as_fd()).unwrap();
    assert_eq!(io.kernel_mut().outbox, [(by_kernel, b"fragmented".to_vec())]);
    assert_eq!(io.rings_mut().wire.len(), 1);

    // What the socket has no room for is lost, but not its frame, and nobody waits for it.
    io.kernel_mut().full = true;
    let errors = io.counters().tx_errors;
    let mut packets = VecDeque::from([(by_kernel, vec![1]), (path(2), vec![2])]);
    assert_eq!(send(&mut io, &mut packets), Sent { packets: 1, blocked: false });
    assert_eq!(io.counters().tx_errors, errors + 1);
    check(&mut io);
}

#[test]
fn unsendable_packets_are_counted_and_cost_no_frame() {
    let mut io = io(8, Limits::halves(8));
    let mixed = Path { local: path(2).local, ..path(1) };
    let mut lengths = VecDeque::from([(1, mixed), (MAX_TX_PAYLOAD + 1, path(2)), (usize::MAX, path(2))]);
    assert_eq!(io.send(&mut |_| lengths.pop_front()), Sent::default());
    assert_eq!(io.counters().tx_errors, 3);
    assert_eq!(check(&mut io).free, 4);
}

#[test]
fn the_socket_beside_is_served_now_and_then() {
    let mut io = io(8, Limits::halves(8));
    let start = Instant::now();
    let path = Path { link: Link::Kernel, ..path(2) };
    for step in 0..100 {
        io.kernel_mut().inbox.push_back((path, vec![step]));
        io.serve(start + Duration::from_micros(10) * u32::from(step));
        receive(&mut io, 64);
    }
    // 990 us, one look each 250 us, the first at once.
    assert_eq!(io.kernel_mut().served, 4);
    assert!(!io.kernel_mut().inbox.is_empty());
    // A flood of it leaves room for others: no more than a burst each time, but then again in the next turn.
    io.kernel_mut().inbox.extend((0..100).map(|_| (path, vec![0])));
    io.serve(start + Duration::from_millis(2));
    assert_eq!(
        (receive(&mut io, 64).len(), receive(&mut io, 64).len(), receive(&mut io, 8).len()),
        (32, 32, 8)
    );
}

#[test]
fn the_kernel_is_woken_when_it_asks_and_not_for_each_packet() {
    const MICRO: Duration = Duration::from_micros(1);
    let mut io = io(256, Limits::halves(256));
    let start = Instant::now();
    let one = || VecDeque::from([(path(2), vec![1])]);
    io.serve(start);
    assert_eq!(io.rings_mut().woken, (0, 0));

    send(&mut io, &mut one());
    io.flush(start);
    send(&mut io, &mut one());
    io.flush(start + 19 * MICRO);
    assert_eq!((io.rings_mut().woken, io.rings_mut().transmit.len()), ((0, 0), 2));
    io.flush(start + 20 * MICRO);
    assert_eq!((io.rings_mut().woken, io.rings_mut().wire.len()), ((0, 1), 2));

    // A driver that is at it already is left alone.
    io.rings_mut().need_wakeup = (false, false);
    send(&mut io, &mut VecDeque::from(vec![(path(2), vec![1]); 100]));
    io.flush(start + 40 * MICRO);
    assert_eq!((io.rings_mut().woken, io.rings_mut().transmit.len()), ((0, 1), 100));

    // One that waits for frames in the fill ring is told, even while there is something to send.
    io.rings_mut().need_wakeup = (true, true);
    send(&mut io, &mut one());
    io.serve(start + 50 * MICRO);
    io.serve(start + 52 * MICRO);
    assert_eq!(io.rings_mut().woken, (1, 1));
}

#[test]
fn busy_polling_drives_the_kernel_from_every_turn() {
    const MICRO: Duration = Duration::from_micros(1);
    let queue = Queue::new(ModelRings::new(8), Limits::halves(8));
    let mut io = XdpIo::new(queue, true, ModelSocket::default());
    let start = Instant::now();
    (0..10).for_each(|step| io.serve(start + step * MICRO));
    assert_eq!(io.rings_mut().woken, (2, 0), "once each 5 us");
    send(&mut io, &mut VecDeque::from([(path(2), vec![1])]));
    io.serve(start + 10 * MICRO);
    assert_eq!((io.rings_mut().woken, io.rings_mut().wire.len()), ((2, 1), 1), "one call for both sides");
}

#[test]
fn a_flood_of_rejects_does_not_exceed_the_budget() {
    let mut io = io(256, Limits::halves(256));
    for _ in 0..128 {
        assert!(io.rings_mut().nic_receives(&[0xff; 60]));
    }
    assert_eq!(receive(&mut io, 100), []);
    assert_eq!(io.rings_mut().receive.len(), 28);
    check(&mut io);
}

/// One step of either side.
#[derive(Clone, Debug)]
enum Step {
    NicTakesFill(usize),
    Arrive { port: u16, length: usize },
    Garbage(Vec<u8>),
    NicSends(usize),
    NicCompletes(usize),
    Full(bool, bool),
    NeedWakeup(bool, bool),
    Receive(usize),
    Send { count: usize, port: u16, length: usize },
    Serve,
    Flush,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0usize..70).prop_map(Step::NicTakesFill),
        8 => (1u16.., 0usize..1_473).prop_map(|(port, length)| Step::Arrive { port, length }),
        2 => proptest::collection::vec(any::<u8>(), 0..1_700).prop_map(Step::Garbage),
        2 => (0usize..70).prop_map(Step::NicSends),
        2 => (0usize..70).prop_map(Step::NicCompletes),
        1 => any::<(bool, bool)>().prop_map(|(fill, transmit)| Step::Full(fill, transmit)),
        1 => any::<(bool, bool)>().prop_map(|(fill, transmit)| Step::NeedWakeup(fill, transmit)),
        3 => (0usize..130).prop_map(Step::Receive),
        4 => (0usize..130, 1u16.., 0..=MAX_TX_PAYLOAD)
            .prop_map(|(count, port, length)| Step::Send { count, port, length }),
        3 => Just(Step::Serve),
        2 => Just(Step::Flush),
        1 => Just(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// Whatever the kernel and the worker do in whatever order: every frame is in exactly one place after
    /// every step, and every packet comes out as it went in, in order, none lost but by the NIC for want of a
    /// frame.
    #[test]
    fn nothing_is_lost(
        frames in 1u32..200,
        shares in (1u32..200, 1u32..200),
        busy in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let limits = Limits { receive: shares.0, transmit: shares.1 };
        let queue = Queue::new(ModelRings::new(frames), limits);
        let mut io = XdpIo::new(queue, busy, ModelSocket::default());
        let mut now = Instant::now();
        let mut arrived = VecDeque::new();
        let mut sent = Vec::new();
        let wake = std::io::stdin();
        for (number, step) in steps.into_iter().enumerate() {
            now += Duration::from_micros(7);
            match step {
                Step::NicTakesFill(count) => io.rings_mut().nic_takes_fill(count),
                Step::Arrive { port, length } => {
                    let payload = vec![number as u8; length];
                    if io.rings_mut().nic_receives(&packet(port, &payload)) {
                        arrived.push_back((path(port), payload));
                    }
                }
                // Almost never a packet by chance, but if so the oracle is the parser, which has tests of its
                // own.
                Step::Garbage(bytes) => {
                    if io.rings_mut().nic_receives(&bytes) && let Ok((path, payload)) = frame::parse(&bytes) {
                        arrived.push_back((path, bytes[payload].to_vec()));
                    }
                }
                Step::NicSends(count) => io.rings_mut().nic_sends(count),
                Step::NicCompletes(count) => io.rings_mut().nic_completes(count),
                Step::Full(fill, transmit) => io.rings_mut().full = (fill, transmit),
                Step::NeedWakeup(fill, transmit) => io.rings_mut().need_wakeup = (fill, transmit),
                Step::Receive(budget) => {
                    for got in receive(&mut io, budget) {
                        prop_assert_eq!(Some(got), arrived.pop_front());
                    }
                }
                Step::Send { count, port, length } => {
                    let packet = |i| (path(port.saturating_add(i as u16)), vec![i as u8; length]);
                    let mut packets: VecDeque<_> = (0..count).map(packet).collect();
                    let all: Vec<_> = packets.iter().cloned().collect();
                    let Sent { packets: taken, blocked } = send(&mut io, &mut packets);
                    prop_assert_eq!(taken as usize, all.len() - packets.len(), "made, but not sent");
                    prop_assert!(blocked || packets.is_empty());
                    sent.extend_from_slice(&all[..taken as usize]);
                }
                Step::Serve => io.serve(now),
                Step::Flush => io.flush(now),
                Step::Wait => io.wait(Duration::ZERO, wake.as_fd()).unwrap(),
            }
            let census = check(&mut io);
            prop_assert!(census.fill + census.receive <= limits.receive);
            prop_assert!(census.transmit + census.completion + census.worker <= limits.transmit);
        }

        // The kernel finishes everything: what was sent is on the wire, and all frames come home.
        io.rings_mut().full = (false, false);
        for _ in 0..4 {
            io.flush(now);
            io.rings_mut().nic_sends(usize::MAX);
            io.rings_mut().nic_completes(usize::MAX);
            io.serve(now);
        }
        while !io.rings_mut().receive.is_empty() {
            for got in receive(&mut io, 64) {
                prop_assert_eq!(Some(got), arrived.pop_front());
            }
        }
        prop_assert!(arrived.is_empty());
        let wire = std::mem::take(&mut io.rings_mut().wire);
        let wire: Vec<_> = wire.iter().map(|packet| {
            let (path, payload) = frame::parse(packet).unwrap();
            (reversed(&path), packet[payload].to_vec())
        }).collect();
        prop_assert_eq!(wire, sent);
        let census = check(&mut io);
        prop_assert_eq!(census.fill, limits.receive.min(frames));
        prop_assert_eq!(census.free, frames - census.fill);
    }
    /// A kernel that returns anything, frames that it was not given and frames that it has handed back
    /// included, gets each frame counted once all the same.
    #[test]
    fn no_nonsense_duplicates_a_frame(
        descriptors in proptest::collection::vec((any::<bool>(), 0usize..40_000, 0usize..3_000), 1..200),
    ) {
        let mut io = io(16, Limits::halves(16));
        io.rings_mut().trusting = true;
        let now = Instant::now();
        for (received, address, length) in descriptors {
            let rings = io.rings_mut();
            let ring = if received { &mut rings.receive } else { &mut rings.complete };
            ring.push_back(ModelDescriptor { address, length });
            receive(&mut io, 64);
            io.serve(now);
            send(&mut io, &mut VecDeque::from([(path(2), vec![0; 9])]));
            io.flush(now);
            io.census().assert_whole();
        }
    }
}
