//! The network interface: what it is, and whether AF_XDP can work on it.
//!
//! Theory of operation
//! -------------------
//! Everything is read, nothing is changed: from sysfs, and by the one ethtool question that has no file. Read
//! once, while the queues are opened.

use std::fs;
use std::io;
use std::path::PathBuf;

use nix::net::if_::if_nametoindex;

use super::error::OpenError;
use crate::host::ethtool::Ethtool;
use crate::host::nic::defer_interrupts;

/// The offload that merges UDP packets of a flow into one before XDP sees them, as ethtool names it.
pub const GRO_FORWARDING: &str = "rx-udp-gro-forwarding";

/// Link-layer type of Ethernet in sysfs (ARPHRD_ETHER).
pub const TYPE_ETHERNET: u32 = 1;
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
        let merges = Ethtool::open(name).and_then(|ethtool| ethtool.feature(GRO_FORWARDING));
        if merges.unwrap_or(false) {
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
            let command = defer_interrupts(name);
            format!("{name}: interrupts compete with busy polling; to defer them: {command}")
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
}
