//! The network interface: what it is, and whether AF_XDP can work on it.
//!
//! Theory of operation
//! -------------------
//! Everything is read, nothing is changed: from sysfs, and by one ethtool request which has no file. Read
//! once, while the queues are opened.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::error::OpenError;

/// Link-layer type of Ethernet in sysfs (ARPHRD_ETHER).
const TYPE_ETHERNET: u32 = 1;
/// And of the loopback interface (ARPHRD_LOOPBACK).
const TYPE_LOOPBACK: u32 = 772;

/// An interface that is fit for AF_XDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Name.
    pub name: String,
    /// Index in this network namespace.
    pub index: u32,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Queues that both receive and transmit.
    pub queues: u32,
}

impl Nic {
    /// Looks up an interface and checks it.
    ///
    /// # Errors
    /// `NoSuchInterface`, `NotEthernet`, `InterfaceDown`, `GroForwarding`, `Sysfs`.
    pub fn find(name: &str) -> Result<Self, OpenError> {
        let index = if_nametoindex(name).map_err(|_| OpenError::NoSuchInterface {
            interface: name.to_owned(),
            others: names().join(", "),
        })?;
        let kind: u32 = read(name, "type")?;
        if kind != TYPE_ETHERNET {
            let what =
                if kind == TYPE_LOOPBACK { "the loopback interface" } else { "not an Ethernet interface" };
            return Err(OpenError::NotEthernet { interface: name.to_owned(), what });
        }
        let flags: String = read(name, "flags")?;
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
        if flags & libc::IFF_UP as u32 == 0 {
            return Err(OpenError::InterfaceDown { interface: name.to_owned() });
        }
        // Drivers that cannot be asked do not have the feature.
        if feature(name, "rx-udp-gro-forwarding").unwrap_or(false) {
            return Err(OpenError::GroForwarding { interface: name.to_owned() });
        }
        let queues = count_queues(name, "rx-")?.min(count_queues(name, "tx-")?);
        Ok(Self { name: name.to_owned(), index, mtu: read(name, "mtu")?, queues })
    }

    /// A line of advice when the interface is not prepared for busy polling. `None` when it is, or cannot be.
    pub fn busy_poll_advice(&self) -> Option<String> {
        let name = &self.name;
        let defer: u64 = read(name, "napi_defer_hard_irqs").ok()?;
        let timeout: u64 = read(name, "gro_flush_timeout").ok()?;
        (defer == 0 || timeout == 0).then(|| {
            format!(
                "{name}: interrupts compete with busy polling; to defer them: \
                 echo 100 > /sys/class/net/{name}/napi_defer_hard_irqs; \
                 echo 200000 > /sys/class/net/{name}/gro_flush_timeout"
            )
        })
    }
}

fn sysfs(interface: &str) -> PathBuf {
    PathBuf::from("/sys/class/net").join(interface)
}

/// Names of all interfaces of this network namespace, for the one who mistyped one.
fn names() -> Vec<String> {
    let mut names: Vec<String> = nix::net::if_::if_nameindex()
        .map(|list| list.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

fn read<T: std::str::FromStr>(interface: &str, file: &str) -> Result<T, OpenError> {
    let path = sysfs(interface).join(file);
    let failed = |source| OpenError::Sysfs { path: path.display().to_string(), source };
    let text = fs::read_to_string(&path).map_err(failed)?;
    text.trim()
        .parse()
        .map_err(|_| failed(io::Error::new(io::ErrorKind::InvalidData, format!("it says {text:?}"))))
}

fn count_queues(interface: &str, prefix: &str) -> Result<u32, OpenError> {
    let path = sysfs(interface).join("queues");
    let failed = |source| OpenError::Sysfs { path: path.display().to_string(), source };
    let mut count = 0;
    for entry in fs::read_dir(&path).map_err(failed)? {
        count += u32::from(entry.map_err(failed)?.file_name().to_string_lossy().starts_with(prefix));
    }
    Ok(count)
}

// Requests of linux/ethtool.h, each the first word of its structure.
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
/// The string set that names the features.
const ETH_SS_FEATURES: u32 = 4;
/// Words of a name in a string set (ETH_GSTRING_LEN is 32 bytes).
const NAME_WORDS: usize = 8;

/// Whether the interface's offload feature `feature` is on, as `ethtool -k` shows it. `None` when there is no
/// such one.
fn feature(interface: &str, feature: &str) -> Option<bool> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    // struct ethtool_sset_info: command, reserved, 64 bits of which sets are asked for, the length of that
    // set.
    let mask = (1u64 << ETH_SS_FEATURES).to_ne_bytes();
    let [low, high] =
        [0, 4].map(|at| u32::from_ne_bytes([mask[at], mask[at + 1], mask[at + 2], mask[at + 3]]));
    let mut info = [ETHTOOL_GSSET_INFO, 0, low, high, 0];
    ethtool(&socket, interface, &mut info).ok()?;
    let count = info[4] as usize;

    // struct ethtool_gstrings: command, set, number of names, the names.
    let mut names = vec![0; 3 + count * NAME_WORDS];
    names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    ethtool(&socket, interface, &mut names).ok()?;
    let index = names[3..].chunks_exact(NAME_WORDS).position(|name| {
        let bytes: Vec<u8> =
            name.iter().flat_map(|word| word.to_ne_bytes()).take_while(|&byte| byte != 0).collect();
        bytes == feature.as_bytes()
    })?;

    // struct ethtool_gfeatures: command, blocks, and for each 32 features the sets available, requested,
    // active, fixed.
    let blocks = count.div_ceil(32);
    let mut features = vec![0; 2 + blocks * 4];
    features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
    ethtool(&socket, interface, &mut features).ok()?;
    let active = features[2 + index / 32 * 4 + 2];
    Some(active >> (index % 32) & 1 == 1)
}

/// One ethtool request. `request` is the request's structure, as long as its own counts say.
fn ethtool(socket: &OwnedFd, interface: &str, request: &mut [u32]) -> io::Result<()> {
    let name = CString::new(interface)?;
    // SAFETY: `ifreq` is plain data, for which all zeroes are a value.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = name.as_bytes();
    if name.len() >= ifreq.ifr_name.len() {
        return Err(Errno::ENODEV.into());
    }
    for (to, &from) in ifreq.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: the kernel reads and writes as many words as the counts in `request` say, and the callers above
    // made it that long. Both pointers outlive the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut ifreq) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_answered_with_those_that_exist() {
        let error = Nic::find("no-such-if").unwrap_err().to_string();
        assert!(error.contains("no-such-if") && error.contains("lo"), "{error}");
    }

    #[test]
    fn loopback_is_not_for_af_xdp() {
        let error = Nic::find("lo").unwrap_err().to_string();
        assert!(error.contains("loopback") && error.contains("--backend socket"), "{error}");
    }

    #[test]
    fn features_are_read() {
        // Both are fixed for loopback: it never computes checksums, and runs in every network namespace.
        assert_eq!(feature("lo", "loopback"), Some(true));
        assert_eq!(feature("lo", "rx-udp-gro-forwarding"), Some(false));
        assert_eq!(feature("lo", "no-such-feature"), None);
        assert_eq!(feature("a-name-longer-than-any-interface", "loopback"), None);
    }
}
