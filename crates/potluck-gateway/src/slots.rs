//! The slots: open sessions, each with what its caches hold, and who gets which.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use potluck_chain::{SessionError, chunks::RouteTimes};
use potluck_client::{Cancel, Chain, GenerateError, Request, Session, TokenEvent};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tracing::{Instrument as _, Span, field::Empty, info_span};

use crate::{
    Problem, Whose,
    access::Caller,
    answer::Ended,
    metrics::Metrics,
    queue::{FairQueue, QUEUE_MAX},
};

/// Opens sessions of the model, each with caches of its own.
#[expect(async_fn_in_trait, reason = "used by type, on one thread; no bound on the futures is wanted")]
pub trait Opener: 'static {
    /// What runs the model.
    type Chain: Chain + 'static;

    /// One more session, its caches empty.
    ///
    /// # Errors
    /// Why not; whoever asked is told.
    async fn open(&self) -> Result<Session<Self::Chain>, Problem>;

    /// One more session, which begins with the first `positions` positions of what `of` holds, that is at rest: where they are
    /// cached, they are copied. None where that cannot be had.
    async fn open_beside(&self, of: &Session<Self::Chain>, positions: usize) -> Option<Session<Self::Chain>> {
        let _ = (of, positions);
        None
    }

    /// Whether a session that is at rest may be used still: who was trusted with it may be trusted no more.
    fn is_current(&self, chain: &Self::Chain) -> bool {
        let _ = chain;
        true
    }
}

/// What comes of a request; the number tells the choices of one request apart.
pub(crate) type Events = mpsc::UnboundedSender<(usize, Event)>;

/// One thing that comes of a request. A receiver that is dropped cancels it.
#[derive(Debug)]
pub(crate) enum Event {
    /// A slot is at work on it.
    Started,
    /// A token was chosen.
    Token(TokenEvent),
    /// It is answered.
    Done(Box<Ended>),
    /// A text's embedding.
    Embedded(Vec<f32>),
    /// It is not.
    Failed(Problem),
}

/// What a slot is to do.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    /// Answer.
    Generate(Request),
    /// Embed these tokens.
    Embed {
        /// The text.
        tokens: Vec<u32>,
        /// Positions of a step.
        chunk: u16,
    },
}

impl Task {
    /// Others are at work: their next tokens wait at each stage for the step that is there, so no step is to be long.
    fn make_way(&mut self) {
        match self {
            // Whose answer is to be exact has its steps as they would be alone.
            Self::Generate(request) if !request.reuse => {}
            Self::Generate(Request { chunk, .. }) | Self::Embed { chunk, .. } => *chunk = BESIDE_OTHERS.min(*chunk),
        }
    }

    /// Whether it keeps what a session holds of its prompt.
    fn reuses(&self) -> bool {
        matches!(self, Self::Generate(request) if request.reuse)
    }

    fn prompt(&self) -> &[u32] {
        match self {
            Self::Generate(request) => &request.prompt,
            // It evaluates all of it, and what a slot holds is of no use to it.
            Self::Embed { .. } => &[],
        }
    }
}

/// A request on its way to a slot.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) caller: Caller,
    pub(crate) task: Task,
    /// Which choice of its request it is.
    pub(crate) index: usize,
    /// Bounded by the answer's length: one event a token.
    pub(crate) events: Events,
    /// From its place in the queue to its answer.
    pub(crate) span: Span,
    asked: Instant,
}

impl Job {
    /// Its span belongs to the request that is being handled.
    pub(crate) fn new(caller: Caller, task: Task, index: usize, events: Events) -> Self {
        let span = match &task {
            Task::Generate(request) => info_span!(
                "answer",
                otel.kind = "internal",
                gen_ai.operation.name = "generate",
                gen_ai.usage.input_tokens = request.prompt.len(),
                gen_ai.usage.output_tokens = Empty,
                potluck.reused_tokens = Empty,
                potluck.resumed = Empty,
                potluck.queue_s = Empty,
                potluck.ttft_s = Empty,
                potluck.prefill_tokens_per_s = Empty,
                potluck.decode_tokens_per_s = Empty,
                potluck.trace = Empty,
                error.type = Empty,
            ),
            Task::Embed { tokens, .. } => info_span!(
                "embedding",
                gen_ai.operation.name = "embeddings",
                gen_ai.usage.input_tokens = tokens.len(),
                potluck.queue_s = Empty,
                error.type = Empty,
            ),
        };
        Self { caller, task, index, events, span, asked: Instant::now() }
    }
}

/// What a trace says of an answer: counts and times, never a word of it.
fn record(span: &Span, event: &Event) {
    match event {
        Event::Done(ended) => {
            let outcome = &ended.outcome;
            span.record("gen_ai.usage.output_tokens", outcome.completion_tokens);
            span.record("potluck.reused_tokens", outcome.reused_tokens);
            span.record("potluck.resumed", outcome.resumed);
            span.record("potluck.ttft_s", outcome.ttft_s);
            span.record("potluck.prefill_tokens_per_s", outcome.prefill_tokens_per_s);
            span.record("potluck.decode_tokens_per_s", outcome.decode_tokens_per_s);
            if let Some(trace) = outcome.trace.as_ref().and_then(|trace| serde_json::to_string(trace).ok()) {
                span.record("potluck.trace", trace);
            }
        }
        Event::Failed(problem) => {
            span.record("error.type", problem.code.as_ref());
        }
        Event::Started | Event::Token(_) | Event::Embedded(_) => {}
    }
}

/// Positions of a step at most where others are at work: half of what a prompt has alone, and nearly as fast.
const BESIDE_OTHERS: u16 = 256;

/// Positions that have to be in common before a session begins as another: fewer are evaluated in the time that opening takes.
const SHARED_MIN: usize = 64;

/// Positions that a conversation does not lose to another that begins like it, as long as a slot is free.
const KEPT_MIN: usize = 32;

/// How long another session may take to be open where an answer has lost its own.
const RESUME_WITHIN: Duration = Duration::from_secs(30);

/// How often it is tried.
const REOPEN_EVERY: Duration = Duration::from_millis(500);

/// Seconds that a caller should wait where the queue is full.
const RETRY_BUSY_SECONDS: u32 = 2;

/// What an answer left in flight is waited for so long before its slot is free.
const REST_WITHIN: Duration = Duration::from_secs(2);

/// A session that is at rest, or not open yet.
struct Slot<C> {
    session: Option<Session<C>>,
    /// For whom that holds what it holds; none as long as it holds nothing.
    caller: Option<Caller>,
    /// The pool's age when it was used last: what is old makes room, in time, for what is dear.
    used: u64,
}

/// What is at rest, and what waits.
struct Pool<C> {
    idle: Vec<Slot<C>>,
    queue: FairQueue<Job>,
    /// What the dearest slot that made room was worth.
    age: u64,
}

/// A job, the slot that it was given, and where that one is not open: the slot whose session it may begin as, and how far.
struct Assigned<C> {
    slot: Slot<C>,
    job: Job,
    beginning: Option<(Slot<C>, usize)>,
}

/// A slot that is in use: the pool has it back whatever becomes of the job, or nobody would ever be answered from it again.
struct InUse<C> {
    slot: Option<Slot<C>>,
    free: mpsc::UnboundedSender<Slot<C>>,
    metrics: Arc<Metrics>,
}

impl<C> InUse<C> {
    /// The slot is free again, with that session.
    fn ends_with(mut self, session: Option<Session<C>>) {
        if let Some(slot) = &mut self.slot {
            slot.session = session;
        }
    }
}

impl<C> Drop for InUse<C> {
    fn drop(&mut self) {
        self.metrics.running(-1);
        if let Some(slot) = self.slot.take() {
            // The pool outlives its slots.
            let _ = self.free.send(slot);
        }
    }
}

/// Takes jobs and gives them to `slots` slots until `jobs` closes; ends when the last of them is done. Must run in a local
/// set: sessions stay on one thread.
pub(crate) async fn run<O: Opener>(opener: O, slots: usize, mut jobs: mpsc::Receiver<Job>, metrics: Arc<Metrics>) {
    let slots = slots.max(1);
    let idle = (0..slots).map(|_| Slot::unused()).collect();
    let mut pool = Pool { idle, queue: FairQueue::default(), age: 0 };
    let opener = Rc::new(opener);
    let (free, mut freed) = mpsc::unbounded_channel();
    let mut open = true;
    while open || pool.idle.len() < slots {
        tokio::select! {
            job = jobs.recv(), if open => match job {
                Some(job) => pool.enqueue(job),
                None => open = false,
            },
            Some(slot) = freed.recv() => pool.idle.push(slot),
        }
        while let Some(Assigned { mut slot, mut job, beginning }) = pool.assign() {
            if pool.idle.len() + 1 + usize::from(beginning.is_some()) < slots {
                job.task.make_way();
            }
            metrics.running(1);
            let mut session = slot.session.take();
            let in_use = InUse { slot: Some(slot), free: free.clone(), metrics: metrics.clone() };
            let (opener, free) = (opener.clone(), free.clone());
            tokio::task::spawn_local(async move {
                let span = job.span.clone();
                span.record("potluck.queue_s", job.asked.elapsed().as_secs_f64());
                if let Some((like, positions)) = beginning {
                    if let Some(like) = like.session.as_ref().filter(|like| opener.is_current(like.chain())) {
                        session = opener.open_beside(like, positions).await;
                    }
                    let _ = free.send(like);
                }
                session = work(&*opener, session, job).instrument(span).await;
                if let Some(session) = &mut session {
                    session.come_to_rest(REST_WITHIN).await;
                }
                in_use.ends_with(session);
            });
        }
        metrics.waiting(pool.queue.len());
    }
    for session in pool.idle.into_iter().filter_map(|slot| slot.session) {
        session.close().await;
    }
}

impl<C: Chain> Slot<C> {
    /// One that was not used yet.
    fn unused() -> Self {
        Self { session: None, caller: None, used: 0 }
    }

    /// What of it a caller may find again: nothing that is another's.
    fn held(&self, caller: &Caller) -> &[u32] {
        match (&self.session, &self.caller) {
            (Some(session), Some(other)) if caller.shares_with(other) => session.held(),
            _ => &[],
        }
    }

    /// It is the caller's from now on.
    fn given(mut self, caller: &Caller, used: u64) -> Self {
        if let (Some(session), Some(other)) = (&mut self.session, &self.caller)
            && !caller.shares_with(other)
        {
            session.forget_all();
        }
        Self { caller: Some(caller.clone()), used, ..self }
    }
}

impl<C: Chain> Pool<C> {
    fn enqueue(&mut self, job: Job) {
        if self.queue.len() >= QUEUE_MAX {
            self.queue.retain(|job| !job.events.is_closed());
        }
        if let Err(job) = self.queue.push(job.caller.clone(), job) {
            let message = format!("{} requests wait already", self.queue.len());
            let problem = Problem::new(Whose::Busy(RETRY_BUSY_SECONDS), "queue_full", message);
            // Whoever asked may be gone.
            let _ = job.events.send((job.index, Event::Failed(problem)));
        }
    }

    /// The next job that somebody still waits for, and the slot that suits it best.
    fn assign(&mut self) -> Option<Assigned<C>> {
        if self.idle.is_empty() {
            return None;
        }
        let job = std::iter::from_fn(|| self.queue.pop()).find(|job| !job.events.is_closed())?;
        let worth = |slot: &Slot<C>| {
            let held = slot.session.as_ref().map_or(&[][..], Session::held);
            let found = common(slot.held(&job.caller), job.task.prompt());
            Worth::of(held.len(), found, slot.used)
        };
        let best = (0..self.idle.len()).min_by_key(|&at| worth(&self.idle[at]))?;
        let like = if job.task.reuses() { self.beginning(best, &job) } else { None };
        // It takes a slot that is not open yet; what begins like it stays as it is.
        let free = like.and_then(|_| self.idle.iter().position(|slot| slot.session.is_none()));
        let (best, like) = free.map_or((best, None), |free| (free, like));
        self.age = self.age.max(worth(&self.idle[best]).price);
        let (slot, other) = take(&mut self.idle, best, like.map(|(at, _)| at));
        let beginning = other.zip(like.map(|(_, positions)| positions));
        Some(Assigned { slot: slot.given(&job.caller, self.age), job, beginning })
    }

    /// The slot whose session another may begin as, and how far: see [`beginning`].
    fn beginning(&self, best: usize, job: &Job) -> Option<(usize, usize)> {
        let held = self.idle.iter().map(|slot| match &slot.session {
            Some(session) if session.is_at_rest() => slot.held(&job.caller),
            _ => &[],
        });
        beginning(&held.collect::<Vec<_>>(), best, job.task.prompt())
    }
}

/// Of sessions that hold these tokens, the one that has the most of the prompt's beginning, and how much: where that is worth
/// copying, and the prompt does not simply go on with what the `best` of them holds.
fn beginning(held: &[&[u32]], best: usize, prompt: &[u32]) -> Option<(usize, usize)> {
    // The prompt's last token is evaluated for what follows it.
    let shared = |at: usize| common(held[at], prompt).min(prompt.len().saturating_sub(1));
    let at = (0..held.len()).max_by_key(|&at| shared(at))?;
    let goes_on = shared(best) >= shared(at) && held[best].len() - common(held[best], prompt) < KEPT_MIN;
    (shared(at) >= SHARED_MIN && !goes_on).then(|| (at, shared(at)))
}

/// Takes the items at one place, and at another if there is one, out of a list whose order does not matter.
fn take<T>(items: &mut Vec<T>, first: usize, second: Option<usize>) -> (T, Option<T>) {
    let taken = items.swap_remove(first);
    // The last one has taken the place of the one that was removed.
    let second = second.map(|at| if at == items.len() { first } else { at });
    (taken, second.map(|at| items.swap_remove(at)))
}

/// Tokens that both begin with.
fn common(held: &[u32], prompt: &[u32]) -> usize {
    held.iter().zip(prompt).take_while(|(a, b)| a == b).count()
}

/// What is lost where a prompt takes a slot: the least is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    /// False where the slot holds the prompt's conversation so far: it goes on there.
    other: bool,
    /// Positions that are held and not part of the prompt, more where they were used lately: so a long conversation is not lost to
    /// a short question, nor kept for ever (GreedyDual; Cao and Irani, 1997).
    price: u64,
    /// Of two that cost the same, the one that holds less of use to others.
    held: usize,
}

impl Worth {
    /// Of a slot that holds so many positions, of which so many are the prompt's beginning.
    fn of(held: usize, found: usize, used: u64) -> Self {
        let goes_on = found > 0 && found * 2 >= held;
        let price = used + (held - found) as u64;
        Self { other: !goes_on, price: if held == 0 { 0 } else { price }, held }
    }
}

/// Answers a job in a session, opened first where there is none; the session, if it can go on.
async fn work<O: Opener>(opener: &O, session: Option<Session<O::Chain>>, job: Job) -> Option<Session<O::Chain>> {
    let Job { caller, task, index, events, span, .. } = job;
    let tell = |event| {
        record(&span, &event);
        // Whoever asked may be gone: that cancels the answer elsewhere.
        let _ = events.send((index, event));
    };
    tell(Event::Started);
    // What a session has learnt of its peers, the next one need not learn again.
    let mut times = RouteTimes::default();
    let mut waited = match session {
        Some(mut session) if !opener.is_current(session.chain()) => {
            times = session.take_times();
            session.close().await;
            None
        }
        session => session,
    };
    loop {
        let (fresh, mut session) = match waited.take() {
            Some(session) => (false, session),
            None => match opener.open().await {
                Ok(mut session) => {
                    session.set_times(std::mem::take(&mut times));
                    (true, session)
                }
                Err(problem) => {
                    tell(Event::Failed(problem));
                    return None;
                }
            },
        };
        let mut told = false;
        let done = match &task {
            Task::Generate(request) => {
                answer(opener, &mut session, request.clone(), &caller, (index, &events), &mut told).await
            }
            Task::Embed { tokens, chunk } => tokio::select! {
                embedding = session.embed(tokens, *chunk) => embedding.map(Event::Embedded),
                // Nobody waits for it any more; the step that is under way is let finish by whoever comes next.
                () = events.closed() => return Some(session),
            },
        };
        match done {
            Ok(event) => {
                tell(event);
                return Some(session);
            }
            Err(error @ GenerateError::Session(_)) => {
                times = session.take_times();
                session.close().await;
                // A session may have been lost while it was at rest: then nobody need know.
                if fresh || told {
                    tell(Event::Failed(error.into()));
                    return None;
                }
                tracing::info!(code = error.code(), "a session at rest was lost: another is opened");
            }
            Err(error) => {
                tell(Event::Failed(error.into()));
                return Some(session);
            }
        }
    }
}

/// Another chain for an answer whose own is lost: what comes back by itself is waited for.
async fn reopen<O: Opener>(opener: &O, lost: &SessionError) -> Option<O::Chain> {
    let opened = timeout(RESUME_WITHIN, async {
        loop {
            match opener.open().await {
                Ok(session) => break Some(session.into_chain()),
                // What members may not, or this machine has no room for, is no better in a moment.
                Err(Problem { code, .. }) if matches!(code.as_ref(), "not_admitted" | "no_memory" | "illegal_cut") => {
                    break None;
                }
                Err(_) => sleep(REOPEN_EVERY).await,
            }
        }
    });
    let chain = opened.await.ok().flatten();
    tracing::info!(%lost, found = chain.is_some(), "an answer has lost its session");
    chain
}

async fn answer<O: Opener>(
    opener: &O,
    session: &mut Session<O::Chain>,
    request: Request,
    caller: &Caller,
    (index, events): (usize, &Events),
    told: &mut bool,
) -> Result<Event, GenerateError> {
    let (cancel, mut refused) = (Cancel::new(), None);
    let outcome = {
        let on_token = |event: &TokenEvent| {
            *told = true;
            // Counted where it is computed, whether or not anybody reads it.
            match caller.charge(1) {
                Ok(()) => drop(events.send((index, Event::Token(event.clone())))),
                Err(problem) => {
                    refused.get_or_insert(problem);
                    cancel.cancel();
                }
            }
        };
        let reopen = async |lost: &SessionError| reopen(opener, lost).await;
        let mut answer = std::pin::pin!(session.generate_over(request, &cancel, on_token, reopen));
        tokio::select! {
            outcome = &mut answer => outcome,
            () = events.closed() => {
                cancel.cancel();
                answer.await
            }
        }
    };
    match refused {
        Some(problem) => outcome.map(|_| Event::Failed(problem)),
        None => outcome.map(|outcome| Event::Done(Box::new(Ended { outcome, told: None }))),
    }
}

#[cfg(test)]
mod tests;
