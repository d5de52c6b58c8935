//! What a canvas is: geometry, palette, tiles, versions, diffs, the canvas/1 codec and the client's mirror.
//!
//! The crate is pure. It opens no socket, starts no thread and reads no clock: bytes, ticks and milliseconds
//! come from the caller, so that the same code runs in the server, in the load generator and in a simulation
//! with a seed. The wire contract is `PROTOCOL.md` beside this crate's `Cargo.toml`; section numbers in the
//! comments are that page's.
//!
//! | module | used by | what it holds |
//! |---|---|---|
//! | [`geometry`], [`palette`], [`version`], [`codes`] | both sides | the vocabulary |
//! | [`codec`] | both sides | bytes to values and back, in both directions |
//! | [`tiles`] | server | the published tiles: one writer, many readers, a sequence lock per tile |
//! | [`canvas`] | server's master | pending paints, the total order, the encoder of a tick |
//! | [`tick`] | server's workers | one encoded tick, and the packing of a view's part into datagrams |
//! | [`mirror`] | clients | a copy kept current from diffs, versions and images, with repair |

pub mod canvas;
pub mod codec;
pub mod codes;
pub mod geometry;
pub mod mirror;
pub mod palette;
mod schedule;
pub mod tick;
pub mod tiles;
pub mod version;

pub use canvas::Canvas;
pub use geometry::{Geometry, TILE_PIXELS, TILE_SIDE, TileRect};
pub use mirror::{Mirror, MirrorOptions};
pub use palette::Palette;
pub use tick::Tick;
