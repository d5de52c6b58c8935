//! What both peer servers do besides QUIC: canvas/1 sessions on one canvas, the same work as xdp-server's.
//!
//! A [`Board`] is the canvas with its tick and its counters; a [`Session`] is one client. Neither knows a
//! socket or a QUIC stack: bytes come in, bytes to send come out ([`Answers`]). One thread owns all of it, so
//! a paint is applied where it is decoded; there is no master to hand it to.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use canvas::codec::control::{ClientFrame, Decoded, PaintAck, ServerFrame, ServerStats, Welcome};
use canvas::codec::datagram::ClientDatagram;
use canvas::codec::tiles::{ImageEncoder, TilesReason, stream_header};
use canvas::codes::{CloseCode, HELLO_DIFFS, HELLO_SNAPSHOT, PROTOCOL_VERSION, REASON_NONE};
use canvas::tiles::TileReader;
use canvas::{Canvas, Geometry, Palette, TILE_PIXELS, TILE_SIDE, Tick, TileRect};
use hugepages::{Pages, Region, Request};

/// What a server has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections whose handshake was completed.
    pub handshakes: u64,
    /// Connections now.
    pub connections: u64,
    /// Messages received: PAINT datagrams and control frames.
    pub messages: u64,
    /// Pixels that were refused.
    pub rejected: u64,
    /// DIFF payloads handed to QUIC.
    pub diffs: u64,
    /// DIFF payloads that a connection could not take.
    pub diffs_refused: u64,
}

/// The canvas, and what happens to it.
pub struct Board {
    canvas: Canvas,
    tiles: TileReader,
    images: ImageEncoder,
    tick_ms: u16,
    welcomed: u64,
    /// See [`Counts`].
    pub counts: Counts,
}

impl Board {
    /// A canvas of zeros.
    ///
    /// # Errors
    /// A side is 0, or there is no memory.
    pub fn new(width: u16, height: u16, tick: Duration) -> Result<Self> {
        let geometry = Geometry::new(width.into(), height.into())?;
        let region = Region::map(&Request {
            what: "canvas tiles",
            len: canvas::tiles::bytes_needed(geometry),
            pages: Pages::Auto,
            numa_node: None,
            prefault: true,
        })?;
        let (writer, tiles) = canvas::tiles::create(geometry, region)?;
        let tick_ms = u16::try_from(tick.as_millis()).context("a tick is at most 65535 ms")?;
        Ok(Self {
            canvas: Canvas::new(writer, Palette::default(), tick_ms),
            tiles,
            images: ImageEncoder::default(),
            tick_ms,
            welcomed: 0,
            counts: Counts::default(),
        })
    }

    /// Pixels applied so far.
    pub fn applied(&self) -> u64 {
        self.canvas.commit()
    }

    /// Ends the tick; call it every tick.
    pub fn tick(&mut self) -> Broadcast {
        Broadcast { tick: self.canvas.tick(), packed: Vec::new() }
    }

    fn paint(&mut self, pixels: canvas::codec::Pixels<'_>) -> (u16, u16, u8) {
        let (mut applied, mut rejected, mut first) = (0, 0, REASON_NONE);
        for pixel in pixels {
            match self.canvas.paint(pixel.x, pixel.y, pixel.colour) {
                Ok(()) => applied += 1,
                Err(reason) => {
                    if rejected == 0 {
                        first = reason.code();
                    }
                    rejected += 1;
                }
            }
        }
        self.counts.rejected += u64::from(rejected);
        (applied, rejected, first)
    }

    fn stats(&self) -> ServerStats {
        ServerStats {
            applied: self.applied(),
            rejected: self.counts.rejected,
            connections: self.counts.connections,
            tick: self.canvas.ticks(),
            uptime_ms: self.canvas.ticks() * u64::from(self.tick_ms),
            commit: self.applied(),
        }
    }

    /// A whole tile stream: the images of `tiles`.
    fn stream(&mut self, reason: TilesReason, tiles: impl Iterator<Item = u32>) -> Vec<u8> {
        let mut bytes = stream_header(reason).to_vec();
        let mut pixels = [0; TILE_PIXELS];
        for tile in tiles {
            let version = self.tiles.read(tile, &mut pixels);
            self.images.encode(tile, version, &pixels, &mut bytes);
        }
        bytes
    }
}

/// One tick on its way to the subscribers: packed once for each view.
pub struct Broadcast {
    tick: Tick,
    packed: Vec<(TileRect, Packed)>,
}

/// The payloads for one view.
#[derive(Clone, Default)]
pub struct Packed {
    /// VERSIONS payloads; to go first, as they are small and what brings a client back that lost records.
    pub versions: Vec<Bytes>,
    /// DIFF payloads.
    pub diffs: Vec<Bytes>,
}

impl Broadcast {
    /// The payloads for clients with this view.
    pub fn payloads(&mut self, view: TileRect) -> &Packed {
        let found = self.packed.iter().position(|(packed, _)| *packed == view);
        let index = found.unwrap_or_else(|| {
            let mut packed = Packed::default();
            self.tick.pack_versions(&view, |payload| packed.versions.push(Bytes::copy_from_slice(payload)));
            self.tick.pack_diffs(&view, |payload| packed.diffs.push(Bytes::copy_from_slice(payload)));
            self.packed.push((view, packed));
            self.packed.len() - 1
        });
        &self.packed[index].1
    }
}

/// What is to be sent to a client.
#[derive(Default)]
pub struct Answers {
    /// On the control stream.
    pub control: Vec<u8>,
    /// Each on a unidirectional stream of its own, which it fills.
    pub streams: Vec<Vec<u8>>,
}

/// One client.
pub struct Session {
    inbox: Vec<u8>,
    open: bool,
    wants_diffs: bool,
    view: TileRect,
    holds: Option<TileRect>,
}

impl Session {
    /// A client that has said nothing yet.
    pub fn new(board: &Board) -> Self {
        let view = board.canvas.geometry().all_tiles();
        Self { inbox: Vec::new(), open: false, wants_diffs: false, view, holds: None }
    }

    /// True if the client is to get broadcasts.
    pub fn is_subscriber(&self) -> bool {
        self.open && self.wants_diffs
    }

    /// The tiles that it sees.
    pub fn view(&self) -> TileRect {
        self.view
    }

    /// Takes a datagram of the client's.
    pub fn on_datagram(&mut self, payload: &[u8], board: &mut Board) {
        if let Ok(ClientDatagram::Paint { pixels, .. }) = ClientDatagram::decode(payload) {
            board.counts.messages += 1;
            if self.open {
                board.paint(pixels);
            } else {
                board.counts.rejected += pixels.len() as u64;
            }
        }
    }

    /// Takes bytes of the control stream.
    ///
    /// # Errors
    /// The code to close the connection with.
    pub fn on_control(
        &mut self,
        bytes: &[u8],
        board: &mut Board,
        answers: &mut Answers,
    ) -> Result<(), CloseCode> {
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some((frame, length)) =
            ClientFrame::decode(&inbox[taken..]).map_err(|_| CloseCode::ProtocolViolation)?
        {
            if let Decoded::Frame(frame) = frame {
                board.counts.messages += 1;
                self.on_frame(frame, board, answers)?;
            }
            taken += length;
        }
        inbox.drain(..taken);
        // An idle client's buffer is memory that nobody needs.
        self.inbox = if inbox.is_empty() { Vec::new() } else { inbox };
        Ok(())
    }

    fn on_frame(
        &mut self,
        frame: ClientFrame<'_>,
        board: &mut Board,
        answers: &mut Answers,
    ) -> Result<(), CloseCode> {
        let geometry = board.canvas.geometry();
        let hello = matches!(frame, ClientFrame::Hello { version: PROTOCOL_VERSION, .. });
        if hello == self.open {
            return Err(CloseCode::ProtocolViolation);
        }
        match frame {
            ClientFrame::Hello { flags, .. } => {
                self.open = true;
                self.wants_diffs = flags & HELLO_DIFFS != 0;
                self.welcome(board, &mut answers.control);
                if flags & HELLO_SNAPSHOT != 0 {
                    self.holds = Some(self.view);
                    let tiles = board.tiles.clone();
                    let touched = self.view.iter().filter(|tile| !tiles.is_untouched(*tile));
                    answers.streams.push(board.stream(TilesReason::Snapshot, touched));
                }
            }
            ClientFrame::View { x0, y0, x1, y1, .. } => {
                let view = geometry.tile_rect(x0, y0, x1, y1);
                self.view = view;
                let held = self.holds.replace(view);
                let is_new = |tile: &u32| held.is_none_or(|held| !held.contains(*tile));
                let mut new = view.iter().filter(is_new).peekable();
                if new.peek().is_some() {
                    answers.streams.push(board.stream(TilesReason::View, new));
                }
            }
            ClientFrame::Repair { tiles } => {
                let count = geometry.tile_count();
                let asked = tiles.iter().map(|entry| entry.tile).filter(|tile| *tile < count);
                answers.streams.push(board.stream(TilesReason::Repair, asked));
            }
            ClientFrame::Paint { seq, pixels, .. } => {
                let (applied, rejected, reason) = board.paint(pixels);
                let ack = PaintAck { seq, applied, rejected, reason, commit: board.applied() };
                ServerFrame::PaintAck(ack).encode(&mut answers.control);
            }
            ClientFrame::Ping(number) => ServerFrame::Pong(number).encode(&mut answers.control),
            ClientFrame::Stats => ServerFrame::Stats(board.stats()).encode(&mut answers.control),
        }
        Ok(())
    }

    fn welcome(&self, board: &mut Board, out: &mut Vec<u8>) {
        board.welcomed += 1;
        let geometry = board.canvas.geometry();
        let welcome = Welcome {
            version: PROTOCOL_VERSION,
            client_id: board.welcomed,
            width: geometry.width(),
            height: geometry.height(),
            tile_side: TILE_SIDE,
            tick_ms: board.tick_ms,
            cooldown_ms: 0,
            palette: board.canvas.palette().colours(),
        };
        ServerFrame::Welcome(welcome).encode(out);
    }
}
