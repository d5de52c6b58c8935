//! Frames as they come off the wire: a good one for each family, and what is made from them.

use etherparse::{Ethernet2Header, IpFragOffset, IpHeaders, Ipv4Header, Ipv4Options, PacketBuilder};

use super::PORT;

pub const SERVER_V4: [u8; 4] = [10, 0, 0, 1];
pub const SERVER_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const CLIENT_V4: [u8; 4] = [10, 0, 0, 2];
const CLIENT_V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT_PORT: u16 = 50_000;
const PAYLOAD: &[u8] = b"a short QUIC packet";

/// Where the network header starts in an untagged frame.
pub const NETWORK: usize = 14;
/// Where the UDP header starts in an untagged IPv4 frame without options.
pub const UDP_V4: usize = NETWORK + 20;
/// Where the UDP header starts in an untagged IPv6 frame.
pub const UDP_V6: usize = NETWORK + 40;
/// EtherType of a VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of a service tag (802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;

/// A packet that the program redirects, from the client's `port`.
pub fn ipv4_from(port: u16) -> Vec<u8> {
    udp(PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC).ipv4(CLIENT_V4, SERVER_V4, 64), port, PORT)
}

/// A packet that the program redirects, from the client's `port`.
pub fn ipv6_from(port: u16) -> Vec<u8> {
    udp(PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC).ipv6(CLIENT_V6, SERVER_V6, 64), port, PORT)
}

pub fn ipv4() -> Vec<u8> {
    ipv4_from(CLIENT_PORT)
}

pub fn ipv6() -> Vec<u8> {
    ipv6_from(CLIENT_PORT)
}

pub fn ipv4_to(address: [u8; 4], port: u16) -> Vec<u8> {
    let to = PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC).ipv4(CLIENT_V4, address, 64);
    udp(to, CLIENT_PORT, port)
}

pub fn ipv6_to(address: [u8; 16], port: u16) -> Vec<u8> {
    let to = PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC).ipv6(CLIENT_V6, address, 64);
    udp(to, CLIENT_PORT, port)
}

/// The good IPv4 packet with 4 bytes of options: three no-operations and the end of the list.
pub fn ipv4_with_options() -> Vec<u8> {
    with_ipv4_header(|header| header.options = Ipv4Options::from([1, 1, 1, 0]))
}

/// An IPv4 fragment, of which the kernel would make our packet again.
pub fn ipv4_fragment(offset_in_8_bytes: u16, more: bool) -> Vec<u8> {
    with_ipv4_header(|header| {
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = IpFragOffset::try_new(offset_in_8_bytes).expect("13 bits");
    })
}

fn with_ipv4_header(change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let mut header =
        Ipv4Header::new(0, 64, etherparse::ip_number::UDP, CLIENT_V4, SERVER_V4).expect("it fits");
    change(&mut header);
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC);
    udp(builder.ip(IpHeaders::Ipv4(header, Default::default())), CLIENT_PORT, PORT)
}

/// The good IPv6 packet with a header of type `next` and 8 bytes between the IPv6 and the UDP header.
pub fn ipv6_with_extension(next: u8) -> Vec<u8> {
    let mut frame = ipv6();
    frame[NETWORK + 6] = next;
    let length = (frame.len() - UDP_V6 + 8) as u16;
    frame[NETWORK + 4..NETWORK + 6].copy_from_slice(&length.to_be_bytes());
    // UDP follows; no more bytes than the 8; 4 bytes of padding (PadN), where the type has options.
    frame.splice(UDP_V6..UDP_V6, [17, 0, 1, 4, 0, 0, 0, 0]);
    frame
}

pub fn icmp_echo_v4() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC).ipv4(CLIENT_V4, SERVER_V4, 64);
    let builder = builder.icmpv4_echo_request(1, 1);
    let mut frame = Vec::new();
    builder.write(&mut frame, PAYLOAD).expect("a Vec takes everything");
    frame
}

pub fn icmp_echo_v6() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC).ipv6(CLIENT_V6, SERVER_V6, 64);
    let builder = builder.icmpv6_echo_request(1, 1);
    let mut frame = Vec::new();
    builder.write(&mut frame, PAYLOAD).expect("a Vec takes everything");
    frame
}

pub fn tcp_v4() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC).ipv4(CLIENT_V4, SERVER_V4, 64);
    let builder = builder.tcp(CLIENT_PORT, PORT, 1, 1000);
    let mut frame = Vec::new();
    builder.write(&mut frame, PAYLOAD).expect("a Vec takes everything");
    frame
}

/// A frame of another EtherType (or, up to 1500, length). Its content begins as an IPv4 header does.
pub fn other(ethertype: u16) -> Vec<u8> {
    let ether_type = etherparse::EtherType(ethertype);
    let header = Ethernet2Header { source: CLIENT_MAC, destination: SERVER_MAC, ether_type };
    let mut frame = header.to_bytes().to_vec();
    frame.resize(60, 0x45);
    frame
}

/// `frame` with one more tag in front of those that it has.
pub fn tagged(mut frame: Vec<u8>, ethertype: u16) -> Vec<u8> {
    let [high, low] = ethertype.to_be_bytes();
    frame.splice(12..12, [high, low, 0, 7]);
    frame
}

/// `frame` with the byte at `offset` set to `value`.
pub fn with(mut frame: Vec<u8>, offset: usize, value: u8) -> Vec<u8> {
    frame[offset] = value;
    frame
}

/// `frame` with the big-endian number at `offset` changed by `difference`.
pub fn adjusted(mut frame: Vec<u8>, offset: usize, difference: i16) -> Vec<u8> {
    let field: &mut [u8; 2] = (&mut frame[offset..offset + 2]).try_into().expect("two bytes");
    *field = u16::from_be_bytes(*field).wrapping_add_signed(difference).to_be_bytes();
    frame
}

/// `frame` with `bytes` zeros after its end, as Ethernet pads short ones.
pub fn padded(mut frame: Vec<u8>, bytes: usize) -> Vec<u8> {
    frame.resize(frame.len() + bytes, 0);
    frame
}

fn udp(builder: etherparse::PacketBuilderStep<IpHeaders>, from: u16, to: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    builder.udp(from, to).write(&mut frame, PAYLOAD).expect("a Vec takes everything");
    frame
}
