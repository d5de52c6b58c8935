//! Addresses in the kernel's form, and their canonical counterparts.
//!
//! Two things travel beside a datagram: the peer's address (a socket *name*) and control messages, one of
//! which has the address on our side (see `control`). An IPv6 socket speaks of IPv4 peers by v4-mapped
//! addresses in both; above `net` those are plain IPv4, always. The conversion lives here and nowhere else.
//!
//! Everything is fixed-size plain data without pointers, so it may be copied and moved freely.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::super::Path;
use super::control::Control;

/// The address family of a socket. An IPv6 socket carries IPv4 too, by v4-mapped addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of the socket that listens on `address`.
    pub(in crate::net) fn of(address: &SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Length of a socket name, in bytes.
    pub(in crate::net) fn name_len(self) -> libc::socklen_t {
        match self {
            Self::V4 => size_of::<libc::sockaddr_in>() as libc::socklen_t,
            Self::V6 => size_of::<libc::sockaddr_in6>() as libc::socklen_t,
        }
    }
}

/// A socket name: the peer of a datagram. All zero bytes are a name of no family.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in crate::net) union Name {
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
    pub(in crate::net) fn address(&self) -> Option<SocketAddr> {
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

/// What a datagram to send carries beside its payload.
#[derive(Clone, Copy)]
pub(in crate::net) struct Envelope {
    pub(in crate::net) name: Name,
    pub(in crate::net) control: Control,
}

impl Envelope {
    /// From `path.local` to `path.peer` on a socket of `family`; `None` if that socket cannot carry the path.
    pub(in crate::net) fn new(family: Family, path: &Path) -> Option<Self> {
        Some(Self { name: Name::new(family, &path.peer)?, control: Control::new(family, &path.local)? })
    }
}

/// The one form of an address above `net`: a v4-mapped address is IPv4, and there is no flow label.
pub(in crate::net) fn canonical(ip: Ipv6Addr, port: u16, scope_id: u32) -> SocketAddr {
    match ip.to_ipv4_mapped() {
        Some(ip) => SocketAddrV4::new(ip, port).into(),
        None => SocketAddrV6::new(ip, port, 0, scope_id).into(),
    }
}

/// `address` in its [`canonical`] form.
pub(in crate::net) fn canonical_address(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => canonical(*v6.ip(), v6.port(), v6.scope_id()),
    }
}

pub(in crate::net) fn scope_id(address: &SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

pub(in crate::net) fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from(ip).to_be() }
}

/// `ip`, v4-mapped if it is IPv4, as an IPv6 socket wants it.
pub(in crate::net) fn in6_addr(ip: IpAddr) -> libc::in6_addr {
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
}
