//! The interface: that it is there, its MTU, its queues, and how packets are spread over them.
//!
//! A worker serves one queue, and only queues below the number of workers have one. What arrives on others
//! takes the kernel's slower way, so the spread matters as much as the number.

use std::net::IpAddr;

use super::root::Root;
use super::row::{Remedy, Row, s};
use super::wanted::{Need, Wanted};
use crate::host::ethtool::{Channels, Ethtool};
use crate::host::nic::Nic;
use crate::host::topology::PlanError;
use crate::net::xdp::nic::{GRO_FORWARDING, TYPE_ETHERNET};
use crate::net::xdp::socket::MAX_MTU;

/// Smallest MTU, in bytes, on which a client's first packet (1200 bytes, RFC 9000, section 14) arrives whole;
/// also the smallest of IPv6. Below it handshakes are done in fragments, if at all.
const MIN_MTU: u32 = 1280;

/// An address for those who have none yet: of the range for benchmarks (RFC 2544), which no network routes.
const EXAMPLE_ADDRESS: &str = "198.18.0.1/24";

/// Buckets by which two queues' shares of the RSS table may differ and still be equal: a table of 128 buckets
/// over 47 queues is 2 or 3 each.
const EVEN: usize = 1;

/// What the kernel and the driver say of the interface.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Link-layer type (ARPHRD_*); `None` where sysfs does not tell.
    pub kind: Option<u32>,
    /// Its addresses; `None` if the kernel does not tell.
    pub addresses: Option<Vec<IpAddr>>,
    /// Queues that there could be.
    pub channels: Option<Channels>,
    /// The RSS indirection table: the queue of each bucket.
    pub indirection: Option<Vec<u32>>,
    /// Whether RSS hashes the ports of UDP packets.
    pub hashes_ports: Option<bool>,
    /// Whether the kernel merges UDP packets on receipt, to forward them.
    pub merges: Option<bool>,
}

impl Facts {
    /// Asks about `interface`.
    pub fn gather(root: &Root, interface: &str) -> Self {
        let kind = root.number(format!("sys/class/net/{interface}/type"));
        let addresses = xdp_prog::interface_addresses(interface).ok();
        let Some(ethtool) = Ethtool::open(interface) else {
            return Self { kind, addresses, ..Self::default() };
        };
        Self {
            kind,
            addresses,
            channels: ethtool.channels(),
            indirection: ethtool.indirection(),
            hashes_ports: ethtool.udp_hash_has_ports(),
            merges: ethtool.feature(GRO_FORWARDING),
        }
    }

    /// The checks of an interface that is there.
    pub fn rows(&self, wanted: &Wanted<'_>, nic: &Nic) -> Vec<Row> {
        let mut rows = vec![self.interface(wanted, nic), mtu(wanted, nic)];
        if wanted.uses_xdp() {
            rows.push(self.addresses(wanted, nic));
            rows.push(self.queues(wanted, nic));
            rows.push(self.spread(wanted, nic));
            rows.push(self.hash(nic));
            rows.push(self.gro_forwarding(wanted.xdp, nic));
        }
        rows
    }

    fn interface(&self, wanted: &Wanted<'_>, nic: &Nic) -> Row {
        const CHECK: &str = "interface";
        let name = &nic.name;
        if !nic.up {
            // Whatever the backend, the server refuses to start on it.
            let remedy = Remedy::command(format!("sudo ip link set dev {name} up"));
            return Row::fail(CHECK, format!("{name} is down"), remedy);
        }
        if wanted.uses_xdp() && self.kind.is_some_and(|kind| kind != TYPE_ETHERNET) {
            let found = format!("{name} is no Ethernet interface: AF_XDP is of no use on it");
            return wanted.xdp.broken(CHECK, found, Remedy::flags("--backend socket"));
        }
        Row::ok(CHECK, format!("{name} is up"))
    }

    /// AF_XDP takes packets to addresses of the interface only.
    fn addresses(&self, wanted: &Wanted<'_>, nic: &Nic) -> Row {
        const CHECK: &str = "addresses";
        let listen = wanted.settings.listen.ip();
        if !listen.is_unspecified() {
            return Row::ok(CHECK, format!("{listen}, as asked"));
        }
        let Some(all) = &self.addresses else { return Row::skip(CHECK, "the kernel does not tell") };
        let served: Vec<String> =
            all.iter().filter(|ip| listen.is_ipv6() || ip.is_ipv4()).map(ToString::to_string).collect();
        if !served.is_empty() {
            return Row::ok(CHECK, served.join(", "));
        }
        let family = if listen.is_ipv4() { "IPv4" } else { "IP" };
        let command = format!("sudo ip address add {EXAMPLE_ADDRESS} dev {}", nic.name);
        let remedy = Remedy::command(command).or("the same with an address of your network");
        wanted.xdp.broken(CHECK, format!("no {family} address to serve"), remedy)
    }

    fn queues(&self, wanted: &Wanted<'_>, nic: &Nic) -> Row {
        const CHECK: &str = "queues";
        let (name, asked, has) = (&nic.name, wanted.workers() as u32, nic.queues());
        if asked <= has {
            return Row::ok(CHECK, format!("{asked} of {has} with a worker"));
        }
        let found = format!("{has}, and {asked} are wanted");
        let most = self.channels.map_or(has, |channels| channels.most());
        // Whatever the backend is, but for sockets by name, the server refuses to start.
        if most >= asked {
            let command = self.set_channels(name, asked);
            let script = format!("sudo scripts/set_queues.sh {name} {asked}");
            return Row::fail(CHECK, found, Remedy::command(command).or(script));
        }
        let found = format!("{found}; the driver has at most {most}");
        Row::fail(CHECK, found, Remedy::flags(format!("--queues {has}")))
    }

    /// The command that gives the interface `count` queues.
    fn set_channels(&self, name: &str, count: u32) -> String {
        match self.channels {
            Some(Channels { max_combined: 0, .. }) => format!("sudo ethtool -L {name} rx {count} tx {count}"),
            _ => format!("sudo ethtool -L {name} combined {count}"),
        }
    }

    fn spread(&self, wanted: &Wanted<'_>, nic: &Nic) -> Row {
        const CHECK: &str = "RSS spread";
        let (name, served) = (&nic.name, wanted.workers());
        let Some(table) = &self.indirection else {
            let beyond = (nic.rx_queues as usize).saturating_sub(served);
            if beyond == 0 {
                return Row::ok(CHECK, "each queue has a worker; the driver has no table to look into");
            }
            let found = format!("{beyond} queue{} may get packets and have no worker", s(beyond));
            let remedy = Remedy::command(self.set_channels(name, served as u32));
            return Row::warn(CHECK, found, remedy.or(format!("--queues {}", nic.queues())));
        };
        let mut buckets = vec![0usize; served];
        let mut beyond = 0;
        for &queue in table {
            match buckets.get_mut(queue as usize) {
                Some(count) => *count += 1,
                None => beyond += 1,
            }
        }
        let (least, most) =
            buckets.iter().fold((usize::MAX, 0), |(least, most), &n| (least.min(n), most.max(n)));
        let remedy = Remedy::command(format!("sudo ethtool -X {name} equal {served}"))
            .or(format!("sudo scripts/set_queues.sh {name} {served}"));
        let all = table.len();
        if beyond > 0 {
            let found = format!("{beyond} of {all} buckets lead to queues without a worker");
            return Row::warn(CHECK, found, remedy);
        }
        if most - least > EVEN {
            let found = format!("unequal: {least} to {most} of {all} buckets a queue");
            return Row::warn(CHECK, found, remedy);
        }
        Row::ok(CHECK, format!("{all} buckets over {served} queue{}, equally", s(served)))
    }

    fn hash(&self, nic: &Nic) -> Row {
        const CHECK: &str = "RSS hash";
        let name = &nic.name;
        match self.hashes_ports {
            // Some drivers answer although they have nothing to spread over.
            _ if self.indirection.is_none() || nic.rx_queues == 1 => {
                Row::skip(CHECK, "nothing is spread by it")
            }
            None => Row::skip(CHECK, "the driver has none to look at"),
            Some(true) => Row::ok(CHECK, "covers the ports of UDP: many clients at one address are spread"),
            Some(false) => Row::warn(
                CHECK,
                "leaves out the ports of UDP: all clients at one address meet on one queue",
                Remedy::command(format!(
                    "sudo ethtool -N {name} rx-flow-hash udp4 sdfn && sudo ethtool -N {name} rx-flow-hash udp6 sdfn"
                )),
            ),
        }
    }

    fn gro_forwarding(&self, need: Need, nic: &Nic) -> Row {
        const CHECK: &str = "GRO forwarding";
        match self.merges {
            Some(true) => need.broken(
                CHECK,
                "on: packets are merged before AF_XDP sees them, which QUIC does not survive",
                Remedy::command(format!("sudo ethtool -K {} {GRO_FORWARDING} off", nic.name))
                    .or(format!("sudo scripts/tune_server.sh apply --iface {} --only gro", nic.name)),
            ),
            _ => Row::ok(CHECK, "off"),
        }
    }
}

/// The row of an interface that is not there.
pub fn missing(misfit: &PlanError, wanted: &Wanted<'_>) -> Option<Row> {
    let PlanError::NoSuchInterface { iface, there } = misfit else { return None };
    let other = wanted.host.interfaces.iter().find(|name| *name != "lo").map_or("lo", String::as_str);
    let found = format!("there is no {iface}; there are: {there}");
    Some(Row::fail("interface", found, Remedy::flags(format!("--iface {other}"))))
}

fn mtu(wanted: &Wanted<'_>, nic: &Nic) -> Row {
    use crate::cli::XdpMode;
    const CHECK: &str = "MTU";
    let (name, mtu) = (&nic.name, nic.mtu);
    let remedy = || Remedy::command(format!("sudo ip link set dev {name} mtu 1500"));
    if mtu < MIN_MTU {
        let found = format!("{mtu}: too small for QUIC, whose clients begin with packets of {MIN_MTU} bytes");
        return Row::warn(CHECK, found, remedy());
    }
    if wanted.uses_xdp() && mtu > MAX_MTU {
        let found = format!("{mtu}: zero-copy frames hold {MAX_MTU}");
        return match wanted.settings.xdp_mode {
            XdpMode::ZeroCopy => wanted.xdp.broken(CHECK, found, remedy()),
            _ => Row::warn(CHECK, found, remedy()),
        };
    }
    Row::ok(CHECK, mtu.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::row::Status::{self, Fail, Ok as Good, Skip, Warn};
    use super::super::tests::{host, settings, typed};
    use super::*;

    const CHANNELS: Channels = Channels { max_rx: 0, max_tx: 0, max_combined: 8, combined: 4 };

    fn facts() -> Facts {
        Facts {
            kind: Some(TYPE_ETHERNET),
            addresses: Some(vec!["fe80::1".parse().unwrap()]),
            channels: Some(CHANNELS),
            indirection: Some((0..128).map(|bucket| bucket % 3).collect()),
            hashes_ports: Some(true),
            merges: Some(false),
        }
    }

    fn row(facts: &Facts, flags: &str, check: &str, change: impl FnOnce(&mut Nic)) -> Row {
        let (settings, mut host) = (settings(flags), host());
        change(host.nic.as_mut().unwrap());
        let wanted = Wanted::new(&settings, &host);
        let rows = facts.rows(&wanted, host.nic.as_ref().unwrap());
        rows.into_iter().find(|row| row.check == check).unwrap()
    }

    fn status(facts: &Facts, flags: &str, check: &str) -> (Status, Option<String>) {
        let row = row(facts, flags, check, |_| {});
        (row.status, row.remedy.is_some().then(|| typed(&row).to_owned()))
    }

    #[test]
    fn a_good_interface_has_good_rows() {
        let (settings, host) = (settings("--iface eth0 --queues 3"), host());
        let rows = facts().rows(&Wanted::new(&settings, &host), host.nic.as_ref().unwrap());
        assert!(rows.iter().all(|row| row.status == Good && row.remedy.is_none()), "{rows:?}");
        assert_eq!(rows.len(), 7);
        // Sockets do not care about queues.
        let settings = super::super::tests::settings("--iface eth0 --backend socket");
        assert_eq!(facts().rows(&Wanted::new(&settings, &host), host.nic.as_ref().unwrap()).len(), 2);
    }

    #[test]
    fn down_and_missing_interfaces_fail_whatever_the_backend() {
        for flags in ["--iface eth0", "--iface eth0 --backend socket"] {
            let down = row(&facts(), flags, "interface", |nic| nic.up = false);
            assert_eq!((down.status, typed(&down)), (Fail, "sudo ip link set dev eth0 up"));
        }
        let (settings, mut host) = (settings("--iface eth7"), host());
        host.nic = None;
        let wanted = Wanted::new(&settings, &host);
        let row = missing(wanted.misfit.as_ref().unwrap(), &wanted).unwrap();
        assert_eq!((row.status, typed(&row)), (Fail, "--iface eth0"));
        assert_eq!(row.found, "there is no eth7; there are: eth0, lo");
    }

    #[test]
    fn what_is_not_ethernet_is_for_sockets() {
        let loopback = Facts { kind: Some(772), ..facts() };
        assert_eq!(status(&loopback, "--iface eth0", "interface").0, Warn);
        assert_eq!(status(&loopback, "--iface eth0 --backend xdp", "interface").0, Fail);
        assert_eq!(status(&loopback, "--iface eth0 --backend socket", "interface").0, Good);
    }

    #[test]
    fn there_must_be_an_address_of_the_family_listened_on() {
        let addresses = |flags: &str| status(&facts(), &format!("--iface eth0 {flags}"), "addresses");
        assert_eq!(addresses(""), (Good, None));
        assert_eq!(addresses("--listen [2001:db8::1]:1"), (Good, None));
        let command = "sudo ip address add 198.18.0.1/24 dev eth0".to_owned();
        assert_eq!(addresses("--listen 0.0.0.0:1 --backend xdp"), (Fail, Some(command)));
        let none = Facts { addresses: Some(Vec::new()), ..facts() };
        assert_eq!(status(&none, "--iface eth0", "addresses").0, Warn);
    }

    #[test]
    fn queues_are_added_where_the_driver_can() {
        let status = |facts: &Facts, flags| status(facts, flags, "queues");
        assert_eq!(status(&facts(), "--iface eth0 --queues 4"), (Good, None));
        let combined = status(&facts(), "--iface eth0 --queues 6");
        assert_eq!(combined, (Fail, Some("sudo ethtool -L eth0 combined 6".into())));
        let apart = Channels { max_rx: 8, max_tx: 8, max_combined: 0, combined: 0 };
        let apart = Facts { channels: Some(apart), ..facts() };
        let pairs = status(&apart, "--iface eth0 --queues 6");
        assert_eq!(pairs, (Fail, Some("sudo ethtool -L eth0 rx 6 tx 6".into())));
        let too_many = status(&facts(), "--iface eth0 --queues 9");
        assert_eq!(too_many, (Fail, Some("--queues 4".into())));
        let unknown = Facts { channels: None, ..facts() };
        assert_eq!(status(&unknown, "--iface eth0 --queues 6").1, Some("--queues 4".into()));
    }

    #[test]
    fn buckets_are_counted() {
        let spread = |table: Option<Vec<u32>>, flags| {
            status(&Facts { indirection: table, ..facts() }, flags, "RSS spread")
        };
        let equal = |queues: u32| Some((0..128).map(|bucket| bucket % queues).collect());
        assert_eq!(spread(equal(3), "--iface eth0 --queues 3"), (Good, None));
        let beyond = spread(equal(4), "--iface eth0 --queues 3");
        assert_eq!(beyond, (Warn, Some("sudo ethtool -X eth0 equal 3".into())));
        let unequal = spread(equal(2), "--iface eth0 --queues 3");
        assert_eq!(unequal, (Warn, Some("sudo ethtool -X eth0 equal 3".into())));
        assert_eq!(spread(None, "--iface eth0 --queues 4"), (Good, None));
        let unseen = spread(None, "--iface eth0 --queues 3");
        assert_eq!(unseen, (Warn, Some("sudo ethtool -L eth0 combined 3".into())));
    }

    #[test]
    fn a_hash_without_ports_and_merging_are_found() {
        let bad = Facts { hashes_ports: Some(false), merges: Some(true), ..facts() };
        let (hash, command) = status(&bad, "--iface eth0", "RSS hash");
        assert!(
            hash == Warn && command.unwrap().starts_with("sudo ethtool -N eth0 rx-flow-hash udp4 sdfn &&")
        );
        let off = Some("sudo ethtool -K eth0 rx-udp-gro-forwarding off".to_owned());
        assert_eq!(status(&bad, "--iface eth0", "GRO forwarding"), (Warn, off.clone()));
        assert_eq!(status(&bad, "--iface eth0 --backend xdp", "GRO forwarding"), (Fail, off));
        let mute = Facts { hashes_ports: None, merges: None, ..facts() };
        assert_eq!(status(&mute, "--iface eth0", "RSS hash"), (Skip, None));
        let no_table = Facts { indirection: None, ..bad };
        assert_eq!(status(&no_table, "--iface eth0", "RSS hash"), (Skip, None));
        assert_eq!(status(&mute, "--iface eth0", "GRO forwarding"), (Good, None));
    }

    #[test]
    fn the_mtu_fits_quic_and_frames() {
        let mtu = |mtu, flags| row(&facts(), flags, "MTU", |nic| nic.mtu = mtu).status;
        assert_eq!(mtu(1500, "--iface eth0 --xdp-mode zerocopy"), Good);
        assert_eq!(mtu(1279, "--iface eth0 --backend socket"), Warn);
        assert_eq!(mtu(MAX_MTU + 1, "--iface eth0"), Warn);
        assert_eq!(mtu(9000, "--iface eth0 --backend socket"), Good);
        assert_eq!(mtu(9000, "--iface eth0 --backend xdp --xdp-mode zerocopy"), Fail);
    }
}
