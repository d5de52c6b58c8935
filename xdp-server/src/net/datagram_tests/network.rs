//! What loopback as it is cannot show: long packets, slow links, link-local addresses. These tests need root.

use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs `test` on a thread with a network of its own, in which `setup` (shell) has been run. It needs root,
/// or rather CAP_SYS_ADMIN: without, the test is left out and says so, except in CI, where that fails.
pub(in crate::net) fn in_own_network(setup: &str, test: fn()) {
    let setup = format!("set -e; {setup}");
    let thread = std::thread::spawn(move || {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Err(Errno::EPERM) if std::env::var_os("CI").is_none() => {
                eprintln!("SKIPPED: needs root for a network namespace");
                return;
            }
            result => result.expect("a network namespace, for which this test needs root"),
        }
        // A child has the namespace of the thread that starts it; it ends with its last process.
        let status = Command::new("sh").args(["-c", &setup]).status().unwrap();
        assert!(status.success(), "{setup}");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn a_packet_too_long_for_the_interface_is_refused_and_not_fragmented<B: Backend>() {
    in_own_network("ip link set lo mtu 1000 up", || {
        for listen in ["0.0.0.0:0", "[::]:0"] {
            let mut server = one::<B>(listen);
            let client = client("127.0.0.1:0");
            let path = server.path_to(&client);
            // With segmentation the last two are a train.
            let packets = [972, 973, MAX_TX_PAYLOAD, 972].map(|length| (path, vec![0; length]));
            server.send(&packets);
            assert_eq!(server.sent_to(&client).1.len(), 972);
            assert_eq!(server.sent_to(&client).1.len(), 972);
            assert_eq!(server.counters().tx_errors, 2);
        }
    });
}

pub fn a_full_socket_buffer_blocks_and_then_goes_on_without_loss<B: Backend>() {
    // 10 MB/s: no sender is so slow as not to fill this. Room for a train of 64 KB in the bucket.
    let setup = "ip link set lo up; tc qdisc add dev lo root tbf rate 80mbit burst 70000 limit 10000000";
    in_own_network(setup, || {
        keep_order();
        let small = SocketConfig { sndbuf: 1, ..config("127.0.0.1:0", 1) };
        let mut server = servers::<B>(&small, |_| ()).remove(0);
        let client = client("127.0.0.1:0");
        nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20)).unwrap();
        let path = server.path_to(&client);
        let mut next = 0_u32;
        let sent = server.io.send(&mut |buffer| {
            assert!(next < 100_000, "120 MB later, still not blocked");
            buffer[..4].copy_from_slice(&next.to_be_bytes());
            next += 1;
            Some((MAX_TX_PAYLOAD, path))
        });
        assert_eq!(sent, Sent { packets: next, blocked: true }, "what was sealed was also taken");
        assert!(next > 200, "{next}: the queue was not used");
        assert_eq!(server.io.counters().tx_blocked, 1);

        let start = Instant::now();
        let (mut order, mut buffer) = (Vec::new(), [0; 2048]);
        while order.len() < next as usize {
            assert!(start.elapsed() < PATIENCE, "{} of {next}", order.len());
            server.io.serve(Instant::now());
            server.wait(Duration::from_millis(100));
            while let Ok(length) = client.recv(&mut buffer) {
                assert_eq!(length, MAX_TX_PAYLOAD);
                order.push(u32::from_be_bytes(buffer[..4].try_into().unwrap()));
            }
        }
        assert!(order.into_iter().eq(0..next));
        let counters = server.counters();
        assert_eq!((counters.tx_errors, counters.tx_trains_refused), (0, 0));
    });
}

pub fn link_local_addresses_keep_their_interface_both_ways<B: Backend>() {
    // A new address is tentative for a moment, and nothing is routed to it.
    let setup = "ip link set lo up; ip address add fe80::77/64 dev lo nodad; \
                 until ip -6 route show table local | grep -q fe80::77; do sleep 0.01; done";
    in_own_network(setup, || {
        let mut server = one::<B>("[::]:0");
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        let to = format!("[fe80::77%{index}]:{}", server.local.port()).parse().unwrap();
        server.asks_and_is_answered(&format!("[fe80::77%{index}]:0"), to);
        let mut specific = one::<B>(&format!("[fe80::77%{index}]:0"));
        let to = specific.local;
        specific.asks_and_is_answered(&format!("[fe80::77%{index}]:0"), to);
    });
}
