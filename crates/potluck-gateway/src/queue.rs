//! Who is next: callers take turns, however much each has waiting.

use std::collections::{BTreeMap, VecDeque};

use crate::access::Caller;

/// Requests that wait, over all callers. The next one is refused with 429.
pub const QUEUE_MAX: usize = 256;

/// Requests of one caller that wait. The next one is refused with 429: the others keep their places.
pub(crate) const QUEUE_PER_CALLER_MAX: usize = 64;

const _: () = assert!(QUEUE_PER_CALLER_MAX <= QUEUE_MAX);

/// Requests in a row that may pass by those who yield; then one of theirs is next.
const PASSED_MAX: u32 = 15;

/// What waits, by whom.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    waiting: BTreeMap<Caller, VecDeque<T>>,
    /// Callers with something waiting, each once, in the order in which they are served.
    turn: VecDeque<Caller>,
    len: usize,
    /// Requests since the last of those who yield, while one of them waited.
    passed: u32,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), turn: VecDeque::new(), len: 0, passed: 0 }
    }
}

impl<T> FairQueue<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Puts `item` at the end of its caller's line; gives it back where there is no room.
    pub(crate) fn push(&mut self, caller: Caller, item: T) -> Result<(), T> {
        let line = self.waiting.entry(caller.clone()).or_default();
        if self.len >= QUEUE_MAX || line.len() >= QUEUE_PER_CALLER_MAX {
            if line.is_empty() {
                self.waiting.remove(&caller);
            }
            return Err(item);
        }
        if line.is_empty() {
            self.turn.push_back(caller);
        }
        line.push_back(item);
        self.len += 1;
        Ok(())
    }

    /// The next one; its caller goes to the end of the turn. Those who yield are next where nobody else waits, and after [`PASSED_MAX`] others.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let one_yields = self.turn.iter().any(Caller::yields);
        let theirs = one_yields && self.passed >= PASSED_MAX;
        let next = self.turn.iter().position(|caller| caller.yields() == theirs).unwrap_or(0);
        let caller = self.turn.remove(next)?;
        self.passed = if one_yields && !caller.yields() { self.passed + 1 } else { 0 };
        let line = self.waiting.get_mut(&caller)?;
        let item = line.pop_front();
        self.len -= usize::from(item.is_some());
        if line.is_empty() {
            self.waiting.remove(&caller);
        } else {
            self.turn.push_back(caller);
        }
        item
    }

    /// Lets go of what nobody waits for any more.
    pub(crate) fn retain(&mut self, mut wanted: impl FnMut(&T) -> bool) {
        self.waiting.values_mut().for_each(|line| line.retain(&mut wanted));
        self.waiting.retain(|_, line| !line.is_empty());
        self.turn.retain(|caller| self.waiting.contains_key(caller));
        self.len = self.waiting.values().map(VecDeque::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use potluck_grant::Caveats;

    use super::*;

    fn caller(n: u8) -> Caller {
        Caller::Key([n; 32])
    }

    #[test]
    fn callers_take_turns_and_each_keeps_its_order() {
        let mut queue = FairQueue::default();
        for (who, what) in [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (3, "c1"), (2, "b2")] {
            queue.push(caller(who), what).unwrap();
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert_eq!((queue.len(), queue.turn.len(), queue.waiting.len()), (0, 0, 0));
    }

    #[test]
    fn who_yields_waits_for_all_others_and_does_not_starve() {
        let (yielding, _) = crate::granted::tests::guest_of(Caveats { yields: true, ..Caveats::default() });
        let mut queue = FairQueue::default();
        (0..2).for_each(|_| queue.push(Caller::Granted(yielding.clone()), "batch").unwrap());
        (0..40).for_each(|_| queue.push(caller(1), "chat").unwrap());
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        let at: Vec<_> = (0..).zip(&order).filter(|(_, what)| **what == "batch").map(|(at, _)| at).collect();
        assert_eq!((order.len(), at), (42, vec![PASSED_MAX, 2 * PASSED_MAX + 1]));
    }

    #[test]
    fn one_caller_cannot_fill_the_queue_and_all_together_cannot_overfill_it() {
        let mut queue = FairQueue::default();
        let mut refused = 0;
        for who in 0..8 {
            for n in 0..QUEUE_PER_CALLER_MAX + 1 {
                refused += usize::from(queue.push(caller(who), n).is_err());
            }
        }
        assert_eq!(queue.len(), QUEUE_MAX);
        assert_eq!(refused, 8 * (QUEUE_PER_CALLER_MAX + 1) - QUEUE_MAX);
        assert_eq!(queue.waiting.len(), QUEUE_MAX / QUEUE_PER_CALLER_MAX, "nothing is kept of those who were refused");
    }

    #[test]
    fn who_is_gone_waits_no_longer() {
        let mut queue = FairQueue::default();
        (0..4).for_each(|n| queue.push(caller(n % 2), n).unwrap());
        queue.retain(|n| n % 2 == 1);
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(queue.len(), 0);
    }
}
