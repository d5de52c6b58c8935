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
    let (mut agreed, mut followed) = (Agreed::default(), BTreeSet::new());
    let mut ways = vec![Way::new()];
    for depth in 0..=DEPTH {
        let mut votes = Vec::new();
        for way in &ways {
            let range = if depth == 0 { 0..size_of::<Connection>().div_ceil(LINE) as i32 } else { AROUND };
            for line in range {
                let places: Option<Vec<_>> =
                    subjects.iter_mut().map(|subject| subject.place(way, line)).collect();
                votes.push((Candidate::new(way, line), places?));
            }
        }
        votes.sort_unstable();
        let lines = agreed.add(&votes);
        ways = follow(&subjects, &lines, &mut followed);
    }
    Some(agreed.touched)
}

/// Ways to what the pointers in `lines` point to, as far as the `subjects` agree that there are pointers and
/// there was no way yet; `followed` is where ways lead to.
fn follow(subjects: &[Subject<'_>], lines: &[Candidate], followed: &mut BTreeSet<usize>) -> Vec<Way> {
    let mut ways = BTreeSet::new();
    for Candidate { way, line, .. } in lines {
        for block in subjects.iter().filter_map(|subject| subject.follow(way)) {
            // Blocks lie differently in their lines, and so do the words.
            let line = line_at(block, *line);
            let words = (line..line + LINE).step_by(WORD).filter(|word| *word >= block);
            ways.extend(words.map(|word| [&way[..], &[word - block]].concat()));
        }
    }
    let mut leads_on = |way: &Way| {
        let leads_to: Vec<_> = subjects.iter().filter_map(|subject| subject.follow(way)).collect();
        leads_to.into_iter().filter(|block| followed.insert(*block)).count() >= AGREE
    };
    ways.into_iter().filter(|way| leads_on(way)).collect()
}

/// A line by the way to it: pointers, and lines from where the last one points to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Near ones first: a line far from where a pointer points to is rather another block's.
    distance: u32,
    way: Way,
    line: i32,
}

impl Candidate {
    fn new(way: &Way, line: i32) -> Self {
        // What lies before a block is rarely its own.
        let distance = if line < 0 { AROUND.end as u32 + line.unsigned_abs() } else { line.unsigned_abs() };
        Self { distance, way: way.clone(), line }
    }
}

/// What the samples agree on.
#[derive(Default)]
struct Agreed {
    touched: Touched,
    /// Addresses of the lines, in all samples.
    covered: BTreeSet<usize>,
}

impl Agreed {
    /// Adds what they agree on of `votes` (candidates, best first, and where each is in each sample if it is
    /// touched there), and returns it. Lines that a better candidate leads to are left out, and those that
    /// connections share (the allocator's lists, for example), which are in cache anyway.
    fn add(&mut self, votes: &[(Candidate, Vec<Option<usize>>)]) -> Vec<Candidate> {
        let mut added = Vec::new();
        for (candidate, places) in votes {
            let places: Vec<usize> = places.iter().copied().flatten().collect();
            let is_shared = places.iter().collect::<BTreeSet<_>>().len() < places.len();
            let new = places.iter().filter(|line| !self.covered.contains(*line)).count();
            if is_shared || new < AGREE {
                continue;
            }
            self.covered.extend(places);
            if candidate.way.is_empty() {
                self.touched.own.push(candidate.line as usize * LINE);
            } else {
                self.touched.blocks.entry(candidate.way.clone()).or_default().push(candidate.line);
            }
            added.push(candidate.clone());
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
    /// The block that a way leads to in this sample; `None` if that is not in the heap.
    fn follow(&self, way: &Way) -> Option<usize> {
        let (mut block, mut words) = (self.sample.connection(), Vec::new());
        for offset in way {
            read_words(&[block.wrapping_add(*offset)], &mut words)?;
            block = words[0];
            if !self.is_heap(block) || !block.is_multiple_of(WORD) {
                return None;
            }
        }
        Some(block)
    }

    /// Where the line `line` of the block at the end of `way` is in this sample. `Some(None)` if it is nowhere,
    /// not touched, or another's; `None` if quiche refuses the work.
    fn place(&mut self, way: &Way, line: i32) -> Option<Option<usize>> {
        let Some(block) = self.follow(way) else { return Some(None) };
        let address = line_at(block, line);
        let connection = self.sample.connection();
        let own = (connection..connection + size_of::<Connection>()).contains(&address);
        if own != way.is_empty() {
            return Some(None);
        }
        Some(self.is_touched(address)?.then_some(address))
    }

    /// Whether the work touches the line at `address`. `None` if quiche refuses to do it.
    fn is_touched(&mut self, address: usize) -> Option<bool> {
        if let Some(known) = self.known.get(&address) {
            return Some(*known);
        }
        let (connection, probe) = (self.sample.connection(), self.probe);
        let own = (connection..connection + size_of::<Connection>()).contains(&address);
        // What the list of memory says may be over: the kernel knows.
        let there = own || self.is_heap(address) && is_readable(address);
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

    fn candidate(way: &[usize], line: i32) -> Candidate {
        Candidate::new(&way.to_vec(), line)
    }

    #[test]
    fn near_lines_come_first() {
        let sorted = [candidate(&[9], 0), candidate(&[], 1), candidate(&[8], 5), candidate(&[8], -1)];
        assert!(sorted.is_sorted());
    }

    #[test]
    fn what_samples_agree_on_is_kept_once() {
        let votes = vec![
            (candidate(&[], 2), vec![Some(1), Some(11), Some(21), Some(31)]),
            // Of one sample only.
            (candidate(&[], 3), vec![Some(2), None, None, None]),
            (candidate(&[8], 0), vec![Some(3), None, Some(23), Some(33)]),
            // The same lines by another way.
            (candidate(&[16], 4), vec![Some(3), Some(13), Some(23), Some(33)]),
            // The same line in all samples.
            (candidate(&[24], 0), vec![Some(4), Some(4), Some(4), Some(4)]),
        ];
        let mut agreed = Agreed::default();
        assert_eq!(agreed.add(&votes), [candidate(&[], 2), candidate(&[8], 0)]);
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
