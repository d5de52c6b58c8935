//! Sockets and connections, and the loop that keeps them alive.
//!
//! A fleet owns some UDP sockets, each connected to the server from a port of its own, and any number of QUIC
//! connections spread over them. An incoming packet names its connection: our IDs begin with the index. One
//! thread drives all of it by calling [`Fleet::pump`]; what the server says comes out as [`Event`]s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use canvas::Geometry;
use canvas::codec::control::{ClientFrame, Decoded, ServerFrame, ServerStats};
use canvas::codes::{ALPN, CloseCode, HELLO_DIFFS, PROTOCOL_VERSION};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use crate::udp::{RxBatch, TxBatch, set_buffers};

/// Bytes of our connection IDs: index and tag.
const CID: usize = 8;

/// Bytes of the longest packet that we send and take: QUIC's least, and what the protocol fits.
pub const PACKET: usize = 1350;

/// Bytes of receive and send buffer of each socket. Holds a burst of some thousand small packets: a fan-out
/// to the clients of one socket. Smaller shows as loss that the server did not cause.
const SOCKET_BUFFER: usize = 8 << 20;

/// What an unanswered first packet is repeated after, divided by three. On one machine or a LAN answers take
/// as long as the server's queue; with QUIC's default of 333 ms each lost packet of a handshake costs a
/// second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Milliseconds of silence after which we give a connection up: more than a measurement takes.
const IDLE_TIMEOUT_MS: u64 = 120_000;

/// The control stream.
const CONTROL_STREAM: u64 = 0;

/// Handshakes under way at once. Fewer leave the server idle while we compute; more only wait in its queue.
const IN_FLIGHT: usize = 64;

/// Time between two looks at all timers. QUIC's are in tens of milliseconds here.
const TIMERS: Duration = Duration::from_millis(10);

/// Time that connecting may stand still before it is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client is connected for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Says HELLO and paints.
    Painter,
    /// Also gets diffs of the whole canvas.
    Watcher,
}

/// Something that the server said.
pub enum Event<'a> {
    /// WELCOME: the connection is ready.
    Welcome,
    /// STATS.
    Stats(ServerStats),
    /// A datagram.
    Datagram(&'a [u8]),
}

/// One connection.
pub struct Client {
    /// QUIC.
    pub quic: quiche::Connection,
    /// Its socket's index.
    pub socket: usize,
    id: [u8; CID],
    role: Role,
    hello: bool,
    welcomed: bool,
    inbox: Vec<u8>,
}

impl Client {
    /// True when WELCOME has come.
    pub fn is_ready(&self) -> bool {
        self.welcomed
    }
}

/// What a fleet is told.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The server.
    pub target: SocketAddr,
    /// Sockets, each with a port of its own.
    pub sockets: usize,
    /// Packets that a connection may have under way unacknowledged.
    pub window: usize,
}

/// See the [module](self).
pub struct Fleet {
    /// By index; [`Fleet::connect`] adds to them.
    pub clients: Vec<Client>,
    /// What WELCOME said; the same for all.
    pub shape: Option<(Geometry, u16)>,
    /// Time between two of the server's ticks; zero before the first WELCOME.
    pub tick: Duration,
    sockets: Vec<Socket>,
    locals: Vec<SocketAddr>,
    target: SocketAddr,
    config: quiche::Config,
    epoll: Epoll,
    rx: RxBatch,
    tx: TxBatch,
    scratch: Vec<u8>,
    /// Clients to look at.
    touched: Vec<usize>,
    next_timers: Instant,
    stop: Arc<AtomicBool>,
    tag: u32,
}

impl Fleet {
    /// A fleet without connections. `stop` makes all that waits end with an error.
    ///
    /// # Errors
    /// No sockets, or no route to the server.
    pub fn new(settings: Settings, stop: Arc<AtomicBool>) -> Result<Self> {
        let Settings { target, sockets: count, window } = settings;
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        let mut sockets = Vec::with_capacity(count);
        let mut locals = Vec::with_capacity(count);
        for index in 0..count {
            let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP))?;
            set_buffers(&socket, SOCKET_BUFFER)?;
            socket.set_nonblocking(true)?;
            socket.connect(&target.into()).with_context(|| format!("there is no way to {target}"))?;
            locals.push(socket.local_addr()?.as_socket().context("an IP socket has an IP address")?);
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            sockets.push(socket);
        }
        Ok(Self {
            clients: Vec::new(),
            shape: None,
            tick: Duration::ZERO,
            sockets,
            locals,
            target,
            config: config(window)?,
            epoll,
            rx: RxBatch::default(),
            tx: TxBatch::default(),
            scratch: vec![0; 1 << 16],
            touched: Vec::new(),
            next_timers: Instant::now(),
            stop,
            tag: 0,
        })
    }

    /// The sockets, and the address that each has.
    pub fn sockets(&self) -> (&[Socket], &[SocketAddr]) {
        (&self.sockets, &self.locals)
    }

    /// The server.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// Starts a connection, in place of client `index`, or as a new one. `session` resumes an earlier one.
    ///
    /// # Errors
    /// quiche has none to give.
    pub fn start(&mut self, index: usize, role: Role, session: Option<&[u8]>) -> Result<()> {
        self.tag = self.tag.wrapping_add(1);
        let mut id = [0; CID];
        id[..4].copy_from_slice(&(index as u32).to_le_bytes());
        id[4..].copy_from_slice(&self.tag.to_le_bytes());
        let socket = index % self.sockets.len();
        let scid = quiche::ConnectionId::from_ref(&id);
        let local = self.locals[socket];
        let mut quic = quiche::connect(Some("localhost"), &scid, local, self.target, &mut self.config)?;
        if let Some(session) = session {
            quic.set_session(session)?;
        }
        let client = Client { quic, socket, id, role, hello: false, welcomed: false, inbox: Vec::new() };
        if index == self.clients.len() {
            self.clients.push(client);
        } else {
            self.clients[index] = client;
        }
        self.flush(index);
        Ok(())
    }

    /// Connects clients until there are `count`, all with their WELCOME. `progress` hears how many there are.
    ///
    /// # Errors
    /// One of them failed, nothing moved for ten seconds, or the run was interrupted.
    pub fn connect(
        &mut self,
        count: usize,
        role: impl Fn(usize) -> Role,
        mut progress: impl FnMut(usize),
    ) -> Result<()> {
        let mut ready = self.clients.len();
        let mut last = Instant::now();
        let end = ready + count;
        while ready < end {
            while self.clients.len() < end && self.clients.len() - ready < IN_FLIGHT {
                let index = self.clients.len();
                self.start(index, role(index), None)?;
            }
            let before = ready;
            self.pump(Instant::now() + TIMERS, |_, event| {
                ready += usize::from(matches!(event, Event::Welcome))
            })?;
            if ready > before {
                last = Instant::now();
                progress(ready);
            } else if last.elapsed() > PATIENCE {
                bail!("{} answers no more: {ready} of {end} clients came up, then none", self.target);
            }
        }
        Ok(())
    }

    /// Receives and sends until `until`, or until something came. `on_event` hears what the server says.
    ///
    /// # Errors
    /// A connection was lost, a socket failed, or the run was interrupted.
    pub fn pump(&mut self, until: Instant, mut on_event: impl FnMut(usize, Event<'_>)) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let now = Instant::now();
        if now >= self.next_timers {
            self.next_timers = now + TIMERS;
            self.expire(now);
        }
        let wait = until.min(self.next_timers).saturating_duration_since(now) + Duration::from_micros(999);
        self.pump_ready(EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::ZERO), &mut on_event)?;
        Ok(())
    }

    /// Takes in what has come on the sockets, after waiting for it for `wait` at most. Returns how many
    /// sockets had something.
    fn pump_ready(
        &mut self,
        wait: EpollTimeout,
        on_event: &mut impl FnMut(usize, Event<'_>),
    ) -> Result<usize> {
        let mut events = [EpollEvent::empty(); 64];
        let ready = match self.epoll.wait(&mut events, wait) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll"),
        };
        for event in &events[..ready] {
            let socket = &self.sockets[event.data() as usize];
            for message in 0..self.rx.receive(socket)? {
                let Some((_, bytes, segment)) = self.rx.message(message) else { continue };
                for packet in bytes.chunks_mut(segment) {
                    let Some(index) = index_of(packet) else { continue };
                    let Some(client) = self.clients.get_mut(index) else { continue };
                    if !names(packet, &client.id) {
                        continue;
                    }
                    let info = quiche::RecvInfo { from: self.target, to: self.locals[client.socket] };
                    // What quiche refuses is dropped; what is fatal shows below, as a closed connection.
                    let _ = client.quic.recv(packet, info);
                    if self.touched.last() != Some(&index) {
                        self.touched.push(index);
                    }
                }
            }
        }
        let mut touched = std::mem::take(&mut self.touched);
        for index in touched.drain(..) {
            self.listen(index, on_event)?;
            self.flush(index);
        }
        self.touched = touched;
        Ok(ready)
    }

    /// Hands on what the server said to client `index`.
    fn listen(&mut self, index: usize, on_event: &mut impl FnMut(usize, Event<'_>)) -> Result<()> {
        let client = &mut self.clients[index];
        if client.quic.is_established() && !client.hello {
            client.hello = true;
            let mut out = Vec::new();
            let watches = client.role == Role::Watcher;
            let flags = if watches { HELLO_DIFFS } else { 0 };
            ClientFrame::Hello { version: PROTOCOL_VERSION, flags, token: &[] }.encode(&mut out);
            if watches {
                ClientFrame::View { x0: 0, y0: 0, x1: 0, y1: 0, kbit_per_s: 0 }.encode(&mut out);
            }
            client
                .quic
                .stream_send(CONTROL_STREAM, &out, false)
                .context("a new connection takes no HELLO")?;
        }
        while let Ok(length) = client.quic.dgram_recv(&mut self.scratch) {
            on_event(index, Event::Datagram(&self.scratch[..length]));
        }
        while let Some(stream) = client.quic.stream_readable_next() {
            while let Ok((length, _)) = client.quic.stream_recv(stream, &mut self.scratch) {
                // Tile streams are read and forgotten: the records that follow tell of any gap.
                if stream == CONTROL_STREAM {
                    client.inbox.extend_from_slice(&self.scratch[..length]);
                }
            }
        }
        let mut taken = 0;
        while let Some((frame, length)) = ServerFrame::decode(&client.inbox[taken..])? {
            match frame {
                Decoded::Frame(ServerFrame::Welcome(welcome)) => {
                    client.welcomed = true;
                    self.tick = Duration::from_millis(welcome.tick_ms.into());
                    self.shape = Some((welcome.geometry()?, welcome.palette.len() as u16));
                    on_event(index, Event::Welcome);
                }
                Decoded::Frame(ServerFrame::Stats(stats)) => on_event(index, Event::Stats(stats)),
                _ => {}
            }
            taken += length;
        }
        client.inbox.drain(..taken);
        if client.quic.is_closed() || client.quic.is_draining() {
            bail!("client {index} lost its connection: {}", why(&client.quic));
        }
        Ok(())
    }

    /// Queues a control frame of client `index`.
    ///
    /// # Errors
    /// Its stream takes no more.
    pub fn say(&mut self, index: usize, frame: &ClientFrame<'_>) -> Result<()> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        let taken = self.clients[index].quic.stream_send(CONTROL_STREAM, &out, false)?;
        if taken < out.len() {
            bail!("the control stream of client {index} is full");
        }
        self.flush(index);
        Ok(())
    }

    /// Sends what QUIC wants to send for client `index`.
    pub fn flush(&mut self, index: usize) {
        let client = &mut self.clients[index];
        while !self.tx.is_full(PACKET)
            && let Ok((length, _)) = client.quic.send(&mut self.tx.room()[..PACKET])
        {
            self.tx.push(length, length, None);
        }
        self.tx.flush(&self.sockets[client.socket]);
    }

    /// Takes in everything that waits on the sockets, without waiting for more.
    ///
    /// # Errors
    /// As [`Fleet::pump`].
    pub fn drain(&mut self) -> Result<()> {
        let mut last = usize::MAX;
        while last > 0 {
            last = self.pump_ready(EpollTimeout::ZERO, &mut |_, _| {})?;
        }
        Ok(())
    }

    /// Lets `time` pass: clients hear and answer the server.
    ///
    /// # Errors
    /// As [`Fleet::pump`].
    pub fn wait(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.pump(until, |_, _| {})?;
        }
        Ok(())
    }

    /// Closes client `index`.
    pub fn close(&mut self, index: usize) {
        // It fails when it is closed already.
        let _ = self.clients[index].quic.close(true, CloseCode::Ok.code().into(), b"");
        self.flush(index);
    }

    fn expire(&mut self, now: Instant) {
        for index in 0..self.clients.len() {
            let quic = &mut self.clients[index].quic;
            if quic.timeout_instant().is_some_and(|due| due <= now) {
                quic.on_timeout();
                self.flush(index);
                // It may have been the idle timeout, which `listen` reports.
                self.touched.push(index);
            }
        }
    }
}

/// Where the destination connection ID of a packet begins.
fn id_of(packet: &[u8]) -> Option<&[u8]> {
    let start = if packet.first()? & 0x80 == 0 { 1 } else { 6 };
    packet.get(start..start + CID)
}

fn index_of(packet: &[u8]) -> Option<usize> {
    Some(u32::from_le_bytes(*id_of(packet)?.first_chunk()?) as usize)
}

fn names(packet: &[u8], id: &[u8; CID]) -> bool {
    id_of(packet) == Some(id)
}

fn why(quic: &quiche::Connection) -> String {
    match (quic.peer_error(), quic.local_error()) {
        (Some(error), _) if error.is_app => {
            let name = CloseCode::from_code(error.error_code).map_or("an unknown code", CloseCode::name);
            format!("closed by the server with {name}: {}", String::from_utf8_lossy(&error.reason))
        }
        (Some(error), _) => format!("closed by the server with transport error {:#x}", error.error_code),
        (None, Some(error)) => {
            let reason = String::from_utf8_lossy(&error.reason);
            format!("closed by us with error {:#x}: {reason}", error.error_code)
        }
        (None, None) if quic.is_timed_out() => "no answer in time".to_owned(),
        (None, None) => "reset".to_owned(),
    }
}

fn config(window: usize) -> Result<quiche::Config> {
    let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION)?;
    config.verify_peer(false);
    config.set_application_protos(&[ALPN])?;
    config.set_curves_list("X25519:P-256")?;
    config.set_max_idle_timeout(IDLE_TIMEOUT_MS);
    config.set_max_recv_udp_payload_size(PACKET);
    config.set_max_send_udp_payload_size(PACKET);
    config.set_initial_rtt(INITIAL_RTT);
    // Room for the server's control stream, and for the images of a whole canvas.
    config.set_initial_max_streams_uni(8);
    config.set_initial_max_stream_data_bidi_local(1 << 16);
    config.set_initial_max_stream_data_uni(1 << 20);
    config.set_initial_max_data(1 << 21);
    config.enable_dgram(true, 1024, 1024);
    config.set_initial_congestion_window_packets(window);
    config.enable_pacing(false);
    Ok(config)
}
