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

/// The string set that names the features.
const ETH_SS_FEATURES: u32 = 4;
/// Words of a name in a string set (ETH_GSTRING_LEN is 32 bytes).
const NAME_WORDS: usize = 8;
/// Words of `struct ethtool_drvinfo`: the command, five names of 32 bytes, 12 bytes reserved, five counts.
const DRVINFO_WORDS: usize = 1 + 5 * NAME_WORDS + 3 + 5;
/// Flow types of UDP over IPv4 and over IPv6.
const UDP_FLOWS: [u32; 2] = [0x02, 0x06];
/// Bits of a flow's hash: the first and the second half of the first word behind the IP header, so the ports.
const RXH_L4_PORTS: u32 = 1 << 6 | 1 << 7;

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
        let has_ports = |flow| {
            // The start of struct ethtool_rxnfc: command, flow type, 64 bits of what is hashed.
            let mut flow = [ETHTOOL_GRXFH, flow, 0, 0];
            self.ask(&mut flow).ok()?;
            let hashed = flow[2] | flow[3]; // the bits are low ones, in whichever order the words are
            Some(hashed & RXH_L4_PORTS == RXH_L4_PORTS)
        };
        let [v4, v6] = UDP_FLOWS.map(has_ports);
        Some(v4? && v6?)
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
