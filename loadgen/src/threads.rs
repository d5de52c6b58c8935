//! The threads that carry the load: one runtime each, on it a share of the sockets, and of the clients.
//!
//! Clients are dealt out in turn: client `i` is on thread `i % threads`, so that the first clients, which are
//! the watchers, spread over all of them; and so are the sockets, and each thread's clients over its sockets.
//! [`crate::rss`] counts on that order. Threads end when told to close, after the closes of their connections
//! have gone out; they are not pinned each, but keep to the CPUs of their process.

use std::io;
use std::net::UdpSocket;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::stat::fstat;
use quinn::Endpoint;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::shared::{Phase, Shared};
use crate::{client, endpoint};

/// How long the closes of all connections may take to go out; past it the process just ends, and the server
/// notices by its idle timeout.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The threads.
#[derive(Debug)]
pub struct Threads(Vec<JoinHandle<io::Result<()>>>);

impl Threads {
    /// Starts them, with the sockets dealt out in turn; there must be at least as many sockets as threads.
    ///
    /// # Errors
    /// Which resource of this host ran out.
    pub fn start(shared: &Arc<Shared>, sockets: Vec<UdpSocket>) -> Result<Self, String> {
        let count = shared.settings.threads;
        let mut shares: Vec<Vec<UdpSocket>> = std::iter::repeat_with(Vec::new).take(count).collect();
        for (index, socket) in sockets.into_iter().enumerate() {
            shares[index % count].push(socket);
        }
        let start = |(thread, sockets)| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("loadgen-{thread}"))
                .spawn(move || carry_load(shared, thread, sockets))
        };
        let threads = shares.into_iter().enumerate().map(start).collect::<io::Result<_>>();
        threads.map(Self).map_err(|error| format!("cannot start {count} threads: {error}"))
    }

    /// If a thread has ended, which none does before it is told to: why.
    pub fn ended(&mut self) -> Option<String> {
        let index = self.0.iter().position(JoinHandle::is_finished)?;
        Some(match self.0.swap_remove(index).join() {
            Ok(Ok(())) => "a thread of the load generator ended before its time".to_owned(),
            Ok(Err(error)) => format!("a thread of the load generator could not run: {error}"),
            Err(_) => "a thread of the load generator panicked, see above".to_owned(),
        })
    }

    /// Whether all have ended.
    pub fn all_ended(&self) -> bool {
        self.0.iter().all(JoinHandle::is_finished)
    }
}

/// One thread: its runtime, its endpoints and its clients, from their start to the close of the last
/// connection.
fn carry_load(shared: Arc<Shared>, thread: usize, sockets: Vec<UdpSocket>) -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        shared.footprint.this_thread();
        for socket in &sockets {
            shared.footprint.socket(fstat(socket)?.st_ino);
        }
        let endpoints = sockets.into_iter().map(endpoint::open).collect::<io::Result<Vec<_>>>()?;
        let mut clients = JoinSet::new();
        let mine = (thread..shared.settings.clients).step_by(shared.settings.threads);
        for (index, endpoint) in mine.zip(endpoints.iter().cycle()) {
            clients.spawn(client::live(shared.clone(), thread, endpoint.clone(), index));
        }
        let mut rebinding = pin!(rebind(&shared, thread, &endpoints));
        loop {
            tokio::select! {
                ended = clients.join_next() => match ended {
                    Some(Ok(())) => {}
                    // Ends this thread, which the coordinator notices.
                    Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                    None => break,
                },
                error = &mut rebinding => return Err(error),
            }
        }
        let mut phase = shared.phase.clone();
        // All clients may fail long before the end; the coordinator is to hear that from the statistics.
        let _ = phase.wait_for(|&phase| phase == Phase::Close).await;
        let closed = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        // Past the time the closes are as good as sent.
        let _ = timeout(CLOSE_TIMEOUT, closed).await;
        Ok(())
    })
}

/// Replaces the sockets of a thread's endpoints, each once in every period of `--rebind`, one after the
/// other, while clients paint. Returns only when that fails.
///
/// Not before all clients are up: QUIC allows a change of address only after the handshake (RFC 9000, section
/// 9).
async fn rebind(shared: &Shared, thread: usize, endpoints: &[Endpoint]) -> io::Error {
    let Some(period) = shared.settings.rebind else { return std::future::pending().await };
    let pause = period / endpoints.len() as u32; // at least 1, and at most 60,000
    for endpoint in endpoints.iter().cycle() {
        sleep(pause).await;
        if shared.ramping() > 0 || *shared.phase.borrow() != Phase::Load {
            continue;
        }
        let replace = || {
            let socket = endpoint::bind(shared.server, 0)?;
            shared.footprint.socket(fstat(&socket)?.st_ino);
            endpoint.rebind(socket)
        };
        if let Err(error) = replace() {
            return error;
        }
        shared.stats.threads[thread].count.rebinds.add(1);
    }
    std::future::pending().await
}
