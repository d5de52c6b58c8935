//! Learning by experiment which memory some work on a connection touches.
//!
//! The experiment: throw one line out of the cache, let the work be done, see whether the line is back. It is
//! made for all lines of the connection, then for the surroundings of all pointers in those that were touched,
//! and so on. Chance has its say in each sample, by interrupts and by what lies beside a block; what several
//! samples agree on is followed and stays.

use super::Work;
use super::cache::{LINE, Probe, WORD, is_readable, read_words};
use super::sample::Sample;
use crate::quic::config::Connection;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// Connections that are looked at.
const SAMPLES: u16 = 4;

/// Connections that must agree that a line is touched.
const AGREE: usize = 3;

/// Times that an experiment is made; the majority counts, since an interrupt may spoil one.
const REPEAT: usize = 3;

/// Packets before the first experiment: lists grow, buffers get their size.
const WARM_UP: usize = 300;

/// Lines around the one that a pointer points to that may belong to what it points to. A hash table's entries
/// lie before it; quiche's largest block, a path, has 45.
const AROUND: Range<i32> = -4..64;

/// Lines that are tried with one connection; there are some 2,000 to try. If everything seems to be touched,
/// since the cache cannot be watched after all, this ends it.
const MOST_LINES: usize = 10_000;

/// Pointers in a row that are followed.
const DEPTH: usize = 4;

/// Offsets in bytes of the pointers on the way from the connection to a block.
pub type Way = Vec<usize>;

/// The cache lines that some [`Work`] touches.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Those of the connection itself, as offsets from its start in bytes.
    pub own: Vec<usize>,
    /// Those of the blocks that it points to, in lines from the one that the last pointer points to.
    pub blocks: BTreeMap<Way, Vec<i32>>,
}

/// Learns which memory `work` touches. `None` where that cannot be told: another processor than x86-64. Where
/// the kernel does not let a process read its own memory by address, only that of the connection itself.
pub fn learn(config: &mut quiche::Config, work: Work) -> Option<Touched> {
    let probe = Probe::new()?;
    let samples = Sample::several(config, SAMPLES)?;
    let heap = heap()?;
    let mut subjects: Vec<_> = samples
        .into_iter()
        .map(|sample| Subject { work, sample, probe: &probe, heap: &heap, known: HashMap::new() })
        .collect();
    for subject in &mut subjects {
        for _ in 0..WARM_UP {
            subject.experiment(|| {}, || {})?;
        }
    }
    let at = subjects.iter().map(|subject| Some(subject.sample.connection())).collect();
    let mut blocks = vec![Block { way: Way::new(), at }];
    let (mut agreed, mut seen) = (Agreed::default(), BTreeSet::new());
    for depth in 0..=DEPTH {
        let range = if depth == 0 { 0..size_of::<Connection>().div_ceil(LINE) as i32 } else { AROUND };
        let mut votes = Vec::new();
        for block in &blocks {
            for line in range.clone() {
                let ends = subjects.iter_mut().zip(&block.at);
                let places: Option<_> =
                    ends.map(|(subject, at)| subject.place(*at, line, depth == 0)).collect();
                votes.push(Vote { block, line, places: places? });
            }
        }
        votes.sort_by_key(|vote| distance(vote.line));
        let lines = agreed.add(&votes);
        if depth < DEPTH {
            blocks = pointed_to(&subjects, &lines, &mut seen);
        }
    }
    Some(agreed.touched)
}

/// A block of memory, by the way to it.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    way: Way,
    /// Where it is, in each sample that has it.
    at: Vec<Option<usize>>,
}

/// What the samples say of a line.
struct Vote<'a> {
    block: &'a Block,
    line: i32,
    /// Where it is, in each sample in which it is touched.
    places: Vec<Option<usize>>,
}

/// How far a line of a block is from where the pointer to it points to: the further, the likelier it is another
/// block's. What lies before a block is rarely its own.
fn distance(line: i32) -> u32 {
    if line < 0 { AROUND.end as u32 + line.unsigned_abs() } else { line.unsigned_abs() }
}

/// What pointers in `lines` point to, as far as the `subjects` agree that there are pointers, and that it is not
/// among what was `seen`, to which it is added.
fn pointed_to(subjects: &[Subject<'_>], lines: &[(&Block, i32)], seen: &mut BTreeSet<usize>) -> Vec<Block> {
    let mut found = Vec::new();
    for (block, line) in lines {
        // Blocks lie differently in their lines, and so do the words.
        let offsets = block.at.iter().flatten().flat_map(|at| {
            let start = line_at(*at, *line);
            (start..start + LINE).step_by(WORD).filter_map(|word| word.checked_sub(*at))
        });
        for offset in offsets.collect::<BTreeSet<_>>() {
            let ends = subjects.iter().zip(&block.at);
            let at: Vec<_> = ends.map(|(subject, at)| subject.pointer((*at)?.wrapping_add(offset))).collect();
            if at.iter().flatten().filter(|at| seen.insert(**at)).count() >= AGREE {
                found.push(Block { way: [&block.way[..], &[offset]].concat(), at });
            }
        }
    }
    found
}

/// What the samples agree on.
#[derive(Default)]
struct Agreed {
    touched: Touched,
    /// Addresses of the lines, in all samples.
    covered: BTreeSet<usize>,
}

impl Agreed {
    /// Adds the lines that they agree on, and returns them; best votes first. Lines that a better vote is for
    /// are left out, and those that connections share (the allocator's lists, for example), which are in cache
    /// anyway.
    fn add<'a>(&mut self, votes: &[Vote<'a>]) -> Vec<(&'a Block, i32)> {
        let mut added = Vec::new();
        for Vote { block, line, places } in votes {
            let places: Vec<usize> = places.iter().copied().flatten().collect();
            let is_shared = places.iter().collect::<BTreeSet<_>>().len() < places.len();
            let new = places.iter().filter(|place| !self.covered.contains(*place)).count();
            if is_shared || new < AGREE {
                continue;
            }
            self.covered.extend(places);
            if block.way.is_empty() {
                self.touched.own.push(*line as usize * LINE);
            } else {
                self.touched.blocks.entry(block.way.clone()).or_default().push(*line);
            }
            added.push((*block, *line));
        }
        added
    }
}

/// A sample, and what is known of it.
struct Subject<'a> {
    work: Work,
    sample: Sample,
    probe: &'a Probe,
    heap: &'a [Range<usize>],
    known: HashMap<usize, bool>,
}

impl Subject<'_> {
    /// The pointer at `address`; `None` if there is none, into the heap.
    fn pointer(&self, address: usize) -> Option<usize> {
        let mut words = Vec::new();
        read_words(&[address], &mut words)?;
        Some(words[0]).filter(|word| self.is_heap(*word) && word.is_multiple_of(WORD))
    }

    /// Where the line `line` of the block at `block` is. `Some(None)` if it is nowhere, not touched, or not in
    /// the connection where it should be (`own`), or the other way round; `None` if quiche refuses the work.
    fn place(&mut self, block: Option<usize>, line: i32, own: bool) -> Option<Option<usize>> {
        let Some(address) = block.map(|block| line_at(block, line)) else { return Some(None) };
        if self.is_own(address) != own {
            return Some(None);
        }
        Some(self.is_touched(address)?.then_some(address))
    }

    /// Whether `address` is in the connection itself.
    fn is_own(&self, address: usize) -> bool {
        let connection = self.sample.connection();
        (connection..connection + size_of::<Connection>()).contains(&address)
    }

    /// Whether the work touches the line at `address`. `None` if quiche refuses to do it.
    fn is_touched(&mut self, address: usize) -> Option<bool> {
        if let Some(known) = self.known.get(&address) {
            return Some(*known);
        }
        let probe = self.probe;
        // What the list of memory says may be over: the kernel knows.
        let there = self.is_own(address) || self.is_heap(address) && is_readable(address);
        if !there {
            return Some(false);
        }
        if self.known.len() >= MOST_LINES {
            return None;
        }
        let mut times = 0;
        for _ in 0..REPEAT {
            // SAFETY: the line is the connection's, or could be read just now. Nobody takes memory away
            // meanwhile: plans are learned before the program's other threads start, and its allocator keeps
            // what it got.
            let before = || unsafe { probe.evict(address) };
            // SAFETY: as above. (To ask the kernel again would bring the line back.)
            let after = || unsafe { probe.is_cached(address) };
            times += usize::from(self.experiment(before, after)?);
        }
        let touched = 2 * times > REPEAT;
        self.known.insert(address, touched);
        Some(touched)
    }

    /// Lets the work be done once; returns what `after` found at once.
    fn experiment<T>(&mut self, before: impl FnOnce(), after: impl FnOnce() -> T) -> Option<T> {
        let Self { work, sample, .. } = self;
        sample.prepare(*work)?;
        before();
        sample.work(*work)?;
        let found = after();
        sample.settle(*work)?;
        Some(found)
    }

    fn is_heap(&self, address: usize) -> bool {
        self.heap.iter().any(|range| range.contains(&address))
    }
}

/// The line that is `line` lines after that of `address`.
fn line_at(address: usize, line: i32) -> usize {
    (address & !(LINE - 1)).wrapping_add_signed(line as isize * LINE as isize)
}

/// Where this process's heap is: anonymous private memory that can be written. Stacks of threads are among it.
fn heap() -> Option<Vec<Range<usize>>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let range = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions) = (fields.next()?, fields.next()?);
        // Offset, device, inode, and the name, which anonymous memory has none of.
        let name = fields.nth(3).unwrap_or("[heap]");
        if permissions != "rw-p" || !(name == "[heap]" || name.starts_with("[anon")) {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    Some(maps.lines().filter_map(range).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(way: &[usize]) -> Block {
        Block { way: way.to_vec(), at: Vec::new() }
    }

    #[test]
    fn near_lines_come_first() {
        assert!([0, 1, 5, 63, -1, -4].map(distance).is_sorted());
    }

    #[test]
    fn what_samples_agree_on_is_kept_once() {
        let (own, first, same, shared) = (block(&[]), block(&[8]), block(&[16]), block(&[24]));
        let vote = |block, line, places: [u32; 4]| {
            let place = |place: u32| (place > 0).then_some(place as usize);
            Vote { block, line, places: places.map(place).to_vec() }
        };
        let votes = [
            vote(&own, 2, [1, 11, 21, 31]),
            // Of one sample only.
            vote(&own, 3, [2, 0, 0, 0]),
            vote(&first, 0, [3, 0, 23, 33]),
            // The same lines by another way.
            vote(&same, 4, [3, 13, 23, 33]),
            // The same line in all samples.
            vote(&shared, 0, [4, 4, 4, 4]),
        ];
        let mut agreed = Agreed::default();
        assert_eq!(agreed.add(&votes), [(&own, 2), (&first, 0)]);
        assert_eq!(agreed.add(&votes), [], "they are covered");
        let expected = Touched { own: vec![2 * LINE], blocks: BTreeMap::from([(vec![8], vec![0])]) };
        assert_eq!(agreed.touched, expected);
    }

    #[test]
    fn receiving_touches_the_connection_and_what_it_points_to() {
        let identities = crate::bench::rig::Identities::new().unwrap();
        let mut worker = identities.quic.build().unwrap();
        if Probe::new().is_none() {
            return; // another processor, or one that is emulated
        }
        for work in Work::ALL {
            let touched =
                learn(&mut worker.config, work).unwrap_or_else(|| panic!("{work:?} can be learned"));
            let lines: usize = touched.blocks.values().map(Vec::len).sum();
            // Packet keys alone are ten lines.
            assert!((10..=100).contains(&touched.own.len()), "{work:?}: {touched:?}");
            assert!((10..=200).contains(&lines), "{work:?}: {touched:?}");
        }
    }
}
