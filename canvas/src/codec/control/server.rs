//! Frames from server to client.

use super::{Decoded, FRAME_HEADER, FrameError, MAX_SERVER_FRAME, begin, end, header};
use crate::codec::Fields;
use crate::codes::frame;
use crate::geometry::{Geometry, GeometryError};
use crate::palette::{Palette, PaletteError};

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
    /// When a palette does not have 1 to 256 entries, or a text or payload is longer than
    /// [`MAX_SERVER_FRAME`].
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
