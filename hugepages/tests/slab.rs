//! The slab against a hash map, with values that count their drops. Needs root for the tests on huge pages.

mod common;

use common::{Host, without_memory};
use hugepages::{HugePages, InsertError, PageKind, Pages, Region, Request, Slab};
use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
};

const MIB: usize = 1 << 20;

/// A value of about the size of a connection, or of any other, that counts how many of its kind are alive.
struct Value<const PAD: usize> {
    id: u64,
    alive: Rc<Cell<i64>>,
    pad: [u8; PAD],
}

impl<const PAD: usize> Value<PAD> {
    fn new(id: u64, alive: &Rc<Cell<i64>>) -> Self {
        alive.set(alive.get() + 1);
        Self { id, alive: alive.clone(), pad: [id as u8; PAD] }
    }

    fn check(&self, id: u64) {
        assert_eq!(self.id, id);
        assert!(self.pad.iter().all(|&byte| byte == id as u8));
    }
}

impl<const PAD: usize> Drop for Value<PAD> {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

/// Numbers that look random, the same ones for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Random operations on a slab and on a hash map; the odds change between growing and shrinking so that
/// chunks come and go, and the slab is full and empty at times.
fn against_model<const PAD: usize>(capacity: u32, operations: usize, seed: u64) {
    let _host = Host::lock();
    let alive = Rc::new(Cell::new(0));
    let mut random = Random(seed);
    let mut slab = Slab::<Value<PAD>>::new("model", capacity, Pages::Auto, None).unwrap();
    let mut model: HashMap<u32, (u64, *const Value<PAD>)> = HashMap::new();
    let mut indexes: Vec<u32> = Vec::new();
    let (mut was_full, mut was_empty, mut most_mapped, mut gave_back) = (false, false, 0, false);
    let mut last_freed = None;
    for step in 0..operations as u64 {
        let growing = step / (u64::from(capacity) * 3) % 2 == 0;
        match random.below(10) {
            choice if choice < if growing { 7 } else { 2 } => {
                let value = Value::new(step, &alive);
                let result = if choice % 2 == 0 {
                    slab.insert(value)
                } else {
                    // The index is known to the value that goes there.
                    let mut told = None;
                    let result = slab.insert_with(|index| {
                        told = Some(index);
                        value
                    });
                    assert_eq!(told, result.as_ref().ok().copied());
                    result.map_err(|error| (Value::new(step, &alive), error))
                };
                match result {
                    Ok(index) => {
                        assert!(index < capacity);
                        assert!(
                            last_freed.take().is_none_or(|freed| freed == index),
                            "the last freed is the first"
                        );
                        let at = slab.get(index).unwrap() as *const _;
                        assert_eq!(model.insert(index, (step, at)), None, "index {index} given out twice");
                        indexes.push(index);
                    }
                    Err((value, InsertError::Full { capacity: said })) => {
                        value.check(step);
                        assert_eq!((model.len(), said), (capacity as usize, capacity));
                        was_full = true;
                    }
                    Err((_, error)) => panic!("{error}"),
                }
            }
            choice if choice < 9 => {
                if indexes.is_empty() {
                    was_empty = true;
                    continue;
                }
                let index = indexes.swap_remove(random.below(indexes.len() as u64) as usize);
                let (id, _) = model.remove(&index).unwrap();
                slab.remove(index).unwrap().check(id);
                assert!(slab.remove(index).is_none() && slab.get(index).is_none());
                last_freed = Some(index);
            }
            _ => {
                // Any index, also beyond the end: there, and the same, or not there.
                let index = random.below(u64::from(capacity) * 2) as u32;
                assert_eq!(slab.get(index).map(|value| value.id), model.get(&index).map(|&(id, _)| id));
                if let Some(value) = slab.get_mut(index) {
                    value.check(model[&index].0);
                    assert_eq!(&raw const *value, model[&index].1, "a value has moved");
                    value.id = step;
                    value.pad = [step as u8; PAD];
                    model.get_mut(&index).unwrap().0 = step;
                }
            }
        }
        assert_eq!((slab.len() as usize, slab.is_empty()), (model.len(), model.is_empty()));
        assert_eq!(alive.get(), model.len() as i64);
        if step % 512 == 0 {
            let found: HashMap<u32, u64> = slab.iter().map(|(index, value)| (index, value.id)).collect();
            assert_eq!(found, model.iter().map(|(&index, &(id, _))| (index, id)).collect());
            assert!(slab.iter().map(|(index, _)| index).is_sorted());
            let mapped = slab.report().mapped;
            gave_back |= mapped < most_mapped;
            most_mapped = most_mapped.max(mapped);
        }
    }
    assert!(was_full && was_empty, "the test did not reach both ends");
    assert_eq!(gave_back, most_mapped > 4 * MIB, "chunks that came did not go, or the reverse");
    drop(slab);
    assert_eq!(alive.get(), 0);
}

#[test]
fn model_with_connections() {
    against_model::<17_000>(1000, 40_000, 1);
}

#[test]
fn model_with_small_values_in_one_small_chunk() {
    against_model::<8>(300, 40_000, 2);
}

#[test]
fn model_with_huge_values() {
    against_model::<300_000>(40, 4_000, 3);
}

#[test]
fn model_with_the_smallest_capacities() {
    for capacity in 1..=3 {
        against_model::<40>(capacity, 2_000, 4);
    }
}

/// Slots that fill a chunk of 2 MiB with nothing to spare: 8 of 256 KiB.
type Eighth = [u8; EIGHTH];
const EIGHTH: usize = (256 << 10) - 4;

fn filled(chunks: u32) -> Slab<Eighth> {
    let mut slab = Slab::<Eighth>::new("eighths", 80, Pages::Auto, None).unwrap();
    for index in 0..8 * chunks {
        assert_eq!(slab.insert_with(|_| [0; EIGHTH]).unwrap(), index);
    }
    slab
}

#[test]
fn chunks_come_when_needed_and_go_when_empty_but_for_one() {
    let _host = Host::lock();
    let mapped = |slab: &Slab<Eighth>| slab.report().mapped / (2 * MIB);
    let remove = |slab: &mut Slab<Eighth>, indexes: &mut dyn Iterator<Item = u32>| {
        indexes.for_each(|index| assert!(slab.remove(index).is_some()));
    };
    let mut slab = filled(0);
    assert_eq!(
        (mapped(&slab), slab.report().asked),
        (1, 20 * MIB),
        "the first chunk is there from the start"
    );
    assert!(
        slab.report().to_string().starts_with("eighths: 2 MiB so far, of 20 MiB on "),
        "{}",
        slab.report()
    );
    slab = filled(3);
    assert_eq!(mapped(&slab), 3);
    // Around the end of a chunk nothing is mapped or unmapped.
    for _ in 0..3 {
        let index = slab.insert_with(|_| [0; EIGHTH]).unwrap();
        assert_eq!((index, mapped(&slab)), (24, 4));
        slab.remove(index).unwrap();
        assert_eq!(mapped(&slab), 4);
    }
    // The second empty chunk replaces the first.
    remove(&mut slab, &mut (8..16));
    assert_eq!(mapped(&slab), 3);
    remove(&mut slab, &mut (0..8).chain(16..24));
    assert_eq!((mapped(&slab), slab.len()), (1, 0));
    // What came back is the kernel's zeroed memory again, and works as at first.
    let indexes: HashSet<u32> = (0..80).map(|_| slab.insert_with(|_| [7; EIGHTH]).unwrap()).collect();
    assert_eq!((mapped(&slab), indexes.len()), (10, 80));
    assert!(matches!(slab.insert([0; EIGHTH]), Err((_, InsertError::Full { capacity: 80 }))));
    assert!(!slab.report().to_string().contains("so far"));
}

#[test]
fn the_index_freed_last_is_used_first() {
    let _host = Host::lock();
    let mut slab = filled(3);
    for index in [3, 17, 20, 5] {
        slab.remove(index).unwrap();
    }
    let order: Vec<_> = (0..4).map(|_| slab.insert_with(|_| [0; EIGHTH]).unwrap()).collect();
    assert_eq!(order, [5, 3, 20, 17], "the chunk freed in last, then within it the slot");
}

#[test]
fn iter_mut_changes_what_is_there() {
    let _host = Host::lock();
    let mut slab = Slab::new("numbers", 1000, Pages::Exactly(PageKind::Plain), None).unwrap();
    (0..1000).for_each(|index| assert_eq!(slab.insert_with(u64::from).ok(), Some(index)));
    (0..1000).step_by(3).for_each(|index| assert_eq!(slab.remove(index), Some(u64::from(index))));
    slab.iter_mut().for_each(|(index, value)| *value += u64::from(index));
    assert_eq!(slab.iter().count(), 666);
    assert!(slab.iter().all(|(index, &value)| index % 3 != 0 && value == 2 * u64::from(index)));
    assert!([1000, 1024, 2000, u32::MAX].iter().all(|&index| slab.get(index).is_none()));
}

#[test]
fn a_panic_while_making_a_value_leaves_its_index_vacant() {
    let _host = Host::lock();
    let alive = Rc::new(Cell::new(0));
    let mut slab = Slab::<Value<8>>::new("panic", 2, Pages::Auto, None).unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| slab.insert_with(|_| panic!("no value"))));
    assert!(result.is_err());
    assert_eq!((slab.len(), slab.iter().count()), (0, 0));
    for index in 0..2 {
        assert_eq!(slab.insert(Value::new(1, &alive)).ok(), Some(index));
    }
    assert!(slab.insert(Value::new(1, &alive)).is_err());
    assert_eq!(alive.get(), 2);
    drop(slab);
    assert_eq!(alive.get(), 0);
}

#[test]
fn values_are_aligned_and_may_have_no_size() {
    let _host = Host::lock();
    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "room")] u8);
    // With its state before it, a page-aligned value cannot start its page: the slot takes two.
    let mut slab = Slab::new("pages", 10, Pages::Auto, None).unwrap();
    for _ in 0..10 {
        let index = slab.insert(Page(1)).ok().unwrap();
        assert!((&raw const *slab.get(index).unwrap()).addr().is_multiple_of(4096));
    }
    let mut slab = Slab::new("nothings", 70_000, Pages::Auto, None).unwrap();
    (0..70_000).for_each(|index| assert_eq!(slab.insert(()).ok(), Some(index)));
    assert!(slab.insert(()).is_err());
    assert_eq!((slab.iter().count(), slab.remove(69_999), slab.remove(70_000)), (70_000, Some(()), None));
}

#[test]
fn capacities_that_make_no_sense() {
    let _host = Host::lock();
    assert!(Slab::<u8>::new("none", 0, Pages::Auto, None).is_err());
    let error =
        Slab::<[u8; 1 << 40]>::new("all", u32::MAX, Pages::Exactly(PageKind::Plain), None).err().unwrap();
    assert!(error.to_string().starts_with("all: "), "{error}");
    let error = Slab::<u8>::new("far", 1, Pages::Auto, Some(1000)).err().unwrap();
    assert!(error.to_string().contains("no NUMA node 1000"), "{error}");
    // The most indexes there are: the chunks are larger, not more.
    let slab = Slab::<u8>::new("most", u32::MAX, Pages::Exactly(PageKind::Plain), None).unwrap();
    assert!(slab.report().mapped > 64 * MIB && slab.get(u32::MAX).is_none());
}

#[test]
fn without_memory_for_another_chunk_the_value_comes_back() {
    let _host = Host::lock();
    let alive = Rc::new(Cell::new(0));
    let mut slab = Slab::<Value<250_000>>::new("tight", 80, Pages::Exactly(PageKind::Plain), None).unwrap();
    while slab.report().mapped / (256 << 10) > slab.len() as usize {
        slab.insert(Value::new(1, &alive)).ok().unwrap();
    }
    let (full, value) = (slab.len(), Value::new(9, &alive));
    let (value, error) =
        without_memory(|| slab.insert(value).map_err(Box::new)).map_err(|both| *both).err().unwrap();
    assert!(
        matches!(error, InsertError::OutOfMemory(_)) && error.to_string().contains("tight: no "),
        "{error}"
    );
    value.check(9);
    assert_eq!(slab.len(), full);
    slab.insert(value).ok().unwrap();
    drop(slab);
    assert_eq!(alive.get(), 0);
}

#[test]
fn a_slab_on_huge_pages() {
    let mut host = Host::lock();
    let exactly = Pages::Exactly(PageKind::Huge2M);
    assert_eq!(host.add(PageKind::Huge2M, 3), 3, "6 MiB of free memory");
    let mut slab = Slab::<Eighth>::new("huge", 80, exactly, Some(0)).unwrap();
    (0..17).for_each(|index| assert_eq!(slab.insert_with(|_| [1; EIGHTH]).unwrap(), index));
    let report = slab.report();
    assert_eq!((report.mapped, report.huge, report.kind), (6 * MIB, 6 * MIB, PageKind::Huge2M));
    assert_eq!((report.numa_node, &report.advice), (Some(0), &None));
}

#[test]
fn the_advice_counts_the_pages_of_a_full_slab() {
    let _host = Host::lock();
    // Others may fill and empty the pool meanwhile: then once more.
    for _ in 0..100 {
        let pool = HugePages::read(PageKind::Huge2M).expect("a pool");
        // All that is free is taken, so that the slab finds nothing.
        let pages = Pages::Exactly(PageKind::Huge2M);
        let len = pool.available(None) * 2 * MIB;
        let taken = Region::map(&Request { what: "all", len, pages, numa_node: None, prefault: true });
        let slab = Slab::<Eighth>::new("short", 40, Pages::AtMost(PageKind::Huge2M), None).unwrap();
        let report = slab.report();
        drop((slab, taken));
        if HugePages::read(PageKind::Huge2M).as_ref() == Some(&pool) {
            assert_eq!((report.mapped, report.asked), (2 * MIB, 10 * MIB));
            assert!(report.kind > PageKind::Huge2M);
            // One chunk is mapped, but all five want huge pages.
            let advice = report.advice.unwrap();
            assert!(advice.starts_with("5 pages of 2 MiB wanted, 0 free; type: "), "{advice}");
            assert!(advice.contains(&(pool.total + 5).to_string()), "{advice}");
            return;
        }
    }
    panic!("the pool of huge pages never rests; stop whatever else uses it");
}

#[test]
fn a_full_slabs_memory_is_known_before_there_is_one() {
    for (capacity, pages) in [
        (1, Pages::Exactly(PageKind::Plain)),
        (100, Pages::Exactly(PageKind::Plain)),
        (60_000, Pages::AtMost(PageKind::Transparent)),
    ] {
        let (chunks, len) = Slab::<[u64; 50]>::chunks(capacity, pages);
        let slab = Slab::<[u64; 50]>::new("planned", capacity, pages, None).unwrap();
        assert_eq!(chunks * len, slab.report().asked, "{capacity} on {pages:?}");
    }
    assert_eq!(Slab::<[u64; 50]>::chunks(0, Pages::Auto).0, 0);
}
