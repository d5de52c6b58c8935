//! Numbers that the wire contract fixes: types, flags, codes and limits. Changing one makes another protocol.

use thiserror::Error;

/// The ALPN protocol of the native transport (section 1).
pub const ALPN: &[u8] = b"canvas/1";

/// The version of the protocol in HELLO and WELCOME.
pub const PROTOCOL_VERSION: u16 = 1;

/// UDP port that a server listens on, and a client dials, when nobody says otherwise (section 1).
pub const DEFAULT_PORT: u16 = 4433;

/// Bytes: the least `max_datagram_frame_size` that makes a peer get datagrams (section 1). With less it gets
/// the payloads as DATAGRAM frames on the control stream.
pub const MIN_DATAGRAM_FRAME_SIZE: u16 = 1200;

/// Bytes: the longest datagram payload that a server sends (section 1). Larger ones would not fit a 1200-byte
/// path beside QUIC's own headers; smaller ones spend more packets on the same diff.
pub const MAX_DATAGRAM_PAYLOAD: usize = 1100;

/// Pixels in one PAINT datagram (section 4). The server counts a datagram with more as malformed.
pub const MAX_PAINT_PIXELS: usize = 200;

/// Bytes: the longest body of a client's frame (section 3). It bounds what a server buffers for a client.
pub const MAX_CLIENT_FRAME: u32 = 65_536;

/// Malformed datagrams on one connection: the one with this number closes it (section 4).
pub const MAX_MALFORMED_DATAGRAMS: u32 = 100;

/// Bytes: the longest token of a HELLO, whose length field is one byte (section 3).
pub const MAX_TOKEN: usize = 255;

/// Types of control frames (section 3). Below 0x40 they go from client to server, above from server to
/// client.
pub mod frame {
    /// Client: the first frame.
    pub const HELLO: u8 = 0x01;
    /// Client: the part of the canvas that it wants to see.
    pub const VIEW: u8 = 0x02;
    /// Client: pixels, acknowledged by [`PAINT_ACK`].
    pub const PAINT: u8 = 0x03;
    /// Client: tiles of which it wants an image.
    pub const REPAIR: u8 = 0x04;
    /// Client: answered by [`PONG`].
    pub const PING: u8 = 0x05;
    /// Client: answered by [`SERVER_STATS`].
    pub const STATS: u8 = 0x06;
    /// Server: the answer to [`HELLO`].
    pub const WELCOME: u8 = 0x41;
    /// Server: the answer to [`PAINT`].
    pub const PAINT_ACK: u8 = 0x43;
    /// Server: the answer to [`PING`].
    pub const PONG: u8 = 0x45;
    /// Server: the answer to [`STATS`].
    pub const SERVER_STATS: u8 = 0x46;
    /// Server: a text for people, ahead of a close.
    pub const NOTICE: u8 = 0x47;
    /// Server: a datagram payload for a client without datagrams.
    pub const DATAGRAM: u8 = 0x48;
}

/// Types of datagrams (section 4).
pub mod datagram {
    /// Client: pixels, not acknowledged.
    pub const PAINT: u8 = 0x01;
    /// Server: records of changed tiles.
    pub const DIFF: u8 = 0x81;
    /// Server: versions of tiles that became quiet.
    pub const VERSIONS: u8 = 0x82;
}

/// Kinds of unidirectional streams (section 4).
pub mod stream {
    /// Server: tile images.
    pub const TILES: u8 = 0x01;
}

/// HELLO flag: send me the snapshot.
pub const HELLO_SNAPSHOT: u16 = 1 << 0;
/// HELLO flag: send me diffs.
pub const HELLO_DIFFS: u16 = 1 << 1;
/// PAINT frame flag: acknowledge only once the pixels are durable.
pub const PAINT_DURABLE: u8 = 1 << 0;

/// Application error codes of CONNECTION_CLOSE, and the code in a NOTICE (section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseCode {
    /// The client or the server is done.
    Ok = 0,
    /// Malformed control frames, or too many malformed datagrams.
    ProtocolViolation = 1,
    /// Persistent flooding past the configured limits.
    RateLimited = 2,
    /// The worker's connection table is full.
    ServerFull = 3,
    /// The token was refused.
    Unauthorized = 4,
    /// The server is shutting down; a NOTICE came first.
    Draining = 5,
}

impl CloseCode {
    /// Every code, in the order of its number.
    pub const ALL: [CloseCode; 6] = [
        CloseCode::Ok,
        CloseCode::ProtocolViolation,
        CloseCode::RateLimited,
        CloseCode::ServerFull,
        CloseCode::Unauthorized,
        CloseCode::Draining,
    ];

    /// The number on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a number from the wire; `None` for one that this protocol does not name.
    pub fn from_code(code: u64) -> Option<CloseCode> {
        Self::ALL.into_iter().find(|known| u64::from(known.code()) == code)
    }

    /// The name of section 5.
    pub const fn name(self) -> &'static str {
        match self {
            CloseCode::Ok => "OK",
            CloseCode::ProtocolViolation => "PROTOCOL_VIOLATION",
            CloseCode::RateLimited => "RATE_LIMITED",
            CloseCode::ServerFull => "SERVER_FULL",
            CloseCode::Unauthorized => "UNAUTHORIZED",
            CloseCode::Draining => "DRAINING",
        }
    }
}

/// The reason in a PAINT_ACK that rejected nothing.
pub const REASON_NONE: u8 = 0;

/// Why a pixel was rejected (section 3, below the tables). [`REASON_NONE`] stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[repr(u8)]
pub enum Reason {
    /// The position is not on the canvas.
    #[error("outside the canvas")]
    OutsideCanvas = 1,
    /// The colour is not in the palette.
    #[error("colour outside the palette")]
    OutsidePalette = 2,
    /// Too soon after the last pixel, or past the rate limit.
    #[error("cooldown or rate limit")]
    RateLimited = 3,
    /// The client may not paint, or has not said HELLO yet.
    #[error("not allowed to paint")]
    NotAllowed = 4,
    /// The server could not take it now.
    #[error("server overloaded")]
    Overloaded = 5,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Reason; 5] = [
        Reason::OutsideCanvas,
        Reason::OutsidePalette,
        Reason::RateLimited,
        Reason::NotAllowed,
        Reason::Overloaded,
    ];

    /// The number on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a number from the wire; `None` for [`REASON_NONE`] and for numbers not in the table.
    pub fn from_code(code: u8) -> Option<Reason> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_tables() {
        let codes: Vec<(u8, &str)> = CloseCode::ALL.iter().map(|code| (code.code(), code.name())).collect();
        assert_eq!(
            codes,
            [
                (0, "OK"),
                (1, "PROTOCOL_VIOLATION"),
                (2, "RATE_LIMITED"),
                (3, "SERVER_FULL"),
                (4, "UNAUTHORIZED"),
                (5, "DRAINING")
            ]
        );
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(code.code().into()), Some(code));
        }
        assert_eq!(CloseCode::from_code(6), None);
        assert_eq!(CloseCode::from_code(256), None);
        for (number, reason) in (1..).zip(Reason::ALL) {
            assert_eq!(reason.code(), number);
            assert_eq!(Reason::from_code(number), Some(reason));
        }
        assert_eq!(Reason::from_code(REASON_NONE), None);
        assert_eq!(Reason::from_code(6), None);
    }
}
