//! Frames of the control stream (section 3): `u8 type | u32 length | body`.
//!
//! [`ClientFrame::decode`] and [`ServerFrame::decode`] look at the bytes received so far and answer with the
//! first frame in them, or that it is not complete, or why it can never become a valid one. They find the
//! last out as soon as the header tells, so that a peer cannot make the other side wait for, or buffer, a
//! body that would be refused.
//!
//! Decided here where the page leaves it open: HELLO of any protocol version decodes (the session refuses
//! it); unknown flag bits decode as they are; a list frame may have no entry; [`MAX_SERVER_FRAME`].

mod client;
mod server;

pub use client::ClientFrame;
pub use server::{PaintAck, ServerFrame, ServerStats, Welcome};

use thiserror::Error;

/// Bytes of a frame's header: type and length.
pub const FRAME_HEADER: usize = 5;

/// Bytes: the longest body that a client accepts from a server. The protocol names no limit; the frames that
/// it names stay under 1200 bytes except for long notices. A larger value lets a hostile server take more of
/// a client's memory; a smaller one breaks clients should a later revision add a larger frame for them to
/// skip.
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
