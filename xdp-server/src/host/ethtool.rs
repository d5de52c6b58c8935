//! Questions about an interface that no file answers: the kernel's ethtool requests.
//!
//! Each request is an array of 32-bit words laid out as its structure in linux/ethtool.h, command first. All
//! of them only read, and need no privilege. What a driver cannot tell is `None`: most virtual interfaces
//! have neither an indirection table nor a hash.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GRXFH: u32 = 0x29;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GRXFHINDIR: u32 = 0x38;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GRSSH: u32 = 0x46;

/// The string set that names the features.
const ETH_SS_FEATURES: u32 = 4;
/// Words of a name in a string set (ETH_GSTRING_LEN is 32 bytes).
const NAME_WORDS: usize = 8;
/// Words of `struct ethtool_drvinfo`: the command, five names of 32 bytes, 12 bytes reserved, five counts.
const DRVINFO_WORDS: usize = 1 + 5 * NAME_WORDS + 3 + 5;
/// Flow types of UDP over IPv4 and over IPv6.
const UDP_FLOWS: [u32; 2] = [0x02, 0x06];
/// Bits of what a flow's hash covers (RXH_*), and the names of what they stand for. The ports are the first
/// and the second half of the first word behind the IP header.
const HASH_FIELDS: [(u64, &str); 8] = [
    (1 << 1, "mac"),
    (1 << 2, "vlan"),
    (1 << 3, "l3_proto"),
    (1 << 4, "src_ip"),
    (1 << 5, "dst_ip"),
    (1 << 6, "src_port"),
    (1 << 7, "dst_port"),
    (1 << 9, "flow_label"),
];
/// Names of the hash functions, by bit (ETH_RSS_HASH_*).
const HASH_FUNCTIONS: [&str; 3] = ["toeplitz", "xor", "crc32"];
/// Words of `struct ethtool_rxfh` before table and key: command, context, size of the table in words, size of
/// the key in bytes, four single bytes, reserved.
const RXFH_WORDS: usize = 6;

/// One interface to ask about.
#[derive(Debug)]
pub struct Ethtool {
    socket: OwnedFd,
    interface: String,
}

/// The queues of an interface, as `ethtool -l` shows them. A combined channel is a queue in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Most receive-only queues.
    pub max_rx: u32,
    /// Most transmit-only queues.
    pub max_tx: u32,
    /// Most combined ones.
    pub max_combined: u32,
    /// Combined ones in use.
    pub combined: u32,
}

/// Receive side scaling: how a NIC makes a queue's number of a packet, as `ethtool -x` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// The hash function, `toeplitz` mostly; `+symmetric` is added where addresses and ports are mixed with
    /// each other before. `None` if the driver does not tell.
    pub function: Option<String>,
    /// The secret key of the hash; empty if the driver does not tell.
    pub key: Vec<u8>,
    /// The indirection table: the queue of each bucket. A packet's bucket is its hash modulo the table's
    /// length. Empty if the driver does not tell.
    pub table: Vec<u32>,
}

impl Channels {
    /// Most queues that receive and transmit.
    pub fn most(&self) -> u32 {
        self.max_combined.max(self.max_rx.min(self.max_tx))
    }
}

impl Ethtool {
    /// Prepares to ask about `interface`, which need not exist. `None` if the process cannot make sockets.
    pub fn open(interface: &str) -> Option<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
        Some(Self { socket, interface: interface.to_owned() })
    }

    /// Name of the driver, also of virtual interfaces: `veth`.
    pub fn driver(&self) -> Option<String> {
        let mut info = [0; DRVINFO_WORDS];
        info[0] = ETHTOOL_GDRVINFO;
        self.ask(&mut info).ok()?;
        Some(name(&info[1..1 + NAME_WORDS])).filter(|name| !name.is_empty())
    }

    /// Whether the offload feature `feature` is on, as `ethtool -k` shows it. `None` when there is no such
    /// one.
    pub fn feature(&self, feature: &str) -> Option<bool> {
        // struct ethtool_sset_info: command, reserved, 64 bits of which sets are asked for, the length of
        // that set.
        let mask = (1u64 << ETH_SS_FEATURES).to_ne_bytes();
        let [low, high] =
            [0, 4].map(|at| u32::from_ne_bytes([mask[at], mask[at + 1], mask[at + 2], mask[at + 3]]));
        let mut info = [ETHTOOL_GSSET_INFO, 0, low, high, 0];
        self.ask(&mut info).ok()?;
        let count = info[4] as usize;

        // struct ethtool_gstrings: command, set, number of names, the names.
        let mut names = vec![0; 3 + count * NAME_WORDS];
        names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
        self.ask(&mut names).ok()?;
        let index = names[3..].chunks_exact(NAME_WORDS).position(|words| name(words) == feature)?;

        // struct ethtool_gfeatures: command, blocks, and for each 32 features the sets available, requested,
        // active, fixed.
        let blocks = count.div_ceil(32);
        let mut features = vec![0; 2 + blocks * 4];
        features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
        self.ask(&mut features).ok()?;
        let active = features[2 + index / 32 * 4 + 2];
        Some(active >> (index % 32) & 1 == 1)
    }

    /// The queues that there are and can be.
    pub fn channels(&self) -> Option<Channels> {
        // struct ethtool_channels: command; most of rx, tx, other, combined; rx, tx, other, combined.
        let mut channels = [0; 9];
        channels[0] = ETHTOOL_GCHANNELS;
        self.ask(&mut channels).ok()?;
        let [_, max_rx, max_tx, _, max_combined, _, _, _, combined] = channels;
        Some(Channels { max_rx, max_tx, max_combined, combined })
    }

    /// The RSS indirection table: the queue of each bucket of the hash, as `ethtool -x` shows it.
    pub fn indirection(&self) -> Option<Vec<u32>> {
        // struct ethtool_rxfh_indir: command, size, the table. A size of 0 asks for the size.
        let mut size = [ETHTOOL_GRXFHINDIR, 0];
        self.ask(&mut size).ok()?;
        let mut table = vec![0; 2 + size[1] as usize];
        table[..2].copy_from_slice(&[ETHTOOL_GRXFHINDIR, size[1]]);
        self.ask(&mut table).ok()?;
        Some(table.split_off(2)).filter(|table| !table.is_empty())
    }

    /// Whether the RSS hash of UDP packets covers their ports, for IPv4 and IPv6.
    pub fn udp_hash_has_ports(&self) -> Option<bool> {
        let [v4, v6] = self.udp_hash();
        Some(hashes_ports(&v4?) && hashes_ports(&v6?))
    }

    /// What the RSS hash of UDP packets covers, for IPv4 and IPv6: names such as `src_ip` and `dst_port`.
    pub fn udp_hash(&self) -> [Option<Vec<&'static str>>; 2] {
        UDP_FLOWS.map(|flow| hash_fields(flow, |request| self.ask(request)))
    }

    /// The RSS hash and its table.
    pub fn rss(&self) -> Option<Rss> {
        rss(|request| self.ask(request))
    }

    /// One request. `request` is the request's structure, as long as its own counts say.
    fn ask(&self, request: &mut [u32]) -> io::Result<()> {
        // SAFETY: `ifreq` is plain data, for which all zeroes are a value.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = self.interface.as_bytes();
        if name.len() >= ifreq.ifr_name.len() {
            return Err(Errno::ENODEV.into());
        }
        for (to, &from) in ifreq.ifr_name.iter_mut().zip(name) {
            *to = from.cast_signed();
        }
        ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
        // SAFETY: the kernel reads and writes as many words as the counts in `request` say, and the callers
        // above made it that long. Both pointers outlive the call.
        Errno::result(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut ifreq) })?;
        Ok(())
    }
}

/// Whether among what is hashed are both ports.
pub fn hashes_ports(fields: &[&str]) -> bool {
    ["src_port", "dst_port"].iter().all(|port| fields.contains(port))
}

/// [`Ethtool::udp_hash`] for one flow type, of a kernel that answers to `ask`.
fn hash_fields(flow: u32, ask: impl Fn(&mut [u32]) -> io::Result<()>) -> Option<Vec<&'static str>> {
    // The start of struct ethtool_rxnfc: command, flow type, 64 bits of what is hashed.
    let mut flow = [ETHTOOL_GRXFH, flow, 0, 0];
    ask(&mut flow).ok()?;
    let [low, high] = if cfg!(target_endian = "little") { [2, 3] } else { [3, 2] };
    let hashed = u64::from(flow[high]) << 32 | u64::from(flow[low]);
    Some(HASH_FIELDS.iter().filter(|(bit, _)| hashed & bit != 0).map(|(_, name)| *name).collect())
}

/// [`Ethtool::rss`] of a kernel that answers to `ask`.
fn rss(ask: impl Fn(&mut [u32]) -> io::Result<()>) -> Option<Rss> {
    // Sizes of 0 ask for the sizes.
    let mut sizes = [0; RXFH_WORDS];
    sizes[0] = ETHTOOL_GRSSH;
    ask(&mut sizes).ok()?;
    let [_, _, table_words, key_bytes, ..] = sizes.map(|size| size as usize);
    let mut reply = vec![0; RXFH_WORDS + table_words + key_bytes.div_ceil(size_of::<u32>())];
    reply[..4].copy_from_slice(&[ETHTOOL_GRSSH, 0, sizes[2], sizes[3]]);
    ask(&mut reply).ok()?;

    let [function, transformation, ..] = reply[4].to_ne_bytes();
    let function = (0..).zip(HASH_FUNCTIONS).find(|(bit, _)| function >> bit & 1 == 1).map(|(_, name)| {
        let symmetric = if transformation == 0 { "" } else { "+symmetric" };
        format!("{name}{symmetric}")
    });
    let key = reply.split_off(RXFH_WORDS + table_words);
    let mut key: Vec<u8> = key.into_iter().flat_map(u32::to_ne_bytes).collect();
    key.truncate(key_bytes);
    Some(Rss { function, key, table: reply.split_off(RXFH_WORDS) })
}

/// A name in a field of fixed length, up to its closing zero.
fn name(words: &[u32]) -> String {
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read() {
        // Both are fixed for loopback: it never computes checksums, and runs in every network namespace.
        let lo = Ethtool::open("lo").unwrap();
        assert_eq!(lo.feature("loopback"), Some(true));
        assert_eq!(lo.feature("rx-udp-gro-forwarding"), Some(false));
        assert_eq!(lo.feature("no-such-feature"), None);
    }

    #[test]
    fn loopback_has_nothing_to_spread() {
        let lo = Ethtool::open("lo").unwrap();
        assert_eq!((lo.channels(), lo.indirection(), lo.udp_hash_has_ports()), (None, None, None));
    }

    /// A kernel that gives these replies to requests that begin so, and refuses others.
    fn recorded(talk: &[(&[u32], &[u32])]) -> impl Fn(&mut [u32]) -> io::Result<()> + use<> {
        let talk: Vec<_> = talk.iter().map(|(asked, reply)| (asked.to_vec(), reply.to_vec())).collect();
        move |request| {
            let fits = |(asked, reply): &&(Vec<u32>, Vec<u32>)| {
                request.starts_with(asked) && request.len() == reply.len()
            };
            let (_, reply) = talk.iter().find(fits).ok_or(Errno::EOPNOTSUPP)?;
            request.copy_from_slice(reply);
            Ok(())
        }
    }

    #[test]
    fn rss_is_read_from_the_replies_of_a_nic() {
        // As an ixgbe of 4 queues replies, but for the length of its table: 128 there. Key and single bytes
        // are in memory order.
        let head = |table, key, function| [0x46, 0, table, key, u32::from_ne_bytes([function, 0, 0, 0]), 0];
        let key = *b"\x6d\x5a\x56\xda\x25\x5b\x0e\xc2\x41\x67";
        let mut full = head(8, 10, 1).to_vec();
        full.extend([0, 1, 2, 3, 0, 1, 2, 3]);
        full.extend(
            [&key[..4], &key[4..8], &[0x41, 0x67, 0, 0]].map(|b| u32::from_ne_bytes(b.try_into().unwrap())),
        );
        let nic = recorded(&[(&[0x46, 0, 0, 0], &head(8, 10, 0)), (&[0x46, 0, 8, 10], &full)]);
        let table = vec![0, 1, 2, 3, 0, 1, 2, 3];
        let expected = Rss { function: Some("toeplitz".into()), key: key.to_vec(), table };
        assert_eq!(rss(nic), Some(expected));

        // virtio_net with one queue: a function, and neither key nor table.
        let none = Rss { function: Some("toeplitz".into()), key: vec![], table: vec![] };
        let reply = head(0, 0, 1);
        assert_eq!(rss(recorded(&[(&[0x46], &reply)])), Some(none));
        let symmetric = [0x46, 0, 0, 0, u32::from_ne_bytes([1, 1, 0, 0]), 0];
        let symmetric = rss(recorded(&[(&[0x46], &symmetric)])).unwrap();
        assert_eq!(symmetric.function.as_deref(), Some("toeplitz+symmetric"));
        let unknown = head(0, 0, 0);
        assert_eq!(rss(recorded(&[(&[0x46], &unknown)])).unwrap().function, None);
        assert_eq!(rss(recorded(&[])), None);
    }

    #[test]
    fn what_is_hashed_is_named() {
        let words = |bits: u64| {
            let bytes = bits.to_ne_bytes();
            [0, 4].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()))
        };
        let hashed = |bits| {
            let [first, second] = words(bits);
            hash_fields(2, recorded(&[(&[0x29, 2, 0, 0], &[0x29, 2, first, second])])).unwrap()
        };
        assert_eq!(hashed(0xf0), ["src_ip", "dst_ip", "src_port", "dst_port"]);
        assert_eq!(hashed(0x30), ["src_ip", "dst_ip"]);
        assert_eq!(hashed(0), [""; 0]);
        assert!(hashes_ports(&hashed(0xf0)) && !hashes_ports(&hashed(0x70)) && !hashes_ports(&[]));
        assert_eq!(hash_fields(6, recorded(&[])), None);
    }

    #[test]
    fn interfaces_that_are_not_there_tell_nothing() {
        for interface in ["no-such-if", "a-name-longer-than-any-interface", ""] {
            let none = Ethtool::open(interface).unwrap();
            assert_eq!((none.feature("loopback"), none.driver(), none.channels()), (None, None, None));
        }
    }

    #[test]
    fn most_queues_are_combined_ones_or_pairs() {
        let channels = |max_rx, max_tx, max_combined| Channels { max_rx, max_tx, max_combined, combined: 0 };
        assert_eq!(channels(8, 4, 0).most(), 4);
        assert_eq!(channels(0, 0, 63).most(), 63);
    }
}
