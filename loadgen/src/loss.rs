//! Why a connection failed, in one short line: the keys of the report's `failures_by_cause`.

use std::borrow::Cow;
use std::fmt;

use canvas::codes::CloseCode;
use quinn::{ConnectError, ConnectionError, ReadError, TransportErrorCode, WriteError};

/// How the cause begins of a connection that was given up for what the server sent.
const BROKE: &str = "server broke the protocol";

/// The cause for which a connection did not come up, or was lost. Causes are for counting, so no address or
/// time of a single connection is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss(Cow<'static, str>);

impl Loss {
    /// The connect timeout passed without an answer, or without a WELCOME.
    pub const CONNECT_TIMEOUT: Self = Self(Cow::Borrowed("connect timeout"));
    /// The connection is there, but an answer is not.
    pub const ANSWER_TIMEOUT: Self = Self(Cow::Borrowed("no answer in time"));
    /// The server ended the control stream but not the connection.
    pub const CONTROL_ENDED: Self = Self(Cow::Borrowed("control stream ended by the server"));

    /// The server broke the protocol, in this way.
    pub fn protocol(what: impl fmt::Display) -> Self {
        Self(format!("{BROKE}: {what}").into())
    }

    /// Whether this cause, of those that were counted, is the server's breaking the protocol.
    pub fn is_protocol(cause: &str) -> bool {
        cause.starts_with(BROKE)
    }

    /// The server closed the connection with this code of its own, or announced that it will.
    pub fn closed_with(code: u64) -> Self {
        Self(match CloseCode::from_code(code) {
            Some(code) => code.name().into(),
            None => format!("closed with unknown code {code}").into(),
        })
    }

    /// This host gave no UDP socket.
    pub fn no_socket(error: std::io::Error) -> Self {
        Self(format!("cannot open a UDP socket: {error}").into())
    }

    /// Whether the server refused the token, or missed one.
    pub fn is_unauthorized(&self) -> bool {
        self.0 == CloseCode::Unauthorized.name()
    }

    /// The cause, for counting.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ConnectionError> for Loss {
    fn from(error: ConnectionError) -> Self {
        Self(match error {
            ConnectionError::ApplicationClosed(close) => {
                return Self::closed_with(close.error_code.into_inner());
            }
            // A close of the application's before the handshake's end goes out without its code (RFC 9000,
            // 10.2.3).
            ConnectionError::ConnectionClosed(close) => match close.error_code {
                TransportErrorCode::CONNECTION_REFUSED => "CONNECTION_REFUSED".into(),
                TransportErrorCode::APPLICATION_ERROR => "closed during the handshake".into(),
                code => format!("closed by the server's QUIC stack: {code}").into(),
            },
            ConnectionError::TransportError(error) => format!("QUIC or TLS error: {error}").into(),
            ConnectionError::VersionMismatch => "no common QUIC version".into(),
            ConnectionError::Reset => "stateless reset".into(),
            ConnectionError::TimedOut => "idle timeout".into(),
            ConnectionError::LocallyClosed => "closed locally".into(),
            ConnectionError::CidsExhausted => "local connection IDs exhausted".into(),
        })
    }
}

impl From<ConnectError> for Loss {
    fn from(error: ConnectError) -> Self {
        Self(format!("cannot connect: {error}").into())
    }
}

impl From<ReadError> for Loss {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => error.into(),
            ReadError::Reset(_) => Self("stream reset by the server".into()),
            other => Self(format!("cannot read: {other}").into()),
        }
    }
}

impl From<WriteError> for Loss {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            WriteError::Stopped(_) => Self("control stream stopped by the server".into()),
            other => Self(format!("cannot write: {other}").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use quinn::{ApplicationClose, VarInt};

    use super::*;

    fn closed(code: u32) -> Loss {
        let reason = bytes::Bytes::from_static(b"whatever");
        ConnectionError::ApplicationClosed(ApplicationClose { error_code: VarInt::from_u32(code), reason })
            .into()
    }

    #[test]
    fn close_codes_go_by_their_names() {
        assert_eq!(closed(3).as_str(), "SERVER_FULL");
        assert_eq!(closed(5).as_str(), "DRAINING");
        assert_eq!(closed(77).as_str(), "closed with unknown code 77");
    }
}
