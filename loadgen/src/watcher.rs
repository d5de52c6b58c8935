//! What only watchers do: keep a mirror of the canvas, have it repaired, time their paints, answer rounds
//! of `--verify`.
//!
//! A watcher belongs to one client and is called from that client's loop only. The mirror decides what to
//! apply and what to ask for again; this module brings it what comes in, and sends what it asks for.

use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;
use std::time::Duration;

use canvas::Geometry;
use canvas::codec::control::ClientFrame;
use canvas::codec::tiles::TilesReason;
use canvas::codec::{Entry as _, Pixel, TileVersions};
use canvas::codes::{HELLO_DIFFS, HELLO_SNAPSHOT, datagram};
use canvas::mirror::{Mirror, MirrorCounters, MirrorOptions};
use quinn::{Connection, RecvStream};
use rand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::client::random_pixel;
use crate::loss::Loss;
use crate::session::{CanvasShape, Outbox, TileStreams};
use crate::shared::Shared;
use crate::stats::ThreadStats;
use crate::verify::{Round, Verdict};

/// How often a watcher looks for repairs that have become due and for expired paints. Longer delays repairs
/// that wait for their second to pass.
const HOUSEKEEPING: Duration = Duration::from_millis(200);
/// Time between two PINGs.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Age at which a paint that no diff brought back counts as unconfirmed. Two hundred ticks: what has not
/// come by then was lost or painted over. Longer costs memory, shorter calls the slow lost.
const EXPIRY: Duration = Duration::from_secs(10);
/// How often to draw again for a pixel that can be timed before taking any. On all but tiny canvases the
/// first will do.
const DRAWS: usize = 8;

/// What a watcher woke up for, beside what every client waits for.
pub enum Wake {
    /// The server opened a unidirectional stream.
    Stream(RecvStream),
    /// Images came and are in the mirror; a stream with this reason may have ended with them.
    Images(Option<TilesReason>),
    /// There is a round of `--verify`.
    Round,
    /// Some time has passed.
    Housekeeping,
}

/// A client's mirror, and all that goes with it.
pub struct Watcher {
    index: usize,
    mirror: Mirror,
    streams: TileStreams,
    round: watch::Receiver<Option<Arc<Round>>>,
    housekeeping: Interval,
    start: Instant,
    /// What of the mirror's counters is in the statistics already.
    counted: MirrorCounters,
    /// Paints to be confirmed: colour, and when each was due.
    unconfirmed: HashMap<(u16, u16), (u8, Instant)>,
    /// Number and time of the PING that is not answered yet.
    ping: Option<(u64, Instant)>,
    next_ping: u64,
    last_ping: Instant,
    settling: Settling,
}

/// Whether all frames from before painting stopped have come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settling {
    /// Painting has not stopped.
    No,
    /// Painting has stopped; a PING is to be sent as soon as the last one is answered.
    Wanted,
    /// The PING with this number was sent since.
    Asked(u64),
    /// It was answered.
    Done,
}

impl Watcher {
    /// What a watcher asks for in its HELLO.
    pub const HELLO_FLAGS: u16 = HELLO_SNAPSHOT | HELLO_DIFFS;

    /// The watcher of client `index`, whose HELLO asked for snapshot and diffs.
    pub fn new(
        index: usize,
        geometry: Geometry,
        now: Instant,
        round: watch::Receiver<Option<Arc<Round>>>,
    ) -> Self {
        let mut housekeeping = interval_at(now + HOUSEKEEPING, HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            index,
            mirror: Mirror::new(geometry, MirrorOptions::default()),
            streams: TileStreams::default(),
            round,
            housekeeping,
            start: now,
            counted: MirrorCounters::default(),
            unconfirmed: HashMap::new(),
            ping: None,
            next_ping: 0,
            last_ping: now,
            settling: Settling::No,
        }
    }

    /// Waits for something to do; cancel-safe. Images that come meanwhile go into the mirror.
    ///
    /// # Errors
    /// The connection was lost, or the server broke the protocol.
    pub async fn wait(&mut self, connection: &Connection) -> Result<Wake, Loss> {
        let Self { mirror, streams, round, housekeeping, .. } = self;
        let receiving = !streams.is_empty();
        let mut refused = Ok(());
        let wake = tokio::select! {
            stream = connection.accept_uni() => Wake::Stream(stream?),
            ended = streams.receive(|reason, image| {
                if refused.is_ok() {
                    refused = mirror.on_image(reason, image);
                }
            }), if receiving => Wake::Images(ended?),
            Ok(()) = round.changed() => Wake::Round,
            _ = housekeeping.tick() => Wake::Housekeeping,
        };
        refused.map_err(Loss::protocol)?;
        Ok(wake)
    }

    /// Does what [`Watcher::wait`] woke up for.
    pub fn handle(&mut self, wake: Wake, shared: &Shared, stats: &ThreadStats, outbox: &mut Outbox) {
        match wake {
            Wake::Stream(stream) => self.streams.add(stream),
            Wake::Images(ended) => {
                if ended == Some(TilesReason::Snapshot) {
                    self.mirror.on_snapshot_end();
                }
                self.after_change(stats, outbox);
            }
            Wake::Round => self.compare(shared),
            Wake::Housekeeping => {
                let now = Instant::now();
                let before = self.unconfirmed.len();
                self.unconfirmed.retain(|_, (_, due)| now.saturating_duration_since(*due) < EXPIRY);
                stats.count.unconfirmed.add((before - self.unconfirmed.len()) as u64);
                if now - self.last_ping >= PING_INTERVAL {
                    self.ping(outbox);
                }
                self.after_change(stats, outbox);
            }
        }
    }

    /// A datagram came, or the payload of one as a frame.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn datagram(&mut self, payload: &[u8], stats: &ThreadStats, outbox: &mut Outbox) -> Result<(), Loss> {
        if payload.first() == Some(&datagram::DIFF) {
            stats.count.diff_datagrams.add(1);
        }
        let now = Instant::now();
        let (geometry, unconfirmed) = (self.mirror.geometry(), &mut self.unconfirmed);
        let result = self.mirror.on_datagram(payload, |tile, change| {
            // The mirror has checked that the pixel is on the canvas.
            let Some(at) = geometry.pixel(tile, change.offset) else { return };
            if let Entry::Occupied(entry) = unconfirmed.entry(at)
                && entry.get().0 == change.colour
            {
                let (_, due) = entry.remove();
                stats.paint_confirmed(now.saturating_duration_since(due));
            }
        });
        self.after_change(stats, outbox);
        result.map_err(Loss::protocol)
    }

    /// Publishes what the mirror counted, and sends the repairs that are due.
    fn after_change(&mut self, stats: &ThreadStats, outbox: &mut Outbox) {
        let mut tiles = Vec::new();
        self.mirror.repairs_due(self.start.elapsed().as_millis() as u64, &mut tiles);
        if !tiles.is_empty() {
            let wire: Vec<_> = tiles.into_iter().map(|tile| tile.to_wire()).collect();
            outbox.queue(&ClientFrame::Repair { tiles: TileVersions::new(&wire) });
        }
        let now = *self.mirror.counters();
        let last = std::mem::replace(&mut self.counted, now);
        let count = &stats.count;
        for (counter, more) in [
            (&count.records_applied, now.records_new - last.records_new),
            (&count.images_applied, now.images_taken - last.images_taken),
            (&count.gaps, now.gaps - last.gaps + now.stale - last.stale),
            (&count.repairs, now.repairs - last.repairs),
        ] {
            if more > 0 {
                counter.add(more);
            }
        }
    }

    /// A pixel to paint: at random, but one whose diff cannot be mistaken for another's, if a few draws
    /// find one: not of its present colour, for which there may be no diff, and not one that waits for its
    /// diff already.
    pub fn choose(&self, shape: &CanvasShape, rng: &mut impl Rng) -> Pixel {
        let mut pixel = random_pixel(shape, rng);
        for _ in 1..DRAWS {
            let shown = self.mirror.pixel(pixel.x, pixel.y) == Some(pixel.colour);
            if !shown && !self.unconfirmed.contains_key(&(pixel.x, pixel.y)) {
                break;
            }
            pixel = random_pixel(shape, rng);
        }
        pixel
    }

    /// The client painted this pixel, which was due then. It is timed unless an earlier paint of the same
    /// pixel is.
    pub fn painted(&mut self, pixel: Pixel, due: Instant, stats: &ThreadStats) {
        if let Entry::Vacant(entry) = self.unconfirmed.entry((pixel.x, pixel.y)) {
            entry.insert((pixel.colour, due));
            stats.count.timed.add(1);
        }
    }

    /// The server rejected this paint: no diff will bring it back.
    pub fn rejected(&mut self, pixel: Pixel, stats: &ThreadStats) {
        let at = (pixel.x, pixel.y);
        if self.unconfirmed.get(&at).is_some_and(|(colour, _)| *colour == pixel.colour) {
            self.unconfirmed.remove(&at);
            stats.count.unconfirmed.add(1);
        }
    }

    /// Painting has stopped: finds out when all frames that the server sent until now have come.
    pub fn settle(&mut self, outbox: &mut Outbox) {
        self.settling = Settling::Wanted;
        self.ping(outbox);
    }

    /// Sends a PING, unless one is under way: then its PONG is waited for.
    fn ping(&mut self, outbox: &mut Outbox) {
        if self.ping.is_some() {
            return;
        }
        let now = Instant::now();
        outbox.queue(&ClientFrame::Ping(self.next_ping));
        if self.settling == Settling::Wanted {
            self.settling = Settling::Asked(self.next_ping);
        }
        self.ping = Some((self.next_ping, now));
        self.last_ping = now;
        self.next_ping += 1;
    }

    /// A PONG came.
    ///
    /// # Errors
    /// It is not the one that was waited for.
    pub fn pong(&mut self, number: u64, stats: &ThreadStats, outbox: &mut Outbox) -> Result<(), Loss> {
        let Some((_, sent)) = self.ping.take_if(|(asked, _)| *asked == number) else {
            return Err(Loss::protocol("PONG of no outstanding PING"));
        };
        stats.ping.record(sent.elapsed());
        match self.settling {
            Settling::Wanted => self.ping(outbox),
            Settling::Asked(asked) if asked == number => {
                self.settling = Settling::Done;
                stats.count.watchers_settled.add(1);
            }
            _ => {}
        }
        Ok(())
    }

    /// Compares the mirror with the newest round's snapshot.
    fn compare(&mut self, shared: &Shared) {
        let Some(round) = self.round.borrow_and_update().clone() else { return };
        let difference = round.snapshot.difference(&self.mirror);
        // Nobody to hear it: the verification is over.
        let _ = shared.verdicts.send(Verdict { round: round.number, watcher: self.index, difference });
    }

    /// The client ends: paints that were not confirmed will not be any more.
    pub fn finish(&self, stats: &ThreadStats) {
        stats.count.unconfirmed.add(self.unconfirmed.len() as u64);
    }
}
