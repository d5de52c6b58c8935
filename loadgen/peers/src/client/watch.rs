//! Many subscribers of the whole canvas, and what each of them gets in each tick.
//!
//! One more client paints at a steady rate, so that every tick has something to tell. Of each DIFF datagram
//! the tick's number and the time of arrival are noted, and of each record that its version follows the one
//! that the client holds: a hole is a gap. A tick is complete when every watcher got something of it; its
//! spread is the time from its first datagram to its last, over all watchers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use canvas::codec::datagram::ServerDatagram;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::cores::{Cores, Spent};
use super::fleet::{Event, Fleet, Role};
use super::paint::Brush;

/// Time in which the first broadcasts are not counted: images are still under way.
const WARM_UP: Duration = Duration::from_millis(500);

/// Time between two paints at the least. Fewer wake-ups, more pixels at once.
const PAINT_EVERY: Duration = Duration::from_millis(2);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Subscribers.
    pub watchers: usize,
    /// Pixels painted a second.
    pub pixels: f64,
    /// Time to count for.
    pub window: Duration,
    /// CPUs to look at in that time.
    pub cores: Cores,
}

/// What one tick brought.
#[derive(Clone, Copy)]
struct TickSeen {
    first: Instant,
    last: Instant,
    datagrams: u64,
    watchers: u64,
}

/// What was seen.
#[derive(Debug)]
pub struct Watched {
    /// Subscribers.
    pub watchers: usize,
    /// DIFF datagrams that came.
    pub datagrams: u64,
    /// Ticks with changes.
    pub ticks: usize,
    /// Of those: ticks of which every watcher got something.
    pub complete: usize,
    /// Records whose version does not follow the one before.
    pub gaps: u64,
    /// Microseconds from the first datagram of a tick to the last, one value a tick.
    pub spread: Histogram<u64>,
    /// Seconds counted.
    pub elapsed: f64,
    /// Pixels painted.
    pub painted: u64,
    /// How the cores spent the time.
    pub spent: Spent,
}

impl Watched {
    /// For machines.
    pub fn json(&self) -> Value {
        let ms = |quantile: f64| self.spread.value_at_quantile(quantile) as f64 / 1e3;
        let mut report = json!({
            "watchers": self.watchers,
            "diff_datagrams": self.datagrams,
            "diff_datagrams_per_s": (self.datagrams as f64 / self.elapsed).round(),
            "ticks": self.ticks,
            "ticks_complete": self.complete,
            "version_gaps": self.gaps,
            "spread_ms": { "p50": ms(0.5), "p99": ms(0.99), "max": ms(1.0) },
            "elapsed_s": self.elapsed,
            "pixels_painted": self.painted,
        });
        self.spent.add_to(&mut report);
        report
    }
}

/// What the watchers hold: per watcher and tile the version, as far as known.
struct Ledger {
    versions: Vec<Option<u32>>,
    tiles: usize,
    last_tick: Vec<Option<u32>>,
    ticks: BTreeMap<u32, TickSeen>,
    gaps: u64,
}

impl Ledger {
    fn new(watchers: usize, tiles: usize) -> Self {
        Self {
            versions: vec![None; watchers * tiles],
            tiles,
            last_tick: vec![None; watchers],
            ticks: BTreeMap::new(),
            gaps: 0,
        }
    }

    /// Notes a datagram; `counting`: it is not part of the warm-up.
    fn note(&mut self, watcher: usize, payload: &[u8], now: Instant, counting: bool) {
        let Ok(ServerDatagram::Diff { tick, records }) = ServerDatagram::decode(payload) else { return };
        for record in records {
            let held = self.versions.get_mut(watcher * self.tiles + record.tile as usize);
            let Some(held) = held else { continue };
            if held.is_some_and(|held| record.version != held.wrapping_add(1)) && counting {
                self.gaps += 1;
            }
            *held = Some(record.version);
        }
        if !counting {
            return;
        }
        let seen =
            self.ticks.entry(tick).or_insert(TickSeen { first: now, last: now, datagrams: 0, watchers: 0 });
        seen.last = now;
        seen.datagrams += 1;
        if self.last_tick[watcher] != Some(tick) {
            self.last_tick[watcher] = Some(tick);
            seen.watchers += 1;
        }
    }
}

/// Connects watchers and a painter, and counts. `progress` hears, once a second, how many datagrams came.
///
/// # Errors
/// A connection was lost, or the run was interrupted.
pub fn watch(
    fleet: &mut Fleet,
    plan: Plan,
    connected: impl FnMut(usize),
    mut progress: impl FnMut(u64),
) -> Result<Watched> {
    let painter = plan.watchers;
    let role = |index| if index == painter { Role::Painter } else { Role::Watcher };
    fleet.connect(plan.watchers + 1, role, connected)?;
    let shape = fleet.shape.context("no WELCOME has come")?;
    let mut ledger = Ledger::new(plan.watchers, shape.0.tile_count() as usize);
    let mut brush = Brush::new(shape);
    let (start, mut painted) = (Instant::now(), 0u64);
    let (count_from, end) = (start + WARM_UP, start + WARM_UP + plan.window);
    let (mut next_paint, mut next_report) = (start, start + Duration::from_secs(1));
    let mut watch = None;
    loop {
        let now = Instant::now();
        if now >= end {
            break;
        }
        if watch.is_none() && now >= count_from {
            watch = Some(plan.cores.watch()?);
        }
        if now >= next_report {
            next_report += Duration::from_secs(1);
            progress(ledger.ticks.values().map(|tick| tick.datagrams).sum());
        }
        if now >= next_paint {
            next_paint = now + PAINT_EVERY;
            let due = (now.duration_since(start).as_secs_f64() * plan.pixels) as u64;
            while painted < due {
                painted += 1;
                // Without room it is a pixel less: the diffs are what is looked at.
                let _ = fleet.clients[painter].quic.dgram_send(brush.next_payload());
            }
            fleet.flush(painter);
        }
        fleet.pump(next_paint.min(end), |watcher, event| {
            if let Event::Datagram(payload) = event
                && watcher != painter
            {
                let now = Instant::now();
                ledger.note(watcher, payload, now, now >= count_from);
            }
        })?;
    }
    let spent = watch.map_or(Ok(Spent::default()), |watch| watch.until_now())?;
    let mut spread = Histogram::new(3)?;
    // The first and the last tick may have been seen in part.
    let whole = ledger.ticks.len().saturating_sub(2);
    let ticks: Vec<TickSeen> = ledger.ticks.values().skip(1).take(whole).copied().collect();
    for tick in &ticks {
        spread.record(tick.last.duration_since(tick.first).as_micros() as u64)?;
    }
    Ok(Watched {
        watchers: plan.watchers,
        datagrams: ledger.ticks.values().map(|tick| tick.datagrams).sum(),
        ticks: ticks.len(),
        complete: ticks.iter().filter(|tick| tick.watchers == plan.watchers as u64).count(),
        gaps: ledger.gaps,
        spread,
        elapsed: plan.window.as_secs_f64(),
        painted,
        spent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use canvas::Canvas;

    #[test]
    fn a_missing_record_is_a_gap_and_a_missing_watcher_is_seen() {
        let geometry = canvas::Geometry::new(64, 64).unwrap();
        let region = hugepages::Region::map(&hugepages::Request {
            what: "tiles",
            len: canvas::tiles::bytes_needed(geometry),
            pages: hugepages::Pages::Auto,
            numa_node: None,
            prefault: false,
        });
        let (writer, _) = canvas::tiles::create(geometry, region.unwrap()).unwrap();
        let mut canvas = Canvas::new(writer, canvas::Palette::default(), 50);
        let mut diffs = Vec::new();
        for _ in 0..4 {
            canvas.paint(1, 1, 1).unwrap();
            canvas.tick().pack_diffs(&geometry.all_tiles(), |payload| diffs.push(payload.to_vec()));
        }
        let mut ledger = Ledger::new(2, 1);
        let now = Instant::now();
        for diff in &diffs {
            ledger.note(0, diff, now, true);
        }
        assert_eq!(ledger.gaps, 0);
        for diff in [&diffs[0], &diffs[1], &diffs[3]] {
            ledger.note(1, diff, now + Duration::from_millis(3), true);
        }
        assert_eq!(ledger.gaps, 1);
        let ticks: Vec<_> = ledger.ticks.values().map(|tick| (tick.watchers, tick.datagrams)).collect();
        assert_eq!(ticks, [(2, 2), (2, 2), (1, 1), (2, 2)]);
        assert_eq!(ledger.ticks[&1].last - ledger.ticks[&1].first, Duration::from_millis(3));
    }
}
