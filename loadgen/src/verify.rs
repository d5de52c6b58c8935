//! `--verify`: the proof at the end of a run that no pixel was lost.
//!
//! Once painting has stopped, four things must hold, each within its time:
//!
//! 1. Every PAINT frame was acknowledged, once, with counts that add up; every watcher's PING was answered.
//! 2. The canvas comes to rest: no watcher's mirror changes for some rounds of VERSIONS, in which watchers
//!    that missed a last diff learn of it.
//! 3. Every watcher's mirror equals a fresh snapshot to the byte, versions included. The snapshot comes on
//!    a new connection, as tile images, and is not touched by the code that keeps mirrors. A watcher that
//!    differs may still be repairing, so the comparison is repeated, with a newer snapshot, until time is
//!    up.
//! 4. Every pixel that [`crate::witness`] is certain of has its colour in that snapshot, and the server
//!    counts no fewer pixels applied than it acknowledged. If others painted too, which shows in that
//!    count, certainty is gone and the first half is skipped.
//!
//! The coordinator sends a round's snapshot to all watchers by reference; each compares on its own thread.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use canvas::codec::control::ServerStats;
use canvas::codec::tiles::{Image, TilesReason};
use canvas::mirror::Mirror;
use canvas::{Geometry, TILE_PIXELS};
use tokio::time::{Instant, sleep, timeout_at};

use crate::loss::Loss;
use crate::observer::Observer;
use crate::probe::Probe;
use crate::shared::{Shared, Signals};
use crate::stats::Totals;

/// Time for the last PAINT frames and the watchers' PINGs to be answered. Ticks are tens of milliseconds; a
/// server that takes longer has lost them.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Time beyond [`crate::cli::Settings::rest`] for the canvas to come to rest: repairs of a whole canvas
/// past a byte budget.
const REST_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the mirrors to become equal to a snapshot, several rounds of repair.
const EQUAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two comparisons. Each costs a connection and a snapshot.
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// Time for watchers to compare: a memcmp of the canvas, on a thread that may be busy.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to look whether something has come to pass.
const POLL: Duration = Duration::from_millis(20);

/// Verifies a run whose clients have been told to be quiet. `before` are the server's figures from its
/// start. Returns how many pixels' colours were proven; none if others painted too. The snapshot that the
/// canvases were equal to goes into the file of `--dump`, if one is named.
///
/// # Errors
/// What does not hold, or that the file cannot be written.
pub async fn verify(
    shared: &Shared,
    signals: &mut Signals,
    probe: &mut Probe,
    before: &ServerStats,
    observer: &Observer,
) -> Result<Option<u64>, String> {
    if shared.stats.totals().watchers == 0 {
        return Err("no watcher came up, so there is no canvas to compare".to_owned());
    }
    observer.say("painting stopped, waiting for the last acknowledgements");
    answers_came(shared).await?;
    observer.say("waiting for the canvas to come to rest");
    at_rest(shared).await?;
    observer.say("comparing the watchers' canvases with a snapshot");
    let deadline = Instant::now() + EQUAL_TIMEOUT;
    let mut number = 0;
    let round = loop {
        number += 1;
        let snapshot =
            probe.snapshot().await.map_err(|loss| format!("no snapshot to compare with: {loss}"))?;
        let round = Arc::new(Round { number, snapshot });
        match compare(shared, signals, &round).await {
            Ok(()) => break round,
            Err(difference) if Instant::now() >= deadline => return Err(difference),
            Err(_) => sleep(ROUND_PAUSE).await,
        }
        no_fault(shared)?;
    };
    no_fault(shared)?;
    // Again, for frames that were sent while painting was being stopped.
    counts_add_up(&shared.stats.totals())?;
    let after =
        probe.figures().await.map_err(|loss| format!("the server does not tell its figures: {loss}"))?;
    let proven = certain_pixels(shared, &round.snapshot, after.applied.wrapping_sub(before.applied))?;
    if let Some(path) = &shared.settings.dump {
        std::fs::write(path, round.snapshot.rows())
            .map_err(|error| format!("cannot write {} (--dump): {error}", path.display()))?;
    }
    Ok(proven)
}

fn no_fault(shared: &Shared) -> Result<(), String> {
    shared.fault().map_or(Ok(()), Err)
}

/// Every frame sent has been settled.
fn counts_add_up(totals: &Totals) -> Result<(), String> {
    // Saturating, as counters go on while they are read.
    match totals.frames_sent.saturating_sub(totals.frames_settled) {
        0 => Ok(()),
        open => Err(format!(
            "{open} of {} PAINT frames were not acknowledged within {} s",
            totals.frames_sent,
            ACK_TIMEOUT.as_secs()
        )),
    }
}

async fn answers_came(shared: &Shared) -> Result<(), String> {
    let deadline = Instant::now() + ACK_TIMEOUT;
    loop {
        no_fault(shared)?;
        let totals = shared.stats.totals();
        let frames = counts_add_up(&totals);
        let waiting = totals.watchers.saturating_sub(totals.watchers_settled);
        if frames.is_ok() && waiting == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            frames?;
            return Err(format!(
                "{waiting} watchers' PINGs were not answered within {} s",
                ACK_TIMEOUT.as_secs()
            ));
        }
        sleep(POLL).await;
    }
}

async fn at_rest(shared: &Shared) -> Result<(), String> {
    let activity = || {
        let Totals { diff_datagrams, records_applied, images_applied, repairs, .. } = shared.stats.totals();
        (diff_datagrams, records_applied, images_applied, repairs)
    };
    let limit = shared.settings.rest + REST_TIMEOUT;
    let start = Instant::now();
    let (mut last, mut since) = (activity(), start);
    loop {
        sleep(POLL).await;
        no_fault(shared)?;
        let (now, seen) = (Instant::now(), activity());
        if seen != last {
            (last, since) = (seen, now);
        }
        if now - since >= shared.settings.rest {
            return Ok(());
        }
        if now - start >= limit {
            return Err(format!(
                "the canvas did not come to rest within {} s, diffs or repairs still arrive; \
                 does somebody else paint?",
                limit.as_secs_f64()
            ));
        }
    }
}

/// One comparison of all watchers with one snapshot.
async fn compare(shared: &Shared, signals: &mut Signals, round: &Arc<Round>) -> Result<(), String> {
    // All clients hold receivers; if none is left, nobody answers, and that is said below.
    let _ = signals.round.send(Some(round.clone()));
    let deadline = Instant::now() + COMPARE_TIMEOUT;
    let mut missing = shared.stats.totals().watchers;
    let mut different = None;
    while missing > 0 {
        let Ok(Some(verdict)) = timeout_at(deadline, signals.verdicts.recv()).await else {
            return Err(format!("{missing} watchers did not compare their canvases in time"));
        };
        if verdict.round == round.number {
            missing -= 1;
            different =
                different.or(verdict.difference.map(|what| format!("watcher {}: {what}", verdict.watcher)));
        }
    }
    different.map_or(Ok(()), Err)
}

/// Checks the pixels whose colour is certain, and says how many they are; none if others painted.
fn certain_pixels(shared: &Shared, snapshot: &Snapshot, applied: u64) -> Result<Option<u64>, String> {
    let totals = shared.stats.totals();
    if applied < totals.pixels_acked {
        return Err(format!(
            "the server acknowledged {} pixels as applied, but counts only {applied} in its STATS",
            totals.pixels_acked
        ));
    }
    let alone = applied <= totals.pixels_sent_datagram + totals.pixels_sent_frame;
    let Some(witness) = shared.witness.as_ref().filter(|_| alone) else { return Ok(None) };
    let mut proven = 0;
    for pixel in witness.certain() {
        let found = snapshot.pixel(pixel.x, pixel.y);
        if found != Some(pixel.colour) {
            return Err(format!(
                "pixel ({}, {}) was painted once, in colour {}, and acknowledged as applied, \
                 but the snapshot has colour {} there",
                pixel.x,
                pixel.y,
                pixel.colour,
                found.map_or("none".to_owned(), |colour| colour.to_string())
            ));
        }
        proven += 1;
    }
    Ok(Some(proven))
}

/// One comparison, for every watcher to make.
#[derive(Debug)]
pub struct Round {
    /// Counts up from 1.
    pub number: u32,
    /// What the mirror should equal.
    pub snapshot: Snapshot,
}

/// What a watcher found in a round.
#[derive(Debug)]
pub struct Verdict {
    /// The round's number.
    pub round: u32,
    /// Index of the client.
    pub watcher: usize,
    /// The first difference, if there is one.
    pub difference: Option<Difference>,
}

/// The canvas as tile images gave it.
pub struct Snapshot {
    geometry: Geometry,
    /// Version and pixels of each tile.
    tiles: Vec<(u32, [u8; TILE_PIXELS])>,
    out_of_place: bool,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// A canvas of which no image has come: all tiles at version 0.
    pub fn new(geometry: Geometry) -> Self {
        let tiles = vec![(0, [0; TILE_PIXELS]); geometry.tile_count() as usize];
        Self { geometry, tiles, out_of_place: false }
    }

    /// Takes an image.
    pub fn put(&mut self, image: &Image) {
        match self.tiles.get_mut(image.tile as usize) {
            Some(tile) => *tile = (image.version, image.pixels),
            None => self.out_of_place = true,
        }
    }

    /// The snapshot, now that its stream, opened for `reason`, has ended.
    ///
    /// # Errors
    /// It was not a snapshot's stream, or had images of tiles that are not there.
    pub fn complete(self, reason: TilesReason) -> Result<Self, Loss> {
        match reason {
            TilesReason::Snapshot if !self.out_of_place => Ok(self),
            TilesReason::Snapshot => Err(Loss::protocol("image of a tile outside the canvas")),
            _ => Err(Loss::protocol("another tile stream than the snapshot's")),
        }
    }

    fn pixel(&self, x: u16, y: u16) -> Option<u8> {
        let (tile, offset) = self.geometry.locate(x, y)?;
        Some(self.tiles[tile as usize].1[usize::from(offset)])
    }

    /// The pixels of the canvas, one byte each, row by row.
    pub fn rows(&self) -> Vec<u8> {
        let (width, height) = (self.geometry.width(), self.geometry.height());
        let row = |y| (0..width).map(move |x| self.pixel(x, y).expect("the pixel is on the canvas"));
        (0..height).flat_map(row).collect()
    }

    /// The first tile in which a mirror differs, in pixels or in version.
    pub fn difference(&self, mirror: &Mirror) -> Option<Difference> {
        (0u32..).zip(&self.tiles).find_map(|(tile, (version, pixels))| {
            let (mirror_pixels, mirror_version) = mirror.tile(tile);
            if mirror_version == Some(*version) && mirror_pixels == pixels {
                return None;
            }
            let offset = (0..TILE_PIXELS).find(|&offset| pixels[offset] != mirror_pixels[offset]);
            let pixel = offset.map(|offset| DifferentPixel {
                at: self.geometry.pixel(tile, offset as u16),
                mirror: mirror_pixels[offset],
                snapshot: pixels[offset],
            });
            Some(Difference { tile, mirror: mirror_version, snapshot: *version, pixel })
        })
    }
}

/// Where a mirror differs from a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    tile: u32,
    /// Version of the tile in the mirror; none before it knows any.
    mirror: Option<u32>,
    /// Version of the tile in the snapshot.
    snapshot: u32,
    /// The first pixel that differs; none if only the versions do.
    pixel: Option<DifferentPixel>,
}

/// A pixel with two colours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DifferentPixel {
    /// Its place; none if it is in an edge tile, outside the canvas.
    at: Option<(u16, u16)>,
    mirror: u8,
    snapshot: u8,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tile, mirror, snapshot, pixel } = self;
        match mirror {
            Some(mirror) => write!(f, "tile {tile} is at version {mirror} in its mirror")?,
            None => write!(f, "tile {tile} is unknown to its mirror")?,
        }
        write!(f, ", and at {snapshot} in the snapshot")?;
        match pixel {
            None => write!(f, ", with the same pixels"),
            Some(DifferentPixel { at, mirror, snapshot }) => {
                match at {
                    Some((x, y)) => write!(f, "; the first different pixel is ({x}, {y})")?,
                    None => write!(f, "; the first different pixel is past the canvas's edge")?,
                }
                write!(f, ", colour {mirror} in the mirror and {snapshot} in the snapshot")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use canvas::mirror::MirrorOptions;

    use super::*;

    const LAST: u32 = 5;

    /// A mirror and a snapshot of 130 x 70 pixels, made of these two images of the last, partial tile.
    fn difference(mirrored: Option<(u32, u8)>, taken: Option<(u32, u8)>) -> Option<String> {
        let geometry = Geometry::new(130, 70).unwrap();
        let image = |(version, colour)| {
            let mut pixels = [0; TILE_PIXELS];
            pixels[65] = colour;
            Image { tile: LAST, version, pixels }
        };
        let mut mirror = Mirror::new(geometry, MirrorOptions::default());
        let mut snapshot = Snapshot::new(geometry);
        if let Some(image) = mirrored.map(image) {
            mirror.on_image(TilesReason::Snapshot, &image).unwrap();
        }
        mirror.on_snapshot_end();
        if let Some(image) = taken.map(image) {
            snapshot.put(&image);
        }
        let snapshot = snapshot.complete(TilesReason::Snapshot).unwrap();
        snapshot.difference(&mirror).map(|difference| difference.to_string())
    }

    #[test]
    fn equal_canvases_do_not_differ() {
        assert_eq!(difference(None, None), None);
        assert_eq!(difference(Some((3, 9)), Some((3, 9))), None);
    }

    #[test]
    fn a_difference_names_tile_pixel_colours_and_versions() {
        assert_eq!(
            difference(Some((3, 9)), Some((4, 7))).unwrap(),
            "tile 5 is at version 3 in its mirror, and at 4 in the snapshot; \
             the first different pixel is (129, 65), colour 9 in the mirror and 7 in the snapshot"
        );
        assert_eq!(
            difference(None, Some((1, 0))).unwrap(),
            "tile 5 is at version 0 in its mirror, and at 1 in the snapshot, with the same pixels"
        );
    }

    #[test]
    fn rows_are_the_canvas_without_the_rest_of_edge_tiles() {
        let geometry = Geometry::new(130, 70).unwrap();
        let mut snapshot = Snapshot::new(geometry);
        for tile in 0..geometry.tile_count() {
            // Whatever is past the edge must not be seen.
            snapshot.put(&Image { tile, version: 1, pixels: [tile as u8; TILE_PIXELS] });
        }
        let rows = snapshot.rows();
        assert_eq!(rows.len(), 130 * 70);
        for (x, y, tile) in [(0, 0, 0), (63, 63, 0), (64, 63, 1), (129, 0, 2), (0, 64, 3), (129, 69, LAST)] {
            assert_eq!(u32::from(rows[y * 130 + x]), tile, "({x}, {y})");
        }
    }

    #[test]
    fn other_streams_and_tiles_are_no_snapshot() {
        let snapshot = || Snapshot::new(Geometry::new(64, 64).unwrap());
        assert!(snapshot().complete(TilesReason::Repair).is_err());
        let mut beside = snapshot();
        beside.put(&Image { tile: 1, version: 1, pixels: [0; TILE_PIXELS] });
        assert!(beside.complete(TilesReason::Snapshot).is_err());
    }
}
