//! The ordinary socket beside AF_XDP, as plain as it can be.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use xdp_server::net::{IoCounters, Link, MAX_TX_PAYLOAD, PacketIo, Path, Sent, Sink};

pub struct Beside {
    socket: UdpSocket,
    counters: IoCounters,
}

impl Beside {
    /// Bound to the port of the tests, for both address families.
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.set_only_v6(false).unwrap();
        socket.bind(&SocketAddr::from(([0u16; 8], crate::PORT)).into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket: socket.into(), counters: IoCounters::default() }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl PacketIo for Beside {
    fn receive(&mut self, budget: usize, sink: &mut impl Sink) -> usize {
        let mut buffer = [0; 2_048];
        for count in 0..budget {
            let Ok((length, peer)) = self.socket.recv_from(&mut buffer) else { return count };
            let local = self.socket.local_addr().unwrap();
            sink.take(&Path { local, peer: canonical(peer), link: Link::Kernel }, &mut buffer[..length]);
            self.counters.rx_packets += 1;
        }
        budget
    }

    fn send(&mut self, fill: &mut impl FnMut(&mut [u8]) -> Option<(usize, Path)>) -> Sent {
        let mut sent = Sent::default();
        let mut room = [0; MAX_TX_PAYLOAD];
        while let Some((length, path)) = fill(&mut room) {
            let peer = match path.peer {
                SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
                v6 => v6,
            };
            self.socket.send_to(&room[..length], peer).unwrap();
            sent.packets += 1;
        }
        sent
    }

    fn flush(&mut self, _now: Instant) {}

    fn serve(&mut self, _now: Instant) {}

    fn wait(&mut self, _timeout: Duration, _wake: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn counters(&mut self) -> IoCounters {
        self.counters
    }
}
