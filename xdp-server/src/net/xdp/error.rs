//! Why AF_XDP could not be opened, and what to do about it.

use std::io;

use super::socket::{MAX_MTU, SocketError};

/// Why the AF_XDP backend could not be opened. Each message says what failed, why, and what to type.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No interface of that name.
    #[error("there is no interface {interface}; there are: {others}")]
    NoSuchInterface {
        /// As asked for.
        interface: String,
        /// The names of all that there are.
        others: String,
    },
    /// Loopback, a tunnel, or the like.
    #[error(
        "{interface} is {what}, on which AF_XDP is of no use: leave out --iface, or use --backend socket"
    )]
    NotEthernet {
        /// As asked for.
        interface: String,
        /// What it is instead.
        what: &'static str,
    },
    /// The interface is administratively down.
    #[error("interface {interface} is down; to bring it up: ip link set dev {interface} up")]
    InterfaceDown {
        /// As asked for.
        interface: String,
    },
    /// No queues were asked for.
    #[error("0 queues were asked for: give at least 1")]
    NoQueues,
    /// More queues than the NIC has.
    #[error(
        "{interface} has {queues} queues, not {asked}: use --queues {queues}, or, if the NIC can do it, \
         add some: ethtool -L {interface} combined {asked} (on veth, whose ends have receive and transmit \
         queues of their own: ip link add ... numrxqueues {asked} numtxqueues {asked})"
    )]
    TooManyQueues {
        /// As asked for.
        interface: String,
        /// As asked for.
        asked: u32,
        /// Queues that both receive and transmit.
        queues: u32,
    },
    /// The kernel merges UDP packets.
    #[error(
        "{interface} merges UDP packets, which QUIC does not survive; to turn it off: ethtool -K \
         {interface} rx-udp-gro-forwarding off"
    )]
    GroForwarding {
        /// As asked for.
        interface: String,
    },
    /// There is no address to serve.
    #[error(
        "{interface} has no {family} address to listen on; to give it one: ip address add ADDRESS/PREFIX \
         dev {interface}"
    )]
    NoAddress {
        /// As asked for.
        interface: String,
        /// "IPv4" or "IP".
        family: &'static str,
    },
    /// Capabilities are missing.
    #[error(
        "AF_XDP needs more rights than this process has ({source}): run it with sudo, or give the program \
         the capabilities once: setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock=ep PROGRAM"
    )]
    Permission {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel has no AF_XDP sockets.
    #[error(
        "kernel {release} has no AF_XDP: that takes Linux 5.9 or newer, built with CONFIG_XDP_SOCKETS; \
         --backend socket works on any kernel"
    )]
    NoAfXdp {
        /// As `uname -r` says.
        release: String,
    },
    /// The MTU does not fit zero-copy frames.
    #[error(
        "the MTU of {interface} is {mtu}, and {MAX_MTU} is what fits zero-copy frames; QUIC packets need \
         no more than 1500: ip link set dev {interface} mtu 1500"
    )]
    MtuTooLarge {
        /// As asked for.
        interface: String,
        /// Its MTU, in bytes.
        mtu: u32,
    },
    /// Somebody else has the queue.
    #[error(
        "queue {queue} of {interface} already has an AF_XDP socket: another server or another AF_XDP \
         program is running on this interface; to find it: ss --xdp --processes"
    )]
    QueueBusy {
        /// As asked for.
        interface: String,
        /// The queue that is taken, from 0.
        queue: u32,
    },
    /// The driver or the queue cannot do zero-copy.
    #[error(
        "the driver of {interface} refused zero-copy on queue {queue}: {source}; --xdp-mode copy works \
         without it"
    )]
    NoZeroCopy {
        /// As asked for.
        interface: String,
        /// The first queue that it refused, from 0.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// RLIMIT_MEMLOCK is below the UMEM's size.
    #[error(
        "queue {queue} needs {bytes} bytes of locked memory, which is over the limit; to lift it: ulimit \
         -l unlimited (as a systemd service: LimitMEMLOCK=infinity), or run with the capability \
         cap_ipc_lock"
    )]
    MemoryLock {
        /// Queue, from 0.
        queue: u32,
        /// Size of its UMEM.
        bytes: u64,
    },
    /// A queue failed for another reason.
    #[error("queue {queue} of {interface}: {source}")]
    Socket {
        /// As asked for.
        interface: String,
        /// Queue, from 0.
        queue: u32,
        /// What was tried, and the kernel's answer.
        source: SocketError,
    },
    /// Busy polling was asked for, and refused.
    #[error("queue {queue} of {interface}: {source}; --poll adaptive works without busy polling")]
    BusyPoll {
        /// As asked for.
        interface: String,
        /// Queue, from 0.
        queue: u32,
        /// What was tried, and the kernel's answer.
        source: SocketError,
    },
    /// The calling thread could not go to a queue's core.
    #[error("cannot run on core {cpu}: {source}; the cores that this process may use: taskset -cp $$")]
    Cpu {
        /// Core.
        cpu: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The interface could not be inspected.
    #[error("cannot read {path}: {source}; is /sys mounted for this network namespace?")]
    Sysfs {
        /// File or directory.
        path: String,
        /// The kernel's answer, or what is wrong with the content.
        source: io::Error,
    },
    /// The addresses could not be listed.
    #[error("cannot list the addresses of {interface}: {source}")]
    Addresses {
        /// As asked for.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The XDP program could not be loaded or attached.
    #[error(transparent)]
    Program(#[from] xdp_prog::Error),
}
