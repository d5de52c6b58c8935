//! What the sessions of one worker share: the canvas to read, the queue to the master, counters and settings.

use super::image_cache::ImageCache;
use crate::link::{Ack, WorkerLink};
use crate::stats::WorkerStats;
use canvas::geometry::Geometry;
use canvas::palette::Palette;
use canvas::tiles::TileReader;
use std::collections::VecDeque;

/// Limits and tokens, the same for all sessions.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// Time between two broadcasts, in milliseconds; WELCOME tells it.
    pub tick_ms: u16,
    /// Byte budget of a client that names none, in kbit/s; 0: no limit.
    pub client_kbit: u32,
    /// Pixels that a client may paint a second; 0: no limit.
    pub client_pixels: u32,
    /// What HELLO must carry, if anything.
    pub token: Option<Vec<u8>>,
}

/// A PAINT frame whose pixels are with the master.
#[derive(Clone, Copy, Debug)]
pub struct PendingAck {
    /// Slot of the connection that sent it.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
    /// The client's number for the frame.
    pub seq: u32,
    /// Pixels that this worker rejected before the master saw them.
    pub rejected: u16,
    /// Reason of the first rejection; 0 if there was none.
    pub reason: u8,
}

/// See the [module](self).
pub struct Context {
    /// Size of the canvas.
    pub geometry: Geometry,
    /// Its colours.
    pub palette: Palette,
    /// Its tiles, as last published by the master.
    pub tiles: TileReader,
    /// Encoded images of them.
    pub images: ImageCache,
    /// This worker's counters.
    pub stats: WorkerStats,
    /// This worker's queues.
    pub link: WorkerLink,
    /// PAINT frames that the master has not answered yet, oldest first: it answers in order.
    pub pending: VecDeque<PendingAck>,
    /// Limits and tokens.
    pub settings: SessionSettings,
    /// Sessions welcomed so far.
    pub welcomed: u64,
}

impl Context {
    /// A context for the worker at `link`.
    pub fn new(tiles: TileReader, palette: Palette, link: WorkerLink, settings: SessionSettings) -> Self {
        let geometry = tiles.geometry();
        Self {
            geometry,
            palette,
            images: ImageCache::new(geometry.tile_count()),
            tiles,
            stats: WorkerStats::default(),
            link,
            pending: VecDeque::new(),
            settings,
            welcomed: 0,
        }
    }

    /// A client id that no other client of this process has: the worker's index and its count.
    pub fn next_client_id(&mut self) -> u64 {
        self.welcomed += 1;
        (self.link.index as u64) << 48 | self.welcomed
    }

    /// The master's next answer and the frame that it answers.
    pub fn next_ack(&mut self) -> Option<(PendingAck, Ack)> {
        let ack = self.link.acks.pop().ok()?;
        self.pending.pop_front().map(|pending| (pending, ack))
    }
}
