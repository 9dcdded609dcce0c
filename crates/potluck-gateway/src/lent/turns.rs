//! Who is next to ask for a model that is lent: callers take turns, as they do for the gateway's own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{
    Problem, Whose,
    access::Caller,
    metrics::Metrics,
    queue::{FairQueue, QUEUE_MAX},
};

/// Seconds that a caller should wait where the queue is full.
const RETRY_BUSY_SECONDS: u32 = 2;

/// Turns to ask, of each model. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Turns(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lines: Mutex<BTreeMap<String, Line>>,
    metrics: Arc<Metrics>,
}

/// Who asks for one model. It is there while somebody does.
#[derive(Debug, Default)]
struct Line {
    running: usize,
    /// As its lenders said last.
    places: usize,
    queue: FairQueue<oneshot::Sender<Turn>>,
}

/// One turn; dropped, it is the next one's.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    model: String,
}

impl Turns {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared { lines: Mutex::default(), metrics }))
    }

    /// A turn to ask for that model, when it is this caller's; so many may ask at once.
    pub(crate) async fn take(&self, caller: &Caller, model: &str, places: usize) -> Result<Turn, Problem> {
        let waiting = self.enqueue(caller, model, places)?;
        let gone = |_| Problem::new(Whose::Lenders(1), "shutting_down", "the gateway is shutting down");
        waiting.await.map_err(gone)
    }

    fn enqueue(&self, caller: &Caller, model: &str, places: usize) -> Result<oneshot::Receiver<Turn>, Problem> {
        let (next, waiting) = oneshot::channel();
        let lines = &mut *self.lock();
        // Those who have hung up keep nobody out.
        lines.values_mut().for_each(|line| line.queue.retain(|waiting| !waiting.is_closed()));
        let all: usize = lines.values().map(|line| line.queue.len()).sum();
        let line = lines.entry(model.to_owned()).or_default();
        line.places = places.max(1);
        if all >= QUEUE_MAX || line.queue.push(caller.clone(), next).is_err() {
            let problem =
                Problem::new(Whose::Busy(RETRY_BUSY_SECONDS), "queue_full", format!("{all} requests wait already"));
            return Err(problem);
        }
        // There may be more places than there were.
        while let Some(next) = line.next() {
            // It waits: those who have hung up are gone, and it cannot hang up meanwhile.
            let _ = next.send(Turn { turns: self.clone(), model: model.to_owned() });
        }
        self.count(lines);
        Ok(waiting)
    }

    fn count(&self, lines: &BTreeMap<String, Line>) {
        let sum = |of: fn(&Line) -> usize| lines.values().map(of).sum();
        self.0.metrics.lent(sum(|line| line.running), sum(|line| line.queue.len()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Line>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Who gets the next place, if there is one.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let next = (self.running < self.places).then(|| self.queue.pop()).flatten()?;
        self.running += 1;
        Some(next)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let lines = &mut *self.turns.lock();
            let next = lines.get_mut(&self.model).and_then(|line| {
                line.running -= 1;
                line.next()
            });
            lines.retain(|_, line| line.running > 0 || line.queue.len() > 0);
            self.turns.count(lines);
            next
        };
        // Whoever has hung up gives it back, and so on to the next: the lock is free by then.
        if let Some(next) = next {
            let _ = next.send(Turn { turns: self.turns.clone(), model: self.model.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::QUEUE_PER_CALLER_MAX;

    fn caller(n: u8) -> Caller {
        Caller::Key([n; 32])
    }

    #[tokio::test]
    async fn callers_take_turns_and_none_is_lost() {
        let turns = Turns::new(Arc::new(Metrics::new(None)));
        let enqueue = |n| turns.enqueue(&caller(n), "m", 2).unwrap();
        let running = [turns.take(&caller(1), "m", 2).await.unwrap(), turns.take(&caller(1), "m", 2).await.unwrap()];
        let (mut first, second, mut other) = (enqueue(1), enqueue(1), enqueue(2));
        assert!(first.try_recv().is_err() && other.try_recv().is_err(), "all turns are taken");
        assert!(turns.enqueue(&caller(1), "another", 1).unwrap().try_recv().is_ok(), "of that model");
        let [one, two] = running;
        drop(one);
        let turn = first.try_recv().unwrap();
        drop((second, turn));
        let turn = other.try_recv().expect("the other's turn, before one who has hung up");
        drop((turn, two));
        // A turn that was given and never taken up comes back, too.
        drop(enqueue(3));
        assert!(turns.lock().is_empty(), "nothing is kept of those who are done");
    }

    #[tokio::test]
    async fn more_places_are_taken_at_once_and_fewer_in_time() {
        let turns = Turns::new(Arc::new(Metrics::new(None)));
        let mut waiting: Vec<_> = (0..3).map(|n| turns.enqueue(&caller(n), "m", 1).unwrap()).collect();
        let mut last = turns.enqueue(&caller(9), "m", 3).unwrap();
        let mut held: Vec<_> = waiting.iter_mut().filter_map(|waiting| waiting.try_recv().ok()).collect();
        assert_eq!(held.len(), 3);
        let mut late = turns.enqueue(&caller(9), "m", 1).unwrap();
        drop((held.pop(), held.pop()));
        assert!(last.try_recv().is_err(), "one is under way, and there is one place");
        drop(held);
        assert!(last.try_recv().is_ok() && late.try_recv().is_ok());
    }

    #[tokio::test]
    async fn one_caller_cannot_keep_the_others_out() {
        let turns = Turns::new(Arc::new(Metrics::new(None)));
        let enqueue = |n| turns.enqueue(&caller(n), "m", 1);
        let held = enqueue(1).unwrap();
        let waiting: Vec<_> = (0..QUEUE_PER_CALLER_MAX).map(|_| enqueue(1).unwrap()).collect();
        let refused = enqueue(1).unwrap_err();
        assert_eq!((refused.status(), &*refused.code), (429, "queue_full"));
        let mut other = enqueue(2).unwrap();
        drop(waiting);
        assert!(enqueue(1).is_ok(), "who has hung up makes room");
        drop(held);
        assert!(other.try_recv().is_ok());
    }
}
