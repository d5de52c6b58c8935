//! When a tile's version is announced in VERSIONS (section 4), so that a client learns that the last diff of
//! a tile was lost.
//!
//! Owned by the canvas, which tells it of every changed tile and asks it once a tick. Its cost is that of the
//! tiles that changed in the last seconds: the others are not on its list.

use crate::codec::TileVersion;

/// Milliseconds between two VERSIONS: the protocol's "about once a second". Shorter finds losses sooner and
/// costs every client more; longer lets a lost pixel stand.
const PERIOD_MS: u32 = 1000;

/// VERSIONS that name a tile after its last change: the protocol's least. A client misses all of them with
/// the cube of its loss rate; more would cost bytes for ever rarer cases.
const ANNOUNCEMENTS: u8 = 3;

/// Which tiles changed lately, and how often each is still to be announced.
pub(crate) struct Schedule {
    /// Ticks between two VERSIONS.
    period: u32,
    /// Ticks without a change after which a tile is quiet: half a period. Fewer would announce a version
    /// whose diff is still on its way, which looks like a loss to the client; more would only delay the
    /// finding of one.
    quiet: u32,
    /// Per tile: the tick of its last change.
    changed_at: Vec<u32>,
    /// Per tile: announcements to come; 0 when the tile is not on the list.
    left: Vec<u8>,
    /// The tiles with announcements to come, each once.
    list: Vec<u32>,
}

impl Schedule {
    /// Of `tiles` tiles, none changed, for ticks of `tick_ms` milliseconds.
    pub(crate) fn new(tiles: u32, tick_ms: u16) -> Self {
        let period = (PERIOD_MS / u32::from(tick_ms.max(1))).max(1);
        Self {
            period,
            quiet: period.div_ceil(2),
            changed_at: vec![0; tiles as usize],
            left: vec![0; tiles as usize],
            list: Vec::new(),
        }
    }

    /// Takes note that `tile` changed in tick `tick`.
    pub(crate) fn changed(&mut self, tile: u32, tick: u32) {
        let index = tile as usize;
        if self.left[index] == 0 {
            self.list.push(tile);
        }
        self.left[index] = ANNOUNCEMENTS;
        self.changed_at[index] = tick;
    }

    /// The tiles to announce in tick `tick`, ascending, with the version that `version` tells; most ticks
    /// none.
    pub(crate) fn due(&mut self, tick: u32, version: impl Fn(u32) -> u32) -> Vec<TileVersion> {
        if !tick.is_multiple_of(self.period) {
            return Vec::new();
        }
        let Self { quiet, changed_at, left, list, .. } = self;
        let mut due = Vec::with_capacity(list.len());
        list.retain(|tile| {
            let index = *tile as usize;
            if tick.wrapping_sub(changed_at[index]) < *quiet {
                return true;
            }
            due.push(TileVersion { tile: *tile, version: version(*tile) });
            left[index] -= 1;
            left[index] > 0
        });
        due.sort_unstable_by_key(|entry| entry.tile);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks in 1..=last with VERSIONS, and the tiles in them, when `changes` (tick, tile) happen.
    fn run(tick_ms: u16, last: u32, changes: &[(u32, u32)]) -> Vec<(u32, Vec<u32>)> {
        let mut schedule = Schedule::new(8, tick_ms);
        let mut rounds = Vec::new();
        for tick in 1..=last {
            for (_, tile) in changes.iter().filter(|(at, _)| *at == tick) {
                schedule.changed(*tile, tick);
            }
            let due = schedule.due(tick, |tile| tile + 100);
            assert!(due.iter().all(|entry| entry.version == entry.tile + 100));
            if !due.is_empty() {
                rounds.push((tick, due.iter().map(|entry| entry.tile).collect()));
            }
        }
        assert!(schedule.list.is_empty(), "every tile is dropped at last");
        assert!(schedule.left.iter().all(|left| *left == 0));
        rounds
    }

    #[test]
    fn each_quiet_tile_is_announced_three_times_a_second_apart() {
        let rounds = run(50, 200, &[(3, 5), (9, 2), (15, 7)]);
        // Tile 7 changed 5 ticks before the first round, less than half a second: it is not quiet yet.
        assert_eq!(rounds, [(20, vec![2, 5]), (40, vec![2, 5, 7]), (60, vec![2, 5, 7]), (80, vec![7])]);
    }

    #[test]
    fn a_change_starts_the_three_anew() {
        let rounds = run(100, 100, &[(1, 0), (12, 0), (28, 0)]);
        assert_eq!(rounds.iter().map(|(tick, _)| *tick).collect::<Vec<_>>(), [10, 20, 40, 50, 60]);
    }

    #[test]
    fn a_busy_tile_waits_until_it_is_quiet() {
        let busy: Vec<_> = (1..=59).map(|tick| (tick, 1)).collect();
        assert_eq!(run(50, 200, &busy), [(80, vec![1]), (100, vec![1]), (120, vec![1])]);
    }

    #[test]
    fn slow_and_odd_ticks_have_a_round_at_most_a_second_apart() {
        assert_eq!(run(2000, 10, &[(1, 0)]), [(2, vec![0]), (3, vec![0]), (4, vec![0])]);
        assert_eq!(run(300, 20, &[(1, 0)]), [(3, vec![0]), (6, vec![0]), (9, vec![0])]);
    }

    #[test]
    fn tick_numbers_may_wrap() {
        let mut schedule = Schedule::new(1, 50);
        schedule.changed(0, u32::MAX - 5);
        let mut seen = 0;
        let mut tick = u32::MAX - 5;
        for _ in 0..100 {
            seen += schedule.due(tick, |_| 0).len();
            tick = tick.wrapping_add(1);
        }
        assert_eq!(seen, 3);
    }
}
