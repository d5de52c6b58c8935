//! The certificate: the given one, checked, or a self-signed one, kept and renewed in the state directory.
//!
//! Browsers accept a pinned certificate (`serverCertificateHashes`) only if it is ECDSA P-256 and valid for
//! at most 14 days; the self-signed one is made to that. QUIC loads PEM files by path, so paths are what is
//! handed on; what they hold is checked here first, for errors that say more than "TLS failed".

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

use super::{StateDir, StateError, files};
use crate::cli::CertificateFiles;

const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "cert.key";

/// Whole validity of a self-signed certificate. Browsers take 14 days at most for a pinned one; a day less
/// leaves room for the ways to count the ends. Shorter means more restarts.
const VALIDITY: Duration = Duration::days(13);

/// How far in the past validity begins: clients' clocks may be slow by this much. It is part of [`VALIDITY`].
const CLOCK_SLACK: Duration = Duration::hours(1);

/// A self-signed certificate with less time left is renewed at start. Clients that were told its hash need a
/// new one then; more would renew oftener, less would start servers whose certificate soon expires.
const RENEW_BEFORE: Duration = Duration::days(1);

/// Longest `cert.key` that is read, in bytes. A P-256 key in PEM takes about 240.
const LONGEST_KEY: usize = 64 * 1024;

/// The certificate that the server shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// PEM file of the chain, leaf first.
    pub cert_pem_path: PathBuf,
    /// PEM file of the leaf's private key.
    pub key_pem_path: PathBuf,
    /// SHA-256 of the leaf in DER: what clients pin.
    pub sha256: [u8; 32],
    /// When the leaf expires.
    pub not_after: OffsetDateTime,
    /// It is our own, from the state directory.
    pub self_signed: bool,
    /// What a human should know: renewed and why, expired, readable by all. One sentence each.
    pub notes: Vec<String>,
}

/// Why there is no certificate to show. All name the file; `bad certificate` is the start of all that blame
/// its content.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("bad certificate: cannot read {}: {source}; check --{option}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// `cert` or `key`.
        option: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A path is not UTF-8, which the TLS library wants.
    #[error("bad certificate: the path {0:?} is not UTF-8; give the file another name")]
    PathNotUtf8(PathBuf),
    /// No certificate in the file.
    #[error(
        "bad certificate: no PEM certificate in {path} (`-----BEGIN CERTIFICATE-----`); \
         if it is DER, convert it: `openssl x509 -inform der -in {path} -out cert.pem`",
        path = .0.display()
    )]
    NotACertificate(PathBuf),
    /// The certificate does not parse.
    #[error("bad certificate: {} is broken: {reason}; export it again", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where parsing stopped.
        reason: String,
    },
    /// No private key in the file.
    #[error("bad certificate: no PEM key in {} (`-----BEGIN PRIVATE KEY-----`); check --key", .0.display())]
    NotAKey(PathBuf),
    /// The private key is encrypted, and nobody is there to type the passphrase.
    #[error(
        "bad certificate: the private key {path} is encrypted; \
         decrypt it: `openssl pkey -in {path} -out key.pem`",
        path = .0.display()
    )]
    EncryptedKey(PathBuf),
    /// The TLS library takes the certificate or the key neither alone nor together.
    #[error(
        "bad certificate: the TLS library refuses {}; it wants ECDSA, RSA or Ed25519, in PEM, unbroken",
        .0.display()
    )]
    Refused(PathBuf),
    /// The key is another certificate's.
    #[error(
        "bad certificate: the private key {} does not belong to the certificate {}; \
         give the pair that was issued together",
        key.display(), cert.display()
    )]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The state directory failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// A self-signed certificate could not be made.
    #[error("cannot make a self-signed certificate: {0}; give --cert and --key")]
    Generation(#[from] rcgen::Error),
}

impl Identity {
    /// The `given` certificate, or else the self-signed one of `state`, made or renewed if need be.
    ///
    /// `addresses` are those that clients connect to; a self-signed certificate names them, and localhost and
    /// the host's name. One that is new there means a new certificate, so leave out those that come and go by
    /// themselves (IPv6 privacy addresses).
    ///
    /// # Errors
    /// [`CertificateError`]. An expired certificate that was given is no error, but a note.
    pub fn obtain(
        given: Option<&CertificateFiles>,
        state: &StateDir,
        addresses: &[IpAddr],
        now: OffsetDateTime,
    ) -> Result<Identity, CertificateError> {
        match given {
            Some(files) => Identity::given(files, now),
            None => self_signed(state, addresses, now),
        }
    }

    /// The certificate in `files`, checked.
    ///
    /// # Errors
    /// [`CertificateError`]. An expired one is no error, but a note.
    pub fn given(files: &CertificateFiles, now: OffsetDateTime) -> Result<Identity, CertificateError> {
        let loaded = load(files)?;
        let mut notes = Vec::new();
        if now > loaded.not_after {
            notes.push(format!(
                "the certificate {} has expired: clients will refuse it",
                files.cert.display()
            ));
        } else if now < loaded.not_before {
            notes.push(format!("the certificate {} is not valid yet: check the clock", files.cert.display()));
        }
        if fs::metadata(&files.key).is_ok_and(|metadata| metadata.mode() & 0o007 != 0) {
            notes.push(format!("every user can read the private key: `chmod o= {}`", files.key.display()));
        }
        Ok(identity(files, &loaded, false, notes))
    }
}

/// What a checked pair of files holds.
struct Loaded {
    sha256: [u8; 32],
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    addresses: Vec<IpAddr>,
}

/// Checks that the key of a self-signed certificate, if one is kept, is private.
pub(super) fn check_secret(state: &StateDir) -> Result<(), StateError> {
    files::read_secret(&state.path().join(KEY), LONGEST_KEY).map(drop)
}

fn self_signed(
    state: &StateDir,
    addresses: &[IpAddr],
    now: OffsetDateTime,
) -> Result<Identity, CertificateError> {
    let files = CertificateFiles { cert: state.path().join(CERTIFICATE), key: state.path().join(KEY) };
    let note = match files::read_secret(&files.key, LONGEST_KEY)? {
        None => "made a self-signed certificate".to_owned(),
        Some(_) => {
            let last = load(&files).map_err(|_| "the last one was incomplete or broken".to_owned());
            match last.and_then(|last| fitness(&last, addresses, now).map(|()| last)) {
                Ok(last) => return Ok(identity(&files, &last, true, Vec::new())),
                Err(reason) => format!("made a new self-signed certificate: {reason}"),
            }
        }
    };
    generate(&files, addresses, now)?;
    Ok(identity(&files, &load(&files)?, true, vec![note]))
}

/// Why a self-signed certificate should be made anew, if it should.
fn fitness(loaded: &Loaded, addresses: &[IpAddr], now: OffsetDateTime) -> Result<(), String> {
    if now > loaded.not_after {
        return Err("the last one had expired".to_owned());
    }
    if now > loaded.not_after - RENEW_BEFORE {
        return Err("the last one had less than a day left".to_owned());
    }
    if now < loaded.not_before {
        return Err("the last one was not valid yet (was the clock set back?)".to_owned());
    }
    match addresses.iter().find(|address| !loaded.addresses.contains(address)) {
        Some(address) => Err(format!("the last one did not name {address}")),
        None => Ok(()),
    }
}

fn generate(
    files: &CertificateFiles,
    addresses: &[IpAddr],
    now: OffsetDateTime,
) -> Result<(), CertificateError> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let more = host_name().into_iter().chain(addresses.iter().map(IpAddr::to_string));
    for name in more {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "xdp-server");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = now - CLOCK_SLACK;
    params.not_after = params.not_before + VALIDITY;

    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    // A crash between the two leaves a pair that does not match, which the next start finds and replaces.
    files::replace(&files.key, key.serialize_pem().as_bytes())?;
    files::replace(&files.cert, certificate.pem().as_bytes())?;
    Ok(())
}

/// The host's name, if it can stand in a certificate.
fn host_name() -> Option<String> {
    let system = nix::sys::utsname::uname().ok()?;
    let name = system.nodename().to_str()?.to_ascii_lowercase();
    let is_dns = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    ((1..=253).contains(&name.len()) && is_dns).then_some(name)
}

fn identity(files: &CertificateFiles, loaded: &Loaded, self_signed: bool, notes: Vec<String>) -> Identity {
    Identity {
        cert_pem_path: files.cert.clone(),
        key_pem_path: files.key.clone(),
        sha256: loaded.sha256,
        not_after: loaded.not_after,
        self_signed,
        notes,
    }
}

/// Reads both files and checks them alone and together.
fn load(files: &CertificateFiles) -> Result<Loaded, CertificateError> {
    let read = |path: &Path, option| {
        let error = |source| CertificateError::Unreadable { path: path.to_owned(), option, source };
        fs::read(path).map_err(error)
    };
    let loaded = parse_leaf(&files.cert, &read(&files.cert, "cert")?)?;
    check_key_is_plain_pem(&files.key, &read(&files.key, "key")?)?;
    check_with_tls_library(files)?;
    Ok(loaded)
}

fn parse_leaf(path: &Path, content: &[u8]) -> Result<Loaded, CertificateError> {
    let broken = |reason: String| CertificateError::Broken { path: path.to_owned(), reason };
    let mut blocks = Pem::iter_from_buffer(content);
    let leaf = loop {
        match blocks.next() {
            Some(Ok(block)) if block.label == "CERTIFICATE" => break block,
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(broken(error.to_string())),
            None => return Err(CertificateError::NotACertificate(path.to_owned())),
        }
    };
    let parsed = leaf.parse_x509().map_err(|error| broken(error.to_string()))?;
    Ok(Loaded {
        sha256: Sha256::digest(&leaf.contents).into(),
        not_before: parsed.validity().not_before.to_datetime(),
        not_after: parsed.validity().not_after.to_datetime(),
        addresses: addresses_named_by(&parsed),
    })
}

fn addresses_named_by(certificate: &X509Certificate<'_>) -> Vec<IpAddr> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let address = |name: &GeneralName<'_>| match name {
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(address).collect()
}

fn check_key_is_plain_pem(path: &Path, content: &[u8]) -> Result<(), CertificateError> {
    let text = String::from_utf8_lossy(content);
    // PKCS#8 says it in the label, the older formats in a header.
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(CertificateError::EncryptedKey(path.to_owned()));
    }
    match text.contains("PRIVATE KEY-----") {
        true => Ok(()),
        false => Err(CertificateError::NotAKey(path.to_owned())),
    }
}

/// Asks the very library that will serve the pair, so that whatever passes here is served. It compares the
/// public keys of certificate and key when it has both, so each is tried alone first.
fn check_with_tls_library(files: &CertificateFiles) -> Result<(), CertificateError> {
    let utf8 = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| CertificateError::PathNotUtf8(path.to_owned()))
    };
    let (cert, key) = (utf8(&files.cert)?, utf8(&files.key)?);
    let config = |path: &Path| {
        quiche::Config::new(quiche::PROTOCOL_VERSION).map_err(|_| CertificateError::Refused(path.to_owned()))
    };
    config(&files.key)?
        .load_priv_key_from_pem_file(&key)
        .map_err(|_| CertificateError::Refused(files.key.clone()))?;
    let mut both = config(&files.cert)?;
    both.load_cert_chain_from_pem_file(&cert).map_err(|_| CertificateError::Refused(files.cert.clone()))?;
    both.load_priv_key_from_pem_file(&key)
        .map_err(|_| CertificateError::Mismatch { cert: files.cert.clone(), key: files.key.clone() })
}

#[cfg(test)]
mod tests;
