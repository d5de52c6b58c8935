//! The unencrypted part of a QUIC packet, as much of it as routing needs (RFC 8999, RFC 9000 section 17).
//!
//! quiche parses headers too, but allocates for each connection ID; this runs on every packet before anything
//! is known of it, so it borrows. It reads the first packet of a datagram only: coalesced ones share its
//! connection ID.

use super::cid;

/// The one version served (RFC 9000).
pub const VERSION_1: u32 = 1;

/// Longest connection ID in QUIC version 1, in bytes.
const MAX_CID_LEN: usize = 20;

/// Smallest UDP payload that may carry a client's Initial, or be answered with Version Negotiation (RFC 9000,
/// sections 14.1 and 6.1), in bytes.
pub const MIN_INITIAL_LEN: usize = 1200;

/// What the first packet of a UDP payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header<'a> {
    /// 1-RTT packet: an established connection's.
    Short {
        /// Destination connection ID: one of ours, or forged.
        dcid: &'a [u8; cid::LEN],
    },
    /// Initial of version 1: perhaps a new connection.
    Initial {
        /// Destination connection ID: the client's choice at first, then ours.
        dcid: &'a [u8],
    },
    /// 0-RTT or Handshake packet of version 1.
    Handshake {
        /// Destination connection ID.
        dcid: &'a [u8],
    },
    /// A version that this server does not speak.
    OtherVersion {
        /// Destination connection ID, up to 255 bytes.
        dcid: &'a [u8],
        /// Source connection ID, up to 255 bytes.
        scid: &'a [u8],
    },
}

/// Reads the header of `packet`; `None` if it is none that a client may send.
pub fn parse(packet: &[u8]) -> Option<Header<'_>> {
    let first = *packet.first()?;
    if first & 0x80 == 0 {
        return Some(Header::Short { dcid: packet.get(1..1 + cid::LEN)?.try_into().ok()? });
    }
    let version = u32::from_be_bytes(packet.get(1..5)?.try_into().ok()?);
    let (dcid, rest) = take_cid(packet.get(5..)?)?;
    let (scid, _) = take_cid(rest)?;
    match version {
        0 => None, // Version Negotiation: only servers send it
        VERSION_1 if dcid.len() > MAX_CID_LEN || scid.len() > MAX_CID_LEN => None,
        VERSION_1 => match (first >> 4) & 0x03 {
            0 => Some(Header::Initial { dcid }),
            1 | 2 => Some(Header::Handshake { dcid }),
            _ => None, // Retry: only servers send it
        },
        _ => Some(Header::OtherVersion { dcid, scid }),
    }
}

/// Splits a length-prefixed connection ID off `bytes`.
fn take_cid(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn long(first: u8, version: u32, dcid: &[u8], scid: &[u8]) -> Vec<u8> {
        let mut packet = vec![first];
        packet.extend(version.to_be_bytes());
        for id in [dcid, scid] {
            packet.push(id.len() as u8);
            packet.extend(id);
        }
        packet
    }

    #[test]
    fn kinds() {
        let dcid = [5; 8];
        assert_eq!(parse(&long(0xc0, 1, &dcid, &[])), Some(Header::Initial { dcid: &dcid }));
        assert_eq!(parse(&long(0xd0, 1, &dcid, &[])), Some(Header::Handshake { dcid: &dcid }), "0-RTT");
        assert_eq!(parse(&long(0xe0, 1, &dcid, &[])), Some(Header::Handshake { dcid: &dcid }));
        assert_eq!(parse(&long(0xf0, 1, &dcid, &[])), None, "Retry comes from servers");
        assert_eq!(parse(&long(0xc0, 0, &dcid, &[])), None, "so does Version Negotiation");
        assert_eq!(
            parse(&long(0xc0, 0x1a2a_3a4a, &[1; 200], &[2; 3])),
            Some(Header::OtherVersion { dcid: &[1; 200], scid: &[2; 3] })
        );
        assert_eq!(parse(&long(0xc0, 1, &[1; 21], &[])), None, "longer than version 1 allows");
        let mut short = vec![0x40];
        short.extend([9; cid::LEN]);
        assert_eq!(parse(&short), Some(Header::Short { dcid: &[9; cid::LEN] }));
        assert_eq!(parse(&short[..cid::LEN]), None);
        assert_eq!(parse(&[]), None);
    }

    proptest! {
        /// Agreement with quiche's own parser on whatever both accept.
        #[test]
        fn agrees_with_quiche(mut packet in proptest::collection::vec(any::<u8>(), 0..64)) {
            let ours = parse(&packet).map(|h| match h {
                Header::Short { dcid } => dcid.to_vec(),
                Header::Initial { dcid } | Header::Handshake { dcid } | Header::OtherVersion { dcid, .. } => dcid.to_vec(),
            });
            if let (Some(ours), Ok(theirs)) = (ours, quiche::Header::from_slice(&mut packet, cid::LEN)) {
                prop_assert_eq!(ours, theirs.dcid.to_vec());
            }
        }

        #[test]
        fn cut_short_never_panics(cut in 0usize..60) {
            let packet = long(0xc0, 1, &[1; 20], &[2; 20]);
            let _ = parse(&packet[..cut.min(packet.len())]);
        }
    }
}
