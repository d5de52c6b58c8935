//! Clients whose address changes.

use crate::client::ClientOptions;
use crate::pixel;
use crate::world::{Options, World};
use canvas::codec::tiles::TilesReason;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use xdp_server::quic::config::PATHS;

#[test]
fn a_rebound_client_goes_on_from_the_other_queue_every_time_and_then_is_told_to_connect_again() {
    let mut world = World::new(&Options { workers: 2, ..Options::default() });
    let moves = PATHS as u16 - 1;
    for spare_ids in [false, true] {
        let client = world.join(0, ClientOptions { spare_ids, ..ClientOptions::default() });
        for n in 0..=moves {
            let address = world.fresh_address();
            world.clients[client].link.rebind(address, usize::from(n + 1) % 2);
            world.clients[client].paint(&[pixel(n, n, 9 + u8::from(spare_ids))]);
            if n == moves {
                break;
            }
            world.until("the pixel after rebinding", |world| {
                let seen = world.clients[client].mirror.as_ref().and_then(|mirror| mirror.pixel(n, n));
                seen == Some(9 + u8::from(spare_ids))
            });
        }
        world.until("the end", |world| world.clients[client].quic.peer_error().is_some());
        let error = world.clients[client].quic.peer_error().unwrap();
        assert_eq!((error.is_app, error.error_code), (false, 0x10), "NO_VIABLE_PATH, where it is now");
    }
    let stats = world.stats();
    assert!(stats.strays_in >= u64::from(moves), "{stats:#?}");
    assert_eq!((stats.handshakes_started, stats.moved_too_often), (2, 2));
}

/// What is sent to where the client was until just now is lost with all that was sent before it, and nothing
/// later on the same path can show that.
#[test]
fn what_was_under_way_when_a_client_moved_arrives() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::painter());
    let moving = world.join(0, ClientOptions::default());
    world.clients[moving].mirror = None; // which would ask again
    let (home, elsewhere) = (world.clients[moving].link.local_addr(), world.fresh_address());
    let payloads = world.clients[moving].payloads.len();
    world.clients[moving].link.rebind(elsewhere, 0);
    for n in 0..4 {
        world.clients[painter].paint(&[pixel(n, 3, 7)]);
        world.run(Duration::from_millis(30)); // at least a tick
    }
    assert_eq!(world.clients[moving].payloads.len(), payloads, "diffs go to where it was");
    let client = &mut world.clients[moving];
    client.link.rebind(home, 0);
    client.repair(&[(0, 0)]);
    client.step();
    client.link.rebind(elsewhere, 0);
    world.until("the image", |world| {
        world.clients[moving]
            .images
            .iter()
            .any(|(reason, tiles)| (*reason, tiles.as_slice()) == (TilesReason::Repair, &[0]))
    });
}

/// A client that moves on before it has proven an address to be its own: what QUIC repeated there is lost, too.
#[test]
fn what_went_to_an_address_that_was_left_unproven_arrives() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::painter());
    let moving = world.join(0, ClientOptions::default());
    let mut rng = StdRng::seed_from_u64(1);
    for y in 0..64 {
        let row: Vec<_> = (0..200).map(|x| pixel(x, y, rng.random_range(0..32))).collect();
        world.clients[painter].paint(&row); // noise: an image of several packets
    }
    world.run(Duration::from_millis(100));
    let (unproven, after) = (world.fresh_address(), world.fresh_address());
    let mut client = world.clients.remove(moving);
    client.mirror = None; // which would ask again
    client.repair(&[(0, 0), (1, 0), (2, 0)]);
    client.step();
    world.run(Duration::from_millis(30));
    // Of the image's ten packets, the first get lost, as the others show.
    (0..6).for_each(|_| drop(client.link.recv().unwrap()));
    client.link.rebind(unproven, 0);
    for _ in 0..8 {
        client.paint(&[pixel(0, 0, 1); 200]); // three times as many bytes may go there: QUIC does not give up
    }
    client.step();
    world.run(Duration::from_millis(30));
    let repeated = std::iter::from_fn(|| client.link.recv()).map(|(_, packet)| packet.len()).sum::<usize>();
    assert!(repeated > 3000, "{repeated} bytes: a probe, and what was lost, which is lost again");
    client.link.rebind(after, 0);
    world.clients.push(client);
    world.until("the image", |world| {
        let images = &world.clients[moving].images;
        images.iter().any(|(reason, tiles)| *reason == TilesReason::Repair && *tiles == [0, 1, 2])
    });
}

/// Nobody repeats the answer to a probe, and a client that then has nothing to say does not help: the server has to
/// ask again, with the few bytes that it may send to an address that is not proven.
#[test]
fn a_client_whose_answer_to_a_probe_was_lost_is_asked_again() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::painter());
    let moving = world.join(0, ClientOptions { keep_alive: false, ..ClientOptions::default() });
    let address = world.fresh_address();
    let mut client = world.clients.remove(moving);
    client.link.rebind(address, 0);
    client.patient = true;
    client.paint(&[pixel(0, 0, 1)]);
    client.step();
    world.run(Duration::from_millis(20));
    client.mute = true;
    client.step();
    client.mute = false;
    world.clients.push(client);
    world.clients[painter].paint(&[pixel(9, 9, 7)]);
    world.until("the pixel at the client's new address", |world| {
        world.clients[moving].mirror.as_ref().and_then(|mirror| mirror.pixel(9, 9)) == Some(7)
    });
}

/// A silent client cannot say that it is still there: whatever comes from elsewhere in its name, late or sent
/// again by somebody who saw it, must not hold up what it is to get.
#[test]
fn packets_from_elsewhere_that_quic_does_not_believe_change_nothing() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::painter());
    let silent = world.join(0, ClientOptions { keep_alive: false, ..ClientOptions::default() });
    let refused = world.stats().drop_quic;
    let (home, elsewhere) = (world.clients[silent].link.local_addr(), world.fresh_address());
    for n in 0..20 {
        let client = &mut world.clients[silent];
        let mut packet = client.last_sent.clone();
        if n % 2 == 1 {
            *packet.last_mut().unwrap() ^= 1; // its ID is right, and nothing else
        }
        client.link.rebind(elsewhere, 0);
        client.link.send(&packet);
        client.link.rebind(home, 0);
        world.run(Duration::from_millis(2));
    }
    world.clients[painter].paint(&[pixel(3, 3, 7)]);
    world.until("the pixel at the silent client's", |world| {
        world.clients[silent].mirror.as_ref().and_then(|mirror| mirror.pixel(3, 3)) == Some(7)
    });
    assert_eq!(world.stats().drop_quic - refused, 20);
}

/// A client that says to be at somebody else's address cannot have the server send there: not even if it answers
/// all probes that it gets to see itself.
#[test]
fn an_address_that_never_answered_gets_no_more_than_three_times_what_came_from_it() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::painter());
    let liar = world.join(0, ClientOptions::default());
    let (home, elsewhere, claimed) =
        (world.clients[liar].link.local_addr(), world.fresh_address(), world.fresh_address());
    let mut victim = world.net.client(claimed, 0);
    let many: Vec<_> = (0..200).map(|n| pixel(n % 200, n / 2, 5)).collect();
    let mut liar = world.clients.remove(liar);
    let (mut came, mut went) = (0, 0);
    for round in 0..4 {
        // From another real address, too, and then at home: what QUIC asks of the claimed one must not go there.
        for address in [claimed, elsewhere, home] {
            let before = liar.quic.stats().sent_bytes;
            liar.link.rebind(address, 0);
            liar.paint(&many);
            liar.step();
            came += if address == claimed { liar.quic.stats().sent_bytes - before } else { 0 };
        }
        victim.rebind(claimed, 0);
        for n in 0..60 {
            world.clients[painter].paint(&many);
            world.run(Duration::from_millis(20));
            if n < 50 {
                liar.step();
            } else if n == 50 {
                let before = liar.quic.stats().sent_bytes;
                liar.link.rebind(claimed, 0);
                liar.paint(&many);
                liar.step();
                came += liar.quic.stats().sent_bytes - before;
                victim.rebind(claimed, 0);
            }
            went += std::iter::from_fn(|| victim.recv()).map(|(_, packet)| packet.len() as u64).sum::<u64>();
        }
        assert!(went <= 3 * came, "round {round}: {came} bytes came from it, {went} went there");
    }
    assert!(went > 0, "it was probed");
}

/// Who moved once more than QUIC can follow, without waiting for any proof, is sent the good-bye alone, not the probes
/// of all those addresses.
#[test]
fn the_last_address_of_one_who_moved_too_often_gets_a_good_bye_and_nothing_else() {
    let mut world = World::new(&Options::default());
    let restless = world.join(0, ClientOptions::default());
    let addresses: Vec<_> = (0..PATHS).map(|_| world.fresh_address()).collect();
    let mut client = world.clients.remove(restless);
    client.patient = true;
    let (last, before) = addresses.split_last().unwrap();
    for address in before {
        client.link.rebind(*address, 0);
        client.paint(&[pixel(0, 0, 1); 80]); // so that QUIC may send a full probe there
        client.step();
    }
    client.link.rebind(*last, 0);
    client.paint(&[pixel(0, 0, 1)]);
    client.step();
    let came = client.last_sent.len();
    world.run(Duration::from_millis(50));
    let packets: Vec<_> = std::iter::from_fn(|| client.link.recv()).map(|(_, packet)| packet).collect();
    let went = packets.iter().map(Vec::len).sum::<usize>();
    assert!(went <= 3 * came, "{came} bytes came, {went} in {} packets went back", packets.len());
    for mut packet in packets {
        let (from, to) = (world.net.server_addr(), client.quic.path_stats().next().unwrap().local_addr);
        client.quic.recv(&mut packet, quiche::RecvInfo { from, to }).unwrap();
    }
    let error = client.quic.peer_error().expect("it was told");
    assert_eq!((error.is_app, error.error_code), (false, 0x10), "NO_VIABLE_PATH");
    assert_eq!(world.stats().moved_too_often, 1);
}

/// The server has several addresses, and whoever sees a packet can send it to another one of them first, in the
/// client's name or in their own.
#[test]
fn a_packet_that_came_by_another_address_of_the_servers_first_does_no_harm() {
    let mut world = World::new(&Options::default());
    let client = world.join(0, ClientOptions::default());
    let address = world.fresh_address();
    let (thief, other) = (world.net.client(address, 0), "10.0.0.9:4433".parse().unwrap());
    for stolen in [false, true] {
        let victim = &mut world.clients[client];
        victim.paint(&[pixel(1, 1, 1)]);
        victim.mute = true;
        victim.step();
        victim.mute = false;
        let packet = victim.last_sent.clone();
        if stolen { &thief } else { &victim.link }.send_to(other, &packet);
        world.run(Duration::from_millis(50));
        let colour = 7 + u8::from(stolen);
        world.clients[client].paint(&[pixel(5, 5, colour)]);
        world.until("the next pixel", |world| {
            world.clients[client].mirror.as_ref().and_then(|mirror| mirror.pixel(5, 5)) == Some(colour)
        });
    }
    assert_eq!(world.stats().connections, 1);
}

/// What spreads clients over the server's addresses may change its mind.
#[test]
fn a_client_goes_on_by_another_address_of_the_servers() {
    let mut world = World::new(&Options::default());
    let client = world.join(0, ClientOptions::default());
    let (home, other) = (world.clients[client].via, "10.0.0.9:4433".parse().unwrap());
    for (n, via) in [other, home, other].into_iter().enumerate() {
        world.clients[client].via = via;
        let sent = world.clients[client].packets.0;
        world.clients[client].paint(&[pixel(n as u16, 5, 7)]);
        world.until("its pixel", |world| {
            let mirror = world.clients[client].mirror.as_ref();
            mirror.and_then(|mirror| mirror.pixel(n as u16, 5)) == Some(7)
        });
        assert!(world.clients[client].packets.0 - sent < 20, "no need to ask for it");
    }
}

/// Somebody who is out of reach for longer than a tile is announced, with the same address or with another one, is
/// told when he is back.
#[test]
fn who_missed_all_announcements_of_a_tile_is_told_when_heard_again() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::painter());
    let away = [(); 2].map(|()| world.join(0, ClientOptions::default()));
    let address = world.fresh_address();
    world.run(Duration::from_millis(100));
    let mut gone = [world.clients.pop().unwrap(), world.clients.pop().unwrap()];
    world.clients[painter].paint(&[pixel(100, 100, 7)]);
    world.run(Duration::from_millis(4500)); // the diff, and three VERSIONS, a second apart
    for client in &mut gone {
        while client.link.recv().is_some() {}
    }
    gone[1].link.rebind(address, 0);
    world.clients.extend(gone);
    world.until("the pixel at those who were away", |world| {
        away.iter().all(|client| {
            world.clients[*client].mirror.as_ref().and_then(|mirror| mirror.pixel(100, 100)) == Some(7)
        })
    });
}
