//! Pixels whose final colour is known for certain, and must be in the server's canvas at the end.
//!
//! Painters do not know of each other, and between two that paint the same pixel the server decides. But a
//! pixel that only one of this process's clients painted, only once, with a PAINT frame that the server
//! acknowledged as applied, has that colour in the end, whatever else happened. This table finds those
//! pixels: one word a pixel, shared by all threads, touched once a paint and once an acknowledgement.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use canvas::Geometry;
use canvas::codec::Pixel;

/// Largest canvas that is watched over, in pixels: 128 MiB of table. On a larger one the other checks remain.
const MAX_PIXELS: usize = 64 << 20;

// A word is 0 for a pixel that nobody painted; else one of these flags, and the colour in the low byte.
const SENT: u16 = 1 << 8;
const ACKNOWLEDGED: u16 = 2 << 8;
const CONTENDED: u16 = 3 << 8;
const STATE: u16 = 3 << 8;

/// The table.
#[derive(Debug)]
pub struct Witness {
    geometry: Geometry,
    words: Box<[AtomicU16]>,
}

impl Witness {
    /// A table for this canvas; `None` if it is too large for one.
    pub fn new(geometry: Geometry) -> Option<Self> {
        let pixels = usize::from(geometry.width()) * usize::from(geometry.height());
        (pixels <= MAX_PIXELS).then(|| Self {
            geometry,
            words: std::iter::repeat_with(|| AtomicU16::new(0)).take(pixels).collect(),
        })
    }

    /// A PAINT frame is about to be sent.
    pub fn sent(&self, pixel: Pixel) {
        let first = self.word(pixel).compare_exchange(0, SENT | u16::from(pixel.colour), Relaxed, Relaxed);
        if first.is_err() {
            self.word(pixel).store(CONTENDED, Relaxed);
        }
    }

    /// A PAINT datagram is about to be sent: whether it arrives nobody will say, so the pixel is out.
    pub fn contended(&self, pixel: Pixel) {
        self.word(pixel).store(CONTENDED, Relaxed);
    }

    /// A PAINT frame was acknowledged as applied.
    pub fn acknowledged(&self, pixel: Pixel) {
        let colour = u16::from(pixel.colour);
        // Fails if somebody painted it since, as it must.
        let _ = self.word(pixel).compare_exchange(SENT | colour, ACKNOWLEDGED | colour, Relaxed, Relaxed);
    }

    /// Every pixel whose colour is certain.
    pub fn certain(&self) -> impl Iterator<Item = Pixel> + '_ {
        let width = usize::from(self.geometry.width());
        self.words.iter().enumerate().filter_map(move |(index, word)| {
            let word = word.load(Relaxed);
            let (x, y) = ((index % width) as u16, (index / width) as u16);
            (word & STATE == ACKNOWLEDGED).then_some(Pixel { x, y, colour: word as u8 })
        })
    }

    /// The word of a pixel, which the client chose within the canvas.
    fn word(&self, pixel: Pixel) -> &AtomicU16 {
        &self.words[usize::from(pixel.y) * usize::from(self.geometry.width()) + usize::from(pixel.x)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pixels_painted_once_and_acknowledged_are_certain() {
        let witness = Witness::new(Geometry::new(70, 3).unwrap()).unwrap();
        let at = |x, colour| Pixel { x, y: 2, colour };
        let (lone, unacknowledged, twice, late, datagram, same) =
            (at(69, 255), at(1, 1), at(2, 2), at(3, 3), at(4, 4), at(5, 5));
        for pixel in [lone, unacknowledged, twice, at(2, 9), late, datagram, same, same] {
            witness.sent(pixel);
        }
        witness.contended(datagram);
        for pixel in [lone, twice, at(2, 9), late, datagram, same, same] {
            witness.acknowledged(pixel);
        }
        // Painted over after it was acknowledged.
        witness.sent(at(3, 8));
        witness.acknowledged(at(3, 8));
        assert_eq!(witness.certain().collect::<Vec<_>>(), [lone]);
    }

    #[test]
    fn huge_canvases_are_left_alone() {
        assert!(Witness::new(Geometry::new(65_535, 65_535).unwrap()).is_none());
    }
}
