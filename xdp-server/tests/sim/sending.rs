//! When and what a worker sends.

use crate::client::ClientOptions;
use crate::pixel;
use crate::world::{Options, World};
use canvas::codec::control::ClientFrame;
use canvas::codec::tiles::TilesReason;
use std::time::{Duration, Instant};

/// A packet of QUIC's holds data of one stream, or datagrams. What answers come on several streams must not wait for
/// each other, let alone for the next reason to send.
#[test]
fn answers_on_two_streams_leave_together() {
    let mut world = World::new(&Options::default());
    let asking = world.join(0, ClientOptions::default());
    world.run(Duration::from_millis(300)); // nothing is under way, and QUIC has said so
    world.clients[asking].frame(&ClientFrame::Ping(7));
    world.clients[asking].repair(&[(0, 0)]);
    world.clients[asking].step();
    let now = Instant::now();
    for _ in 0..3 {
        world.workers[0].turn(now, &mut |_| false); // no timer of later fires
    }
    world.clients[asking].step();
    let client = &world.clients[asking];
    assert_eq!(client.pongs, [7]);
    assert_eq!(client.images.last(), Some(&(TilesReason::Repair, vec![0])));
}

/// Packets that never come are gaps in all ACKs, until the client confirms one that lists them.
#[test]
fn what_was_lost_does_not_make_acknowledgements_longer_for_long() {
    let mut world = World::new(&Options::default());
    let painter = world.join(0, ClientOptions { keep_alive: false, ..ClientOptions::painter() });
    world.run(Duration::from_millis(300));
    let mut acknowledged = |lost: bool| {
        let before = world.clients[painter].packets.1;
        while world.clients[painter].packets.1 == before {
            for (arrives, x) in [(true, 1), (false, 2)] {
                world.clients[painter].mute = lost && !arrives;
                world.clients[painter].paint(&[pixel(x, 1, 1)]);
                world.clients[painter].step();
            }
            world.clients[painter].mute = false;
            world.step();
        }
        world.run(Duration::from_millis(50)); // the client answers within 25 ms, if it was asked
        world.clients[painter].last_received
    };
    let plain = acknowledged(false);
    // An ACK of 32 packets at once lists 31 gaps; on a machine that stands still it may be less.
    let long = (0..10).map(|_| acknowledged(true)).find(|len| *len > plain + 30).expect("gaps in an ACK");
    let after: Vec<usize> = (0..4).map(|_| acknowledged(false)).collect();
    assert!(after[3] <= plain + 8, "{plain} bytes, {long} with gaps, then {after:?}");
}
