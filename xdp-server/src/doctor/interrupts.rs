//! Interrupts: who moves them, on which cores the NIC's arrive, and whether they compete with busy polling.
//!
//! A worker that polls never lets go of its core, so the NIC's interrupts belong on another: that of its SMT
//! sibling, or one without a worker. With adaptive polling the same core is as good as any.

use super::root::Root;
use super::row::{Remedy, Row, s};
use super::wanted::Wanted;
use crate::host::cpus::{format_list, parse_list};
use crate::host::nic::{Nic, defer_interrupts};
use crate::host::topology::Poll;

/// One interrupt of the NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Irq {
    /// Its number.
    pub number: u32,
    /// CPUs where it arrives.
    pub cpus: Vec<usize>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Numbers of processes called irqbalance.
    pub irqbalance: Vec<u32>,
    /// Whether systemd runs the host's services.
    pub systemd: bool,
    /// The interrupts of the NIC's queues.
    pub irqs: Vec<Irq>,
    /// `napi_defer_hard_irqs` and `gro_flush_timeout` of the interface.
    pub deferral: Option<(u32, u32)>,
}

impl Facts {
    /// Reads /proc and sysfs.
    pub fn gather(root: &Root, nic: &Nic) -> Self {
        let class = format!("sys/class/net/{}", nic.name);
        let deferral = || {
            let defer = root.number(format!("{class}/napi_defer_hard_irqs"))?;
            Some((defer, root.number(format!("{class}/gro_flush_timeout"))?))
        };
        Self {
            irqbalance: root.processes("irqbalance"),
            systemd: root.path("run/systemd/system").is_dir(),
            irqs: irqs(root, &nic.name),
            deferral: deferral(),
        }
    }

    /// The checks, for AF_XDP.
    pub fn rows(&self, wanted: &Wanted<'_>, nic: &Nic) -> Vec<Row> {
        vec![self.irqbalance(), self.affinity(wanted, nic), self.deferral(wanted, nic)]
    }

    fn irqbalance(&self) -> Row {
        const CHECK: &str = "irqbalance";
        let [pid, ..] = self.irqbalance[..] else { return Row::ok(CHECK, "not running") };
        let found = format!("running (process {pid}): it moves the NIC's interrupts onto workers' cores");
        let command = match self.systemd {
            true => "sudo systemctl stop irqbalance".to_owned(),
            false => format!("sudo kill {pid}"),
        };
        Row::warn(
            CHECK,
            found,
            Remedy::command(command).or("sudo scripts/tune_server.sh apply --only irqbalance"),
        )
    }

    fn affinity(&self, wanted: &Wanted<'_>, nic: &Nic) -> Row {
        const CHECK: &str = "IRQ affinity";
        if self.irqs.is_empty() {
            return Row::ok(CHECK, format!("{} has no interrupts of its own", nic.name));
        }
        let workers = wanted.worker_cpus();
        let disturbs = |irq: &&Irq| irq.cpus.iter().any(|cpu| workers.contains(cpu));
        let ours: Vec<u32> = self.irqs.iter().filter(disturbs).map(|irq| irq.number).collect();
        let all = self.irqs.len();
        if wanted.topology.poll == Poll::Adaptive {
            return Row::ok(
                CHECK,
                format!("{all} interrupt{}; with adaptive polling any core will do", s(all)),
            );
        }
        if ours.is_empty() {
            return Row::ok(CHECK, format!("{all} interrupt{}, none on a worker's core", s(all)));
        }
        let found =
            format!("{} of {all} interrupt{} on cores of workers that never rest", ours.len(), s(all));
        let free: Vec<usize> =
            wanted.host.online.iter().copied().filter(|cpu| !workers.contains(cpu)).collect();
        if free.is_empty() {
            return Row::warn(CHECK, found, Remedy::flags("--poll adaptive"));
        }
        let list: Vec<_> = ours.iter().map(u32::to_string).collect();
        let command = format!(
            "echo {} | sudo tee $(printf '/proc/irq/%d/smp_affinity_list ' {})",
            format_list(&free),
            list.join(" ")
        );
        let queues = wanted.workers();
        let script = format!("sudo scripts/pin_irqs.sh {} --queues {queues}", nic.name);
        Row::warn(CHECK, found, Remedy::command(command).or(script))
    }

    fn deferral(&self, wanted: &Wanted<'_>, nic: &Nic) -> Row {
        const CHECK: &str = "IRQ deferral";
        if wanted.topology.poll == Poll::Adaptive {
            return Row::skip(CHECK, "for busy polling only");
        }
        match self.deferral {
            None => Row::skip(CHECK, "this kernel has none (before 5.11)"),
            Some((defer @ 1.., timeout @ 1..)) => {
                Row::ok(CHECK, format!("napi_defer_hard_irqs {defer}, gro_flush_timeout {timeout} ns"))
            }
            Some(_) => {
                let script = format!("sudo scripts/tune_server.sh apply --iface {} --only napi", nic.name);
                let remedy = Remedy::command(defer_interrupts(&nic.name)).or(script);
                Row::warn(CHECK, "off: interrupts compete with busy polling", remedy)
            }
        }
    }
}

/// The interrupts of the queues of `interface`.
///
/// Drivers name them after the interface (`eth0-TxRx-3`) or after its device (`virtio2-input.0`,
/// `mlx5_comp3@pci:0000:01:00.0`). Where neither is, all that the device has are taken.
fn irqs(root: &Root, interface: &str) -> Vec<Irq> {
    let class = format!("sys/class/net/{interface}");
    let device = std::fs::canonicalize(root.path(format!("{class}/device"))).ok();
    let device = device.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let names = [Some(interface.to_owned()), device];
    let table = root.text("proc/interrupts").unwrap_or_default();
    let mut numbers: Vec<u32> = table
        .lines()
        .filter_map(|line| {
            let (number, rest) = line.split_once(':')?;
            let action = rest.split_whitespace().next_back()?;
            let of_nic = names.iter().flatten().any(|name| is_queue_of(action, name));
            of_nic.then(|| number.trim().parse().ok())?
        })
        .collect();
    if numbers.is_empty() {
        numbers = root
            .names(format!("{class}/device/msi_irqs"))
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
    }
    let irq = |number: u32| {
        let file =
            |name: &str| root.text(format!("proc/irq/{number}/{name}")).filter(|list| !list.is_empty());
        let cpus = file("effective_affinity_list").or_else(|| file("smp_affinity_list"))?;
        Some(Irq { number, cpus: parse_list(&cpus).ok()? })
    };
    numbers.into_iter().filter_map(irq).collect()
}

/// Whether `action`, the name of an interrupt, speaks of a queue of `name`, an interface or a device. A queue
/// has a number, or is the only one and named after a direction.
fn is_queue_of(action: &str, name: &str) -> bool {
    let Some(at) = action.find(name) else { return false };
    let (before, after) = (&action[..at], &action[at + name.len()..]);
    // eth1 is not eth10, and virtio2 not virtio21.
    if after.starts_with(|c: char| c.is_ascii_digit())
        || before.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        return false;
    }
    let queue = if after.is_empty() { before } else { after };
    let numbered = queue.contains(|c: char| c.is_ascii_digit());
    numbered || ["input", "output", "rx", "tx", "TxRx"].iter().any(|word| queue.contains(word))
}

#[cfg(test)]
mod tests {
    use super::super::root::fixture;
    use super::super::row::Status::{Ok as Good, Skip, Warn};
    use super::super::tests::{host, settings, typed};
    use super::*;

    const INTERRUPTS: &str = "           CPU0       CPU1\n\
         37:          0          0 PCI-MSIX-0000:00:03.0   0-edge      virtio2-config\n\
         38:          0       4994 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0\n\
         39:       3552          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0\n\
         40:          0          0 PCI-MSIX-0000:00:04.0   0-edge      virtio21-input.0\n\
         50:          0          0 PCI-MSIX-0000:01:00.0   0-edge      eth1-TxRx-0\n\
         51:          0          0 PCI-MSIX-0000:01:00.0   0-edge      eth10-TxRx-0\n\
        NMI:          0          0   Non-maskable interrupts\n";

    fn root() -> (tempfile::TempDir, Root) {
        let (directory, root) = fixture(&[
            ("proc/interrupts", INTERRUPTS),
            ("proc/irq/38/effective_affinity_list", "1\n"),
            ("proc/irq/39/effective_affinity_list", "\n"),
            ("proc/irq/39/smp_affinity_list", "0-1\n"),
            ("proc/irq/50/effective_affinity_list", "3\n"),
            ("proc/irq/90/effective_affinity_list", "2\n"),
            ("proc/17/comm", "irqbalance\n"),
            ("sys/devices/pci0/virtio2/driver", ""),
            ("sys/class/net/eth2/device/msi_irqs/90", "msix\n"),
            ("sys/class/net/eth0/napi_defer_hard_irqs", "0\n"),
            ("sys/class/net/eth0/gro_flush_timeout", "0\n"),
        ]);
        let device = directory.path().join("sys/devices/pci0/virtio2");
        std::os::unix::fs::symlink(device, directory.path().join("sys/class/net/eth0/device")).unwrap();
        (directory, root)
    }

    #[test]
    fn a_nics_interrupts_are_found_by_its_name_its_device_or_its_list() {
        let (_directory, root) = root();
        let irq = |number, cpus: &[usize]| Irq { number, cpus: cpus.to_vec() };
        assert_eq!(irqs(&root, "eth0"), [irq(38, &[1]), irq(39, &[0, 1])]);
        assert_eq!(irqs(&root, "eth1"), [irq(50, &[3])]);
        assert_eq!(irqs(&root, "eth2"), [irq(90, &[2])]);
        assert_eq!(irqs(&root, "veth0"), []);
        for (action, name, queue) in [
            ("mlx5_comp3@pci:0000:01:00.0", "0000:01:00.0", true),
            ("mlx5_async0@pci:0000:01:00.1", "0000:01:00.0", false),
            ("i40e-eth0-TxRx-12", "eth0", true),
            ("eth0", "eth0", false),
            ("veth0-rx-1", "eth0", false),
        ] {
            assert_eq!(is_queue_of(action, name), queue, "{action}");
        }
    }

    fn row(facts: &Facts, flags: &str, check: &str) -> Row {
        let (settings, host) = (settings(&format!("--iface eth0 {flags}")), host());
        let rows = facts.rows(&Wanted::new(&settings, &host), host.nic.as_ref().unwrap());
        rows.into_iter().find(|row| row.check == check).unwrap()
    }

    #[test]
    fn interrupts_keep_off_cores_that_never_rest() {
        let (_directory, root) = root();
        let facts = Facts::gather(&root, host().nic.as_ref().unwrap());
        let affinity = |flags| row(&facts, flags, "IRQ affinity");
        // Workers on 1 and 2: 38 and 39 may arrive on 1; 0, the master's, and 3 are free of workers.
        let both = affinity("--queues 2 --poll busy");
        assert_eq!(both.status, Warn);
        let command = "echo 0,3 | sudo tee $(printf '/proc/irq/%d/smp_affinity_list ' 38 39)";
        assert_eq!(typed(&both), command);
        assert_eq!(affinity("--queues 1 --cpus 3,2 --poll busy").status, Good);
        assert_eq!(affinity("--queues 2 --poll adaptive").status, Good);
        assert_eq!(typed(&affinity("--queues 4 --poll busy")), "--poll adaptive");
        let virtual_one = Facts { irqs: Vec::new(), ..facts.clone() };
        assert_eq!(row(&virtual_one, "--poll busy", "IRQ affinity").status, Good);
    }

    #[test]
    fn irqbalance_is_stopped_in_the_hosts_way() {
        let (_directory, root) = root();
        let facts = Facts::gather(&root, host().nic.as_ref().unwrap());
        assert_eq!(typed(&row(&facts, "", "irqbalance")), "sudo kill 17");
        let systemd = Facts { systemd: true, ..facts.clone() };
        assert_eq!(typed(&row(&systemd, "", "irqbalance")), "sudo systemctl stop irqbalance");
        let none = Facts { irqbalance: Vec::new(), ..facts };
        assert_eq!(row(&none, "", "irqbalance").status, Good);
    }

    #[test]
    fn deferral_matters_to_busy_polling() {
        let facts = |deferral| Facts { deferral, ..Facts::default() };
        let status = |deferral, flags| row(&facts(deferral), flags, "IRQ deferral").status;
        assert_eq!(status(Some((0, 0)), "--queues 2 --poll adaptive"), Skip);
        assert_eq!(status(Some((0, 200_000)), "--queues 2 --poll busy"), Warn);
        assert_eq!(status(Some((100, 200_000)), "--queues 2 --poll busy"), Good);
        assert_eq!(status(None, "--queues 2 --poll busy"), Skip);
    }
}
