//! The hash of receive side scaling: Toeplitz, over a UDP packet's addresses and ports.
//!
//! Pure functions of a key and a flow; nothing here knows of sockets or queues. Checked against the published
//! verification vectors (Microsoft, "Verifying the RSS Hash Calculation"), which all NIC vendors use.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of key that one byte of input meets: 32 bits for each of its 8 bits, each a bit further on. The last
/// four of a key are only ever met by bits before them, so a key is that much longer than its longest input.
const WINDOW: usize = 5;

/// Most bytes of a key. Drivers have 40 or 52 (what `ethtool -x` shows); only there to refuse what is no key.
const LONGEST_KEY: usize = 256;

/// What of a packet is hashed. RSS knows these two for UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HashInput {
    /// Addresses and ports, what ethtool calls `sdfn`.
    #[value(name = "sdfn")]
    AddressesAndPorts,
    /// Addresses only, `sd`: all that one host sends to one address goes to one queue.
    #[value(name = "sd")]
    Addresses,
}

/// A NIC's secret key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(Vec<u8>);

/// Why a text is no key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an RSS key is 8 to {LONGEST_KEY} bytes in hex, as ethtool -x shows it: 6d:5a:56:da:...")]
pub struct KeyError;

impl Key {
    /// The hash of `input`; `None` where the key is too short for so long an input.
    pub fn hash(&self, input: &[u8]) -> Option<u32> {
        if self.0.len() < input.len() + WINDOW - 1 {
            return None;
        }
        let step = |hash: u32, (key, &byte): (&[u8], &u8)| {
            let window = key.iter().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
            let set = (0..8).filter(|bit| byte & (0x80 >> bit) != 0);
            set.fold(hash, |hash, bit| hash ^ (window >> (8 - bit)) as u32)
        };
        Some(self.0.windows(WINDOW).zip(input).fold(0, step))
    }

    /// Bytes of the key.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits: Option<Vec<u8>> = text
            .chars()
            .filter(|&c| c != ':')
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let digits = digits.filter(|digits| digits.len() % 2 == 0).ok_or(KeyError)?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        if (8..=LONGEST_KEY).contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(KeyError) }
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, byte)| {
            if index > 0 {
                f.write_char(':')?;
            }
            write!(f, "{byte:02x}")
        })
    }
}

/// What is hashed of a packet from `source` to `destination`, in RSS's order. Addresses of IPv4 that are
/// written as of IPv6 (`::ffff:10.0.0.1`) count as what goes over the wire.
pub fn input(source: SocketAddr, destination: SocketAddr, hashed: HashInput) -> Vec<u8> {
    let mut input = Vec::with_capacity(2 * 16 + 2 * 2);
    for end in [source, destination] {
        match end.ip().to_canonical() {
            IpAddr::V4(ip) => input.extend(ip.octets()),
            IpAddr::V6(ip) => input.extend(ip.octets()),
        }
    }
    if hashed == HashInput::AddressesAndPorts {
        for end in [source, destination] {
            input.extend(end.port().to_be_bytes());
        }
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of the published vectors.
    const PUBLISHED: &str = "6d:5a:56:da:25:5b:0e:c2:41:67:25:3d:43:a3:8f:b0:d0:ca:2b:cb:\
                             ae:7b:30:b4:77:cb:2d:a3:80:30:f2:0c:6a:42:b7:3b:be:ac:01:fa";

    /// Destination, source, hash of the addresses, hash of addresses and ports: the published ones, all.
    const VECTORS: [(&str, &str, u32, u32); 8] = [
        ("161.142.100.80:1766", "66.9.149.187:2794", 0x323e_8fc2, 0x51cc_c178),
        ("65.69.140.83:4739", "199.92.111.2:14230", 0xd718_262a, 0xc626_b0ea),
        ("12.22.207.184:38024", "24.19.198.95:12898", 0xd2d0_a5de, 0x5c2b_394a),
        ("209.142.163.6:2217", "38.27.205.30:48228", 0x8298_9176, 0xafc7_327f),
        ("202.188.127.2:1303", "153.39.163.191:44251", 0x5d18_09c5, 0x10e8_28a2),
        ("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x2cc1_8cd5, 0x4020_7d3d),
        ("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0x0f0c_461c, 0xdde5_1bbf),
        (
            "[fe80::200:f8ff:fe21:67cf]:38024",
            "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251",
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];

    fn hash(key: &str, source: &str, destination: &str, hashed: HashInput) -> Option<u32> {
        let input = input(source.parse().unwrap(), destination.parse().unwrap(), hashed);
        key.parse::<Key>().unwrap().hash(&input)
    }

    #[test]
    fn published_vectors() {
        // A key of 52 bytes hashes as its first 40 do: no input is longer than 36.
        for key in [PUBLISHED.to_owned(), format!("{PUBLISHED}{}", ":ff".repeat(12))] {
            for (destination, source, addresses, all) in VECTORS {
                let hash = |hashed| hash(&key, source, destination, hashed);
                assert_eq!(hash(HashInput::Addresses), Some(addresses), "{source} -> {destination}");
                assert_eq!(hash(HashInput::AddressesAndPorts), Some(all), "{source} -> {destination}");
            }
        }
    }

    #[test]
    fn ipv4_in_the_notation_of_ipv6_is_ipv4() {
        let mapped = hash(
            PUBLISHED,
            "[::ffff:66.9.149.187]:2794",
            "[::ffff:161.142.100.80]:1766",
            HashInput::AddressesAndPorts,
        );
        assert_eq!(mapped, Some(0x51cc_c178));
    }

    #[test]
    fn a_key_is_four_bytes_longer_than_its_input() {
        let of = |bytes: usize| "5a".repeat(bytes).parse::<Key>().unwrap();
        assert!(of(16).hash(&[1; 12]).is_some());
        assert_eq!(of(15).hash(&[1; 12]), None);
        assert_eq!(of(39).hash(&[1; 36]), None);
    }

    #[test]
    fn keys_as_they_are_written() {
        let key: Key = PUBLISHED.parse().unwrap();
        assert_eq!((key.len(), key.to_string()), (40, PUBLISHED.to_owned()));
        assert_eq!(PUBLISHED.replace(':', "").to_uppercase().parse(), Ok(key));
        for wrong in ["", "6d:5a", "zz", &PUBLISHED[1..], &"ab".repeat(257), "6d 5a 56 da 25 5b 0e c2 41"] {
            assert_eq!(wrong.parse::<Key>(), Err(KeyError), "{wrong}");
        }
    }
}
