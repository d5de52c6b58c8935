//! What only watchers do: keep a mirror of the canvas, have it repaired, time their paints, answer rounds
//! of `--verify`. And viewers, which are watchers without a mirror: they receive all diffs and time their
//! paints, and cost no canvas's worth of memory each.
//!
//! A watcher belongs to one client and is called from that client's loop only. The mirror decides what to
//! apply and what to ask for again; this module brings it what comes in, and sends what it asks for.

use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;
use std::time::Duration;

use canvas::Geometry;
use canvas::codec::control::ClientFrame;
use canvas::codec::datagram::ServerDatagram;
use canvas::codec::tiles::TilesReason;
use canvas::codec::{Change, Entry as _, Pixel, TileVersions};
use canvas::codes::{HELLO_DIFFS, HELLO_SNAPSHOT, datagram};
use canvas::mirror::{Mirror, MirrorCounters, MirrorOptions};
use quinn::{Connection, RecvStream};
use rand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::client::random_pixel;
use crate::endpoint::Role;
use crate::loss::Loss;
use crate::session::{CanvasShape, Outbox, TileStreams};
use crate::shared::Shared;
use crate::stats::{Counter, Counters, Due, ThreadStats};
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
    geometry: Geometry,
    /// None: a viewer.
    mirror: Option<Box<Mirror>>,
    streams: TileStreams,
    round: watch::Receiver<Option<Arc<Round>>>,
    housekeeping: Interval,
    start: Instant,
    /// What of the mirror's counters is in the statistics already.
    counted: MirrorCounters,
    /// Paints to be confirmed: colour, and when each was due.
    unconfirmed: HashMap<(u16, u16), (u8, Due)>,
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
    /// What a client of this role asks for in its HELLO.
    pub fn hello_flags(role: Role) -> u16 {
        match role {
            Role::Painter => 0,
            Role::Viewer => HELLO_DIFFS,
            Role::Watcher => HELLO_SNAPSHOT | HELLO_DIFFS,
        }
    }

    /// The watcher or viewer of client `index`, whose HELLO asked for that.
    pub fn new(
        index: usize,
        role: Role,
        geometry: Geometry,
        now: Instant,
        round: watch::Receiver<Option<Arc<Round>>>,
    ) -> Self {
        let mut housekeeping = interval_at(now + HOUSEKEEPING, HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            index,
            geometry,
            mirror: (role == Role::Watcher)
                .then(|| Box::new(Mirror::new(geometry, MirrorOptions::default()))),
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
        let Self { mirror, streams, round, housekeeping, unconfirmed, .. } = self;
        let receiving = !streams.is_empty();
        let mirrors = mirror.is_some();
        // Thousands of viewers that wait for nothing must not wake up five times a second each.
        let keeping_house = mirrors || !unconfirmed.is_empty();
        let mut refused = Ok(());
        let wake = tokio::select! {
            stream = connection.accept_uni() => Wake::Stream(stream?),
            ended = streams.receive(|reason, image| {
                if refused.is_ok() {
                    refused = match mirror {
                        Some(mirror) => mirror.on_image(reason, image).map_err(Loss::protocol),
                        None => Err(Loss::protocol("tile images to a client that asked for none")),
                    };
                }
            }), if receiving => Wake::Images(ended?),
            Ok(()) = round.changed(), if mirrors => Wake::Round,
            _ = housekeeping.tick(), if keeping_house => Wake::Housekeeping,
        };
        refused?;
        Ok(wake)
    }

    /// Does what [`Watcher::wait`] woke up for.
    pub fn handle(&mut self, wake: Wake, shared: &Shared, stats: &ThreadStats, outbox: &mut Outbox) {
        match wake {
            Wake::Stream(stream) => self.streams.add(stream),
            Wake::Images(ended) => {
                if let (Some(TilesReason::Snapshot), Some(mirror)) = (ended, &mut self.mirror) {
                    mirror.on_snapshot_end();
                }
                self.after_change(Instant::now(), stats, outbox);
            }
            Wake::Round => self.compare(shared),
            Wake::Housekeeping => {
                let now = Instant::now();
                self.unconfirmed.retain(|_, (_, due)| {
                    let expired = now.saturating_duration_since(due.at) >= EXPIRY;
                    if expired {
                        stats.add(*due, |count| &count.unconfirmed, 1);
                    }
                    !expired
                });
                if self.mirror.is_some() && now - self.last_ping >= PING_INTERVAL {
                    self.ping(outbox);
                }
                self.after_change(now, stats, outbox);
            }
        }
    }

    /// A datagram came, or the payload of one as a frame.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn datagram(&mut self, payload: &[u8], stats: &ThreadStats, outbox: &mut Outbox) -> Result<(), Loss> {
        let now = Instant::now();
        if payload.first() == Some(&datagram::DIFF) {
            stats.add(stats.due(now), |count| &count.diff_datagrams, 1);
        }
        let (geometry, unconfirmed) = (self.geometry, &mut self.unconfirmed);
        let mut seen = |tile, change: Change| {
            let Some(at) = geometry.pixel(tile, change.offset) else { return };
            if let Entry::Occupied(entry) = unconfirmed.entry(at)
                && entry.get().0 == change.colour
            {
                let (_, due) = entry.remove();
                stats.paint_confirmed(due, now.saturating_duration_since(due.at));
            }
        };
        let Some(mirror) = &mut self.mirror else {
            let decoded = ServerDatagram::decode(payload).map_err(Loss::protocol)?;
            if let ServerDatagram::Diff { records, .. } = decoded {
                for record in records {
                    record.changes.iter().for_each(|change| seen(record.tile, change));
                }
            }
            return Ok(());
        };
        let result = mirror.on_datagram(payload, seen);
        self.after_change(now, stats, outbox);
        result.map_err(Loss::protocol)
    }

    /// Publishes what the mirror counted, and sends the repairs that are due.
    fn after_change(&mut self, now: Instant, stats: &ThreadStats, outbox: &mut Outbox) {
        let Some(mirror) = &mut self.mirror else { return };
        let mut tiles = Vec::new();
        mirror.repairs_due(self.start.elapsed().as_millis() as u64, &mut tiles);
        if !tiles.is_empty() {
            let wire: Vec<_> = tiles.into_iter().map(|tile| tile.to_wire()).collect();
            outbox.queue(&ClientFrame::Repair { tiles: TileVersions::new(&wire) });
        }
        let counters = *mirror.counters();
        let last = std::mem::replace(&mut self.counted, counters);
        let add = |which: fn(&Counters) -> &Counter, more: u64| {
            if more > 0 {
                stats.add(stats.due(now), which, more);
            }
        };
        add(|count| &count.records_applied, counters.records_new - last.records_new);
        add(|count| &count.images_applied, counters.images_taken - last.images_taken);
        add(|count| &count.gaps, counters.gaps - last.gaps + counters.stale - last.stale);
        add(|count| &count.repairs, counters.repairs - last.repairs);
    }

    /// A pixel to paint: at random, but one whose diff cannot be mistaken for another's, if a few draws
    /// find one: not of its present colour, for which there may be no diff, and not one that waits for its
    /// diff already.
    pub fn choose(&self, shape: &CanvasShape, rng: &mut impl Rng) -> Pixel {
        let mut pixel = random_pixel(shape, rng);
        for _ in 1..DRAWS {
            let shown = self.mirror.as_ref().and_then(|mirror| mirror.pixel(pixel.x, pixel.y));
            let shown = shown == Some(pixel.colour);
            if !shown && !self.unconfirmed.contains_key(&(pixel.x, pixel.y)) {
                break;
            }
            pixel = random_pixel(shape, rng);
        }
        pixel
    }

    /// The client painted this pixel, which was due then. It is timed unless an earlier paint of the same
    /// pixel is.
    pub fn painted(&mut self, pixel: Pixel, due: Due, stats: &ThreadStats) {
        if let Entry::Vacant(entry) = self.unconfirmed.entry((pixel.x, pixel.y)) {
            entry.insert((pixel.colour, due));
            stats.add(due, |count| &count.timed, 1);
        }
    }

    /// The server rejected this paint: no diff will bring it back.
    pub fn rejected(&mut self, pixel: Pixel, stats: &ThreadStats) {
        if let Entry::Occupied(entry) = self.unconfirmed.entry((pixel.x, pixel.y))
            && entry.get().0 == pixel.colour
        {
            let (_, due) = entry.remove();
            stats.add(due, |count| &count.unconfirmed, 1);
        }
    }

    /// Whether no paint waits for its diff.
    pub fn all_confirmed(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// Painting has stopped: finds out when all frames that the server sent until now have come. Of viewers
    /// nobody wants to know.
    pub fn settle(&mut self, outbox: &mut Outbox) {
        if self.mirror.is_none() {
            return;
        }
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
        stats.ponged(sent, sent.elapsed());
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
        let (Some(round), Some(mirror)) = (self.round.borrow_and_update().clone(), &self.mirror) else {
            return;
        };
        let difference = round.snapshot.difference(mirror);
        // Nobody to hear it: the verification is over.
        let _ = shared.verdicts.send(Verdict { round: round.number, watcher: self.index, difference });
    }

    /// The client ends: paints that were not confirmed will not be any more.
    pub fn finish(&self, stats: &ThreadStats) {
        for (_, due) in self.unconfirmed.values() {
            stats.add(*due, |count| &count.unconfirmed, 1);
        }
    }
}
