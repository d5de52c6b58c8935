//! The program on fixtures of its every branch, by BPF_PROG_TEST_RUN: what it answers, and that exactly the
//! right counter moved.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use super::frames::{self, NETWORK, SERVICE_VLAN, UDP_V4, UDP_V6, VLAN};
use super::xsk::Xsk;
use super::{PORT, Veth, in_namespace, load};
use crate::{Counters, Mode, XdpProgram};

const PASS: u32 = libbpf_sys::XDP_PASS;
const REDIRECT: u32 = libbpf_sys::XDP_REDIRECT;

/// What the program answers to a frame that came in on `queue` of the interface `ifindex`, and the counters
/// that moved.
fn run_on(program: &XdpProgram, frame: &[u8], ifindex: u32, queue: u32) -> (u32, Counters) {
    let mut context = libbpf_sys::xdp_md {
        data_end: frame.len() as u32,
        ingress_ifindex: ifindex,
        rx_queue_index: queue,
        ..Default::default()
    };
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        ctx_in: (&raw mut context).cast(),
        ctx_size_in: size_of_val(&context) as u32,
        ..Default::default()
    };
    let before = program.counters().expect("the counters are readable");
    // SAFETY: the descriptor is open, and every pointer is to memory of the length stated beside it, which
    // outlives the call; there is no output buffer.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.program.as_raw_fd(), &mut options) };
    assert_eq!(result, 0, "test run: {}", io::Error::from_raw_os_error(-result));
    let after = program.counters().expect("the counters are readable");
    (options.retval, difference(after, before))
}

/// As [`run_on`], on queue 0 of the namespace's loopback interface, which the kernel takes by default.
fn run(program: &XdpProgram, frame: &[u8]) -> (u32, Counters) {
    run_on(program, frame, 0, 0)
}

fn difference(after: Counters, before: Counters) -> Counters {
    Counters {
        redirected: after.redirected - before.redirected,
        no_socket: after.no_socket - before.no_socket,
        not_ip: after.not_ip - before.not_ip,
        vlan_depth: after.vlan_depth - before.vlan_depth,
        other_protocol: after.other_protocol - before.other_protocol,
        ip_options: after.ip_options - before.ip_options,
        fragment: after.fragment - before.fragment,
        truncated: after.truncated - before.truncated,
        bad_length: after.bad_length - before.bad_length,
        other_port: after.other_port - before.other_port,
        other_address: after.other_address - before.other_address,
        group_frame: after.group_frame - before.group_frame,
    }
}

const ZERO: Counters = Counters {
    redirected: 0,
    no_socket: 0,
    not_ip: 0,
    vlan_depth: 0,
    other_protocol: 0,
    ip_options: 0,
    fragment: 0,
    truncated: 0,
    bad_length: 0,
    other_port: 0,
    other_address: 0,
    group_frame: 0,
};
const REDIRECTED: Counters = Counters { redirected: 1, ..ZERO };
const NO_SOCKET: Counters = Counters { no_socket: 1, ..ZERO };
const NOT_IP: Counters = Counters { not_ip: 1, ..ZERO };
const VLAN_DEPTH: Counters = Counters { vlan_depth: 1, ..ZERO };
const OTHER_PROTOCOL: Counters = Counters { other_protocol: 1, ..ZERO };
const IP_OPTIONS: Counters = Counters { ip_options: 1, ..ZERO };
const FRAGMENT: Counters = Counters { fragment: 1, ..ZERO };
const TRUNCATED: Counters = Counters { truncated: 1, ..ZERO };
const BAD_LENGTH: Counters = Counters { bad_length: 1, ..ZERO };
const OTHER_PORT: Counters = Counters { other_port: 1, ..ZERO };
const OTHER_ADDRESS: Counters = Counters { other_address: 1, ..ZERO };
const GROUP_FRAME: Counters = Counters { group_frame: 1, ..ZERO };

/// Every frame that the program takes.
fn ours() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("IPv4", frames::ipv4()),
        ("IPv6", frames::ipv6()),
        ("IPv4 in a VLAN", frames::tagged(frames::ipv4(), VLAN)),
        ("IPv6 in a VLAN", frames::tagged(frames::ipv6(), VLAN)),
        ("IPv4 with Ethernet padding", frames::padded(frames::ipv4(), 7)),
        ("IPv6 with Ethernet padding", frames::padded(frames::ipv6(), 7)),
        ("IPv4 with don't-fragment cleared", frames::ipv4_fragment(0, false)),
        ("IPv4 with a wrong UDP checksum", frames::with(frames::ipv4(), UDP_V4 + 6, 0xff)),
    ]
}

/// Every kind of frame that the program leaves to the kernel.
fn others() -> Vec<(&'static str, Vec<u8>, Counters)> {
    let another_v4 = [10, 0, 0, 9];
    let mut another_v6 = frames::SERVER_V6;
    another_v6[15] = 9;
    let mut mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    mapped[12..].copy_from_slice(&frames::SERVER_V4);
    let mut all_nodes = [0; 16];
    (all_nodes[0], all_nodes[1], all_nodes[15]) = (0xff, 2, 1);
    vec![
        ("ARP", frames::other(0x0806), NOT_IP),
        ("spanning tree (a length in place of the EtherType)", frames::other(38), NOT_IP),
        ("ARP in a VLAN", frames::tagged(frames::other(0x0806), VLAN), NOT_IP),
        ("IPv4 by EtherType, 6 by version", frames::with(frames::ipv4(), NETWORK, 0x65), NOT_IP),
        ("IPv6 by EtherType, 4 by version", frames::with(frames::ipv6(), NETWORK, 0x45), NOT_IP),
        ("two VLAN tags", frames::tagged(frames::tagged(frames::ipv4(), VLAN), VLAN), VLAN_DEPTH),
        ("two VLAN tags, IPv6", frames::tagged(frames::tagged(frames::ipv6(), VLAN), VLAN), VLAN_DEPTH),
        ("a service tag", frames::tagged(frames::ipv4(), SERVICE_VLAN), VLAN_DEPTH),
        (
            "service and VLAN tag",
            frames::tagged(frames::tagged(frames::ipv4(), VLAN), SERVICE_VLAN),
            VLAN_DEPTH,
        ),
        (
            "VLAN and service tag",
            frames::tagged(frames::tagged(frames::ipv4(), SERVICE_VLAN), VLAN),
            VLAN_DEPTH,
        ),
        ("ping", frames::icmp_echo_v4(), OTHER_PROTOCOL),
        ("ping, IPv6", frames::icmp_echo_v6(), OTHER_PROTOCOL),
        ("TCP to our port", frames::tcp_v4(), OTHER_PROTOCOL),
        ("ping in a VLAN", frames::tagged(frames::icmp_echo_v4(), VLAN), OTHER_PROTOCOL),
        ("IPsec ESP, IPv6", frames::ipv6_with_extension(50), OTHER_PROTOCOL),
        ("IPv4 options", frames::ipv4_with_options(), IP_OPTIONS),
        ("a header length below the smallest", frames::with(frames::ipv4(), NETWORK, 0x44), IP_OPTIONS),
        ("hop-by-hop options", frames::ipv6_with_extension(0), IP_OPTIONS),
        ("a routing header", frames::ipv6_with_extension(43), IP_OPTIONS),
        ("destination options", frames::ipv6_with_extension(60), IP_OPTIONS),
        ("an authentication header", frames::ipv6_with_extension(51), IP_OPTIONS),
        ("a mobility header", frames::ipv6_with_extension(135), IP_OPTIONS),
        ("the first fragment", frames::ipv4_fragment(0, true), FRAGMENT),
        ("a middle fragment", frames::ipv4_fragment(100, true), FRAGMENT),
        ("the last fragment", frames::ipv4_fragment(0x1fff, false), FRAGMENT),
        ("the lowest fragment offset", frames::ipv4_fragment(1, false), FRAGMENT),
        ("a fragment header", frames::ipv6_with_extension(44), FRAGMENT),
        ("IPv4 longer than the UDP packet", frames::adjusted(frames::ipv4(), NETWORK + 2, 1), BAD_LENGTH),
        ("IPv4 shorter than the UDP packet", frames::adjusted(frames::ipv4(), NETWORK + 2, -1), BAD_LENGTH),
        ("IPv4 shorter than its own header", short_total_length(19), BAD_LENGTH),
        ("IPv4 without room for a UDP header", short_lengths(7), BAD_LENGTH),
        ("IPv4 of no length", short_total_length(0), BAD_LENGTH),
        ("UDP longer than IPv4", frames::adjusted(frames::ipv4(), UDP_V4 + 4, 1), BAD_LENGTH),
        ("UDP shorter than IPv4", frames::adjusted(frames::ipv4(), UDP_V4 + 4, -1), BAD_LENGTH),
        ("IPv6 longer than the UDP packet", frames::adjusted(frames::ipv6(), NETWORK + 4, 1), BAD_LENGTH),
        ("IPv6 shorter than the UDP packet", frames::adjusted(frames::ipv6(), NETWORK + 4, -1), BAD_LENGTH),
        ("a jumbogram", jumbogram(), BAD_LENGTH),
        ("UDP longer than IPv6", frames::adjusted(frames::ipv6(), UDP_V6 + 4, 1), BAD_LENGTH),
        ("both lengths beyond the frame", longer_than_frame_v4(), TRUNCATED),
        ("both lengths beyond the frame, IPv6", longer_than_frame_v6(), TRUNCATED),
        ("another port", frames::ipv4_to(frames::SERVER_V4, PORT + 1), OTHER_PORT),
        (
            "our port with its bytes swapped",
            frames::ipv4_to(frames::SERVER_V4, PORT.swap_bytes()),
            OTHER_PORT,
        ),
        ("another port, IPv6", frames::ipv6_to(frames::SERVER_V6, 443), OTHER_PORT),
        ("another port in a VLAN", frames::tagged(frames::ipv4_to(frames::SERVER_V4, 443), VLAN), OTHER_PORT),
        ("another address and another port", frames::ipv4_to(another_v4, 443), OTHER_PORT),
        ("another address", frames::ipv4_to(another_v4, PORT), OTHER_ADDRESS),
        ("the unspecified address", frames::ipv4_to([0; 4], PORT), OTHER_ADDRESS),
        ("another address, IPv6", frames::ipv6_to(another_v6, PORT), OTHER_ADDRESS),
        ("our IPv4 address mapped into IPv6", frames::ipv6_to(mapped, PORT), OTHER_ADDRESS),
        ("IPv4 multicast in a unicast frame", frames::ipv4_to([224, 0, 0, 1], PORT), OTHER_ADDRESS),
        ("IPv4 broadcast in a unicast frame", frames::ipv4_to([255; 4], PORT), OTHER_ADDRESS),
        ("IPv6 multicast in a unicast frame", frames::ipv6_to(all_nodes, PORT), OTHER_ADDRESS),
        ("a broadcast frame", [&[0xff; 6], &frames::ipv4()[6..]].concat(), GROUP_FRAME),
        ("a multicast frame", frames::with(frames::ipv4(), 0, 1), GROUP_FRAME),
        ("a multicast frame, IPv6", frames::with(frames::ipv6(), 0, 0x33), GROUP_FRAME),
        (
            "a broadcast frame in a VLAN",
            frames::with(frames::tagged(frames::ipv4(), VLAN), 0, 0xff),
            GROUP_FRAME,
        ),
    ]
}

/// The good IPv4 packet with this total length; its UDP length is that without the header, as it wraps.
fn short_total_length(total: u16) -> Vec<u8> {
    let mut frame = frames::ipv4();
    frame[NETWORK + 2..NETWORK + 4].copy_from_slice(&total.to_be_bytes());
    frame[UDP_V4 + 4..UDP_V4 + 6].copy_from_slice(&total.wrapping_sub(20).to_be_bytes());
    frame
}

/// The good IPv4 packet whose two length fields agree on a UDP packet of `udp` bytes.
fn short_lengths(udp: u16) -> Vec<u8> {
    let mut frame = frames::ipv4();
    frame[NETWORK + 2..NETWORK + 4].copy_from_slice(&(udp + 20).to_be_bytes());
    frame[UDP_V4 + 4..UDP_V4 + 6].copy_from_slice(&udp.to_be_bytes());
    frame
}

fn jumbogram() -> Vec<u8> {
    let mut frame = frames::ipv6();
    frame[NETWORK + 4..NETWORK + 6].fill(0);
    frame[UDP_V6 + 4..UDP_V6 + 6].fill(0);
    frame
}

fn longer_than_frame_v4() -> Vec<u8> {
    frames::adjusted(frames::adjusted(frames::ipv4(), NETWORK + 2, 1), UDP_V4 + 4, 1)
}

fn longer_than_frame_v6() -> Vec<u8> {
    frames::adjusted(frames::adjusted(frames::ipv6(), NETWORK + 4, 1), UDP_V6 + 4, 1)
}

#[test]
fn without_a_socket_every_frame_is_passed_and_counted_by_cause() {
    let program = load();
    for (name, frame) in ours() {
        assert_eq!(run(&program, &frame), (PASS, NO_SOCKET), "{name}");
    }
    for (name, frame, counted) in others() {
        assert_eq!(run(&program, &frame), (PASS, counted), "{name}");
    }
}

#[test]
fn with_a_socket_ours_are_redirected_and_all_others_passed() {
    in_namespace(|| {
        let veth = Veth::new(2);
        let program = load();
        let xsk = Xsk::bind(veth.right, 0);
        program.register(0, xsk.as_fd()).expect("the socket is taken");
        for (name, frame) in ours() {
            assert_eq!(run(&program, &frame), (REDIRECT, REDIRECTED), "{name}");
        }
        for (name, frame, counted) in others() {
            assert_eq!(run(&program, &frame), (PASS, counted), "{name}");
        }
        drop(xsk);
        // The kernel takes a closed socket out of the map; not quite at once, if another test is just
        // starting a process, which has a copy of the descriptor until it executes its program.
        let deadline = Instant::now() + Duration::from_secs(5);
        while run(&program, &frames::ipv4()) != (PASS, NO_SOCKET) {
            assert!(Instant::now() < deadline, "the closed socket is still in the map");
        }
    });
}

#[test]
fn an_incomplete_packet_is_never_redirected() {
    /// The kernel runs no program on less than an Ethernet header.
    const SHORTEST: usize = 14;
    in_namespace(|| {
        let veth = Veth::new(2);
        let program = load();
        let xsk = Xsk::bind(veth.right, 0);
        program.register(0, xsk.as_fd()).expect("the socket is taken");
        let untagged = [frames::ipv4(), frames::ipv6()];
        let tagged = untagged.clone().map(|frame| frames::tagged(frame, VLAN));
        for frame in untagged.into_iter().chain(tagged) {
            for length in SHORTEST..frame.len() {
                let what = format!("{length} of {} bytes", frame.len());
                assert_eq!(run(&program, &frame[..length]), (PASS, TRUNCATED), "{what}");
            }
            assert_eq!(run(&program, &frame), (REDIRECT, REDIRECTED));
        }
    });
}

#[test]
fn each_queue_has_its_own_socket() {
    in_namespace(|| {
        // One queue more than the program was loaded for.
        let veth = Veth::new(3);
        let mut program = load();
        // The driver sets its queues up for XDP, which the test run needs, when a program is attached.
        program.attach(veth.right, Mode::Native).expect("veth has native XDP");
        let xsk = Xsk::bind(veth.right, 1);
        program.register(1, xsk.as_fd()).expect("the socket is taken");
        let frame = frames::ipv4();
        assert_eq!(run_on(&program, &frame, veth.right, 0), (PASS, NO_SOCKET));
        assert_eq!(run_on(&program, &frame, veth.right, 1), (REDIRECT, REDIRECTED));
        assert_eq!(run_on(&program, &frame, veth.right, 2), (PASS, NO_SOCKET), "beyond the map");
    });
}
