//! Ethernet, IP and UDP headers: from a received frame to a [`Path`] and a payload, and back.
//!
//! Theory of operation
//! -------------------
//! Pure functions over byte slices; nothing is owned, nothing allocated, no input panics.
//!
//! **In.** [`parse`] accepts what the XDP program redirects: Ethernet II with at most one 802.1Q tag, then
//! IPv4 without options and not a fragment, or IPv6 without extension headers, then UDP. It trusts no length:
//! the IP length must fit the frame, the UDP length must fit the IP length, and what is left over is padding
//! and trimmed. Checksums are not verified: between veth ends they are unfinished, on real links the Ethernet
//! FCS covers the frame, and QUIC authenticates every packet.
//!
//! What arrives here has by-passed the kernel's sanity checks of source addresses, so that the few sources
//! that must never be answered (multicast, broadcast, unspecified, loopback, port 0) are refused here, and so
//! are IPv4-mapped IPv6 addresses, which have no place on a wire and would give one peer two names.
//!
//! **Out.** [`write_headers`] builds the headers for a path in front of a payload that is in place already,
//! with correct IPv4 and UDP checksums: IPv6 requires the latter, and middleboxes drop datagrams without.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use super::{Ethernet, Link, MAX_RX_PAYLOAD, Path, checksum};

const ETHERNET: usize = 14;
const VLAN: usize = 4;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const PROTOCOL_UDP: u8 = 17;

/// Hops that a packet of ours may take: the value that RFC 1122's successors recommend and every host uses.
/// Less would not cross the Internet; more only feeds routing loops.
const HOP_LIMIT: u8 = 64;

/// Don't Fragment, in IPv4's flags: QUIC forbids fragmentation (RFC 9000, section 14). It also makes the
/// identification field meaningless (RFC 6864), so that it stays 0.
const DONT_FRAGMENT: u16 = 0x4000;
/// More Fragments and the fragment offset: either not zero makes a packet a fragment.
const FRAGMENT: u16 = 0x3fff;

/// Longest headers that [`write_headers`] writes, in bytes: a tagged IPv6 packet's.
pub const MAX_HEADERS: usize = ETHERNET + VLAN + IPV6 + UDP;

/// Why a frame was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Too short for its headers, or lengths that contradict each other.
    Truncated,
    /// Not UDP over plain IPv4 or IPv6, or from an address that must not be answered.
    NotOurs,
    /// More than [`MAX_RX_PAYLOAD`] bytes of payload.
    TooLong,
}

/// The `N` bytes at `at`, when there are so many.
#[inline]
fn bytes<const N: usize>(frame: &[u8], at: usize) -> Result<[u8; N], Reject> {
    frame.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Reject::Truncated)
}

#[inline]
fn be16(frame: &[u8], at: usize) -> Result<u16, Reject> {
    bytes(frame, at).map(u16::from_be_bytes)
}

/// Reads a received frame's headers. Returns the path it came by, seen from here, and where its UDP payload
/// is.
///
/// IPv6 addresses get scope 0, link-local ones too: the queue that a frame came from says which link it is.
///
/// # Errors
/// The cause to count.
#[inline]
pub fn parse(frame: &[u8]) -> Result<(Path, Range<usize>), Reject> {
    let local_mac = bytes(frame, 0)?;
    let peer_mac = bytes(frame, 6)?;
    let (vlan, ethertype, ip) = match be16(frame, 12)? {
        ETHERTYPE_VLAN => (Some(be16(frame, 14)?), be16(frame, 16)?, ETHERNET + VLAN),
        ethertype => (None, ethertype, ETHERNET),
    };
    // Each arm returns the addresses, where UDP starts and where IP says the packet ends.
    let (local_ip, peer_ip, udp, end) = match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(frame, ip)?,
        ETHERTYPE_IPV6 => parse_ipv6(frame, ip)?,
        _ => return Err(Reject::NotOurs),
    };
    if end > frame.len() || end < udp + UDP {
        return Err(Reject::Truncated);
    }
    let peer_port = be16(frame, udp)?;
    let local_port = be16(frame, udp + 2)?;
    let length = usize::from(be16(frame, udp + 4)?);
    if length < UDP || udp + length > end {
        return Err(Reject::Truncated);
    }
    if peer_port == 0 {
        return Err(Reject::NotOurs);
    }
    if length - UDP > MAX_RX_PAYLOAD {
        return Err(Reject::TooLong);
    }
    let path = Path {
        local: SocketAddr::new(local_ip, local_port),
        peer: SocketAddr::new(peer_ip, peer_port),
        link: Link::Ethernet(Ethernet { local: local_mac, peer: peer_mac, vlan }),
    };
    Ok((path, udp + UDP..udp + length))
}

type IpHeader = (IpAddr, IpAddr, usize, usize);

#[inline]
fn parse_ipv4(frame: &[u8], ip: usize) -> Result<IpHeader, Reject> {
    let header: [u8; IPV4] = bytes(frame, ip)?;
    // Version 4 and a header of five words: no options.
    if header[0] != 0x45 || header[9] != PROTOCOL_UDP {
        return Err(Reject::NotOurs);
    }
    if u16::from_be_bytes([header[6], header[7]]) & FRAGMENT != 0 {
        return Err(Reject::NotOurs);
    }
    let peer = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let local = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    // 0.0.0.0/8 and 127.0.0.0/8 never are a source on a wire; 224.0.0.0 upwards is multicast, reserved,
    // broadcast.
    if matches!(peer.octets()[0], 0 | 127 | 224..) {
        return Err(Reject::NotOurs);
    }
    let end = ip + usize::from(u16::from_be_bytes([header[2], header[3]]));
    Ok((local.into(), peer.into(), ip + IPV4, end))
}

#[inline]
fn parse_ipv6(frame: &[u8], ip: usize) -> Result<IpHeader, Reject> {
    let header: [u8; IPV6] = bytes(frame, ip)?;
    if header[0] >> 4 != 6 || header[6] != PROTOCOL_UDP {
        return Err(Reject::NotOurs);
    }
    let peer = Ipv6Addr::from(bytes::<16>(&header, 8)?);
    let local = Ipv6Addr::from(bytes::<16>(&header, 24)?);
    let mapped = peer.to_ipv4_mapped().is_some() || local.to_ipv4_mapped().is_some();
    if peer.is_multicast() || peer.is_unspecified() || peer.is_loopback() || mapped {
        return Err(Reject::NotOurs);
    }
    let end = ip + IPV6 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    Ok((local.into(), peer.into(), ip + IPV6, end))
}

/// Length in bytes of the headers that a packet for `path` needs; at most [`MAX_HEADERS`].
///
/// `None` when no frame can be built: the path is not an Ethernet one, or its two addresses are of different
/// families.
#[inline]
pub fn headers_len(path: &Path) -> Option<usize> {
    let Link::Ethernet(ethernet) = &path.link else { return None };
    let ip = match (path.local, path.peer) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => IPV4,
        (SocketAddr::V6(_), SocketAddr::V6(_)) => IPV6,
        _ => return None,
    };
    Some(ETHERNET + if ethernet.vlan.is_some() { VLAN } else { 0 } + ip + UDP)
}

/// Writes the headers for `path` at the start of `frame`, whose payload is in place: everything from
/// [`headers_len`] on. Short frames are left to the NIC to pad.
///
/// `None`, with the frame's content undefined, when no headers can be written: no [`headers_len`], or a frame
/// that is shorter than its headers or longer than an IP packet can be.
#[inline]
#[must_use = "without headers the frame must not be sent"]
pub fn write_headers(frame: &mut [u8], path: &Path) -> Option<()> {
    let Link::Ethernet(ethernet) = &path.link else { return None };
    let (headers, payload) = frame.split_at_mut_checked(headers_len(path)?)?;
    let udp_length = u16::try_from(UDP + payload.len()).ok()?;

    headers[0..6].copy_from_slice(&ethernet.peer);
    headers[6..12].copy_from_slice(&ethernet.local);
    let mut at = 12;
    if let Some(tag) = ethernet.vlan {
        headers[at..at + 2].copy_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
        headers[at + 2..at + 4].copy_from_slice(&tag.to_be_bytes());
        at += VLAN;
    }
    let (ethertype, headers) = headers[at..].split_first_chunk_mut::<2>()?;
    let (ip, udp) = headers.split_at_mut(headers.len() - UDP);

    let addresses = match (path.local, path.peer) {
        (SocketAddr::V4(local), SocketAddr::V4(peer)) => {
            *ethertype = ETHERTYPE_IPV4.to_be_bytes();
            // Version and length, DSCP, total length, identification, flags, TTL, protocol, checksum,
            // addresses.
            ip[0..2].copy_from_slice(&[0x45, 0]);
            ip[2..4].copy_from_slice(&u16::try_from(IPV4).ok()?.checked_add(udp_length)?.to_be_bytes());
            ip[4..6].fill(0);
            ip[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
            ip[8..12].copy_from_slice(&[HOP_LIMIT, PROTOCOL_UDP, 0, 0]);
            ip[12..16].copy_from_slice(&local.ip().octets());
            ip[16..20].copy_from_slice(&peer.ip().octets());
            let sum = checksum::finish(checksum::sum(ip));
            ip[10..12].copy_from_slice(&sum);
            checksum::sum(&ip[12..20])
        }
        (SocketAddr::V6(local), SocketAddr::V6(peer)) => {
            *ethertype = ETHERTYPE_IPV6.to_be_bytes();
            // Version, traffic class and flow label, payload length, next header, hop limit, addresses.
            ip[0..4].copy_from_slice(&[0x60, 0, 0, 0]);
            ip[4..6].copy_from_slice(&udp_length.to_be_bytes());
            ip[6..8].copy_from_slice(&[PROTOCOL_UDP, HOP_LIMIT]);
            ip[8..24].copy_from_slice(&local.ip().octets());
            ip[24..40].copy_from_slice(&peer.ip().octets());
            checksum::sum(&ip[8..40])
        }
        _ => return None,
    };

    udp[0..2].copy_from_slice(&path.local.port().to_be_bytes());
    udp[2..4].copy_from_slice(&path.peer.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
    udp[6..8].fill(0);
    // The pseudo header is addresses, protocol and UDP length, for IPv4 and IPv6 alike.
    let [high, low] = udp_length.to_be_bytes();
    let pseudo = addresses + checksum::sum(&[0, PROTOCOL_UDP, high, low]);
    let sum = match checksum::finish(pseudo + checksum::sum(udp) + checksum::sum(payload)) {
        // On the wire zero means that there is none; its other representation means zero (RFC 768).
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum);
    Some(())
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
