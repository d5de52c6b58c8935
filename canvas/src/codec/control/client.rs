//! Frames from client to server.

use super::{Decoded, FRAME_HEADER, FrameError, begin, end, header};
use crate::codec::{Entries, Fields, Pixels, TileVersions};
use crate::codes::{MAX_CLIENT_FRAME, MAX_TOKEN, frame};

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
    /// The half-open rectangle that the client wants to see; [`crate::Geometry::tile_rect`] makes tiles of
    /// it.
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
