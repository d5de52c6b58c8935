//! The canvas itself, as its one writer sees it: paints go in, one encoded tick at a time comes out.
//!
//! The master owns it and is alone with it; readers see only what [`crate::tiles`] publishes. A paint is
//! applied at once to the pending state, which gives it its place in the total order; nobody sees it before
//! the tick. Then, tile by tile, the pending pixels become records and are published together with the
//! version that the last record leads to: an image at version v holds the changes of all records up to v and
//! of none after it.
//!
//! Pending state exists only for the tiles painted since the last tick: the colours, and a bit for each pixel
//! painted, found from the tile id by index. So a paint is two stores, and a tick costs what was painted in
//! it.

use crate::codec::Change;
use crate::codec::datagram::{MAX_RECORD_CHANGES, RECORD_HEADER, encode_record};
use crate::codes::Reason;
use crate::geometry::{Geometry, TILE_PIXELS};
use crate::palette::Palette;
use crate::schedule::Schedule;
use crate::tick::{RecordAt, Tick};
use crate::tiles::TileWriter;

/// Pending tiles whose memory is kept from tick to tick: 4096, 19 MB. A 1000 x 1000 canvas has 256 tiles, so
/// normal ticks allocate nothing. Larger keeps the memory of a burst over a huge canvas for ever; smaller
/// gives it back and asks for it again each tick.
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
    /// A canvas on the tiles of `writer`, with ticks of `tick_ms` milliseconds, which sets how many ticks
    /// there are between two VERSIONS.
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

    /// Paints a pixel, and gives it the next place in the total order, which is then [`Canvas::commit`]. A
    /// pixel that has the colour already is painted all the same: the diff that carries it back is the
    /// painter's confirmation.
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

/// Appends the records that hold `changes` to the tick, as few as can be; returns the version that the last
/// one leads to.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::TileVersion;
    use crate::codec::datagram::{Changes, MAX_RECORD, ServerDatagram};
    use crate::geometry::TileRect;
    use crate::tiles::TileReader;
    use crate::tiles::tests::tiles;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn canvas(width: u32, height: u32, version: u32) -> (Canvas, TileReader) {
        let (writer, reader) = tiles(width, height, version);
        (Canvas::new(writer, Palette::default(), 50), reader)
    }

    fn pixels(reader: &TileReader, tile: u32) -> (u32, [u8; TILE_PIXELS]) {
        let mut pixels = [0; TILE_PIXELS];
        (reader.read(tile, &mut pixels), pixels)
    }

    /// What a client with this view is sent of a tick: tile, version and changes of each record.
    type Sent = Vec<(u32, u32, BTreeMap<u16, u8>)>;

    fn sent(tick: &Tick, view: &TileRect) -> Sent {
        let mut sent = Vec::new();
        tick.pack_diffs(view, |payload| {
            assert!(payload.len() <= 1100);
            let decoded = ServerDatagram::decode(payload).unwrap();
            let ServerDatagram::Diff { tick: number, records } = decoded else { panic!("not a DIFF") };
            assert_eq!(number, tick.number());
            for record in records {
                let changes: BTreeMap<_, _> = record.changes.iter().map(|c| (c.offset, c.colour)).collect();
                assert_eq!(changes.len(), record.changes.len(), "each pixel once");
                sent.push((record.tile, record.version, changes));
            }
        });
        sent
    }

    #[test]
    fn what_does_not_exist_is_not_painted() {
        let (mut canvas, _) = canvas(65, 130, 0);
        assert_eq!(canvas.paint(65, 0, 0), Err(Reason::OutsideCanvas));
        assert_eq!(canvas.paint(0, 130, 0), Err(Reason::OutsideCanvas));
        assert_eq!(canvas.paint(65, 0, 32), Err(Reason::OutsideCanvas));
        assert_eq!(canvas.paint(64, 129, 32), Err(Reason::OutsidePalette));
        assert_eq!(canvas.commit(), 0);
        assert!(canvas.tick().is_empty());
        assert_eq!(canvas.paint(64, 129, 31), Ok(()));
        assert_eq!(canvas.commit(), 1);
    }

    #[test]
    fn a_paint_is_seen_at_its_tick_and_not_before() {
        let (mut canvas, reader) = canvas(130, 65, 0);
        canvas.paint(64, 0, 7).unwrap();
        assert_eq!(pixels(&reader, 1), (0, [0; TILE_PIXELS]));
        let tick = canvas.tick();
        assert_eq!((tick.number(), tick.commit(), tick.pixels(), canvas.ticks()), (1, 1, 1, 1));
        assert_eq!(sent(&tick, &canvas.geometry().all_tiles()), [(1, 1, BTreeMap::from([(0, 7)]))]);
        assert_eq!((pixels(&reader, 1).0, pixels(&reader, 1).1[0]), (1, 7));
        assert!(reader.is_untouched(0));
        let quiet = canvas.tick();
        assert!(quiet.is_empty());
        assert_eq!((quiet.number(), quiet.commit()), (2, 1));
    }

    #[test]
    fn the_newest_colour_is_sent_once_and_an_old_one_again() {
        let (mut canvas, _) = canvas(10, 10, 0);
        let all = canvas.geometry().all_tiles();
        for colour in [3, 4, 5] {
            canvas.paint(2, 1, colour).unwrap();
        }
        canvas.paint(1, 0, 0).unwrap(); // as it was, and its painter wants to see it all the same
        let tick = canvas.tick();
        assert_eq!(tick.commit(), 4);
        assert_eq!(sent(&tick, &all), [(0, 1, BTreeMap::from([(1, 0), (66, 5)]))]);
        canvas.paint(2, 1, 5).unwrap();
        assert_eq!(sent(&canvas.tick(), &all), [(0, 2, BTreeMap::from([(66, 5)]))]);
    }

    #[test]
    fn a_full_tile_takes_eight_records_and_as_many_versions() {
        let (mut canvas, reader) = canvas(64, 64, u32::MAX - 3);
        for offset in 0..4096u16 {
            canvas.paint(offset % 64, offset / 64, (offset % 31) as u8 + 1).unwrap();
        }
        let tick = canvas.tick();
        let sent = sent(&tick, &canvas.geometry().all_tiles());
        let versions: Vec<u32> = sent.iter().map(|(_, version, _)| *version).collect();
        assert_eq!(versions, [u32::MAX - 2, u32::MAX - 1, u32::MAX, 0, 1, 2, 3, 4]);
        // Seven of 571 and the rest.
        assert_eq!(
            sent.iter().map(|(_, _, changes)| changes.len()).collect::<Vec<_>>(),
            [571, 571, 571, 571, 571, 571, 571, 99]
        );
        let (version, pixels) = pixels(&reader, 0);
        assert_eq!(version, 4);
        assert!((0..4096u16).all(|offset| pixels[usize::from(offset)] == (offset % 31) as u8 + 1));
    }

    #[test]
    fn quiet_tiles_are_announced_in_view_only() {
        let (mut canvas, _) = canvas(200, 200, 0);
        for (x, y) in [(0, 0), (199, 199), (70, 70)] {
            canvas.paint(x, y, 1).unwrap();
        }
        let (all, corner) = (canvas.geometry().all_tiles(), canvas.geometry().tile_rect(0, 0, 128, 128));
        let mut rounds = Vec::new();
        for _ in 0..100 {
            let tick = canvas.tick();
            let mut seen = [Vec::new(), Vec::new()];
            for (seen, view) in seen.iter_mut().zip([&all, &corner]) {
                tick.pack_versions(view, |payload| match ServerDatagram::decode(payload).unwrap() {
                    ServerDatagram::Versions { tick: number, tiles } if number == tick.number() => {
                        seen.extend(tiles)
                    }
                    other => panic!("{other:?}"),
                });
            }
            if !tick.is_empty() && tick.number() > 1 {
                rounds.push((tick.number(), seen));
            }
        }
        let one = |tile| TileVersion { tile, version: 1 };
        let seen = [vec![one(0), one(5), one(15)], vec![one(0), one(5)]];
        assert_eq!(rounds, [(20, seen.clone()), (40, seen.clone()), (60, seen)]);
    }

    #[test]
    fn many_versions_go_in_several_payloads() {
        let (mut canvas, _) = canvas(64 * 300, 64, 0);
        for tile in 0..300 {
            canvas.paint(tile * 64, 0, 1).unwrap();
        }
        let ticks: Vec<Tick> = (0..20).map(|_| canvas.tick()).collect();
        let mut lengths = Vec::new();
        ticks[19].pack_versions(&canvas.geometry().all_tiles(), |payload| lengths.push(payload.len()));
        assert_eq!(lengths, [6 + 136 * 8, 6 + 136 * 8, 6 + 28 * 8]);
    }

    #[test]
    fn memory_of_a_burst_is_given_back() {
        let (mut canvas, _) = canvas(64 * 100, 64 * 60, 0);
        for tile in 0..6000u32 {
            canvas.paint((tile % 100 * 64) as u16, (tile / 100 * 64) as u16, 1).unwrap();
        }
        assert_eq!(canvas.pending.len(), 6000);
        assert_eq!(canvas.tick().pixels(), 6000);
        assert_eq!(canvas.pending.len(), KEPT_PENDING);
        assert!(canvas.pending.capacity() < 6000);
        canvas.paint(6399, 3839, 1).unwrap();
        assert_eq!(canvas.tick().pixels(), 1);
    }

    /// Tiles of a canvas by id: version and pixels.
    type Model = Vec<(u32, [u8; TILE_PIXELS])>;

    fn apply(model: &mut Model, sent: &Sent) {
        for (tile, version, changes) in sent {
            let (held, pixels) = &mut model[*tile as usize];
            assert_eq!(*version, held.wrapping_add(1), "records are successive");
            *held = *version;
            changes.iter().for_each(|(offset, colour)| pixels[usize::from(*offset)] = *colour);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Records applied one after the other give what is published, tick by tick; the packing of any view
        /// is the part of the whole that is in it; and payloads are filled as far as the next record lets
        /// them be.
        #[test]
        fn records_lead_to_what_is_published(
            (width, height) in prop_oneof![Just((1, 1)), Just((65, 130)), (1u32..300, 1u32..300)],
            start in prop_oneof![Just(0), Just(u32::MAX - 2), any::<u32>()],
            ticks in proptest::collection::vec(
                (proptest::collection::vec((any::<u16>(), any::<u16>(), 0u8..32), 0..400), 0u16..1500), 1..6),
            corners: [u16; 4],
        ) {
            let (mut canvas, reader) = canvas(width, height, start);
            let geometry = canvas.geometry();
            let mut model: Model = vec![(start, [0; TILE_PIXELS]); geometry.tile_count() as usize];
            let mut flat = vec![0; width as usize * height as usize];
            let [x0, y0, x1, y1] = corners.map(|corner| corner % 300);
            let view = geometry.tile_rect(x0, y0, x1, y1);
            for (paints, run) in ticks {
                // Besides paints all over, a run of pixels from the top left, so that tiles fill up.
                let run = (0..run).map(|n| (n % 32, n / 32, (n % 32) as u8));
                for (x, y, colour) in paints.into_iter().chain(run) {
                    let (x, y) = (x % width as u16, y % height as u16);
                    canvas.paint(x, y, colour).unwrap();
                    flat[usize::from(y) * width as usize + usize::from(x)] = colour;
                }
                let tick = canvas.tick();
                let whole = sent(&tick, &geometry.all_tiles());
                let pixels_sent: usize = whole.iter().map(|(_, _, changes)| changes.len()).sum();
                prop_assert_eq!(pixels_sent, tick.pixels());
                let part: Sent = whole.iter().filter(|(tile, ..)| view.contains(*tile)).cloned().collect();
                prop_assert_eq!(sent(&tick, &view), part);
                apply(&mut model, &whole);
                for tile in 0..geometry.tile_count() {
                    prop_assert!(pixels(&reader, tile) == model[tile as usize], "tile {} differs", tile);
                }
                let mut payloads: Vec<Vec<u8>> = Vec::new();
                tick.pack_diffs(&view, |payload| payloads.push(payload.to_vec()));
                for pair in payloads.windows(2) {
                    let decoded = ServerDatagram::decode(&pair[1]);
                    let Ok(ServerDatagram::Diff { mut records, .. }) = decoded else { panic!("{decoded:?}") };
                    let next = match records.next().unwrap().changes {
                        Changes::List(list) => 11 + 3 * list.len(),
                        Changes::Bitmap { colours, .. } => 11 + 512 + colours.len(),
                    };
                    prop_assert!(next <= MAX_RECORD && pair[0].len() + next > 1100);
                }
            }
            for (index, colour) in flat.iter().enumerate() {
                let (x, y) = ((index % width as usize) as u16, (index / width as usize) as u16);
                let (tile, offset) = geometry.locate(x, y).unwrap();
                prop_assert_eq!(model[tile as usize].1[usize::from(offset)], *colour);
            }
        }
    }
}
