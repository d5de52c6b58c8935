//! Whole Ethernet frames, past the IP stack: headers, and a socket that sends them.
//!
//! A packet socket (AF_PACKET, PACKET_QDISC_BYPASS) hands prepared frames straight to the driver: about half
//! of a UDP socket's cost for each packet, and packets of many source ports can be mixed in one system call.
//! It needs CAP_NET_RAW, an IPv4 route without a gateway in between, and the peer's MAC address in the
//! neighbour table, where the handshakes that came before have put it.

use std::fs;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Socket, Type};

/// Bytes of the Ethernet, IPv4 and UDP headers.
pub const HEADERS: usize = 14 + 20 + 8;

/// EtherType of IPv4.
const ETHERTYPE_IPV4: u16 = 0x0800;

/// Hops that a packet may take: Linux's default.
const TTL: u8 = 64;

/// The cable to a peer: an interface and both MAC addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    index: u32,
    source: [u8; 6],
    destination: [u8; 6],
}

impl Link {
    /// The cable from the interface that has the address `local` to its neighbour `peer`.
    ///
    /// # Errors
    /// No interface has the address, or the peer is no neighbour that was lately heard of.
    pub fn find(local: Ipv4Addr, peer: Ipv4Addr) -> Result<Self> {
        let holds = |address: &nix::ifaddrs::InterfaceAddress| {
            address.address.as_ref().and_then(|a| a.as_sockaddr_in()).is_some_and(|a| a.ip() == local)
        };
        let name =
            getifaddrs()?.find(holds).with_context(|| format!("no interface has {local}"))?.interface_name;
        let path = format!("/sys/class/net/{name}/address");
        let own = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let source = mac(own.trim()).with_context(|| format!("{name} has no MAC address"))?;
        let table = fs::read_to_string("/proc/net/arp").context("cannot read /proc/net/arp")?;
        let Some(destination) = neighbour(&table, peer, &name) else {
            bail!("{peer} is no neighbour on {name}: frames cannot be addressed to it; use --via udp");
        };
        Ok(Self { index: if_nametoindex(name.as_str())?, source, destination })
    }

    /// Writes headers to the front of `frame`, for the UDP payload that follows them.
    pub fn put_headers(&self, frame: &mut [u8], from: SocketAddrV4, to: SocketAddrV4) {
        let (headers, payload) = frame.split_at_mut(HEADERS);
        let udp_length = (8 + payload.len()) as u16;
        headers[0..6].copy_from_slice(&self.destination);
        headers[6..12].copy_from_slice(&self.source);
        headers[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        let ip = &mut headers[14..34];
        ip.fill(0);
        ip[0] = 0x45; // version 4, five words
        ip[2..4].copy_from_slice(&(20 + udp_length).to_be_bytes());
        ip[6] = 0x40; // do not fragment
        ip[8] = TTL;
        ip[9] = libc::IPPROTO_UDP as u8;
        ip[12..16].copy_from_slice(&from.ip().octets());
        ip[16..20].copy_from_slice(&to.ip().octets());
        let checksum = !fold(sum(ip, 0));
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        // The pseudo-header: both addresses, the protocol, the length.
        let pseudo = sum(&ip[12..20], 0) + libc::IPPROTO_UDP as u32 + u32::from(udp_length);
        let udp = &mut headers[34..42];
        udp[0..2].copy_from_slice(&from.port().to_be_bytes());
        udp[2..4].copy_from_slice(&to.port().to_be_bytes());
        udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
        udp[6..8].fill(0);
        let checksum = match !fold(sum(payload, sum(udp, pseudo))) {
            0 => 0xffff, // 0 would mean that there is none
            checksum => checksum,
        };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Adds the 16-bit words of `bytes` to `sum`. Only the last piece may have an odd length.
fn sum(bytes: &[u8], sum: u32) -> u32 {
    let (words, odd) = bytes.as_chunks::<2>();
    let odd = odd.first().map_or(0, |byte| u32::from(*byte) << 8);
    words.iter().fold(sum + odd, |sum, word| sum + u32::from(u16::from_be_bytes(*word)))
}

/// The ones' complement sum in 16 bits.
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The MAC address of `peer` on `interface` in a table as /proc/net/arp has it.
fn neighbour(table: &str, peer: Ipv4Addr, interface: &str) -> Option<[u8; 6]> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [ip, _, _, address, _, device] if ip == peer.to_string() && device == interface => mac(address),
            _ => None,
        }
    })
}

/// A MAC address from its usual text; `None` of others, and of zeros, which stand for none.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    (parts.next().is_none() && bytes != [0; 6]).then_some(bytes)
}

/// A socket that sends frames as they are.
pub struct PacketSocket(Socket);

impl PacketSocket {
    /// A socket on this link. It receives nothing.
    ///
    /// # Errors
    /// There is no CAP_NET_RAW.
    pub fn new(link: &Link) -> Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)
            .context("cannot send frames (that takes CAP_NET_RAW; use --via udp without it)")?;
        set_option(&socket, libc::PACKET_QDISC_BYPASS, 1).context("PACKET_QDISC_BYPASS")?;
        socket.set_send_buffer_size(4 << 20)?;
        // SAFETY: integers and an array of bytes, for which zero is valid.
        let mut name: libc::sockaddr_ll = unsafe { mem::zeroed() };
        name.sll_family = libc::AF_PACKET as _;
        name.sll_ifindex = link.index as _;
        let length = mem::size_of_val(&name) as libc::socklen_t;
        // SAFETY: a name of this length.
        let status = unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), length) };
        if status != 0 {
            return Err(io::Error::last_os_error()).context("cannot send frames on the interface");
        }
        Ok(Self(socket))
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: a value of this length.
    let status = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const value).cast(), length)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_what_a_receiver_checks() {
        let link = Link { index: 1, source: [2, 0, 0, 0, 0, 1], destination: [2, 0, 0, 0, 0, 2] };
        for payload in [&b"odd"[..], b"even", b""] {
            let mut frame = vec![0xee; HEADERS];
            frame.extend(payload);
            let (from, to) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:4433".parse().unwrap());
            link.put_headers(&mut frame, from, to);
            assert_eq!(frame[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
            // Over data with a right checksum in it the sum is all ones.
            assert_eq!(fold(sum(&frame[14..34], 0)), 0xffff);
            let length = (8 + payload.len()) as u32;
            let pseudo = sum(&[10, 0, 0, 1, 10, 0, 0, 2, 0, 17], 0) + length;
            assert_eq!(fold(sum(&frame[34..], pseudo)), 0xffff);
            assert_eq!(u16::from_be_bytes([frame[16], frame[17]]) as usize, frame.len() - 14);
            assert_eq!(frame[HEADERS..], *payload);
        }
    }

    #[test]
    fn neighbours_are_found_on_their_interface() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.9.0.1         0x1         0x2         02:00:00:00:00:01     *        veth1\n\
                     10.9.0.2         0x1         0x0         00:00:00:00:00:00     *        veth1\n";
        assert_eq!(neighbour(table, Ipv4Addr::new(10, 9, 0, 1), "veth1"), Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(neighbour(table, Ipv4Addr::new(10, 9, 0, 1), "eth0"), None);
        assert_eq!(neighbour(table, Ipv4Addr::new(10, 9, 0, 2), "veth1"), None);
    }
}
