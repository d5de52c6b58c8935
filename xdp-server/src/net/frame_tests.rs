//! Tests of the frame codec: against etherparse in both directions, and against arbitrary bytes.

use super::*;
use etherparse::{NetSlice, PacketBuilder, PacketHeaders, SlicedPacket, TransportSlice, VlanId};
use proptest::prelude::*;
use std::net::{SocketAddrV4, SocketAddrV6};

const SERVER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn path(local: &str, peer: &str, vlan: Option<u16>) -> Path {
    Path {
        local: local.parse().unwrap(),
        peer: peer.parse().unwrap(),
        link: Link::Ethernet(Ethernet { local: SERVER, peer: CLIENT, vlan }),
    }
}

/// What the client would put on the wire: `path` seen from its end, made by etherparse.
fn from_client(path: &Path, payload: &[u8]) -> Vec<u8> {
    let Link::Ethernet(ethernet) = path.link else { panic!("not an Ethernet path") };
    let builder = PacketBuilder::ethernet2(ethernet.peer, ethernet.local);
    let mut frame = Vec::new();
    let udp = match (path.local, path.peer, ethernet.vlan) {
        (SocketAddr::V4(local), SocketAddr::V4(peer), None) => {
            builder.ipv4(peer.ip().octets(), local.ip().octets(), 9)
        }
        (SocketAddr::V4(local), SocketAddr::V4(peer), Some(tag)) => builder
            .single_vlan(VlanId::try_new(tag & 0xfff).unwrap())
            .ipv4(peer.ip().octets(), local.ip().octets(), 9),
        (SocketAddr::V6(local), SocketAddr::V6(peer), None) => {
            builder.ipv6(peer.ip().octets(), local.ip().octets(), 9)
        }
        (SocketAddr::V6(local), SocketAddr::V6(peer), Some(tag)) => builder
            .single_vlan(VlanId::try_new(tag & 0xfff).unwrap())
            .ipv6(peer.ip().octets(), local.ip().octets(), 9),
        _ => panic!("mixed families"),
    };
    udp.udp(path.peer.port(), path.local.port()).write(&mut frame, payload).unwrap();
    frame
}

fn built(path: &Path, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xaa; headers_len(path).unwrap()];
    frame.extend_from_slice(payload);
    write_headers(&mut frame, path).unwrap();
    frame
}

fn paths() -> Vec<Path> {
    let v4 = ("192.0.2.1:4433", "198.51.100.7:50000");
    let v6 = ("[2001:db8::1]:4433", "[2001:db8:ffff::7]:50000");
    [v4, v6].iter().flat_map(|(local, peer)| [None, Some(42)].map(|vlan| path(local, peer, vlan))).collect()
}

#[test]
fn reads_what_etherparse_writes() {
    for path in paths() {
        for length in [0, 1, 21, MAX_RX_PAYLOAD] {
            let payload = vec![7; length];
            let frame = from_client(&path, &payload);
            let (got, range) = parse(&frame).unwrap();
            assert_eq!(got, path);
            assert_eq!(frame[range], payload);
        }
    }
}

#[test]
fn trims_padding() {
    for path in paths() {
        let mut frame = from_client(&path, b"short");
        frame.resize(frame.len() + 21, 0xee);
        let (_, range) = parse(&frame).unwrap();
        assert_eq!(&frame[range], b"short");
    }
}

#[test]
fn every_prefix_of_a_packet_is_truncated() {
    for path in paths() {
        let frame = from_client(&path, b"payload");
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), Err(Reject::Truncated), "{length} of {} bytes", frame.len());
        }
    }
}

#[test]
fn contradicting_lengths_are_truncated() {
    let v4 = from_client(&paths()[0], b"payload");
    let v6 = from_client(&paths()[2], b"payload");
    // (frame, where a 16-bit length is, a value that contradicts the others)
    let cases = [
        (&v4, 16, 27), // total length shorter than the headers
        (&v4, 16, 34), // total length shorter than UDP says
        (&v4, 16, 36), // total length beyond the frame
        (&v4, 38, 7),  // UDP length shorter than its header
        (&v4, 38, 16), // UDP length beyond the IP packet
        (&v6, 18, 7),
        (&v6, 18, 14),
        (&v6, 18, 16),
        (&v6, 58, 0), // no jumbograms
        (&v6, 58, 16),
    ];
    for (frame, at, value) in cases {
        let mut frame = frame.clone();
        frame[at..at + 2].copy_from_slice(&u16::to_be_bytes(value));
        assert_eq!(parse(&frame), Err(Reject::Truncated), "{value} at {at}");
    }
}

#[test]
fn refuses_what_is_not_ours() {
    let v4 = from_client(&paths()[0], b"payload");
    let v6 = from_client(&paths()[2], b"payload");
    let tagged = from_client(&paths()[1], b"payload");
    // (frame, where, bytes)
    let cases: [(&Vec<u8>, usize, &[u8]); 17] = [
        (&v4, 12, &[0x08, 0x06]),                                             // ARP
        (&v4, 12, &[0x88, 0xa8]),                                             // 802.1ad
        (&tagged, 16, &[0x81, 0x00]),                                         // a second tag
        (&v4, 14, &[0x46]),                                                   // options
        (&v4, 14, &[0x65]),                                                   // version 6 under IPv4's type
        (&v4, 20, &[0x20, 0]),                                                // first fragment
        (&v4, 20, &[0, 1]),                                                   // later fragment
        (&v4, 23, &[6]),                                                      // TCP
        (&v4, 26, &[127, 0, 0, 1]),                                           // loopback
        (&v4, 26, &[0, 0, 0, 0]),                                             // unspecified
        (&v4, 26, &[224, 0, 0, 251]),                                         // multicast
        (&v4, 26, &[255, 255, 255, 255]),                                     // broadcast
        (&v4, 34, &[0, 0]),                                                   // port 0
        (&v6, 14, &[0x45]),                                                   // version 4 under IPv6's type
        (&v6, 20, &[44]),                                                     // fragment header
        (&v6, 22, &[0xff, 2]),                                                // multicast
        (&v6, 22, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]), // mapped
    ];
    for (frame, at, value) in cases {
        let mut frame = frame.clone();
        frame[at..at + value.len()].copy_from_slice(value);
        assert_eq!(parse(&frame), Err(Reject::NotOurs), "{value:02x?} at {at}");
    }
}

#[test]
fn refuses_long_payloads() {
    for path in paths() {
        let frame = from_client(&path, &[0; MAX_RX_PAYLOAD + 1]);
        assert_eq!(parse(&frame), Err(Reject::TooLong));
    }
}

#[test]
fn etherparse_reads_what_we_write() {
    for path in paths() {
        for length in [0, 1, 2, 1199, 1200] {
            let payload: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
            let frame = built(&path, &payload);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
            assert_eq!(udp.payload(), payload);
            let checksum = match packet.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    assert_eq!((header.time_to_live, header.dont_fragment), (HOP_LIMIT, true));
                    assert_eq!((header.identification, header.dscp.value(), header.ecn.value()), (0, 0, 0));
                    udp.to_header().calc_checksum_ipv4(&header, &payload).unwrap()
                }
                NetSlice::Ipv6(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!((header.hop_limit, header.traffic_class), (HOP_LIMIT, 0));
                    udp.to_header().calc_checksum_ipv6(&header, &payload).unwrap()
                }
                NetSlice::Arp(_) => panic!("ARP"),
            };
            assert_eq!(udp.checksum(), checksum);
        }
    }
}

#[test]
fn a_zero_checksum_is_sent_as_all_ones() {
    let path = paths()[0];
    // The payload's checksum field of zero leaves exactly the value that makes the sum come out as zero.
    let plain = built(&path, &[0, 0]);
    let frame = built(&path, &plain[40..42]);
    assert_eq!(frame[40..42], [0xff, 0xff]);
}

#[test]
fn no_headers_for_impossible_paths() {
    let mixed = path("192.0.2.1:1", "[2001:db8::1]:1", None);
    assert_eq!(headers_len(&mixed), None);
    assert_eq!(write_headers(&mut [0; 100], &mixed), None);
    let kernel = Path { link: Link::Kernel, ..paths()[0] };
    assert_eq!(headers_len(&kernel), None);
    assert_eq!(write_headers(&mut [0; 41], &paths()[0]), None);
    assert_eq!(write_headers(&mut vec![0; 70_000], &paths()[0]), None);
    // 65,535 bytes of UDP fit IPv6, but not IPv4, whose length counts its own header.
    assert_eq!(write_headers(&mut vec![0; 42 + 65_527], &paths()[0]), None);
    assert_eq!(write_headers(&mut vec![0; 62 + 65_527], &paths()[2]), Some(()));
}

/// The same frame with source and destination exchanged: what the peer of `write_headers` would receive.
fn seen_by_peer(path: &Path) -> Path {
    let Link::Ethernet(Ethernet { local, peer, vlan }) = path.link else { panic!("not an Ethernet path") };
    let link = Link::Ethernet(Ethernet { local: peer, peer: local, vlan });
    Path { local: path.peer, peer: path.local, link }
}

fn any_path() -> impl Strategy<Value = Path> {
    let v4 = (1u8..127, any::<[u8; 3]>(), any::<[u8; 4]>(), 1u16.., any::<u16>()).prop_map(
        |(a, b, peer, port, to)| {
            let local = SocketAddrV4::new([a, b[0], b[1], b[2]].into(), port);
            (SocketAddr::V4(local), SocketAddr::V4(SocketAddrV4::new(peer.into(), to)))
        },
    );
    let v6 =
        (any::<[u8; 15]>(), any::<[u8; 15]>(), 1u16.., any::<u16>()).prop_map(|(local, peer, port, to)| {
            let address = |tail: [u8; 15]| {
                let mut octets = [0x20; 16];
                octets[1..].copy_from_slice(&tail);
                Ipv6Addr::from(octets)
            };
            let local = SocketAddrV6::new(address(local), port, 0, 0);
            (SocketAddr::V6(local), SocketAddr::V6(SocketAddrV6::new(address(peer), to, 0, 0)))
        });
    let link = any::<([u8; 6], [u8; 6], Option<u16>)>();
    (prop_oneof![v4, v6], link).prop_map(|((local, peer), (ours, theirs, vlan))| Path {
        local,
        peer,
        link: Link::Ethernet(Ethernet { local: ours, peer: theirs, vlan }),
    })
}

proptest! {
    #[test]
    fn write_then_parse_is_the_identity(
        path in any_path(),
        payload in proptest::collection::vec(any::<u8>(), 0..1_473),
    ) {
        let frame = built(&path, &payload);
        prop_assert!(frame.len() - payload.len() <= MAX_HEADERS);
        let (got, range) = parse(&frame).unwrap();
        prop_assert_eq!(got, seen_by_peer(&path));
        prop_assert_eq!(&frame[range], &payload[..]);
    }

    #[test]
    fn any_bytes_are_harmless(frame in proptest::collection::vec(any::<u8>(), 0..256)) {
        if let Ok((_, range)) = parse(&frame) {
            prop_assert!(range.start <= range.end && range.end <= frame.len());
        }
    }

    /// Damage to a good packet gets far deeper than noise does. What is still accepted must be what
    /// etherparse reads.
    #[test]
    fn damaged_packets_are_harmless(
        which in 0usize..4,
        damage in proptest::collection::vec((0usize..80, any::<u8>()), 1..6),
        cut in 0usize..90,
    ) {
        let mut frame = from_client(&paths()[which], b"some payload");
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut);
        if let Ok((_, range)) = parse(&frame) {
            prop_assert!(range.start <= range.end && range.end <= frame.len());
            let headers = PacketHeaders::from_ethernet_slice(&frame);
            prop_assert!(headers.is_ok_and(|headers| headers.transport.is_some_and(|t| t.udp().is_some())));
        }
    }
}
