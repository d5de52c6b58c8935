//! One tick, encoded once: the records of what changed, and how to pack a view's part of them into datagrams.
//!
//! The master makes a [`Tick`] and shares it by reference; nothing in it changes afterwards. Every worker
//! packs it once for each different view of its clients. Packing is a function of the tick and the view
//! alone, so that clients with the same view get the same bytes, on whichever worker they are.

use crate::codec::datagram::{SERVER_HEADER, diff_header, versions_header};
use crate::codec::{Entry, TileVersion};
use crate::codes::MAX_DATAGRAM_PAYLOAD;
use crate::geometry::TileRect;
use std::ops::Range;

/// Where a record is in [`Tick`]'s buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordAt {
    pub(crate) tile: u32,
    /// First byte. 32 bits are enough until one tick paints a billion pixels.
    pub(crate) start: u32,
    /// Byte after the last.
    pub(crate) end: u32,
}

/// What one tick changed, in wire form.
#[derive(Debug)]
pub struct Tick {
    pub(crate) number: u32,
    pub(crate) commit: u64,
    pub(crate) pixels: usize,
    pub(crate) records: Vec<u8>,
    /// Ascending by tile; those of one tile ascending by version.
    pub(crate) index: Vec<RecordAt>,
    /// Ascending by tile.
    pub(crate) versions: Vec<TileVersion>,
}

impl Tick {
    /// The number that its datagrams carry. Wraps.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Position in the canvas's total order of the last paint that this tick and those before it contain.
    pub const fn commit(&self) -> u64 {
        self.commit
    }

    /// Changed pixels in its records.
    pub const fn pixels(&self) -> usize {
        self.pixels
    }

    /// True when nobody gets a datagram for this tick.
    pub const fn is_empty(&self) -> bool {
        self.index.is_empty() && self.versions.is_empty()
    }

    /// Calls `emit` with each DIFF payload, at most [`MAX_DATAGRAM_PAYLOAD`] bytes, that a client with this
    /// view gets; not at all when nothing in view changed. Records go in order of tile and version, as many
    /// into a payload as fit.
    pub fn pack_diffs(&self, view: &TileRect, mut emit: impl FnMut(&[u8])) {
        let mut payload = Payload::new(diff_header(self.number));
        view.visit(
            &self.index,
            |record| record.tile,
            |record| payload.put(&self.records[record.range()], &mut emit),
        );
        payload.finish(&mut emit);
    }

    /// What it announces, ascending by tile; in most ticks nothing.
    pub fn versions(&self) -> &[TileVersion] {
        &self.versions
    }

    /// Calls `emit` with each VERSIONS payload that a client with this view gets; in most ticks there is none. They
    /// follow the diffs.
    pub fn pack_versions(&self, view: &TileRect, emit: impl FnMut(&[u8])) {
        pack_versions(self.number, &self.versions, view, emit);
    }
}

/// Calls `emit` with VERSIONS payloads, at most [`MAX_DATAGRAM_PAYLOAD`] bytes each, of tick `number`, that name
/// those of `versions`, ascending by tile, that are in `view`; not at all when none is.
pub fn pack_versions(number: u32, versions: &[TileVersion], view: &TileRect, mut emit: impl FnMut(&[u8])) {
    let mut payload = Payload::new(versions_header(number));
    view.visit(versions, |entry| entry.tile, |entry| payload.put(&entry.to_wire(), &mut emit));
    payload.finish(&mut emit);
}

impl RecordAt {
    const fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A payload that is being filled. On the stack: it is copied once, into whatever buffer the caller sends
/// from.
struct Payload {
    bytes: [u8; MAX_DATAGRAM_PAYLOAD],
    length: usize,
}

impl Payload {
    fn new(header: [u8; SERVER_HEADER]) -> Self {
        let mut bytes = [0; MAX_DATAGRAM_PAYLOAD];
        bytes[..SERVER_HEADER].copy_from_slice(&header);
        Self { bytes, length: SERVER_HEADER }
    }

    /// Adds a part, after emitting what is there if it would not fit.
    fn put(&mut self, part: &[u8], emit: &mut impl FnMut(&[u8])) {
        if self.length + part.len() > MAX_DATAGRAM_PAYLOAD {
            self.finish(emit);
        }
        self.bytes[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len();
    }

    /// Emits what is there, if there is more than the header.
    fn finish(&mut self, emit: &mut impl FnMut(&[u8])) {
        if self.length > SERVER_HEADER {
            emit(&self.bytes[..self.length]);
            self.length = SERVER_HEADER;
        }
    }
}
