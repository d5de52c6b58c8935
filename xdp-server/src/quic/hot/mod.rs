//! Which memory QUIC's work on a connection touches, so that it can be asked for ahead.
//!
//! A worker with many connections finds nothing of the next one in its caches: a message then waits some fifty
//! times for memory, one wait after the other, since where to look next is in what is waited for. What is
//! touched is the same for each connection that does the same: fields, and what they point to. Known ahead,
//! the waits of many packets overlap.
//!
//! - `learn`: which those are, by experiment on a few connections at start: throw one cache line out, let QUIC
//!   receive or send a packet, see whether the line is there again. So nothing here knows how quiche, BoringSSL
//!   or the compiler lay things out, or in which version.
//! - [`Plans`]: the result, for this program.
//! - [`Hints`]: where things are for one connection: the pointers, followed once in many packets, and through
//!   the kernel, for which a wrong address is an error and not a crash. What is in it is only ever prefetched:
//!   if something has moved since, that fetches in vain until it is looked up anew.

mod cache;
mod learn;
mod sample;

use super::config::Connection;
pub use cache::LINE;
use cache::read_words;
use learn::{Touched, Way, learn};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It receives a packet with a message.
    Receive,
    /// It sends a datagram.
    Send,
    /// It receives a packet that acknowledges what it sent.
    Acknowledged,
}

impl Work {
    const ALL: [Self; 3] = [Self::Receive, Self::Send, Self::Acknowledged];
}

/// Blocks of memory in [`Hints`]. With quiche 0.30 there are 16 to 20; what is beyond is not fetched ahead.
const BLOCKS: usize = 32;

/// Which cache lines each [`Work`] touches.
#[derive(Debug, Default)]
pub struct Plans {
    /// Lines of the connection itself, by [`Work`], as offsets from its start in bytes.
    own: [Vec<usize>; Work::ALL.len()],
    /// Lines of the blocks that it points to, by [`Work`].
    blocks: [Vec<Block>; Work::ALL.len()],
    /// How those are found: the first pointers first, then those that are in what they point to.
    pointers: Vec<Pointer>,
}

/// Of a block, what one [`Work`] touches.
#[derive(Debug)]
struct Block {
    /// Place in [`Hints`].
    hint: usize,
    /// Lines, as bytes after the one that the pointer to the block points to.
    lines: Box<[isize]>,
}

/// A pointer to follow.
#[derive(Clone, Copy, Debug)]
struct Pointer {
    /// The pointer to the block that this one is in; `None`: the connection.
    parent: Option<usize>,
    /// Where in it, in bytes.
    offset: usize,
    /// Pointers that come before on the way.
    depth: usize,
    /// Place in [`Hints`] of what it points to, if lines of that are to be asked for.
    hint: Option<usize>,
}

/// Where the blocks are that one connection points to: distances in lines from [`origin`]; 0 is nowhere. A
/// quarter of the bytes that the lines' addresses would be.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Hints([i32; BLOCKS]);

/// An address in the heap, so that distances from it fit an `i32`: 128 GB to either side. Of allocators that
/// keep memory further apart (jemalloc does not), most would be unknown.
fn origin() -> usize {
    static ORIGIN: OnceLock<usize> = OnceLock::new();
    *ORIGIN.get_or_init(|| std::ptr::from_ref(&*Box::new(0_u64)).addr())
}

impl Plans {
    /// This program's, learned when they are first asked for, in 0.2 to 0.3 s, with connections made by `config`.
    /// Empty where they cannot be learned, on other processors than x86-64; without what connections point to
    /// where the kernel does not let a process read its own memory by address. One thread learns, others wait.
    pub fn of_this_program(config: &mut quiche::Config) -> &'static Self {
        static PLANS: OnceLock<Plans> = OnceLock::new();
        PLANS.get_or_init(|| Self::new(Work::ALL.map(|work| learn(config, work).unwrap_or_default())))
    }

    /// True if it could not be learned what connections point to, half of it all, or nothing at all.
    pub fn fall_short(&self) -> bool {
        self.blocks.iter().all(Vec::is_empty)
    }

    /// Plans for what each [`Work`] was seen to touch.
    fn new(touched: [Touched; Work::ALL.len()]) -> Self {
        let mut plans = Self::default();
        // Each block once, and the blocks on the way to it; short ways come first.
        let ends: BTreeSet<(usize, &Way)> =
            touched.iter().flat_map(|work| work.blocks.keys()).map(|way| (way.len(), way)).collect();
        let ways: BTreeSet<(usize, Way)> =
            ends.iter().flat_map(|(_, way)| (1..=way.len()).map(|len| (len, way[..len].to_vec()))).collect();
        let place = |way: &[usize]| ways.iter().position(|(_, other)| other == way);
        let hint = |way: &Way| ends.iter().position(|(_, end)| *end == way).filter(|hint| *hint < BLOCKS);
        for (len, way) in &ways {
            let (parent, offset) = (place(&way[..len - 1]), way[len - 1]);
            plans.pointers.push(Pointer { parent, offset, depth: len - 1, hint: hint(way) });
        }
        for ((own, blocks), work) in plans.own.iter_mut().zip(&mut plans.blocks).zip(&touched) {
            own.clone_from(&work.own);
            for (way, touched) in &work.blocks {
                let Some(hint) = hint(way) else { continue };
                let lines = touched.iter().map(|line| *line as isize * LINE as isize).collect();
                blocks.push(Block { hint, lines });
            }
        }
        plans
    }

    /// Cache lines of a connection itself that `work` touches, as offsets from its start in bytes, where that is
    /// at the start of a line.
    pub fn own(&self, work: Work) -> &[usize] {
        &self.own[work as usize]
    }

    /// Asks the processor for the lines of what a connection with these `hints` points to that `work` touches.
    #[inline]
    pub fn prefetch(&self, work: Work, hints: &Hints) {
        let origin = origin();
        for Block { hint, lines } in &self.blocks[work as usize] {
            if hints.0[*hint] == 0 {
                continue;
            }
            let block = origin.wrapping_add_signed(hints.0[*hint] as isize * LINE as isize);
            for line in lines {
                hugepages::prefetch(std::ptr::without_provenance(block.wrapping_add_signed(*line)));
            }
        }
    }

    /// Where the blocks are that `connection` points to, in two or three system calls. Empty if the kernel does
    /// not let us look.
    pub fn locate(&self, connection: &Connection) -> Hints {
        self.locate_from(std::ptr::from_ref(connection).addr())
    }

    fn locate_from(&self, connection: usize) -> Hints {
        let mut hints = Hints::default();
        let mut at = Vec::with_capacity(self.pointers.len());
        if self.follow(connection, &mut at).is_none() {
            return hints;
        }
        for (pointer, at) in self.pointers.iter().zip(at) {
            if let (Some(hint), 1..) = (pointer.hint, at) {
                // A block further away is as good as none.
                let distance = (at / LINE) as i64 - (origin() / LINE) as i64;
                hints.0[hint] = i32::try_from(distance).unwrap_or_default();
            }
        }
        hints
    }

    /// Follows the pointers: `at` gets what they point to.
    fn follow(&self, connection: usize, at: &mut Vec<usize>) -> Option<()> {
        let mut words = Vec::new();
        for together in self.pointers.chunk_by(|a, b| a.depth == b.depth) {
            let place = |pointer: &Pointer| {
                pointer.parent.map_or(connection, |parent| at[parent]).wrapping_add(pointer.offset)
            };
            read_words(&together.iter().map(place).collect::<Vec<_>>(), &mut words)?;
            at.extend(&words);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn touched(own: &[usize], blocks: &[(&[usize], &[i32])]) -> Touched {
        let blocks: BTreeMap<_, _> =
            blocks.iter().map(|(way, lines)| (way.to_vec(), lines.to_vec())).collect();
        Touched { own: own.to_vec(), blocks }
    }

    #[test]
    fn plans_share_the_pointers_that_works_have_in_common() {
        let plans = Plans::new([
            touched(&[0, 64], &[(&[8], &[0, 3]), (&[8, 16, 24], &[1])]),
            touched(&[128], &[(&[40], &[-1]), (&[8, 16], &[2])]),
            Touched::default(),
        ]);
        assert_eq!(plans.own(Work::Receive), [0, 64]);
        assert_eq!((plans.own(Work::Send), plans.own(Work::Acknowledged)), (&[128][..], &[][..]));
        let pointers: Vec<_> = plans.pointers.iter().map(|p| (p.parent, p.offset, p.depth, p.hint)).collect();
        let expected = [
            (None, 8, 0, Some(0)),
            (None, 40, 0, Some(1)),
            (Some(0), 16, 1, Some(2)),
            (Some(2), 24, 2, Some(3)),
        ];
        assert_eq!(pointers, expected);
        let blocks = |work: Work| {
            plans.blocks[work as usize].iter().map(|b| (b.hint, &b.lines[..])).collect::<Vec<_>>()
        };
        assert_eq!(blocks(Work::Receive), [(0, &[0, 3 * 64][..]), (3, &[64])]);
        assert_eq!(blocks(Work::Send), [(2, &[2 * 64][..]), (1, &[-64])]);
    }

    #[test]
    fn pointers_are_followed_through_blocks_that_are_only_on_the_way() {
        let last = [0_usize; 32];
        let middle = [0, std::ptr::from_ref(&last).addr()];
        let first = [std::ptr::from_ref(&middle).addr(), 8];
        let plans = Plans::new([touched(&[], &[(&[0, 8], &[0])]), Touched::default(), Touched::default()]);
        let mut at = Vec::new();
        assert_eq!(plans.follow(std::ptr::from_ref(&first).addr(), &mut at), Some(()));
        assert_eq!(at, [middle.as_ptr().addr(), last.as_ptr().addr()]);
        assert_eq!(plans.pointers[0].hint, None);
        at.clear();
        // A pointer to nowhere is no crash.
        assert_eq!(plans.follow(std::ptr::from_ref(&first[1]).addr(), &mut at), Some(()));
        assert_eq!(at, [8, 0]);
    }

    #[test]
    fn the_lines_of_a_plan_are_fetched() {
        let Some(probe) = cache::Probe::new() else { return };
        let far = vec![0_u8; 16 * LINE];
        let connection = [far.as_ptr().addr()];
        let plans = Plans::new([touched(&[], &[(&[0], &[3])]), Touched::default(), Touched::default()]);
        let hints = plans.locate_from(std::ptr::from_ref(&connection).addr());
        let line = |n: usize| (far.as_ptr().addr() & !(LINE - 1)) + n * LINE;
        let count = |n: usize, fetch: bool| {
            let found = |_: &usize| {
                // SAFETY: it is a line of `far`.
                unsafe { probe.evict(line(n)) };
                if fetch {
                    plans.prefetch(Work::Receive, &hints);
                    // Nothing tells when it has come. Sleeping would let others use the cache.
                    let asked = std::time::Instant::now();
                    while asked.elapsed() < std::time::Duration::from_micros(5) {}
                }
                // SAFETY: as above.
                unsafe { probe.is_cached(line(n)) }
            };
            (0..100).filter(found).count()
        };
        // Others may push it out, or an interrupt come between.
        assert!(count(3, true) > 50, "the line of the plan");
        assert!(count(3, false) < 20 && count(9, true) < 20, "no other");
    }

    #[test]
    fn more_blocks_than_there_is_room_for_are_left_out() {
        let many: BTreeMap<_, _> = (0..BLOCKS + 4).map(|n| (vec![8 * n], vec![0])).collect();
        let all = Touched { own: Vec::new(), blocks: many };
        let plans = Plans::new([all, Touched::default(), Touched::default()]);
        assert_eq!(plans.blocks[0].len(), BLOCKS);
    }
}
