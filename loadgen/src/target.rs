//! `--target`: what the user typed, checked before anything is started, and its addresses.
//!
//! A target is an `https` URL of scheme, host and port only. Everything else that a URL may carry is
//! refused by name rather than ignored: a path or a user would suggest that it means something here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use canvas::codes::DEFAULT_PORT;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};

/// The server to load, as given by the user; resolve it to know its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    /// Host name or IP address, without brackets; also the TLS server name.
    host: String,
    port: u16,
}

/// Why a `--target` is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not an `https://` URL.
    #[error("the target must start with https://, as in https://10.0.0.10:{DEFAULT_PORT}")]
    Scheme,
    /// No host between scheme and port.
    #[error("the target names no host; write https://HOST:{DEFAULT_PORT}")]
    NoHost,
    /// A user, path, query or fragment.
    #[error("the target has {0:?} beside host and port; write only https://HOST:PORT")]
    Extra(String),
    /// Colons in the host, but no brackets.
    #[error("put the IPv6 address in brackets: https://[{0}]:{DEFAULT_PORT}")]
    Brackets(String),
    /// Brackets around something else than an IPv6 address.
    #[error("{0:?} is no IPv6 address; write https://[2001:db8::1]:{DEFAULT_PORT} (zones are not supported)")]
    Ipv6(String),
    /// Neither an address nor a DNS name.
    #[error("{0:?} is neither a host name nor an IP address")]
    Host(String),
    /// Not a number from 1 to 65535.
    #[error("{0:?} is no port; a port is a number from 1 to 65535")]
    Port(String),
}

impl Target {
    /// The target at a known address, for programs that start the server themselves.
    pub fn at(addr: SocketAddr) -> Self {
        Self { host: addr.ip().to_string(), port: addr.port() }
    }

    /// The name to offer in the TLS handshake.
    pub fn server_name(&self) -> &str {
        &self.host
    }

    /// Every address of the host, in the resolver's order.
    ///
    /// # Errors
    /// The resolver's, among them that the name has no address.
    pub async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        let found: Vec<_> = tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect();
        if found.is_empty() {
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(found)
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let rest = match text.split_at_checked("https://".len()) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https://") => rest,
            _ => return Err(TargetError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if let Some(at) = rest.find(['/', '?', '#']) {
            return Err(TargetError::Extra(rest[at..].to_owned()));
        }
        if let Some(at) = rest.find('@') {
            return Err(TargetError::Extra(rest[..=at].to_owned()));
        }
        let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
            let (address, after) =
                inner.split_once(']').ok_or_else(|| TargetError::Ipv6(inner.to_owned()))?;
            match address.parse::<IpAddr>() {
                Ok(IpAddr::V6(v6)) => (v6.to_string(), after),
                _ => return Err(TargetError::Ipv6(address.to_owned())),
            }
        } else {
            let end = rest.find(':').unwrap_or(rest.len());
            if rest[end..].matches(':').count() > 1 {
                return Err(TargetError::Brackets(rest.to_owned()));
            }
            (rest[..end].to_owned(), &rest[end..])
        };
        if host.is_empty() {
            return Err(TargetError::NoHost);
        }
        if ServerName::try_from(host.as_str()).is_err() {
            return Err(TargetError::Host(host));
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => DEFAULT_PORT,
            None => return Err(TargetError::Port(port.to_owned())),
            Some(digits) => match digits.parse() {
                Ok(number) if number != 0 => number,
                _ => return Err(TargetError::Port(digits.to_owned())),
            },
        };
        Ok(Self { host, port })
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, TargetError> {
        text.parse::<Target>().map(|t| t.to_string())
    }

    #[test]
    fn good_targets() {
        for (text, means) in [
            ("https://10.0.0.10:4433", "https://10.0.0.10:4433"),
            ("https://10.0.0.10", "https://10.0.0.10:4433"),
            ("HTTPS://canvas.example.org:443/", "https://canvas.example.org:443"),
            ("https://localhost:1", "https://localhost:1"),
            ("https://[2001:DB8:0::1]:65535", "https://[2001:db8::1]:65535"),
            ("https://[::1]", "https://[::1]:4433"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(means), "{text}");
        }
    }

    #[test]
    fn bad_targets_say_what_is_wrong() {
        let s = str::to_owned;
        for (text, error) in [
            ("", TargetError::Scheme),
            ("10.0.0.10:4433", TargetError::Scheme),
            ("http://10.0.0.10:4433", TargetError::Scheme),
            ("https://", TargetError::NoHost),
            ("https://:4433", TargetError::NoHost),
            ("https://host:4433/canvas", TargetError::Extra(s("/canvas"))),
            ("https://host?x", TargetError::Extra(s("?x"))),
            ("https://me@host:4433", TargetError::Extra(s("me@"))),
            ("https://2001:db8::1", TargetError::Brackets(s("2001:db8::1"))),
            ("https://[10.0.0.1]:4433", TargetError::Ipv6(s("10.0.0.1"))),
            ("https://[fe80::1%eth0]:4433", TargetError::Ipv6(s("fe80::1%eth0"))),
            ("https://[::1", TargetError::Ipv6(s("::1"))),
            ("https://[::1]4433", TargetError::Port(s("4433"))),
            ("https://ho st:4433", TargetError::Host(s("ho st"))),
            ("https://host:", TargetError::Port(s(""))),
            ("https://host:0", TargetError::Port(s("0"))),
            ("https://host:65536", TargetError::Port(s("65536"))),
            ("https://höst:4433", TargetError::Host(s("höst"))),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[tokio::test]
    async fn addresses_resolve_to_themselves() {
        let addr: SocketAddr = "[::1]:7".parse().unwrap();
        assert_eq!(Target::at(addr).resolve().await.unwrap(), [addr]);
        assert_eq!(Target::at(addr).server_name(), "::1");
    }
}
