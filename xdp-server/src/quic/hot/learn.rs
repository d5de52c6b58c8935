//! Learning by experiment which memory some work on a connection touches.
//!
//! The experiment: throw one line out of the cache, let the work be done, see whether the line is back. It is
//! made for all lines of the connection, then for the surroundings of all pointers in those that were touched,
//! and so on. Chance has its say in each sample, by interrupts and by what lies beside a block; what several
//! samples agree on stays.

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

/// Lines that are tried with one connection; there are some 700 to try. If everything seems to be touched, since
/// the cache cannot be watched after all, this ends it.
const MOST_LINES: usize = 5000;

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

/// Learns which memory `work` touches, in about 50 ms. `None` where that cannot be told: another processor than
/// x86-64, a kernel that does not let a process read its own memory by address.
pub fn learn(config: &mut quiche::Config, work: Work) -> Option<Touched> {
    let probe = Probe::new()?;
    let samples = Sample::several(config, SAMPLES)?;
    let heap = heap()?;
    let mut subjects: Vec<_> = samples
        .into_iter()
        .map(|sample| Subject { work, sample, probe: &probe, heap: &heap, known: HashMap::new() })
        .collect();
    let mut candidates = BTreeSet::new();
    for subject in &mut subjects {
        for _ in 0..WARM_UP {
            subject.experiment(|| {}, || {})?;
        }
        candidates.extend(subject.explore()?);
    }
    let mut votes = Vec::new();
    for candidate in candidates {
        let places: Option<Vec<_>> = subjects.iter_mut().map(|subject| subject.place(&candidate)).collect();
        votes.push((candidate, places?));
    }
    Some(agree(votes))
}

/// A line by the way to it: pointers, and lines from where the last one points to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    depth: usize,
    /// Near ones first: a line far from where a pointer points to is rather another block's.
    distance: u32,
    way: Way,
    line: i32,
}

impl Candidate {
    fn new(way: Way, line: i32) -> Self {
        // What lies before a block is rarely its own.
        let distance = if line < 0 { AROUND.end as u32 + line.unsigned_abs() } else { line.unsigned_abs() };
        Self { depth: way.len(), distance, way, line }
    }
}

/// What the samples agree on: `votes` are candidates, best first, and where each is in each sample if it is
/// touched there. Lines that a better candidate leads to are left out, and those that connections share, which
/// are in cache anyway.
fn agree(votes: Vec<(Candidate, Vec<Option<usize>>)>) -> Touched {
    let mut touched = Touched::default();
    let mut covered = BTreeSet::new();
    for (candidate, places) in votes {
        let places: Vec<usize> = places.into_iter().flatten().collect();
        let is_shared = places.iter().collect::<BTreeSet<_>>().len() < places.len();
        let new = places.iter().filter(|line| !covered.contains(*line)).count();
        if is_shared || new < AGREE {
            continue;
        }
        covered.extend(places);
        if candidate.way.is_empty() {
            touched.own.push(candidate.line as usize * LINE);
        } else {
            touched.blocks.entry(candidate.way).or_default().push(candidate.line);
        }
    }
    touched
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
    /// All touched lines, by all ways to them.
    fn explore(&mut self) -> Option<Vec<Candidate>> {
        let connection = self.sample.connection();
        let size = size_of::<Connection>();
        let mut found = Vec::new();
        // Blocks whose touched lines may hold pointers to more: way, address, touched lines.
        let mut next = vec![(Way::new(), connection, 0..size.div_ceil(LINE) as i32)];
        let mut words = Vec::new();
        for depth in 0..=DEPTH {
            let mut pointers = Vec::new();
            for (way, block, range) in std::mem::take(&mut next) {
                for line in range {
                    let address = line_at(block, line);
                    let own = (connection..connection + size).contains(&address);
                    if own != way.is_empty() || !self.is_touched(address)? {
                        continue;
                    }
                    found.push(Candidate::new(way.clone(), line));
                    let places: Vec<_> =
                        (address..address + LINE).step_by(WORD).filter(|word| *word >= block).collect();
                    if read_words(&places, &mut words).is_none() {
                        continue; // the connection's own lines are something, too
                    }
                    for (place, word) in places.iter().zip(&words) {
                        if self.is_heap(*word) && word.is_multiple_of(WORD) {
                            pointers.push((way.clone(), place - block, *word));
                        }
                    }
                }
            }
            if depth < DEPTH {
                // One way to a block is enough, if it is by the same word in all samples: the first.
                let mut seen = BTreeSet::new();
                pointers.retain(|(_, _, to)| seen.insert(*to));
                next.extend(pointers.into_iter().map(|(mut way, offset, to)| {
                    way.push(offset);
                    (way, to, AROUND)
                }));
            }
        }
        Some(found)
    }

    /// Where the candidate is in this sample; `None` inside if it is nowhere, or not touched.
    fn place(&mut self, candidate: &Candidate) -> Option<Option<usize>> {
        let (mut block, mut words) = (self.sample.connection(), Vec::new());
        for offset in &candidate.way {
            let place = block.wrapping_add(*offset);
            if read_words(&[place], &mut words).is_none() {
                return Some(None);
            }
            block = words[0];
        }
        let line = line_at(block, candidate.line);
        Some(self.is_touched(line)?.then_some(line))
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
        Candidate::new(way.to_vec(), line)
    }

    #[test]
    fn near_lines_by_short_ways_come_first() {
        let sorted = [
            candidate(&[], 1),
            candidate(&[], 2),
            candidate(&[9], 0),
            candidate(&[8], 5),
            candidate(&[8], -1),
            candidate(&[8, 0], 0),
        ];
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
        let expected = Touched { own: vec![2 * LINE], blocks: BTreeMap::from([(vec![8], vec![0])]) };
        assert_eq!(agree(votes), expected);
    }

    #[test]
    fn receiving_touches_the_connection_and_what_it_points_to() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("cert.key"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let idle_timeout = std::time::Duration::from_secs(30);
        let settings = crate::quic::config::QuicSettings { cert, key, idle_timeout, ticket_key: [0; 48] };
        let mut worker = settings.build().unwrap();
        if Probe::new().is_none() {
            return; // another processor, or one that is emulated
        }
        for work in Work::ALL {
            let touched = learn(&mut worker.config, work).expect("it can be learned here");
            let lines: usize = touched.blocks.values().map(Vec::len).sum();
            // Packet keys alone are ten lines.
            assert!((10..=100).contains(&touched.own.len()), "{work:?}: {touched:?}");
            assert!((10..=200).contains(&lines), "{work:?}: {touched:?}");
        }
    }
}
