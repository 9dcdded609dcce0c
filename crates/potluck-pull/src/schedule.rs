//! Which piece is asked from whom. Knows no clock and no socket.
//!
//! A source is given up to four things to do at a time, in the order in which they lie in the model, so that a
//! fast source does more of them than a slow one. What nobody else can do any more is waited for; but where everything is
//! under way and a source is idle, it is asked for what another takes too long for, and whoever is first counts. That costs
//! bytes, and has a budget.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Things that a source is asked for at once: enough to fill a line of 100 ms and 300 Mbit/s.
const UNDER_WAY_MAX: usize = 4;

/// How long something may take before it is asked from another, too; and how many times what the other takes itself.
const HEDGE_AFTER: (Duration, u32) = (Duration::from_secs(2), 3);

/// What may be asked twice, as a share of everything: one in so many bytes. One piece may be, however few there are.
const HEDGE_SHARE: u64 = 32;

/// Rest of a source that was lost: the first, doubled each time, and the longest.
const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// A source, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub usize);

/// Something to ask for. In the order in which it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// The hashes of a tensor's pieces, by its number in the manifest.
    Hashes(usize),
    /// A piece: the tensor, and its number.
    Piece(usize, u64),
}

/// What is to be asked from whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// From whom.
    pub source: SourceId,
    /// What.
    pub item: Item,
}

/// How a source failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// It was not reached, or fell silent: it rests, and is asked again.
    Lost,
    /// It does not have the tensor after all.
    NotThere,
    /// What it sent is not the model's: it is asked for nothing more.
    Lied,
}

/// What is to come, what is under way, and from whom.
#[derive(Debug)]
pub struct Schedule {
    waiting: BTreeSet<Key>,
    under_way: BTreeMap<Key, Vec<Attempt>>,
    sources: Vec<Source>,
    /// Bytes that may still be asked for twice.
    hedges: u64,
}

/// A tensor's hashes come before its pieces, and both before the next tensor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    tensor: usize,
    piece: Option<u64>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    source: SourceId,
    since: Instant,
}

#[derive(Debug)]
struct Source {
    /// The tensors that it has.
    has: BTreeSet<usize>,
    under_way: usize,
    /// What something took, at last.
    took: Option<Duration>,
    lost: u32,
    rests_until: Option<Instant>,
    lied: bool,
}

impl Item {
    fn tensor(self) -> usize {
        match self {
            Self::Hashes(tensor) | Self::Piece(tensor, _) => tensor,
        }
    }
}

impl Key {
    fn item(self) -> Item {
        self.piece.map_or(Item::Hashes(self.tensor), |number| Item::Piece(self.tensor, number))
    }
}

impl Schedule {
    /// Nothing to do yet, for a pull of so many bytes.
    pub fn new(total_bytes: u64) -> Self {
        let hedges = (total_bytes / HEDGE_SHARE).max(potluck_core::PIECE_BYTES as u64);
        Self { waiting: BTreeSet::new(), under_way: BTreeMap::new(), sources: Vec::new(), hedges }
    }

    /// Another source, which has these tensors.
    pub fn source(&mut self, has: impl IntoIterator<Item = usize>) -> SourceId {
        let has = has.into_iter().collect();
        self.sources.push(Source { has, under_way: 0, took: None, lost: 0, rests_until: None, lied: false });
        SourceId(self.sources.len() - 1)
    }

    /// Something more to ask for, of so many bytes.
    pub fn add(&mut self, item: Item, bytes: u64) {
        let piece = match item {
            Item::Hashes(_) => None,
            Item::Piece(_, number) => Some(number),
        };
        self.waiting.insert(Key { tensor: item.tensor(), piece, bytes });
    }

    /// True where nothing waits and nothing is under way.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }

    /// What to ask for next; none until something happens, or [`wake`](Self::wake) has come.
    pub fn next(&mut self, now: Instant) -> Option<Ask> {
        let mut ready: Vec<usize> = (0..self.sources.len()).filter(|&s| self.sources[s].is_ready(now)).collect();
        ready.sort_by_key(|&s| self.sources[s].under_way);
        for s in ready {
            let (id, source) = (SourceId(s), &self.sources[s]);
            let waits = self.waiting.iter().find(|key| source.has.contains(&key.tensor)).copied();
            let key = match waits {
                Some(key) => {
                    self.waiting.remove(&key);
                    key
                }
                None => match self.overdue(id, now) {
                    Some(key) => {
                        self.hedges = self.hedges.saturating_sub(key.bytes);
                        key
                    }
                    None => continue,
                },
            };
            self.under_way.entry(key).or_default().push(Attempt { source: id, since: now });
            self.sources[s].under_way += 1;
            return Some(Ask { source: id, item: key.item() });
        }
        None
    }

    /// Something that another takes too long for, as this source knows from itself.
    fn overdue(&self, by: SourceId, now: Instant) -> Option<Key> {
        let source = &self.sources[by.0];
        let due = due(source);
        let late = |attempts: &Vec<Attempt>| match attempts.as_slice() {
            [one] => one.source != by && now.saturating_duration_since(one.since) >= due,
            _ => false,
        };
        let can = |key: &Key| source.has.contains(&key.tensor) && key.bytes <= self.hedges;
        let mut found = self.under_way.iter().filter(|(key, attempts)| late(attempts) && can(key));
        found.next().map(|(key, _)| *key).filter(|_| source.under_way == 0)
    }

    /// When to look again although nothing has happened: a source has rested, or something may be overdue.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        let rested = self.sources.iter().filter(|source| !source.lied).filter_map(|source| source.rests_until);
        let idle = self.sources.iter().filter(|source| source.is_ready(now) && source.under_way == 0);
        let shortest = idle.map(due).min();
        let overdue = shortest.into_iter().flat_map(|due| {
            let single = self.under_way.values().filter(|attempts| attempts.len() == 1);
            single.map(move |attempts| attempts[0].since + due)
        });
        rested.chain(overdue).filter(|&at| at > now).min()
    }

    /// It has come. Whoever else was asked for it need not go on.
    pub fn done(&mut self, ask: Ask, now: Instant) -> Vec<SourceId> {
        let Some((key, attempts)) = self.take(ask.item) else { return Vec::new() };
        debug_assert_eq!(key.item(), ask.item);
        for attempt in &attempts {
            let source = &mut self.sources[attempt.source.0];
            source.under_way -= 1;
            if attempt.source == ask.source {
                source.took = Some(now.saturating_duration_since(attempt.since));
                source.lost = 0;
                source.rests_until = None;
            }
        }
        attempts.iter().map(|attempt| attempt.source).filter(|source| *source != ask.source).collect()
    }

    /// It did not come: somebody else is asked.
    pub fn failed(&mut self, ask: Ask, why: Setback, now: Instant) {
        let Some((key, mut attempts)) = self.take(ask.item) else { return };
        let before = attempts.len();
        attempts.retain(|attempt| attempt.source != ask.source);
        let gave_up = before - attempts.len();
        if attempts.is_empty() {
            self.waiting.insert(key);
        } else {
            self.under_way.insert(key, attempts);
        }
        let source = &mut self.sources[ask.source.0];
        source.under_way -= gave_up;
        match why {
            Setback::Lied => source.lied = true,
            Setback::NotThere => {
                source.has.remove(&key.tensor);
            }
            // What was under way with it fails together, and counts once.
            Setback::Lost if source.rests_until.is_some_and(|until| now < until) => {}
            Setback::Lost => {
                let rest = REST.0.saturating_mul(1 << source.lost.min(8)).min(REST.1);
                source.lost += 1;
                source.rests_until = Some(now + rest);
            }
        }
    }

    /// Something that no source has any more.
    pub fn stuck(&self) -> Option<Item> {
        let anybody = |key: &&Key| self.sources.iter().any(|source| !source.lied && source.has.contains(&key.tensor));
        self.waiting.iter().find(|key| !anybody(key)).map(|key| key.item())
    }

    /// The first thing that waits.
    pub fn first_waiting(&self) -> Option<Item> {
        self.waiting.iter().chain(self.under_way.keys()).next().map(|key| key.item())
    }

    fn take(&mut self, item: Item) -> Option<(Key, Vec<Attempt>)> {
        let key = *self.under_way.keys().find(|key| key.item() == item)?;
        self.under_way.remove(&key).map(|attempts| (key, attempts))
    }
}

impl Source {
    fn is_ready(&self, now: Instant) -> bool {
        !self.lied && self.under_way < UNDER_WAY_MAX && self.rests_until.is_none_or(|until| now >= until)
    }
}

fn due(source: &Source) -> Duration {
    source.took.map_or(HEDGE_AFTER.0, |took| (took * HEDGE_AFTER.1).max(HEDGE_AFTER.0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const PIECE: u64 = 1 << 20;

    fn with_pieces(pieces: u64, sources: usize) -> (Schedule, Instant) {
        let mut schedule = Schedule::new(pieces * PIECE);
        (0..pieces).for_each(|n| schedule.add(Item::Piece(0, n), PIECE));
        for _ in 0..sources {
            schedule.source([0]);
        }
        (schedule, Instant::now())
    }

    fn all(schedule: &mut Schedule, now: Instant) -> Vec<Ask> {
        std::iter::from_fn(|| schedule.next(now)).collect()
    }

    #[test]
    fn sources_share_the_work_in_the_model_s_order() {
        let (mut schedule, now) = with_pieces(20, 3);
        let asked = all(&mut schedule, now);
        assert_eq!(asked.len(), 3 * UNDER_WAY_MAX);
        let pieces: Vec<_> = asked.iter().map(|ask| ask.item).collect();
        assert_eq!(pieces, (0..12).map(|n| Item::Piece(0, n)).collect::<Vec<_>>());
        for s in 0..3 {
            assert_eq!(asked.iter().filter(|ask| ask.source == SourceId(s)).count(), UNDER_WAY_MAX);
        }
        assert_eq!(schedule.done(asked[0], now), []);
        assert_eq!(schedule.next(now), Some(Ask { source: asked[0].source, item: Item::Piece(0, 12) }));
    }

    #[test]
    fn nobody_is_asked_for_what_it_does_not_have() {
        let (mut schedule, now) = with_pieces(4, 1);
        let other = schedule.source([1]);
        schedule.add(Item::Hashes(1), 32);
        schedule.add(Item::Hashes(2), 32);
        let asked = all(&mut schedule, now);
        assert!(asked.contains(&Ask { source: other, item: Item::Hashes(1) }));
        assert_eq!(asked.len(), 5);
        assert_eq!(schedule.stuck(), Some(Item::Hashes(2)));
    }

    #[test]
    fn what_takes_too_long_is_asked_from_another_and_the_first_counts() {
        let (mut schedule, start) = with_pieces(40, 2);
        let asked = all(&mut schedule, start);
        let slow: Vec<_> = asked.iter().copied().filter(|ask| ask.source == SourceId(1)).collect();
        // Source 0 does all the rest while source 1 does nothing.
        let mut todo: Vec<_> = asked.into_iter().filter(|ask| ask.source == SourceId(0)).collect();
        let mut now = start;
        while let Some(ask) = todo.pop() {
            now += Duration::from_millis(10);
            assert_eq!(schedule.done(ask, now), []);
            todo.extend(all(&mut schedule, now));
        }
        assert_eq!(schedule.next(now), None, "it is not late yet");
        let wake = schedule.wake(now).unwrap();
        assert_eq!(wake, start + HEDGE_AFTER.0);
        let hedge = schedule.next(wake).unwrap();
        assert_eq!(hedge, Ask { source: SourceId(0), item: slow[0].item });
        assert_eq!(schedule.done(hedge, wake), [SourceId(1)], "the other is told to stop");
        assert_eq!(schedule.next(wake), None, "the budget is one in {HEDGE_SHARE}");
        schedule.failed(slow[1], Setback::Lost, wake);
        assert_eq!(
            schedule.next(wake),
            Some(Ask { source: SourceId(0), item: slow[1].item }),
            "what failed waits again"
        );
    }

    #[test]
    fn who_is_lost_rests_longer_each_time_and_who_lies_is_never_asked_again() {
        let (mut schedule, mut now) = with_pieces(8, 1);
        let mut rests = Vec::new();
        for _ in 0..7 {
            let asked = all(&mut schedule, now);
            asked.iter().for_each(|&ask| schedule.failed(ask, Setback::Lost, now));
            assert_eq!(schedule.next(now), None);
            let wake = schedule.wake(now).unwrap();
            rests.push((wake - now).as_millis());
            now = wake;
        }
        assert_eq!(rests, [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        assert_eq!(schedule.stuck(), None, "it may come back");
        let ask = schedule.next(now).unwrap();
        schedule.failed(ask, Setback::Lied, now);
        assert_eq!(schedule.next(now), None);
        assert_eq!(schedule.stuck(), Some(Item::Piece(0, 0)));
    }

    proptest! {
        /// Whatever sources do, each piece is counted once, and what is asked for twice keeps to its budget.
        #[test]
        fn everything_comes_once(
            pieces in 1u64..60,
            sources in 1usize..5,
            events in proptest::collection::vec((0usize..20, 0u8..10, 0u64..3_000), 1..400),
        ) {
            let (mut schedule, mut now) = with_pieces(pieces, sources);
            let (mut open, mut came, mut twice) = (Vec::<Ask>::new(), BTreeMap::new(), 0);
            let take = |schedule: &mut Schedule, open: &mut Vec<Ask>, now| {
                for ask in all(schedule, now) {
                    twice += u64::from(open.iter().any(|other| other.item == ask.item));
                    open.push(ask);
                }
            };
            let mut take = take;
            take(&mut schedule, &mut open, now);
            for (which, what, ms) in events {
                now += Duration::from_millis(ms);
                if !open.is_empty() {
                    let ask = open.remove(which % open.len());
                    if what < 7 {
                        *came.entry(ask.item).or_insert(0) += 1;
                        for other in schedule.done(ask, now) {
                            open.retain(|o| !(o.source == other && o.item == ask.item));
                        }
                    } else {
                        schedule.failed(ask, if what < 9 { Setback::Lost } else { Setback::NotThere }, now);
                        if what == 9 {
                            // It has it again.
                            schedule.sources[ask.source.0].has.insert(0);
                        }
                    }
                }
                take(&mut schedule, &mut open, now);
            }
            while !schedule.is_done() {
                now += Duration::from_secs(10);
                take(&mut schedule, &mut open, now);
                if let Some(ask) = open.pop() {
                    *came.entry(ask.item).or_insert(0) += 1;
                    for other in schedule.done(ask, now) {
                        open.retain(|o| !(o.source == other && o.item == ask.item));
                    }
                }
            }
            prop_assert_eq!(came.len() as u64, pieces);
            prop_assert!(came.values().all(|&n| n == 1), "{:?}", came);
            prop_assert!(twice * PIECE <= (pieces * PIECE / HEDGE_SHARE).max(PIECE), "{twice} of {pieces}");
            prop_assert!(schedule.sources.iter().all(|source| source.under_way == 0));
        }
    }
}
