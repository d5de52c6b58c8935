//! The coordinator's own connections: they ask for the server's figures and for snapshots. They paint
//! nothing, and count neither as clients nor as failures.
//!
//! One connection is kept for the whole run, so that a server that the clients have filled can still be
//! asked for its figures. Each snapshot takes a connection of its own, as the protocol has it: that is a
//! newcomer's view.

use std::net::SocketAddr;
use std::time::Duration;

use canvas::codec::control::{ClientFrame, ServerStats};
use canvas::codes::{CloseCode, HELLO_SNAPSHOT};
use quinn::Endpoint;
use tokio::time::{Instant, timeout_at};

use crate::endpoint::{Configs, Role, bind, open};
use crate::loss::Loss;
use crate::session::{Answer, CanvasShape, Session, TileStreams, close, hello};
use crate::verify::Snapshot;

/// Asks one server.
pub struct Probe {
    endpoint: Endpoint,
    configs: Configs,
    server: SocketAddr,
    name: String,
    token: String,
    timeout: Duration,
    session: Session,
}

impl Probe {
    /// Connects to `server`, called `name` in TLS, and presents `token`; this and every question has
    /// `timeout` to be answered.
    ///
    /// # Errors
    /// No socket to ask from, or the server did not answer.
    pub async fn connect(
        configs: Configs,
        server: SocketAddr,
        name: &str,
        token: &str,
        timeout: Duration,
    ) -> Result<Self, Loss> {
        let endpoint = bind(server, 0).and_then(open).map_err(Loss::no_socket)?;
        let deadline = Instant::now() + timeout;
        let session =
            Session::open(&endpoint, configs.of(Role::Painter), (server, name), hello(0, token), deadline)
                .await?;
        let (name, token) = (name.to_owned(), token.to_owned());
        Ok(Self { endpoint, configs, server, name, token, timeout, session })
    }

    /// The server's address.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// The canvas, as the WELCOME described it.
    pub fn shape(&self) -> &CanvasShape {
        &self.session.shape
    }

    /// The server's figures now.
    ///
    /// # Errors
    /// The server did not answer, or not properly.
    pub async fn figures(&mut self) -> Result<ServerStats, Loss> {
        let deadline = Instant::now() + self.timeout;
        timeout_at(deadline, ask(&mut self.session)).await.unwrap_or(Err(Loss::ANSWER_TIMEOUT))
    }

    /// A snapshot of the whole canvas, as a newcomer gets it.
    ///
    /// # Errors
    /// The server did not answer, or not properly.
    pub async fn snapshot(&self) -> Result<Snapshot, Loss> {
        let deadline = Instant::now() + self.timeout;
        let (config, server) = (self.configs.of(Role::Watcher), (self.server, self.name.as_str()));
        let hello = hello(HELLO_SNAPSHOT, &self.token);
        let session = Session::open(&self.endpoint, config, server, hello, deadline).await?;
        let snapshot =
            timeout_at(deadline, receive_snapshot(&session)).await.unwrap_or(Err(Loss::ANSWER_TIMEOUT));
        close(&session.connection, CloseCode::Ok);
        snapshot
    }

    /// Closes the connection, and waits until that and all earlier closes have gone out.
    pub async fn finish(&self) {
        close(&self.session.connection, CloseCode::Ok);
        self.endpoint.wait_idle().await;
    }
}

async fn ask(session: &mut Session) -> Result<ServerStats, Loss> {
    session.outbox.queue(&ClientFrame::Stats);
    while session.outbox.pending() {
        session.outbox.flush().await?;
    }
    loop {
        match session.inbox.next()? {
            Some(Answer::Stats(stats)) => return Ok(stats),
            Some(Answer::Notice(_)) => {}
            Some(_) => return Err(Loss::protocol("an answer that nobody asked for")),
            None => session.inbox.receive().await?,
        }
    }
}

async fn receive_snapshot(session: &Session) -> Result<Snapshot, Loss> {
    let mut snapshot = Snapshot::new(session.shape.geometry);
    let mut streams = TileStreams::default();
    streams.add(session.connection.accept_uni().await?);
    let reason = loop {
        if let Some(reason) = streams.receive(|_, image| snapshot.put(image)).await? {
            break reason;
        }
    };
    snapshot.complete(reason)
}
