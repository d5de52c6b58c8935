//! The control stream's two byte buffers: frames in, frames out.
//!
//! In: frames are read straight from what QUIC delivered; only the rest of a frame that is cut by the end of
//! the delivery is kept, so an idle session holds no buffer. Out: frames wait here until QUIC takes them.
//! Past [`PAUSE_BYTES`] the session stops reading frames, so a client that asks without listening is held up
//! by flow control instead of by memory.

use crate::quic::config::Connection;

/// The control stream: the client's first bidirectional one.
pub const CONTROL_STREAM: u64 = 0;

/// Bytes waiting to be sent above which no more client frames are read. A WELCOME with 256 colours has 800
/// bytes, an acknowledgement 20: this is thousands of answers.
const PAUSE_BYTES: usize = 64 * 1024;

/// Outgoing control bytes.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Where the next frame is to be encoded.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Bytes not yet taken by QUIC.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// True if QUIC took everything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if the client has so many answers to fetch that it should get no more yet.
    pub fn is_crowded(&self) -> bool {
        self.len() > PAUSE_BYTES
    }

    /// Hands over to QUIC what it takes now.
    ///
    /// # Errors
    /// quiche's: the client stopped the stream, or the connection is gone.
    pub fn flush(&mut self, quic: &mut Connection) -> quiche::Result<()> {
        while self.sent < self.bytes.len() {
            match quic.stream_send(CONTROL_STREAM, &self.bytes[self.sent..], false) {
                Ok(0) | Err(quiche::Error::Done) => break,
                Ok(taken) => self.sent += taken,
                Err(error) => return Err(error),
            }
        }
        if self.is_empty() {
            // Freed rather than kept: most clients are silent on their control stream after WELCOME.
            self.bytes = Vec::new();
            self.sent = 0;
        } else if self.sent > PAUSE_BYTES {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}
