//! Addresses in the kernel's form, and their canonical counterparts.
//!
//! Two things travel beside a datagram: the peer's address (a socket *name*) and the address on our side (a
//! *packet info* control message, the only one that these sockets enable). An IPv6 socket speaks of IPv4
//! peers by v4-mapped addresses in both; above `net` those are plain IPv4, always. The conversion lives here
//! and nowhere else.
//!
//! Everything is fixed-size plain data without pointers, so it may be copied and moved freely.

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::super::Path;

/// The address family of a socket. An IPv6 socket carries IPv4 too, by v4-mapped addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of the socket that listens on `address`.
    pub(super) fn of(address: &SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Length of a socket name, in bytes.
    pub(super) fn name_len(self) -> libc::socklen_t {
        match self {
            Self::V4 => size_of::<libc::sockaddr_in>() as libc::socklen_t,
            Self::V6 => size_of::<libc::sockaddr_in6>() as libc::socklen_t,
        }
    }

    /// Length of a packet info control message with its padding, in bytes.
    pub(super) fn control_len(self) -> usize {
        match self {
            Self::V4 => size_of::<Message<libc::in_pktinfo>>(),
            Self::V6 => size_of::<Message<libc::in6_pktinfo>>(),
        }
    }
}

/// A socket name: the peer of a datagram. All zero bytes are a name of no family.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    /// The name of `peer` on a socket of `family`; `None` for an IPv6 peer on an IPv4 socket.
    fn new(family: Family, peer: &SocketAddr) -> Option<Self> {
        match (family, peer) {
            (Family::V4, SocketAddr::V4(peer)) => Some(Self {
                v4: libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: peer.port().to_be(),
                    sin_addr: in_addr(*peer.ip()),
                    sin_zero: [0; 8],
                },
            }),
            (Family::V4, SocketAddr::V6(_)) => None,
            (Family::V6, peer) => Some(Self {
                v6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: peer.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: in6_addr(peer.ip()),
                    sin6_scope_id: scope_id(peer),
                },
            }),
        }
    }

    /// The canonical address; `None` if the kernel wrote no name.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        // SAFETY: both variants are plain data that start with the family, at the same offset and of the same
        // type.
        match i32::from(unsafe { self.v4.sin_family }) {
            libc::AF_INET => {
                // SAFETY: the family says that this variant was written.
                let name = unsafe { &self.v4 };
                let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that this variant was written.
                let name = unsafe { &self.v6 };
                let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
                Some(canonical(ip, u16::from_be(name.sin6_port), name.sin6_scope_id))
            }
            _ => None,
        }
    }
}

/// A control message of one packet info structure, laid out as the kernel's `CMSG_*` macros do.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message<T> {
    header: libc::cmsghdr,
    info: T,
}

const fn cmsg_space<T>() -> usize {
    // SAFETY: CMSG_SPACE only computes.
    unsafe { libc::CMSG_SPACE(size_of::<T>() as u32) as usize }
}

// The struct must be what the macros lay out, or packet info would be read from the wrong place.
const _: () = assert!(size_of::<Message<libc::in_pktinfo>>() == cmsg_space::<libc::in_pktinfo>());
const _: () = assert!(size_of::<Message<libc::in6_pktinfo>>() == cmsg_space::<libc::in6_pktinfo>());

impl<T> Message<T> {
    fn new(level: i32, kind: i32, info: T) -> Self {
        // SAFETY: a control message header is integers only; zero is a valid value of each.
        let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
        header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<T>()) as _;
        header.cmsg_level = level;
        header.cmsg_type = kind;
        Self { header, info }
    }
}

/// The packet info of a datagram: which of our addresses it came to, or is to leave from.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union Control {
    v4: Message<libc::in_pktinfo>,
    v6: Message<libc::in6_pktinfo>,
}

impl Control {
    /// Makes a datagram leave from `local`: its address, and for a link-local one its interface. The port is
    /// the socket's. An unspecified address leaves the choice to the kernel. `None` for an IPv6 address on an
    /// IPv4 socket.
    fn new(family: Family, local: &SocketAddr) -> Option<Self> {
        match (family, local) {
            (Family::V4, SocketAddr::V4(local)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(*local.ip()),
                    ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
                };
                Some(Self { v4: Message::new(libc::IPPROTO_IP, libc::IP_PKTINFO, info) })
            }
            (Family::V4, SocketAddr::V6(_)) => None,
            (Family::V6, local) => {
                let info =
                    libc::in6_pktinfo { ipi6_addr: in6_addr(local.ip()), ipi6_ifindex: scope_id(local) as _ };
                Some(Self { v6: Message::new(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info) })
            }
        }
    }

    /// Our address, canonical, with `port`, that a received datagram was sent to. `used` is how many bytes of
    /// control data the kernel wrote; `None` if that was no packet info.
    pub(super) fn destination(&self, used: usize, port: u16) -> Option<SocketAddr> {
        if used < size_of::<libc::cmsghdr>() {
            return None;
        }
        // SAFETY: both variants are plain data that start with the header.
        let header = unsafe { self.v4.header };
        let complete = header.cmsg_len <= used;
        match (header.cmsg_level, header.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if complete => {
                // SAFETY: the header says that this variant was written.
                let info = unsafe { self.v4.info };
                Some(SocketAddrV4::new(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)), port).into())
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if complete => {
                // SAFETY: the header says that this variant was written.
                let info = unsafe { self.v6.info };
                let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                // Only a link-local address means nothing without its interface; elsewhere it would give one
                // address a different `SocketAddr` for each interface that its packets come in by.
                let scope = if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                Some(canonical(ip, port, scope))
            }
            _ => None,
        }
    }
}

/// What a datagram to send carries beside its payload.
#[derive(Clone, Copy)]
pub(super) struct Envelope {
    pub(super) name: Name,
    pub(super) control: Control,
}

impl Envelope {
    /// From `path.local` to `path.peer` on a socket of `family`; `None` if that socket cannot carry the path.
    pub(super) fn new(family: Family, path: &Path) -> Option<Self> {
        Some(Self { name: Name::new(family, &path.peer)?, control: Control::new(family, &path.local)? })
    }
}

/// The one form of an address above `net`: a v4-mapped address is IPv4, and there is no flow label.
fn canonical(ip: Ipv6Addr, port: u16, scope_id: u32) -> SocketAddr {
    match ip.to_ipv4_mapped() {
        Some(ip) => SocketAddrV4::new(ip, port).into(),
        None => SocketAddrV6::new(ip, port, 0, scope_id).into(),
    }
}

/// `address` in its [`canonical`] form.
pub(super) fn canonical_address(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => canonical(*v6.ip(), v6.port(), v6.scope_id()),
    }
}

fn scope_id(address: &SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from(ip).to_be() }
}

/// `ip`, v4-mapped if it is IPv4, as an IPv6 socket wants it.
fn in6_addr(ip: IpAddr) -> libc::in6_addr {
    let ip = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    libc::in6_addr { s6_addr: ip.octets() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_to_their_canonical_address() {
        for (family, address, canonical) in [
            (Family::V4, "192.0.2.7:4433", "192.0.2.7:4433"),
            (Family::V6, "192.0.2.7:4433", "192.0.2.7:4433"),
            (Family::V6, "[::ffff:192.0.2.7]:4433", "192.0.2.7:4433"),
            (Family::V6, "[2001:db8::7]:1", "[2001:db8::7]:1"),
            (Family::V6, "[fe80::7%3]:65535", "[fe80::7%3]:65535"),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            let name = Name::new(family, &address).unwrap();
            assert_eq!(name.address(), Some(canonical.parse().unwrap()), "{family:?} {address}");
            assert_eq!(canonical_address(address), canonical.parse().unwrap());
        }
        assert!(Name::new(Family::V4, &"[2001:db8::7]:1".parse().unwrap()).is_none());
    }

    #[test]
    fn only_link_local_destinations_keep_their_interface() {
        for (address, expected) in [
            ("[fe80::7%3]:0", "[fe80::7%3]:9"),
            ("[2001:db8::7%3]:0", "[2001:db8::7]:9"),
            ("127.0.0.2:0", "127.0.0.2:9"),
        ] {
            let control = Control::new(Family::V6, &address.parse().unwrap()).unwrap();
            let used = Family::V6.control_len();
            assert_eq!(control.destination(used, 9), Some(expected.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn control_data_that_is_cut_short_is_not_read() {
        let control = Control::new(Family::V6, &"[2001:db8::7]:0".parse().unwrap()).unwrap();
        for used in 0..size_of::<libc::cmsghdr>() + size_of::<libc::in6_pktinfo>() {
            assert_eq!(control.destination(used, 9), None, "{used} bytes");
        }
        let other = Control { v4: Message::new(libc::SOL_SOCKET, libc::SCM_TIMESTAMP, libc_pktinfo()) };
        assert_eq!(other.destination(Family::V4.control_len(), 9), None);
    }

    fn libc_pktinfo() -> libc::in_pktinfo {
        let any = in_addr(Ipv4Addr::UNSPECIFIED);
        libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: any, ipi_addr: any }
    }
}
