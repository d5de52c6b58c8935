//! `xdp-server rss`: how an interface chooses the receive queue of a client's packets.
//!
//! A NIC hashes addresses and ports of each packet with a secret key, and looks the hash up in a table of
//! queues (receive side scaling). Who knows hash, key and table can choose source ports so that each queue,
//! and so each worker, gets equally many connections: load generators do, from the JSON that is printed here.
//! veth has no hash of its own: what leaves by transmit queue i of one end comes in on receive queue i of the
//! other, and the sender's kernel chooses it.
//!
//! Facts are gathered first ([`Facts::gather`], by `host::ethtool`), and judged and shown after. Nothing is
//! changed, and no privilege is needed. [`run`] is all of it; called once, by `main`, instead of the server.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::host::ethtool::{Ethtool, hashes_ports};
use crate::host::nic::{self, NicError};

/// Exit status where queues are not chosen by addresses and ports, or nobody tells how; as doctor's warnings.
const EXIT_WARNING: u8 = 1;
/// Exit status where there is nothing to show; as doctor's failures.
const EXIT_FAILURE: u8 = 2;

/// Buckets of the table in one line of the text: with queues of three digits it has 73 columns.
const BUCKETS_PER_LINE: usize = 16;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
enum RssError {
    #[error("there is no interface {iface}; give --iface one of: {there}")]
    NoSuchInterface { iface: String, there: String },
    #[error(transparent)]
    Nic(#[from] NicError),
}

/// What the hash covers; `None` where the driver does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Fields {
    udp4: Option<Vec<&'static str>>,
    udp6: Option<Vec<&'static str>>,
}

/// How queues are chosen. What the driver does not tell is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Facts {
    iface: String,
    driver: Option<String>,
    /// Receive queues in use.
    queues: u32,
    /// In hexadecimal, bytes apart by colons.
    key: Option<String>,
    /// The queue of each bucket.
    indirection: Option<Vec<u32>>,
    function: Option<String>,
    fields: Fields,
    /// The sender's transmit queue is the receive queue.
    tx_selected: bool,
}

impl Facts {
    fn gather(iface: &str) -> Result<Self, RssError> {
        let there = || nic::list().join(", ");
        let nic = nic::probe(Path::new(crate::host::SYSFS), iface)?
            .ok_or_else(|| RssError::NoSuchInterface { iface: iface.to_owned(), there: there() })?;
        let ethtool = Ethtool::open(iface);
        let driver = ethtool.as_ref().and_then(Ethtool::driver).or(nic.driver);
        let rss = ethtool.as_ref().and_then(Ethtool::rss);
        let [udp4, udp6] = ethtool.as_ref().map(Ethtool::udp_hash).unwrap_or_default();
        let (function, key, table) = match rss {
            Some(rss) => (rss.function, rss.key, rss.table),
            None => Default::default(),
        };
        let hex: Vec<String> = key.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            iface: iface.to_owned(),
            queues: nic.rx_queues,
            key: (!hex.is_empty()).then(|| hex.join(":")),
            indirection: (!table.is_empty()).then_some(table),
            function,
            fields: Fields { udp4, udp6 },
            tx_selected: driver.as_deref() == Some("veth"),
            driver,
        })
    }

    /// What keeps clients from being spread over the queues, or from knowing how they are; with remedies.
    fn warnings(&self) -> Vec<String> {
        let iface = &self.iface;
        if self.queues <= 1 || self.tx_selected {
            return Vec::new();
        }
        let mut warnings = Vec::new();
        let untold: Vec<&str> = [
            ("hash function", self.function.is_none()),
            ("key", self.key.is_none()),
            ("indirection table", self.indirection.is_none()),
            ("hashed fields", self.fields.udp4.is_none() && self.fields.udp6.is_none()),
        ]
        .into_iter()
        .filter_map(|(what, untold)| untold.then_some(what))
        .collect();
        if !untold.is_empty() {
            warnings.push(format!(
                "the driver does not tell its {}: clients cannot be aligned with queues; a newer driver may \
                 tell, `ethtool -i {iface}` shows its version",
                untold.join(", ")
            ));
        }
        for (flow, fields) in [("udp4", &self.fields.udp4), ("udp6", &self.fields.udp6)] {
            if fields.as_ref().is_some_and(|fields| !hashes_ports(fields)) {
                warnings.push(format!(
                    "{flow}: ports are not hashed, so all clients of one address share a queue; type: \
                     sudo ethtool -N {iface} rx-flow-hash {flow} sdfn"
                ));
            }
        }
        if let Some(table) = &self.indirection {
            let idle: Vec<String> = (0..self.queues)
                .filter(|queue| !table.contains(queue))
                .map(|queue| queue.to_string())
                .collect();
            if !idle.is_empty() {
                warnings.push(format!(
                    "the table leads to no queue {}; for all of them alike, type: sudo ethtool -X {iface} \
                     equal {}",
                    idle.join(", "),
                    self.queues
                ));
            }
        }
        warnings
    }

    /// The text for people, all lines ended.
    fn text(&self) -> String {
        let or_untold =
            |what: &Option<String>| what.clone().unwrap_or_else(|| "not told by the driver".into());
        let mut lines = vec![
            format!("interface  {} ({})", self.iface, self.driver.as_deref().unwrap_or("driver unknown")),
            format!("queues     {} receive", self.queues),
        ];
        if self.tx_selected {
            lines
                .push("chosen by  the sender: veth hands transmit queue i to receive queue i, no RSS".into());
        } else {
            let covered = |fields: &Option<Vec<&str>>| match fields.as_deref() {
                None => "not told by the driver".to_owned(),
                Some([]) => "nothing".to_owned(),
                Some(fields) => fields.join(", "),
            };
            lines.push(format!("hash       {}", or_untold(&self.function)));
            let key = or_untold(&self.key);
            // A key of 40 or 52 bytes, 26 to a line: 78 characters.
            let bytes: Vec<&str> = key.split(':').collect();
            for (index, line) in bytes.chunks(26).enumerate() {
                lines.push(format!("{:<11}{}", if index == 0 { "key" } else { "" }, line.join(":")));
            }
            lines.push(format!("UDP/IPv4   {}", covered(&self.fields.udp4)));
            lines.push(format!("UDP/IPv6   {}", covered(&self.fields.udp6)));
            match &self.indirection {
                None => lines.push("table      not told by the driver".into()),
                Some(table) => lines.extend(table_lines(table)),
            }
        }
        lines.extend(self.warnings().iter().map(|warning| format!("warning: {warning}")));
        lines.join("\n") + "\n"
    }
}

/// The table, with the number of each line's first bucket.
fn table_lines(table: &[u32]) -> Vec<String> {
    let mut lines = vec![format!("table      {} buckets, the queue of each:", table.len())];
    for (line, queues) in table.chunks(BUCKETS_PER_LINE).enumerate() {
        let queues: String = queues.iter().map(|queue| format!("{queue:>4}")).collect();
        lines.push(format!("{:>8}:{queues}", line * BUCKETS_PER_LINE));
    }
    lines
}

/// Prints how `iface` chooses queues, as text or as one JSON object, and returns the status to exit with: 0
/// if by addresses and ports, or by the sender, or if there is one queue; 1 if otherwise, or not told; 2 if
/// there is no such interface.
pub fn run(iface: &str, json: bool) -> ExitCode {
    let facts = match Facts::gather(iface) {
        Ok(facts) => facts,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    // A reader that goes away (`| head`) does not change the facts.
    let _ = match json {
        true => {
            let json = serde_json::to_string(&facts).expect("strings and numbers are JSON");
            facts.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
            writeln!(io::stdout(), "{json}")
        }
        false => io::stdout().write_all(facts.text().as_bytes()),
    };
    if facts.warnings().is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_WARNING) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic() -> Facts {
        let fields = Some(vec!["src_ip", "dst_ip", "src_port", "dst_port"]);
        Facts {
            iface: "eth0".into(),
            driver: Some("ice".into()),
            queues: 4,
            key: Some(vec!["6d"; 52].join(":")),
            indirection: Some((0..18).map(|bucket| bucket % 4).collect()),
            function: Some("toeplitz".into()),
            fields: Fields { udp4: fields.clone(), udp6: fields },
            tx_selected: false,
        }
    }

    #[test]
    fn the_text_says_everything_in_a_hundred_columns() {
        let half = vec!["6d"; 26].join(":");
        let expected = format!(
            "\
interface  eth0 (ice)
queues     4 receive
hash       toeplitz
key        {half}
           {half}
UDP/IPv4   src_ip, dst_ip, src_port, dst_port
UDP/IPv6   src_ip, dst_ip, src_port, dst_port
table      18 buckets, the queue of each:
       0:   0   1   2   3   0   1   2   3   0   1   2   3   0   1   2   3
      16:   0   1
"
        );
        assert_eq!(nic().text(), expected);
        assert!(expected.lines().all(|line| line.len() <= 100));
    }

    #[test]
    fn json_has_what_load_generators_read() {
        let json = serde_json::to_value(Facts { indirection: Some(vec![0, 1]), ..nic() }).unwrap();
        let fields = ["src_ip", "dst_ip", "src_port", "dst_port"];
        let key = vec!["6d"; 52].join(":");
        let expected = serde_json::json!({
            "iface": "eth0", "driver": "ice", "queues": 4, "key": key, "indirection": [0, 1],
            "function": "toeplitz", "fields": { "udp4": fields, "udp6": fields }, "tx_selected": false,
        });
        assert_eq!(json, expected);
        let silent =
            Facts { key: None, indirection: None, function: None, fields: Fields::default(), ..nic() };
        let json = serde_json::to_value(silent).unwrap();
        for name in ["key", "indirection", "function"] {
            assert!(json[name].is_null(), "{json}");
        }
    }

    #[test]
    fn what_is_amiss_has_a_remedy() {
        assert_eq!(nic().warnings(), [""; 0]);
        let mut facts = nic();
        facts.fields.udp6 = Some(vec!["src_ip", "dst_ip"]);
        assert!(facts.warnings()[0].contains("type: sudo ethtool -N eth0 rx-flow-hash udp6 sdfn"));
        facts = nic();
        facts.indirection = Some(vec![0, 2]);
        assert!(facts.warnings()[0].contains("no queue 1, 3;"), "{:?}", facts.warnings());
        assert!(facts.warnings()[0].ends_with("sudo ethtool -X eth0 equal 4"));
        facts = Facts { key: None, function: None, ..nic() };
        assert!(facts.warnings()[0].contains("does not tell its hash function, key:"));
        assert!(facts.text().contains("\nwarning: the driver does not tell"));
        facts.queues = 1;
        assert_eq!(facts.warnings(), [""; 0], "there is nothing to choose");
    }

    #[test]
    fn loopback_has_one_queue_and_a_strangers_name_is_refused_with_the_list() {
        let lo = Facts::gather("lo").unwrap();
        assert_eq!((lo.queues, &lo.key, lo.tx_selected), (1, &None, false));
        let error = Facts::gather("no-such-if").unwrap_err().to_string();
        assert!(error.contains("no interface no-such-if") && error.contains("lo"), "{error}");
    }
}
