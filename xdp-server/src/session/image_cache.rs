//! Encoded tile images, shared by all clients of a worker.
//!
//! Compressing a tile costs tens of microseconds, and clients that join together want the same ones: each
//! version of a tile is compressed once. Direct-mapped by tile, so that memory is bounded whatever the
//! canvas's size.

use canvas::codec::tiles::ImageEncoder;
use canvas::geometry::TILE_PIXELS;
use canvas::tiles::TileReader;
use std::rc::Rc;

/// Images kept, a power of two: 4096 of at most 4.1 KB are 17 MB at worst, and a 4096 x 4096 canvas whole. A
/// smaller cache compresses the tiles of larger canvases again for each client.
const ENTRIES: usize = 4096;

struct Entry {
    tile: u32,
    version: u32,
    image: Rc<[u8]>,
}

/// See the [module](self).
pub struct ImageCache {
    entries: Box<[Option<Entry>]>,
    encoder: ImageEncoder,
    pixels: Box<[u8; TILE_PIXELS]>,
    scratch: Vec<u8>,
}

impl ImageCache {
    /// An empty cache for a canvas of `tiles` tiles.
    pub fn new(tiles: u32) -> Self {
        let entries = ENTRIES.min((tiles as usize).next_power_of_two());
        Self {
            entries: (0..entries).map(|_| None).collect(),
            encoder: ImageEncoder::default(),
            pixels: Box::new([0; TILE_PIXELS]),
            scratch: Vec::new(),
        }
    }

    /// The image of `tile` as it is now.
    pub fn get(&mut self, tile: u32, tiles: &TileReader) -> Rc<[u8]> {
        let at = tile as usize & (self.entries.len() - 1);
        let version = tiles.version(tile);
        if let Some(entry) = &self.entries[at]
            && (entry.tile, entry.version) == (tile, version)
        {
            return entry.image.clone();
        }
        let version = tiles.read(tile, &mut self.pixels);
        self.scratch.clear();
        self.encoder.encode(tile, version, &self.pixels, &mut self.scratch);
        let image: Rc<[u8]> = self.scratch.as_slice().into();
        self.entries[at] = Some(Entry { tile, version, image: image.clone() });
        image
    }
}
