//! A thousand clients change their port, in the face of the server itself: its four workers share a
//! port by ordinary sockets on loopback.
//!
//! A client whose port changes is, for the kernel, a new one. With steering by connection ID its packets go
//! on to the worker that has its connection; without, most come to another one, which passes them on. Either
//! way every pixel must arrive; how many packets went astray is in the server's own summary.

use std::io::{BufRead, BufReader, Lines};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use canvas::codec::control::{ClientFrame, Decoded, ServerFrame};
use canvas::codec::{Entry, Pixel, Pixels};
use canvas::codes::ALPN;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Clients, as in the project's requirement.
const CLIENTS: usize = 1000;

/// Pixels that each client paints, one after the other: the first before it changes its port, the others
/// after.
const PIXELS: u32 = 5;

/// Clients that are turned at once: few enough for the socket buffers of a host that grants small ones only,
/// and for each of them to answer the server's PATH_CHALLENGE before quiche takes it for lost.
const GROUP: usize = 50;

/// The runs share few cores with five threads of a server each, and would slow each other down.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server's own process. Dropping it ends it.
struct Server {
    process: Child,
    output: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
    _state: tempfile::TempDir,
}

impl Server {
    fn start(steering: &str) -> Self {
        // Free now, and nobody else's until the server has it: the kernel deals out ports at random.
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_xdp-server"))
            .args(["--listen", &address.to_string(), "--backend", "socket", "--workers", "4"])
            .args(["--steering", steering, "--width", "64", "--height", "64", "--json", "--quiet"])
            .arg("--state")
            .arg(state.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut server = Self { process, output, address, _state: state };
        assert_eq!(server.next_event()["event"], "start");
        server
    }

    fn next_event(&mut self) -> Value {
        let line = self.output.next().expect("the server ended, see its message above").unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Ends it by SIGTERM and returns its summary.
    fn summary(mut self) -> Value {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM).unwrap();
        loop {
            let event = self.next_event();
            if event["event"] == "summary" {
                return event;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client on quiche, turned by hand.
struct Client {
    quic: quiche::Connection,
    socket: UdpSocket,
    /// What QUIC takes for our address: the first one. A NAT does not tell the client behind it that it
    /// moved.
    address: SocketAddr,
    server: SocketAddr,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    welcome: bool,
    /// The last PAINT that the server acknowledged.
    acknowledged: u32,
}

impl Client {
    fn new(server: SocketAddr, config: &mut quiche::Config) -> Self {
        let socket = open_socket(server);
        let address = socket.local_addr().unwrap();
        let id: [u8; 16] = rand::random();
        let id = quiche::ConnectionId::from_ref(&id);
        let quic = quiche::connect(Some("localhost"), &id, address, server, config).unwrap();
        let mut outbox = Vec::new();
        ClientFrame::Hello { version: 1, flags: 0, token: &[] }.encode(&mut outbox);
        Self { quic, socket, address, server, inbox: Vec::new(), outbox, welcome: false, acknowledged: 0 }
    }

    /// Goes on from another port.
    fn change_port(&mut self) {
        let before = self.socket.local_addr().unwrap();
        self.socket = open_socket(self.server);
        assert_ne!(self.socket.local_addr().unwrap(), before);
    }

    /// Paints a pixel, to be acknowledged with `number`.
    fn paint(&mut self, number: u32) {
        let pixels = [Pixel { x: number as u16, y: 0, colour: 1 }.to_wire()];
        ClientFrame::Paint { seq: number, flags: 0, pixels: Pixels::new(&pixels) }.encode(&mut self.outbox);
    }

    /// Receives, answers, sends. True if there was something to receive.
    fn step(&mut self) -> bool {
        let mut packet = [0; 2048];
        let mut received = false;
        // An error other than "nothing there" would be ICMP's word that nobody listens: the test ends by its
        // time limit.
        while let Ok(length) = self.socket.recv(&mut packet) {
            received = true;
            let info = quiche::RecvInfo { from: self.server, to: self.address };
            let _ = self.quic.recv(&mut packet[..length], info);
        }
        if self.quic.timeout().is_some_and(|left| left.is_zero()) {
            self.quic.on_timeout();
        }
        if self.quic.is_established() {
            // Spare connection IDs, so that the server can answer each new path under one of its own (RFC
            // 9000, section 9.5), as every client that means to move supplies them.
            while self.quic.scids_left() > 0 {
                let id: [u8; 16] = rand::random();
                self.quic.new_scid(&quiche::ConnectionId::from_ref(&id), rand::random(), false).unwrap();
            }
            while !self.outbox.is_empty()
                && let Ok(sent) = self.quic.stream_send(0, &self.outbox, false)
            {
                self.outbox.drain(..sent);
            }
            while let Ok((length, _)) = self.quic.stream_recv(0, &mut packet) {
                self.inbox.extend_from_slice(&packet[..length]);
            }
            self.read_frames();
        }
        while let Ok((length, _)) = self.quic.send(&mut packet) {
            // What finds no room is lost, as on any network.
            let _ = self.socket.send(&packet[..length]);
        }
        received
    }

    fn read_frames(&mut self) {
        let mut used = 0;
        while let Some((decoded, length)) = ServerFrame::decode(&self.inbox[used..]).unwrap() {
            used += length;
            match decoded {
                Decoded::Frame(ServerFrame::Welcome(_)) => self.welcome = true,
                Decoded::Frame(ServerFrame::PaintAck(ack)) => {
                    assert_eq!((ack.seq, ack.applied), (self.acknowledged + 1, 1));
                    self.acknowledged = ack.seq;
                }
                _ => {}
            }
        }
        self.inbox.drain(..used);
    }
}

/// A socket on a port of its own that talks to `server`.
fn open_socket(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Turns `clients` until all are `done`.
fn drive(clients: &mut [Client], done: impl Fn(&Client) -> bool) {
    let start = Instant::now();
    loop {
        let mut received = false;
        for client in clients.iter_mut() {
            received |= client.step();
            assert!(!client.quic.is_closed(), "closed: {:?}", client.quic.peer_error());
        }
        let left = clients.iter().filter(|client| !done(client)).count();
        if left == 0 {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{left} clients are not done");
        if !received {
            std::thread::sleep(Duration::from_millis(1)); // the cores are the server's, too
        }
    }
}

/// A client needs a descriptor, and the usual limit is 1024.
fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Lets all clients connect, paint, move and paint on. Returns the server's packets received, and of those
/// the strays.
fn strays(steering: &str) -> (u64, u64) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    raise_file_limit();
    let server = Server::start(steering);
    let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION).unwrap();
    config.set_application_protos(&[ALPN]).unwrap();
    config.verify_peer(false);
    config.set_max_idle_timeout(PATIENCE.as_millis() as u64);
    config.set_initial_max_data(1 << 20);
    config.set_initial_max_stream_data_bidi_local(1 << 20);
    config.set_active_connection_id_limit(4);

    let mut clients: Vec<Client> = Vec::with_capacity(CLIENTS);
    while clients.len() < CLIENTS {
        let first = clients.len();
        clients.extend((0..GROUP).map(|_| Client::new(server.address, &mut config)));
        drive(&mut clients[first..], |client| client.welcome);
    }
    for group in clients.chunks_mut(GROUP) {
        for number in 1..=PIXELS {
            for client in group.iter_mut() {
                if number == 2 {
                    client.change_port();
                }
                client.paint(number);
            }
            drive(group, |client| client.acknowledged == number);
        }
    }
    for client in &mut clients {
        client.quic.close(true, 0, b"").unwrap();
        client.step();
    }

    let summary = server.summary();
    let sum = |counter: &str| -> u64 {
        let workers = summary["workers"].as_array().unwrap();
        assert_eq!(workers.len(), 4);
        workers.iter().map(|worker| worker[counter].as_u64().unwrap()).sum()
    };
    // Nobody had to connect twice, and no pixel was lost.
    assert_eq!(sum("handshakes_completed"), CLIENTS as u64, "{summary}");
    assert_eq!(summary["pixels_applied"], CLIENTS as u64 * u64::from(PIXELS), "{summary}");
    assert_eq!((sum("strays_dropped"), sum("strays_in")), (0, sum("strays_out")), "{summary}");
    assert_eq!(sum("drop_unknown_id"), 0, "{summary}");
    let (received, strays) = (sum("rx_packets"), sum("strays_out"));
    println!("steering {steering}: {received} packets received, {strays} of them strays");
    (received, strays)
}

#[test]
fn steered_by_connection_id_moving_clients_stay_with_their_worker() {
    let (received, strays) = strays("auto");
    assert!(strays * 100 < received, "{strays} strays of {received} packets");
}

#[test]
fn without_steering_strays_arrive_all_the_same() {
    let (received, strays) = strays("off");
    // Every pixel after the move, from three clients of four, less what chance may take off.
    let painted = CLIENTS as u64 * u64::from(PIXELS - 1);
    assert!(strays > painted / 2, "{strays} strays of {received} packets");
}
