//! Which session's cache is which of llama.cpp's sequences, and what it holds.

use std::collections::{BTreeSet, HashMap};

use potluck_core::{CacheId, StageError};

use super::outputs::Kept;

/// One session's cache.
pub(super) struct Cache {
    /// llama.cpp's sequence.
    pub(super) slot: u16,
    /// Positions that it was opened for.
    pub(super) limit: u32,
    /// Positions that it holds.
    pub(super) held: u32,
    /// Logits of its last step.
    pub(super) kept: Kept,
}

/// The open caches. A slot that is free again goes to the next session, lowest first: neighbours share batches.
pub(super) struct Caches {
    open: HashMap<CacheId, Cache>,
    free: BTreeSet<u16>,
    all: u16,
}

impl Caches {
    pub(super) fn new(all: u16) -> Self {
        Self { open: HashMap::new(), free: (0..all).collect(), all }
    }

    /// Gives `id` an empty cache for `limit` positions; its slot.
    pub(super) fn open(&mut self, id: CacheId, limit: u32) -> Result<u16, StageError> {
        let slot = self.free.pop_first().ok_or(StageError::Busy { caches: self.all })?;
        self.open.insert(id, Cache { slot, limit, held: 0, kept: Kept::default() });
        Ok(slot)
    }

    /// Takes the cache of `id` back; the slot that it had.
    pub(super) fn close(&mut self, id: CacheId) -> Option<u16> {
        let slot = self.open.remove(&id)?.slot;
        self.free.insert(slot);
        Some(slot)
    }

    pub(super) fn get(&self, id: CacheId) -> Result<&Cache, StageError> {
        self.open.get(&id).ok_or(StageError::UnknownCache(id))
    }

    pub(super) fn get_mut(&mut self, id: CacheId) -> Result<&mut Cache, StageError> {
        self.open.get_mut(&id).ok_or(StageError::UnknownCache(id))
    }

    /// Slots of open caches that hold something.
    pub(super) fn slots(&self) -> Vec<u16> {
        self.open.values().filter(|cache| cache.held > 0).map(|cache| cache.slot).collect()
    }

    /// What these slots held is gone.
    pub(super) fn lose(&mut self, slots: &[u16]) {
        for cache in self.open.values_mut().filter(|cache| slots.contains(&cache.slot)) {
            cache.held = 0;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_the_lowest_free_one_is_taken_again() {
        let mut caches = Caches::new(2);
        assert_eq!(caches.open(CacheId(7), 10), Ok(0));
        assert_eq!(caches.open(CacheId(9), 10), Ok(1));
        assert_eq!(caches.open(CacheId(1), 10), Err(StageError::Busy { caches: 2 }));
        assert_eq!((caches.close(CacheId(7)), caches.close(CacheId(7))), (Some(0), None));
        assert_eq!(caches.open(CacheId(1), 10), Ok(0));
        assert!(caches.get(CacheId(7)).is_err());
    }
}
