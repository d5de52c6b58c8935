//! Making the sockets: one port, one socket for each worker, and a clear word when that fails.
//!
//! The sockets form a `SO_REUSEPORT` group, over which the kernel spreads peers by a hash of their addresses.
//! Their order in the group is the order of binding, hence that of the workers; a steering program
//! selects by it.
//!
//! `SO_REUSEPORT` alone would let a second server of the same user join the group and take a share of our
//! packets. So the first socket is bound without it, which fails if anybody has the port, and opens the group
//! only once the port is ours. A second server, doing the same, fails at its first socket: there is no moment
//! at which both could succeed.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::SocketIo;
use super::addr::{Family, canonical_address};
use super::rx::RX_BATCH;

/// What to bind.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Address and port. `[::]` takes IPv4 too; port 0 takes a free one, the same for all workers.
    pub listen: SocketAddr,
    /// Sockets in the group, one for each worker.
    pub workers: NonZeroUsize,
    /// Receive buffer of each socket, in bytes of memory as the kernel accounts for it, before its own
    /// doubling (socket(7)). It is a limit, not an allocation.
    pub rcvbuf: usize,
    /// Send buffer of each socket, likewise.
    pub sndbuf: usize,
    /// Let reads poll the NIC's queue this long, with softirq processing of that queue deferred. Only for
    /// workers that have their cores to themselves. `None` leaves the host's setting (`net.core.busy_read`).
    pub busy_poll: Option<Duration>,
}

/// The sockets of all workers.
#[derive(Debug)]
pub struct SocketGroup {
    /// In the order of workers.
    pub sockets: Vec<SocketIo>,
    /// What they are bound to: the port is known now, even if 0 was asked.
    pub local: SocketAddr,
    /// What is not as asked. The sockets work all the same.
    pub notes: Vec<SocketNote>,
}

/// Something that was asked for and not got, with what to type.
#[derive(Debug)]
pub enum SocketNote {
    /// The host has no IPv6; bound to this instead.
    Ipv4Only(SocketAddr),
    /// The receive buffer is smaller than asked.
    ReceiveBuffer {
        /// Bytes.
        asked: usize,
        /// Bytes.
        got: usize,
    },
    /// The send buffer is smaller than asked.
    SendBuffer {
        /// Bytes.
        asked: usize,
        /// Bytes.
        got: usize,
    },
    /// The kernel refused to busy-poll.
    BusyPoll(io::Error),
    /// The kernel has no `UDP_SEGMENT`.
    Segmentation(io::Error),
    /// The kernel has no `UDP_GRO`.
    Coalescing(io::Error),
}

impl fmt::Display for SocketNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4Only(bound) => {
                write!(f, "this host has no IPv6: listening on {bound} instead, as --listen {bound} would")
            }
            Self::ReceiveBuffer { asked, got } => write!(
                f,
                "socket receive buffer is {got} bytes of the {asked} asked, so bursts may be dropped: \
                 sudo sysctl -w net.core.rmem_max={asked}, or run as root"
            ),
            Self::SendBuffer { asked, got } => write!(
                f,
                "socket send buffer is {got} bytes of the {asked} asked, so sending stalls sooner: \
                 sudo sysctl -w net.core.wmem_max={asked}, or run as root"
            ),
            Self::BusyPoll(error) => write!(
                f,
                "busy polling is off ({error}): it takes CAP_NET_ADMIN and Linux 5.11, so run as root"
            ),
            Self::Segmentation(error) => {
                write!(
                    f,
                    "packets leave one by one, without GSO ({error}): it takes Linux 4.18, see uname -r"
                )
            }
            Self::Coalescing(error) => {
                write!(
                    f,
                    "packets come in one by one, without GRO ({error}): it takes Linux 5.0, see uname -r"
                )
            }
        }
    }
}

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody has the port.
    #[error(
        "cannot listen on {listen}: UDP port {port} is taken by another program, perhaps a second server. \
         See which: sudo ss -ulpn 'sport = :{port}'. Stop it, or choose another port with --listen",
        port = listen.port()
    )]
    PortTaken {
        /// What was to be bound.
        listen: SocketAddr,
    },
    /// A port that only root may bind.
    #[error(
        "not permitted to listen on UDP port {port}: ports below {first} are privileged. Run as root, or: \
         sudo setcap cap_net_bind_service=+ep $(command -v xdp-server), or: \
         sudo sysctl -w net.ipv4.ip_unprivileged_port_start={port}, or choose a higher port with --listen",
        port = listen.port()
    )]
    PrivilegedPort {
        /// What was to be bound.
        listen: SocketAddr,
        /// The lowest port that needs no privilege.
        first: u16,
    },
    /// None of the host's addresses.
    #[error(
        "{ip} is not an address of this host. See which are: ip -brief address. \
         Or listen on all of them: --listen [::]:{port}",
        ip = listen.ip(), port = listen.port()
    )]
    AddressNotAvailable {
        /// What was to be bound.
        listen: SocketAddr,
    },
    /// A link-local address is on every link.
    #[error(
        "{ip} is a link-local address, which needs its interface: --listen [{ip}%INDEX]:{port}, with \
         the number that starts the interface's line in: ip link",
        ip = listen.ip(), port = listen.port()
    )]
    NoInterface {
        /// What was to be bound.
        listen: SocketAddr,
    },
    /// An IPv6 address, and no IPv6.
    #[error(
        "cannot listen on {listen}: this host has no IPv6. Use --listen 0.0.0.0:{port}",
        port = listen.port()
    )]
    NoIpv6 {
        /// What was to be bound.
        listen: SocketAddr,
    },
    /// The process has no file descriptor left.
    #[error(
        "out of file descriptors after {sockets} of {workers} sockets: ulimit -n {need}, or \
         LimitNOFILE={need} in its systemd unit, or fewer --workers", need = workers + 1024
    )]
    TooManyFiles {
        /// Sockets made until then.
        sockets: usize,
        /// Sockets wanted.
        workers: usize,
    },
    /// Any other failure of a system call.
    #[error("{call} failed for the UDP socket on {listen}: {source}")]
    System {
        /// What was to be bound.
        listen: SocketAddr,
        /// The call, or the socket option.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SocketGroup {
    /// Binds the sockets of all workers.
    ///
    /// # Errors
    /// See [`BindError`]. When it returns one, nothing stays bound.
    pub fn bind(config: &SocketConfig) -> Result<Self, BindError> {
        let mut notes = Vec::new();
        let asked = canonical_address(config.listen);
        let first = match open(asked, config, &mut notes) {
            Err(error) => match ipv4_instead(asked, &error) {
                Some(listen) => {
                    notes = vec![SocketNote::Ipv4Only(listen)];
                    open(listen, config, &mut notes)?
                }
                None => return Err(error),
            },
            Ok(first) => first,
        };
        let local = local_address(&first, asked)?;
        let workers = config.workers.get();
        let mut sockets = Vec::with_capacity(workers);
        if workers > 1 {
            share_port(&first, local)?;
        }
        sockets.push(SocketIo::new(first, local));
        for worker in 1..workers {
            // What was not got for the first socket is the same for all: say it once.
            let socket = create(local, config, &mut Vec::new()).map_err(|error| match error {
                BindError::TooManyFiles { .. } => BindError::TooManyFiles { sockets: worker, workers },
                other => other,
            })?;
            share_port(&socket, local)?;
            socket.bind(&local.into()).map_err(|error| bind_error(local, error))?;
            sockets.push(SocketIo::new(socket, local));
        }
        Ok(Self { sockets, local, notes })
    }
}

/// Where to listen if `listen`, all addresses of both families, failed for want of IPv6.
fn ipv4_instead(listen: SocketAddr, error: &BindError) -> Option<SocketAddr> {
    let no_ipv6 = matches!(error, BindError::NoIpv6 { .. } | BindError::AddressNotAvailable { .. });
    let all = listen.is_ipv6() && listen.ip().is_unspecified();
    (no_ipv6 && all).then(|| (Ipv4Addr::UNSPECIFIED, listen.port()).into())
}

/// A socket with its options, bound to `listen` for itself alone.
fn open(listen: SocketAddr, config: &SocketConfig, notes: &mut Vec<SocketNote>) -> Result<Socket, BindError> {
    if let SocketAddr::V6(v6) = listen
        && v6.ip().is_unicast_link_local()
        && v6.scope_id() == 0
    {
        return Err(BindError::NoInterface { listen });
    }
    let socket = create(listen, config, notes)?;
    socket.bind(&listen.into()).map_err(|error| bind_error(listen, error))?;
    Ok(socket)
}

/// A socket with its options, not bound.
fn create(
    listen: SocketAddr,
    config: &SocketConfig,
    notes: &mut Vec<SocketNote>,
) -> Result<Socket, BindError> {
    let call = |call| move |source| BindError::System { listen, call, source };
    let family = Family::of(&listen);
    // Not with O_NONBLOCK: each call says that it must not block, and io_uring would take the flag to mean
    // that its operations, too, must end rather than wait for a packet or for room.
    let socket =
        Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP)).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EAFNOSUPPORT) if family == Family::V6 => BindError::NoIpv6 { listen },
                Some(libc::EMFILE | libc::ENFILE) => {
                    BindError::TooManyFiles { sockets: 0, workers: config.workers.get() }
                }
                _ => call("socket")(error),
            }
        })?;
    let fd = socket.as_fd();
    // Probing sets the "don't fragment" bit and believes no ICMP "too big", which anybody could forge to cut
    // a path off: MAX_TX_PAYLOAD fits every path that QUIC may use, and what does not fit the interface is an
    // error to count.
    set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
        .map_err(call("IP_MTU_DISCOVER"))?;
    match family {
        Family::V4 => {
            set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1).map_err(call("IP_PKTINFO"))?;
        }
        Family::V6 => {
            socket.set_only_v6(false).map_err(call("IPV6_V6ONLY"))?;
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
                .map_err(call("IPV6_MTU_DISCOVER"))?;
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
                .map_err(call("IPV6_RECVPKTINFO"))?;
        }
    }

    set_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, config.rcvbuf).map_err(call("SO_RCVBUF"))?;
    // The kernel reports the double of what was set.
    let got = socket.recv_buffer_size().map_err(call("SO_RCVBUF"))? / 2;
    if got < config.rcvbuf {
        notes.push(SocketNote::ReceiveBuffer { asked: config.rcvbuf, got });
    }
    set_buffer(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, config.sndbuf).map_err(call("SO_SNDBUF"))?;
    let got = socket.send_buffer_size().map_err(call("SO_SNDBUF"))? / 2;
    if got < config.sndbuf {
        notes.push(SocketNote::SendBuffer { asked: config.sndbuf, got });
    }

    if let Some(period) = config.busy_poll
        && let Err(error) = set_busy_poll(fd, period)
    {
        notes.push(SocketNote::BusyPoll(error));
    }
    Ok(socket)
}

/// Lets sockets of this user that want it too bind the same port.
fn share_port(socket: &Socket, listen: SocketAddr) -> Result<(), BindError> {
    socket.set_reuse_port(true).map_err(|source| BindError::System { listen, call: "SO_REUSEPORT", source })
}

fn local_address(socket: &Socket, listen: SocketAddr) -> Result<SocketAddr, BindError> {
    let name =
        socket.local_addr().map_err(|source| BindError::System { listen, call: "getsockname", source })?;
    Ok(name.as_socket().map_or(listen, canonical_address))
}

/// What a failed bind(2) to `listen` means.
fn bind_error(listen: SocketAddr, error: io::Error) -> BindError {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => BindError::PortTaken { listen },
        Some(libc::EADDRNOTAVAIL) => BindError::AddressNotAvailable { listen },
        // Above the privileged ports it is a security module, which has its own remedies.
        Some(libc::EACCES) if listen.port() < first_unprivileged_port() => {
            BindError::PrivilegedPort { listen, first: first_unprivileged_port() }
        }
        _ => BindError::System { listen, call: "bind", source: error },
    }
}

/// The lowest port that needs no privilege, as the host has it; 1024 where it cannot be read.
fn first_unprivileged_port() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

/// Sets a buffer size beyond the host's limit if we may, else as far as that limit goes.
fn set_buffer(socket: BorrowedFd<'_>, forced: i32, limited: i32, bytes: usize) -> io::Result<()> {
    // The kernel doubles the value, in an int.
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX).min(i32::MAX / 2);
    match set_option(socket, libc::SOL_SOCKET, forced, bytes) {
        Err(_) => set_option(socket, libc::SOL_SOCKET, limited, bytes),
        Ok(()) => Ok(()),
    }
}

/// Packets that one look at the NIC's queue takes from it: what a worker receives in one turn. The kernel's
/// default of 8 would make eight looks of that; 64, NAPI's own weight, is the most that drivers are written
/// for.
const BUSY_POLL_BUDGET: i32 = RX_BATCH as i32;

fn set_busy_poll(socket: BorrowedFd<'_>, period: Duration) -> io::Result<()> {
    let micros = i32::try_from(period.as_micros()).unwrap_or(i32::MAX);
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, micros)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, BUSY_POLL_BUDGET)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1)
}

/// Sets an option that is an int.
pub(super) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is a live int of the length given; setsockopt only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wildcard_falls_back_to_ipv4_and_only_for_want_of_ipv6() {
        let wildcard: SocketAddr = "[::]:4433".parse().unwrap();
        let specific: SocketAddr = "[::1]:4433".parse().unwrap();
        let v4: SocketAddr = "0.0.0.0:4433".parse().unwrap();
        let no_ipv6 = |listen| BindError::NoIpv6 { listen };
        let no_address = |listen| BindError::AddressNotAvailable { listen };
        assert_eq!(ipv4_instead(wildcard, &no_ipv6(wildcard)), Some(v4));
        assert_eq!(ipv4_instead(wildcard, &no_address(wildcard)), Some(v4));
        assert_eq!(ipv4_instead(specific, &no_ipv6(specific)), None);
        assert_eq!(ipv4_instead(v4, &no_address(v4)), None);
        assert_eq!(ipv4_instead(wildcard, &BindError::PortTaken { listen: wildcard }), None);
    }

    #[test]
    fn a_failed_bind_says_what_to_type() {
        let text = |listen: &str, errno| {
            bind_error(listen.parse().unwrap(), io::Error::from_raw_os_error(errno)).to_string()
        };
        assert!(text("[::]:4433", libc::EADDRINUSE).contains("ss -ulpn 'sport = :4433'"));
        assert!(text("192.0.2.9:4433", libc::EADDRNOTAVAIL).contains("--listen [::]:4433"));
        let port = first_unprivileged_port();
        assert!(text(&format!("[::]:{port}"), libc::EACCES).contains("Permission denied"));
        if let Some(privileged) = port.checked_sub(1) {
            assert!(text(&format!("[::]:{privileged}"), libc::EACCES).contains("setcap"));
        }
    }

    #[test]
    fn notes_name_the_sysctl_with_its_value() {
        let note = SocketNote::ReceiveBuffer { asked: 67108864, got: 212992 }.to_string();
        assert!(note.contains("212992 bytes of the 67108864"), "{note}");
        assert!(note.contains("sudo sysctl -w net.core.rmem_max=67108864"), "{note}");
        let note = SocketNote::SendBuffer { asked: 67108864, got: 212992 }.to_string();
        assert!(note.contains("net.core.wmem_max=67108864"), "{note}");
    }
}
