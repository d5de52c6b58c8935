//! The canvas itself, as its one writer sees it: paints go in, one encoded tick at a time comes out.
//!
//! The master owns it and is alone with it; readers see only what [`crate::tiles`] publishes. A paint is applied at
//! once to the pending state, which gives it its place in the total order; nobody sees it before the tick. Then, tile by
//! tile, the pending pixels become records and are published together with the version that the last record leads
//! to: an image at version v holds the changes of all records up to v and of none after it.
//!
//! Pending state exists only for the tiles painted since the last tick: the colours, and a bit for each pixel
//! painted, found from the tile id by index. So a paint is two stores, and a tick costs what was painted in it.

use crate::codec::Change;
use crate::codec::datagram::{MAX_RECORD_CHANGES, RECORD_HEADER, encode_record};
use crate::codes::Reason;
use crate::geometry::{Geometry, TILE_PIXELS};
use crate::palette::Palette;
use crate::schedule::Schedule;
use crate::tick::{RecordAt, Tick};
use crate::tiles::TileWriter;

/// Pending tiles whose memory is kept from tick to tick: 4096, 19 MB. A 1000 x 1000 canvas has 256 tiles, so
/// normal ticks allocate nothing. Larger keeps the memory of a burst over a huge canvas for ever; smaller gives it back and
/// asks for it again each tick.
const KEPT_PENDING: usize = 4096;

/// What was painted on one tile since the last tick.
struct Pending {
    tile: u32,
    /// Bit `i % 64` of word `i / 64`: the pixel at offset `i` was painted.
    painted: [u64; 64],
    /// The newest colour at each offset whose bit is set; elsewhere left over from earlier ticks.
    colours: [u8; TILE_PIXELS],
}

/// A canvas and its total order of paints.
pub struct Canvas {
    geometry: Geometry,
    palette: Palette,
    writer: TileWriter,
    commit: u64,
    /// `commit` at the last tick.
    ticked: u64,
    ticks: u64,
    /// Per tile: 0, or 1 + its index in `pending`.
    slots: Vec<u32>,
    /// The first `dirty` are in use, in the order in which their tiles were first painted.
    pending: Vec<Pending>,
    dirty: usize,
    schedule: Schedule,
    /// Scratch of `tick`: indices of `pending` in order of tile.
    order: Vec<u32>,
    /// Scratch of `tick`: the changes of one tile.
    changes: Vec<Change>,
}

impl Canvas {
    /// A canvas on the tiles of `writer`, with ticks of `tick_ms` milliseconds, which sets how many ticks there are
    /// between two VERSIONS.
    pub fn new(writer: TileWriter, palette: Palette, tick_ms: u16) -> Self {
        let geometry = writer.geometry();
        Self {
            geometry,
            palette,
            writer,
            commit: 0,
            ticked: 0,
            ticks: 0,
            slots: vec![0; geometry.tile_count() as usize],
            pending: Vec::new(),
            dirty: 0,
            schedule: Schedule::new(geometry.tile_count(), tick_ms),
            order: Vec::new(),
            changes: Vec::with_capacity(TILE_PIXELS),
        }
    }

    /// The shape of the canvas.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The colours of the canvas.
    pub fn palette(&self) -> &Palette {
        &self.palette
    }

    /// Position of the last applied pixel in the total order: the number of pixels applied so far.
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// Ticks so far.
    pub fn ticks(&self) -> u64 {
        self.ticks
    }

    /// Paints a pixel, and gives it the next place in the total order, which is then [`Canvas::commit`]. A pixel that has
    /// the colour already is painted all the same: the diff that carries it back is the painter's confirmation.
    ///
    /// # Errors
    /// When the position or the colour does not exist.
    pub fn paint(&mut self, x: u16, y: u16, colour: u8) -> Result<(), Reason> {
        let (tile, offset) = self.geometry.locate(x, y).ok_or(Reason::OutsideCanvas)?;
        if !self.palette.contains(colour) {
            return Err(Reason::OutsidePalette);
        }
        let pending = match self.slots[tile as usize] {
            0 => self.make_dirty(tile),
            slot => &mut self.pending[slot as usize - 1],
        };
        pending.painted[usize::from(offset / 64)] |= 1 << (offset % 64);
        pending.colours[usize::from(offset)] = colour;
        self.commit += 1;
        Ok(())
    }

    /// Pending state for a tile that has none.
    fn make_dirty(&mut self, tile: u32) -> &mut Pending {
        if self.dirty == self.pending.len() {
            self.pending.push(Pending { tile, painted: [0; 64], colours: [0; TILE_PIXELS] });
        }
        let pending = &mut self.pending[self.dirty];
        self.dirty += 1;
        self.slots[tile as usize] = self.dirty as u32;
        pending.tile = tile;
        pending
    }

    /// Ends the tick: encodes and publishes what was painted since the last one.
    ///
    /// Call it every `tick_ms`, also when nothing was painted: VERSIONS come by the count of ticks.
    pub fn tick(&mut self) -> Tick {
        self.ticks += 1;
        let number = self.ticks as u32;
        // As lists, without the headers of split records; bitmaps and pixels painted twice take less.
        let capacity = 3 * (self.commit - self.ticked) as usize + RECORD_HEADER * self.dirty;
        self.ticked = self.commit;
        let mut tick = Tick {
            number,
            commit: self.commit,
            pixels: 0,
            records: Vec::with_capacity(capacity),
            index: Vec::with_capacity(self.dirty),
            versions: Vec::new(),
        };
        self.order.clear();
        self.order.extend(0..self.dirty as u32);
        self.order.sort_unstable_by_key(|slot| self.pending[*slot as usize].tile);
        for slot in &self.order {
            let pending = &mut self.pending[*slot as usize];
            let tile = pending.tile;
            collect(pending, &mut self.changes);
            let version = put_records(&mut tick, tile, self.writer.version(tile), &self.changes);
            self.writer.publish(tile, version, &pending.painted, &pending.colours);
            self.schedule.changed(tile, number);
            pending.painted = [0; 64];
            self.slots[tile as usize] = 0;
        }
        self.dirty = 0;
        self.pending.truncate(KEPT_PENDING);
        self.pending.shrink_to(KEPT_PENDING);
        tick.versions = self.schedule.due(number, |tile| self.writer.version(tile));
        tick
    }
}

/// The painted pixels of a tile in order of offset.
fn collect(pending: &Pending, changes: &mut Vec<Change>) {
    changes.clear();
    for (offset, painted) in (0..).step_by(64).zip(pending.painted) {
        let mut left = painted;
        while left != 0 {
            let offset = offset + left.trailing_zeros() as u16;
            changes.push(Change { offset, colour: pending.colours[usize::from(offset)] });
            left &= left - 1;
        }
    }
}

/// Appends the records that hold `changes` to the tick, as few as can be; returns the version that the last one
/// leads to.
fn put_records(tick: &mut Tick, tile: u32, mut version: u32, changes: &[Change]) -> u32 {
    tick.pixels += changes.len();
    for changes in changes.chunks(MAX_RECORD_CHANGES) {
        version = version.wrapping_add(1);
        let start = tick.records.len() as u32;
        encode_record(&mut tick.records, tile, version, changes);
        tick.index.push(RecordAt { tile, start, end: tick.records.len() as u32 });
    }
    version
}
