//! Tile images on their way to a client: snapshot, view and repair.
//!
//! Requests wait as the *names* of tiles; an image is read from the canvas, and compressed, only when QUIC
//! has room for it. So a slow client holds no images, and whatever it gets is the newest. One stream is open
//! at a time, and answers all requests of its kind that came in meanwhile. What is asked for is bounded:
//! [`Images::is_crowded`] tells the session to read no more requests for now.

use super::context::Context;
use crate::quic::config::Connection;
use canvas::codec::tiles::{TilesReason, stream_header};
use canvas::geometry::TileRect;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Instant;

/// Views that may wait for their images before the session stops reading requests. Somebody who drags a map
/// sends a few a second; each one waiting costs 40 bytes here and all its tiles on the wire.
const MAX_VIEWS: usize = 8;

/// Tiles named in REPAIR frames that may wait likewise: one frame names up to 8192.
const MAX_REPAIRS: usize = 16_384;

/// What the rest of a stream is made of.
enum Job {
    /// All tiles from this one on that were ever painted.
    Snapshot { next: u32 },
    /// The remaining tiles that came into view.
    View(Box<dyn Iterator<Item = u32>>),
    /// The tiles in [`Images::repairs`].
    Repair,
}

/// The stream being sent.
struct Stream {
    id: u64,
    job: Job,
    /// An encoded piece that QUIC took a part of, and how much.
    piece: Option<(Rc<[u8]>, usize)>,
}

/// What became of a call of [`Images::pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    /// Nothing is left to send.
    Done,
    /// QUIC has no room: more after the next acknowledgement.
    Blocked,
    /// The client's byte budget is used up: more when it has refilled.
    OverBudget,
}

/// See the [module](self).
#[derive(Default)]
pub struct Images {
    snapshot: bool,
    views: VecDeque<(TileRect, TileRect)>,
    repairs: BTreeSet<u32>,
    stream: Option<Box<Stream>>,
    /// Unidirectional streams opened so far; the server's ids are 3, 7, 11, ...
    opened: u64,
}

impl Images {
    /// Asks for the snapshot: every tile that was ever painted.
    pub fn want_snapshot(&mut self) {
        self.snapshot = true;
    }

    /// Asks for the tiles of `new` that are not in `old`.
    pub fn want_view(&mut self, new: TileRect, old: TileRect) {
        self.views.push_back((new, old));
    }

    /// Asks for one tile, which must be on the canvas.
    pub fn want_repair(&mut self, tile: u32) {
        self.repairs.insert(tile);
    }

    /// True if nothing is asked for or under way.
    pub fn is_idle(&self) -> bool {
        self.stream.is_none() && !self.snapshot && self.views.is_empty() && self.repairs.is_empty()
    }

    /// True if the client should get what it asked for before it asks for more.
    pub fn is_crowded(&self) -> bool {
        self.views.len() >= MAX_VIEWS || self.repairs.len() >= MAX_REPAIRS
    }

    /// Sends images until QUIC has no more room, the budget is used up, or none is left.
    ///
    /// # Errors
    /// quiche's, when the connection can go on no longer. A stream that the client refused is given up, not
    /// an error.
    pub fn pump(
        &mut self,
        quic: &mut Connection,
        ctx: &mut Context,
        budget: &mut super::Bucket,
        now: Instant,
    ) -> quiche::Result<Pumped> {
        loop {
            if self.stream.is_none() && !self.open(quic) {
                return Ok(if self.is_idle() { Pumped::Done } else { Pumped::Blocked });
            }
            let Some(stream) = self.stream.as_mut() else { return Ok(Pumped::Done) };
            if stream.piece.is_none() {
                if budget.level(now) <= 0 {
                    return Ok(Pumped::OverBudget);
                }
                stream.piece = next_image(&mut stream.job, &mut self.repairs, ctx).map(|image| {
                    budget.spend(image.len() as u64, now);
                    (image, 0)
                });
            }
            let (bytes, sent): (&[u8], usize) = match &stream.piece {
                Some((image, sent)) => (&image[*sent..], *sent),
                None => (&[], 0),
            };
            let last = stream.piece.is_none();
            match quic.stream_send(stream.id, bytes, last) {
                Ok(_) if last => self.stream = None,
                Ok(taken) if taken == bytes.len() => stream.piece = None,
                Ok(0) | Err(quiche::Error::Done) => return Ok(Pumped::Blocked),
                Ok(taken) => {
                    if let Some(piece) = stream.piece.as_mut() {
                        piece.1 = sent + taken;
                    }
                    return Ok(Pumped::Blocked);
                }
                Err(quiche::Error::StreamStopped(_)) => self.stream = None,
                Err(error) => return Err(error),
            }
        }
    }

    /// The next request to answer, if there is one: the snapshot, then views in their order, then repairs.
    fn next_job(&mut self) -> Option<(TilesReason, Job)> {
        if std::mem::take(&mut self.snapshot) {
            return Some((TilesReason::Snapshot, Job::Snapshot { next: 0 }));
        }
        while let Some((new, old)) = self.views.pop_front() {
            let mut tiles = new.iter().filter(move |tile| !old.contains(*tile)).peekable();
            // A view that brings nothing new is answered with nothing.
            if tiles.peek().is_some() {
                return Some((TilesReason::View, Job::View(Box::new(tiles))));
            }
        }
        (!self.repairs.is_empty()).then_some((TilesReason::Repair, Job::Repair))
    }

    /// Opens the stream for the next request. `false`: there is none, or the client allows no more streams
    /// yet.
    fn open(&mut self, quic: &mut Connection) -> bool {
        if quic.peer_streams_left_uni() == 0 {
            return false;
        }
        let Some((reason, job)) = self.next_job() else { return false };
        let id = self.opened * 4 + 3;
        self.opened += 1;
        let header: Rc<[u8]> = Rc::new(stream_header(reason));
        self.stream = Some(Box::new(Stream { id, job, piece: Some((header, 0)) }));
        true
    }
}

/// The next image of `job`; `None` if it has no more.
fn next_image(job: &mut Job, repairs: &mut BTreeSet<u32>, ctx: &mut Context) -> Option<Rc<[u8]>> {
    let tile = match job {
        Job::Snapshot { next } => {
            let tile = (*next..ctx.geometry.tile_count()).find(|tile| !ctx.tiles.is_untouched(*tile))?;
            *next = tile + 1;
            tile
        }
        Job::View(tiles) => tiles.next()?,
        Job::Repair => repairs.pop_first()?,
    };
    ctx.stats.tiles_sent += 1;
    Some(ctx.images.get(tile, &ctx.tiles))
}
