//! Places that are taken and given back: of connections, and of requests.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// How many places are taken, by whom.
#[derive(Debug)]
pub(crate) struct Places<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Clone for Places<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Places<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// Taken by everybody, and by this one.
    pub(crate) fn taken(&self, by: &K) -> (usize, usize) {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (taken.values().sum(), taken.get(by).copied().unwrap_or(0))
    }

    /// Taken by all of these.
    pub(crate) fn taken_where(&self, these: impl Fn(&K) -> bool) -> usize {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.iter().filter(|(by, _)| these(by)).map(|(_, count)| count).sum()
    }

    /// Taken by everybody.
    pub(crate) fn taken_in_all(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Takes one.
    pub(crate) fn take(&self, by: K) -> Place<K> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *taken.entry(by.clone()).or_default() += 1;
        Place { places: self.clone(), by }
    }
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash + Clone> {
    places: Places<K>,
    by: K,
}

impl<K: Eq + Hash + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.by) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.by);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        let places = Places::default();
        let kept = places.take("a");
        drop((places.take("a"), places.take("b")));
        assert_eq!((places.taken(&"a"), places.taken(&"b")), ((1, 1), (1, 0)));
        drop(kept);
        assert!(places.0.lock().unwrap().is_empty(), "nothing is kept of those who have left");
    }
}
