//! Datagram payloads (section 4): PAINT from clients, DIFF and VERSIONS from the server.
//!
//! Decoding checks a payload from end to end before it hands out anything, so that a receiver never acts on
//! the first half of a broken one; what it hands out then iterates without errors. Whether tiles and offsets
//! lie on the canvas is for the receiver, who knows its size.
//!
//! Decided here where the page leaves it open: the flags bytes, named as 0, are not looked at when they come
//! in, so that a later revision can give them a meaning; a DIFF or VERSIONS with no entry, and a record with
//! no change, are valid; the server's types are unknown ones when a client sends them, and the other way
//! round.

use super::{Change, Entries, EntriesIter, Entry, Fields, Pixels, TileVersion, TileVersions};
use crate::codes::{MAX_DATAGRAM_PAYLOAD, MAX_PAINT_PIXELS, datagram};
use crate::geometry::TILE_PIXELS;
use thiserror::Error;

/// Bytes ahead of the records of a DIFF and of the entries of a VERSIONS: type, flags, tick.
pub const SERVER_HEADER: usize = 6;

/// Bytes ahead of the body of a record: tile, version, encoding, count.
pub const RECORD_HEADER: usize = 11;

/// Bytes of the bitmap of a record with encoding 1.
pub const BITMAP: usize = TILE_PIXELS / 8;

/// Bytes: the longest record that fits in a DIFF of [`MAX_DATAGRAM_PAYLOAD`].
pub const MAX_RECORD: usize = MAX_DATAGRAM_PAYLOAD - SERVER_HEADER;

/// Changes that fit in one record, whatever their offsets; a tile with more gets several records. At this
/// number a bitmap is the shorter encoding, so it is what the bitmap leaves room for: 571.
pub const MAX_RECORD_CHANGES: usize = MAX_RECORD - RECORD_HEADER - BITMAP;

/// Entries that fit in one VERSIONS of [`MAX_DATAGRAM_PAYLOAD`]: 136.
pub const MAX_VERSIONS: usize = (MAX_DATAGRAM_PAYLOAD - SERVER_HEADER) / 8;

const ENCODING_LIST: u8 = 0;
const ENCODING_BITMAP: u8 = 1;

/// Why a payload is not a datagram that the receiver may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DatagramError {
    /// No byte at all.
    #[error("empty datagram")]
    Empty,
    /// A type that this protocol does not name for this direction. Dropped and counted, but not malformed.
    #[error("unknown datagram type 0x{0:02x}")]
    UnknownType(u8),
    /// It ends in the middle of a header or a record.
    #[error("datagram cut short")]
    CutShort,
    /// A PAINT or VERSIONS ends in the middle of an entry.
    #[error("datagram with part of an entry at its end")]
    PartEntry,
    /// A PAINT with no pixel, or more than [`MAX_PAINT_PIXELS`].
    #[error("PAINT with {0} pixels, 1 to {MAX_PAINT_PIXELS} allowed")]
    PixelCount(usize),
    /// A record with an encoding that this protocol does not name.
    #[error("record with unknown encoding {0}")]
    UnknownEncoding(u8),
    /// A list record with an offset beyond the tile.
    #[error("record with offset {0}, beyond the tile")]
    Offset(u16),
    /// A bitmap record whose count is not the number of bits set.
    #[error("record with a count of {count} and {bits} bits set")]
    Count {
        /// The count field.
        count: u16,
        /// The bits set.
        bits: u32,
    },
}

impl DatagramError {
    /// True when the datagram counts towards [`crate::codes::MAX_MALFORMED_DATAGRAMS`]; unknown types do not.
    pub const fn is_malformed(&self) -> bool {
        !matches!(self, Self::UnknownType(_))
    }
}

/// A datagram from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientDatagram<'a> {
    /// Pixels to paint, not acknowledged.
    Paint {
        /// The client's own number; the server makes nothing of it.
        seq: u32,
        /// 1 to [`MAX_PAINT_PIXELS`] pixels, in the order in which to paint them.
        pixels: Pixels<'a>,
    },
}

impl<'a> ClientDatagram<'a> {
    /// The datagram that a client sent.
    ///
    /// # Errors
    /// When the payload is not one that a client may send.
    pub fn decode(payload: &'a [u8]) -> Result<Self, DatagramError> {
        let mut fields = Fields(payload);
        match fields.u8().ok_or(DatagramError::Empty)? {
            datagram::PAINT => {
                let _flags = fields.u8().ok_or(DatagramError::CutShort)?;
                let seq = fields.u32().ok_or(DatagramError::CutShort)?;
                let pixels = Pixels::from_bytes(fields.0).ok_or(DatagramError::PartEntry)?;
                if !(1..=MAX_PAINT_PIXELS).contains(&pixels.len()) {
                    return Err(DatagramError::PixelCount(pixels.len()));
                }
                Ok(Self::Paint { seq, pixels })
            }
            kind => Err(DatagramError::UnknownType(kind)),
        }
    }

    /// Appends the payload to `out`.
    ///
    /// # Panics
    /// When a PAINT has no pixel, or more than [`MAX_PAINT_PIXELS`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Self::Paint { seq, pixels } = self;
        assert!((1..=MAX_PAINT_PIXELS).contains(&pixels.len()), "a PAINT of {} pixels", pixels.len());
        out.extend([datagram::PAINT, 0]);
        out.extend(seq.to_le_bytes());
        out.extend(pixels.as_bytes());
    }
}

/// A datagram from a server, or the payload of a DATAGRAM frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerDatagram<'a> {
    /// Changes of tiles.
    Diff {
        /// Number of the tick that made them.
        tick: u32,
        /// The records in order.
        records: Records<'a>,
    },
    /// Versions of tiles that became quiet.
    Versions {
        /// Number of the tick that they hold at.
        tick: u32,
        /// The tiles and their versions.
        tiles: TileVersions<'a>,
    },
}

impl<'a> ServerDatagram<'a> {
    /// The datagram that a server sent, checked from end to end.
    ///
    /// # Errors
    /// When the payload is not one that a server may send.
    pub fn decode(payload: &'a [u8]) -> Result<Self, DatagramError> {
        let mut fields = Fields(payload);
        let kind = fields.u8().ok_or(DatagramError::Empty)?;
        if !matches!(kind, datagram::DIFF | datagram::VERSIONS) {
            return Err(DatagramError::UnknownType(kind));
        }
        let _flags = fields.u8().ok_or(DatagramError::CutShort)?;
        let tick = fields.u32().ok_or(DatagramError::CutShort)?;
        if kind == datagram::VERSIONS {
            let tiles = TileVersions::from_bytes(fields.0).ok_or(DatagramError::PartEntry)?;
            return Ok(Self::Versions { tick, tiles });
        }
        let records = Records { rest: fields.0 };
        while !fields.0.is_empty() {
            Record::take(&mut fields)?.check()?;
        }
        Ok(Self::Diff { tick, records })
    }
}

/// The six bytes that open a DIFF; records follow up to the end of the payload.
pub const fn diff_header(tick: u32) -> [u8; SERVER_HEADER] {
    server_header(datagram::DIFF, tick)
}

/// The six bytes that open a VERSIONS; entries follow up to the end of the payload.
pub const fn versions_header(tick: u32) -> [u8; SERVER_HEADER] {
    server_header(datagram::VERSIONS, tick)
}

const fn server_header(kind: u8, tick: u32) -> [u8; SERVER_HEADER] {
    let [t0, t1, t2, t3] = tick.to_le_bytes();
    [kind, 0, t0, t1, t2, t3]
}

/// The changes that turned one version of a tile into the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Tile id, not checked against the canvas.
    pub tile: u32,
    /// The version that the changes lead to.
    pub version: u32,
    /// The changes.
    pub changes: Changes<'a>,
}

impl<'a> Record<'a> {
    /// Takes one record off the front; only its lengths and its encoding are checked.
    fn take(fields: &mut Fields<'a>) -> Result<Self, DatagramError> {
        Self::take_header(fields).ok_or(DatagramError::CutShort).and_then(
            |(tile, version, encoding, count)| {
                let count = usize::from(count);
                let changes = match encoding {
                    ENCODING_LIST => {
                        fields.slice(3 * count).map(|list| Changes::List(Entries::new(list.as_chunks().0)))
                    }
                    ENCODING_BITMAP => fields
                        .slice(BITMAP + count)
                        .and_then(<[u8]>::split_first_chunk)
                        .map(|(bits, colours)| Changes::Bitmap { bits, colours }),
                    unknown => return Err(DatagramError::UnknownEncoding(unknown)),
                };
                Ok(Self { tile, version, changes: changes.ok_or(DatagramError::CutShort)? })
            },
        )
    }

    fn take_header(fields: &mut Fields<'a>) -> Option<(u32, u32, u8, u16)> {
        Some((fields.u32()?, fields.u32()?, fields.u8()?, fields.u16()?))
    }

    /// Checks what [`Record::take`] did not: offsets in the tile, count equal to the bits set.
    fn check(&self) -> Result<(), DatagramError> {
        match self.changes {
            Changes::List(list) => match list.iter().find(|change| usize::from(change.offset) >= TILE_PIXELS)
            {
                Some(change) => Err(DatagramError::Offset(change.offset)),
                None => Ok(()),
            },
            Changes::Bitmap { bits, colours } => {
                let set = bits.iter().map(|byte| byte.count_ones()).sum::<u32>();
                // The colours are as many as the count said, which was a u16.
                let count = colours.len() as u16;
                if set == u32::from(count) { Ok(()) } else { Err(DatagramError::Count { count, bits: set }) }
            }
        }
    }
}

/// The records of a DIFF, checked, in wire form; an iterator over them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let mut fields = Fields(self.rest);
        // `ServerDatagram::decode` walked all of them: the only error left is that nothing is left.
        let record = Record::take(&mut fields).ok()?;
        self.rest = fields.0;
        Some(record)
    }
}

impl std::fmt::Debug for Records<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(*self).finish()
    }
}

/// The changed pixels of a record, in either encoding; bitmaps are in order of offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes<'a> {
    /// Encoding 0.
    List(Entries<'a, Change, 3>),
    /// Encoding 1.
    Bitmap {
        /// Bit `i % 8` of byte `i / 8` set: the pixel at offset `i` changed.
        bits: &'a [u8; BITMAP],
        /// The colours of the changed pixels, in order of offset.
        colours: &'a [u8],
    },
}

impl<'a> Changes<'a> {
    /// Changed pixels.
    pub const fn len(&self) -> usize {
        match self {
            Self::List(list) => list.len(),
            Self::Bitmap { colours, .. } => colours.len(),
        }
    }

    /// True when nothing changed.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The changes in the order of the wire.
    pub fn iter(&self) -> ChangesIter<'a> {
        match *self {
            Self::List(list) => ChangesIter::List(list.iter()),
            Self::Bitmap { bits, colours } => {
                ChangesIter::Bitmap { bits, byte: 0, pending: bits[0], colours }
            }
        }
    }
}

/// Iterator over [`Changes`].
#[derive(Clone)]
pub enum ChangesIter<'a> {
    /// Encoding 0.
    List(EntriesIter<'a, Change, 3>),
    /// Encoding 1.
    Bitmap {
        /// The whole bitmap.
        bits: &'a [u8; BITMAP],
        /// The byte of it that is being read.
        byte: usize,
        /// The bits of that byte that have not been handed out.
        pending: u8,
        /// The colours that have not been handed out.
        colours: &'a [u8],
    },
}

impl Iterator for ChangesIter<'_> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        match self {
            Self::List(list) => list.next(),
            Self::Bitmap { bits, byte, pending, colours } => {
                let (colour, rest) = colours.split_first()?;
                while *pending == 0 {
                    *byte += 1;
                    *pending = *bits.get(*byte)?;
                }
                let offset = (*byte * 8) as u16 + pending.trailing_zeros() as u16;
                *pending &= *pending - 1;
                *colours = rest;
                Some(Change { offset, colour: *colour })
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = match self {
            Self::List(list) => list.len(),
            Self::Bitmap { colours, .. } => colours.len(),
        };
        (left, Some(left))
    }
}

impl ExactSizeIterator for ChangesIter<'_> {}

/// Appends to `out` the record that leads `tile` to `version`, in the shorter of the two encodings, the list
/// on a tie.
///
/// `changes` must be in ascending order of offset, each offset once.
///
/// # Panics
/// When there are more than [`MAX_RECORD_CHANGES`], or an offset is beyond the tile.
pub fn encode_record(out: &mut Vec<u8>, tile: u32, version: u32, changes: &[Change]) {
    assert!(changes.len() <= MAX_RECORD_CHANGES, "a record of {} changes", changes.len());
    debug_assert!(changes.is_sorted_by(|a, b| a.offset < b.offset));
    let list = changes.len() * 3 <= BITMAP + changes.len();
    out.extend(TileVersion { tile, version }.to_wire());
    out.push(if list { ENCODING_LIST } else { ENCODING_BITMAP });
    out.extend((changes.len() as u16).to_le_bytes());
    if list {
        out.extend(changes.iter().flat_map(|change| change.to_wire()));
    } else {
        let mut bits = [0; BITMAP];
        for change in changes {
            bits[usize::from(change.offset / 8)] |= 1 << (change.offset % 8);
        }
        out.extend(bits);
        out.extend(changes.iter().map(|change| change.colour));
    }
}
