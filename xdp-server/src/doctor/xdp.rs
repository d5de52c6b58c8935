//! XDP on the interface: what the driver can do, and whether another program is there already.

use super::root::Root;
use super::row::{Remedy, Row};
use super::wanted::Wanted;
use crate::cli::XdpMode;
use crate::host::ethtool::Ethtool;
use crate::host::nic::Nic;
use xdp_prog::{Attached, Inspection, Mode};

/// First kernel whose drivers say what they can.
const TELLS: (u32, u32) = (6, 3);

/// Drivers that have AF_XDP without copies, for kernels that do not tell: those with it in Linux 6.2.
const ZERO_COPY_DRIVERS: [&str; 8] =
    ["i40e", "ice", "igb", "igc", "ixgbe", "mlx5_core", "stmmac", "dpaa2-eth"];

/// Drivers that run XDP programs themselves, but copy for AF_XDP; for kernels that do not tell.
const NATIVE_DRIVERS: [&str; 11] =
    ["veth", "virtio_net", "bnxt_en", "ena", "gve", "hv_netvsc", "mlx4_core", "nfp", "qede", "sfc", "tun"];

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The driver's name.
    pub driver: Option<String>,
    /// Kernel version.
    pub kernel: (u32, u32),
    /// What the kernel says of the interface; `None` if it does not answer.
    pub inspection: Option<Inspection>,
    /// The process that holds the attached program, and its name.
    pub holder: Option<(u32, String)>,
}

/// The best way of AF_XDP that a driver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ability {
    Generic,
    Native,
    ZeroCopy,
}

impl Facts {
    /// Asks about `nic`.
    pub fn gather(root: &Root, nic: &Nic, kernel: (u32, u32)) -> Self {
        let inspection = xdp_prog::inspect(nic.index);
        let attached = inspection.as_ref().and_then(|inspection| inspection.attached.as_ref());
        Self {
            driver: nic.driver.clone().or_else(|| Ethtool::open(&nic.name)?.driver()),
            kernel,
            holder: attached.and_then(|program| holder(root, program.id)),
            inspection,
        }
    }

    /// The checks.
    pub fn rows(&self, wanted: &Wanted<'_>, nic: &Nic) -> Vec<Row> {
        let driver = self.driver.as_deref().unwrap_or("not known");
        vec![Row::ok("driver", driver), self.mode(wanted), self.program(wanted, nic)]
    }

    fn ability(&self) -> Ability {
        let driver = self.driver.as_deref().unwrap_or_default();
        match &self.inspection {
            Some(inspection) if self.kernel >= TELLS => match (inspection.native, inspection.zero_copy) {
                (true, true) => Ability::ZeroCopy,
                (true, false) => Ability::Native,
                (false, _) => Ability::Generic,
            },
            _ if ZERO_COPY_DRIVERS.contains(&driver) => Ability::ZeroCopy,
            _ if NATIVE_DRIVERS.contains(&driver) => Ability::Native,
            _ => Ability::Generic,
        }
    }

    fn mode(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "XDP mode";
        let driver = self.driver.as_deref().unwrap_or("the driver");
        let (asked, ability) = (wanted.settings.xdp_mode, self.ability());
        let best = match ability {
            Ability::Generic => "generic",
            Ability::Native => "native, copied",
            Ability::ZeroCopy => "native, zero-copy",
        };
        let needs = match asked {
            XdpMode::ZeroCopy => Ability::ZeroCopy,
            XdpMode::Copy => Ability::Native,
            XdpMode::Auto | XdpMode::Generic => Ability::Generic,
        };
        if ability < needs {
            let lower = if ability == Ability::Native { "copy" } else { "generic" };
            let found = format!("{driver} has {best} at best");
            return wanted.xdp.broken(CHECK, found, Remedy::flags(format!("--xdp-mode {lower}")));
        }
        if asked == XdpMode::Auto && ability == Ability::Generic {
            let found =
                format!("generic only: {driver} has no XDP of its own, so each packet is copied late");
            return Row::warn(CHECK, found, Remedy::flags("--xdp-mode generic").or("another driver or NIC"));
        }
        let mode = match asked {
            XdpMode::Auto | XdpMode::ZeroCopy => best,
            XdpMode::Copy => "native, copied, as asked",
            XdpMode::Generic => "generic, as asked",
        };
        Row::ok(CHECK, mode)
    }

    fn program(&self, wanted: &Wanted<'_>, nic: &Nic) -> Row {
        const CHECK: &str = "XDP program";
        let Some(inspection) = &self.inspection else {
            return Row::skip(CHECK, "the kernel does not tell this process which is attached");
        };
        let Some(Attached { id, name, mode }) = &inspection.attached else {
            return Row::ok(CHECK, "none is attached: the interface is free");
        };
        let name = name.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
        let taken = format!("another is attached ({name}id {id})");
        let (found, remedy) = match &self.holder {
            Some((pid, process)) => {
                (format!("{taken} by {process}, process {pid}"), Remedy::command(format!("sudo kill {pid}")))
            }
            None => {
                let place = match mode {
                    Some(Mode::Native) => "xdpdrv",
                    Some(Mode::Generic) => "xdpgeneric",
                    None => "xdpoffload",
                };
                let command = format!("sudo ip link set dev {} {place} off", nic.name);
                (
                    taken,
                    Remedy::command(command)
                        .or(format!("who holds it: sudo bpftool link show | grep -w {id}")),
                )
            }
        };
        wanted.xdp.broken(CHECK, found, remedy)
    }
}

/// The process that has a BPF link with program `id` open. Root sees all processes, others their own.
fn holder(root: &Root, id: u32) -> Option<(u32, String)> {
    let is_link = |text: &str| {
        let has = |name: &str, value: Option<String>| {
            text.lines()
                .filter_map(|line| line.split_once(":"))
                .any(|(key, found)| key == name && value.as_ref().is_none_or(|value| found.trim() == value))
        };
        has("link_type", None) && has("prog_id", Some(id.to_string()))
    };
    root.names("proc").iter().filter_map(|name| name.parse().ok()).find_map(|pid: u32| {
        let folder = format!("proc/{pid}/fdinfo");
        let holds = root
            .names(&folder)
            .iter()
            .any(|file| root.text(format!("{folder}/{file}")).is_some_and(|text| is_link(&text)));
        let name = || root.text(format!("proc/{pid}/comm")).unwrap_or_else(|| "a process".into());
        holds.then(|| (pid, name()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::root::fixture;
    use super::super::row::Status::{Fail, Ok as Good, Skip, Warn};
    use super::super::tests::{host, settings, typed};
    use super::*;

    fn facts(native: bool, zero_copy: bool) -> Facts {
        let inspection = Inspection { native, zero_copy, attached: None };
        Facts { driver: Some("veth".into()), kernel: (6, 18), inspection: Some(inspection), holder: None }
    }

    fn row(facts: &Facts, flags: &str, index: usize) -> Row {
        let (settings, host) = (settings(flags), host());
        facts.rows(&Wanted::new(&settings, &host), host.nic.as_ref().unwrap()).remove(index)
    }

    #[test]
    fn the_mode_is_the_drivers_best_or_the_one_asked_for() {
        let mode = |facts: &Facts, flags: &str| {
            let row = row(facts, &format!("--iface eth0 {flags}"), 1);
            let remedy = row.remedy.is_some().then(|| typed(&row).to_owned());
            (row.status, remedy)
        };
        let give = |flags: &str| Some(flags.to_owned());
        assert_eq!(mode(&facts(true, true), ""), (Good, None));
        assert_eq!(mode(&facts(true, false), ""), (Good, None));
        assert_eq!(mode(&facts(false, false), ""), (Warn, give("--xdp-mode generic")));
        assert_eq!(mode(&facts(false, false), "--xdp-mode generic"), (Good, None));
        assert_eq!(mode(&facts(true, false), "--xdp-mode zerocopy"), (Warn, give("--xdp-mode copy")));
        let named = "--backend xdp --xdp-mode zerocopy";
        assert_eq!(mode(&facts(true, false), named), (Fail, give("--xdp-mode copy")));
        assert_eq!(mode(&facts(false, false), named), (Fail, give("--xdp-mode generic")));
        assert_eq!(mode(&facts(true, true), named), (Good, None));
    }

    #[test]
    fn older_kernels_are_judged_by_the_driver() {
        let old = |driver: &str| Facts { kernel: (6, 2), driver: Some(driver.into()), ..facts(false, false) };
        assert_eq!(old("ice").ability(), Ability::ZeroCopy);
        assert_eq!(old("virtio_net").ability(), Ability::Native);
        assert_eq!(old("e1000").ability(), Ability::Generic);
    }

    #[test]
    fn another_program_is_named_and_how_it_goes() {
        let mut facts = facts(true, true);
        assert_eq!(row(&facts, "--iface eth0", 2).status, Good);
        let attached = Attached { id: 42, name: Some("filter".into()), mode: Some(Mode::Native) };
        facts.inspection.as_mut().unwrap().attached = Some(attached);
        let taken = row(&facts, "--iface eth0 --backend xdp", 2);
        assert_eq!((taken.status, typed(&taken)), (Fail, "sudo ip link set dev eth0 xdpdrv off"));
        facts.holder = Some((77, "xdp-server".into()));
        let held = row(&facts, "--iface eth0", 2);
        assert_eq!((held.status, typed(&held)), (Warn, "sudo kill 77"));
        assert_eq!(held.found, "another is attached (filter, id 42) by xdp-server, process 77");
        facts.inspection = None;
        assert_eq!(row(&facts, "--iface eth0", 2).status, Skip);
    }

    #[test]
    fn the_holder_of_a_link_is_found() {
        let (_directory, root) = fixture(&[
            ("proc/5/fdinfo/3", "pos:\t0\nflags:\t02\n"),
            ("proc/6/fdinfo/4", "link_type:\txdp\nlink_id:\t9\nprog_id:\t421\n"),
            ("proc/7/fdinfo/3", "prog_type:\t6\nprog_id:\t42\n"),
            ("proc/8/fdinfo/9", "pos:\t0\nlink_type:\txdp\nlink_id:\t3\nprog_id:\t42\nifindex:\t2\n"),
            ("proc/8/comm", "xdp-server\n"),
        ]);
        assert_eq!(holder(&root, 42), Some((8, "xdp-server".into())));
        assert_eq!(holder(&root, 1), None);
    }
}
