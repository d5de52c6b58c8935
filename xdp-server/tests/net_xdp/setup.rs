//! Opening and closing: what is left behind, who is in the way, and what a newcomer is told.

use hugepages::PageKind;
use xdp_server::net::xdp::socket::{SocketRequest, XskRings};
use xdp_server::net::xdp::{OpenError, OpenRequest, XdpMode, open};

use crate::lab::Lab;
use crate::{FRAMES, Server, clients, echoes, expect_echo, request};

/// Descriptors of BPF maps, programs and links, and of AF_XDP sockets, that this process has.
fn kernel_objects() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    let names = all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    names.filter(|name| name.to_string_lossy().contains("bpf")).count()
}

#[test]
fn dropping_leaves_nothing_behind_and_reopening_works_at_once() {
    Lab::run(|lab| {
        let before = kernel_objects();
        for round in 0..5 {
            let mode = if round % 2 == 0 { XdpMode::Copy } else { XdpMode::Generic };
            let server = echoes(lab, &request(mode));
            assert!(lab.server("ip link show dev serv0").contains("xdp"));
            assert!(kernel_objects() > before);
            drop(server);
            assert!(!lab.server("ip link show dev serv0").contains("xdp"), "the program is still attached");
            assert_eq!(kernel_objects(), before);
        }
    });
}

#[test]
fn a_failed_open_leaves_nothing_behind() {
    Lab::run(|lab| {
        let before = kernel_objects();
        open(&request(XdpMode::ZeroCopy)).unwrap_err();
        assert!(!lab.server("ip link show dev serv0").contains("xdp"));
        assert_eq!(kernel_objects(), before);
    });
}

#[test]
fn a_second_server_is_told_who_is_there() {
    Lab::run(|lab| {
        let mut first = Server::open(&request(XdpMode::Copy));
        let error = open(&request(XdpMode::Auto)).unwrap_err();
        assert!(matches!(error, OpenError::Program(xdp_prog::Error::Busy { .. })), "{error}");
        // The first one does not notice.
        let sockets = clients(lab);
        first.run(|| expect_echo(&sockets));
        drop(first);

        // A socket of somebody who has no program of his own.
        let _other = XskRings::open(&SocketRequest {
            interface: "serv0",
            queue: 1,
            zero_copy: false,
            busy_poll: false,
            frames: FRAMES,
            huge_pages: false,
        })
        .unwrap();
        let error = open(&request(XdpMode::Auto)).unwrap_err();
        assert!(matches!(error, OpenError::QueueBusy { queue: 1, .. }), "{error}");
        assert!(error.to_string().contains("ss --xdp"), "{error}");
    });
}

#[test]
fn what_a_newcomer_gets_wrong_is_explained() {
    Lab::run(|lab| {
        let explain = |change: &dyn Fn(&mut OpenRequest)| {
            let mut request = request(XdpMode::Auto);
            change(&mut request);
            open(&request).unwrap_err().to_string()
        };
        let expect = |error: String, words: &[&str]| {
            words.iter().for_each(|word| assert!(error.contains(word), "{word:?} is not in: {error}"));
        };
        expect(explain(&|r| r.interface = "eth7".into()), &["eth7", "serv0"]);
        expect(explain(&|r| r.queues = 47), &["has 2 queues", "--queues 2", "ethtool -L serv0 combined 47"]);
        expect(explain(&|r| r.queues = 0), &["at least 1"]);
        expect(explain(&|r| r.interface = "lo".into()), &["loopback"]);
        expect(explain(&|r| r.mode = XdpMode::ZeroCopy), &["refused zero-copy", "--xdp-mode copy"]);
        expect(explain(&|r| r.cpus = vec![100_000]), &["core 100000"]);
        lab.server("ip link set dev serv0 mtu 3000");
        expect(explain(&|r| r.mode = XdpMode::ZeroCopy), &["MTU", "3000", "ip link set dev serv0 mtu 1500"]);
        lab.server("ip link set dev serv0 mtu 1500");
        lab.server("ethtool -K serv0 rx-udp-gro-forwarding on");
        expect(explain(&|_| ()), &["ethtool -K serv0 rx-udp-gro-forwarding off"]);
        lab.server("ethtool -K serv0 rx-udp-gro-forwarding off");
        lab.server("ip address flush dev serv0");
        expect(explain(&|r| r.listen = "0.0.0.0".parse().unwrap()), &["no IPv4 address", "ip address add"]);
        lab.server("ip link set dev serv0 down");
        expect(explain(&|_| ()), &["is down", "ip link set dev serv0 up"]);
    });
}

#[test]
fn huge_pages_are_used_or_missed_with_a_note() {
    Lab::run(|_| {
        // Whether there are a few is the host's choice; either they are used, or the user is told.
        let opened =
            open(&OpenRequest { huge_pages: true, frames: 1_024, ..request(XdpMode::Copy) }).unwrap();
        let plain = opened.queues.iter().any(|queue| queue.pages() == PageKind::Plain);
        let told = opened.notes.iter().any(|note| note.contains("plain pages"));
        assert_eq!(plain, told, "{:?}", opened.notes);
    });
}

#[test]
fn queues_are_opened_on_their_cores_and_the_thread_returns() {
    Lab::run(|_| {
        let this_thread = nix::unistd::Pid::from_raw(0);
        let before = nix::sched::sched_getaffinity(this_thread).unwrap();
        let cpus =
            (0..nix::sched::CpuSet::count()).filter(|&cpu| before.is_set(cpu).unwrap()).take(2).collect();
        open(&OpenRequest { cpus, ..request(XdpMode::Copy) }).unwrap();
        assert_eq!(nix::sched::sched_getaffinity(this_thread).unwrap(), before);
    });
}
