//! AF_XDP for real: sockets on a veth pair between two network namespaces, and ordinary UDP sockets at the
//! other end.
//!
//! ```text
//!   client's UDP ── clnt0 ◄── veth, 2 queues ──► serv0 ── XDP program ── queue 0, 1: XdpIo, which echoes
//!                                                              └─ pass ── an ordinary UDP socket
//! ```
//!
//! Needs root, and fails without. The client's kernel verifies the checksums of what comes back.

#[path = "net_xdp/beside.rs"]
mod beside;
#[path = "net_xdp/lab.rs"]
mod lab;
#[path = "net_xdp/setup.rs"]
mod setup;

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use beside::Beside;
use lab::Lab;
use xdp_prog::XdpProgram;
use xdp_server::net::xdp::{ModeGot, OpenRequest, Opened, XdpIo, XdpMode, open};
use xdp_server::net::{Ethernet, Link, PacketIo, Path};

/// UDP port of the server.
pub const PORT: u16 = 4433;

/// Enough for every test, and few enough that overload finds the end.
const FRAMES: u32 = 256;

fn request(mode: XdpMode) -> OpenRequest {
    OpenRequest {
        interface: "serv0".into(),
        queues: 2,
        port: PORT,
        listen: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        mode,
        busy_poll: false,
        cpus: vec![],
        huge_pages: false,
        frames: FRAMES,
    }
}

/// An echo server on both queues.
struct Server {
    /// First, so that the program goes before the sockets do.
    program: XdpProgram,
    queues: Vec<XdpIo<Beside>>,
    /// Which queue each peer's packets came to, and by which way.
    seen: HashMap<SocketAddr, (usize, Link)>,
}

impl Server {
    fn new(opened: Opened) -> Self {
        let queues = opened.queues.into_iter().map(|queue| queue.with_kernel(Beside::new())).collect();
        Self { program: opened.program, queues, seen: HashMap::new() }
    }

    fn open(request: &OpenRequest) -> Self {
        Self::new(open(request).unwrap_or_else(|error| panic!("{error}")))
    }

    /// One turn of every queue's worker: echoes what came.
    fn turn(&mut self) {
        for (number, io) in self.queues.iter_mut().enumerate() {
            let now = Instant::now();
            io.serve(now);
            let mut answers: Vec<(Path, Vec<u8>)> = Vec::new();
            io.receive(64, &mut |path: &Path, payload: &mut [u8]| {
                let before = self.seen.insert(path.peer, (number, path.link));
                assert!(
                    before.is_none_or(|before| before == (number, path.link)),
                    "{path:?} changed its way"
                );
                answers.push((*path, payload.to_vec()));
            });
            let mut answers = answers.into_iter();
            io.send(&mut |room| {
                let (path, payload) = answers.next()?;
                room[..payload.len()].copy_from_slice(&payload);
                Some((payload.len(), path))
            });
            io.flush(now);
        }
    }

    /// Turns until `client`, on a thread of its own, is done.
    fn run<T: Send>(&mut self, client: impl FnOnce() -> T + Send) -> T {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _done = SetOnDrop(&done);
                client()
            });
            while !done.load(Ordering::Acquire) {
                self.turn();
            }
            thread.join().unwrap()
        })
    }

    /// Every frame is in exactly one place.
    #[track_caller]
    fn check(&mut self) {
        self.queues.iter_mut().for_each(|io| io.census().assert_whole());
    }
}

/// Also when the client panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Sixteen clients of each family: so many that both queues get some.
fn clients(lab: &Lab) -> Vec<UdpSocket> {
    let v4 = (0..16).map(|_| lab.socket("10.77.0.2:0", "10.77.0.1:4433"));
    let v6 = (0..16).map(|_| lab.socket("[fd77::2]:0", "[fd77::1]:4433"));
    v4.chain(v6).collect()
}

/// Sends packets of several lengths and expects them back.
#[track_caller]
fn expect_echo(sockets: &[UdpSocket]) {
    for length in [1, 22, 1_199, 1_200] {
        for (number, socket) in sockets.iter().enumerate() {
            let payload: Vec<u8> = (0..length).map(|i| (i + number) as u8).collect();
            let mut answer = [0; 2_000];
            socket.send(&payload).unwrap();
            let received = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{length} bytes: {error}"));
            assert_eq!(answer[..received], payload);
        }
    }
}

/// The whole of it, in the mode that `request` asks for.
fn echoes(lab: &Lab, request: &OpenRequest) -> Server {
    let mut server = Server::open(request);
    let sockets = clients(lab);
    server.run(|| expect_echo(&sockets));
    server.check();

    assert_eq!(server.seen.len(), sockets.len());
    for socket in &sockets {
        let (_, link) = server.seen[&socket.local_addr().unwrap()];
        assert!(matches!(link, Link::Ethernet(_)), "came through the kernel");
    }
    let packets: Vec<u64> = server.queues.iter_mut().map(|io| io.counters().rx_packets).collect();
    // In generic mode veth does not tell the program which queue it was, and all packets seem to come from
    // queue 0.
    let silent = packets.iter().filter(|&&count| count == 0).count();
    assert_eq!(silent, usize::from(request.mode == XdpMode::Generic), "{packets:?}");
    assert_eq!(packets.iter().sum::<u64>(), 4 * sockets.len() as u64);
    let redirected = server.program.counters().unwrap();
    for io in &mut server.queues {
        let counters = io.counters();
        let rejects =
            [counters.rx_truncated, counters.rx_not_ours, counters.rx_too_long, counters.invalid_descriptors];
        assert_eq!(rejects, [0; 4], "{redirected:?}");
        assert_eq!(counters.tx_packets, counters.rx_packets);
    }
    server
}

#[test]
fn native_copy_mode_echoes_over_both_families_and_queues() {
    Lab::run(|lab| {
        echoes(lab, &request(XdpMode::Copy));
    });
}

#[test]
fn generic_mode_echoes_over_both_families() {
    Lab::run(|lab| {
        echoes(lab, &request(XdpMode::Generic));
    });
}

#[test]
fn busy_polling_echoes() {
    Lab::run(|lab| {
        let opened = open(&OpenRequest { busy_poll: true, ..request(XdpMode::Copy) }).unwrap();
        assert!(opened.notes.iter().any(|note| note.contains("napi_defer_hard_irqs")), "{:?}", opened.notes);
        drop(opened);
        lab.server("echo 2 > /sys/class/net/serv0/napi_defer_hard_irqs");
        lab.server("echo 200000 > /sys/class/net/serv0/gro_flush_timeout");
        let opened = open(&OpenRequest { busy_poll: true, ..request(XdpMode::Copy) }).unwrap();
        assert!(opened.notes.is_empty(), "{:?}", opened.notes);
        drop(opened);
        echoes(lab, &OpenRequest { busy_poll: true, ..request(XdpMode::Copy) });
    });
}

#[test]
fn auto_steps_down_from_zero_copy_and_says_why() {
    Lab::run(|lab| {
        let opened = open(&request(XdpMode::Auto)).unwrap();
        assert_eq!(opened.mode, ModeGot::Copy);
        assert_eq!(opened.notes.len(), 1, "{:?}", opened.notes);
        assert!(opened.notes[0].contains("not in zero-copy mode"), "{:?}", opened.notes);
        drop(opened);

        // With one transmit queue more at the other end, veth refuses native XDP.
        let queues = |transmit: u32| format!("numrxqueues 1 numtxqueues {transmit}");
        lab.server(&format!("ip link add odd0 {} type veth peer name odd1 {}", queues(1), queues(2)));
        lab.server("ip link set dev odd0 up; ip link set dev odd1 up; ip address add 10.78.0.1/24 dev odd0");
        let odd = OpenRequest { interface: "odd0".into(), queues: 1, ..request(XdpMode::Auto) };
        let opened = open(&odd).unwrap();
        assert_eq!(opened.mode, ModeGot::Generic);
        assert_eq!(opened.notes.len(), 1, "one reason, not one for each rung: {:?}", opened.notes);
        drop(opened);
        // Asked for by name, it is that mode or an error.
        let error = open(&OpenRequest { mode: XdpMode::Copy, ..odd }).unwrap_err().to_string();
        assert!(error.contains("odd0"), "{error}");
    });
}

/// The client is an AF_XDP socket too, since ordinary ones see no tags.
#[test]
fn tagged_packets_are_answered_with_their_tag() {
    Lab::run(|lab| {
        let mut server = Server::open(&request(XdpMode::Copy));
        let mac = |text: String| {
            let bytes: Vec<u8> =
                text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            <[u8; 6]>::try_from(bytes).unwrap()
        };
        let ethernet = Ethernet {
            local: mac(lab.client("ip -o link show clnt0 | sed \"s/.*ether //; s/ .*//\"")),
            peer: mac(lab.server("cat /sys/class/net/serv0/address")),
            vlan: Some(0x6005),
        };
        let opened = lab.in_client(|| {
            open(&OpenRequest { interface: "clnt0".into(), port: 50_000, ..request(XdpMode::Copy) }).unwrap()
        });
        let mut client = Server::new(opened);
        for (local, peer) in [("10.77.0.2:50000", "10.77.0.1:4433"), ("[fd77::2]:50000", "[fd77::1]:4433")] {
            let path = Path {
                local: local.parse().unwrap(),
                peer: peer.parse().unwrap(),
                link: Link::Ethernet(ethernet),
            };
            let mut question = Some(b"tagged");
            client.queues[0].send(&mut |room| {
                room[..6].copy_from_slice(question.take()?);
                Some((6, path))
            });
            let mut answers = Vec::new();
            let until = Instant::now() + Duration::from_secs(5);
            while answers.is_empty() && Instant::now() < until {
                server.turn();
                for io in &mut client.queues {
                    io.serve(Instant::now());
                    io.receive(64, &mut |path: &Path, payload: &mut [u8]| {
                        answers.push((*path, payload.to_vec()))
                    });
                    io.flush(Instant::now());
                }
            }
            assert_eq!(answers, [(path, b"tagged".to_vec())]);
        }
        server.check();
        client.check();
    });
}

#[test]
fn fragments_are_answered_through_the_kernel() {
    Lab::run(|lab| {
        let mut server = Server::open(&request(XdpMode::Copy));
        lab.client("ip link set dev clnt0 mtu 1280 && ip route change 10.77.0.0/24 dev clnt0 mtu lock 600");
        let v4 = lab.socket("10.77.0.2:0", "10.77.0.1:4433");
        // Without this the client's kernel would not fragment, but refuse.
        let discover = libc::IP_PMTUDISC_DONT;
        // SAFETY: the kernel reads the four bytes of `discover`.
        let set = unsafe {
            let value = (&raw const discover).cast();
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&v4),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                value,
                4,
            )
        };
        assert_eq!(set, 0);
        let answer = server.run(|| {
            v4.send(&[9; 1_200]).unwrap();
            let mut answer = [0; 2_000];
            let received = v4.recv(&mut answer).expect("an answer to a fragmented packet");
            answer[..received].to_vec()
        });
        assert_eq!(answer, [9; 1_200]);
        assert_eq!(server.seen[&v4.local_addr().unwrap()].1, Link::Kernel);
        let by_kernel: u64 = server.queues.iter_mut().map(|io| io.counters().rx_kernel_packets).sum();
        assert_eq!(by_kernel, 1);
        server.check();
    });
}

#[test]
fn overload_loses_packets_but_no_frames() {
    Lab::run(|lab| {
        const PACKETS: u64 = 100_000;
        let mut server = Server::open(&request(XdpMode::Copy));
        let sockets: Vec<UdpSocket> = clients(lab).into_iter().step_by(4).collect();
        let sent = server.run(|| {
            // As fast as it goes, and reads no answer.
            (0..PACKETS)
                .filter(|&i| sockets[i as usize % sockets.len()].send(&[i as u8; 300]).is_ok())
                .count() as u64
        });
        server.check();
        assert_eq!(sent, PACKETS);
        // Nobody looks for a while: the kernel's frames run out.
        for i in 0..4 * FRAMES as usize {
            sockets[i % sockets.len()].send(&[0; 300]).unwrap();
        }
        server.check();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            server.turn();
        }
        server.check();
        let counters: Vec<_> = server.queues.iter_mut().map(|io| io.counters()).collect();
        let received: u64 = counters.iter().map(|counters| counters.rx_packets).sum();
        assert!(received > 1_000 && received <= PACKETS + 4 * u64::from(FRAMES), "{counters:?}");
        assert!(counters.iter().any(|counters| counters.fill_ring_empty > 0), "no overload: {counters:?}");
        assert!(counters.iter().all(|counters| counters.invalid_descriptors == 0), "{counters:?}");

        // And it goes on as before. Packets of the flood that were answered wait in the old sockets.
        drop(sockets);
        let sockets = clients(lab);
        server.run(|| expect_echo(&sockets));
        // At rest, everything is with the kernel to receive into, or free.
        let until = Instant::now() + Duration::from_secs(5);
        let mut at_rest = false;
        while !at_rest && Instant::now() < until {
            server.turn();
            at_rest = server.queues.iter_mut().all(|io| {
                let census = io.census();
                census.fill == FRAMES / 2 && census.free == FRAMES / 2
            });
        }
        let census: Vec<_> = server.queues.iter_mut().map(XdpIo::census).collect();
        assert!(at_rest, "frames did not come home: {census:?}");
    });
}

#[test]
fn waiting_ends_by_a_packet_by_the_wake_and_by_time() {
    Lab::run(|lab| {
        let mut server = Server::open(&OpenRequest { queues: 1, ..request(XdpMode::Copy) });
        let (wake, mut waker) = std::os::unix::net::UnixStream::pair().unwrap();
        let long = Duration::from_secs(10);
        let io = &mut server.queues[0];

        let start = Instant::now();
        io.wait(Duration::from_millis(30), wake.as_fd()).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30) && start.elapsed() < long);

        // One that reaches queue 0 by AF_XDP; packets to queue 1, which has no socket, come to the one
        // beside.
        for socket in clients(lab) {
            let start = Instant::now();
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(2));
                    socket.send(b"wake up").unwrap();
                });
                io.wait(long, wake.as_fd()).unwrap();
            });
            assert!(start.elapsed() < long, "nothing woke it");
            let mut got = 0;
            while got == 0 && start.elapsed() < long {
                got = io.receive(64, &mut |_: &Path, payload: &mut [u8]| assert_eq!(payload, b"wake up"));
            }
            assert_eq!(got, 1);
        }
        let counters = io.counters();
        assert!(
            counters.rx_kernel_packets > 0 && counters.rx_kernel_packets < counters.rx_packets,
            "{counters:?}"
        );

        waker.write_all(b"!").unwrap();
        let start = Instant::now();
        io.wait(long, wake.as_fd()).unwrap();
        assert!(start.elapsed() < long);

        lab.server("ip link delete serv0");
        let (silent, _other_end) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = io.wait(Duration::from_millis(30), silent.as_fd()).unwrap_err();
        assert!(error.to_string().contains("interface"), "{error}");
    });
}
