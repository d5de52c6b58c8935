//! What was announced lately, and who was out of reach meanwhile.
//!
//! VERSIONS name a tile three times after its last change. A client that hears nothing for longer (its NAT gave it
//! another address and it is silent, its Wi-Fi is gone for some seconds) misses all three, and with the last diff
//! would show an old tile for ever. So workers remember what they announced for as long as a client may be silent,
//! and tell it when it speaks again.

use canvas::codec::TileVersion;
use canvas::geometry::TileRect;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often a client is told what it missed, at least [`AGAIN`] apart: as often as what is announced to all.
pub const TIMES: u8 = 3;

/// Different answers that are kept for others who ask the same until the next announcement.
const TOLD: usize = 64;

/// Least time between two repetitions: that between two VERSIONS.
const AGAIN: Duration = Duration::from_secs(1);

/// The newest announcement of every tile that was announced lately.
pub struct Announced {
    /// By tile: the version, and the tick in which it was announced.
    tiles: BTreeMap<u32, (u32, u32)>,
    /// Ticks for which an announcement is kept.
    keep: u32,
    /// The tick of the newest announcement.
    newest: u32,
    /// What [`since`](Self::since) returned: those whom one fault of the network cut off ask for the same.
    told: HashMap<(u32, TileRect), Payloads>,
}

/// Payloads, shared by all who are sent them.
type Payloads = Rc<[Rc<[u8]>]>;

impl Announced {
    /// Keeps what is announced for `keep` ticks. Each tile takes some 20 bytes.
    pub fn new(keep: u32) -> Self {
        Self { tiles: BTreeMap::new(), keep, newest: 0, told: HashMap::new() }
    }

    /// Notes what is announced in `tick`.
    pub fn note(&mut self, tick: u32, versions: &[TileVersion]) {
        if versions.is_empty() {
            return;
        }
        self.newest = tick;
        self.told.clear();
        self.tiles.retain(|_, (_, at)| tick.wrapping_sub(*at) <= self.keep);
        self.tiles.extend(versions.iter().map(|entry| (entry.tile, (entry.version, tick))));
    }

    /// VERSIONS payloads with all that was announced to `view` in tick `since` and later.
    pub fn since(&mut self, since: u32, view: TileRect) -> Payloads {
        let Self { tiles, newest, told, .. } = self;
        if told.len() >= TOLD {
            told.clear();
        }
        let tell = || {
            // Tick numbers wrap.
            let later = tiles.iter().filter(|(_, (_, at))| at.wrapping_sub(since).cast_signed() >= 0);
            let entries: Vec<_> =
                later.map(|(tile, (version, _))| TileVersion { tile: *tile, version: *version }).collect();
            let mut payloads = Vec::new();
            canvas::tick::pack_versions(*newest, &entries, &view, |payload| payloads.push(payload.into()));
            payloads.into()
        };
        told.entry((since, view)).or_insert_with(tell).clone()
    }
}

/// Whether one subscriber hears what is announced. Whoever is there acknowledges a datagram long before the next
/// announcement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hearing {
    /// The first announcement since the client was last heard of, by its tick.
    unheard: Option<u32>,
    /// The first announcement that it may have missed.
    missed: Option<u32>,
    /// How often it was told of what it missed.
    told: u8,
    /// When it is to be told again.
    next: Option<Instant>,
}

impl Hearing {
    /// Something in the client's view is announced in `tick`, whether it can be sent to the client or not.
    pub fn announce(&mut self, tick: u32) {
        if let Some(first) = self.unheard {
            if self.told > 0 {
                self.missed = None; // it has been told of what was before
            }
            self.missed.get_or_insert(first);
            (self.told, self.next) = (0, None);
        }
        self.unheard.get_or_insert(tick);
    }

    /// True if it matters that the client is heard of.
    pub fn is_waiting(&self) -> bool {
        self.unheard.is_some() || self.missed.is_some()
    }

    /// The client was heard of, where it can be reached. Returns the tick since which it is to be told what was
    /// announced, if it is, and how often it was told before: 0 to [`TIMES`] - 1.
    pub fn heard(&mut self, now: Instant) -> Option<(u32, u8)> {
        self.unheard = None;
        let missed = self.missed?;
        if self.next.is_some_and(|next| now < next) {
            return None;
        }
        let before = self.told;
        self.told += 1;
        self.next = Some(now + AGAIN);
        if self.told == TIMES {
            *self = Self::default();
        }
        Some((missed, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use canvas::Geometry;
    use canvas::codec::datagram::ServerDatagram;

    /// Tile and version of each entry.
    fn entries(payloads: &[Rc<[u8]>]) -> Vec<(u32, u32)> {
        let tiles = |payload: &Rc<[u8]>| match ServerDatagram::decode(payload).unwrap() {
            ServerDatagram::Versions { tiles, .. } => {
                tiles.into_iter().map(|entry| (entry.tile, entry.version)).collect::<Vec<_>>()
            }
            ServerDatagram::Diff { .. } => panic!("a DIFF"),
        };
        payloads.iter().flat_map(tiles).collect()
    }

    #[test]
    fn what_was_announced_since_is_told_with_its_newest_version_for_as_long_as_it_is_kept() {
        let geometry = Geometry::new(64 * 20, 64 * 20).unwrap();
        let (all, corner) = (geometry.all_tiles(), geometry.tile_rect(0, 0, 64, 64));
        let mut announced = Announced::new(50);
        let first = u32::MAX - 10; // ticks wrap
        let entry = |tile, version| TileVersion { tile, version };
        announced.note(first, &[entry(0, 3), entry(7, 1)]);
        announced.note(first.wrapping_add(20), &[entry(0, 4), entry(399, 9)]);
        assert_eq!(entries(&announced.since(first, all)), [(0, 4), (7, 1), (399, 9)]);
        assert_eq!(entries(&announced.since(first, corner)), [(0, 4)]);
        assert_eq!(entries(&announced.since(first.wrapping_add(1), all)), [(0, 4), (399, 9)]);
        assert!(announced.since(first.wrapping_add(21), all).is_empty());
        announced.note(first.wrapping_add(60), &[entry(8, 1)]);
        assert_eq!(entries(&announced.since(first, all)), [(0, 4), (8, 1), (399, 9)], "7 is forgotten");
        let many: Vec<_> = (0..400).map(|tile| entry(tile, 5)).collect();
        announced.note(first.wrapping_add(70), &many);
        let payloads = announced.since(first, all);
        assert!(payloads.len() > 1 && payloads.iter().all(|payload| payload.len() <= 1100));
        assert_eq!(entries(&payloads), many.iter().map(|e| (e.tile, e.version)).collect::<Vec<_>>());
    }

    #[test]
    fn who_was_silent_between_two_announcements_is_told_three_times() {
        let now = Instant::now();
        let mut hearing = Hearing::default();
        hearing.announce(20);
        assert_eq!(hearing.heard(now), None, "it is there");
        assert!(!hearing.is_waiting());
        for tick in [40, 60, 80] {
            hearing.announce(tick);
        }
        assert_eq!(hearing.heard(now), Some((40, 0)));
        assert_eq!(hearing.heard(now + AGAIN / 2), None);
        assert_eq!(hearing.heard(now + AGAIN), Some((40, 1)));
        hearing.announce(100);
        hearing.announce(120);
        for n in 0..TIMES {
            assert_eq!(hearing.heard(now + AGAIN * (2 + u32::from(n))), Some((100, n)), "silent again");
        }
        assert!(!hearing.is_waiting());
        assert_eq!(hearing.heard(now + AGAIN * 9), None);
    }
}
