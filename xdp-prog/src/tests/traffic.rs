//! Real packets over a veth pair: what the program redirects arrives in the AF_XDP socket of its queue,
//! to the byte, and what it passes does not.

use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::frames;
use super::xsk::{FRAMES, Xsk, send};
use super::{PORT, Veth, in_namespace, load};
use crate::Mode;

/// How long a packet may take over veth before the test fails; mostly it is there at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the sockets receive, each on its own, until it is `total` frames in all.
fn receive(sockets: &[Xsk], total: usize) -> Vec<Vec<Vec<u8>>> {
    let deadline = Instant::now() + PATIENCE;
    let mut received = vec![Vec::new(); sockets.len()];
    while received.iter().map(Vec::len).sum::<usize>() < total {
        assert!(Instant::now() < deadline, "{total} frames were sent; received: {received:?}");
        for (socket, received) in sockets.iter().zip(&mut received) {
            received.extend(socket.receive());
        }
        sleep(Duration::from_millis(1));
    }
    received
}

fn packets_arrive(mode: Mode) {
    in_namespace(move || {
        let veth = Veth::new(2);
        let mut program = load();
        program.attach(veth.right, mode).expect("it attaches");
        let sockets = [0, 1].map(|queue| Xsk::bind(veth.right, queue));
        for (queue, socket) in (0..).zip(&sockets) {
            program.register(queue, socket.as_fd()).expect("the socket is taken");
        }
        // Half of the socket's frames, so that one queue could take them all.
        let flows = (FRAMES / 4) as u16;
        let mut sent: Vec<Vec<u8>> =
            (0..flows).flat_map(|flow| [frames::ipv4_from(flow), frames::ipv6_from(flow)]).collect();
        send(veth.left, &sent);
        send(veth.left, &vec![frames::ipv4_to(frames::SERVER_V4, PORT + 1); 3]);

        let received = receive(&sockets, sent.len());
        if mode == Mode::Native {
            // The sender's transmit queue, which is chosen by flow, decides. In generic mode veth does not
            // hand on which queue that was, and everything comes in on queue 0 (Linux 5.17 and newer).
            assert!(received.iter().all(|frames| !frames.is_empty()), "flows spread over both queues");
        }
        let mut received = received.concat();
        received.sort_unstable();
        sent.sort_unstable();
        assert_eq!(received, sent);
        let counters = program.counters().expect("the counters are readable");
        assert_eq!((counters.redirected, counters.no_socket), (sent.len() as u64, 0));
        assert_eq!(counters.other_port, 3);

        program.detach();
        send(veth.left, &[frames::ipv4()]);
        sleep(Duration::from_millis(50));
        assert_eq!(sockets[0].receive().len() + sockets[1].receive().len(), 0, "detached");
        assert_eq!(program.counters().expect("the counters are readable"), counters);
    });
}

#[test]
fn native() {
    packets_arrive(Mode::Native);
}

#[test]
fn generic() {
    packets_arrive(Mode::Generic);
}
