//! How the server's NIC spreads packets over its queues, as the server tells it (`xdp-server rss --json`) or
//! flags do, and what of that decides a given flow's queue.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::AlignError;
use super::table::Table;
use super::toeplitz::{HashInput, Key, input};

/// Most bytes of a configuration that are read: tables of 16,384 entries, printed with a space and a line
/// each. Only there so that a wrong file, or a stream without end, is refused.
const LONGEST: u64 = 1 << 20;

/// What `xdp-server rss --json --iface IFACE` prints; fields that this program does not know are left alone,
/// and what the server does not know is null there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RssConfig {
    /// The server's interface.
    pub iface: Option<String>,
    /// Its receive queues.
    pub queues: Option<u16>,
    /// Its RSS key.
    pub key: Option<Key>,
    /// Its indirection table.
    pub indirection: Option<Table>,
    /// Its hash function, by ethtool's name.
    pub function: Option<String>,
    /// What of a packet it hashes.
    pub fields: Option<Fields>,
    /// Whether the sender's transmit queue decides instead, as on veth.
    pub tx_selected: bool,
}

/// The names of the hashed fields: src_ip, dst_ip, src_port, dst_port.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Fields {
    /// Of UDP over IPv4.
    pub udp4: Option<Vec<String>>,
    /// Of UDP over IPv6.
    pub udp6: Option<Vec<String>>,
}

/// What decides on which queue of the server a packet of a flow arrives.
#[derive(Clone, Debug)]
pub enum Steering {
    /// The NIC's hash, which can be computed.
    Hash(Hashing),
    /// The transmit queue that the sender's kernel chooses, on interfaces with this many; it can be observed.
    TransmitQueue(u16),
}

/// All of a hash's parts but the source port.
#[derive(Clone, Debug)]
pub struct Hashing {
    key: Key,
    table: Table,
    hashed: HashInput,
    local: IpAddr,
    server: SocketAddr,
}

impl RssConfig {
    /// Reads a configuration from a file, or from standard input if that is `-`.
    ///
    /// # Errors
    /// It cannot be read, or is no such JSON.
    pub fn read(path: &Path) -> Result<Self, AlignError> {
        let file = path.display().to_string();
        let mut text = String::new();
        let read = match path.to_str() {
            Some("-") => io::stdin().take(LONGEST).read_to_string(&mut text),
            _ => File::open(path).and_then(|opened| opened.take(LONGEST).read_to_string(&mut text)),
        };
        read.map_err(|error| AlignError::Read { file: file.clone(), error })?;
        serde_json::from_str(&text).map_err(|error| AlignError::Parse { file, error })
    }

    /// What decides on the queue of packets from `local` to `server`.
    ///
    /// # Errors
    /// The configuration does not tell, or tells of a hash that is not Toeplitz's or leaves the ports out.
    pub fn steering(&self, local: IpAddr, server: SocketAddr) -> Result<Steering, AlignError> {
        if self.tx_selected {
            return match self.queues {
                None | Some(0) => Err(AlignError::NoQueues),
                Some(queues) => Ok(Steering::TransmitQueue(queues)),
            };
        }
        if let Some(function) = &self.function
            && function != "toeplitz"
        {
            return Err(AlignError::Function { iface: self.iface(), function: function.clone() });
        }
        let key = self.key.clone().ok_or_else(|| AlignError::NoKey(self.iface()))?;
        let table = self.indirection.clone().ok_or_else(|| AlignError::NoTable(self.iface()))?;
        let hashing = Hashing { hashed: self.hashed(local)?, key, table, local, server };
        let input = hashing.input(0);
        match hashing.key.hash(&input) {
            Some(_) => Ok(Steering::Hash(hashing)),
            None => Err(AlignError::ShortKey { bytes: hashing.key.len(), input: input.len() }),
        }
    }

    /// What is hashed of UDP packets of this address family.
    fn hashed(&self, local: IpAddr) -> Result<HashInput, AlignError> {
        let fields = self.fields.as_ref();
        let (flow, names) = match local.to_canonical() {
            IpAddr::V4(_) => ("udp4", fields.and_then(|fields| fields.udp4.as_ref())),
            IpAddr::V6(_) => ("udp6", fields.and_then(|fields| fields.udp6.as_ref())),
        };
        let names = names.ok_or_else(|| AlignError::NoFields { iface: self.iface(), flow })?;
        let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        match sorted[..] {
            ["dst_ip", "dst_port", "src_ip", "src_port"] => Ok(HashInput::AddressesAndPorts),
            ["dst_ip", "src_ip"] => Ok(HashInput::Addresses),
            _ => Err(AlignError::OtherFields { iface: self.iface(), flow, fields: names.join(", ") }),
        }
    }

    /// The server's interface, for commands that are to be typed there.
    fn iface(&self) -> String {
        self.iface.clone().unwrap_or_else(|| "IFACE".to_owned())
    }

    /// The error of a hash that leaves the ports out.
    pub(super) fn without_ports(&self, local: IpAddr, queue: u16) -> AlignError {
        let flow = if local.to_canonical().is_ipv4() { "udp4" } else { "udp6" };
        AlignError::NoPorts { iface: self.iface(), flow, local, queue }
    }
}

impl Hashing {
    fn input(&self, port: u16) -> Vec<u8> {
        input(SocketAddr::new(self.local, port), self.server, self.hashed)
    }

    /// The queue of packets from this source port.
    pub fn queue(&self, port: u16) -> Option<u16> {
        Some(self.table.queue(self.key.hash(&self.input(port))?))
    }

    /// All queues that the NIC uses.
    pub fn queues(&self) -> Vec<u16> {
        self.table.queues()
    }

    /// Whether the source port matters.
    pub fn by_port(&self) -> bool {
        self.hashed == HashInput::AddressesAndPorts
    }
}

impl Fields {
    /// These, for both address families.
    pub fn both(hashed: HashInput) -> Self {
        let names: &[&str] = match hashed {
            HashInput::AddressesAndPorts => &["src_ip", "dst_ip", "src_port", "dst_port"],
            HashInput::Addresses => &["src_ip", "dst_ip"],
        };
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        Self { udp4: Some(names.clone()), udp6: Some(names) }
    }
}
