//! The backend without and with offloads; then what is the sockets' own: binding, steering, polling.

mod binding;
mod steering;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use super::tx::TX_SLOTS;
use super::*;
use crate::net::MAX_TX_PAYLOAD;
use crate::net::datagram_tests::network::in_own_network;
use crate::net::datagram_tests::trains::Observer;
use crate::net::datagram_tests::{
    Backend, PATIENCE, client, config, datagram_suite, keep_order, one, servers, train_suite,
};

struct Plain;

impl Backend for Plain {
    type Io = SocketIo;

    fn over(sockets: Vec<SocketIo>) -> Vec<SocketIo> {
        sockets
    }
}

struct Offloaded;

impl Backend for Offloaded {
    type Io = SocketIo;

    fn over(mut sockets: Vec<SocketIo>) -> Vec<SocketIo> {
        assert!(enable_offloads(&mut sockets).is_empty());
        sockets
    }
}

mod plain {
    use super::*;

    datagram_suite!(Plain);
}

mod offloaded {
    use super::*;

    datagram_suite!(Offloaded);
    train_suite!(Offloaded);
}

fn bind(config: &SocketConfig) -> SocketGroup {
    SocketGroup::bind(config).unwrap()
}

#[test]
fn without_offloads_nothing_is_merged() {
    keep_order();
    let mut server = one::<Plain>("127.0.0.1:0");
    let observer = Observer::new("127.0.0.1:0");
    let path = server.path_to(&observer.0);
    server.send(&vec![(path, vec![7; 100]); 5]);
    assert_eq!(observer.messages(&mut server, 5), vec![vec![100]; 5]);
}

#[test]
fn room_is_polled_for_while_packets_are_queued() {
    // 1 MB/s: no sender is so slow as not to fill this.
    let setup = "ip link set lo up; tc qdisc add dev lo root tbf rate 8mbit burst 2000 limit 1000000";
    in_own_network(setup, || {
        let small = SocketConfig { sndbuf: 1, ..config("127.0.0.1:0", 1) };
        let mut server = servers::<Plain>(&small, |_| ()).remove(0);
        assert_eq!(server.io.poll_flags(), PollFlags::POLLIN);
        let path = server.path_to(&client("127.0.0.1:0"));
        let mut packets = 0;
        let sent = server.io.send(&mut |_| {
            packets += 1;
            Some((MAX_TX_PAYLOAD, path))
        });
        assert!(sent.blocked && packets > TX_SLOTS);
        assert_eq!(server.io.poll_flags(), PollFlags::POLLIN | PollFlags::POLLOUT);
        let start = Instant::now();
        while server.io.poll_flags() != PollFlags::POLLIN {
            assert!(start.elapsed() < PATIENCE);
            server.wait(Duration::from_millis(100));
        }
    });
}
