//! What every backend over UDP sockets must do, tested once for all of them: [`socket`](super::socket)
//! without and with offloads, [`io_uring`](super::uring) on this kernel and on what older kernels leave of
//! it.
//!
//! A backend under test implements [`Backend`] and names the suites that it must pass, [`datagram_suite!`]
//! and [`train_suite!`]. All over loopback, or over a network of the test's own.

pub(super) mod network;
pub(super) mod sandbox;
pub(super) mod traffic;
pub(super) mod trains;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::socket::{SocketConfig, SocketGroup, SocketIo};
use super::{IoCounters, Link, MAX_TX_PAYLOAD, PacketIo, Path, Sent};

/// Only a failing test waits this long.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A backend under test.
pub(super) trait Backend {
    type Io: PacketIo;

    /// Somebody else sends what is flushed, in his own time: `send` may be blocked until he did.
    const SENDS_LATER: bool = false;

    /// The packet I/O over these sockets, which are bound and have not received anything yet.
    fn over(sockets: Vec<SocketIo>) -> Vec<Self::Io>;
}

/// Tests for the backend named, those that all must pass.
macro_rules! datagram_suite {
    ($backend:ty) => {
        $crate::net::datagram_tests::tests_of! { $backend;
            traffic: answers_on_either_family, answers_from_the_address_that_was_asked,
                more_than_a_batch_arrives_whole_and_in_order, payloads_may_be_empty_and_are_lent_mutably,
                trains_longer_than_the_queue_leave_in_one_call,
                a_packet_that_cannot_be_sent_costs_only_itself,
                a_length_beyond_the_room_is_refused, a_peer_that_is_gone_disturbs_nobody,
                datagrams_that_are_too_long_are_counted_and_dropped, what_the_kernel_drops_is_counted,
                wait_ends_with_a_packet_a_wake_or_the_timeout, wait_flushes_first,
                a_group_shares_the_port_and_misses_nothing, can_be_sent_to_its_worker
        }
        $crate::net::datagram_tests::tests_of! { $backend;
            network: a_packet_too_long_for_the_interface_is_refused_and_not_fragmented,
                a_full_socket_buffer_blocks_and_then_goes_on_without_loss,
                link_local_addresses_keep_their_interface_both_ways
        }
    };
}

/// Likewise, those that backends with segmentation offloads must pass.
macro_rules! train_suite {
    ($backend:ty) => {
        $crate::net::datagram_tests::tests_of! { $backend;
            trains: a_merged_buffer_comes_out_payload_by_payload_within_the_budget,
                many_full_buffers_are_received_whole,
                payloads_of_a_buffer_that_are_too_long_are_counted_one_by_one,
                trains_leave_as_one_message_each,
                trains_arrive_at_a_plain_receiver_as_the_packets_that_they_are,
                where_segmentation_is_refused_packets_go_one_by_one_for_good,
                a_train_that_cannot_be_sent_costs_only_itself
        }
    };
}

macro_rules! tests_of {
    ($backend:ty; $file:ident: $($name:ident),+) => {
        $(
            #[test]
            fn $name() {
                $crate::net::datagram_tests::$file::$name::<$backend>();
            }
        )+
    };
}

pub(super) use {datagram_suite, tests_of, train_suite};

pub(super) fn config(listen: &str, workers: usize) -> SocketConfig {
    SocketConfig {
        listen: listen.parse().unwrap(),
        workers: NonZeroUsize::new(workers).unwrap(),
        rcvbuf: 1 << 20,
        sndbuf: 1 << 20,
        busy_poll: None,
    }
}

pub(super) fn client(address: &str) -> UdpSocket {
    let client = UdpSocket::bind(address).unwrap();
    client.set_nonblocking(true).unwrap(); // while it waits its server must go on
    client
}

/// What wakes a sleeping worker.
pub(super) fn sleeper() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap()
}

/// Binds this thread to one CPU. Loopback queues packets by CPU, so those of a thread that is moved while it
/// sends may overtake each other.
pub(super) fn keep_order() {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).unwrap();
    let cpu = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap()).unwrap();
    let mut only = CpuSet::new();
    only.set(cpu).unwrap();
    sched_setaffinity(this_thread, &only).unwrap();
}

/// One worker's packet I/O, used as a worker does.
pub(super) struct Server<I> {
    pub(super) io: I,
    pub(super) wake: EventFd,
    pub(super) local: SocketAddr,
}

/// One server on `listen`.
pub(super) fn one<B: Backend>(listen: &str) -> Server<B::Io> {
    servers::<B>(&config(listen, 1), |_| ()).remove(0)
}

/// Servers of one port. `prepare` has each socket before the backend does.
pub(super) fn servers<B: Backend>(config: &SocketConfig, prepare: impl Fn(&SocketIo)) -> Vec<Server<B::Io>> {
    let group = SocketGroup::bind(config).unwrap();
    group.sockets.iter().for_each(prepare);
    let ios = B::over(group.sockets).into_iter();
    ios.map(|io| Server { io, wake: sleeper(), local: group.local }).collect()
}

impl<I: PacketIo> Server<I> {
    /// Receives until there are `count` packets.
    pub(super) fn receive(&mut self, count: usize) -> Vec<(Path, Vec<u8>)> {
        let start = Instant::now();
        let mut packets = Vec::new();
        while packets.len() < count {
            assert!(start.elapsed() < PATIENCE, "{} of {count} packets", packets.len());
            let room = count - packets.len();
            self.io.serve(start);
            let got = self.io.receive(room, &mut |path: &Path, payload: &mut [u8]| {
                packets.push((*path, payload.to_vec()))
            });
            assert!(got <= room);
            if got == 0 {
                self.wait(PATIENCE);
            }
        }
        packets
    }

    /// Sends `packets` in one call, or in as many as it takes, and flushes.
    pub(super) fn send_all(&mut self, packets: &[(Path, Vec<u8>)]) {
        let (start, mut rest) = (Instant::now(), packets);
        while !rest.is_empty() {
            assert!(start.elapsed() < PATIENCE, "{} packets left", rest.len());
            let sent = self.send(rest);
            // What was refused in between is gone, too; it is the last ones that there was no room for.
            rest = if sent.blocked { &rest[sent.packets as usize..] } else { &[] };
            self.io.serve(start);
        }
    }

    /// Sends `packets` in one call and flushes.
    pub(super) fn send(&mut self, packets: &[(Path, Vec<u8>)]) -> Sent {
        let mut rest = packets.iter();
        let sent = self.io.send(&mut |buffer| {
            assert_eq!(buffer.len(), MAX_TX_PAYLOAD);
            let (path, payload) = rest.next()?;
            buffer[..payload.len()].copy_from_slice(payload);
            Some((payload.len(), *path))
        });
        self.io.flush(Instant::now());
        sent
    }

    pub(super) fn wait(&mut self, timeout: Duration) {
        self.io.wait(timeout, self.wake.as_fd()).unwrap();
    }

    /// One turn without packets.
    pub(super) fn turn(&mut self) {
        self.io.serve(Instant::now());
        self.io.flush(Instant::now());
        self.wait(Duration::from_millis(1));
    }

    /// The counters, when all that was sent before is accounted for: a kernel thread may have to do it.
    pub(super) fn counters(&mut self) -> IoCounters {
        (0..20).for_each(|_| self.turn());
        self.io.counters()
    }

    /// What `get` gets from a client's socket, when it does, while this goes on as a worker does.
    pub(super) fn until<T>(&mut self, mut get: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(got) = get() {
                return got;
            }
            assert!(start.elapsed() < PATIENCE, "nothing comes: {:?}", self.io.counters());
            self.turn();
        }
    }

    /// The next packet at `client`, and where it is from.
    pub(super) fn sent_to(&mut self, client: &UdpSocket) -> (SocketAddr, Vec<u8>) {
        let mut buffer = [0; 2048];
        self.until(|| {
            let (length, from) = client.recv_from(&mut buffer).ok()?;
            Some((from, buffer[..length].to_vec()))
        })
    }

    /// From here to `client`.
    pub(super) fn path_to(&self, client: &UdpSocket) -> Path {
        let peer = client.local_addr().unwrap();
        let ip = if self.local.ip().is_unspecified() { peer.ip() } else { self.local.ip() };
        Path { local: SocketAddr::new(ip, self.local.port()), peer, link: Link::Kernel }
    }

    /// It must see `from` asking at `to`, and `from` get its answer from `to`.
    pub(super) fn asks_and_is_answered(&mut self, from: &str, to: SocketAddr) {
        let client = client(from);
        client.send_to(b"question", to).unwrap();
        let (path, payload) = self.receive(1).remove(0);
        assert_eq!(payload, b"question");
        assert_eq!(path, Path { local: to, peer: client.local_addr().unwrap(), link: Link::Kernel });
        self.send(&[(path, b"answer".to_vec())]);
        assert_eq!(self.sent_to(&client), (to, b"answer".to_vec()));
    }

    /// The port, on this host by IPv4.
    pub(super) fn on_localhost(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.local.port()).into()
    }
}
