//! Frames of the control stream (section 3): `u8 type | u32 length | body`.
//!
//! [`ClientFrame::decode`] and [`ServerFrame::decode`] look at the bytes received so far and answer with the first
//! frame in them, or that it is not complete, or why it can never become a valid one. They find the last out as soon as
//! the header tells, so that a peer cannot make the other side wait for, or buffer, a body that would be refused.
//!
//! Decided here where the page leaves it open: HELLO of any protocol version decodes (the session refuses it);
//! unknown flag bits decode as they are; a list frame may have no entry; [`MAX_SERVER_FRAME`].

use super::{Entries, Fields, Pixels, TileVersions};
use crate::codes::{MAX_CLIENT_FRAME, MAX_TOKEN, frame};
use crate::geometry::{Geometry, GeometryError};
use crate::palette::{Palette, PaletteError};
use thiserror::Error;

/// Bytes of a frame's header: type and length.
pub const FRAME_HEADER: usize = 5;

/// Bytes: the longest body that a client accepts from a server. The protocol names no limit; the frames that it names
/// stay under 1200 bytes except for long notices. A larger value lets a hostile server take more of a client's
/// memory; a smaller one breaks clients should a later revision add a larger frame for them to skip.
pub const MAX_SERVER_FRAME: u32 = 1 << 20;

/// Why the bytes are not a frame that the receiver may get. On a server each one means PROTOCOL_VIOLATION.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The length field exceeds what the receiver takes. Known from the header alone.
    #[error("frame 0x{kind:02x} announces {length} bytes, more than the {limit} allowed")]
    TooLong {
        /// Type of the frame.
        kind: u8,
        /// Its length field, in bytes.
        length: u32,
        /// What it may be at most, in bytes.
        limit: u32,
    },
    /// The type belongs to the other direction. Known from the header alone.
    #[error("frame 0x{kind:02x} goes in the other direction only")]
    WrongDirection {
        /// Type of the frame.
        kind: u8,
    },
    /// The body is too short for its fields.
    #[error("frame 0x{kind:02x} has a body of {length} bytes, too short for its fields")]
    WrongSize {
        /// Type of the frame.
        kind: u8,
        /// Its length field, in bytes.
        length: u32,
    },
    /// The body of a list frame is not a whole number of entries.
    #[error("frame 0x{kind:02x} has a body of {length} bytes, not a whole number of entries")]
    PartEntry {
        /// Type of the frame.
        kind: u8,
        /// Its length field, in bytes.
        length: u32,
    },
    /// The text of a NOTICE is not UTF-8.
    #[error("the text of a NOTICE is not UTF-8")]
    NotUtf8,
}

/// What [`ClientFrame::decode`] and [`ServerFrame::decode`] found at the front of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<F> {
    /// A frame.
    Frame(F),
    /// A frame of this type, which this protocol does not name: skip it.
    Unknown(u8),
}

/// A frame from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFrame<'a> {
    /// The first frame of a connection.
    Hello {
        /// [`crate::codes::PROTOCOL_VERSION`], unless the client speaks another.
        version: u16,
        /// [`crate::codes::HELLO_SNAPSHOT`] and [`crate::codes::HELLO_DIFFS`].
        flags: u16,
        /// What entitles the client; at most [`MAX_TOKEN`] bytes.
        token: &'a [u8],
    },
    /// The half-open rectangle that the client wants to see; [`Geometry::tile_rect`] makes tiles of it.
    View {
        /// Left edge.
        x0: u16,
        /// Upper edge.
        y0: u16,
        /// Right edge, not included.
        x1: u16,
        /// Lower edge, not included.
        y1: u16,
        /// Byte budget in kbit/s; 0 for the server's default.
        kbit_per_s: u32,
    },
    /// Pixels to paint, to be acknowledged.
    Paint {
        /// The client's own number, repeated in the acknowledgement.
        seq: u32,
        /// [`crate::codes::PAINT_DURABLE`].
        flags: u8,
        /// The pixels in the order in which to paint them; none is allowed.
        pixels: Pixels<'a>,
    },
    /// Tiles of which the client wants an image, and the version that it has of each.
    Repair {
        /// The tiles.
        tiles: TileVersions<'a>,
    },
    /// To be answered with the same number.
    Ping(u64),
    /// A request for the server's figures.
    Stats,
}

/// The body of a WELCOME, in wire form: not checked against what a canvas can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// [`crate::codes::PROTOCOL_VERSION`].
    pub version: u16,
    /// The server's number for this connection.
    pub client_id: u64,
    /// Pixels from left to right.
    pub width: u16,
    /// Pixels from top to bottom.
    pub height: u16,
    /// [`crate::TILE_SIDE`].
    pub tile_side: u16,
    /// Milliseconds between two ticks.
    pub tick_ms: u16,
    /// Milliseconds that a client must wait between two pixels; 0 for none.
    pub cooldown_ms: u32,
    /// Red, green, blue of each colour; 1 to 256 entries on the wire.
    pub palette: &'a [[u8; 3]],
}

impl Welcome<'_> {
    /// The shape of the canvas.
    ///
    /// # Errors
    /// When a side is 0.
    pub fn geometry(&self) -> Result<Geometry, GeometryError> {
        Geometry::new(self.width.into(), self.height.into())
    }

    /// The palette.
    ///
    /// # Errors
    /// When it has a single colour.
    pub fn palette(&self) -> Result<Palette, PaletteError> {
        Palette::new(self.palette.to_vec())
    }
}

/// The body of a PAINT_ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaintAck {
    /// The number of the PAINT.
    pub seq: u32,
    /// Pixels applied.
    pub applied: u16,
    /// Pixels rejected.
    pub rejected: u16,
    /// Why the first one was rejected: [`crate::codes::Reason`], or [`crate::codes::REASON_NONE`].
    pub reason: u8,
    /// Position of the last applied pixel in the canvas's total order.
    pub commit: u64,
}

/// The body of the server's STATS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Pixels applied since the start.
    pub applied: u64,
    /// Pixels rejected since the start.
    pub rejected: u64,
    /// Connections now.
    pub connections: u64,
    /// Ticks since the start.
    pub tick: u64,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// Position of the last applied pixel in the canvas's total order.
    pub commit: u64,
}

/// A frame from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFrame<'a> {
    /// The answer to HELLO: what the canvas is.
    Welcome(Welcome<'a>),
    /// The answer to a PAINT frame.
    PaintAck(PaintAck),
    /// The answer to PING, with its number.
    Pong(u64),
    /// The answer to STATS.
    Stats(ServerStats),
    /// A text for people, ahead of a close.
    Notice {
        /// A [`crate::codes::CloseCode`].
        code: u8,
        /// The text.
        text: &'a str,
    },
    /// A payload for [`crate::codec::datagram::ServerDatagram::decode`], not looked into.
    Datagram(&'a [u8]),
}

impl<'a> ClientFrame<'a> {
    /// The first frame in `bytes`, which a client sent, and how many bytes it takes; `None` while incomplete.
    ///
    /// # Errors
    /// When the bytes can never become a frame that a client may send.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Decoded<Self>, usize)>, FrameError> {
        let Some((kind, length)) = header(bytes, MAX_CLIENT_FRAME)? else { return Ok(None) };
        // Bytes that every body of the type has; more for variable parts, which need the body to be seen.
        let least = match kind {
            frame::HELLO => 5,
            frame::VIEW => 12,
            frame::PAINT => 5,
            frame::PING => 8,
            frame::REPAIR | frame::STATS => 0,
            frame::WELCOME
            | frame::PAINT_ACK
            | frame::PONG
            | frame::SERVER_STATS
            | frame::NOTICE
            | frame::DATAGRAM => return Err(FrameError::WrongDirection { kind }),
            _ => 0,
        };
        if length < least {
            return Err(FrameError::WrongSize { kind, length });
        }
        let part_entry = match kind {
            frame::PAINT => !(length - 5).is_multiple_of(5),
            frame::REPAIR => !length.is_multiple_of(8),
            _ => false,
        };
        if part_entry {
            return Err(FrameError::PartEntry { kind, length });
        }
        let Some(body) = bytes[FRAME_HEADER..].get(..length as usize) else { return Ok(None) };
        let decoded = match kind {
            frame::HELLO..=frame::STATS => {
                Decoded::Frame(Self::body(kind, Fields(body)).ok_or(FrameError::WrongSize { kind, length })?)
            }
            _ => Decoded::Unknown(kind),
        };
        Ok(Some((decoded, FRAME_HEADER + body.len())))
    }

    /// The body of a known type; `None` when it is too short.
    fn body(kind: u8, mut body: Fields<'a>) -> Option<Self> {
        Some(match kind {
            frame::HELLO => {
                let (version, flags, length) = (body.u16()?, body.u16()?, body.u8()?);
                Self::Hello { version, flags, token: body.slice(length.into())? }
            }
            frame::VIEW => Self::View {
                x0: body.u16()?,
                y0: body.u16()?,
                x1: body.u16()?,
                y1: body.u16()?,
                kbit_per_s: body.u32()?,
            },
            frame::PAINT => {
                Self::Paint { seq: body.u32()?, flags: body.u8()?, pixels: Entries::from_bytes(body.0)? }
            }
            frame::REPAIR => Self::Repair { tiles: Entries::from_bytes(body.0)? },
            frame::PING => Self::Ping(body.u64()?),
            frame::STATS => Self::Stats,
            _ => return None,
        })
    }

    /// Appends the frame to `out`.
    ///
    /// # Panics
    /// When a token is longer than [`MAX_TOKEN`], or a list too long for [`MAX_CLIENT_FRAME`]: 13,106 pixels,
    /// 8,192 tiles.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = match *self {
            Self::Hello { version, flags, token } => {
                assert!(token.len() <= MAX_TOKEN, "a token of {} bytes, {MAX_TOKEN} at most", token.len());
                let body = begin(out, frame::HELLO);
                out.extend(version.to_le_bytes());
                out.extend(flags.to_le_bytes());
                out.push(token.len() as u8);
                out.extend(token);
                body
            }
            Self::View { x0, y0, x1, y1, kbit_per_s } => {
                let body = begin(out, frame::VIEW);
                for side in [x0, y0, x1, y1] {
                    out.extend(side.to_le_bytes());
                }
                out.extend(kbit_per_s.to_le_bytes());
                body
            }
            Self::Paint { seq, flags, pixels } => {
                let body = begin(out, frame::PAINT);
                out.extend(seq.to_le_bytes());
                out.push(flags);
                out.extend(pixels.as_bytes());
                body
            }
            Self::Repair { tiles } => {
                let body = begin(out, frame::REPAIR);
                out.extend(tiles.as_bytes());
                body
            }
            Self::Ping(number) => {
                let body = begin(out, frame::PING);
                out.extend(number.to_le_bytes());
                body
            }
            Self::Stats => begin(out, frame::STATS),
        };
        end(out, body, MAX_CLIENT_FRAME);
    }
}

impl<'a> ServerFrame<'a> {
    /// The first frame in `bytes`, which a server sent, and how many bytes it takes; `None` while incomplete.
    ///
    /// # Errors
    /// When the bytes can never become a frame that a server may send.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Decoded<Self>, usize)>, FrameError> {
        let Some((kind, length)) = header(bytes, MAX_SERVER_FRAME)? else { return Ok(None) };
        let (known, least) = match kind {
            frame::WELCOME => (true, 23 + 3),
            frame::PAINT_ACK => (true, 17),
            frame::PONG => (true, 8),
            frame::SERVER_STATS => (true, 48),
            frame::NOTICE => (true, 1),
            frame::DATAGRAM => (true, 0),
            frame::HELLO..=frame::STATS => return Err(FrameError::WrongDirection { kind }),
            _ => (false, 0),
        };
        if length < least {
            return Err(FrameError::WrongSize { kind, length });
        }
        let Some(body) = bytes[FRAME_HEADER..].get(..length as usize) else { return Ok(None) };
        let decoded = match (known, kind) {
            (false, _) => Decoded::Unknown(kind),
            (true, frame::NOTICE) => {
                let text = str::from_utf8(&body[1..]).map_err(|_| FrameError::NotUtf8)?;
                Decoded::Frame(Self::Notice { code: body[0], text })
            }
            (true, _) => {
                Decoded::Frame(Self::body(kind, Fields(body)).ok_or(FrameError::WrongSize { kind, length })?)
            }
        };
        Ok(Some((decoded, FRAME_HEADER + body.len())))
    }

    /// The body of a known type other than NOTICE; `None` when it is too short.
    fn body(kind: u8, mut body: Fields<'a>) -> Option<Self> {
        Some(match kind {
            frame::WELCOME => Self::Welcome(Welcome {
                version: body.u16()?,
                client_id: body.u64()?,
                width: body.u16()?,
                height: body.u16()?,
                tile_side: body.u16()?,
                tick_ms: body.u16()?,
                cooldown_ms: body.u32()?,
                palette: {
                    let entries = usize::from(body.u8()?) + 1;
                    body.slice(3 * entries)?.as_chunks().0
                },
            }),
            frame::PAINT_ACK => Self::PaintAck(PaintAck {
                seq: body.u32()?,
                applied: body.u16()?,
                rejected: body.u16()?,
                reason: body.u8()?,
                commit: body.u64()?,
            }),
            frame::PONG => Self::Pong(body.u64()?),
            frame::SERVER_STATS => Self::Stats(ServerStats {
                applied: body.u64()?,
                rejected: body.u64()?,
                connections: body.u64()?,
                tick: body.u64()?,
                uptime_ms: body.u64()?,
                commit: body.u64()?,
            }),
            frame::DATAGRAM => Self::Datagram(body.0),
            _ => return None,
        })
    }

    /// Appends the frame to `out`.
    ///
    /// # Panics
    /// When a palette does not have 1 to 256 entries, or a text or payload is longer than [`MAX_SERVER_FRAME`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = match *self {
            Self::Welcome(Welcome {
                version,
                client_id,
                width,
                height,
                tile_side,
                tick_ms,
                cooldown_ms,
                palette,
            }) => {
                assert!((1..=256).contains(&palette.len()), "a palette of {} entries", palette.len());
                let body = begin(out, frame::WELCOME);
                out.extend(version.to_le_bytes());
                out.extend(client_id.to_le_bytes());
                for field in [width, height, tile_side, tick_ms] {
                    out.extend(field.to_le_bytes());
                }
                out.extend(cooldown_ms.to_le_bytes());
                out.push((palette.len() - 1) as u8);
                out.extend(palette.as_flattened());
                body
            }
            Self::PaintAck(PaintAck { seq, applied, rejected, reason, commit }) => {
                let body = begin(out, frame::PAINT_ACK);
                out.extend(seq.to_le_bytes());
                out.extend(applied.to_le_bytes());
                out.extend(rejected.to_le_bytes());
                out.push(reason);
                out.extend(commit.to_le_bytes());
                body
            }
            Self::Pong(number) => {
                let body = begin(out, frame::PONG);
                out.extend(number.to_le_bytes());
                body
            }
            Self::Stats(ServerStats { applied, rejected, connections, tick, uptime_ms, commit }) => {
                let body = begin(out, frame::SERVER_STATS);
                for figure in [applied, rejected, connections, tick, uptime_ms, commit] {
                    out.extend(figure.to_le_bytes());
                }
                body
            }
            Self::Notice { code, text } => {
                let body = begin(out, frame::NOTICE);
                out.push(code);
                out.extend(text.as_bytes());
                body
            }
            Self::Datagram(payload) => {
                let body = begin(out, frame::DATAGRAM);
                out.extend(payload);
                body
            }
        };
        end(out, body, MAX_SERVER_FRAME);
    }
}

/// Type and length of the frame at the front of `bytes`; `None` while the header is incomplete.
fn header(bytes: &[u8], limit: u32) -> Result<Option<(u8, u32)>, FrameError> {
    let Some([kind, length @ ..]) = bytes.first_chunk::<FRAME_HEADER>() else { return Ok(None) };
    let (kind, length) = (*kind, u32::from_le_bytes(*length));
    if length > limit { Err(FrameError::TooLong { kind, length, limit }) } else { Ok(Some((kind, length))) }
}

/// Appends a header whose length [`end`] fills in; returns where the body begins.
fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    out.extend([kind, 0, 0, 0, 0]);
    out.len()
}

/// Fills in the length of the body that runs from `body` to the end of `out`.
fn end(out: &mut [u8], body: usize, limit: u32) {
    let length = out.len() - body;
    assert!(length <= limit as usize, "a frame body of {length} bytes, {limit} at most");
    out[body - 4..body].copy_from_slice(&(length as u32).to_le_bytes());
}
