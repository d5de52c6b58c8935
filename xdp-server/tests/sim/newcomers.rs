//! Crowds and floods of clients that connect.

use crate::client::ClientOptions;
use crate::pixel;
use crate::world::{Options, World};
use std::time::{Duration, Instant};
use xdp_server::net::sim::SimConfig;

/// Those who are connected are served in the very turn in which a crowd of strangers comes; the crowd is let
/// in a few each turn.
#[test]
fn a_crowd_of_newcomers_holds_nobody_up() {
    const CROWD: usize = 25;
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions::painter());
    let before = world.stats();
    for _ in 0..CROWD {
        let stranger = world.connect(0, ClientOptions::painter());
        world.clients[stranger].step(); // at most two packets: all and the pixel come in one turn
    }
    world.clients[painter].paint(&[pixel(1, 1, 1)]);
    world.clients[painter].step();
    for turn in 1.. {
        std::thread::sleep(Duration::from_millis(2)); // counters are published once a millisecond
        world.workers[0].turn(Instant::now(), &mut |_| false);
        let stats = world.shared.totals();
        assert_eq!(stats.messages, before.messages + 1, "turn {turn}");
        let begun = (stats.handshakes_started - before.handshakes_started) as usize;
        assert!(begun <= 4 * turn, "{begun} after {turn} turns");
        if begun == CROWD {
            break;
        }
        assert!(turn <= 2 * CROWD, "{begun} after {turn} turns");
    }
    world.until("the crowd", |world| world.clients.iter().all(|client| client.welcome.is_some()));
}

/// A flood of what looks like Initials: most are dropped uncopied, and a client is served all the while.
#[test]
fn a_flood_of_initials_is_dropped_when_too_many_wait() {
    const FLOOD: u32 = 5000; // more than may wait
    let sim = SimConfig { rx_slots: 8192, ..SimConfig::default() };
    let mut world = World::new(&Options { sim, ..Options::default() });
    let painter = world.join(0, ClientOptions::painter());
    let before = world.stats();
    let address = world.fresh_address();
    let (flooder, server) = (world.net.client(address, 0), world.net.server_addr());
    for n in 0..FLOOD {
        let mut packet = [0; 1200];
        packet[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
        packet[6..10].copy_from_slice(&n.to_be_bytes());
        flooder.send_to(server, &packet);
    }
    world.clients[painter].paint(&[pixel(1, 1, 1)]);
    world.until("the pixel", |world| world.master.canvas().commit() == 1);
    world.until("the end of the flood", |world| {
        let stats = world.shared.totals();
        stats.drop_newcomers + stats.drop_quic >= before.drop_quic + u64::from(FLOOD)
    });
    let stats = world.stats();
    assert!(stats.drop_newcomers > 0, "{stats:#?}");
    assert_eq!(stats.connections, 1);
    world.join(0, ClientOptions::painter());
}

/// A worker that comes to an Initial too late does not make a connection of it: its client has repeated it.
#[test]
fn newcomers_that_waited_for_too_long_come_in_by_their_repetition() {
    let mut world = World::new(&Options::default());
    for _ in 0..10 {
        let stranger = world.connect(0, ClientOptions::painter());
        world.clients[stranger].step();
    }
    world.workers[0].turn(Instant::now(), &mut |_| false);
    std::thread::sleep(Duration::from_millis(5050));
    let stats = world.stats();
    assert!(stats.handshakes_started <= 4 && stats.drop_newcomers >= 6, "{stats:#?}");
    world.until("everybody", |world| world.clients.iter().all(|client| client.welcome.is_some()));
    assert_eq!(world.stats().handshakes_started, 10);
}
