//! Writing the canvas to a file at the end.

use super::ServerError;
use canvas::TILE_PIXELS;
use canvas::tiles::TileReader;
use std::fs::File;
use std::io::Write;

/// Writes the published canvas to `file`: one byte a pixel, row by row.
///
/// # Errors
/// The file cannot be written.
pub fn write(tiles: &TileReader, mut file: File) -> Result<(), ServerError> {
    file.write_all(&pixels(tiles))
        .map_err(|source| ServerError::System { what: "write the --dump file", source })
}

/// The canvas, one byte a pixel, row by row.
fn pixels(tiles: &TileReader) -> Vec<u8> {
    let geometry = tiles.geometry();
    let width = usize::from(geometry.width());
    let mut rows = vec![0; width * usize::from(geometry.height())];
    let mut tile_pixels = [0; TILE_PIXELS];
    for tile in 0..geometry.tile_count() {
        tiles.read(tile, &mut tile_pixels);
        for (offset, colour) in (0..).zip(tile_pixels) {
            if let Some((x, y)) = geometry.pixel(tile, offset) {
                rows[usize::from(y) * width + usize::from(x)] = colour;
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use canvas::{Canvas, Geometry, Palette};
    use hugepages::{PageKind, Pages, Region, Request};

    #[test]
    fn pixels_land_in_their_rows() {
        let geometry = Geometry::new(70, 65).unwrap();
        let region = Region::map(&Request {
            what: "test",
            len: canvas::tiles::bytes_needed(geometry),
            pages: Pages::Exactly(PageKind::Plain),
            numa_node: None,
            prefault: false,
        })
        .unwrap();
        let (writer, tiles) = canvas::tiles::create(geometry, region).unwrap();
        let mut canvas = Canvas::new(writer, Palette::default(), 50);
        for (x, y, colour) in [(0, 0, 1), (69, 0, 2), (0, 64, 3), (69, 64, 4)] {
            canvas.paint(x, y, colour).unwrap();
        }
        canvas.tick();
        let rows = pixels(&tiles);
        assert_eq!(rows.len(), 70 * 65);
        assert_eq!([rows[0], rows[69], rows[64 * 70], rows[64 * 70 + 69]], [1, 2, 3, 4]);
        assert_eq!(rows.iter().filter(|colour| **colour != 0).count(), 4);
    }
}
