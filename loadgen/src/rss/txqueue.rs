//! Where the sender's transmit queue decides: which one does the kernel choose for a source port?
//!
//! A packet that leaves a veth by transmit queue i arrives on the other end's receive queue i. The kernel
//! chooses i by a hash of the flow with a secret of its own (`skb_tx_hash`), so it cannot be computed, but
//! the choice for a flow stays, and it can be seen: a packet socket is shown all that leaves an interface
//! after that choice, and its filter may look at the queue (`SKF_AD_QUEUE`). So there is one packet socket
//! for each queue (and one for those past them), and from a port in question one datagram is sent, of one
//! byte: no QUIC packet, and too short to be answered. Whichever socket sees it tells the queue.
//!
//! Owns those packet sockets, for as long as ports are being chosen; needs CAP_NET_RAW. Changes nothing on
//! the host.

use std::fs;
use std::io::{self, Read};
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

use super::AlignError;

/// Datagrams sent from a port before it counts as unseen. More only delay that error; with one, a packet lost
/// to a neighbour that was not known yet would be it.
const ATTEMPTS: usize = 3;
/// How long each may take to leave: long enough for a neighbour's address to be found first.
const WAIT: Duration = Duration::from_secs(1);
/// A byte that no QUIC packet starts with (its fixed bit is 0), alone, so that a server drops it without an
/// answer (RFC 9000, sections 5.2 and 10.3).
const DATAGRAM: [u8; 1] = [0];
/// Bytes of a packet to look at: IPv6's header, or IPv4's with 20 bytes of options, and the ports.
const SNAPSHOT: usize = 44;
/// IP's number of UDP.
const UDP: u8 = 17;

/// Eyes on the transmit queues of the interface that leads to a server.
#[derive(Debug)]
pub struct Observer {
    /// That of queue i is the i-th; the last is that of all queues past them.
    taps: Vec<Socket>,
    interface: String,
    server: SocketAddr,
}

impl Observer {
    /// For packets from `local`, an address of this host, to `server`, over the first `queues` queues.
    ///
    /// # Errors
    /// No CAP_NET_RAW; no interface with that address; or one that is told to choose queues by CPU, so that a
    /// flow does not keep its queue.
    pub fn new(local: IpAddr, server: SocketAddr, queues: u16) -> Result<Self, AlignError> {
        let interface = interface_of(local)?;
        if chooses_by_cpu(&interface) {
            return Err(AlignError::Xps(interface));
        }
        let error = |error| AlignError::Observe { interface: interface.clone(), error };
        let index = if_nametoindex(interface.as_str()).map_err(|errno| error(errno.into()))?;
        let taps = (0..queues).map(|queue| tap(index, libc::BPF_JEQ, queue));
        let taps = taps.chain([tap(index, libc::BPF_JGE, queues)]).collect::<io::Result<_>>();
        Ok(Self { taps: taps.map_err(error)?, interface, server })
    }

    /// The queue of packets from the port that `socket` is bound to; `None` for queues past those observed.
    ///
    /// # Errors
    /// Nothing could be sent, or what was sent was not seen on any queue.
    pub fn queue(&self, socket: &UdpSocket) -> Result<Option<u16>, AlignError> {
        let error = |error| AlignError::Observe { interface: self.interface.clone(), error };
        let port = socket.local_addr().map_err(error)?.port();
        for _ in 0..ATTEMPTS {
            // Makes room: others' packets have piled up since the last time.
            self.seen(port).map_err(error)?;
            socket.send_to(&DATAGRAM, self.server).map_err(error)?;
            let deadline = Instant::now() + WAIT;
            loop {
                if let Some(tap) = self.seen(port).map_err(error)? {
                    let known = tap < self.taps.len() - 1;
                    return Ok(u16::try_from(tap).ok().filter(|_| known));
                }
                if !self.wait(deadline).map_err(error)? {
                    break;
                }
            }
        }
        Err(AlignError::Unseen { interface: self.interface.clone(), port })
    }

    /// The socket that has seen a packet from `port` to the server; empties them up to it.
    fn seen(&self, port: u16) -> io::Result<Option<usize>> {
        for (index, mut tap) in self.taps.iter().enumerate() {
            let mut packet = [0; SNAPSHOT];
            loop {
                match tap.read(&mut packet) {
                    Ok(length) if ports(&packet[..length]) == Some((port, self.server.port())) => {
                        return Ok(Some(index));
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(None)
    }

    /// Waits until there is something to look at; false when it is too late for that.
    fn wait(&self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut waiting: Vec<_> =
            self.taps.iter().map(|tap| PollFd::new(tap.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut waiting, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A packet socket that is shown what leaves an interface by the queues that compare to `queue` in this way.
fn tap(interface: u32, comparison: u32, queue: u16) -> io::Result<Socket> {
    // Without a protocol it receives nothing yet: nothing can slip in before the filter.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
    let load = |what: libc::c_int| {
        let place = (libc::SKF_AD_OFF + what).cast_unsigned();
        SockFilter::new((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, place)
    };
    let unless = |comparison: u32, value: u32, skip: u8| {
        SockFilter::new((libc::BPF_JMP | libc::BPF_K | comparison) as u16, 0, skip, value)
    };
    let end = |bytes: u32| SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, bytes);
    socket.attach_filter(&[
        load(libc::SKF_AD_PKTTYPE),
        unless(libc::BPF_JEQ, u32::from(libc::PACKET_OUTGOING), 3),
        load(libc::SKF_AD_QUEUE),
        unless(comparison, u32::from(queue), 1),
        end(SNAPSHOT as u32),
        end(0),
    ])?;
    socket.set_nonblocking(true)?;
    socket.bind(&everything_on(interface))?;
    Ok(socket)
}

/// The address of all packets of an interface.
fn everything_on(interface: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is the layout that the family AF_PACKET has; all of it may be zero, and it is
    // smaller.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface as i32;
    // SAFETY: the storage holds an address of its family, of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// Source and destination port of a UDP packet, from its IP header on; `None` if it is another or too short.
fn ports(packet: &[u8]) -> Option<(u16, u16)> {
    let (protocol, header) = match packet.first()? >> 4 {
        4 => (packet.get(9)?, usize::from(packet[0] & 0xf) * 4),
        6 => (packet.get(6)?, 40),
        _ => return None,
    };
    let ports = packet.get(header..header + 4).filter(|_| *protocol == UDP)?;
    Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
}

/// The interface with this address.
fn interface_of(local: IpAddr) -> Result<String, AlignError> {
    let has = |address: &nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or(address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()))) == Some(local.to_canonical())
    };
    let mut addresses = getifaddrs().map_err(|errno| AlignError::NoInterface(local, errno.into()))?;
    let found = addresses.find(|entry| entry.address.as_ref().is_some_and(has));
    let missing = || AlignError::NoInterface(local, io::ErrorKind::NotFound.into());
    found.map(|entry| entry.interface_name).ok_or_else(missing)
}

/// Whether transmit packet steering is set up on an interface: then the sender's CPU decides, not the flow.
fn chooses_by_cpu(interface: &str) -> bool {
    let Ok(queues) = fs::read_dir(format!("/sys/class/net/{interface}/queues")) else { return false };
    let maps = queues.flatten().filter_map(|queue| fs::read_to_string(queue.path().join("xps_cpus")).ok());
    maps.into_iter().any(|map| map.chars().any(|digit| !matches!(digit, '0' | ',' | '\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_packets() {
        let mut v4 = [0; 28];
        (v4[0], v4[9]) = (0x45, 17);
        v4[20..24].copy_from_slice(&[0x12, 0x34, 0x11, 0x51]);
        assert_eq!(ports(&v4), Some((0x1234, 4433)));
        let mut options = [0; 32];
        (options[0], options[9]) = (0x46, 17);
        options[24..28].copy_from_slice(&[0x12, 0x34, 0x11, 0x51]);
        assert_eq!(ports(&options), Some((0x1234, 4433)));
        let mut v6 = [0; SNAPSHOT];
        (v6[0], v6[6]) = (0x60, 17);
        v6[40..44].copy_from_slice(&[0x12, 0x34, 0x11, 0x51]);
        assert_eq!(ports(&v6), Some((0x1234, 4433)));

        v4[9] = 6; // TCP
        assert_eq!(ports(&v4), None);
        for short in [&[][..], &v6[..43], &[0x45; 9], &[0x4f; 44], &[0; 44]] {
            assert_eq!(ports(short), None);
        }
    }
}
