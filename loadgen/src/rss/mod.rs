//! Connections dealt out to the server's NIC queues on purpose, instead of by chance.
//!
//! # Theory of operation
//!
//! A server of one worker a queue is as fast as its busiest queue. Which queue a connection lands on is
//! decided by its source port, through the NIC's receive side scaling: Toeplitz hash of addresses and ports,
//! low bits of it, indirection table ([`toeplitz`], [`table`]). All of that the server tells ([`config`]), so
//! a load generator can choose source ports ([`ports`]) for an equal, known number of connections on each
//! queue, or for all of them on one. On veth there is no hash: the sender's transmit queue decides, which the
//! sender's kernel chooses, and which can be observed ([`txqueue`]).
//!
//! [`Alignment::from_args`] checks the flags before anything starts. [`Alignment::plan`], called once the
//! server's address is known, binds the sockets; whoever deals out clients takes them in their order.

mod config;
mod ports;
mod table;
mod toeplitz;
mod txqueue;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use self::config::{Fields, RssConfig, Steering};
pub use self::ports::{Plan, QueueShare, skew};
use self::ports::{candidates, unless_in_use};
use self::table::Table;
use self::toeplitz::{HashInput, Key};
use self::txqueue::Observer;
use crate::endpoint;

/// Flags of the alignment with the server's NIC queues.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "NIC queues")]
pub struct AlignArgs {
    /// Choose source ports so that every queue of the server's NIC gets the same number of connections. Needs
    /// to know how that NIC spreads packets: --rss-config, or --rss-key and --rss-indirection. There are as
    /// many sockets as --num-endpoints says, and up to a few for each queue more, so that they come out even
    #[arg(long)]
    align_queues: bool,

    /// Load this queue of the server only
    #[arg(long, value_name = "QUEUE", requires = "align_queues")]
    only_queue: Option<u16>,

    /// What `xdp-server rss --json --iface IFACE` printed on the server; - is standard input
    #[arg(long, value_name = "FILE", requires = "align_queues")]
    rss_config: Option<PathBuf>,

    /// RSS key of the server's NIC, as `ethtool -x` shows it there [default: of --rss-config]
    #[arg(long, value_name = "HEX", requires = "align_queues")]
    rss_key: Option<Key>,

    /// Its indirection table: 0,1,2,3,... or even:N (128 entries that lead to queues 0 to N-1 in turn) or
    /// even:N:ENTRIES [default: of --rss-config]
    #[arg(long, value_name = "TABLE", requires = "align_queues")]
    rss_indirection: Option<Table>,

    /// What it hashes of UDP packets, as `ethtool -n IFACE rx-flow-hash udp4` shows: sdfn is addresses and
    /// ports [default: of --rss-config, without that sdfn]
    #[arg(long, value_name = "FIELDS", requires = "align_queues")]
    rss_fields: Option<HashInput>,
}

/// Why connections cannot be dealt out to queues.
#[derive(Debug, thiserror::Error)]
pub enum AlignError {
    /// No configuration at all.
    #[error(
        "--align-queues must know how the server's NIC spreads packets; on the server type\n  \
         sudo xdp-server rss --json --iface IFACE > rss.json\nand here give --rss-config rss.json (or \
         --rss-key and --rss-indirection, as ethtool -x IFACE shows them)"
    )]
    NoConfig,
    /// A configuration that cannot be read.
    #[error("--rss-config {file}: {error}")]
    Read {
        /// The file.
        file: String,
        /// Why not.
        error: io::Error,
    },
    /// A file that is no configuration.
    #[error("--rss-config {file} is not what `xdp-server rss --json` prints: {error}")]
    Parse {
        /// The file.
        file: String,
        /// What is wrong, and where.
        error: serde_json::Error,
    },
    /// The number of queues is missing where it is all that counts.
    #[error(
        "the RSS configuration has \"tx_selected\" but no number of \"queues\"; save it again on the server"
    )]
    NoQueues,
    /// Another hash function.
    #[error(
        "{iface} hashes by {function}; alignment knows toeplitz only. On the server type: sudo ethtool -X \
         {iface} hfunc toeplitz, and save its RSS configuration again"
    )]
    Function {
        /// The server's interface.
        iface: String,
        /// Its function.
        function: String,
    },
    /// The driver does not tell the key.
    #[error("the RSS key of {0} is unknown: its driver does not tell; if you know it, give --rss-key")]
    NoKey(String),
    /// The driver does not tell the table.
    #[error(
        "the RSS table of {0} is unknown: its driver does not tell; if you know it, give --rss-indirection"
    )]
    NoTable(String),
    /// A key that ends before the input does.
    #[error("an RSS key of {bytes} bytes is too short: {input} bytes are hashed, which takes {}", input + 4)]
    ShortKey {
        /// Bytes of the key.
        bytes: usize,
        /// Bytes that are hashed.
        input: usize,
    },
    /// The driver does not tell what is hashed.
    #[error(
        "it is unknown what {iface} hashes of {flow}: its driver does not tell; if you do, give --rss-fields"
    )]
    NoFields {
        /// The server's interface.
        iface: String,
        /// ethtool's name of UDP over IPv4 or IPv6.
        flow: &'static str,
    },
    /// Neither of the two inputs that RSS knows.
    #[error(
        "{iface} hashes {fields} of {flow}; alignment knows addresses and ports only. On the server type: \
         sudo ethtool -N {iface} rx-flow-hash {flow} sdfn, and save its RSS configuration again"
    )]
    OtherFields {
        /// The server's interface.
        iface: String,
        /// ethtool's name of UDP over IPv4 or IPv6.
        flow: &'static str,
        /// What is hashed.
        fields: String,
    },
    /// The source port does not matter.
    #[error(
        "{iface} hashes {flow} by addresses alone: all connections from {local} land on queue {queue}, \
         whatever their ports. On the server type: sudo ethtool -N {iface} rx-flow-hash {flow} sdfn, and \
         save its RSS configuration again"
    )]
    NoPorts {
        /// The server's interface.
        iface: String,
        /// ethtool's name of UDP over IPv4 or IPv6.
        flow: &'static str,
        /// This host's address.
        local: IpAddr,
        /// The queue.
        queue: u16,
    },
    /// `--only-queue` names a queue that gets nothing.
    #[error("--only-queue {wanted}: the server's NIC spreads packets over queues {known}")]
    NoSuchQueue {
        /// The queue asked for.
        wanted: u16,
        /// Those there are.
        known: String,
    },
    /// All candidates are used up.
    #[error(
        "only {found} free source ports lead to queue {queue}, {wanted} are wanted; give fewer \
         --num-endpoints, or type: sudo sysctl net.ipv4.ip_local_port_range='1024 65535'"
    )]
    TooFewPorts {
        /// A queue that lacks some.
        queue: u16,
        /// Ports found for it.
        found: usize,
        /// Ports asked for.
        wanted: usize,
    },
    /// No socket, for another reason than a port in use.
    #[error("cannot open a socket for each source port: {0}; see `ulimit -n`")]
    Bind(io::Error),
    /// No route.
    #[error("no address of this host leads to {0}: {1}")]
    NoRoute(SocketAddr, io::Error),
    /// The interface that leads to the server cannot be told.
    #[error("which interface has the address {0} cannot be told: {1}")]
    NoInterface(IpAddr, io::Error),
    /// The interface chooses transmit queues by CPU.
    #[error(
        "{0} chooses its transmit queue by CPU (XPS), so no source port keeps its queue; type: for map in \
         /sys/class/net/{0}/queues/tx-*/xps_cpus; do echo 0 | sudo tee $map; done"
    )]
    Xps(String),
    /// The kernel's choice cannot be observed.
    #[error("cannot observe which transmit queue {interface} uses: {error}; that takes root, or CAP_NET_RAW")]
    Observe {
        /// The interface that leads to the server.
        interface: String,
        /// Why not.
        error: io::Error,
    },
    /// What was sent did not leave.
    #[error("nothing was seen to leave {interface} from port {port}; does a firewall of this host drop it?")]
    Unseen {
        /// The interface that leads to the server.
        interface: String,
        /// The source port.
        port: u16,
    },
}

/// A checked wish to deal out connections to queues. It holds the configuration itself, not the file's name:
/// processes that share the load get it whole, and only the first one reads standard input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Alignment {
    config: RssConfig,
    only_queue: Option<u16>,
    /// Clients that other processes deal out to the queues before this one goes on.
    before: usize,
}

impl Alignment {
    /// What the flags ask for; `None` if not to align. Reads the configuration, which may be standard input:
    /// call it once.
    ///
    /// # Errors
    /// The flags name no configuration, or it cannot be read.
    pub fn from_args(args: &AlignArgs) -> Result<Option<Self>, AlignError> {
        if !args.align_queues {
            return Ok(None);
        }
        let mut config = match &args.rss_config {
            Some(path) => RssConfig::read(path)?,
            None if args.rss_key.is_none() && args.rss_indirection.is_none() => {
                return Err(AlignError::NoConfig);
            }
            None => {
                RssConfig { fields: Some(Fields::both(HashInput::AddressesAndPorts)), ..RssConfig::default() }
            }
        };
        // What is given by hand counts for more than what the server told.
        config.key = args.rss_key.clone().or(config.key);
        config.indirection = args.rss_indirection.clone().or(config.indirection);
        config.fields = args.rss_fields.map(Fields::both).or(config.fields);
        Ok(Some(Self { config, only_queue: args.only_queue, before: 0 }))
    }

    /// The same for a process that goes on where others end, which deal out `before` clients: so the queues
    /// get equal numbers of all processes' clients, not each process's odd ones to the first queues.
    pub fn after(self, before: usize) -> Self {
        Self { before, ..self }
    }

    /// Binds sockets for clients of `server`, each of a source port whose queue is known, the same number for
    /// each queue; at least `endpoints`, and a multiple of `threads`, so that they can be dealt out to
    /// threads in turn.
    ///
    /// # Errors
    /// The queue does not depend on the source port, or cannot be told; or ports or descriptors ran out.
    pub fn plan(&self, server: SocketAddr, endpoints: usize, threads: usize) -> Result<Plan, AlignError> {
        let local = local_address(server).map_err(|error| AlignError::NoRoute(server, error))?;
        let bind = |port| endpoint::bind(server, port);
        match self.config.steering(local, server)? {
            Steering::Hash(hashing) => {
                let queues = self.queues(hashing.queues())?;
                // Without ports in the hash, any port tells the queue of all.
                if !hashing.by_port()
                    && let Some(queue) = hashing.queue(0)
                    && queues != [queue]
                {
                    return Err(self.config.without_ports(local, queue));
                }
                let per_queue = per_queue(endpoints, queues.len(), threads);
                Plan::choose(queues, per_queue, candidates(), |port| Ok(hashing.queue(port)), bind)
            }
            Steering::TransmitQueue(count) => {
                let queues = self.queues((0..count).collect())?;
                let observer = Observer::new(local, server, count)?;
                let observed = |port| match unless_in_use(bind(port))? {
                    Some(socket) => observer.queue(&socket),
                    None => Ok(None),
                };
                let per_queue = per_queue(endpoints, queues.len(), threads);
                Plan::choose(queues, per_queue, candidates(), observed, bind)
            }
        }
    }

    /// The queues to load, of those there are, the one first that is to get the first client.
    fn queues(&self, mut known: Vec<u16>) -> Result<Vec<u16>, AlignError> {
        match self.only_queue {
            None => {
                let first = self.before % known.len().max(1);
                known.rotate_left(first);
                Ok(known)
            }
            Some(queue) if known.contains(&queue) => Ok(vec![queue]),
            Some(wanted) => {
                let known = known.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
                Err(AlignError::NoSuchQueue { wanted, known })
            }
        }
    }
}

/// Sockets for each queue, so that they are at least `endpoints` in total and a multiple of `threads`.
fn per_queue(endpoints: usize, queues: usize, threads: usize) -> usize {
    // Where thread and queue numbers have a common divisor, the rest of the threads' suffices.
    let step = threads / gcd(threads, queues);
    endpoints.div_ceil(queues).next_multiple_of(step)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The address that packets of this host to `server` come from.
fn local_address(server: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // Sends nothing; the kernel looks up the route.
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}
