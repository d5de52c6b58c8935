//! The shape of a canvas: pixels, tiles, offsets, and rectangles of tiles (section 2).
//!
//! Everything here is arithmetic on two numbers, copied freely by everybody. Tile ids are `u32`: the largest
//! canvas, 65535 x 65535, has 1024 x 1024 tiles.

use thiserror::Error;

/// Pixels along one side of a tile. Fixed by the protocol; WELCOME repeats it.
pub const TILE_SIDE: u16 = 64;

/// Pixels, and bytes, of a tile: its offsets are 0 to `TILE_PIXELS - 1`. Edge tiles have as many.
pub const TILE_PIXELS: usize = TILE_SIDE as usize * TILE_SIDE as usize;

/// A canvas side that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a canvas of {width} x {height} pixels cannot be: each side must be 1 to 65535")]
pub struct GeometryError {
    /// Pixels asked for, from left to right.
    pub width: u32,
    /// Pixels asked for, from top to bottom.
    pub height: u32,
}

/// Width and height of a canvas in pixels, each 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    width: u16,
    height: u16,
}

impl Geometry {
    /// A canvas of `width` x `height` pixels.
    ///
    /// # Errors
    /// When a side is 0 or more than 65535.
    pub fn new(width: u32, height: u32) -> Result<Self, GeometryError> {
        match (u16::try_from(width), u16::try_from(height)) {
            (Ok(w @ 1..), Ok(h @ 1..)) => Ok(Self { width: w, height: h }),
            _ => Err(GeometryError { width, height }),
        }
    }

    /// Pixels from left to right.
    pub const fn width(self) -> u16 {
        self.width
    }

    /// Pixels from top to bottom.
    pub const fn height(self) -> u16 {
        self.height
    }

    /// Tiles in a row.
    pub const fn tiles_x(self) -> u32 {
        (self.width as u32).div_ceil(TILE_SIDE as u32)
    }

    /// Rows of tiles.
    pub const fn tiles_y(self) -> u32 {
        (self.height as u32).div_ceil(TILE_SIDE as u32)
    }

    /// Tiles of the canvas; tile ids are `0..tile_count()`.
    pub const fn tile_count(self) -> u32 {
        self.tiles_x() * self.tiles_y()
    }

    /// True when the canvas has a pixel at `(x, y)`.
    pub const fn contains(self, x: u16, y: u16) -> bool {
        x < self.width && y < self.height
    }

    /// The tile and the offset in it of the pixel at `(x, y)`; `None` outside the canvas.
    pub const fn locate(self, x: u16, y: u16) -> Option<(u32, u16)> {
        if self.contains(x, y) { Some((self.tile_of(x, y), offset_of(x, y))) } else { None }
    }

    /// The id of the tile that holds the pixel at `(x, y)`, which must be on the canvas.
    pub const fn tile_of(self, x: u16, y: u16) -> u32 {
        (y / TILE_SIDE) as u32 * self.tiles_x() + (x / TILE_SIDE) as u32
    }

    /// The position of `offset` in `tile`; `None` when no pixel of the canvas is there: a tile id or an
    /// offset too large, or an offset of an edge tile that lies outside the canvas.
    pub const fn pixel(self, tile: u32, offset: u16) -> Option<(u16, u16)> {
        if tile >= self.tile_count() || offset as usize >= TILE_PIXELS {
            return None;
        }
        let side = TILE_SIDE as u32;
        let x = tile % self.tiles_x() * side + (offset % TILE_SIDE) as u32;
        let y = tile / self.tiles_x() * side + (offset / TILE_SIDE) as u32;
        if x < self.width as u32 && y < self.height as u32 { Some((x as u16, y as u16)) } else { None }
    }

    /// Columns and rows of `tile` that are on the canvas: 64 and 64, less at the right and the bottom edge.
    /// `(0, 0)` for a tile that the canvas does not have.
    pub const fn tile_extent(self, tile: u32) -> (u16, u16) {
        if tile >= self.tile_count() {
            return (0, 0);
        }
        let side = TILE_SIDE as u32;
        let columns = self.width as u32 - tile % self.tiles_x() * side;
        let rows = self.height as u32 - tile / self.tiles_x() * side;
        (
            if columns < side { columns as u16 } else { TILE_SIDE },
            if rows < side { rows as u16 } else { TILE_SIDE },
        )
    }

    /// The tiles of the whole canvas.
    pub const fn all_tiles(self) -> TileRect {
        TileRect { left: 0, top: 0, right: self.tiles_x(), bottom: self.tiles_y(), stride: self.tiles_x() }
    }

    /// No tile at all.
    pub const fn no_tiles(self) -> TileRect {
        TileRect { left: 0, top: 0, right: 0, bottom: 0, stride: self.tiles_x() }
    }

    /// The tiles that a VIEW of the half-open pixel rectangle `x0..x1`, `y0..y1` covers, at least in part.
    ///
    /// The rectangle is clipped to the canvas. All four 0 is the whole canvas. A rectangle with nothing in it
    /// (empty, inverted, or beside the canvas) covers no tile: a view of nothing is a way to ask for silence.
    pub fn tile_rect(self, x0: u16, y0: u16, x1: u16, y1: u16) -> TileRect {
        if (x0, y0, x1, y1) == (0, 0, 0, 0) {
            return self.all_tiles();
        }
        let (x1, y1) = (x1.min(self.width), y1.min(self.height));
        if x0 >= x1 || y0 >= y1 {
            return self.no_tiles();
        }
        TileRect {
            left: u32::from(x0 / TILE_SIDE),
            top: u32::from(y0 / TILE_SIDE),
            right: u32::from(x1.div_ceil(TILE_SIDE)),
            bottom: u32::from(y1.div_ceil(TILE_SIDE)),
            stride: self.tiles_x(),
        }
    }
}

/// The offset in its tile of the pixel at `(x, y)`.
pub const fn offset_of(x: u16, y: u16) -> u16 {
    y % TILE_SIDE * TILE_SIDE + x % TILE_SIDE
}

/// A rectangle of whole tiles of one canvas, half open, possibly empty. Equal rectangles get equal diffs, so
/// this is also the key by which a worker groups its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileRect {
    left: u32,
    top: u32,
    right: u32,
    bottom: u32,
    /// Tiles in a row of the canvas.
    stride: u32,
}

impl TileRect {
    /// Tiles in it.
    pub const fn len(&self) -> usize {
        (self.right - self.left) as usize * (self.bottom - self.top) as usize
    }

    /// True when it has no tile.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when the tile with this id is in it.
    pub const fn contains(&self, tile: u32) -> bool {
        let (column, row) = (tile % self.stride, tile / self.stride);
        self.left <= column && column < self.right && self.top <= row && row < self.bottom
    }

    /// The ids of its tiles, row by row, which is ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<> {
        let Self { left, top, right, bottom, stride } = *self;
        (top..bottom).flat_map(move |row| (left..right).map(move |column| row * stride + column))
    }

    /// Calls `visit` for each of `items` whose tile is in the rectangle. `items` must be in ascending order
    /// of `tile_of`. Tiles beside the rectangle are jumped over by binary search, so a small view of a busy
    /// canvas costs its rows, and a large view of a quiet one its items; neither scans the other.
    pub fn visit<T>(&self, items: &[T], tile_of: impl Fn(&T) -> u32, mut visit: impl FnMut(&T)) {
        if self.is_empty() {
            return;
        }
        let from = |rest: &[T], first: u32| rest.partition_point(|item| tile_of(item) < first);
        let mut rest = &items[from(items, self.top * self.stride + self.left)..];
        while let [item, after @ ..] = rest {
            let (column, row) = (tile_of(item) % self.stride, tile_of(item) / self.stride);
            if row >= self.bottom {
                return;
            }
            rest = if column < self.left {
                &after[from(after, row * self.stride + self.left)..]
            } else if column >= self.right {
                &after[from(after, (row + 1) * self.stride + self.left)..]
            } else {
                visit(item);
                after
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(width: u32, height: u32) -> Geometry {
        Geometry::new(width, height).unwrap()
    }

    #[test]
    fn sides_are_checked() {
        for (width, height) in [(0, 1), (1, 0), (65_536, 1), (1, 65_536), (u32::MAX, u32::MAX)] {
            let error = Geometry::new(width, height).unwrap_err();
            assert_eq!(error, GeometryError { width, height });
            assert!(error.to_string().contains("1 to 65535"), "{error}");
        }
        assert_eq!(geometry(65_535, 65_535).tile_count(), 1024 * 1024);
        assert_eq!(geometry(1, 1).tile_count(), 1);
        assert_eq!(geometry(64, 64).tile_count(), 1);
        assert_eq!(geometry(65, 130).tile_count(), 2 * 3);
    }

    #[test]
    fn tiles_and_offsets_are_the_formula() {
        let wide = geometry(1000, 1000); // 16 tiles in a row
        assert_eq!(wide.locate(0, 0), Some((0, 0)));
        assert_eq!(wide.locate(63, 0), Some((0, 63)));
        assert_eq!(wide.locate(64, 0), Some((1, 0)));
        assert_eq!(wide.locate(0, 64), Some((16, 0)));
        assert_eq!(wide.locate(70, 130), Some((33, 2 * 64 + 6)));
        assert_eq!(wide.locate(999, 999), Some((255, 39 * 64 + 39)));
        assert_eq!(wide.locate(1000, 0), None);
        assert_eq!(wide.locate(0, 1000), None);
    }

    #[test]
    fn edge_tiles_end_at_the_canvas() {
        let narrow = geometry(65, 130);
        assert_eq!(narrow.tile_extent(0), (64, 64));
        assert_eq!(narrow.tile_extent(1), (1, 64));
        assert_eq!(narrow.tile_extent(4), (64, 2));
        assert_eq!(narrow.tile_extent(5), (1, 2));
        assert_eq!(narrow.tile_extent(6), (0, 0));
        assert_eq!(narrow.pixel(5, 0), Some((64, 128)));
        assert_eq!(narrow.pixel(5, 1), None);
        assert_eq!(narrow.pixel(5, 64), Some((64, 129)));
        assert_eq!(narrow.pixel(5, 128), None);
        assert_eq!(narrow.pixel(6, 0), None);
        assert_eq!(narrow.pixel(0, 4096), None);
        let largest = geometry(65_535, 65_535);
        assert_eq!(largest.pixel(1024 * 1024 - 1, 62 * 64 + 62), Some((65_534, 65_534)));
        assert_eq!(largest.pixel(1024 * 1024 - 1, 63), None);
    }

    #[test]
    fn views_cover_every_tile_that_they_touch() {
        let canvas = geometry(200, 200); // 4 x 4 tiles
        let tiles = |x0, y0, x1, y1| canvas.tile_rect(x0, y0, x1, y1).iter().collect::<Vec<_>>();
        assert_eq!(tiles(0, 0, 0, 0), (0..16).collect::<Vec<_>>(), "all four 0");
        assert_eq!(tiles(0, 0, 1, 1), [0]);
        assert_eq!(tiles(63, 63, 65, 65), [0, 1, 4, 5]);
        assert_eq!(tiles(64, 64, 128, 128), [5]);
        assert_eq!(tiles(199, 199, 65_535, 65_535), [15], "clipped");
        assert_eq!(tiles(0, 0, 65_535, 65_535).len(), 16);
        for (x0, y0, x1, y1) in
            [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (200, 0, 300, 9), (0, 0, 0, 9), (0, 0, 9, 0)]
        {
            let empty = canvas.tile_rect(x0, y0, x1, y1);
            assert!(empty.is_empty());
            assert_eq!(empty, canvas.no_tiles());
            assert_eq!(empty.iter().count(), 0);
            assert!(!(0..16).any(|tile| empty.contains(tile)));
        }
    }

    proptest! {
        #[test]
        fn locate_and_pixel_are_inverse(width in 1u32..=65_535, height in 1u32..=65_535, x: u16, y: u16) {
            let canvas = geometry(width, height);
            let (x, y) = ((u32::from(x) % width) as u16, (u32::from(y) % height) as u16);
            let (tile, offset) = canvas.locate(x, y).unwrap();
            prop_assert!(tile < canvas.tile_count());
            prop_assert_eq!(canvas.pixel(tile, offset), Some((x, y)));
            let (columns, rows) = canvas.tile_extent(tile);
            prop_assert!(offset % 64 < columns && offset / 64 < rows);
        }

        #[test]
        fn a_view_is_the_set_of_tiles_of_its_pixels(
            (width, height) in (1u32..400, 1u32..400),
            (x0, y0) in (0u16..420, 0u16..420),
            (x1, y1) in (1u16..420, 0u16..420),
        ) {
            let canvas = geometry(width, height);
            let view = canvas.tile_rect(x0, y0, x1, y1);
            let mut expected = std::collections::BTreeSet::new();
            for y in y0..y1 {
                expected.extend((x0..x1).filter_map(|x| canvas.locate(x, y)).map(|(tile, _)| tile));
            }
            prop_assert_eq!(view.iter().collect::<Vec<_>>(), expected.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(view.len(), expected.len());
            for tile in 0..canvas.tile_count() {
                prop_assert_eq!(view.contains(tile), expected.contains(&tile));
            }
        }

        #[test]
        fn visit_is_a_filter(
            (width, height) in (1u32..700, 1u32..700), x0: u16, y0: u16, x1: u16, y1: u16,
            mut tiles in proptest::collection::vec(0u32..121, 0..80),
        ) {
            let canvas = geometry(width, height);
            let view = canvas.tile_rect(x0 % 700, y0 % 700, x1 % 700, y1 % 700);
            tiles.retain(|tile| *tile < canvas.tile_count());
            tiles.sort_unstable();
            let mut visited = Vec::new();
            view.visit(&tiles, |tile| *tile, |tile| visited.push(*tile));
            tiles.retain(|tile| view.contains(*tile));
            prop_assert_eq!(visited, tiles);
        }
    }
}
