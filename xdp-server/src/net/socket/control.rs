//! Control messages: what travels beside a datagram's bytes and its peer's address.
//!
//! Out go the address to send from (*packet info*) and, with a train of payloads, their segment size; in come
//! the address that the peer wrote to and, with a buffer that GRO made, its segment size. A [`Control`] is
//! written once, in the kernel's layout, and handed over by reference; a [`Received`] is room for what the
//! kernel writes, in whatever order it does.

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use super::addr::{Family, canonical, in_addr, in6_addr, scope_id};

/// A control message, laid out as the kernel's `CMSG_*` macros do.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message<T> {
    header: libc::cmsghdr,
    value: T,
}

const fn cmsg_space<T>() -> usize {
    // SAFETY: CMSG_SPACE only computes.
    unsafe { libc::CMSG_SPACE(size_of::<T>() as u32) as usize }
}

// The structs must be what the macros lay out, or the kernel would look for a message in the wrong place.
const _: () = assert!(size_of::<Message<libc::in_pktinfo>>() == cmsg_space::<libc::in_pktinfo>());
const _: () = assert!(size_of::<Message<libc::in6_pktinfo>>() == cmsg_space::<libc::in6_pktinfo>());
const _: () = assert!(size_of::<Message<u16>>() == cmsg_space::<u16>());

impl<T> Message<T> {
    fn new(level: i32, kind: i32, value: T) -> Self {
        // SAFETY: a control message header is integers only; zero is a valid value of each.
        let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
        header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<T>()) as _;
        header.cmsg_level = level;
        header.cmsg_type = kind;
        Self { header, value }
    }
}

/// Both messages of one family, back to back.
#[repr(C)]
#[derive(Clone, Copy)]
struct Messages<T> {
    info: Message<T>,
    segment: Message<u16>,
}

/// The control data of a datagram, or train, to send: which of our addresses it leaves from; and the segment
/// size, which the kernel sees only if it is told the [longer length](Control::len). All zero bytes are
/// valid.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::net) union Control {
    v4: Messages<libc::in_pktinfo>,
    v6: Messages<libc::in6_pktinfo>,
}

impl Control {
    /// Makes a datagram leave from `local`: its address, and for a link-local one its interface. The port is
    /// the socket's. An unspecified address leaves the choice to the kernel. `None` for an IPv6 address on an
    /// IPv4 socket.
    pub(in crate::net) fn new(family: Family, local: &SocketAddr) -> Option<Self> {
        let segment = Message::new(libc::SOL_UDP, libc::UDP_SEGMENT, 0);
        match (family, local) {
            (Family::V4, SocketAddr::V4(local)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(*local.ip()),
                    ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
                };
                let info = Message::new(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
                Some(Self { v4: Messages { info, segment } })
            }
            (Family::V4, SocketAddr::V6(_)) => None,
            (Family::V6, local) => {
                let info =
                    libc::in6_pktinfo { ipi6_addr: in6_addr(local.ip()), ipi6_ifindex: scope_id(local) as _ };
                let info = Message::new(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
                Some(Self { v6: Messages { info, segment } })
            }
        }
    }

    /// Sets the segment size, in bytes, for a train. `family` is the one that it was made for.
    pub(in crate::net) fn set_segment_size(&mut self, family: Family, bytes: u16) {
        match family {
            Family::V4 => self.v4.segment.value = bytes,
            Family::V6 => self.v6.segment.value = bytes,
        }
    }

    /// Bytes of it that the kernel is to read: with the segment size for a train, without for a single
    /// datagram.
    pub(in crate::net) fn len(family: Family, train: bool) -> usize {
        let info = match family {
            Family::V4 => size_of::<Message<libc::in_pktinfo>>(),
            Family::V6 => size_of::<Message<libc::in6_pktinfo>>(),
        };
        if train { info + size_of::<Message<u16>>() } else { info }
    }
}

/// Room for the control data of one received datagram: the larger packet info, and GRO's segment size.
const RECEIVED_LEN: usize = cmsg_space::<libc::in6_pktinfo>() + cmsg_space::<libc::c_int>();

/// Length of a control message's header, in bytes, and where its value starts.
const HEADER_LEN: usize = size_of::<libc::cmsghdr>();

/// The control data of a received datagram, as the kernel writes it. All zero bytes are valid.
#[repr(C, align(8))]
pub(in crate::net) struct Received([u8; RECEIVED_LEN]);

/// What the control data of a received datagram say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::net) struct Arrival {
    /// Our address, canonical, that it was sent to.
    pub(in crate::net) local: Option<SocketAddr>,
    /// The segment size, in bytes, if GRO made one buffer of several datagrams.
    pub(in crate::net) segment_size: Option<usize>,
}

impl Received {
    /// Bytes of room.
    pub(in crate::net) const LEN: usize = RECEIVED_LEN;

    /// Reads the `used` bytes that the kernel wrote; `port` is the socket's. Other messages, and what is cut
    /// short, are skipped.
    pub(in crate::net) fn read(&self, used: usize, port: u16) -> Arrival {
        let mut arrival = Arrival::default();
        let mut rest = &self.0[..used.min(RECEIVED_LEN)];
        // SAFETY: a control message header is integers only.
        while let Some(header) = unsafe { first::<libc::cmsghdr>(rest) } {
            let length = header.cmsg_len;
            let Some(value) = rest.get(HEADER_LEN..length) else { break };
            // SAFETY: packet info structures, and what they hold, are integers only.
            let (v4, v6) = unsafe { (first::<libc::in_pktinfo>(value), first::<libc::in6_pktinfo>(value)) };
            match (header.cmsg_level, header.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => arrival.local = v4.map(|info| v4_local(&info, port)),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    arrival.local = v6.map(|info| v6_local(&info, port));
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    // SAFETY: an integer.
                    let size = unsafe { first::<libc::c_int>(value) };
                    arrival.segment_size = size.and_then(|size| usize::try_from(size).ok());
                }
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(align_of::<libc::cmsghdr>())..).unwrap_or_default();
        }
        arrival
    }
}

/// The `T` at the start of `bytes`, if they are enough.
///
/// # Safety
/// Any bytes must be a valid `T`.
unsafe fn first<T: Copy>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: there are as many bytes as a `T` has, any will do, and the read needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn v4_local(info: &libc::in_pktinfo, port: u16) -> SocketAddr {
    SocketAddrV4::new(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)), port).into()
}

fn v6_local(info: &libc::in6_pktinfo, port: u16) -> SocketAddr {
    let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
    // Only a link-local address means nothing without its interface; elsewhere it would give one address a
    // different `SocketAddr` for each interface that its packets come in by.
    let scope = if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
    canonical(ip, port, scope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `messages` as the kernel writes them; returns how many bytes that are, too.
    fn written(messages: &[(i32, i32, &[u8])]) -> (Received, usize) {
        let mut bytes = Vec::new();
        for (level, kind, value) in messages {
            bytes.extend((HEADER_LEN + value.len()).to_ne_bytes());
            bytes.extend(level.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let mut room = Received([0; RECEIVED_LEN]);
        room.0[..bytes.len()].copy_from_slice(&bytes);
        (room, bytes.len())
    }

    fn v6_info(ip: &str, interface: u32) -> Vec<u8> {
        let ip: Ipv6Addr = ip.parse().unwrap();
        [&ip.octets()[..], &interface.to_ne_bytes()].concat()
    }

    const INFO_V6: (i32, i32) = (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
    const GRO: (i32, i32) = (libc::SOL_UDP, libc::UDP_GRO);

    #[test]
    fn only_link_local_destinations_keep_their_interface() {
        for (ip, expected) in [
            ("fe80::7", "[fe80::7%3]:9"),
            ("2001:db8::7", "[2001:db8::7]:9"),
            ("::ffff:127.0.0.2", "127.0.0.2:9"),
        ] {
            let (control, used) = written(&[(INFO_V6.0, INFO_V6.1, &v6_info(ip, 3))]);
            assert_eq!(control.read(used, 9).local, Some(expected.parse().unwrap()), "{ip}");
        }
        // The interface, the address of the route, the address in the packet.
        let info = [3, 0, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7];
        let (control, used) = written(&[(libc::IPPROTO_IP, libc::IP_PKTINFO, &info)]);
        assert_eq!(control.read(used, 9).local, Some("192.0.2.7:9".parse().unwrap()));
    }

    #[test]
    fn messages_are_read_in_any_order_among_others() {
        let info = v6_info("2001:db8::7", 3);
        let size = 1200_i32.to_ne_bytes();
        let expected = Arrival { local: Some("[2001:db8::7]:9".parse().unwrap()), segment_size: Some(1200) };
        let info = (INFO_V6.0, INFO_V6.1, info.as_slice());
        let gro = (GRO.0, GRO.1, size.as_slice());
        for messages in [[info, gro], [gro, info]] {
            let (control, used) = written(&messages);
            assert_eq!(control.read(used, 9), expected);
        }
        let other = (libc::SOL_SOCKET, libc::SCM_TIMESTAMP, [7; 16].as_slice());
        let (control, used) = written(&[other, gro]);
        assert_eq!(control.read(used, 9), Arrival { local: None, segment_size: Some(1200) });
    }

    #[test]
    fn control_data_that_is_cut_short_is_not_read() {
        let info = v6_info("2001:db8::7", 3);
        let (control, used) = written(&[(INFO_V6.0, INFO_V6.1, &info)]);
        for short in 0..HEADER_LEN + info.len() {
            assert_eq!(control.read(short, 9), Arrival::default(), "{short} of {used} bytes");
        }
    }

    #[test]
    fn an_ipv4_socket_cannot_send_from_ipv6() {
        assert!(Control::new(Family::V4, &"[2001:db8::7]:1".parse().unwrap()).is_none());
        assert!(Control::new(Family::V6, &"192.0.2.7:1".parse().unwrap()).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: [u8; RECEIVED_LEN], used in 0usize..100) {
            let _ = Received(bytes).read(used, 9);
        }
    }
}
