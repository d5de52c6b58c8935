//! One tile of a mirror: what is held of it, what is awaited, and what every message does to it (section 4).
//!
//! A tile is in one of three states:
//! - **fresh**: nothing was asked for and nothing seen; the first record starts it;
//! - **awaited**: an image was asked for. Records that come are shown at once, but also kept, because the
//!   image that replaces the tile may be older than they are. A hole between them means nothing yet;
//! - **held**: the tile follows its records. One that skips a version leaves a hole, which only an image
//!   mends.

use crate::codec::Change;
use crate::geometry::TILE_PIXELS;
use crate::version::{follows, newer};
use std::collections::BTreeMap;

/// Bytes that a kept record costs beside its changes: its entry in the map and its allocation, roughly.
const KEPT_OVERHEAD: usize = 64;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordFate {
    /// It was news.
    New {
        /// It skipped a version: the tile has a hole now.
        gap: bool,
        /// It should have been kept for the image to come, but there was no room.
        dropped: bool,
    },
    /// The tile, or the records kept for it, had it already.
    Old,
}

/// What became of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageFate {
    /// It is the tile now, with the kept records on top, between which there were this many gaps.
    Taken { gaps: u64 },
    /// The tile was as new, or the image is older than the one that is awaited.
    Old,
}

#[derive(Default)]
pub(super) struct Tile {
    /// `None`: all zeros.
    pixels: Option<Box<[u8; TILE_PIXELS]>>,
    /// The version shown; `None` when nothing is known.
    version: Option<u32>,
    /// A record was shown whose predecessor was not.
    hole: bool,
    /// The newest version that a record or a VERSIONS told of. Kept apart from `version`, because what is
    /// heard while the tile is awaited must not be forgotten when the image turns out to be older.
    heard: Option<u32>,
    /// The snapshot may bring an image, and its end will tell.
    awaits_snapshot: bool,
    /// An image was asked for by VIEW or REPAIR.
    awaits_image: bool,
    /// The version named in the REPAIR that is under way. The answer is at least as new, so older images are
    /// not it.
    repair_of: Option<u32>,
    /// When the last REPAIR was sent.
    pub(super) asked_ms: Option<u64>,
    /// The mirror has it on its list of tiles to repair.
    pub(super) listed: bool,
    /// Records that came while the tile was awaited, by version.
    kept: BTreeMap<u32, Box<[Change]>>,
}

impl Tile {
    /// A tile whose image the snapshot is to bring.
    pub(super) fn awaiting_snapshot() -> Self {
        Self { awaits_snapshot: true, ..Self::default() }
    }

    /// The pixels shown; `None` when they are all zeros.
    pub(super) fn pixels(&self) -> Option<&[u8; TILE_PIXELS]> {
        self.pixels.as_deref()
    }

    /// The version shown.
    pub(super) fn version(&self) -> Option<u32> {
        self.version
    }

    /// True when an image was asked for and has not come.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaits_snapshot || self.awaits_image
    }

    /// True when the tile is known to be behind, or to have a hole, and no image is on its way.
    pub(super) fn needs_repair(&self) -> bool {
        !self.is_awaited() && self.version.is_some_and(|version| self.hole || self.is_behind(version))
    }

    fn is_behind(&self, version: u32) -> bool {
        self.heard.is_some_and(|heard| newer(heard, version))
    }

    /// A record came. `room` is how many bytes of kept records there may still be; what is used is taken off.
    pub(super) fn record(
        &mut self,
        version: u32,
        changes: impl ExactSizeIterator<Item = Change>,
        room: &mut usize,
    ) -> RecordFate {
        let shown = self.version;
        if !self.is_awaited() {
            if shown.is_some_and(|shown| !newer(version, shown)) {
                return RecordFate::Old;
            }
            let gap = shown.is_some_and(|shown| !follows(version, shown));
            self.hole |= gap;
            self.show(version, changes);
            return RecordFate::New { gap, dropped: false };
        }
        if self.repair_of.is_some_and(|held| !newer(version, held)) || self.kept.contains_key(&version) {
            return RecordFate::Old;
        }
        self.hear(version);
        let changes: Box<[Change]> = changes.collect();
        if shown.is_none_or(|shown| newer(version, shown)) {
            self.show(version, changes.iter().copied());
        }
        let dropped = match room.checked_sub(kept_bytes(&changes)) {
            Some(left) => {
                *room = left;
                self.kept.insert(version, changes);
                false
            }
            None => true,
        };
        RecordFate::New { gap: false, dropped }
    }

    /// A VERSIONS named the tile; true when it turns out to be behind.
    pub(super) fn announced(&mut self, version: u32) -> bool {
        if self.is_awaited() || self.version.is_some() {
            self.hear(version);
        }
        self.needs_repair()
    }

    /// An image came. `room` gets back the bytes of the kept records that are no longer needed.
    pub(super) fn image(
        &mut self,
        from_snapshot: bool,
        version: u32,
        pixels: &[u8; TILE_PIXELS],
        room: &mut usize,
    ) -> ImageFate {
        if self.is_awaited() {
            if self.repair_of.is_some_and(|held| newer(held, version)) {
                return ImageFate::Old;
            }
            self.awaits_snapshot = false;
            // A stream of the snapshot answers nothing else; the other streams may answer anything.
            self.awaits_image &= from_snapshot;
        } else if let Some(shown) = self.version {
            let mends = self.hole && version == shown;
            if !newer(version, shown) && !mends {
                return ImageFate::Old;
            }
        }
        ImageFate::Taken { gaps: self.replace(version, Some(pixels), room) }
    }

    /// The snapshot ended. If it had no image of the tile, and none is awaited from elsewhere, the tile is at
    /// version 0, with the kept records on top; returns the gaps between them.
    pub(super) fn snapshot_ended(&mut self, room: &mut usize) -> Option<u64> {
        if !std::mem::take(&mut self.awaits_snapshot) || self.awaits_image {
            return None;
        }
        Some(self.replace(0, None, room))
    }

    /// The tile came into view: an image of it will come.
    pub(super) fn enter_view(&mut self) {
        self.awaits_image = true;
        self.repair_of = None;
        self.version = None;
        self.hole = false;
        self.heard = None;
    }

    /// The tile went out of view: it is left as it is.
    pub(super) fn leave_view(&mut self, room: &mut usize) {
        self.awaits_image = false;
        self.repair_of = None;
        self.hole = false;
        self.heard = None;
        if !self.awaits_snapshot {
            self.drop_kept(room);
        }
    }

    /// A REPAIR of the tile is sent at `now_ms`; returns the version to name in it.
    pub(super) fn ask_repair(&mut self, now_ms: u64) -> Option<u32> {
        self.asked_ms = Some(now_ms);
        self.awaits_image = true;
        self.repair_of = self.version;
        self.version
    }

    /// Puts an image in place of the tile, then the kept records that are newer; returns the gaps between
    /// them.
    fn replace(&mut self, version: u32, pixels: Option<&[u8; TILE_PIXELS]>, room: &mut usize) -> u64 {
        match (&mut self.pixels, pixels) {
            (Some(shown), Some(pixels)) => **shown = *pixels,
            (shown, pixels) => *shown = pixels.map(|pixels| Box::new(*pixels)),
        }
        self.version = Some(version);
        self.hole = false;
        let kept = std::mem::take(&mut self.kept);
        let mut order: Vec<u32> = kept.keys().copied().filter(|kept| newer(*kept, version)).collect();
        order.sort_unstable_by_key(|kept| kept.wrapping_sub(version));
        let mut gaps = 0;
        for next in order {
            let gap = self.version.is_some_and(|shown| !follows(next, shown));
            gaps += u64::from(gap);
            self.hole |= gap;
            self.show(next, kept[&next].iter().copied());
        }
        self.kept = kept;
        if !self.is_awaited() {
            self.repair_of = None;
            self.drop_kept(room);
        }
        gaps
    }

    fn show(&mut self, version: u32, changes: impl Iterator<Item = Change>) {
        let pixels = self.pixels.get_or_insert_with(|| Box::new([0; TILE_PIXELS]));
        for Change { offset, colour } in changes {
            pixels[usize::from(offset)] = colour;
        }
        self.version = Some(version);
    }

    fn hear(&mut self, version: u32) {
        if self.heard.is_none_or(|heard| newer(version, heard)) {
            self.heard = Some(version);
        }
    }

    fn drop_kept(&mut self, room: &mut usize) {
        *room += self.kept.values().map(|changes| kept_bytes(changes)).sum::<usize>();
        self.kept = BTreeMap::new();
    }
}

fn kept_bytes(changes: &[Change]) -> usize {
    size_of_val(changes) + KEPT_OVERHEAD
}
