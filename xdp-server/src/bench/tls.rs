//! TLS 1.3 handshakes by BoringSSL alone, the library under quiche: what a QUIC handshake cannot be cheaper
//! than. Server and client are joined by two queues of bytes, and take turns; the server's calls are timed.

use super::rig::Identities;
use super::{BenchError, cpu_time};
use boring::ssl::{
    HandshakeError, Ssl, SslContext, SslContextBuilder, SslFiletype, SslMethod, SslSession,
    SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion,
};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Calls of either side after which a handshake is given up; a good one takes two.
const MOST_CALLS: usize = 8;

/// A server and a client.
pub struct Tls {
    server: SslContext,
    client: SslContext,
    /// The last session that the client was given.
    session: Arc<Mutex<Option<SslSession>>>,
}

impl Tls {
    /// With the certificate, the key exchange groups and the version that QUIC has.
    ///
    /// # Errors
    /// BoringSSL refuses the certificate.
    pub fn new(identities: &Identities) -> Result<Self, BenchError> {
        let session = Arc::new(Mutex::new(None));
        let server = context(|context| {
            context.set_certificate_chain_file(&identities.quic.cert)?;
            context.set_private_key_file(&identities.quic.key, SslFiletype::PEM)
        })?;
        let client = context(|context| {
            context.set_verify(SslVerifyMode::NONE);
            context.set_session_cache_mode(SslSessionCacheMode::CLIENT);
            let newest = session.clone();
            context.set_new_session_callback(move |_, session| {
                *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
            });
            Ok(())
        })?;
        Ok(Self { server, client, session })
    }

    /// Completes `count` handshakes, resuming the last session if so wished; returns the CPU time of the
    /// server's side.
    ///
    /// # Errors
    /// A handshake fails, or is not of the kind wished for.
    pub fn handshakes(&mut self, count: u32, resume: bool) -> Result<Duration, BenchError> {
        (0..count).map(|_| self.handshake(resume)).sum()
    }

    fn handshake(&mut self, resume: bool) -> Result<Duration, BenchError> {
        let mut client = Ssl::new(&self.client).map_err(BenchError::new)?;
        if resume && let Some(session) = &*self.session.lock().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: the session is of this very context.
            unsafe { client.set_session(session) }.map_err(BenchError::new)?;
        }
        let wires = [Wire::default(), Wire::default()];
        let client_end = End { read: wires[0].clone(), write: wires[1].clone() };
        let server_end = End { read: wires[1].clone(), write: wires[0].clone() };

        let mut client = Side::of(client.connect(client_end))?;
        let began = cpu_time();
        let server = Ssl::new(&self.server).map_err(BenchError::new)?;
        let mut server = Side::of(server.accept(server_end))?;
        let mut took = cpu_time() - began;
        for _ in 0..MOST_CALLS {
            client = client.go_on()?;
            let began = cpu_time();
            server = server.go_on()?;
            took += cpu_time() - began;
            if let (Side::Done(client), Side::Done(server)) = (&mut client, &mut server) {
                if server.ssl().session_reused() != resume {
                    return Err(BenchError::new("BoringSSL did not resume as it should"));
                }
                // BoringSSL keeps session tickets until there is data to send with them.
                let told = server.write(&[0]).and_then(|_| client.read(&mut [0]));
                told.map_err(|e| BenchError(format!("BoringSSL: {e}")))?;
                return Ok(took);
            }
        }
        Err(BenchError::new("a TLS handshake in memory did not end"))
    }
}

fn context(
    settings: impl FnOnce(&mut SslContextBuilder) -> Result<(), boring::error::ErrorStack>,
) -> Result<SslContext, BenchError> {
    let make = || {
        let mut context = SslContext::builder(SslMethod::tls())?;
        context.set_min_proto_version(Some(SslVersion::TLS1_3))?;
        context.set_curves_list("X25519:P-256")?;
        settings(&mut context)?;
        Ok::<_, boring::error::ErrorStack>(context.build())
    };
    make().map_err(|e| BenchError(format!("BoringSSL: {e}")))
}

/// How far one side is.
enum Side {
    Waiting(Box<boring::ssl::MidHandshakeSslStream<End>>),
    Done(SslStream<End>),
}

impl Side {
    fn of(result: Result<SslStream<End>, HandshakeError<End>>) -> Result<Self, BenchError> {
        match result {
            Ok(stream) => Ok(Self::Done(stream)),
            Err(HandshakeError::WouldBlock(waiting)) => Ok(Self::Waiting(Box::new(waiting))),
            Err(error) => Err(BenchError(format!("BoringSSL: {error}"))),
        }
    }

    fn go_on(self) -> Result<Self, BenchError> {
        match self {
            Self::Waiting(waiting) => Self::of(waiting.handshake()),
            done => Ok(done),
        }
    }
}

/// Bytes under way in one direction.
type Wire = Rc<RefCell<VecDeque<u8>>>;

/// One end of a connection in memory.
#[derive(Debug)]
struct End {
    read: Wire,
    write: Wire,
}

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.read.borrow_mut().read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
