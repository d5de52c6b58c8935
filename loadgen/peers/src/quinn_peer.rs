//! `peer-quinn`: canvas/1 on quinn and tokio, as a careful user of quinn would write it.
//!
//! A current-thread runtime, so that it has one core like the others. A task for each connection reads its
//! datagrams and its control stream; one more task ticks and hands the broadcast to all subscribers. They
//! share the canvas behind an `Rc<RefCell>`, which costs nothing. quinn does its own batching (GRO, GSO).
//!
//! Tuned where a careful user would: jemalloc, 64 MB socket buffers, no search for a larger MTU, datagram
//! queues and windows sized for this protocol. Left as quinn has it: when to acknowledge, congestion control,
//! its tasks for the endpoint and for each connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use canvas::codes::{ALPN, CloseCode};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, RecvStream, SendStream, TokioRuntime, VarInt,
};
use rustls::pki_types::PrivateKeyDer;
use tokio::task::LocalSet;
use tokio::time::MissedTickBehavior;

use crate::serve::{Options, Reporter, certificate};
use crate::session::{Answers, Board, Session};

/// Bytes of the longest packet: what peer-quiche sends.
const MTU: u16 = 1350;

/// Bytes that a client may send ahead on its control stream: xdp-server's.
const CONTROL_WINDOW: u32 = 32 * 1024;

/// Bytes of datagrams that may wait on a connection, in and out: 256 of the longest, as on the other servers.
const DATAGRAM_BUFFER: usize = 256 * 1100;

/// Bytes to read from the control stream at once.
const READ_SIZE: usize = 4096;

/// Silence after which a connection is given up: xdp-server's.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A client as the broadcaster sees it.
struct Client {
    connection: Connection,
    session: Session,
}

/// What all tasks share.
struct State {
    board: Board,
    clients: HashMap<u64, Client>,
    next_id: u64,
}

type Shared = Rc<RefCell<State>>;

/// Serves until told to end.
///
/// # Errors
/// The server could not start.
pub fn run(options: &Options) -> Result<()> {
    options.pin()?;
    let socket = options.socket()?.into();
    let board = options.board()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    runtime.block_on(tasks.run_until(async {
        let endpoint =
            Endpoint::new(EndpointConfig::default(), Some(config()?), socket, Arc::new(TokioRuntime))?;
        let shared = Rc::new(RefCell::new(State { board, clients: HashMap::new(), next_id: 0 }));
        tokio::task::spawn_local(accept(endpoint, shared.clone()));
        let reporter = Reporter::start("quinn", options)?;
        tick(options.tick(), reporter, &shared).await;
        Ok(())
    }))
}

fn config() -> Result<quinn::ServerConfig> {
    let identity = certificate()?;
    let key = PrivateKeyDer::try_from(identity.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.der().clone()], key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // Session tickets that hold all that resuming takes, as BoringSSL's do; else rustls keeps 256 sessions.
    tls.ticketer = rustls::crypto::ring::Ticketer::new()?;
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(CONTROL_WINDOW))
        .receive_window(VarInt::from_u32(CONTROL_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .initial_mtu(MTU)
        .mtu_discovery_config(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT)?));
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

async fn accept(endpoint: Endpoint, shared: Shared) {
    while let Some(incoming) = endpoint.accept().await {
        let shared = shared.clone();
        tokio::task::spawn_local(async move {
            if let Ok(connection) = incoming.await {
                serve(connection, shared).await;
            }
        });
    }
}

/// The life of a connection.
async fn serve(connection: Connection, shared: Shared) {
    let id = {
        let mut state = shared.borrow_mut();
        let session = Session::new(&state.board);
        state.next_id += 1;
        let id = state.next_id;
        state.clients.insert(id, Client { connection: connection.clone(), session });
        state.board.counts.handshakes += 1;
        state.board.counts.connections += 1;
        id
    };
    let datagrams = async {
        while let Ok(payload) = connection.read_datagram().await {
            let State { board, clients, .. } = &mut *shared.borrow_mut();
            if let Some(client) = clients.get_mut(&id) {
                client.session.on_datagram(&payload, board);
            }
        }
    };
    let control = async {
        if let Ok((send, recv)) = connection.accept_bi().await
            && let Err(code) = control(&connection, send, recv, id, &shared).await
        {
            connection.close(VarInt::from_u32(code.code().into()), code.name().as_bytes());
        }
    };
    tokio::join!(datagrams, control);
    let mut state = shared.borrow_mut();
    state.clients.remove(&id);
    state.board.counts.connections -= 1;
}

/// Serves a control stream until the client or the connection ends it.
async fn control(
    connection: &Connection,
    mut send: SendStream,
    mut recv: RecvStream,
    id: u64,
    shared: &Shared,
) -> Result<(), CloseCode> {
    let mut bytes = [0; READ_SIZE];
    while let Ok(Some(length)) = recv.read(&mut bytes).await {
        let mut answers = Answers::default();
        {
            let State { board, clients, .. } = &mut *shared.borrow_mut();
            let Some(client) = clients.get_mut(&id) else { break };
            client.session.on_control(&bytes[..length], board, &mut answers)?;
        }
        if send.write_all(&answers.control).await.is_err() {
            break;
        }
        for stream in answers.streams {
            let connection = connection.clone();
            tokio::task::spawn_local(async move {
                if let Ok(mut send) = connection.open_uni().await
                    && send.write_chunk(Bytes::from(stream)).await.is_ok()
                {
                    // It is finished already where the connection is lost.
                    let _ = send.finish();
                }
            });
        }
    }
    Ok(())
}

/// Ticks until the server is to end.
async fn tick(every: Duration, mut reporter: Reporter, shared: &Shared) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let State { board, clients, .. } = &mut *shared.borrow_mut();
        let mut broadcast = board.tick();
        for client in clients.values().filter(|client| client.session.is_subscriber()) {
            let packed = broadcast.payloads(client.session.view());
            for payload in &packed.versions {
                // As with diffs: without room it is lost, as datagrams are.
                let _ = client.connection.send_datagram(payload.clone());
            }
            for payload in &packed.diffs {
                match client.connection.send_datagram(payload.clone()) {
                    Ok(()) => board.counts.diffs += 1,
                    Err(_) => board.counts.diffs_refused += 1,
                }
            }
        }
        let now = Instant::now();
        reporter.second(board, now);
        if reporter.is_over(now) {
            reporter.summary(board);
            return;
        }
    }
}
