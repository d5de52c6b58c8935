//! Whatever gets lost, doubled or overtaken: once it is quiet, and VERSIONS came through, every mirror is the
//! server's canvas to the byte.
//!
//! A server with several clients in one thread, in steps of a tick. The control stream is reliable and in
//! order; datagrams are delayed each by itself, lost and doubled; tile streams are reliable, but each has its
//! own delay, and the server reads each tile at any later time that it likes. Everything follows from one
//! seed.

use super::*;
use crate::canvas::Canvas;
use crate::codec::tiles::{ImageEncoder, TilesDecoder, stream_header};
use crate::palette::Palette;
use crate::tick::Tick;
use crate::tiles::TileReader;
use crate::tiles::tests::tiles;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

/// Milliseconds of a tick; VERSIONS come every tenth.
const TICK_MS: u16 = 100;

/// SplitMix64: a seed in, numbers out.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How bad the network is.
#[derive(Clone, Copy, Debug)]
struct Weather {
    loss_percent: u64,
    double_percent: u64,
    /// Ticks that a datagram, a request or an image may take.
    delay: u64,
}

/// What a client asks for on its control stream.
enum Ask {
    Hello,
    View(TileRect),
    Repair(Vec<u32>),
}

/// A tile stream that the server is writing.
struct Stream {
    reason: TilesReason,
    /// Tiles left to send.
    tiles: VecDeque<u32>,
    decoder: Option<TilesDecoder>,
    /// Nothing of it is read from the canvas before this tick, nor delivered before it is read.
    resumes: u64,
}

struct Client {
    mirror: Mirror,
    snapshot: bool,
    /// Requests under way, with the tick at which they arrive; in order.
    asks: VecDeque<(u64, Ask)>,
    /// Datagrams under way, by the tick at which they arrive.
    datagrams: BTreeMap<u64, Vec<Vec<u8>>>,
    streams: Vec<Stream>,
    /// The server's state: `None` before the HELLO; the view, and the tiles of which images were owed.
    joined: Option<(TileRect, TileRect)>,
    viewed: bool,
    asked: BTreeMap<u32, u64>,
}

impl Client {
    fn new(geometry: Geometry, snapshot: bool, kept_bytes: usize) -> Self {
        Self {
            mirror: Mirror::new(geometry, MirrorOptions { snapshot, kept_bytes }),
            snapshot,
            asks: VecDeque::from([(0, Ask::Hello)]),
            datagrams: BTreeMap::new(),
            streams: Vec::new(),
            joined: None,
            viewed: false,
            asked: BTreeMap::new(),
        }
    }

    fn ask(&mut self, now: u64, delay: u64, ask: Ask) {
        let earliest = self.asks.back().map_or(0, |(at, _)| *at);
        self.asks.push_back((earliest.max(now + delay), ask));
    }

    /// The server takes the requests that have arrived.
    fn serve(&mut self, now: u64, geometry: Geometry) {
        while self.asks.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, ask)) = self.asks.pop_front() else { return };
            let (reason, tiles) = match ask {
                Ask::Hello => {
                    let (all, none) = (geometry.all_tiles(), geometry.no_tiles());
                    self.joined = Some((all, if self.snapshot { all } else { none }));
                    if !self.snapshot {
                        continue;
                    }
                    (TilesReason::Snapshot, all.iter().collect())
                }
                Ask::View(view) => {
                    let Some((_, imaged)) = self.joined.replace((view, view)) else {
                        panic!("VIEW before HELLO")
                    };
                    (TilesReason::View, view.iter().filter(|tile| !imaged.contains(*tile)).collect())
                }
                Ask::Repair(tiles) => (TilesReason::Repair, tiles.into()),
            };
            self.streams.push(Stream { reason, tiles, decoder: Some(TilesDecoder::default()), resumes: now });
        }
    }

    /// The server reads and sends some more of each stream, in any order; the client gets it in pieces.
    fn stream(
        &mut self,
        now: u64,
        dice: &mut Dice,
        weather: Weather,
        reader: &TileReader,
        encoder: &mut ImageEncoder,
    ) {
        if self.streams.len() > 1 && dice.chance(50) {
            self.streams.rotate_left(1);
        }
        for stream in self.streams.iter_mut().filter(|stream| stream.resumes <= now) {
            let Some(decoder) = &mut stream.decoder else { continue };
            let mut wire = Vec::new();
            if decoder.reason().is_none() {
                wire.extend(stream_header(stream.reason));
            }
            let batch = 1 + dice.below(4) as usize;
            for tile in stream.tiles.drain(..batch.min(stream.tiles.len())) {
                if stream.reason == TilesReason::Snapshot && reader.is_untouched(tile) {
                    continue;
                }
                let mut pixels = [0; TILE_PIXELS];
                let version = reader.read(tile, &mut pixels);
                encoder.encode(tile, version, &pixels, &mut wire);
            }
            let mirror = &mut self.mirror;
            for piece in wire.chunks(1 + dice.below(3000) as usize) {
                decoder.push(piece, |reason, image| mirror.on_image(reason, image).unwrap()).unwrap();
            }
            if stream.tiles.is_empty() {
                let reason = stream.decoder.take().unwrap().finish().unwrap();
                if reason == TilesReason::Snapshot {
                    mirror.on_snapshot_end();
                }
            }
            stream.resumes = now + dice.below(weather.delay + 1);
        }
        self.streams.retain(|stream| stream.decoder.is_some());
    }

    /// The server sends what the tick has for this client's view.
    fn fan_out(&mut self, now: u64, dice: &mut Dice, weather: Weather, tick: &Tick) {
        let Some((view, _)) = self.joined else { return };
        let mut send = |payload: &[u8]| {
            let copies = if dice.chance(weather.double_percent) { 2 } else { 1 };
            for _ in 0..copies {
                if !dice.chance(weather.loss_percent) {
                    let at = now + dice.below(weather.delay + 1);
                    self.datagrams.entry(at).or_default().push(payload.to_vec());
                }
            }
        };
        tick.pack_diffs(&view, &mut send);
        tick.pack_versions(&view, &mut send);
    }

    /// The client takes its datagrams and sends its repairs.
    fn turn(&mut self, now: u64, dice: &mut Dice, weather: Weather) {
        let later = self.datagrams.split_off(&(now + 1));
        for payload in std::mem::replace(&mut self.datagrams, later).into_values().flatten() {
            self.mirror.on_datagram(&payload, |_, _| ()).unwrap();
        }
        let mut due = Vec::new();
        self.mirror.repairs_due(now * u64::from(TICK_MS), &mut due);
        if !due.is_empty() {
            for entry in &due {
                if let Some(before) = self.asked.insert(entry.tile, now) {
                    assert!(
                        (now - before) * u64::from(TICK_MS) >= 1000,
                        "tile {} repaired too often",
                        entry.tile
                    );
                }
            }
            let delay = dice.below(weather.delay + 1);
            self.ask(now, delay, Ask::Repair(due.iter().map(|entry| entry.tile).collect()));
        }
    }
}

/// Runs a server and clients for `busy` ticks of paints, then until it has been quiet long enough; checks
/// that all are equal. Returns how many repairs there were.
fn run(
    seed: u64,
    (width, height): (u32, u32),
    start: u32,
    weather: Weather,
    busy: u64,
    kept_bytes: usize,
) -> u64 {
    let mut dice = Dice(seed);
    let (writer, reader) = tiles(width, height, start);
    let mut canvas = Canvas::new(writer, Palette::default(), TICK_MS);
    let geometry = canvas.geometry();
    let mut encoder = ImageEncoder::default();
    let mut clients = Vec::new();
    // Quiet: what is under way arrives; VERSIONS name what was lost, the repairs and what they miss in turn.
    let end = busy + 4 * weather.delay * geometry.tile_count() as u64 + 100;
    for now in 0..end {
        let is_busy = now < busy;
        let weather = if is_busy { weather } else { Weather { loss_percent: 0, ..weather } };
        if is_busy && (now == 0 || dice.chance(8)) && clients.len() < 5 {
            clients.push(Client::new(geometry, dice.chance(50), kept_bytes));
        }
        if is_busy && !dice.chance(20) {
            let paints = if dice.chance(5) { 3000 } else { dice.below(60) };
            let corner = dice.roll();
            for _ in 0..paints {
                let (x, y) = match paints {
                    // A burst on a few tiles, so that records are split.
                    3000 => (corner as u16 % 512 + dice.below(70) as u16, dice.below(70) as u16),
                    _ => (dice.roll() as u16, dice.roll() as u16),
                };
                canvas.paint(x % width as u16, y % height as u16, dice.below(32) as u8).unwrap();
            }
        }
        if now == busy - 1 {
            // A client that lost a record and all three VERSIONS after it never hears of it; so every tile
            // that was painted changes once more, and its VERSIONS fall into the calm.
            for tile in (0..geometry.tile_count()).filter(|tile| !reader.is_untouched(*tile)) {
                let (x, y) = geometry.pixel(tile, 0).unwrap();
                canvas.paint(x, y, dice.below(32) as u8).unwrap();
            }
        }
        let tick = canvas.tick();
        for client in &mut clients {
            // A worker may serve requests before or after it takes a tick.
            if dice.chance(50) {
                client.serve(now, geometry);
            }
            client.fan_out(now, &mut dice, weather, &tick);
            client.serve(now, geometry);
            if is_busy && dice.chance(4) {
                let [x0, y0, x1, y1] = [0; 4].map(|_: u16| dice.below(220) as u16);
                let view = match dice.below(4) {
                    0 => geometry.all_tiles(),
                    _ => geometry.tile_rect(x0.min(x1), y0.min(y1), x0.max(x1), y0.max(y1)),
                };
                client.mirror.set_view(view);
                client.viewed = true;
                let delay = dice.below(weather.delay + 1);
                client.ask(now, delay, Ask::View(view));
            }
            client.stream(now, &mut dice, weather, &reader, &mut encoder);
            client.turn(now, &mut dice, weather);
        }
    }
    let mut repairs = 0;
    for (number, client) in clients.iter().enumerate() {
        repairs += client.mirror.counters().repairs;
        if !client.snapshot && !client.viewed {
            continue; // It asked for no image: what came before its first records it never learns.
        }
        assert!(client.mirror.is_settled(), "client {number} is not settled: {:?}", client.mirror.counters());
        assert_eq!(client.mirror.room, kept_bytes, "client {number} keeps records for nothing");
        for tile in client.mirror.view().iter() {
            let mut pixels = [0; TILE_PIXELS];
            let version = reader.read(tile, &mut pixels);
            let (shown, held) = client.mirror.tile(tile);
            assert_eq!(held, Some(version), "client {number}, tile {tile}: {:?}", client.mirror.counters());
            assert!(*shown == pixels, "client {number}, tile {tile}: pixels differ at version {version}");
        }
    }
    repairs
}

#[test]
fn without_loss_and_delay_nothing_is_repaired() {
    let weather = Weather { loss_percent: 0, double_percent: 0, delay: 0 };
    for seed in 0..20 {
        assert_eq!(run(seed, (200, 200), 0, weather, 60, usize::MAX), 0);
    }
}

#[test]
fn with_loss_there_are_repairs() {
    let weather = Weather { loss_percent: 20, double_percent: 0, delay: 0 };
    assert!(run(1, (200, 200), 0, weather, 60, usize::MAX) > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn mirrors_converge(
        seed: u64,
        size in prop_oneof![
            Just((1, 1)),
            Just((65, 130)),
            Just((64, 64)),
            (1u32..220, 1u32..220),
            (1u32..600, 1u32..70),
        ],
        start in prop_oneof![
            3 => Just(0),
            1 => Just(u32::MAX - 3),
            1 => Just((1 << 31) - 4),
            1 => any::<u32>(),
        ],
        loss_percent in 0u64..60,
        double_percent in 0u64..30,
        delay in 0u64..25,
        busy in 1u64..120,
        kept_bytes in prop_oneof![Just(usize::MAX), Just(0), 0usize..5000],
    ) {
        run(seed, size, start, Weather { loss_percent, double_percent, delay }, busy, kept_bytes);
    }
}
