//! Connection tracking on the port: whether the kernel remembers each client, and has room for it.
//!
//! Where a firewall tracks connections, each client takes an entry, each packet a look-up; and when the table
//! is full new clients are dropped without a word. A rule that leaves the port out (NOTRACK) ends all of it.
//! Packets of AF_XDP pass by.

use std::process::Command;

use serde_json::Value;

use super::root::Root;
use super::row::{Remedy, Row};
use super::wanted::Wanted;
use crate::report::grouped;

const FOLDER: &str = "proc/sys/net/netfilter";

/// Room that is advised, in entries: what `scripts/tune_server.sh` sets, four times the reference
/// deployment's connections. An entry takes some 300 bytes once it is used.
const ADVISED_ROOM: u64 = 2_097_152;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Entries in use, and most that there may be; `None` if the kernel does not track here.
    pub table: Option<(u64, u64)>,
    /// A rule leaves the port out; `None` if the rules cannot be read.
    pub untracked: Option<bool>,
    /// Which program can add such a rule.
    pub tool: Option<Tool>,
}

/// A program that edits the firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// nft.
    Nftables,
    /// iptables.
    Iptables,
}

impl Facts {
    /// Reads /proc, and asks the firewall if there is one to ask. Rules are shown to root alone.
    pub fn gather(root: &Root, port: u16) -> Self {
        let number = |name: &str| root.number(format!("{FOLDER}/nf_conntrack_{name}"));
        let table: Option<(u64, u64)> = number("count").zip(number("max"));
        if table.is_none_or(|(count, _)| count == 0) {
            return Self { table, ..Self::default() }; // rules make no difference then
        }
        // The outer `None`: there is no such program; the inner one: it shows nothing to us.
        let output = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().ok()?;
            Some(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
        };
        let nft = output("nft", &["-j", "list", "ruleset"]);
        // Without naming a table: naming one that is not there would make the kernel load it.
        let iptables = output("iptables-save", &[]);
        let tool = match (&nft, &iptables) {
            (Some(_), _) => Some(Tool::Nftables),
            (None, Some(_)) => Some(Tool::Iptables),
            (None, None) => None,
        };
        let by_nft = nft.map(|rules| Some(nft_leaves_out(&rules?, port)));
        let by_iptables = iptables.map(|rules| Some(iptables_leaves_out(&rules?, port)));
        let answers = [by_nft, by_iptables];
        let untracked = match answers.iter().flatten().any(|answer| *answer == Some(true)) {
            true => Some(true),
            false => answers.iter().flatten().all(Option::is_some).then_some(false),
        };
        Self { table, untracked, tool }
    }

    /// The check.
    pub fn row(&self, wanted: &Wanted<'_>) -> Row {
        const CHECK: &str = "conntrack";
        let port = wanted.settings.listen.port();
        let Some((count, max)) = self.table else { return Row::ok(CHECK, "not loaded") };
        if self.untracked == Some(true) {
            return Row::ok(CHECK, format!("loaded, and a rule leaves port {port} out"));
        }
        let found = format!("{} of {} entries in use", grouped(count), grouped(max));
        if count == 0 {
            return Row::ok(CHECK, "loaded, and tracks nothing here");
        }
        if self.untracked.is_none() {
            return Row::skip(
                CHECK,
                format!("{found}; whether a rule leaves port {port} out, only root can see"),
            );
        }
        let clients = wanted.workers() as u64 * u64::from(wanted.settings.max_connections_per_worker);
        let room = ADVISED_ROOM.max(count + clients);
        let larger = format!("sudo sysctl -w net.netfilter.nf_conntrack_max={room}");
        match self.tool {
            Some(Tool::Nftables) => {
                let found = format!("{found}, and clients of port {port} take one each");
                Row::warn(CHECK, found, Remedy::command(nft_rule(port)).or(larger))
            }
            Some(Tool::Iptables) => {
                let found = format!("{found}, and clients of port {port} take one each");
                Row::warn(CHECK, found, Remedy::command(iptables_rule(port)).or(larger))
            }
            None if max >= room => Row::ok(CHECK, found),
            None => {
                let found = format!("{found}; {} clients may come", grouped(clients));
                Row::warn(
                    CHECK,
                    found,
                    Remedy::command(larger).or("sudo scripts/tune_server.sh apply --only conntrack"),
                )
            }
        }
    }
}

/// The command that leaves `port` out, in a table of its own that is easily deleted.
fn nft_rule(port: u16) -> String {
    let chain = |name: &str, hook: &str| {
        format!("add chain inet xdp_server {name} {{ type filter hook {hook} priority raw; }}")
    };
    let rules = [
        "add table inet xdp_server".to_owned(),
        chain("arriving", "prerouting"),
        chain("leaving", "output"),
        format!("add rule inet xdp_server arriving udp dport {port} notrack"),
        format!("add rule inet xdp_server leaving udp sport {port} notrack"),
    ];
    format!("sudo nft '{}'", rules.join("; "))
}

/// The same, by iptables.
fn iptables_rule(port: u16) -> String {
    format!(
        "for t in iptables ip6tables; do sudo $t -t raw -A PREROUTING -p udp --dport {port} -j NOTRACK; \
         sudo $t -t raw -A OUTPUT -p udp --sport {port} -j NOTRACK; done"
    )
}

/// Whether a rule of nft's JSON does not track packets to UDP port `port`.
fn nft_leaves_out(rules: &str, port: u16) -> bool {
    let Ok(rules) = serde_json::from_str::<Value>(rules) else { return false };
    let is_to_port = |statement: &Value| {
        let matched = &statement["match"];
        let field = &matched["left"]["payload"];
        field["protocol"] == "udp" && field["field"] == "dport" && matched["right"] == port
    };
    let statements = |object: &Value| object["rule"]["expr"].as_array().cloned().unwrap_or_default();
    rules["nftables"].as_array().into_iter().flatten().map(statements).any(|statements| {
        let untracks = statements.iter().any(|statement| statement.get("notrack").is_some());
        untracks && statements.iter().any(is_to_port)
    })
}

/// Whether a rule in the format of iptables-save does not track packets to UDP port `port`.
fn iptables_leaves_out(rules: &str, port: u16) -> bool {
    rules.lines().any(|line| {
        let line = format!("{line} ");
        line.starts_with("-A PREROUTING ")
            && line.contains(" -p udp ")
            && line.contains(&format!(" --dport {port} "))
            && (line.contains(" -j NOTRACK ") || line.contains(" --notrack "))
    })
}

#[cfg(test)]
mod tests {
    use super::super::root::fixture;
    use super::super::row::Status::{Ok as Good, Skip, Warn};
    use super::super::tests::{host, settings, typed};
    use super::*;

    fn row(facts: &Facts, flags: &str) -> Row {
        let (settings, host) = (settings(flags), host());
        facts.row(&Wanted::new(&settings, &host))
    }

    #[test]
    fn a_table_that_is_used_needs_room_or_a_rule() {
        assert_eq!(row(&Facts::default(), "").found, "not loaded");
        let table = |count, max| Facts { table: Some((count, max)), untracked: Some(false), tool: None };
        assert_eq!(row(&table(0, 65_536), "").status, Good);
        let short = row(&table(7, 65_536), "");
        assert_eq!(
            (short.status, typed(&short)),
            (Warn, "sudo sysctl -w net.netfilter.nf_conntrack_max=2097152")
        );
        assert_eq!(row(&table(7, 2_097_152), "").status, Good);
        let more = row(&table(7, 2_097_152), "--queues 64");
        assert_eq!(typed(&more), "sudo sysctl -w net.netfilter.nf_conntrack_max=4194311");
        let nft = Facts { tool: Some(Tool::Nftables), ..table(7, 2_097_152) };
        let rule = row(&nft, "--listen [::]:5000");
        assert!(typed(&rule).starts_with("sudo nft '") && typed(&rule).contains("udp dport 5000 notrack"));
        let iptables = Facts { tool: Some(Tool::Iptables), ..nft.clone() };
        assert!(typed(&row(&iptables, "")).contains("--dport 4433 -j NOTRACK"));
        assert_eq!(row(&Facts { untracked: Some(true), ..nft.clone() }, "").status, Good);
        assert_eq!(row(&Facts { untracked: None, ..nft }, "").status, Skip);
    }

    #[test]
    fn rules_of_both_tools_are_understood() {
        let nft = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "inet", "table": "t", "name": "c"}},
            {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": [
                {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 4433}},
                {"notrack": null}]}}]}"#;
        assert!(nft_leaves_out(nft, 4433));
        assert!(!nft_leaves_out(nft, 443) && !nft_leaves_out("", 4433));
        assert!(!nft_leaves_out(&nft.replace("notrack", "accept"), 4433));
        let save = "*raw\n-A PREROUTING -p udp -m udp --dport 4433 -j NOTRACK\nCOMMIT\n";
        assert!(iptables_leaves_out(save, 4433) && !iptables_leaves_out(save, 443));
        assert!(iptables_leaves_out("-A PREROUTING -p udp -m udp --dport 9 -j CT --notrack", 9));
        assert!(!iptables_leaves_out("-A PREROUTING -p tcp -m tcp --dport 9 -j NOTRACK", 9));
    }

    #[test]
    fn proc_is_read() {
        let (_directory, root) = fixture(&[
            ("proc/sys/net/netfilter/nf_conntrack_count", "12\n"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "262144\n"),
        ]);
        assert_eq!(Facts::gather(&root, 1).table, Some((12, 262_144)));
        assert_eq!(Facts::gather(&fixture(&[]).1, 1), Facts::default());
    }
}
