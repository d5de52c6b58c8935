//! canvas/1 on the wire: control frames, datagrams and tile streams, encoded and decoded, both directions.
//!
//! Decoders borrow from the bytes that they are given and allocate nothing; lists stay in wire form and are
//! read entry by entry. Everything that can be wrong with the bytes is an error value with its cause, never a
//! panic. Encoders append to the caller's buffer. What the bytes mean to a canvas (is the tile there, does
//! the version follow) is not decided here.

pub mod control;
pub mod datagram;
pub mod tiles;

use std::{fmt, iter, marker::PhantomData, slice};

/// A value of fixed size in a list on the wire: `N` bytes without padding.
pub trait Entry<const N: usize>: Copy {
    /// The value of these bytes; every combination of bytes is one.
    fn from_wire(bytes: [u8; N]) -> Self;
    /// The bytes of this value.
    fn to_wire(self) -> [u8; N];
}

/// One painted pixel: position on the canvas and palette index. Not checked against either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pixel {
    /// Pixels from the left.
    pub x: u16,
    /// Pixels from the top.
    pub y: u16,
    /// Palette index.
    pub colour: u8,
}

impl Entry<5> for Pixel {
    fn from_wire([x0, x1, y0, y1, colour]: [u8; 5]) -> Self {
        Self { x: u16::from_le_bytes([x0, x1]), y: u16::from_le_bytes([y0, y1]), colour }
    }

    fn to_wire(self) -> [u8; 5] {
        let ([x0, x1], [y0, y1]) = (self.x.to_le_bytes(), self.y.to_le_bytes());
        [x0, x1, y0, y1, self.colour]
    }
}

/// A tile and a version of it: in REPAIR the one that the client has, in VERSIONS the one that the server
/// has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileVersion {
    /// Tile id; from the wire not checked against the canvas.
    pub tile: u32,
    /// Version, see [`crate::version`].
    pub version: u32,
}

impl Entry<8> for TileVersion {
    fn from_wire([t0, t1, t2, t3, v0, v1, v2, v3]: [u8; 8]) -> Self {
        Self { tile: u32::from_le_bytes([t0, t1, t2, t3]), version: u32::from_le_bytes([v0, v1, v2, v3]) }
    }

    fn to_wire(self) -> [u8; 8] {
        let ([t0, t1, t2, t3], [v0, v1, v2, v3]) = (self.tile.to_le_bytes(), self.version.to_le_bytes());
        [t0, t1, t2, t3, v0, v1, v2, v3]
    }
}

/// One changed pixel of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// Offset in the tile, 0 to 4095.
    pub offset: u16,
    /// Palette index.
    pub colour: u8,
}

impl Entry<3> for Change {
    fn from_wire([o0, o1, colour]: [u8; 3]) -> Self {
        Self { offset: u16::from_le_bytes([o0, o1]), colour }
    }

    fn to_wire(self) -> [u8; 3] {
        let [o0, o1] = self.offset.to_le_bytes();
        [o0, o1, self.colour]
    }
}

/// A list in wire form, `N` bytes an entry, read in place.
pub struct Entries<'a, E, const N: usize> {
    wire: &'a [[u8; N]],
    entry: PhantomData<E>,
}

/// Pixels of a PAINT, from a frame or a datagram.
pub type Pixels<'a> = Entries<'a, Pixel, 5>;
/// Tiles and versions of a REPAIR or a VERSIONS.
pub type TileVersions<'a> = Entries<'a, TileVersion, 8>;

/// Iterator over [`Entries`].
pub type EntriesIter<'a, E, const N: usize> =
    iter::Map<iter::Copied<slice::Iter<'a, [u8; N]>>, fn([u8; N]) -> E>;

impl<'a, E: Entry<N>, const N: usize> Entries<'a, E, N> {
    /// The list of these wire entries; [`Entry::to_wire`] makes them.
    pub const fn new(wire: &'a [[u8; N]]) -> Self {
        Self { wire, entry: PhantomData }
    }

    /// The list in these bytes; `None` when they are not a whole number of entries.
    pub fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        match bytes.as_chunks() {
            (wire, []) => Some(Self::new(wire)),
            _ => None,
        }
    }

    /// The list in wire form.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.wire.as_flattened()
    }

    /// Entries in it.
    pub const fn len(&self) -> usize {
        self.wire.len()
    }

    /// True when it has none.
    pub const fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// Its entries in order.
    pub fn iter(&self) -> EntriesIter<'a, E, N> {
        self.wire.iter().copied().map(E::from_wire)
    }
}

impl<'a, E: Entry<N>, const N: usize> IntoIterator for Entries<'a, E, N> {
    type Item = E;
    type IntoIter = EntriesIter<'a, E, N>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<E, const N: usize> Clone for Entries<'_, E, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E, const N: usize> Copy for Entries<'_, E, N> {}

impl<E, const N: usize> PartialEq for Entries<'_, E, N> {
    fn eq(&self, other: &Self) -> bool {
        self.wire == other.wire
    }
}

impl<E, const N: usize> Eq for Entries<'_, E, N> {}

impl<E: Entry<N> + fmt::Debug, const N: usize> fmt::Debug for Entries<'_, E, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Takes little-endian fields off the front of a slice; `None` once the slice is too short.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
