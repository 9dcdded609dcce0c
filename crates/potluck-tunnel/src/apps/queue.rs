//! What waits for an application: bounded in all, and for each member.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use potluck_core::PeerId;
use potluck_wire::MESSAGE_BYTES_MAX;

/// Messages, and streams, of one topic that wait for their application. The next one is refused with `Busy`.
pub const WAITING_MAX: usize = 256;

/// The same of one member.
pub const WAITING_OF_MEMBER_MAX: usize = 64;

/// Bytes of all messages of a topic that wait. What does not fit is refused with `Busy`.
pub const WAITING_BYTES_MAX: usize = 16 << 20;

/// The same of one member: they count from when they are announced.
pub(super) const WAITING_BYTES_OF_MEMBER_MAX: usize = WAITING_BYTES_MAX / 4;

const _: () = assert!(MESSAGE_BYTES_MAX <= WAITING_BYTES_OF_MEMBER_MAX, "each may send a message");
const _: () = assert!(WAITING_OF_MEMBER_MAX <= WAITING_MAX / 4, "one member leaves room for others");

/// Who has how much waiting.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    /// How many, and bytes.
    of: HashMap<PeerId, (usize, usize)>,
    all: usize,
    bytes: usize,
}

/// Room for one that waits, given back when dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    places: Places,
    peer: PeerId,
    bytes: usize,
}

impl Places {
    /// Room for one more of that member; none where there is none.
    pub(super) fn take(&self, peer: PeerId, bytes: usize) -> Option<Waiting> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (here, its_bytes) = taken.of.get(&peer).copied().unwrap_or_default();
        let full = taken.all >= WAITING_MAX || taken.bytes + bytes > WAITING_BYTES_MAX;
        if full || here >= WAITING_OF_MEMBER_MAX || its_bytes + bytes > WAITING_BYTES_OF_MEMBER_MAX {
            return None;
        }
        taken.of.insert(peer, (here + 1, its_bytes + bytes));
        taken.all += 1;
        taken.bytes += bytes;
        Some(Waiting { places: self.clone(), peer, bytes })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        taken.bytes -= self.bytes;
        if let Some(here) = taken.of.get_mut(&self.peer) {
            here.0 -= 1;
            here.1 -= self.bytes;
            if here.0 == 0 {
                taken.of.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_member_leaves_room_and_places_come_back() {
        let places = Places::default();
        let peer = |n| PeerId::from_bytes([n; 32]);
        let ones: Vec<_> = std::iter::from_fn(|| places.take(peer(1), 1)).collect();
        assert_eq!(ones.len(), WAITING_OF_MEMBER_MAX);
        let others: Vec<_> =
            (2..=5).flat_map(|n| std::iter::repeat_n(n, 100)).map(|n| places.take(peer(n), 1)).collect();
        assert_eq!(others.iter().flatten().count(), WAITING_MAX - WAITING_OF_MEMBER_MAX);
        drop((ones, others));
        let large: Vec<_> = std::iter::from_fn(|| places.take(peer(1), MESSAGE_BYTES_MAX)).collect();
        assert_eq!(large.len(), WAITING_BYTES_OF_MEMBER_MAX / MESSAGE_BYTES_MAX);
        assert!(places.take(peer(2), MESSAGE_BYTES_MAX).is_some(), "and another has its own");
        drop(large);
        let taken = places.0.lock().unwrap();
        assert!(taken.of.is_empty() && taken.all == 0 && taken.bytes == 0, "nothing is kept of those who are done");
    }
}
