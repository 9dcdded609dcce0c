//! The queue in front of a stage: which steps run next, and which caches are taken.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use potluck_core::{CacheId, PeerId, SessionKey, StageShape, Step};

use crate::company::Company;

/// Rows of the steps that may share a batch: beyond it, width gains nothing on the machines that we measured
/// (`docs/architecture.md`), and a short step would wait for long ones.
const SHARED_ROWS_MAX: usize = 8;

/// Batches in a row that may pass by those who yield; then one of theirs runs.
const PASSED_MAX: u32 = 15;

/// Longest that a stage rests after a batch: clients wait two minutes for a step. What takes so long for a share of 20 per cent to rest
/// longer is a peer that stood still.
const REST_MAX: Duration = Duration::from_secs(60);

/// Clients of which it is known when they were served last. Of more, those served longest ago count as new.
const CLIENTS_KNOWN_MAX: usize = 1_024;

/// A step that waits, and where its result belongs.
#[derive(Debug)]
pub(crate) struct Queued {
    /// Tells this session from another that had the same name.
    pub(crate) serial: u64,
    pub(crate) sequence: u32,
    pub(crate) count: u16,
    pub(crate) arrived: Instant,
    /// Others go first: its client's grant says so.
    pub(crate) yields: bool,
    /// None: it is skipped when it is its turn.
    pub(crate) step: Option<Step>,
}

impl Queued {
    fn bytes(&self) -> usize {
        match self.step.as_ref().map(|step| &step.input) {
            Some(potluck_core::Input::Tokens(tokens)) => size_of_val(&tokens[..]),
            Some(potluck_core::Input::Hidden(hidden)) => size_of_val(&hidden.0[..]),
            None => 0,
        }
    }

    fn running(&self, session: SessionKey) -> Running {
        let Self { serial, sequence, count, arrived, .. } = *self;
        Running { session, serial, sequence, count, arrived }
    }
}

/// What a batch that runs was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) session: SessionKey,
    pub(crate) serial: u64,
    pub(crate) sequence: u32,
    pub(crate) count: u16,
    pub(crate) arrived: Instant,
}

/// A batch that runs.
#[derive(Debug)]
pub(crate) struct Batch {
    number: u64,
    pub(crate) begun: Instant,
    pub(crate) steps: Vec<Running>,
    /// Until when the stage had rested.
    rested_until: Option<Instant>,
}

impl Batch {
    /// How long a step of it has waited for others, and for the stage to have rested.
    pub(crate) fn waited(&self, step: &Running) -> (Duration, Duration) {
        let rested =
            self.rested_until.map_or(step.arrived, |until| until.clamp(step.arrived, self.begun.max(step.arrived)));
        (self.begun.saturating_duration_since(rested), rested.saturating_duration_since(step.arrived))
    }
}

/// One stage as its peer sees it.
#[derive(Debug)]
pub(crate) struct StageQueue {
    shape: StageShape,
    ready: bool,
    /// Sessions with steps waiting, each once, in the order in which they are served.
    turn: VecDeque<SessionKey>,
    waiting: BTreeMap<SessionKey, VecDeque<Queued>>,
    running: Option<Batch>,
    batches: u64,
    last_was_long: bool,
    /// In which batch each client was served last.
    served: BTreeMap<PeerId, u64>,
    /// Batches since one ran of those who yield, while one of them waited.
    passed: u32,
    company: Company,
    caches: BTreeSet<CacheId>,
    /// Caches of sessions that ended before the engine had answered their opening: the answer must not be taken for that of
    /// the next session.
    owed: BTreeSet<CacheId>,
    waiting_bytes: usize,
    /// Per cent of the time in which it may run.
    share: u8,
    /// No batch begins before that.
    rests_until: Option<Instant>,
}

impl StageQueue {
    pub(crate) fn new(shape: StageShape) -> Self {
        Self {
            shape,
            ready: true,
            turn: VecDeque::new(),
            waiting: BTreeMap::new(),
            running: None,
            batches: 0,
            last_was_long: false,
            served: BTreeMap::new(),
            passed: 0,
            company: Company::default(),
            caches: BTreeSet::new(),
            owed: BTreeSet::new(),
            waiting_bytes: 0,
            share: 100,
            rests_until: None,
        }
    }

    /// It runs for so many per cent of the time at most: after each batch it rests until that holds.
    pub(crate) fn limit_share(&mut self, per_cent: u8) {
        self.share = per_cent.clamp(1, 100);
    }

    /// How long it rests after a batch that took so long.
    fn rest_after(&self, ran: Duration) -> Duration {
        (ran * u32::from(100 - self.share) / u32::from(self.share)).min(REST_MAX)
    }

    pub(crate) fn shape(&self) -> &StageShape {
        &self.shape
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Caches that no session holds.
    pub(crate) fn free_caches(&self) -> u16 {
        self.shape.caches.saturating_sub(self.caches.len() as u16)
    }

    /// The lowest cache that is free.
    pub(crate) fn take_cache(&mut self) -> Option<CacheId> {
        let cache = (0..self.shape.caches).map(CacheId).find(|cache| !self.caches.contains(cache))?;
        self.caches.insert(cache);
        Some(cache)
    }

    /// A session is over: its waiting steps are dropped, and its cache is free, as soon as the engine has answered its
    /// opening. A step that runs is left to end.
    pub(crate) fn forget(&mut self, session: SessionKey, cache: CacheId, opened: bool) {
        if opened {
            self.caches.remove(&cache);
        } else {
            self.owed.insert(cache);
        }
        let dropped = self.waiting.remove(&session).into_iter().flatten();
        self.waiting_bytes -= dropped.map(|queued| queued.bytes()).sum::<usize>();
        self.turn.retain(|key| *key != session);
        self.company.forget(session);
    }

    /// The engine answered an opening; true if the session that asked is gone, and the cache free now.
    pub(crate) fn settle(&mut self, cache: CacheId) -> bool {
        let owed = self.owed.remove(&cache);
        if owed {
            self.caches.remove(&cache);
        }
        owed
    }

    /// Bytes of the steps that wait, as the engine will take them.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Of the client whose steps take the most room, the session whose take the most.
    pub(crate) fn heaviest(&self) -> Option<SessionKey> {
        let bytes = |steps: &VecDeque<Queued>| steps.iter().map(Queued::bytes).sum::<usize>();
        let mut of_clients = BTreeMap::<PeerId, usize>::new();
        for (key, steps) in &self.waiting {
            *of_clients.entry(key.client).or_default() += bytes(steps);
        }
        let weight =
            |(key, steps): &(&SessionKey, &VecDeque<Queued>)| (of_clients.get(&key.client).copied(), bytes(steps));
        self.waiting.iter().max_by_key(weight).map(|(key, _)| *key)
    }

    pub(crate) fn push(&mut self, session: SessionKey, queued: Queued) {
        self.waiting_bytes += queued.bytes();
        self.company.came(session, queued.arrived);
        let steps = self.waiting.entry(session).or_default();
        if steps.is_empty() && !self.turn.contains(&session) {
            self.turn.push_back(session);
        }
        steps.push_back(queued);
    }

    /// A step is about to come that makes those of its session useless which start there or later: they are skipped.
    pub(crate) fn fence(&mut self, session: SessionKey, start: u32) {
        for queued in self.waiting.get_mut(&session).into_iter().flatten() {
            if queued.step.as_ref().is_some_and(|step| step.start >= start) {
                self.waiting_bytes -= queued.bytes();
                queued.step = None;
            }
        }
    }

    /// Steps whose turn it is to be skipped. While a batch runs it is nobody's.
    pub(crate) fn skipped(&mut self) -> Vec<Running> {
        if self.running.is_some() {
            return Vec::new();
        }
        let mut skipped = Vec::new();
        let sessions: Vec<_> = self.turn.iter().copied().collect();
        for session in sessions {
            let waiting = self.waiting.get_mut(&session);
            let Some(waiting) = waiting.filter(|waiting| waiting.front().is_some_and(|next| next.step.is_none()))
            else {
                continue;
            };
            let in_vain = waiting.iter().take_while(|next| next.step.is_none()).count();
            skipped.extend(waiting.drain(..in_vain).map(|next| next.running(session)));
            if waiting.is_empty() {
                self.waiting.remove(&session);
                self.turn.retain(|key| *key != session);
            }
        }
        skipped
    }

    /// Steps that wait, over all sessions.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// The next batch, if the stage is idle and something waits.
    ///
    /// Exact: one step. Otherwise the steps of as many sessions as have the same, small number of rows as the first
    /// in turn. Short and long steps alternate where both wait, so that neither a prefill nor a decode starves. Where short
    /// ones alone wait, they wait a little longer for those that are due ([`Company`]). Those who yield run where nobody else waits, and
    /// after [`PASSED_MAX`] batches of others.
    pub(crate) fn next_batch(&mut self, now: Instant) -> Option<(u64, Vec<Step>)> {
        if !self.ready || self.running.is_some() || self.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        let Some(first) = self.choose() else {
            self.company.begun();
            return None;
        };
        let rows = self.front_rows(first)?;
        let alone = self.shape.exact || rows > SHARED_ROWS_MAX;
        if !alone && !self.last_was_long && self.company.is_due(now) {
            return None;
        }
        let shared = if alone {
            vec![first]
        } else {
            // Company costs time: whoever goes first has none of those who yield.
            let welcome = |key: &SessionKey| self.yields(first) || !self.yields(*key);
            let alike = self.turn.iter().copied().filter(|key| self.front_rows(*key) == Some(rows) && welcome(key));
            let mut shared: Vec<_> = alike.take(usize::from(self.shape.caches)).collect();
            if !shared.contains(&first) {
                shared.insert(0, first);
            }
            shared
        };
        self.last_was_long = rows > SHARED_ROWS_MAX;
        let is_passed_by = !self.yields(first) && self.turn.iter().any(|key| self.yields(*key));
        self.passed = if is_passed_by { self.passed + 1 } else { 0 };
        let mut running = Vec::new();
        let mut steps = Vec::new();
        for session in shared {
            let Some(queued) = self.pop(session) else { continue };
            running.push(queued.running(session));
            steps.extend(queued.step);
            self.served.insert(session.client, self.batches + 1);
        }
        while self.served.len() > CLIENTS_KNOWN_MAX
            && let Some(client) = self.served.iter().min_by_key(|(_, batch)| **batch).map(|(client, _)| *client)
        {
            self.served.remove(&client);
        }
        self.company.begun();
        self.batches += 1;
        self.running =
            Some(Batch { number: self.batches, begun: now, steps: running, rested_until: self.rests_until.take() });
        Some((self.batches, steps))
    }

    /// The batch that ended, if it is the one that runs.
    pub(crate) fn finish(&mut self, batch: u64, now: Instant) -> Option<Batch> {
        let ended = self.running.take_if(|running| running.number == batch)?;
        let ran = now.saturating_duration_since(ended.begun);
        self.rests_until = Some(self.rest_after(ran)).filter(|rest| !rest.is_zero()).map(|rest| now + rest);
        if !self.shape.exact && !self.last_was_long {
            let sessions = ended.steps.iter().map(|step| step.session);
            // Whoever has sent more is here.
            let sessions = sessions.filter(|session| !self.waiting.contains_key(session));
            self.company.ran(sessions, now, ran);
        }
        Some(ended)
    }

    /// Until when the steps that wait are held back at most.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        let rests_until = self.rests_until.filter(|_| !self.turn.is_empty());
        rests_until.max(self.company.held_until())
    }

    /// The engine is gone, and every cache with it.
    pub(crate) fn lose(&mut self) {
        self.ready = false;
        self.running = None;
        self.rests_until = None;
        self.company = Company::default();
        self.turn.clear();
        (self.served, self.passed) = Default::default();
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.owed.clear();
        self.caches.clear();
    }

    /// The engine is back, empty.
    pub(crate) fn revive(&mut self, shape: StageShape) {
        self.shape = shape;
        self.ready = true;
    }

    /// Whose turn it is: of those alike, the client that was served longest ago, however many sessions it has.
    fn choose(&self) -> Option<SessionKey> {
        let is_long = |key: SessionKey| self.front_rows(key).is_some_and(|rows| rows > SHARED_ROWS_MAX);
        let rank = |key: &&SessionKey| {
            let due = self.passed >= PASSED_MAX;
            let yields = self.yields(**key) != due;
            let served = self.served.get(&key.client).copied().unwrap_or(0);
            (yields, is_long(**key) == self.last_was_long, served)
        };
        self.turn.iter().min_by_key(rank).copied()
    }

    fn yields(&self, session: SessionKey) -> bool {
        self.waiting.get(&session).and_then(VecDeque::front).is_some_and(|queued| queued.yields)
    }

    fn front_rows(&self, session: SessionKey) -> Option<usize> {
        self.waiting.get(&session)?.front().map(|queued| usize::from(queued.count))
    }

    fn pop(&mut self, session: SessionKey) -> Option<Queued> {
        let steps = self.waiting.get_mut(&session)?;
        let queued = steps.pop_front();
        self.waiting_bytes -= queued.as_ref().map_or(0, Queued::bytes);
        self.turn.retain(|key| *key != session);
        if steps.is_empty() {
            self.waiting.remove(&session);
        } else {
            self.turn.push_back(session);
        }
        queued
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test is its own driver")]
mod tests {
    use super::*;
    use potluck_core::{Input, LayerRange, ModelId, PeerId, Rows, SessionId, StageSpec, Tree};

    fn queue(exact: bool) -> StageQueue {
        StageQueue::new(StageShape {
            spec: StageSpec {
                model: ModelId::from_bytes([0; 32]),
                layers: LayerRange::new(0, 1).unwrap(),
                head: true,
                tail: true,
            },
            width: 4,
            vocabulary: 8,
            caches: 4,
            context: 64,
            cache_bytes_per_position: 1,
            weight_bytes: 1,
            exact,
        })
    }

    fn key(n: u8) -> SessionKey {
        SessionKey { client: PeerId::from_bytes([n; 32]), id: SessionId::from_bytes([n; 16]) }
    }

    fn push(queue: &mut StageQueue, session: u8, sequence: u32, count: u16) {
        push_at(queue, session, sequence, count, Instant::now());
    }

    fn push_at(queue: &mut StageQueue, session: u8, sequence: u32, count: u16, arrived: Instant) {
        let input = Input::Tokens(vec![0; count.into()]);
        let (rows, tree) = (Rows::Last, Tree::chain());
        let step = Some(Step { cache: CacheId(session.into()), start: 0, input, rows, top: 1, tree });
        queue.push(key(session), Queued { serial: 0, sequence, count, arrived, yields: false, step });
    }

    fn next(queue: &mut StageQueue) -> Option<(u64, Vec<Step>)> {
        queue.next_batch(Instant::now())
    }

    fn run(queue: &mut StageQueue) -> Vec<(u8, u32)> {
        let (batch, _) = next(queue).unwrap();
        assert!(next(queue).is_none(), "one batch at a time");
        queue
            .finish(batch, Instant::now())
            .unwrap()
            .steps
            .iter()
            .map(|r| (r.session.client.as_bytes()[0], r.sequence))
            .collect()
    }

    #[test]
    fn a_stage_rests_until_it_has_run_for_its_share_of_the_time() {
        let mut queue = queue(true);
        queue.limit_share(25);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        (0..3).for_each(|sequence| push_at(&mut queue, 1, sequence, 1, start));
        assert_eq!(queue.held_until(), None);
        let (batch, _) = queue.next_batch(start).unwrap();
        assert!(queue.finish(batch, at(30)).is_some());
        assert_eq!(queue.held_until(), Some(at(120)), "three times as long as it ran");
        assert!(queue.next_batch(at(119)).is_none());
        let (batch, _) = queue.next_batch(at(121)).unwrap();
        assert_eq!(queue.held_until(), None, "it runs");
        let ran = queue.finish(batch, at(131)).unwrap();
        let ms = Duration::from_millis;
        assert_eq!(ran.waited(&ran.steps[0]), (ms(1), ms(120)), "the rest is the stage's own time");
        // Whoever comes later than that does not wait, and nobody is waited for.
        let (batch, _) = queue.next_batch(at(200)).unwrap();
        let ran = queue.finish(batch, at(210)).unwrap();
        assert_eq!(ran.waited(&ran.steps[0]), (ms(39), ms(161)));
        assert_eq!(queue.held_until(), None, "nothing waits");
        push_at(&mut queue, 1, 3, 1, at(215));
        assert_eq!(queue.held_until(), Some(at(240)));
        // However long it stood still.
        let (batch, _) = queue.next_batch(at(240)).unwrap();
        assert!(queue.finish(batch, at(100_240)).is_some());
        push_at(&mut queue, 1, 4, 1, at(100_240));
        assert_eq!(queue.held_until(), Some(at(100_240) + REST_MAX));
        // A new engine has not run yet.
        queue.lose();
        queue.revive(queue.shape.clone());
        push_at(&mut queue, 1, 0, 1, at(100_250));
        assert!(queue.next_batch(at(100_250)).is_some());
        // All the time is no rest.
        let mut all = self::queue(true);
        push_at(&mut all, 1, 0, 1, start);
        push_at(&mut all, 1, 1, 1, start);
        let (batch, _) = all.next_batch(start).unwrap();
        assert!(all.finish(batch, at(30)).is_some() && all.next_batch(at(30)).is_some());
    }

    #[test]
    fn single_steps_share_a_batch_and_a_session_keeps_its_order() {
        let mut queue = queue(false);
        for (session, sequence) in [(1, 0), (1, 1), (2, 0), (3, 0)] {
            push(&mut queue, session, sequence, 1);
        }
        assert_eq!(run(&mut queue), [(1, 0), (2, 0), (3, 0)]);
        assert_eq!(run(&mut queue), [(1, 1)]);
        assert!(next(&mut queue).is_none());
    }

    #[test]
    fn sessions_that_took_turns_come_to_share_a_batch() {
        let mut queue = queue(false);
        let start = Instant::now();
        let at = |ms: u64| start + std::time::Duration::from_millis(ms);
        let came = |queue: &mut StageQueue, session: u8, ms: u64| push_at(queue, session, 0, 1, at(ms));
        let sessions = |queue: &StageQueue| queue.running.as_ref().unwrap().steps.len();
        came(&mut queue, 1, 0);
        for (other, begun) in [(2, 0), (1, 40), (2, 80)] {
            // One runs for 40 ms; the other, that was answered before, is back after one.
            let (batch, _) = queue.next_batch(at(begun)).unwrap();
            assert_eq!(sessions(&queue), 1);
            came(&mut queue, other, begun + 1);
            queue.finish(batch, at(begun + 40)).unwrap();
        }
        assert!(queue.next_batch(at(120)).is_none(), "the other is due");
        assert!(queue.held_until().is_some_and(|until| until > at(121) && until < at(122)));
        came(&mut queue, 1, 121);
        assert!(queue.next_batch(at(121)).is_some());
        assert_eq!((sessions(&queue), queue.held_until()), (2, None));

        // One that has sent two steps at once is not waited for: it is here.
        let batch = queue.batches;
        came(&mut queue, 2, 122);
        queue.finish(batch, at(141)).unwrap();
        assert!(queue.next_batch(at(141)).is_none(), "the other one is");
        came(&mut queue, 1, 142);
        assert_eq!((queue.next_batch(at(142)).is_some(), sessions(&queue)), (true, 2));

        // Whoever is gone, or late, holds nobody up.
        let batch = queue.batches;
        queue.finish(batch, at(161)).unwrap();
        came(&mut queue, 2, 162);
        assert!(queue.next_batch(at(162)).is_none());
        queue.forget(key(1), CacheId(1), true);
        assert!(queue.next_batch(at(162)).is_some());
    }

    #[test]
    fn exact_runs_one_step_at_a_time_in_turn() {
        let mut queue = queue(true);
        for (session, sequence) in [(1, 0), (1, 1), (2, 0)] {
            push(&mut queue, session, sequence, 1);
        }
        assert_eq!([run(&mut queue), run(&mut queue), run(&mut queue)], [[(1, 0)], [(2, 0)], [(1, 1)]]);
    }

    #[test]
    fn prefill_and_decode_alternate() {
        let mut queue = queue(false);
        push(&mut queue, 1, 0, 1);
        for sequence in 0..3 {
            push(&mut queue, 2, sequence, 512);
        }
        let mut order = vec![];
        for sequence in 1..4 {
            order.extend(run(&mut queue).iter().map(|(session, _)| *session));
            push(&mut queue, 1, sequence, 1);
        }
        assert_eq!(order, [2, 1, 2], "a long step never waits for more than one short batch, nor the reverse");
    }

    /// A step of a client's session.
    fn wait(queue: &mut StageQueue, arrived: Instant, (client, id): (u8, u8), yields: bool) {
        let key = SessionKey { client: PeerId::from_bytes([client; 32]), id: SessionId::from_bytes([id; 16]) };
        let (input, rows, tree) = (Input::Tokens(vec![0]), Rows::None, Tree::chain());
        let step = Some(Step { cache: CacheId(id.into()), start: 0, input, rows, top: 0, tree });
        queue.push(key, Queued { serial: 0, sequence: 0, count: 1, arrived, yields, step });
    }

    fn run_at(queue: &mut StageQueue, at: Instant) -> Vec<u8> {
        let (batch, _) = queue.next_batch(at).unwrap();
        let ended = queue.finish(batch, at).unwrap();
        ended.steps.iter().map(|step| step.session.id.as_bytes()[0]).collect()
    }

    #[test]
    fn clients_take_turns_however_many_sessions_each_has() {
        let (mut queue, at) = (queue(true), Instant::now());
        for _ in 0..2 {
            (1..=3).for_each(|id| wait(&mut queue, at, (1, id), false));
            wait(&mut queue, at, (2, 9), false);
        }
        let order: Vec<_> = (0..8).flat_map(|_| run_at(&mut queue, at)).collect();
        assert_eq!(order, [1, 9, 2, 9, 3, 1, 2, 3], "the other has every second turn for as long as it waits");
    }

    #[test]
    fn who_yields_waits_for_all_others_and_does_not_starve() {
        let (mut queue, at) = (queue(false), Instant::now());
        (0..2).for_each(|_| wait(&mut queue, at, (1, 1), true));
        assert_eq!(run_at(&mut queue, at), [1], "nobody else waits");
        let mut order = Vec::new();
        for _ in 0..40 {
            wait(&mut queue, at, (2, 2), false);
            order.push(run_at(&mut queue, at));
        }
        // It does not share their batches either; in its own turn all are welcome.
        let turn = order.iter().position(|ids| ids.contains(&1)).unwrap();
        assert_eq!((turn, &order[turn][..]), (PASSED_MAX as usize, &[1, 2][..]));
        assert!(order[..turn].iter().chain(&order[turn + 1..]).all(|ids| ids == &[2]));

        // How long one has waited that has left is nothing to the next.
        wait(&mut queue, at, (1, 1), true);
        for _ in 0..PASSED_MAX {
            wait(&mut queue, at, (2, 2), false);
            assert_eq!(run_at(&mut queue, at), [2]);
        }
        queue.forget(key(1), CacheId(1), true);
        wait(&mut queue, at, (2, 2), false);
        assert_eq!(run_at(&mut queue, at), [2]);
        [(3, 3, true), (2, 2, false)]
            .into_iter()
            .for_each(|(client, id, yields)| wait(&mut queue, at, (client, id), yields));
        assert_eq!(run_at(&mut queue, at), [2]);
    }

    #[test]
    fn whoever_fills_the_room_is_heaviest_and_not_whoever_came_last() {
        let mut queue = queue(true);
        let mut wait = |client: u8, id: u8, positions: usize| {
            let key = SessionKey { client: PeerId::from_bytes([client; 32]), id: SessionId::from_bytes([id; 16]) };
            let input = Input::Tokens(vec![0; positions]);
            let (rows, tree) = (Rows::None, Tree::chain());
            let step = Some(Step { cache: CacheId(id.into()), start: 0, input, rows, top: 0, tree });
            queue.push(key, Queued { serial: 0, sequence: 0, count: 1, arrived: Instant::now(), yields: false, step });
            queue.heaviest().map(|key| (key.client, key.id)).unwrap()
        };
        let named = |client: u8, id: u8| (PeerId::from_bytes([client; 32]), SessionId::from_bytes([id; 16]));
        assert_eq!(wait(1, 1, 300), named(1, 1));
        // Two sessions of one client, each smaller than the other's only one.
        assert_eq!(wait(2, 2, 200), named(1, 1));
        assert_eq!(wait(2, 3, 250), named(2, 3));
        assert_eq!(wait(3, 4, 400), named(2, 3), "of two it is the larger");
        assert_eq!(wait(3, 5, 60), named(3, 4));
    }

    #[test]
    fn what_is_fenced_off_is_skipped_when_its_turn_comes() {
        let mut queue = queue(false);
        let at = |queue: &mut StageQueue, session: u8, sequence, start| {
            let (input, rows, tree) = (Input::Tokens(vec![0; 4]), Rows::All, Tree::chain());
            let step = Some(Step { cache: CacheId(session.into()), start, input, rows, top: 1, tree });
            let arrived = Instant::now();
            queue.push(key(session), Queued { serial: 0, sequence, count: 4, arrived, yields: false, step });
        };
        (0..4).for_each(|sequence| at(&mut queue, 1, sequence, 4 * sequence));
        at(&mut queue, 2, 0, 40);
        let (batch, steps) = next(&mut queue).unwrap();
        assert_eq!(steps.len(), 2, "the first of each session runs");
        // The client has seen the first answer coming, and goes on from position 6.
        queue.fence(key(1), 6);
        assert_eq!(queue.waiting_bytes(), 16, "what is skipped takes no room");
        assert!(queue.skipped().is_empty(), "its turn has not come");
        at(&mut queue, 1, 4, 6);
        queue.finish(batch, Instant::now()).unwrap();
        assert!(queue.skipped().is_empty(), "the second starts before the fence, and is wanted");
        let (batch, _) = next(&mut queue).unwrap();
        queue.finish(batch, Instant::now()).unwrap();
        let skipped: Vec<_> = queue.skipped().iter().map(|skipped| skipped.sequence).collect();
        assert_eq!(skipped, [2, 3]);
        let (_, steps) = next(&mut queue).unwrap();
        assert_eq!((steps.len(), steps[0].start), (1, 6));
        assert_eq!((queue.waiting(), queue.waiting_bytes()), (0, 0));
    }

    #[test]
    fn caches_are_taken_once_and_come_back() {
        let mut queue = queue(false);
        let taken: Vec<_> = std::iter::from_fn(|| queue.take_cache()).collect();
        assert_eq!(taken.len(), 4);
        push(&mut queue, 1, 0, 1);
        queue.forget(key(1), CacheId(2), true);
        assert_eq!(queue.take_cache(), Some(CacheId(2)));
        assert!(next(&mut queue).is_none(), "the steps of a session that ended are dropped");
        assert_eq!(queue.waiting_bytes(), 0);
    }

    #[test]
    fn a_cache_whose_opening_is_not_answered_is_not_given_out() {
        let mut queue = queue(false);
        let cache = queue.take_cache().unwrap();
        queue.forget(key(1), cache, false);
        assert_ne!(queue.take_cache(), Some(cache));
        assert!(queue.settle(cache));
        assert!(!queue.settle(cache), "once");
        assert_eq!(queue.take_cache(), Some(cache));
    }

    #[test]
    fn a_late_batch_is_not_taken_for_the_present_one() {
        let mut queue = queue(false);
        push(&mut queue, 1, 0, 1);
        let (old, _) = next(&mut queue).unwrap();
        queue.lose();
        queue.revive(queue.shape().clone());
        push(&mut queue, 2, 0, 1);
        let (new, _) = next(&mut queue).unwrap();
        assert!(queue.finish(old, Instant::now()).is_none());
        assert!(queue.finish(new, Instant::now()).is_some());
    }
}
