//! Network interfaces: what the plan and the XDP backend must know of one. Addresses are not among it.
//!
//! That an interface exists is asked of the kernel (`if_nametoindex`), which answers for this process's
//! network namespace. The rest is read from sysfs, which shows the namespace that it was mounted in: usually,
//! not always, the same. Nothing here changes an interface.

use std::fs;
use std::path::Path;

use nix::net::if_;

/// Flag of an interface that is administratively up (`IFF_UP` of netdevice(7)).
const IFF_UP: u32 = 1;

/// Value of an interface's `napi_defer_hard_irqs` for busy polling: looks in vain after which the kernel
/// takes interrupts up again. What the documentation of DPDK's AF_XDP driver gives, with the timeout below.
/// Larger: a server that has ended leaves the timer running for as long. 0: interrupts compete with polling.
pub const DEFER_HARD_IRQS: u32 = 2;

/// And of its `gro_flush_timeout`: nanoseconds without a poll after which the kernel looks by itself. Several
/// turns of a worker. Shorter than one brings the interrupts back; longer delays packets after a stall.
pub const GRO_FLUSH_TIMEOUT_NS: u32 = 200_000;

/// The command that prepares `interface` for busy polling, as `scripts/stages/napi.sh` does.
pub fn defer_interrupts(interface: &str) -> String {
    let class = format!("/sys/class/net/{interface}");
    format!(
        "echo {DEFER_HARD_IRQS} | sudo tee {class}/napi_defer_hard_irqs && \
         echo {GRO_FLUSH_TIMEOUT_NS} | sudo tee {class}/gro_flush_timeout"
    )
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// The kernel's number of it.
    pub index: u32,
    /// It is administratively up (`ip link set IF up`); whether there is a carrier is another matter.
    pub up: bool,
    /// Name of the driver; virtual interfaces have none.
    pub driver: Option<String>,
    /// Receive queues in use.
    pub rx_queues: u32,
    /// Transmit queues in use.
    pub tx_queues: u32,
    /// NUMA node of the device; `None` if it has none or the host has only one.
    pub numa_node: Option<u32>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
}

impl Nic {
    /// Queues that an AF_XDP socket can use in both directions.
    pub fn queues(&self) -> u32 {
        self.rx_queues.min(self.tx_queues)
    }
}

/// An interface that exists cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// sysfs does not know it.
    #[error(
        "interface {0} exists, but {1} does not show it: /sys belongs to another network namespace; \
         enter the namespace with `ip netns exec`, which also remounts /sys"
    )]
    OtherNamespace(String, String),
}

/// Reads interface `name`; `None` if there is no such interface in this network namespace.
///
/// # Errors
/// When it exists and `sysfs` does not show it.
pub fn probe(sysfs: &Path, name: &str) -> Result<Option<Nic>, NicError> {
    let Ok(index) = if_::if_nametoindex(name) else { return Ok(None) };
    let dir = sysfs.join("class/net").join(name);
    // The same name may be another interface in another namespace; the index tells, almost always.
    if number(&dir.join("ifindex")) != Some(index) {
        return Err(NicError::OtherNamespace(name.to_owned(), dir.display().to_string()));
    }
    Ok(Some(describe(&dir, name, index)))
}

/// Reads what the sysfs directory `dir` says of an interface. What it does not say is taken for absent.
fn describe(dir: &Path, name: &str, index: u32) -> Nic {
    let flags =
        text(&dir.join("flags")).and_then(|text| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok());
    let driver = fs::read_link(dir.join("device/driver")).ok();
    Nic {
        name: name.to_owned(),
        index,
        up: flags.is_some_and(|flags| flags & IFF_UP != 0),
        driver: driver.and_then(|link| Some(link.file_name()?.to_str()?.to_owned())),
        rx_queues: count_queues(dir, "rx-"),
        tx_queues: count_queues(dir, "tx-"),
        numa_node: number(&dir.join("device/numa_node")), // -1, for none, does not parse
        mtu: number(&dir.join("mtu")).unwrap_or(0),
    }
}

/// Names of all interfaces of this network namespace, sorted. Empty if the kernel does not tell.
pub fn list() -> Vec<String> {
    let Ok(interfaces) = if_::if_nameindex() else { return Vec::new() };
    let mut names: Vec<String> =
        interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn count_queues(dir: &Path, prefix: &str) -> u32 {
    let Ok(entries) = fs::read_dir(dir.join("queues")) else { return 0 };
    let of_kind = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    u32::try_from(of_kind.count()).unwrap_or(u32::MAX)
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &Path) -> Option<u32> {
    text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_what_sysfs_says() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for (file, content) in [("flags", "0x1003\n"), ("mtu", "1500\n"), ("device/numa_node", "1\n")] {
            fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
            fs::write(dir.join(file), content).unwrap();
        }
        for queue in ["rx-0", "rx-1", "rx-2", "tx-0", "tx-1"] {
            fs::create_dir_all(dir.join("queues").join(queue)).unwrap();
        }
        std::os::unix::fs::symlink("../../bus/pci/drivers/ice", dir.join("device/driver")).unwrap();

        let nic = describe(dir, "eth7", 7);
        let expected = Nic {
            name: "eth7".into(),
            index: 7,
            up: true,
            driver: Some("ice".into()),
            rx_queues: 3,
            tx_queues: 2,
            numa_node: Some(1),
            mtu: 1500,
        };
        assert_eq!((nic.queues(), nic), (2, expected));

        fs::write(dir.join("flags"), "0x1002\n").unwrap();
        fs::write(dir.join("device/numa_node"), "-1\n").unwrap();
        let nic = describe(dir, "eth7", 7);
        assert_eq!((nic.up, nic.numa_node), (false, None));
    }

    #[test]
    fn what_is_advised_is_what_the_script_does() {
        let script = include_str!("../../../scripts/stages/napi.sh");
        for (file, value) in
            [("napi_defer_hard_irqs", DEFER_HARD_IRQS), ("gro_flush_timeout", GRO_FLUSH_TIMEOUT_NS)]
        {
            assert!(script.contains(&format!("/{file}\" at_least {value}\n")), "{file}");
            assert!(
                defer_interrupts("eth0")
                    .contains(&format!("echo {value} | sudo tee /sys/class/net/eth0/{file}"))
            );
        }
    }

    #[test]
    fn loopback_is_real_and_an_unknown_name_is_none() {
        let sysfs = Path::new("/sys");
        let lo = probe(sysfs, "lo").unwrap().unwrap();
        assert!(lo.index > 0 && lo.rx_queues >= 1 && lo.mtu >= 1280 && lo.driver.is_none(), "{lo:?}");
        assert_eq!(probe(sysfs, "no-such-iface").unwrap(), None);
        assert!(list().contains(&"lo".to_owned()));
    }

    #[test]
    fn a_sysfs_of_another_namespace_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let error = probe(empty.path(), "lo").unwrap_err().to_string();
        assert!(error.contains("ip netns exec"), "{error}");
    }
}
