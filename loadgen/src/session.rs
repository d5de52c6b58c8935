//! One connection's canvas/1 session: the handshake up to WELCOME, the control stream, the tile streams.
//!
//! Buffers: frames to send gather in [`Outbox`] and leave as the stream takes them, so nothing here blocks
//! the loop that reads; received bytes stay in [`Inbox`] only until they are a whole frame. All waiting is
//! cancel-safe, as a client waits for several things at once.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;

use canvas::Geometry;
use canvas::codec::control::{ClientFrame, Decoded, PaintAck, ServerFrame, ServerStats, Welcome};
use canvas::codec::tiles::{Image, TilesDecoder, TilesReason};
use canvas::codes::{CloseCode, PROTOCOL_VERSION};
use canvas::{Palette, TILE_SIDE};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::time::{Instant, timeout_at};

use crate::loss::Loss;

/// Bytes of frames that may wait in an [`Outbox`]. It holds what a stalled connection paints in tens of
/// seconds; larger hides a path that is too slow, smaller turns a short stall into unsent pixels.
const OUTBOX_LIMIT: usize = 16 << 10;
/// Bytes to read from a stream at once: some tile images, or all frames of a moment.
const READ_SIZE: usize = 16 << 10;

/// What a WELCOME says of the canvas; the same on every connection to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanvasShape {
    /// Its size.
    pub geometry: Geometry,
    /// How many colours there are, 2 to 256.
    pub colours: u16,
}

impl CanvasShape {
    fn new(welcome: &Welcome<'_>) -> Result<Self, Loss> {
        if welcome.version != PROTOCOL_VERSION {
            return Err(Loss::protocol("WELCOME of another protocol version"));
        }
        if welcome.tile_side != TILE_SIDE {
            return Err(Loss::protocol("WELCOME with a tile side other than 64"));
        }
        let geometry = welcome.geometry().map_err(Loss::protocol)?;
        let palette: Palette = welcome.palette().map_err(Loss::protocol)?;
        Ok(Self { geometry, colours: palette.colours().len() as u16 })
    }
}

/// A connection whose WELCOME has come.
#[derive(Debug)]
pub struct Session {
    /// The QUIC connection.
    pub connection: Connection,
    /// Frames from the server.
    pub inbox: Inbox,
    /// Frames to the server.
    pub outbox: Outbox,
    /// What the WELCOME said.
    pub shape: CanvasShape,
    /// When the QUIC handshake ended.
    pub established: Instant,
}

impl Session {
    /// Connects, sends this HELLO and waits for the WELCOME, all by `deadline`.
    ///
    /// # Errors
    /// Whatever stood in the way.
    pub async fn open(
        endpoint: &Endpoint,
        config: ClientConfig,
        (server, name): (SocketAddr, &str),
        hello: ClientFrame<'_>,
        deadline: Instant,
    ) -> Result<Self, Loss> {
        let connecting = endpoint.connect_with(config, server, name)?;
        let connection = timeout_at(deadline, connecting).await.map_err(|_| Loss::CONNECT_TIMEOUT)??;
        let established = Instant::now();
        let welcome = async {
            let (send, recv) = connection.open_bi().await?;
            let mut outbox = Outbox { send, bytes: Vec::new() };
            let mut inbox = Inbox { recv, bytes: Vec::new() };
            outbox.queue(&hello);
            while outbox.pending() {
                outbox.flush().await?;
            }
            loop {
                match inbox.next()? {
                    Some(Answer::Welcome(shape)) => return Ok((inbox, outbox, shape)),
                    Some(Answer::Notice(_)) => {}
                    Some(_) => return Err(Loss::protocol("another frame before WELCOME")),
                    None => inbox.receive().await?,
                }
            }
        };
        match timeout_at(deadline, welcome).await.unwrap_or(Err(Loss::CONNECT_TIMEOUT)) {
            Ok((inbox, outbox, shape)) => Ok(Self { connection, inbox, outbox, shape, established }),
            Err(loss) => {
                // If it is the connection that was lost, this does nothing.
                close(&connection, CloseCode::ProtocolViolation);
                Err(loss)
            }
        }
    }
}

/// The HELLO with these flags and this token.
pub fn hello(flags: u16, token: &str) -> ClientFrame<'_> {
    ClientFrame::Hello { version: PROTOCOL_VERSION, flags, token: token.as_bytes() }
}

/// Closes a connection with one of the protocol's codes.
pub fn close(connection: &Connection, code: CloseCode) {
    connection.close(VarInt::from_u32(code.code().into()), code.name().as_bytes());
}

/// A frame from the server, as far as a load generator cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// WELCOME.
    Welcome(CanvasShape),
    /// PAINT_ACK.
    PaintAck(PaintAck),
    /// PONG, with the number of the PING.
    Pong(u64),
    /// STATS.
    Stats(ServerStats),
    /// NOTICE: the connection is about to be closed, for this cause.
    Notice(Loss),
    /// DATAGRAM: the payload of what comes as a datagram elsewhere.
    Datagram(Vec<u8>),
}

/// Receiving half of the control stream.
#[derive(Debug)]
pub struct Inbox {
    recv: RecvStream,
    bytes: Vec<u8>,
}

impl Inbox {
    /// Waits for more bytes; cancel-safe.
    ///
    /// # Errors
    /// The connection was lost, or the server ended the stream.
    pub async fn receive(&mut self) -> Result<(), Loss> {
        let chunk = self.recv.read_chunk(READ_SIZE, true).await?.ok_or(Loss::CONTROL_ENDED)?;
        self.bytes.extend_from_slice(&chunk.bytes);
        Ok(())
    }

    /// The next frame, of those whose bytes have been received.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn next(&mut self) -> Result<Option<Answer>, Loss> {
        loop {
            let Some((frame, length)) = ServerFrame::decode(&self.bytes).map_err(Loss::protocol)? else {
                if self.bytes.is_empty() {
                    // Between frames a connection of thousands holds no buffer.
                    self.bytes = Vec::new();
                }
                return Ok(None);
            };
            let answer = match frame {
                Decoded::Frame(ServerFrame::Welcome(welcome)) => {
                    Some(Answer::Welcome(CanvasShape::new(&welcome)?))
                }
                Decoded::Frame(ServerFrame::PaintAck(ack)) => Some(Answer::PaintAck(ack)),
                Decoded::Frame(ServerFrame::Pong(number)) => Some(Answer::Pong(number)),
                Decoded::Frame(ServerFrame::Stats(stats)) => Some(Answer::Stats(stats)),
                Decoded::Frame(ServerFrame::Notice { code, .. }) => {
                    Some(Answer::Notice(Loss::closed_with(code.into())))
                }
                Decoded::Frame(ServerFrame::Datagram(payload)) => Some(Answer::Datagram(payload.to_vec())),
                Decoded::Unknown(_) => None,
            };
            self.bytes.drain(..length);
            if answer.is_some() {
                return Ok(answer);
            }
        }
    }
}

/// Sending half of the control stream.
#[derive(Debug)]
pub struct Outbox {
    send: SendStream,
    bytes: Vec<u8>,
}

impl Outbox {
    /// Puts a frame behind those that wait; [`Outbox::flush`] sends it.
    pub fn queue(&mut self, frame: &ClientFrame<'_>) {
        frame.encode(&mut self.bytes);
    }

    /// Whether so much waits that a client should not paint.
    pub fn full(&self) -> bool {
        self.bytes.len() >= OUTBOX_LIMIT
    }

    /// Whether anything waits.
    pub fn pending(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Hands QUIC as much as it takes, waiting until it takes something; cancel-safe. Only while
    /// [`Outbox::pending`].
    ///
    /// # Errors
    /// The connection was lost, or the server stopped the stream.
    pub async fn flush(&mut self) -> Result<(), Loss> {
        let written = self.send.write(&self.bytes).await?;
        self.bytes.drain(..written);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        Ok(())
    }
}

/// The tile streams that a connection is receiving.
#[derive(Default)]
pub struct TileStreams {
    open: Vec<(RecvStream, TilesDecoder)>,
    /// Where a read goes; on the heap, and only once there is a stream, since thousands of clients never
    /// have one.
    buffer: Vec<u8>,
}

impl TileStreams {
    /// Adds one that the server opened.
    pub fn add(&mut self, stream: RecvStream) {
        self.buffer.resize(READ_SIZE, 0);
        self.open.push((stream, TilesDecoder::default()));
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Waits for bytes on any of the streams, hands over the images that they complete, and says what a
    /// stream was the answer to if it has ended. Cancel-safe; waits forever while there is no stream.
    ///
    /// # Errors
    /// The connection was lost, or the server broke the protocol.
    pub async fn receive(
        &mut self,
        on_image: impl FnMut(TilesReason, &Image),
    ) -> Result<Option<TilesReason>, Loss> {
        let (index, read) = poll_fn(|cx| {
            for (index, (stream, _)) in self.open.iter_mut().enumerate() {
                if let Poll::Ready(read) = stream.poll_read(cx, &mut self.buffer) {
                    return Poll::Ready((index, read));
                }
            }
            Poll::Pending
        })
        .await;
        match read? {
            0 => {
                let (_, decoder) = self.open.swap_remove(index);
                decoder.finish().map(Some).map_err(Loss::protocol)
            }
            length => {
                self.open[index].1.push(&self.buffer[..length], on_image).map_err(Loss::protocol)?;
                Ok(None)
            }
        }
    }
}
