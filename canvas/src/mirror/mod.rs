//! A client's copy of the canvas: kept current from DIFF and VERSIONS datagrams and tile images, in whatever
//! order they come, and knowing what to ask for again (section 4).
//!
//! The owner of the connection owns the mirror. It passes in every server datagram and every image, tells of
//! the end of the snapshot and of the VIEWs that it sends, and from time to time takes the tiles that are to
//! be repaired and sends them in a REPAIR. The mirror keeps no reference to anything that it is given, reads
//! no clock, and bounds what it keeps: the tiles, allocated when something but zeros is known of them, and
//! the records that wait for an image ([`MirrorOptions::kept_bytes`]; what does not fit is lost, noticed, and
//! repaired like a lost datagram).
//!
//! ```text
//! on_diff, on_versions ----> tiles <---- on_image, on_snapshot_end, set_view
//!                              |
//!                              +--behind or with a hole--> repairs_due --> REPAIR
//! ```

mod tile;

#[cfg(test)]
mod convergence;
#[cfg(test)]
mod tests;

use crate::codec::datagram::{DatagramError, Records, ServerDatagram};
use crate::codec::tiles::{Image, TilesReason};
use crate::codec::{Change, TileVersion, TileVersions};
use crate::codes::MAX_CLIENT_FRAME;
use crate::geometry::{Geometry, TILE_PIXELS, TILE_SIDE, TileRect};
use std::fmt;
use thiserror::Error;
use tile::{ImageFate, RecordFate, Tile};

/// Milliseconds between two REPAIRs of a tile: the protocol's least.
pub const REPAIR_INTERVAL_MS: u64 = 1000;

/// Tiles that [`Mirror::repairs_due`] hands out at once: as many as fit in one REPAIR frame.
pub const MAX_REPAIRS: usize = MAX_CLIENT_FRAME as usize / 8;

/// The pixels of a tile of which only zeros are known.
static ZEROS: [u8; TILE_PIXELS] = [0; TILE_PIXELS];

/// How a mirror starts, and its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorOptions {
    /// The HELLO had [`crate::codes::HELLO_SNAPSHOT`]: every tile is awaited until the snapshot has ended.
    /// Otherwise a tile starts from its image if a VIEW asks for one, else from the first record of it.
    pub snapshot: bool,
    /// Bytes of records kept for tiles whose image is awaited. More spares repairs to a client that waits
    /// long for its snapshot of a busy canvas; less bounds its memory more tightly.
    pub kept_bytes: usize,
}

impl Default for MirrorOptions {
    /// With the snapshot; 8 MiB of kept records: well over a second of the diffs of a whole canvas that
    /// changes 60,000 pixels in each of 20 ticks a second.
    fn default() -> Self {
        Self { snapshot: true, kept_bytes: 8 << 20 }
    }
}

/// Why the mirror refused what a server sent. What came before the refused part has been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MirrorError {
    /// The payload is not a datagram.
    #[error(transparent)]
    Datagram(#[from] DatagramError),
    /// A tile that the canvas does not have.
    #[error("the canvas has no tile {0}")]
    NoSuchTile(u32),
    /// A pixel of an edge tile outside the canvas: changed by a record, or not 0 in an image.
    #[error("tile {tile} has no pixel at offset {offset}")]
    NoSuchPixel {
        /// The edge tile.
        tile: u32,
        /// The offset that lies outside the canvas.
        offset: u16,
    },
}

/// What a mirror has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorCounters {
    /// Records that were news.
    pub records_new: u64,
    /// Records that were not: duplicates, latecomers, overtaken by an image.
    pub records_old: u64,
    /// Records of tiles out of view, under way when the view changed.
    pub records_beside: u64,
    /// Records that could not be kept for an image because [`MirrorOptions::kept_bytes`] were used up.
    pub records_dropped: u64,
    /// Records that skipped at least one version.
    pub gaps: u64,
    /// Tiles that a VERSIONS showed to be behind.
    pub stale: u64,
    /// Images that took their tile's place.
    pub images_taken: u64,
    /// Images that did not, because the tile was as new.
    pub images_old: u64,
    /// Tiles handed out by [`Mirror::repairs_due`].
    pub repairs: u64,
}

/// A tile in which two mirrors differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The tile.
    pub tile: u32,
    /// The first different pixel.
    pub at: (u16, u16),
    /// Colour and tile version in the one.
    pub ours: (u8, Option<u32>),
    /// Colour and tile version in the other.
    pub theirs: (u8, Option<u32>),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tile, at: (x, y), ours, theirs } = self;
        let version = |version: Option<u32>| version.map_or("none".to_owned(), |version| version.to_string());
        write!(f, "tile {tile} differs at ({x}, {y}): ")?;
        write!(f, "colour {} at version {}, ", ours.0, version(ours.1))?;
        write!(f, "other colour {} at version {}", theirs.0, version(theirs.1))
    }
}

/// A copy of the canvas.
pub struct Mirror {
    geometry: Geometry,
    tiles: Vec<Tile>,
    /// The tiles that diffs are of.
    view: TileRect,
    /// The tiles that came into view as far as images go: all with the snapshot, none without, before the
    /// first VIEW.
    imaged: TileRect,
    snapshot_pending: bool,
    /// Bytes of [`MirrorOptions::kept_bytes`] that are free.
    room: usize,
    /// Tiles that needed repair when they were put here; each once.
    to_repair: Vec<u32>,
    counters: MirrorCounters,
}

impl Mirror {
    /// A mirror of a canvas of which nothing is known but its shape, at the time of the HELLO.
    pub fn new(geometry: Geometry, options: MirrorOptions) -> Self {
        let tile = if options.snapshot { Tile::awaiting_snapshot } else { Tile::default };
        Self {
            geometry,
            tiles: (0..geometry.tile_count()).map(|_| tile()).collect(),
            view: geometry.all_tiles(),
            imaged: if options.snapshot { geometry.all_tiles() } else { geometry.no_tiles() },
            snapshot_pending: options.snapshot,
            room: options.kept_bytes,
            to_repair: Vec::new(),
            counters: MirrorCounters::default(),
        }
    }

    /// A datagram came, or a DATAGRAM frame. For `seen` see [`Mirror::on_diff`].
    ///
    /// # Errors
    /// When the payload is malformed or names what the canvas does not have.
    pub fn on_datagram(&mut self, payload: &[u8], seen: impl FnMut(u32, Change)) -> Result<(), MirrorError> {
        match ServerDatagram::decode(payload)? {
            ServerDatagram::Diff { records, .. } => self.on_diff(records, seen),
            ServerDatagram::Versions { tiles, .. } => self.on_versions(tiles),
        }
    }

    /// The records of a DIFF came. Calls `seen` with tile and change for every changed pixel of every record
    /// in view that is news, once, when the record comes: a painter finds its confirmations there. The mirror
    /// may already show a newer colour at that place.
    ///
    /// # Errors
    /// When a record names a tile or pixel that the canvas does not have. Records before it were applied.
    pub fn on_diff(
        &mut self,
        records: Records<'_>,
        mut seen: impl FnMut(u32, Change),
    ) -> Result<(), MirrorError> {
        for record in records {
            let tile = record.tile;
            self.check_changes(tile, record.changes.iter())?;
            if !self.view.contains(tile) {
                self.counters.records_beside += 1;
                continue;
            }
            let state = &mut self.tiles[tile as usize];
            match state.record(record.version, record.changes.iter(), &mut self.room) {
                RecordFate::Old => self.counters.records_old += 1,
                RecordFate::New { gap, dropped } => {
                    self.counters.records_new += 1;
                    self.counters.gaps += u64::from(gap);
                    self.counters.records_dropped += u64::from(dropped);
                    record.changes.iter().for_each(|change| seen(tile, change));
                    self.list_for_repair(tile);
                }
            }
        }
        Ok(())
    }

    /// The entries of a VERSIONS came.
    ///
    /// # Errors
    /// When one names a tile that the canvas does not have. Entries before it were heeded.
    pub fn on_versions(&mut self, tiles: TileVersions<'_>) -> Result<(), MirrorError> {
        for TileVersion { tile, version } in tiles {
            let state = self.tiles.get_mut(tile as usize).ok_or(MirrorError::NoSuchTile(tile))?;
            if self.view.contains(tile) && state.announced(version) {
                self.counters.stale += u64::from(!state.listed);
                self.list_for_repair(tile);
            }
        }
        Ok(())
    }

    /// An image came, on a stream with this reason.
    ///
    /// # Errors
    /// When it is of a tile that the canvas does not have, or not 0 outside the canvas.
    pub fn on_image(&mut self, reason: TilesReason, image: &Image) -> Result<(), MirrorError> {
        let Image { tile, version, ref pixels } = *image;
        let outside = (0..).zip(pixels).filter(|(_, pixel)| **pixel != 0);
        self.check_changes(tile, outside.map(|(offset, pixel)| Change { offset, colour: *pixel }))?;
        let from_snapshot = reason == TilesReason::Snapshot;
        match self.tiles[tile as usize].image(from_snapshot, version, pixels, &mut self.room) {
            ImageFate::Old => self.counters.images_old += 1,
            ImageFate::Taken { gaps } => {
                self.counters.images_taken += 1;
                self.counters.gaps += gaps;
                self.list_for_repair(tile);
            }
        }
        Ok(())
    }

    /// The snapshot's stream ended in good order: tiles of which it had no image are at version 0. The ends
    /// of other streams mean nothing.
    pub fn on_snapshot_end(&mut self) {
        self.snapshot_pending = false;
        for tile in 0..self.geometry.tile_count() {
            if let Some(gaps) = self.tiles[tile as usize].snapshot_ended(&mut self.room) {
                self.counters.gaps += gaps;
                self.list_for_repair(tile);
            }
        }
    }

    /// A VIEW is being sent: [`Geometry::tile_rect`] of its corners. From here on images of the tiles that
    /// come into view are awaited, and records of tiles that are not in view are passed over.
    pub fn set_view(&mut self, view: TileRect) {
        for tile in self.view.iter().filter(|tile| !view.contains(*tile)) {
            self.tiles[tile as usize].leave_view(&mut self.room);
        }
        for tile in view.iter().filter(|tile| !self.imaged.contains(*tile)) {
            self.tiles[tile as usize].enter_view();
        }
        (self.view, self.imaged) = (view, view);
    }

    /// Appends to `out` the tiles to name in a REPAIR now, [`MAX_REPAIRS`] at most, and counts on their being
    /// sent: their images are awaited. A tile comes up no more often than every [`REPAIR_INTERVAL_MS`].
    ///
    /// `now_ms` is any clock that never goes back. Cheap when there is nothing to repair; call it a few times
    /// a second.
    pub fn repairs_due(&mut self, now_ms: u64, out: &mut Vec<TileVersion>) {
        let Self { to_repair, tiles, view, counters, .. } = self;
        let full = out.len() + MAX_REPAIRS;
        to_repair.retain(|tile| {
            let state = &mut tiles[*tile as usize];
            if state.needs_repair() && view.contains(*tile) {
                let resting =
                    state.asked_ms.is_some_and(|asked| now_ms.saturating_sub(asked) < REPAIR_INTERVAL_MS);
                if resting || out.len() >= full {
                    return true;
                }
                out.extend(state.ask_repair(now_ms).map(|version| TileVersion { tile: *tile, version }));
                counters.repairs += 1;
            }
            state.listed = false;
            false
        });
    }

    /// The shape of the canvas.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The tiles that diffs are of.
    pub fn view(&self) -> &TileRect {
        &self.view
    }

    /// What was seen so far.
    pub fn counters(&self) -> &MirrorCounters {
        &self.counters
    }

    /// True when no image is awaited and no tile in view is known to need one. (More records may be lost than
    /// the mirror has heard of; a few seconds of quiet let VERSIONS tell.)
    pub fn is_settled(&self) -> bool {
        !self.snapshot_pending
            && self.view.iter().all(|tile| {
                let state = &self.tiles[tile as usize];
                !state.is_awaited() && !state.needs_repair()
            })
    }

    /// The pixels of a tile as they are shown, and the version that they are of; `None` when nothing is known
    /// of the tile. While an image is awaited, or a repair is due, changes may be missing from them.
    ///
    /// # Panics
    /// When the canvas has no such tile.
    pub fn tile(&self, tile: u32) -> (&[u8; TILE_PIXELS], Option<u32>) {
        let state = &self.tiles[tile as usize];
        (state.pixels().unwrap_or(&ZEROS), state.version())
    }

    /// The colour of the pixel at `(x, y)`; `None` outside the canvas.
    pub fn pixel(&self, x: u16, y: u16) -> Option<u8> {
        let (tile, offset) = self.geometry.locate(x, y)?;
        Some(self.tile(tile).0[usize::from(offset)])
    }

    /// All pixels, row by row, `width * height` of them.
    pub fn pixels(&self) -> Vec<u8> {
        let mut rows =
            Vec::with_capacity(usize::from(self.geometry.width()) * usize::from(self.geometry.height()));
        for y in 0..self.geometry.height() {
            for x in (0..self.geometry.width()).step_by(TILE_SIDE.into()) {
                let (tile, start) = (self.geometry.tile_of(x, y), usize::from(y % TILE_SIDE * TILE_SIDE));
                let columns = usize::from(self.geometry.tile_extent(tile).0);
                rows.extend_from_slice(&self.tile(tile).0[start..start + columns]);
            }
        }
        rows
    }

    /// The first tile in `view` that is not equal, in pixels, in the two mirrors, which must be of one
    /// canvas.
    pub fn first_difference(&self, other: &Mirror, view: &TileRect) -> Option<Difference> {
        view.iter().find_map(|tile| {
            let ((ours, our_version), (theirs, their_version)) = (self.tile(tile), other.tile(tile));
            let offset = ours.iter().zip(theirs).position(|(a, b)| a != b)?;
            Some(Difference {
                tile,
                at: self.geometry.pixel(tile, offset as u16)?,
                ours: (ours[offset], our_version),
                theirs: (theirs[offset], their_version),
            })
        })
    }

    /// Refuses a tile that the canvas does not have, and changes outside it. Only edge tiles need their
    /// changes looked at.
    fn check_changes(&self, tile: u32, mut changes: impl Iterator<Item = Change>) -> Result<(), MirrorError> {
        match self.geometry.tile_extent(tile) {
            (0, 0) => Err(MirrorError::NoSuchTile(tile)),
            (TILE_SIDE, TILE_SIDE) => Ok(()),
            (columns, rows) => {
                let outside = |change: &Change| {
                    change.offset % TILE_SIDE >= columns || change.offset / TILE_SIDE >= rows
                };
                match changes.find(outside) {
                    Some(Change { offset, .. }) => Err(MirrorError::NoSuchPixel { tile, offset }),
                    None => Ok(()),
                }
            }
        }
    }

    /// Puts a tile on the list if it needs repair and is not there.
    fn list_for_repair(&mut self, tile: u32) {
        let state = &mut self.tiles[tile as usize];
        if state.needs_repair() && !state.listed {
            state.listed = true;
            self.to_repair.push(tile);
        }
    }
}
