//! Fixed capacity, index-addressed storage of one type, in regions of big pages.
//!
//! An index is a chunk and a slot in it. A chunk is one pre-faulted [`Region`] full of slots; it is mapped
//! when an insertion finds all others full. Nothing moves: an address is good until its value is removed.
//! Made for state that is large, long-lived and found by number, such as connections, whose IDs carry their
//! index.
//!
//! A slot is the value behind a word of state: vacant, occupied, or vacant and naming the next vacant one.
//! Zero means vacant, so the kernel's zeroed memory is a chunk ready for use, and none of it is written
//! before it is needed. The word sits beside the value, because a lookup touches the value next: a table of
//! its own would be one more cache miss.
//!
//! A freed index is the next one given out, its memory still being in cache. A chunk whose slots are all
//! vacant goes back to the kernel, but for one that is kept, so that a count swinging around a chunk's end
//! maps and unmaps nothing. Since nothing moves, one value is enough to hold a chunk.

use crate::kind::{MIB2, PageKind, Pages};
use crate::prefetch::prefetch;
use crate::region::{Error, Region, Request};
use crate::report::{Report, Shortfall};
use crate::split::Split;
use std::{marker::PhantomData, mem::MaybeUninit, ptr::NonNull};

/// Chunks of a full slab (count, approximate): 1 GiB of connections comes in chunks of 8 MiB. More makes
/// chunks smaller and mappings more numerous: 47 workers share the 65,530 mappings that Linux allows a
/// process by default (`vm.max_map_count`), at up to two for each chunk. Fewer makes chunks larger, and the
/// thread that maps one waits longer, about 0.1 ms per MiB, 0.5 ms on plain pages.
const CHUNKS: usize = 128;

/// Slots in a chunk, at least (count). What is left over at the end of a chunk is less than one slot, so 8
/// wastes less than an eighth. More means chunks larger than a page for smaller types, fewer waste more.
const MIN_SLOTS: usize = 8;

/// State of a slot with a value. Others: 0, vacant and last in its list; n + 1, vacant and before slot n.
const OCCUPIED: u32 = u32::MAX;

/// Why a value was not inserted.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// All indexes are taken.
    #[error("all {capacity} slots are taken")]
    Full {
        /// The slab's capacity.
        capacity: u32,
    },
    /// A new chunk was needed, and there was no memory for it.
    #[error(transparent)]
    OutOfMemory(#[from] Error),
}

#[repr(C)]
struct Slot<T> {
    state: u32,
    value: MaybeUninit<T>,
}

/// A chunk's bookkeeping, needed to insert and remove only.
struct Chunk {
    region: Region,
    /// Slots with a value.
    used: u32,
    /// Slots that ever had one: those from here on are not in the list.
    fresh: u32,
    /// The list of vacant slots below `fresh`, in the form of a slot's state.
    vacant: u32,
}

/// Fixed capacity storage of `T` by index; see the module's text.
///
/// Indexes are used again after removal. Who must tell the old value from the new keeps a generation in `T`.
pub struct Slab<T> {
    /// The first slot of each chunk: all that a lookup needs. Behind each address are `split.slots` slots.
    bases: Box<[Option<NonNull<Slot<T>>>]>,
    split: Split,
    len: u32,
    capacity: u32,
    chunks: Box<[Option<Chunk>]>,
    /// Chunks with vacant slots; insertions take the last, which has the slot freed most recently.
    open: Vec<u32>,
    /// The empty chunk, if there is one: a second is given back.
    spare: Option<u32>,
    /// Bytes to ask for in a chunk.
    chunk_len: usize,
    what: String,
    pages: Pages,
    numa_node: Option<u32>,
    owns: PhantomData<T>,
}

// SAFETY: a slab owns its values, and its addresses are to memory of the process, which no thread owns.
unsafe impl<T: Send> Send for Slab<T> {}
// SAFETY: with a shared slab nothing but `&T` can be had, and nothing in it changes.
unsafe impl<T: Sync> Sync for Slab<T> {}

impl<T> Slab<T> {
    /// A slab for `capacity` values on pages as in a [`Request`], with the first chunk mapped: so what is
    /// wrong with the request, or missing on the host, shows at once, and in the report.
    ///
    /// # Errors
    /// Those of [`Region::map`]; a capacity of 0 is [`Error::Empty`].
    pub fn new(what: &str, capacity: u32, pages: Pages, numa_node: Option<u32>) -> Result<Self, Error> {
        const { assert!(align_of::<Slot<T>>() <= 4096, "chunks are aligned to their pages, 4 KiB at worst") }
        if capacity == 0 {
            return Err(Error::Empty { what: what.to_owned() });
        }
        let (split, chunk_len) =
            Self::chunking(capacity, pages).map_err(|len| Error::TooLong { what: what.to_owned(), len })?;
        let chunks = capacity.div_ceil(split.slots) as usize;
        let mut slab = Self {
            bases: vec![None; chunks].into(),
            split,
            len: 0,
            capacity,
            chunks: std::iter::repeat_with(|| None).take(chunks).collect(),
            open: Vec::with_capacity(chunks),
            spare: None,
            chunk_len,
            what: what.to_owned(),
            pages,
            numa_node,
            owns: PhantomData,
        };
        slab.map_chunk(0)?;
        Ok(slab)
    }

    /// How a full slab for `capacity` values is cut: the number of its chunks, and the bytes to ask for in
    /// each. For those who plan memory before there is a slab.
    pub fn chunks(capacity: u32, pages: Pages) -> (usize, usize) {
        // A slab that is too long to be has no chunks.
        Self::chunking(capacity, pages)
            .map_or((0, 0), |(split, chunk_len)| (capacity.div_ceil(split.slots) as usize, chunk_len))
    }

    /// The slots of a chunk and its bytes. The error is the bytes of a slab that is too long.
    fn chunking(capacity: u32, pages: Pages) -> Result<(Split, usize), usize> {
        let stride = size_of::<Slot<T>>();
        let full = stride.saturating_mul(capacity as usize);
        let page = match pages {
            Pages::AtMost(PageKind::Huge1G) | Pages::Exactly(PageKind::Huge1G) => PageKind::Huge1G.size(),
            _ => MIB2,
        };
        let share = (full / CHUNKS).max(stride.saturating_mul(MIN_SLOTS));
        let share = share.checked_next_multiple_of(page).ok_or(full)?;
        // A slab smaller than a chunk takes what it needs; two slots because `Split` cannot divide by one.
        let chunk_len = share.min(full).max(2 * stride);
        // Far below 2^32: a chunk has no more than the slab's 128th part, and one page of at most 1 GiB.
        Ok((Split::new((chunk_len / stride) as u32), chunk_len))
    }

    /// Stores `value` and returns its index.
    ///
    /// # Errors
    /// Gives the value back if all indexes are taken, or if a chunk had to be mapped and could not be.
    pub fn insert(&mut self, value: T) -> Result<u32, (T, InsertError)> {
        match self.next_index() {
            Ok(index) => {
                self.occupy(index, value);
                Ok(index)
            }
            Err(error) => Err((value, error)),
        }
    }

    /// Stores what `make` returns for the index given to it, and returns that index. If `make` panics, the
    /// index stays vacant.
    ///
    /// # Errors
    /// As [`Slab::insert`]; then `make` is not called.
    pub fn insert_with(&mut self, make: impl FnOnce(u32) -> T) -> Result<u32, InsertError> {
        let index = self.next_index()?;
        self.occupy(index, make(index));
        Ok(index)
    }

    /// Takes the value at `index` out, if there is one. The index is the next to be given out.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let at = self.occupied(index)?;
        let (id, slot) = self.split.of(index);
        let limit = self.slots_in(id);
        let (_, chunk) = self.parts(id);
        // SAFETY: the slot is occupied and we have the slab to ourselves; its state says that the value is
        // gone before anyone can look again.
        let value = unsafe {
            (*at.as_ptr()).state = chunk.vacant;
            (*at.as_ptr()).value.assume_init_read()
        };
        chunk.vacant = slot + 1;
        let (was_full, empty) = (chunk.used == limit, chunk.used == 1);
        chunk.used -= 1;
        self.len -= 1;
        if self.open.last() != Some(&id) {
            if !was_full {
                self.open.retain(|&other| other != id);
            }
            self.open.push(id);
        }
        if empty && let Some(old) = self.spare.replace(id) {
            self.release(old);
        }
        Some(value)
    }

    /// The value at `index`, if there is one.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&T> {
        // SAFETY: an occupied slot has a value, which cannot go while the slab is borrowed.
        self.occupied(index).map(|at| unsafe { (*at.as_ptr()).value.assume_init_ref() })
    }

    /// The value at `index`, if there is one.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        // SAFETY: as in `get`, and the slab is borrowed exclusively.
        self.occupied(index).map(|at| unsafe { (*at.as_ptr()).value.assume_init_mut() })
    }

    /// Asks the processor to fetch cache lines of the slot at `index`, given by their offset in the value, in
    /// bytes; and that which tells whether there is a value. Reads nothing: the slot may be vacant, and an offset
    /// past its end only fetches in vain.
    #[inline]
    pub fn prefetch(&self, index: u32, offsets: impl IntoIterator<Item = usize>) {
        let (id, slot) = self.split.of(index);
        let Some(Some(base)) = self.bases.get(id as usize) else { return };
        let start = base.as_ptr().cast::<u8>().wrapping_add(slot as usize * size_of::<Slot<T>>());
        prefetch(start.wrapping_add(std::mem::offset_of!(Slot<T>, state)));
        for offset in offsets {
            prefetch(start.wrapping_add(std::mem::offset_of!(Slot<T>, value) + offset));
        }
    }

    /// Values stored.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values that can be stored.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// All values with their indexes, by index. Costs a cache miss for each slot that was ever in use: for
    /// rare work.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { slab: self, next: 0 }
    }

    /// As [`Slab::iter`], to change them.
    pub fn iter_mut(&mut self) -> IterMut<'_, T> {
        IterMut { slab: self, next: 0 }
    }

    /// The memory of all chunks in one report: `asked` is what a full slab takes, `mapped` what it has now,
    /// `kind` the smallest pages in use, and the advice counts the pages for a full slab.
    pub fn report(&self) -> Report {
        let mut reports = self.chunks.iter().flatten().map(|chunk| chunk.region.report());
        let mut sum = reports.next().expect("the spare chunk is always there").clone();
        for report in reports {
            sum.mapped += report.mapped;
            sum.huge += report.huge;
            sum.kind = sum.kind.max(report.kind);
            sum.prefaulted &= report.prefaulted;
            sum.numa_node = sum.numa_node.and(report.numa_node);
            sum.shortfall = sum.shortfall.or(report.shortfall);
            sum.advice = sum.advice.or_else(|| report.advice.clone());
        }
        sum.asked = self.chunk_len * self.chunks.len();
        if let Some(Shortfall { kind, node, .. }) = sum.shortfall {
            let lacking = self
                .chunks
                .iter()
                .filter(|chunk| chunk.as_ref().is_none_or(|chunk| chunk.region.kind() > kind));
            let shortfall = Shortfall {
                pages: lacking.count() * Shortfall::of(kind, node, self.chunk_len).pages,
                ..Shortfall::of(kind, node, 0)
            };
            sum.advice = shortfall.advice().or(sum.advice);
            sum.shortfall = Some(shortfall);
        }
        sum
    }

    /// The slot of `index` if it has a value.
    #[inline]
    fn occupied(&self, index: u32) -> Option<NonNull<Slot<T>>> {
        let (id, slot) = self.split.of(index);
        let base = (*self.bases.get(id as usize)?)?;
        // SAFETY: every chunk has room for `split.slots` slots, also the last, whose slots beyond the
        // capacity stay vacant; `slot` is less than that.
        let at = unsafe { base.add(slot as usize) };
        // SAFETY: `state` is initialised, by us or as the kernel's zeroes, in every slot; references handed
        // out are to values only.
        (unsafe { (*at.as_ptr()).state } == OCCUPIED).then_some(at)
    }

    /// The first value from `index` on.
    fn occupied_from(&self, mut index: u32) -> Option<(u32, NonNull<Slot<T>>)> {
        while index < self.capacity {
            let (id, slot) = self.split.of(index);
            match &self.chunks[id as usize] {
                Some(chunk) if chunk.used > 0 && slot < chunk.fresh => {
                    if let Some(at) = self.occupied(index) {
                        return Some((index, at));
                    }
                    index += 1;
                }
                _ => index = self.split.slots.saturating_mul(id + 1),
            }
        }
        None
    }

    /// The vacant index that is to be used next, in a chunk mapped for it if need be.
    pub fn next_index(&mut self) -> Result<u32, InsertError> {
        let id = match self.open.last() {
            Some(&id) => id,
            None => {
                let unmapped = self.bases.iter().position(Option::is_none);
                let id = unmapped.ok_or(InsertError::Full { capacity: self.capacity })? as u32;
                self.map_chunk(id)?;
                id
            }
        };
        let (_, chunk) = self.parts(id);
        let slot = chunk.vacant.checked_sub(1).unwrap_or(chunk.fresh);
        Ok(id * self.split.slots + slot)
    }

    /// Puts `value` where [`Slab::next_index`] said.
    #[inline]
    fn occupy(&mut self, index: u32, value: T) {
        let (id, slot) = self.split.of(index);
        let limit = self.slots_in(id);
        let (base, chunk) = self.parts(id);
        // SAFETY: the slot is in the mapped chunk and vacant, so nobody has a reference to it.
        let at = unsafe { base.add(slot as usize).as_mut() };
        at.value.write(value);
        let next = std::mem::replace(&mut at.state, OCCUPIED);
        if slot < chunk.fresh {
            chunk.vacant = next;
        } else {
            chunk.fresh += 1;
        }
        chunk.used += 1;
        if chunk.used == limit {
            self.open.pop();
        }
        self.spare = self.spare.filter(|&spare| spare != id);
        self.len += 1;
    }

    /// The memory and the bookkeeping of a mapped chunk.
    fn parts(&mut self, id: u32) -> (NonNull<Slot<T>>, &mut Chunk) {
        match (self.bases[id as usize], &mut self.chunks[id as usize]) {
            (Some(base), Some(chunk)) => (base, chunk),
            _ => unreachable!("chunk {id} is not mapped"),
        }
    }

    /// Slots of a chunk that have an index below the capacity.
    fn slots_in(&self, id: u32) -> u32 {
        self.split.slots.min(self.capacity - id * self.split.slots)
    }

    /// Maps a chunk when no other has a vacant slot. Being empty, it is the spare one.
    fn map_chunk(&mut self, id: u32) -> Result<(), Error> {
        let region = Region::map(&Request {
            what: &self.what,
            len: self.chunk_len,
            pages: self.pages,
            numa_node: self.numa_node,
            prefault: true,
        })?;
        self.bases[id as usize] = Some(region.as_ptr().cast());
        self.chunks[id as usize] = Some(Chunk { region, used: 0, fresh: 0, vacant: 0 });
        self.open.push(id);
        self.spare = Some(id);
        Ok(())
    }

    /// Gives an empty chunk back to the kernel.
    fn release(&mut self, id: u32) {
        self.open.retain(|&other| other != id);
        self.bases[id as usize] = None;
        self.chunks[id as usize] = None;
    }
}

impl<T> Drop for Slab<T> {
    fn drop(&mut self) {
        if std::mem::needs_drop::<T>() {
            for (_, value) in self.iter_mut() {
                // SAFETY: the value is there, and nobody looks again: after this only the regions go.
                unsafe { std::ptr::drop_in_place(value) };
            }
        }
    }
}

/// The values of a slab; see [`Slab::iter`].
pub struct Iter<'a, T> {
    slab: &'a Slab<T>,
    next: u32,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = (u32, &'a T);

    fn next(&mut self) -> Option<Self::Item> {
        let (index, at) = self.slab.occupied_from(self.next)?;
        self.next = index + 1;
        // SAFETY: the slot is occupied, and the slab stays borrowed for as long as the reference.
        Some((index, unsafe { (*at.as_ptr()).value.assume_init_ref() }))
    }
}

/// The values of a slab, to change them; see [`Slab::iter_mut`].
pub struct IterMut<'a, T> {
    slab: &'a mut Slab<T>,
    next: u32,
}

impl<'a, T> Iterator for IterMut<'a, T> {
    type Item = (u32, &'a mut T);

    fn next(&mut self) -> Option<Self::Item> {
        let (index, at) = self.slab.occupied_from(self.next)?;
        self.next = index + 1;
        // SAFETY: the slot is occupied, the slab stays exclusively borrowed for as long as the reference, and
        // no index comes twice.
        Some((index, unsafe { (*at.as_ptr()).value.assume_init_mut() }))
    }
}
