//! The published tiles: one writer, many readers, a sequence lock for each tile.
//!
//! [`TileWriter`] belongs to the master's [`crate::canvas::Canvas`]; there is one, and it is not `Clone`.
//! [`TileReader`] goes to every worker that sends images. Both share one [`Region`], so that a large canvas
//! lies on huge pages of the master's NUMA node. It holds, in this order, each part indexed by tile id:
//!
//! ```text
//! pixels: tile_count x 4096 bytes | heads: tile_count x (u32 sequence, u32 version)
//! ```
//!
//! The heads are apart from the pixels so that asking for many versions touches few cache lines.
//!
//! A sequence lock: the writer makes the tile's sequence number odd, writes, and makes it even again; a
//! reader copies, and tries again if the number was odd or has changed meanwhile. The writer never waits,
//! which is why it is not a mutex. The copy races with the writer by design, so pixels are relaxed atomics,
//! eight to a word; the fences give the number its meaning (H. Boehm, "Can seqlocks get along with
//! programming language memory models?", 2012).

use crate::geometry::{Geometry, TILE_PIXELS};
use hugepages::Region;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::thread::yield_now;
use thiserror::Error;

/// Pixels in one atomic word.
const WORD: usize = size_of::<u64>();

/// Atomic words of a tile.
const TILE_WORDS: usize = TILE_PIXELS / WORD;

/// Atomic words whose pixels have their bits in one word of a mask of changes.
const MASK_WORDS: usize = u64::BITS as usize / WORD;

/// Failed attempts of a reader before it gives its core away. A write takes well under a microsecond, so more
/// than a few failures mean that the writer was preempted, on a machine where it shares its core. Larger
/// burns the time that the writer waits for; smaller makes a system call where a pause would do.
const ATTEMPTS_BEFORE_YIELD: u32 = 64;

/// A region that cannot hold the tiles of a canvas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the tiles need {needed} bytes of memory, the region has {got}")]
pub struct TooSmall {
    /// Bytes that [`bytes_needed`] tells.
    pub needed: usize,
    /// Bytes of the region.
    pub got: usize,
}

/// Sequence and version of one tile.
#[repr(C)]
struct Head {
    /// Even: at rest; odd: being written. Half of it counts the publications. A reader would be fooled if,
    /// during one copy, there were exactly 2^31 of them: three years at 20 a second.
    sequence: AtomicU32,
    version: AtomicU32,
}

struct Shared {
    region: Region,
    geometry: Geometry,
}

/// Bytes of memory that the tiles of a canvas need; ask for a [`Region`] of this length.
pub const fn bytes_needed(geometry: Geometry) -> usize {
    geometry.tile_count() as usize * (TILE_PIXELS + size_of::<Head>())
}

/// Makes a canvas of zeros at version 0 in `region`, which must be fresh: zeroed, and never used by others.
///
/// # Errors
/// When the region is shorter than [`bytes_needed`].
pub fn create(geometry: Geometry, region: Region) -> Result<(TileWriter, TileReader), TooSmall> {
    let (needed, got) = (bytes_needed(geometry), region.len());
    if got < needed {
        return Err(TooSmall { needed, got });
    }
    assert!(region.as_ptr().cast::<u64>().is_aligned(), "regions start at a page");
    let shared = Arc::new(Shared { region, geometry });
    Ok((TileWriter { shared: Arc::clone(&shared) }, TileReader { shared }))
}

impl Shared {
    fn pixels(&self, tile: u32) -> &[AtomicU64; TILE_WORDS] {
        assert!(tile < self.geometry.tile_count(), "no tile {tile}");
        // SAFETY: `create` checked that the region has `tile_count` arrays of TILE_PIXELS bytes at its start,
        // aligned to u64; any bytes are valid in them. The region lives as long as `self`, and nobody but
        // this module, which makes only shared references to atomics of it, knows of it.
        unsafe { self.region.as_ptr().cast::<[AtomicU64; TILE_WORDS]>().add(tile as usize).as_ref() }
    }

    fn head(&self, tile: u32) -> &Head {
        let tiles = self.geometry.tile_count();
        assert!(tile < tiles, "no tile {tile}");
        // SAFETY: as in `pixels`; the heads follow the arrays, whose length is a multiple of a head's
        // alignment, and `bytes_needed` counts one for each tile.
        unsafe {
            let heads = self.region.as_ptr().add(tiles as usize * TILE_PIXELS).cast::<Head>();
            heads.add(tile as usize).as_ref()
        }
    }
}

/// The one that changes tiles.
pub struct TileWriter {
    shared: Arc<Shared>,
}

impl TileWriter {
    /// The shape of the canvas.
    pub fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    /// Another reader.
    pub fn reader(&self) -> TileReader {
        TileReader { shared: Arc::clone(&self.shared) }
    }

    /// The version of `tile`.
    pub fn version(&self, tile: u32) -> u32 {
        self.shared.head(tile).version.load(Ordering::Relaxed)
    }

    /// Gives `tile` the `version`, and to every pixel whose bit in `changed` is set its colour in `colours`.
    /// Bit `i % 64` of word `i / 64` stands for offset `i`. Readers see all of it or nothing.
    ///
    /// # Panics
    /// When the canvas has no such tile.
    pub fn publish(&mut self, tile: u32, version: u32, changed: &[u64; 64], colours: &[u8; TILE_PIXELS]) {
        let head = self.shared.head(tile);
        let sequence = head.sequence.load(Ordering::Relaxed);
        head.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees any of the stores below, and fences after it, sees the odd number too.
        fence(Ordering::Release);
        head.version.store(version, Ordering::Relaxed);
        let words = self.shared.pixels(tile).as_chunks::<MASK_WORDS>().0.iter();
        for ((words, changed), colours) in words.zip(changed).zip(colours.as_chunks::<64>().0) {
            if *changed == 0 {
                continue;
            }
            for ((word, changed), colours) in
                words.iter().zip(changed.to_le_bytes()).zip(colours.as_chunks::<WORD>().0)
            {
                if changed != 0 {
                    let mut pixels = word.load(Ordering::Relaxed).to_ne_bytes();
                    for (bit, pixel) in pixels.iter_mut().enumerate() {
                        if changed & 1 << bit != 0 {
                            *pixel = colours[bit];
                        }
                    }
                    word.store(u64::from_ne_bytes(pixels), Ordering::Relaxed);
                }
            }
        }
        head.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }
}

/// One of those that read tiles. Cheap to clone; reads from any thread, at any time.
#[derive(Clone)]
pub struct TileReader {
    shared: Arc<Shared>,
}

impl TileReader {
    /// The shape of the canvas.
    pub fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    /// The memory that holds the tiles, for its report.
    pub fn region(&self) -> &Region {
        &self.shared.region
    }

    /// The version of `tile` now. A [`TileReader::read`] that follows gives this one or a newer.
    ///
    /// # Panics
    /// When the canvas has no such tile.
    pub fn version(&self, tile: u32) -> u32 {
        self.shared.head(tile).version.load(Ordering::Acquire)
    }

    /// True when nothing was ever published for `tile`: it is all zeros at version 0, and a snapshot leaves
    /// it out. (A version of 0 is not enough to tell: versions wrap.)
    ///
    /// # Panics
    /// When the canvas has no such tile.
    pub fn is_untouched(&self, tile: u32) -> bool {
        let head = self.shared.head(tile);
        head.sequence.load(Ordering::Acquire) == 0 && head.version.load(Ordering::Relaxed) == 0
    }

    /// Copies the pixels of `tile` and tells the version that they are of.
    ///
    /// # Panics
    /// When the canvas has no such tile.
    pub fn read(&self, tile: u32, pixels: &mut [u8; TILE_PIXELS]) -> u32 {
        let (head, words) = (self.shared.head(tile), self.shared.pixels(tile));
        let mut attempts = 0;
        loop {
            let before = head.sequence.load(Ordering::Acquire);
            if before.is_multiple_of(2) {
                let version = head.version.load(Ordering::Relaxed);
                for (copy, word) in pixels.as_chunks_mut::<WORD>().0.iter_mut().zip(words) {
                    *copy = word.load(Ordering::Relaxed).to_ne_bytes();
                }
                // If a load above met a newer store, the load below meets that store's odd number, or a later
                // one.
                fence(Ordering::Acquire);
                if head.sequence.load(Ordering::Relaxed) == before {
                    return version;
                }
            }
            attempts += 1;
            if attempts % ATTEMPTS_BEFORE_YIELD == 0 { yield_now() } else { spin_loop() }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use hugepages::{Pages, Request};
    use std::sync::atomic::AtomicBool;

    /// Tiles of a canvas on plain memory, all at `version`.
    pub(crate) fn tiles(width: u32, height: u32, version: u32) -> (TileWriter, TileReader) {
        let geometry = Geometry::new(width, height).unwrap();
        let (writer, reader) = create(geometry, region(bytes_needed(geometry))).unwrap();
        for tile in 0..geometry.tile_count() {
            writer.shared.head(tile).version.store(version, Ordering::Relaxed);
        }
        (writer, reader)
    }

    fn region(len: usize) -> Region {
        let pages = Pages::Exactly(hugepages::PageKind::Plain);
        Region::map(&Request { what: "test", len, pages, numa_node: None, prefault: false }).unwrap()
    }

    #[test]
    fn a_small_region_is_refused() {
        let geometry = Geometry::new(65, 130).unwrap();
        assert_eq!(bytes_needed(geometry), 6 * (4096 + 8));
        let error = create(Geometry::new(1000, 1000).unwrap(), region(4096)).err().unwrap();
        assert_eq!(error, TooSmall { needed: 256 * 4104, got: 4096 });
    }

    #[test]
    fn only_changed_pixels_are_written() {
        let (mut writer, reader) = tiles(130, 65, 0);
        let mut pixels = [9; TILE_PIXELS];
        assert!(reader.is_untouched(4));
        assert_eq!(reader.read(4, &mut pixels), 0);
        assert_eq!(pixels, [0; TILE_PIXELS]);

        let mut expected = [0; TILE_PIXELS];
        let mut changed = [0; 64];
        for offset in [0, 1, 7, 8, 63, 64, 700, 4095] {
            changed[offset / 64] |= 1 << (offset % 64);
            expected[offset] = 5;
        }
        writer.publish(4, 3, &changed, &[5; TILE_PIXELS]);
        assert_eq!((reader.read(4, &mut pixels), reader.version(4), writer.version(4)), (3, 3, 3));
        assert_eq!(pixels, expected);

        expected[700] = 6;
        changed = [0; 64];
        changed[700 / 64] = 1 << (700 % 64);
        writer.publish(4, 4, &changed, &[6; TILE_PIXELS]);
        assert_eq!(reader.read(4, &mut pixels), 4);
        assert_eq!(pixels, expected);

        assert!(!reader.is_untouched(4));
        for other in [0, 1, 2, 3, 5] {
            assert!(reader.is_untouched(other));
            assert_eq!((reader.read(other, &mut pixels), pixels), (0, [0; TILE_PIXELS]));
        }
    }

    #[test]
    fn a_wrapped_version_is_not_untouched() {
        let (mut writer, reader) = tiles(1, 1, u32::MAX);
        assert!(!reader.is_untouched(0));
        writer.publish(0, 0, &[1; 64], &[1; TILE_PIXELS]);
        assert_eq!(reader.version(0), 0);
        assert!(!reader.is_untouched(0));
    }

    /// Each publication fills the tile with a function of its version; a reader that sees a mixture has seen
    /// a torn tile.
    #[test]
    fn no_reader_sees_a_torn_tile() {
        const PUBLICATIONS: u32 = 20_000;
        let (mut writer, reader) = tiles(128, 64, 0);
        let done = AtomicBool::new(false);
        let colour = |tile: u32, version: u32| (version.wrapping_mul(31) ^ tile) as u8;
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3u32)
                .map(|n| {
                    let (reader, done) = (reader.clone(), &done);
                    scope.spawn(move || {
                        let (tile, mut newest, mut different) = (n % 2, 0, 0u32);
                        let mut pixels = [0; TILE_PIXELS];
                        while !done.load(Ordering::Relaxed) {
                            let least = reader.version(tile);
                            let version = reader.read(tile, &mut pixels);
                            assert!(version >= least && version >= newest, "versions never go back");
                            let expected = if version == 0 { 0 } else { colour(tile, version) };
                            assert!(pixels.iter().all(|pixel| *pixel == expected), "torn at {version}");
                            different += u32::from(version != newest);
                            newest = version;
                        }
                        different
                    })
                })
                .collect();
            for version in 1..=PUBLICATIONS {
                for tile in 0..2 {
                    writer.publish(tile, version, &[u64::MAX; 64], &[colour(tile, version); TILE_PIXELS]);
                }
                if version % 64 == 0 {
                    yield_now();
                }
            }
            done.store(true, Ordering::Relaxed);
            for reader in readers {
                assert!(reader.join().unwrap() > 1, "the reader and the writer did not run at the same time");
            }
        });
        let mut pixels = [0; TILE_PIXELS];
        assert_eq!(reader.read(1, &mut pixels), PUBLICATIONS);
        assert_eq!(pixels, [colour(1, PUBLICATIONS); TILE_PIXELS]);
    }
}
