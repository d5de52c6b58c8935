//! `peer-quiche`: canvas/1 on quiche in a plain epoll loop, as a careful user of quiche would write it.
//!
//! One thread and one socket. A turn of the loop: `recvmmsg` (64 buffers, UDP_GRO) into quiche, datagrams taken
//! out while they are in the cache, until the socket is empty; then each connection that got something, once:
//! its control stream, and what QUIC wants to send, which includes its acknowledgement. So in overload one
//! acknowledgement answers all packets that waited. (Sending after each 64 messages: half the messages/s at
//! 1,000 connections.) Packets to different clients leave in one `sendmmsg`, several to one client
//! as one GSO message. Connections are found in a hash map by connection ID with a fast hash, short headers
//! are parsed here (quiche's parser allocates), timers wait in a heap.
//!
//! Tuned where a careful user would: jemalloc, 64 MB socket buffers, a fast hash for random keys, no pacing,
//! no post-quantum key share, small windows. Left as quiche has it: when to acknowledge, congestion control,
//! buffers of its own for datagrams. What xdp-server does beyond is what this server is there to measure.

mod conn;
mod server;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use canvas::codes::ALPN;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};

use crate::serve::{Options, Reporter, certificate};
use crate::udp::BATCH;
use server::Server;

/// Bytes of the longest packet in and out: 1200 is QUIC's least, and what the protocol's datagrams fit.
const PACKET: usize = 1350;

/// Bytes that a client may send ahead on its control stream: xdp-server's.
const CONTROL_WINDOW: u64 = 32 * 1024;

/// Datagrams that may wait on a connection, in and out: xdp-server's.
const DATAGRAMS_IN: usize = 128;
const DATAGRAMS_OUT: usize = 256;

/// Milliseconds of silence after which a connection is given up: xdp-server's.
const IDLE_TIMEOUT_MS: u64 = 30_000;

/// Longest time of receiving without sending: below the `max_ack_delay` of 25 ms that quiche advertises.
/// Shorter makes more acknowledgements in overload, longer breaks the promise.
const RECEIVE: Duration = Duration::from_millis(20);

/// Serves until told to end.
///
/// # Errors
/// The server could not start, or its socket failed.
pub fn run(options: &Options) -> Result<()> {
    options.pin()?;
    let socket = options.socket()?;
    let local = socket.local_addr()?.as_socket().context("an IP socket has an IP address")?;
    // Kernels before 5.0 do not have it, and then packets come one by one.
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let mut server = Server::new(config()?, options.board()?, local)?;
    let mut reporter = Reporter::start("quiche", options)?;
    let mut next_tick = Instant::now() + options.tick();
    loop {
        let until = next_tick.min(Instant::now() + RECEIVE);
        let mut received = server.receive(socket.as_fd())?;
        let idle = received == 0;
        while received == BATCH && Instant::now() < until {
            received = server.receive(socket.as_fd())?;
        }
        let now = Instant::now();
        server.expire(now);
        if now >= next_tick {
            // A late tick is not made up for.
            next_tick = (next_tick + options.tick()).max(now);
            server.broadcast();
            reporter.second(&server.board, now);
            if reporter.is_over(now) {
                break;
            }
        }
        server.send(socket.as_fd());
        if idle {
            let until = server.next_timeout().map_or(next_tick, |at| at.min(next_tick));
            let wait = until.saturating_duration_since(Instant::now());
            // In whole milliseconds, rounded up: a tick that is late by one is a tick all the same.
            let wait =
                EpollTimeout::try_from(wait + Duration::from_micros(999)).unwrap_or(EpollTimeout::ZERO);
            match epoll.wait(&mut [EpollEvent::empty()], wait) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("epoll"),
            }
        }
    }
    reporter.summary(&server.board);
    Ok(())
}

fn config() -> Result<quiche::Config> {
    let identity = certificate()?;
    let files = tempfile::tempdir()?;
    let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION)?;
    let file = |name: &str, pem: String| -> Result<String> {
        let path = files.path().join(name);
        std::fs::write(&path, pem)?;
        path.into_os_string().into_string().ok().context("the directory for temporary files is not UTF-8")
    };
    config.load_cert_chain_from_pem_file(&file("cert.pem", identity.cert.pem())?)?;
    config.load_priv_key_from_pem_file(&file("key.pem", identity.signing_key.serialize_pem())?)?;
    config.set_application_protos(&[ALPN])?;
    config.set_curves_list("X25519:P-256")?;
    config.set_max_idle_timeout(IDLE_TIMEOUT_MS);
    config.set_max_recv_udp_payload_size(PACKET);
    config.set_max_send_udp_payload_size(PACKET);
    config.set_initial_max_streams_bidi(1);
    config.set_initial_max_stream_data_bidi_remote(CONTROL_WINDOW);
    config.set_initial_max_data(CONTROL_WINDOW);
    config.set_max_stream_window(CONTROL_WINDOW);
    config.set_max_connection_window(CONTROL_WINDOW);
    config.enable_dgram(true, DATAGRAMS_IN, DATAGRAMS_OUT);
    config.enable_pacing(false);
    Ok(config)
}
