//! quiche's settings, and the buffer type that lets one encoded diff serve every client.

use super::hot::Plans;
use super::tls;
use crate::net::{MAX_RX_PAYLOAD, MAX_TX_PAYLOAD};
use canvas::codes::ALPN;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Payload of a DATAGRAM frame: shared by all clients that get it, or owned when it was received.
///
/// `Rc`, not `Arc`: all connections of a worker live on its thread, and an atomic count shared by 47 workers
/// would be written 500,000 times a tick.
pub enum Payload {
    /// Encoded once, for many.
    Shared(Rc<[u8]>),
    /// quiche's own.
    Owned(Vec<u8>),
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }
}

/// Tells quiche to keep datagrams as [`Payload`] and stream data as shared slices.
#[derive(Clone, Debug, Default)]
pub struct Buffers;

impl quiche::BufFactory for Buffers {
    type Buf = Rc<[u8]>;
    type DgramBuf = Payload;

    fn buf_from_slice(buf: &[u8]) -> Rc<[u8]> {
        buf.into()
    }

    fn dgram_buf_from_slice(buf: &[u8]) -> Payload {
        Payload::Owned(buf.to_vec())
    }
}

/// A QUIC connection of this server.
pub type Connection = quiche::Connection<Buffers>;

/// Client datagrams that may wait between two looks, which is within one turn: the largest number of DATAGRAM
/// frames that fit a packet is about 130, but a client's messages are 11 bytes or more.
const DATAGRAMS_IN: usize = 128;

/// Server datagrams that may wait for a congestion window. A tick of 60,000 changed pixels is about 165
/// datagrams: fewer would drop a part of such a tick for clients that could take it, more is memory that a
/// slow client holds (24 bytes each, the payload is shared).
pub const DATAGRAMS_OUT: usize = 256;

/// Bytes that a client may send ahead on its control stream: one whole frame of the largest size and its
/// header is 65,541, but frames are consumed as they come. Larger windows let a client make the server buffer
/// more.
const CONTROL_WINDOW: u64 = 32 * 1024;

/// Client connection IDs that are kept for a connection, and thereby the network paths that quiche remembers
/// of it, which it never forgets: a client can be rebound by its NAT one time less than this before it is told
/// to connect again. Each path costs some 5 KB from the time that the client is there, each ID that clients
/// supply 80 bytes; most supply no more than 8.
///
/// Tried and lost: retiring the IDs of left paths, so that quiche reuses their places. quiche ties each spare ID
/// to a left path as soon as it comes, has none for the new path at the time, uses the same one for both, and
/// never separates them again.
pub const PATHS: u64 = 16;

/// How long an acknowledgement of datagrams may wait for a broadcast to ride on, or for more packets to
/// acknowledge; what is advertised as `max_ack_delay`. The most that the protocol page allows the server: two
/// ticks of 50 ms. A client that paints every 35 ms gets one ACK for three pixels. Less, and it is for fewer;
/// an ACK costs as much as three messages.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// What a worker's QUIC settings depend on.
#[derive(Clone, Debug)]
pub struct QuicSettings {
    /// PEM file with the certificate chain.
    pub cert: std::path::PathBuf,
    /// PEM file with the private key.
    pub key: std::path::PathBuf,
    /// A connection silent for so long is dropped.
    pub idle_timeout: Duration,
    /// Seals session tickets: the same for all workers, so that each takes the others'.
    pub ticket_key: [u8; tls::TICKET_KEY_LEN],
}

impl QuicSettings {
    /// What one worker needs. The files are read here, and not again.
    ///
    /// # Errors
    /// Says which file quiche refused, or which setting.
    pub fn build(&self) -> Result<WorkerQuic, String> {
        let context = tls::context().map_err(|e| format!("TLS: {e}"))?;
        let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, context)
            .map_err(|e| format!("quiche: {e}"))?;
        let path =
            |path: &Path| path.to_str().map(str::to_owned).ok_or(format!("{}: not UTF-8", path.display()));
        let file = |what: &str, path: &Path, e| format!("bad {what} {}: {e}", path.display());
        config
            .load_cert_chain_from_pem_file(&path(&self.cert)?)
            .map_err(|e| file("certificate", &self.cert, e))?;
        config.load_priv_key_from_pem_file(&path(&self.key)?).map_err(|e| file("key", &self.key, e))?;
        config.set_ticket_key(&self.ticket_key).map_err(|e| format!("session ticket key: {e}"))?;
        config.set_application_protos(&[ALPN]).map_err(|e| format!("ALPN: {e}"))?;
        // The two that every client has; post-quantum shares make a ClientHello of two packets and a slower
        // handshake.
        config.set_curves_list("X25519:P-256").map_err(|e| format!("key exchange groups: {e}"))?;
        config.set_max_idle_timeout(self.idle_timeout.as_millis() as u64);
        config.set_max_recv_udp_payload_size(MAX_RX_PAYLOAD);
        config.set_max_send_udp_payload_size(MAX_TX_PAYLOAD);
        config.set_max_ack_delay(ACK_DELAY.as_millis() as u64);
        // One control stream from the client; no others are part of the protocol.
        config.set_initial_max_streams_bidi(1);
        config.set_initial_max_streams_uni(0);
        config.set_initial_max_stream_data_bidi_remote(CONTROL_WINDOW);
        config.set_initial_max_data(CONTROL_WINDOW);
        config.set_max_stream_window(CONTROL_WINDOW);
        config.set_max_connection_window(CONTROL_WINDOW);
        config.enable_dgram(true, DATAGRAMS_IN, DATAGRAMS_OUT);
        // Sent packets are spread over the tick by the fan-out, across connections; within one there are too
        // few.
        config.enable_pacing(false);
        config.set_active_connection_id_limit(PATHS);
        // BBR's state is 3.3 KB a connection smaller than CUBIC's (it is quiche's newer loss recovery, which
        // gives back what the handshake's packet number spaces took), at the same cost for each packet.
        config.set_cc_algorithm(quiche::CongestionControlAlgorithm::Bbr2Gcongestion);
        let plans = Plans::of_this_program(&mut config);
        Ok(WorkerQuic { config, ack_delay: ACK_DELAY, idle_timeout: self.idle_timeout, plans })
    }
}

/// QUIC as one worker has it, certificate and private key included.
pub struct WorkerQuic {
    /// quiche's configuration. One for each worker: accepting needs it mutable.
    pub config: quiche::Config,
    /// How long an acknowledgement may wait.
    pub ack_delay: Duration,
    /// How long a client may be silent.
    pub idle_timeout: Duration,
    /// What memory connections touch.
    pub plans: &'static Plans,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> QuicSettings {
        QuicSettings {
            cert: "missing.pem".into(),
            key: "missing.key".into(),
            idle_timeout: Duration::from_secs(30),
            ticket_key: [0; tls::TICKET_KEY_LEN],
        }
    }

    /// A worker's settings, with a certificate of its own made in `dir`.
    fn worker(dir: &Path, ticket_key: u8) -> WorkerQuic {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (cert, key) = (dir.join("cert.pem"), dir.join("cert.key"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let ticket_key = [ticket_key; tls::TICKET_KEY_LEN];
        QuicSettings { cert, key, ticket_key, ..settings() }.build().unwrap()
    }

    /// Makes a connection to `worker`, with a client that has `ticket`. Returns both ends, and the server's
    /// packets of the handshake.
    fn handshake(
        worker: &mut WorkerQuic,
        ticket: Option<&[u8]>,
    ) -> (quiche::Connection, Connection, Vec<usize>) {
        let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION).unwrap();
        config.verify_peer(false);
        config.set_application_protos(&[ALPN]).unwrap();
        config.set_max_recv_udp_payload_size(MAX_TX_PAYLOAD);
        let address = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let id = quiche::ConnectionId::from_ref(&[1; 8]);
        let mut client = quiche::connect(None, &id, address(1), address(2), &mut config).unwrap();
        if let Some(ticket) = ticket {
            client.set_session(ticket).unwrap();
        }
        let config = &mut worker.config;
        let mut server = quiche::accept_with_buf_factory(&id, None, address(2), address(1), config).unwrap();
        tls::free_settings_after_handshake(&mut server);
        let (mut packets, mut packet, mut quiet) = (Vec::new(), [0; 1500], false);
        while !quiet {
            quiet = true;
            while let Ok((len, info)) = client.send(&mut packet) {
                let info = quiche::RecvInfo { from: info.from, to: info.to };
                server.recv(&mut packet[..len], info).unwrap();
                quiet = false;
            }
            while let Ok((len, info)) = server.send(&mut packet) {
                if !client.is_established() {
                    packets.push(len);
                }
                let info = quiche::RecvInfo { from: info.from, to: info.to };
                client.recv(&mut packet[..len], info).unwrap();
                quiet = false;
            }
        }
        assert!(client.is_established() && server.is_established());
        (client, server, packets)
    }

    #[test]
    fn a_ticket_is_good_for_every_worker_and_after_a_restart_but_not_with_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let (client, server, _) = handshake(&mut worker(dir.path(), 1), None);
        assert!(!server.is_resumed());
        let ticket = client.session().expect("a ticket").to_vec();
        // Another worker, or the same after a restart, is another context; its certificate may be a new one.
        let (client, server, _) = handshake(&mut worker(dir.path(), 1), Some(&ticket));
        assert!(server.is_resumed() && client.is_resumed());
        assert!(!server.is_in_early_data() && !client.is_in_early_data());
        assert!(client.session().is_some_and(|again| again != ticket), "a new ticket for the next time");
        let (_, server, _) = handshake(&mut worker(dir.path(), 2), Some(&ticket));
        assert!(!server.is_resumed());
    }

    #[test]
    fn the_handshake_is_two_packets_and_its_settings_are_freed() {
        let dir = tempfile::tempdir().unwrap();
        let (_client, mut server, packets) = handshake(&mut worker(dir.path(), 1), None);
        assert!(packets.len() <= 2, "{packets:?} bytes: the client's Initial allows three times its 1200");
        let tls: &mut boring::ssl::SslRef = server.as_mut();
        assert!(tls.certificate().is_none(), "BoringSSL still has the settings of the handshake");
    }

    #[test]
    fn a_missing_certificate_is_named() {
        assert!(settings().build().err().is_some_and(|e| e.contains("missing.pem")));
    }
}
