//! quinn, set up for very many small clients.
//!
//! Owns: the TLS and transport configuration (one of each kind for the whole process, shared by reference)
//! and the UDP sockets. Every limit here is small on purpose: a client of 15,000 in a process gets by with
//! tens of KB, and most of them never receive more than acknowledgements.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use canvas::codes::ALPN;
use nix::sys::socket::{setsockopt, sockopt};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest, Sha256};

/// Bytes of receive and of send buffer asked of the kernel for each socket. 4 MiB hold a burst of some
/// 2,000 packets: a fan-out to the clients of one socket arrives in one. Larger costs kernel memory only
/// while full; smaller shows as loss that the server did not cause. Beyond `net.core.rmem_max` it takes
/// root to get.
const SOCKET_BUFFER: usize = 4 << 20;

/// Bytes a UDP payload may have on its way in: an Ethernet frame's worth. quinn's receive buffers are a
/// multiple of it for each socket, so the default of 64 KiB would cost megabytes more.
const MAX_UDP_PAYLOAD: u16 = 1472;

/// QUIC's least packet size, and the protocol's (its datagrams fit it); no probing for more, for 15,000
/// clients that probe are a load that nobody asked for.
const MTU: u16 = 1200;

/// How long a connection may be silent before it counts as lost. Longer delays the report of a server that
/// died; shorter makes a short stall of the server look like its death.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Well below our idle timeout and those that servers are likely to have, of which the shorter counts.
/// Longer loses idle connections to strict servers; shorter is load that nobody asked for. Clients that
/// paint never send any.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// What a client is to receive, and so how large its windows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Paints: receives control frames only.
    Painter,
    /// Also receives diffs.
    Viewer,
    /// Mirrors the canvas: also receives diffs and tile streams.
    Watcher,
}

/// Client configurations for all roles, and what the verifier saw.
#[derive(Clone, Debug)]
pub struct Configs {
    painter: ClientConfig,
    viewer: ClientConfig,
    watcher: ClientConfig,
    verifier: Arc<PinVerifier>,
}

impl Configs {
    /// Configurations that accept any certificate, or only the one with the SHA-256 `pin`.
    pub fn new(pin: Option<[u8; 32]>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(PinVerifier { pin, refused: Mutex::new(None), provider: provider.clone() });
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has cipher suites for TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // Every handshake is a full one: a load of resumed ones would say little about newcomers.
        tls.resumption = Resumption::disabled();
        let tls = Arc::new(QuicClientConfig::try_from(tls).expect("ring has QUIC's initial cipher suite"));
        let config = |role| {
            let mut config = ClientConfig::new(tls.clone());
            config.transport_config(Arc::new(transport(role)));
            config
        };
        Self {
            painter: config(Role::Painter),
            viewer: config(Role::Viewer),
            watcher: config(Role::Watcher),
            verifier,
        }
    }

    /// The configuration of a client of this role.
    pub fn of(&self, role: Role) -> ClientConfig {
        match role {
            Role::Painter => self.painter.clone(),
            Role::Viewer => self.viewer.clone(),
            Role::Watcher => self.watcher.clone(),
        }
    }

    /// SHA-256 of the last certificate that was refused because another one is pinned.
    pub fn refused_certificate(&self) -> Option<[u8; 32]> {
        *self.verifier.refused.lock().expect("no panic while held")
    }
}

fn transport(role: Role) -> TransportConfig {
    // Bytes. A painter's control stream carries a WELCOME of under 1 KiB, then acknowledgements of 20
    // bytes. A watcher's streams carry the snapshot, at most 4 KiB a tile: a window of 1 MiB keeps a LAN
    // busy. Its datagram queue must hold what comes while the task waits its turn; 1 MiB is a burst of 900
    // full diffs. A viewer's is a tenth of that: there are thousands.
    let (stream_window, window, datagrams, uni_streams) = match role {
        Role::Painter => (4 << 10, 8 << 10, 4 << 10, 0),
        Role::Viewer => (4 << 10, 8 << 10, 100 << 10, 0),
        Role::Watcher => (1 << 20, 2 << 20, 1 << 20, 8),
    };
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(uni_streams))
        .stream_receive_window(VarInt::from_u32(stream_window))
        .receive_window(VarInt::from_u32(window))
        // Unacknowledged control frames: hundreds of PAINT frames of one pixel.
        .send_window(16 << 10)
        .datagram_receive_buffer_size(Some(datagrams))
        // About 500 paints of one pixel. What does not fit is counted as unsent, not queued without bound.
        .datagram_send_buffer_size(8 << 10)
        .initial_mtu(MTU)
        .mtu_discovery_config(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("15 s is a valid idle timeout")))
        .keep_alive_interval(Some(KEEP_ALIVE));
    config
}

/// A socket for clients of `server`, on this source port, or on a free one if it is 0.
///
/// # Errors
/// The port is taken, there is no free port or no free file descriptor, or no such address family on this
/// host.
pub fn bind(server: SocketAddr, port: u16) -> std::io::Result<UdpSocket> {
    let any = match server.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, port))?;
    // Best effort, root's way first: with less buffer the run still works, and the kernel counts what it
    // drops.
    if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER);
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER);
    }
    Ok(socket)
}

/// The sockets of a run.
#[derive(Debug)]
pub struct Sockets {
    /// In the order in which clients are dealt out to them; at least one for each thread.
    pub sockets: Vec<UdpSocket>,
    /// How many more were wanted, but found no free port.
    pub ports_missing: u64,
}

/// `count` sockets for clients of `server`, on whichever ports are free. With too few of them there are fewer
/// sockets, but at least `enough`: the run goes on, and says so.
///
/// # Errors
/// Which resource of this host ran out, and what to do about it.
pub fn bind_all(server: SocketAddr, count: usize, enough: usize) -> Result<Sockets, String> {
    let mut sockets = Vec::with_capacity(count);
    for index in 0..count {
        match bind(server, 0) {
            Ok(socket) => sockets.push(socket),
            Err(error) => {
                let no_port = matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable);
                if no_port && sockets.len() >= enough {
                    return Ok(Sockets { ports_missing: (count - index) as u64, sockets });
                }
                let remedy = if no_port { "net.ipv4.ip_local_port_range" } else { "`ulimit -n`" };
                return Err(format!("cannot open {count} UDP sockets: {error}; see {remedy}"));
            }
        }
    }
    Ok(Sockets { sockets, ports_missing: 0 })
}

/// quinn's endpoint on a socket. Call it inside of the runtime that is to drive it.
///
/// # Errors
/// The runtime could not take the socket over.
pub fn open(socket: UdpSocket) -> std::io::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(MAX_UDP_PAYLOAD).expect("1472 is between 1200 and 65527");
    Endpoint::new(config, None, socket, Arc::new(TokioRuntime))
}

/// Accepts every certificate, or the pinned one, but always checks that the server holds its key.
#[derive(Debug)]
struct PinVerifier {
    pin: Option<[u8; 32]>,
    refused: Mutex<Option<[u8; 32]>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(pin) = self.pin else { return Ok(ServerCertVerified::assertion()) };
        let hash: [u8; 32] = Sha256::digest(end_entity).into();
        if hash == pin {
            return Ok(ServerCertVerified::assertion());
        }
        *self.refused.lock().expect("no panic while held") = Some(hash);
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
