//! Tile images on unidirectional streams (section 4): `u8 kind | u8 reason`, then images up to the end.
//!
//! The encoder belongs to whoever sends (a worker has one, and its buffers); the decoder belongs to one
//! stream. A decoder holds at most one image's header and body, whatever the sender announces.

use crate::codes::stream;
use crate::geometry::TILE_PIXELS;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use thiserror::Error;

/// Bytes that open a stream: kind and reason.
pub const STREAM_HEADER: usize = 2;

/// Bytes ahead of the body of an image: tile, version, encoding, length.
pub const IMAGE_HEADER: usize = 13;

/// Bytes: the longest DEFLATE body that a decoder accepts. Sensible senders stay below 4096, where raw is
/// shorter; fixed Huffman codes of 9 bits, the longest for a literal, make 4608 of a tile, and the rest is
/// room for stored blocks. More lets a sender take more memory; less refuses lawful bodies of simple
/// encoders.
pub const MAX_DEFLATE: u32 = 5120;

/// Bytes: the most that [`ImageEncoder::encode`] appends for an image.
pub const MAX_IMAGE: usize = IMAGE_HEADER + TILE_PIXELS;

const ENCODING_RAW: u8 = 0;
const ENCODING_UNIFORM: u8 = 1;
const ENCODING_DEFLATE: u8 = 2;

/// Window of DEFLATE, in bits: 4096 bytes, the length of a tile, so that no match reaches further back. A
/// larger one only costs memory, 28 KB more for each decoder; a smaller one misses repetitions, and refuses
/// those of others.
const WINDOW_BITS: u8 = 12;

/// What a stream of images answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TilesReason {
    /// The HELLO with the snapshot flag.
    Snapshot = 0,
    /// A VIEW.
    View = 1,
    /// A REPAIR.
    Repair = 2,
}

/// The bytes that open a stream of images.
pub const fn stream_header(reason: TilesReason) -> [u8; STREAM_HEADER] {
    [stream::TILES, reason as u8]
}

/// Why the bytes of a stream are not tile images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TilesError {
    /// The first byte names another kind of stream; not an error of the peer, but nothing to read here.
    #[error("unknown kind of stream 0x{0:02x}")]
    UnknownKind(u8),
    /// The second byte is no known reason.
    #[error("unknown reason {0} of a tile stream")]
    UnknownReason(u8),
    /// An image with an encoding that this protocol does not name.
    #[error("image of tile {tile} with unknown encoding {encoding}")]
    UnknownEncoding {
        /// Tile of the image.
        tile: u32,
        /// Its encoding field.
        encoding: u8,
    },
    /// An image whose length is not possible in its encoding.
    #[error("image of tile {tile} with encoding {encoding} and {length} bytes")]
    Length {
        /// Tile of the image.
        tile: u32,
        /// Its encoding field.
        encoding: u8,
        /// Its length field, in bytes.
        length: u32,
    },
    /// A body that does not decompress to exactly 4096 bytes.
    #[error("image of tile {tile} does not decompress to a tile")]
    Deflate {
        /// Tile of the image.
        tile: u32,
    },
    /// The stream ended in the middle of its header or of an image.
    #[error("tile stream cut short")]
    CutShort,
}

/// One tile at one version.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    /// Tile id, not checked against the canvas.
    pub tile: u32,
    /// The version that the pixels are of.
    pub version: u32,
    /// The pixels in order of offset.
    pub pixels: [u8; TILE_PIXELS],
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("tile", &self.tile)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Makes images, each in its shortest form: uniform, DEFLATE, or raw when that does not help.
pub struct ImageEncoder {
    deflate: Compress,
}

impl Default for ImageEncoder {
    fn default() -> Self {
        // Level 1: tiles of flat colours shrink nearly as well as at 9, in a fraction of the time.
        Self { deflate: Compress::new_with_window_bits(Compression::fast(), false, WINDOW_BITS) }
    }
}

impl ImageEncoder {
    /// Appends the image to `out`, at most [`MAX_IMAGE`] bytes.
    pub fn encode(&mut self, tile: u32, version: u32, pixels: &[u8; TILE_PIXELS], out: &mut Vec<u8>) {
        if pixels.iter().all(|pixel| *pixel == pixels[0]) {
            return put_image(out, tile, version, ENCODING_UNIFORM, &pixels[..1]);
        }
        self.deflate.reset();
        // One byte short of raw: what does not fit is no gain.
        let mut body = [0; TILE_PIXELS - 1];
        match self.deflate.compress(pixels, &mut body, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => {
                put_image(out, tile, version, ENCODING_DEFLATE, &body[..self.deflate.total_out() as usize]);
            }
            _ => put_image(out, tile, version, ENCODING_RAW, pixels),
        }
    }
}

fn put_image(out: &mut Vec<u8>, tile: u32, version: u32, encoding: u8, body: &[u8]) {
    out.extend(tile.to_le_bytes());
    out.extend(version.to_le_bytes());
    out.push(encoding);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(body);
}

/// Reads one stream of images, in pieces of any size.
pub struct TilesDecoder {
    reason: Option<TilesReason>,
    /// What came in and is not a whole header or image yet; never longer than the longest of those.
    partial: Vec<u8>,
    inflate: Decompress,
    failed: Option<TilesError>,
    image: Box<Image>,
}

impl Default for TilesDecoder {
    fn default() -> Self {
        Self {
            reason: None,
            partial: Vec::new(),
            inflate: Decompress::new_with_window_bits(false, WINDOW_BITS),
            failed: None,
            image: Box::new(Image { tile: 0, version: 0, pixels: [0; TILE_PIXELS] }),
        }
    }
}

impl TilesDecoder {
    /// Takes the next bytes of the stream and calls `on_image` for every image that they complete.
    ///
    /// # Errors
    /// When the bytes cannot be a stream of images. The decoder then stays at this error.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        mut on_image: impl FnMut(TilesReason, &Image),
    ) -> Result<(), TilesError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        while !bytes.is_empty() {
            let result = self.step(&mut bytes, &mut on_image);
            if let Err(error) = result {
                self.failed = Some(error);
                return result;
            }
        }
        Ok(())
    }

    /// What the stream answers, once its header has come.
    pub const fn reason(&self) -> Option<TilesReason> {
        self.reason
    }

    /// Takes note that the stream ended in good order (not by a reset), and tells what it answered.
    ///
    /// # Errors
    /// When it ended in the middle of something, or had an error before.
    pub fn finish(self) -> Result<TilesReason, TilesError> {
        match (self.failed, self.reason) {
            (Some(error), _) => Err(error),
            (None, Some(reason)) if self.partial.is_empty() => Ok(reason),
            (None, _) => Err(TilesError::CutShort),
        }
    }

    /// Moves from `bytes` to `partial` up to the next boundary, and acts when it is reached.
    fn step(
        &mut self,
        bytes: &mut &[u8],
        on_image: &mut impl FnMut(TilesReason, &Image),
    ) -> Result<(), TilesError> {
        let Some(reason) = self.reason else {
            if self.fill(bytes, STREAM_HEADER) {
                self.reason = Some(parse_stream_header(self.partial[0], self.partial[1])?);
                self.partial.clear();
            } else if self.partial[0] != stream::TILES {
                return Err(TilesError::UnknownKind(self.partial[0]));
            }
            return Ok(());
        };
        if !self.fill(bytes, IMAGE_HEADER) {
            return Ok(());
        }
        let mut fields = super::Fields(&self.partial);
        let header = (fields.u32(), fields.u32(), fields.u8(), fields.u32());
        let (Some(tile), Some(version), Some(encoding), Some(length)) = header else { return Ok(()) };
        let lawful = match encoding {
            ENCODING_RAW => length == TILE_PIXELS as u32,
            ENCODING_UNIFORM => length == 1,
            ENCODING_DEFLATE => (1..=MAX_DEFLATE).contains(&length),
            _ => return Err(TilesError::UnknownEncoding { tile, encoding }),
        };
        if !lawful {
            return Err(TilesError::Length { tile, encoding, length });
        }
        if !self.fill(bytes, IMAGE_HEADER + length as usize) {
            return Ok(());
        }
        let body = &self.partial[IMAGE_HEADER..];
        let image = &mut *self.image;
        (image.tile, image.version) = (tile, version);
        match encoding {
            ENCODING_RAW => image.pixels.copy_from_slice(body),
            ENCODING_UNIFORM => image.pixels.fill(body[0]),
            _ => inflate(&mut self.inflate, body, &mut image.pixels).ok_or(TilesError::Deflate { tile })?,
        }
        self.partial.clear();
        on_image(reason, image);
        Ok(())
    }

    /// Moves bytes over until `partial` has `length` of them; false when they ran out.
    fn fill(&mut self, bytes: &mut &[u8], length: usize) -> bool {
        let missing = length.saturating_sub(self.partial.len());
        let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
        self.partial.extend(taken);
        *bytes = rest;
        taken.len() == missing
    }
}

fn parse_stream_header(kind: u8, reason: u8) -> Result<TilesReason, TilesError> {
    match (kind, reason) {
        (stream::TILES, 0) => Ok(TilesReason::Snapshot),
        (stream::TILES, 1) => Ok(TilesReason::View),
        (stream::TILES, 2) => Ok(TilesReason::Repair),
        (stream::TILES, unknown) => Err(TilesError::UnknownReason(unknown)),
        (unknown, _) => Err(TilesError::UnknownKind(unknown)),
    }
}

/// Decompresses all of `body` to exactly `pixels`; `None` when it is more, less, or not DEFLATE.
fn inflate(inflate: &mut Decompress, body: &[u8], pixels: &mut [u8; TILE_PIXELS]) -> Option<()> {
    inflate.reset(false);
    let status = inflate.decompress(body, pixels, FlushDecompress::Finish).ok()?;
    let whole = status == Status::StreamEnd
        && inflate.total_in() == body.len() as u64
        && inflate.total_out() == TILE_PIXELS as u64;
    whole.then_some(())
}
