//! One direction of the simulated network: a queue that loses, duplicates and reorders.

use std::collections::VecDeque;

use super::super::Path;
use super::{SimConfig, SimStats};

/// A packet under way.
pub(super) struct Packet {
    pub(super) path: Path,
    pub(super) payload: Vec<u8>,
}

/// A packet that is held back so that younger ones overtake it.
struct Held {
    packet: Packet,
    /// How many younger packets may still overtake it.
    remaining: usize,
}

/// The SplitMix64 generator (Steele, Lea and Flood, 2014): small, and the same on every machine and in every
/// release, which is what a seed in a bug report needs.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// True with this probability; never at 0 and always at 1.
    fn chance(&mut self, probability: f64) -> bool {
        // The upper 53 bits are as many as an f64 holds: a uniform number in [0, 1).
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        uniform < probability
    }

    /// From 1 to `most`, both included. The bias of the remainder is below 2^-50 for any distance of use.
    fn distance(&mut self, most: usize) -> usize {
        1 + (self.next() % most as u64) as usize
    }
}

/// See the [module](self). The packets that wait are those in `ready`, oldest first, and those held back.
#[derive(Default)]
pub(super) struct Direction {
    ready: VecDeque<Packet>,
    held: Vec<Held>,
}

impl Direction {
    /// Packets that have been sent and not taken.
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.held.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends a packet into this direction: it, its duplicate, or nothing will come out.
    pub(super) fn put(
        &mut self,
        packet: Packet,
        config: &SimConfig,
        random: &mut Random,
        stats: &mut SimStats,
    ) {
        stats.sent += 1;
        if random.chance(config.loss) {
            stats.lost += 1;
            return;
        }
        if random.chance(config.duplicate) {
            stats.duplicated += 1;
            let copy = Packet { path: packet.path, payload: packet.payload.clone() };
            self.pass(copy, config, random, stats);
        }
        self.pass(packet, config, random, stats);
    }

    fn pass(&mut self, packet: Packet, config: &SimConfig, random: &mut Random, stats: &mut SimStats) {
        let held = random.chance(config.reorder) && config.reorder_distance > 0;
        if held {
            stats.reordered += 1;
            let remaining = random.distance(config.reorder_distance);
            self.age();
            self.held.push(Held { packet, remaining });
        } else {
            self.ready.push_back(packet);
            self.age();
        }
    }

    /// Takes the next packet. Finding none ages those held back as a packet would, so that the last ones
    /// arrive too: `None` while [`is_empty`](Self::is_empty) is false means "come again".
    pub(super) fn take(&mut self) -> Option<Packet> {
        if self.ready.is_empty() {
            self.age();
        }
        self.ready.pop_front()
    }

    /// One more packet has gone past those held back; releases those that have waited long enough.
    fn age(&mut self) {
        for held in &mut self.held {
            held.remaining -= 1;
        }
        let ready = &mut self.ready;
        ready.extend(self.held.extract_if(.., |held| held.remaining == 0).map(|held| held.packet));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Link;

    const BYTES: usize = 4;

    fn packet(number: u32) -> Packet {
        let address = "192.0.2.1:1".parse().unwrap();
        let path = Path { local: address, peer: address, link: Link::Kernel };
        Packet { path, payload: number.to_be_bytes().to_vec() }
    }

    fn number(packet: &Packet) -> u32 {
        u32::from_be_bytes(packet.payload[..BYTES].try_into().unwrap())
    }

    /// Sends `count` numbered packets, takes everything, and returns the order in which they came.
    fn trace(seed: u64, config: &SimConfig, count: u32) -> (Vec<u32>, SimStats) {
        let (mut direction, mut random) = (Direction::default(), Random::new(seed));
        let mut stats = SimStats::default();
        for sent in 0..count {
            direction.put(packet(sent), config, &mut random, &mut stats);
        }
        let mut order = Vec::new();
        while !direction.is_empty() {
            order.extend(direction.take().as_ref().map(number));
        }
        (order, stats)
    }

    #[test]
    fn a_perfect_network_changes_nothing() {
        let (order, stats) = trace(1, &SimConfig::default(), 1_000);
        assert!(order.iter().copied().eq(0..1_000));
        assert_eq!(stats, SimStats { sent: 1_000, ..SimStats::default() });
    }

    #[test]
    fn the_seed_decides_everything() {
        let config = SimConfig { loss: 0.1, duplicate: 0.1, reorder: 0.3, ..SimConfig::default() };
        assert_eq!(trace(7, &config, 5_000), trace(7, &config, 5_000));
        assert_ne!(trace(7, &config, 5_000).0, trace(8, &config, 5_000).0);
    }

    #[test]
    fn rates_are_as_configured() {
        let config = SimConfig { loss: 0.05, duplicate: 0.02, reorder: 0.1, ..SimConfig::default() };
        let (order, stats) = trace(3, &config, 100_000);
        // Five standard deviations of a binomial distribution, and the seed is fixed: this cannot flake.
        let near = |count: u64, of: f64, rate: f64| {
            (count as f64 - of * rate).abs() < 5.0 * (of * rate * (1.0 - rate)).sqrt()
        };
        assert!(near(stats.lost, 100_000.0, 0.05), "{stats:?}");
        assert!(near(stats.duplicated, 95_000.0, 0.02), "{stats:?}");
        assert!(near(stats.reordered, 96_900.0, 0.1), "{stats:?}");
        assert_eq!(order.len() as u64, stats.sent - stats.lost + stats.duplicated);
    }

    #[test]
    fn nothing_is_invented_and_only_the_lost_is_missing() {
        let config = SimConfig { loss: 0.2, duplicate: 0.2, reorder: 0.5, ..SimConfig::default() };
        let (order, stats) = trace(11, &config, 20_000);
        let mut copies = vec![0_u64; 20_000];
        for number in order {
            copies[number as usize] += 1;
        }
        let with = |copy_count| copies.iter().filter(|&&copies| copies == copy_count).count() as u64;
        assert_eq!(with(0), stats.lost);
        assert_eq!(with(2), stats.duplicated);
        assert_eq!(with(1) + stats.lost + stats.duplicated, stats.sent);
    }

    #[test]
    fn reordering_stays_within_its_distance() {
        for distance in [1, 3, 16] {
            let config = SimConfig { reorder: 0.4, reorder_distance: distance, ..SimConfig::default() };
            let (order, stats) = trace(5, &config, 10_000);
            let mut furthest = 0;
            for (place, &number) in order.iter().enumerate() {
                let overtakers =
                    order[..place].iter().rev().take(200).filter(|&&other| other > number).count();
                furthest = furthest.max(overtakers);
            }
            assert!((1..=distance).contains(&furthest), "{furthest} of {distance}");
            assert!(stats.reordered > 0);
        }
    }

    #[test]
    fn what_is_held_back_arrives_without_further_packets() {
        let config = SimConfig { reorder: 1.0, reorder_distance: 8, ..SimConfig::default() };
        let (mut direction, mut stats) = (Direction::default(), SimStats::default());
        direction.put(packet(0), &config, &mut Random::new(9), &mut stats);
        let polls = (1..=8).find(|_| direction.take().is_some());
        assert!(polls.is_some() && direction.is_empty());
    }
}
