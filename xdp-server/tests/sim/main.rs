//! A whole server over the simulated network, with quiche clients: the protocol, loss, rebinding, limits,
//! drain.

mod client;
mod moves;
mod newcomers;
mod sending;
mod world;

use canvas::codec::Pixel;
use canvas::codec::control::ClientFrame;
use canvas::codec::tiles::TilesReason;
use canvas::codes::{HELLO_DIFFS, HELLO_SNAPSHOT};
use client::ClientOptions;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use world::{Options, World};
use xdp_server::net::sim::SimConfig;

fn pixel(x: u16, y: u16, colour: u8) -> Pixel {
    Pixel { x, y, colour }
}

#[test]
fn a_pixel_comes_back_to_its_painter_and_to_others() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::default());
    let watcher = world.join(0, ClientOptions::default());
    world.clients[painter].paint(&[pixel(199, 149, 5)]);
    world.until("the pixel", |world| {
        [painter, watcher].iter().all(|client| {
            world.clients[*client].mirror.as_ref().and_then(|mirror| mirror.pixel(199, 149)) == Some(5)
        })
    });
    world.converge();
    let welcome = world.clients[painter].welcome.clone().unwrap();
    assert_ne!(welcome.client_id, world.clients[watcher].welcome.clone().unwrap().client_id);
    assert_eq!((welcome.palette, welcome.cooldown_ms), (32, 0));
    let diffs = |client: usize| -> Vec<Vec<u8>> {
        world.clients[client].payloads.iter().filter(|payload| payload[0] == 0x81).cloned().collect()
    };
    assert_eq!(diffs(painter), diffs(watcher), "the same view gets the same bytes");
}

/// The test ladder's second rung: two workers, loss of 5%, duplicates, reordering, late joiners, both ways of
/// painting; at the end every mirror is the canvas and every frame was acknowledged once.
#[test]
fn everybody_converges_over_a_bad_network() {
    let sim = SimConfig { loss: 0.05, duplicate: 0.02, reorder: 0.05, tx_slots: 16, ..SimConfig::default() };
    let mut world = World::new(&Options { workers: 2, sim, seed: 7, ..Options::default() });
    let mut rng = StdRng::seed_from_u64(7);
    for n in 0..12 {
        world.connect(n % 2, ClientOptions { datagrams: n % 4 != 3, ..ClientOptions::default() });
    }
    world.until("all clients in", |world| world.clients.iter().all(|client| client.welcome.is_some()));
    let mut frames = vec![0u32; 24];
    for round in 0..150 {
        for (n, client) in world.clients.iter_mut().enumerate() {
            if client.welcome.is_none() {
                continue;
            }
            let pixels: Vec<Pixel> = (0..rng.random_range(1..8))
                .map(|_| pixel(rng.random_range(0..200), rng.random_range(0..150), rng.random_range(0..32)))
                .collect();
            if n % 4 == 3 || round % 10 == n {
                frames[n] += 1;
                client.paint_frame(frames[n], &pixels);
            } else {
                client.paint(&pixels);
            }
        }
        if round % 40 == 39 {
            world.connect(round / 40 % 2, ClientOptions::default());
        }
        world.run(Duration::from_millis(8));
    }
    world.until("every acknowledgement", |world| {
        world.clients.iter().zip(&frames).all(|(client, sent)| client.acks.len() == *sent as usize)
    });
    world.converge();
    for (n, client) in world.clients.iter().enumerate() {
        let mut seqs: Vec<u32> = client.acks.iter().map(|ack| ack.seq).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, (1..=frames[n]).collect::<Vec<_>>(), "each frame once");
        assert!(client.acks.is_sorted_by_key(|ack| ack.commit), "the order of paints is total");
    }
    let stats = world.stats();
    assert_eq!(stats.protocol_violations, 0);
    assert!(world.net.stats().lost > 200, "the network was bad: {:?}", world.net.stats());
}

#[test]
fn a_late_joiner_gets_the_snapshot_and_nothing_else_is_in_it() {
    let mut world = World::new(&Options::default());
    let first = world.join(0, ClientOptions::default());
    world.until("the snapshot of an empty canvas", |world| world.clients[first].images.len() == 1);
    assert_eq!(world.clients[first].images[0], (TilesReason::Snapshot, vec![]));
    world.clients[first].paint(&[pixel(0, 0, 1), pixel(130, 100, 2)]);
    world.until("the pixels", |world| world.master.canvas().commit() == 2);
    world.run(Duration::from_millis(50));
    let late = world.join(0, ClientOptions { flags: HELLO_SNAPSHOT, ..ClientOptions::default() });
    world.until("the snapshot", |world| !world.clients[late].images.is_empty());
    // 200 x 150 is 4 x 3 tiles; (130, 100) is in column 2, row 1.
    assert_eq!(world.clients[late].images[0], (TilesReason::Snapshot, vec![0, 6]));
    world.run(Duration::from_millis(100));
    assert!(world.clients[late].payloads.is_empty(), "without bit 1 there are no diffs");
}

#[test]
fn views_bring_images_once_and_diffs_from_then_on() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::painter());
    let viewer = world.join(0, ClientOptions { flags: HELLO_DIFFS, ..ClientOptions::default() });
    world.clients[viewer].view(0, 0, 64, 64, 0);
    world.until("the first view's images", |world| world.clients[viewer].images.len() == 1);
    world.clients[viewer].view(0, 0, 128, 64, 0);
    world.until("the second view's images", |world| world.clients[viewer].images.len() == 2);
    assert_eq!(world.clients[viewer].images, [(TilesReason::View, vec![0]), (TilesReason::View, vec![1])]);
    world.clients[painter].paint(&[pixel(70, 0, 3), pixel(150, 0, 3)]);
    world.until("the pixel in view", |world| {
        world.clients[viewer].mirror.as_ref().and_then(|mirror| mirror.pixel(70, 0)) == Some(3)
    });
    let beside = world.clients[viewer].mirror.as_ref().unwrap().counters().records_beside;
    assert_eq!(beside, 0, "no record of a tile that is not in view");
    world.clients[viewer].repair(&[(11, 0), (5, 0), (12, 0), (u32::MAX, 0)]);
    world.until("the repair", |world| world.clients[viewer].images.len() == 3);
    assert_eq!(
        world.clients[viewer].images[2],
        (TilesReason::Repair, vec![5, 11]),
        "outside ids are skipped"
    );
}

#[test]
fn a_client_without_datagrams_gets_diffs_as_frames() {
    let mut world = World::new(&Options::default());
    let client = world.join(0, ClientOptions { datagrams: false, ..ClientOptions::default() });
    world.clients[client].paint_frame(1, &[pixel(1, 1, 4)]);
    world.until("the pixel", |world| {
        world.clients[client].mirror.as_ref().and_then(|mirror| mirror.pixel(1, 1)) == Some(4)
    });
    world.converge();
}

#[test]
fn a_paint_frame_is_answered_to_the_last_pixel() {
    let mut world = World::new(&Options::default());
    let client = world.join(0, ClientOptions::painter());
    let pixels = [pixel(0, 0, 32), pixel(200, 0, 1), pixel(3, 3, 3), pixel(0, 150, 1), pixel(4, 4, 31)];
    world.clients[client].paint_frame(7, &pixels);
    world.clients[client].paint_frame(8, &[]);
    world.until("two acknowledgements", |world| world.clients[client].acks.len() == 2);
    let acks = &world.clients[client].acks;
    let [first, second] = [acks[0], acks[1]];
    assert_eq!((first.seq, first.applied, first.rejected, first.reason, first.commit), (7, 2, 3, 2, 2));
    assert_eq!((second.seq, second.applied, second.rejected, second.reason, second.commit), (8, 0, 0, 0, 2));
    world.clients[client].frame(&ClientFrame::Stats);
    world.clients[client].frame(&ClientFrame::Ping(99));
    world.until("the figures", |world| world.clients[client].pongs == [99]);
    let stats = world.clients[client].stats[0];
    assert_eq!((stats.applied, stats.rejected, stats.connections, stats.commit), (2, 3, 1, 2));
}

#[test]
fn a_full_paint_queue_rejects_as_overload_and_still_answers() {
    let mut world = World::new(&Options { paint_queue: 64, ..Options::default() });
    let client = world.join(0, ClientOptions::painter());
    let pixels: Vec<Pixel> = (0..150).map(|n| pixel(n, 0, 1)).collect();
    world.clients[client].paint_frame(1, &pixels);
    world.clients[client].paint_frame(2, &pixels[..10]);
    world.until("both acknowledgements", |world| world.clients[client].acks.len() == 2);
    let first = world.clients[client].acks.iter().find(|ack| ack.seq == 1).unwrap();
    assert_eq!((first.applied + first.rejected, first.reason), (150, 5));
    assert!(first.applied <= 63, "{first:?}");
}

#[test]
fn a_full_table_says_so() {
    let mut world = World::new(&Options { max_connections: 2, ..Options::default() });
    let kept = [world.join(0, ClientOptions::painter()), world.join(0, ClientOptions::painter())];
    let third = world.connect(0, ClientOptions::painter());
    world.until("the refusal", |world| world.clients[third].close_code().is_some());
    assert_eq!(world.clients[third].close_code(), Some(3));
    world.clients[kept[0]].quic.close(true, 0, b"").unwrap();
    world.until("room", |world| world.workers[0].connections() == 1);
    world.join(0, ClientOptions::painter());
    assert_eq!(world.stats().refused_full, 1);
}

#[test]
fn tokens_are_asked_for() {
    let mut options = Options::default();
    options.session.token = Some(b"sesame".to_vec());
    let mut world = World::new(&options);
    world.join(0, ClientOptions { token: b"sesame".to_vec(), ..ClientOptions::painter() });
    let wrong = world.connect(0, ClientOptions { token: b"sesamf".to_vec(), ..ClientOptions::painter() });
    world.until("the refusal", |world| world.clients[wrong].close_code().is_some());
    assert_eq!(world.clients[wrong].close_code(), Some(4));
}

#[test]
fn a_rate_limit_rejects_and_then_ends_a_flood() {
    let mut options = Options::default();
    options.session.client_pixels = 10;
    let mut world = World::new(&options);
    let client = world.join(0, ClientOptions::painter());
    assert_eq!(world.clients[client].welcome.as_ref().unwrap().cooldown_ms, 100);
    let pixels: Vec<Pixel> = (0..100).map(|n| pixel(n, 0, 1)).collect();
    world.clients[client].paint_frame(1, &pixels);
    world.until("the acknowledgement", |world| !world.clients[client].acks.is_empty());
    let ack = world.clients[client].acks[0];
    assert!(ack.applied >= 10 && ack.applied < 20 && ack.reason == 3, "{ack:?}");
    for seq in 2..8 {
        world.clients[client].paint_frame(seq, &pixels);
    }
    world.until("the close", |world| world.clients[client].close_code().is_some());
    assert_eq!(world.clients[client].close_code(), Some(2));
}

#[test]
fn violations_close_and_mistakes_are_counted() {
    let mut world = World::new(&Options::default());
    for (bytes, why) in [
        (&[0x05, 8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8][..], "PING before HELLO"),
        (&[0x01, 5, 0, 0, 0, 2, 0, 0, 0, 0], "version 2"),
        (&[0x01, 4, 0, 0, 0, 1, 0, 0, 0], "HELLO too short"),
        (&[0x41, 0, 0, 0, 0], "WELCOME from a client"),
        (&[0x7f, 1, 0, 1, 0], "65,537 bytes announced"),
    ] {
        let client = world.connect(0, ClientOptions { hello: false, ..ClientOptions::painter() });
        world.clients[client].raw(bytes);
        world.until(why, |world| world.clients[client].close_code().is_some());
        assert_eq!(world.clients[client].close_code(), Some(1), "{why}");
    }
    let client = world.join(0, ClientOptions::painter());
    for _ in 0..120 {
        world.clients[client].datagram(&[0x7f, 1, 2, 3]);
        world.step();
    }
    for _ in 0..99 {
        world.clients[client].datagram(&[0x01, 0, 1]);
        world.step();
    }
    world.clients[client].frame(&ClientFrame::Ping(1));
    world.until("the answer", |world| world.clients[client].pongs == [1]);
    assert_eq!(world.clients[client].close_code(), None);
    world.clients[client].datagram(&[]);
    world.until("the hundredth", |world| world.clients[client].close_code().is_some());
    assert_eq!(world.clients[client].close_code(), Some(1));
    let stats = world.stats();
    assert_eq!(
        (stats.datagrams_unknown, stats.datagrams_malformed, stats.protocol_violations),
        (120, 100, 6)
    );
}

#[test]
fn a_drain_tells_and_then_closes() {
    let mut world = World::new(&Options { workers: 2, ..Options::default() });
    let clients = [world.join(0, ClientOptions::default()), world.join(1, ClientOptions::painter())];
    world.drain();
    world.until("the closes", |world| {
        clients.iter().all(|client| world.clients[*client].close_code().is_some())
    });
    for client in clients {
        assert_eq!(
            (world.clients[client].notices.as_slice(), world.clients[client].close_code()),
            (&[5][..], Some(5))
        );
    }
    let late = world.connect(0, ClientOptions::painter());
    world.run(Duration::from_millis(100));
    assert!(!world.clients[late].quic.is_established(), "nobody new is taken while draining");
}

#[test]
fn a_restarted_server_resets_stale_connections() {
    let options = Options::default();
    let mut old = World::new(&options);
    let client = old.join(0, ClientOptions::painter());
    let mut new = World::new(&options);
    let address = new.fresh_address();
    let link = new.net.client(address, 0);
    let mut survivor = old.clients.swap_remove(client);
    survivor.link = link;
    survivor.paint(&[pixel(1, 1, 1)]);
    new.clients.push(survivor);
    new.until("the reset", |world| world.clients[0].quic.is_closed());
    assert!(new.stats().stateless_resets >= 1);
    assert_eq!(new.clients[0].close_code(), None, "a reset is no CONNECTION_CLOSE");
}

#[test]
fn idle_and_half_open_connections_are_cleaned_up() {
    let mut world = World::new(&Options { idle_timeout: Duration::from_millis(300), ..Options::default() });
    world.join(0, ClientOptions::painter());
    world.clients.clear();
    world.until("the idle time-out", |world| world.workers[0].connections() == 0);
    assert_eq!(world.stats().idle_timeouts, 1);
}

#[test]
fn a_byte_budget_is_kept_and_the_client_still_converges() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::painter());
    let slow = world.join(0, ClientOptions::default());
    world.clients[slow].view(0, 0, 0, 0, 80); // 10 kB/s
    world.run(Duration::from_millis(50));
    let before = world.clients[slow].quic.stats().recv_bytes;
    let mut rng = StdRng::seed_from_u64(3);
    let started = std::time::Instant::now();
    let over_budget = |world: &World| world.shared.totals().diffs_over_budget > 0;
    while started.elapsed() < Duration::from_secs(2) || !over_budget(&world) {
        assert!(started.elapsed() < Duration::from_secs(30), "the budget was never used up");
        let pixels: Vec<Pixel> =
            (0..200).map(|_| pixel(rng.random_range(0..200), rng.random_range(0..150), 7)).collect();
        world.clients[painter].paint(&pixels);
        world.run(Duration::from_millis(5));
    }
    let received = world.clients[slow].quic.stats().recv_bytes - before;
    // What the time earned, a burst of a second more and of one image, and QUIC's own bytes.
    let budget = started.elapsed().as_millis() as u64 * 10 + 40_000;
    assert!(received < budget, "{received} bytes where {budget} were allowed");
    world.converge();
}

#[test]
fn unknown_versions_are_answered_and_garbage_is_not() {
    let mut world = World::new(&Options::default());
    let address = world.fresh_address();
    let stranger = world.net.client(address, 0);
    let mut packet = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 4, 1, 2, 3, 4, 2, 8, 9];
    packet.resize(1200, 0x55);
    stranger.send(&packet);
    stranger.send(&packet[..1199]);
    packet[1..5].copy_from_slice(&1_u32.to_be_bytes());
    stranger.send(&packet); // version 1, but not authentic
    world.run(Duration::from_millis(20));
    let (_, answer) = stranger.recv().unwrap();
    assert_eq!(answer[1..5], [0; 4], "Version Negotiation");
    assert_eq!(answer[5..13], [2, 8, 9, 4, 1, 2, 3, 4], "IDs swapped");
    assert!(answer[13..].chunks(4).any(|version| version == [0, 0, 0, 1]));
    assert!(stranger.recv().is_none());
    let stats = world.stats();
    assert_eq!((stats.version_negotiations, stats.drop_not_initial, stats.drop_quic), (1, 1, 1));
    assert_eq!(stats.connections, 0);
}

/// Strangers send whole packets of others with bytes changed, cut or repeated, and pure noise, to both
/// workers, while a client paints: nothing panics, nobody is disturbed, and every packet is accounted for.
#[test]
fn workers_eat_arbitrary_packets() {
    let mut world = World::new(&Options { workers: 2, max_connections: 8, ..Options::default() });
    let client = world.join(0, ClientOptions::default());
    let mut rng = StdRng::seed_from_u64(11);
    let strangers: Vec<_> = (0..2)
        .map(|queue| {
            let address = world.fresh_address();
            world.net.client(address, queue)
        })
        .collect();
    let before = world.stats().rx_packets;
    let mut sent = 0;
    for round in 0..3000_u32 {
        world.clients[client].paint(&[pixel((round % 200) as u16, (round / 200) as u16, 3)]);
        let mut packet = match round % 3 {
            0 => (0..rng.random_range(0..1472)).map(|_| rng.random()).collect::<Vec<u8>>(),
            _ => world.clients[client].last_sent.clone(),
        };
        for _ in 0..rng.random_range(0..4) {
            let len = packet.len();
            match rng.random_range(0..4) {
                _ if len == 0 => {}
                0 => packet[rng.random_range(0..len)] = rng.random(),
                1 => packet[rng.random_range(0..len.min(20))] ^= 1 << rng.random_range(0..8),
                2 => packet.truncate(rng.random_range(0..len)),
                _ => packet.resize(rng.random_range(len..1473), rng.random()),
            }
        }
        strangers[rng.random_range(0..2)].send(&packet);
        sent += 1;
        world.step();
    }
    world.converge();
    let stats = world.stats();
    assert!(stats.rx_packets >= before + sent, "{stats:#?}");
    assert!(
        stats.drop_malformed > 0 && stats.drop_unknown_id > 0 && stats.drop_not_initial > 0,
        "{stats:#?}"
    );
    assert_eq!(world.clients[client].close_code(), None);
}

/// Clients that speak QUIC well and canvas/1 badly: random bytes, and real frames with bytes changed, on the
/// control stream and in datagrams. The worst that happens is that the server closes them with a code of the
/// protocol.
#[test]
fn sessions_eat_arbitrary_frames() {
    let mut world = World::new(&Options { max_connections: 4096, ..Options::default() });
    let witness = world.join(0, ClientOptions::default());
    let mut rng = StdRng::seed_from_u64(12);
    for round in 0..150 {
        let client = world.connect(0, ClientOptions { hello: round % 4 != 0, ..ClientOptions::painter() });
        world.until("the handshake", |world| world.clients[client].quic.is_established());
        world.run(Duration::from_millis(2));
        for _ in 0..6 {
            let mut bytes = Vec::new();
            match rng.random_range(0..6) {
                0 => ClientFrame::Ping(rng.random()).encode(&mut bytes),
                1 => ClientFrame::View {
                    x0: rng.random(),
                    y0: rng.random(),
                    x1: rng.random(),
                    y1: rng.random(),
                    kbit_per_s: rng.random(),
                }
                .encode(&mut bytes),
                2 => ClientFrame::Hello { version: 1, flags: rng.random(), token: b"abc" }.encode(&mut bytes),
                3 => ClientFrame::Stats.encode(&mut bytes),
                4 => bytes = vec![0x04, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0],
                _ => bytes = (0..rng.random_range(0..200)).map(|_| rng.random()).collect(),
            }
            if rng.random_bool(0.5) && !bytes.is_empty() {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            if world.clients[client].quic.is_closed() || world.clients[client].close_code().is_some() {
                break;
            }
            if rng.random_bool(0.3) {
                let _ = world.clients[client].quic.dgram_send(&bytes);
            } else {
                world.clients[client].raw(&bytes);
            }
            world.run(Duration::from_millis(1));
        }
        let gone = world.clients.pop().unwrap();
        assert!(gone.close_code().is_none_or(|code| code == 1), "closed with {:?}", gone.close_code());
    }
    world.clients[witness].paint(&[pixel(9, 9, 9)]);
    world.until("the pixel", |world| {
        world.clients[witness].mirror.as_ref().and_then(|mirror| mirror.pixel(9, 9)) == Some(9)
    });
    assert!(world.stats().protocol_violations > 20);
}

/// A paints-only client's packets are acknowledged at most once in eight, or once in the delay, and never
/// later.
#[test]
fn acknowledgements_are_few_and_in_time() {
    let mut world = World::new(&Options::default());
    let client = world.join(0, ClientOptions::painter());
    world.run(Duration::from_millis(200));
    let (sent, received) = world.clients[client].packets;
    for n in 0..800_u32 {
        world.clients[client].paint(&[pixel((n % 200) as u16, 1, 1)]);
        world.step();
        world.step();
    }
    world.run(Duration::from_millis(200));
    let (sent, received) =
        (world.clients[client].packets.0 - sent, world.clients[client].packets.1 - received);
    assert!(sent >= 800);
    assert!(received <= sent / 8 + 10, "{received} packets came back for {sent}");
    assert_eq!(world.clients[client].quic.stats().lost, 0, "nothing looked lost");
}
