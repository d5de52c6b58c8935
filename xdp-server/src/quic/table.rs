//! Connection table: who is who.
//!
//! A connection lives in a *slot* of memory from `hugepages`, at an address that never changes; its
//! connection IDs name the slot and the slot's *generation*, so that finding it is an index and a comparison.
//! Generations start at random at every start of the server, so that an ID from before a restart is stale and
//! never names a newcomer.
//!
//! Only packets of a handshake need a search, while the client still uses the random connection ID that it
//! began with: those are in a hash map, and leave it when the handshake is over.

use hugepages::{Pages, Slab};
use std::collections::HashMap;

/// A client's first destination connection ID: its own random choice, 0 to 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct InitialId {
    len: u8,
    bytes: [u8; 20],
}

impl InitialId {
    /// From the bytes in the packet; `None` if there are more than version 1 allows.
    pub fn new(id: &[u8]) -> Option<Self> {
        let mut bytes = [0; 20];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(Self { len: id.len() as u8, bytes })
    }
}

/// The connections of one worker; `T` is what the worker keeps of each. See the [module](self).
pub struct ConnectionTable<T> {
    slots: Slab<T>,
    generations: Box<[u32]>,
    initials: HashMap<InitialId, u32>,
}

impl<T> ConnectionTable<T> {
    /// A table of `capacity` slots. `epoch` is where generations start: random for each start of the server.
    ///
    /// # Errors
    /// There is no memory of the kind asked for.
    pub fn new(
        capacity: u32,
        pages: Pages,
        numa_node: Option<u32>,
        epoch: u32,
    ) -> Result<Self, hugepages::Error> {
        Ok(Self {
            slots: Slab::new("connections", capacity, pages, numa_node)?,
            generations: vec![epoch; capacity as usize].into_boxed_slice(),
            initials: HashMap::new(),
        })
    }

    /// The memory of a full table of `capacity` slots: regions, and bytes in each.
    pub fn memory_needed(capacity: u32, pages: Pages) -> (usize, usize) {
        Slab::<T>::chunks(capacity, pages)
    }

    /// What memory the table got.
    pub fn report(&self) -> hugepages::Report {
        self.slots.report()
    }

    /// Connections in the table.
    pub fn len(&self) -> u32 {
        self.slots.len()
    }

    /// True if the table holds no connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots, used or not.
    pub fn capacity(&self) -> u32 {
        self.slots.capacity()
    }

    /// Takes a free slot for a connection made by `make` from the slot and its generation. `None` if there is
    /// no free slot, no memory, or `make` declined.
    pub fn insert_with(&mut self, make: impl FnOnce(u32, u32) -> Option<T>) -> Option<u32> {
        let slot = self.slots.next_index().ok()?;
        let value = make(slot, self.generations[slot as usize])?;
        self.slots.insert(value).ok().inspect(|inserted| debug_assert_eq!(*inserted, slot))
    }

    /// The connection in `slot`, whichever it is.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.slots.get_mut(slot)
    }

    /// The connection that was given `generation` of `slot`, if it still is there.
    pub fn find(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        (*self.generations.get(slot as usize)? == generation).then(|| self.slots.get_mut(slot))?
    }

    /// Asks the processor to fetch cache lines of `slot`: see [`Slab::prefetch`].
    #[inline]
    pub fn prefetch(&self, slot: u32, offsets: impl IntoIterator<Item = usize>) {
        self.slots.prefetch(slot, offsets);
    }

    /// The generation that `slot` has now.
    pub fn generation(&self, slot: u32) -> u32 {
        self.generations[slot as usize]
    }

    /// Removes the connection in `slot`. IDs issued for it are stale from here on.
    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let gone = self.slots.remove(slot)?;
        let generation = &mut self.generations[slot as usize];
        *generation = generation.wrapping_add(1);
        Some(gone)
    }

    /// Remembers the client's first destination ID while its handshake lasts.
    pub fn remember_initial(&mut self, id: InitialId, slot: u32) {
        self.initials.insert(id, slot);
    }

    /// The slot whose handshake began with `id`.
    pub fn find_initial(&self, id: &InitialId) -> Option<u32> {
        self.initials.get(id).copied()
    }

    /// Forgets a first destination ID.
    pub fn forget_initial(&mut self, id: &InitialId) {
        self.initials.remove(id);
    }

    /// The slots that hold a connection.
    pub fn occupied(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().map(|(slot, _)| slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(capacity: u32) -> ConnectionTable<u64> {
        ConnectionTable::new(capacity, Pages::Exactly(hugepages::PageKind::Plain), None, u32::MAX).unwrap()
    }

    #[test]
    fn a_stale_generation_finds_nothing() {
        let mut table = table(2);
        let slot =
            table.insert_with(|slot, generation| Some(u64::from(slot) + u64::from(generation))).unwrap();
        let generation = table.generation(slot);
        assert_eq!(table.find(slot, generation), Some(&mut (u64::from(slot) + u64::from(u32::MAX))));
        assert_eq!(table.find(slot, generation.wrapping_add(1)), None);
        table.remove(slot);
        assert_eq!(table.find(slot, generation), None);
        let again = table.insert_with(|_, _| Some(7)).unwrap();
        assert_eq!(again, slot, "a warm slot is used first");
        assert_eq!(table.generation(again), 0, "generations wrap");
        assert_eq!(table.find(slot, generation), None, "the former tenant's ID must not find the new one");
        assert_eq!(table.find(99, generation), None);
    }

    #[test]
    fn full_and_declined() {
        let mut table = table(1);
        assert_eq!(table.insert_with(|_, _| None), None);
        assert_eq!(table.insert_with(|_, _| Some(1)), Some(0));
        assert_eq!(table.insert_with(|_, _| Some(2)), None);
        assert_eq!((table.len(), table.occupied().collect::<Vec<_>>()), (1, vec![0]));
    }

    #[test]
    fn initial_ids_of_different_length_differ() {
        let mut table = table(1);
        table.remember_initial(InitialId::new(&[0; 8]).unwrap(), 0);
        assert_eq!(table.find_initial(&InitialId::new(&[0; 9]).unwrap()), None);
        assert_eq!(table.find_initial(&InitialId::new(&[0; 8]).unwrap()), Some(0));
        table.forget_initial(&InitialId::new(&[0; 8]).unwrap());
        assert_eq!(table.find_initial(&InitialId::new(&[0; 8]).unwrap()), None);
        assert!(InitialId::new(&[0; 21]).is_none());
    }
}
