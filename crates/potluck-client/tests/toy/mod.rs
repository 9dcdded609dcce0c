//! A model of which every row is known, as a chain that takes its time: what drafts change is told by it alone.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    cell::Cell,
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use potluck_chain::{
    Answer, Deadlines, SessionError, Submission,
    sample::{Decision, Sampler, SamplingParams},
};
use potluck_client::{
    Cancel, Chain, ChainShape, DraftModel, Drafts, LocalChain, Outcome, Request, Session, StageAccount,
};
use potluck_core::{Hidden, Input, LayerRange, Logits, Output, Rows, StageCommand, StageError, StageReply};
use potluck_engine::KEPT_ROWS_MAX;
use tokio::sync::mpsc;

use crate::common::small_model;

pub const VOCABULARY: u32 = 16;
pub const POSITIONS: u32 = 4_096;

/// Turns that others have while a step is under way.
const TURNS: usize = 48;

/// The logit of what it does not say.
const NEVER: f32 = -100.0;

/// A step's answer takes so long, and so much longer for each row: drafts pay.
pub const TRAVERSAL: Duration = Duration::from_millis(100);
const ROW: Duration = Duration::from_millis(2);

thread_local! {
    /// The time of this test, since it began.
    pub static CLOCK: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

#[allow(clippy::disallowed_methods, reason = "once, for a clock that the test moves by itself")]
pub fn now() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + CLOCK.get()
}

/// The row behind these tokens. It says again what it has said, more often than not.
pub fn logits(text: &[u32]) -> Vec<f32> {
    let context = &text[text.len().saturating_sub(2)..];
    let mut state = context.iter().fold(0x9e37_79b9u64, |state, &token| mix(state ^ u64::from(token)));
    let mut next = || {
        state = mix(state);
        (state % 1_000) as f32 / 250.0
    };
    (0..VOCABULARY).map(|_| next()).collect()
}

pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a draft model guesses behind these tokens: the target's two likeliest, close to each other, and one time in two in the wrong
/// order.
pub fn guessed(text: &[u32]) -> Vec<f32> {
    let row = logits(text);
    let mut ranked: Vec<usize> = (0..row.len()).collect();
    ranked.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    if text.iter().rev().take(3).fold(7, |state, &token| mix(state ^ u64::from(token))).is_multiple_of(2) {
        ranked.swap(0, 1);
    }
    let mut guessed = vec![-20.0; row.len()];
    (guessed[ranked[0]], guessed[ranked[1]]) = (1.0, 0.8);
    guessed
}

/// What another one guesses: the target's likeliest three times in four, and nothing beside it.
pub fn guessed_alone(text: &[u32]) -> Vec<f32> {
    let row = logits(text);
    let likeliest = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let is_wrong = text.iter().rev().take(3).fold(9, |state, &token| mix(state ^ u64::from(token))).is_multiple_of(4);
    let mut guessed = vec![-20.0; row.len()];
    guessed[(likeliest + usize::from(is_wrong)) % row.len()] = 1.0;
    guessed
}

/// An engine that holds the first draft model, and counts the positions that it evaluates. It takes no time.
pub async fn draft_model(read: Arc<AtomicUsize>) -> DraftModel {
    draft_engine(guessed, Duration::ZERO, read).await
}

/// One that holds such a draft model, whose forwards take so long.
pub async fn draft_engine(guess: fn(&[u32]) -> Vec<f32>, forward: Duration, read: Arc<AtomicUsize>) -> DraftModel {
    let ((commands, mut asked), (replies, answers)) = (mpsc::channel(64), mpsc::channel(64));
    tokio::spawn(async move {
        let mut cache: Vec<u32> = Vec::new();
        while let Some(command) = asked.recv().await {
            let reply = match command {
                StageCommand::Open { cache, .. } => StageReply::Opened { cache, result: Ok(()) },
                StageCommand::Forward { batch, steps } => {
                    let step = &steps[0];
                    let Input::Tokens(tokens) = &step.input else { panic!("not of tokens") };
                    assert!(step.start as usize <= cache.len() && step.tree.is_chain());
                    cache.truncate(step.start as usize);
                    cache.extend(tokens);
                    read.fetch_add(tokens.len(), Relaxed);
                    let rows = match step.rows {
                        Rows::None => Vec::new(),
                        _ => {
                            CLOCK.set(CLOCK.get() + forward);
                            vec![Logits::Whole(Hidden(guess(&cache)))]
                        }
                    };
                    StageReply::Forwarded { batch, results: vec![Ok(Output::Logits(rows))], compute_us: 1 }
                }
                _ => break,
            };
            if replies.send(reply).await.is_err() {
                break;
            }
        }
    });
    let of = (LayerRange::new(0, 1).unwrap(), VOCABULARY);
    DraftModel::new(LocalChain::over((commands, answers), of, POSITIONS, Deadlines::default()).await.unwrap())
}

/// A step under way.
pub struct Flying {
    start: u32,
    sent: Duration,
}

/// The toy model as a chain that takes its time. It keeps what caches would, no more.
#[derive(Default)]
pub struct Toy {
    pub cache: Vec<u32>,
    pub flying: VecDeque<(Flying, Answer)>,
    pub last_answer: Duration,
    pub sequence: u32,
    pub last: Vec<Vec<f32>>,
    /// Rows come with so many of the largest logits alone.
    pub top: Option<usize>,
    /// What is drafted is made likelier where it is judged: rows that favour drafts.
    pub lenient: bool,
    pub whole_rows: usize,
    /// After so many whole rows it is lost.
    pub whole_rows_max: Option<usize>,
    /// Rows that an answer of its can hold.
    pub most: Option<usize>,
    /// Takes a step for each token alone.
    pub sequential: bool,
    /// Its first token; there are none before.
    pub first: u32,
    /// What a row takes, where it is not [`ROW`].
    pub row: Option<Duration>,
    /// Steps that came while a prompt was under way from its beginning.
    pub behind_prompt: usize,
    pub trees: usize,
    /// Steps that went on behind a row of the last tree that caches do not keep.
    pub branches: usize,
    /// Such rows: where they stood, and what they were.
    pub aside: Vec<(u32, u32)>,
    pub fences: usize,
    /// Steps that came when nothing was under way.
    pub alone: usize,
}

impl Toy {
    fn rows(&mut self, step: &Submission) -> Vec<Vec<f32>> {
        let Submission { start, tokens, tree, .. } = step;
        assert!(*start as usize <= self.cache.len(), "a gap: {start} beyond {}", self.cache.len());
        self.cache.truncate(*start as usize);
        let mut texts: Vec<Vec<u32>> = Vec::new();
        for (row, &token) in tokens.iter().enumerate() {
            let above = tree.parent(row).map_or(&self.cache, |parent| &texts[parent]);
            texts.push([&above[..], &[token]].concat());
        }
        let trunk = tree.trunk(tokens.len());
        self.cache = texts[trunk - 1].clone();
        assert!(!self.sequential || trunk == tokens.len(), "a tree");
        let too_many = step.rows == Rows::All && self.most.is_some_and(|most| tokens.len() > most);
        assert!(!too_many, "{} rows for an answer of {:?}", tokens.len(), self.most);
        self.branches += usize::from(self.aside.contains(&(*start, tokens[0])));
        self.aside = (trunk..tokens.len()).map(|row| (texts[row].len() as u32 - 1, tokens[row])).collect();
        let children =
            |row: usize| (0..tokens.len()).filter(move |&child| child > 0 && tree.parent(child) == Some(row));
        let judged = |(row, text): (usize, &Vec<u32>)| {
            let mut logits = [vec![NEVER; self.first as usize], logits(text)].concat();
            if self.lenient {
                children(row).for_each(|child| logits[tokens[child] as usize] += 3.0);
            }
            logits
        };
        texts.iter().enumerate().map(judged).collect()
    }
}

impl Chain for Toy {
    fn shape(&self) -> ChainShape {
        ChainShape { vocabulary: self.first + VOCABULARY, positions: POSITIONS }
    }

    fn takes_drafts(&self) -> bool {
        !self.sequential
    }

    fn rows_max(&self, _top: u16) -> usize {
        self.most.unwrap_or(usize::MAX)
    }

    async fn submit(&mut self, step: Submission) -> Result<u32, SessionError> {
        let (sequence, start, count) = (self.sequence, step.start, step.tokens.len() as u16);
        self.sequence += 1;
        self.trees += usize::from(!step.tree.is_chain());
        self.alone += usize::from(self.flying.is_empty());
        self.behind_prompt += usize::from(self.flying.iter().any(|(flying, _)| flying.start == 0));
        if step.fence {
            self.fences += 1;
            for (earlier, answer) in &mut self.flying {
                if earlier.start >= start {
                    (answer.rows, answer.skipped) = (Vec::new(), true);
                }
            }
        }
        let rows = self.rows(&step);
        self.last.clone_from(&rows);
        let reduced = |row: &Vec<f32>| match self.top {
            Some(top) => Logits::reduce(row, top),
            None => Logits::Whole(Hidden(row.clone())),
        };
        let rows = match step.rows {
            Rows::None | Rows::Mean => Vec::new(),
            Rows::Last => rows.last().map(reduced).into_iter().collect(),
            Rows::All => rows.iter().map(reduced).collect(),
        };
        let flying = Flying { start, sent: CLOCK.get() };
        self.flying.push_back((flying, Answer { sequence, start, count, rows, skipped: false }));
        Ok(sequence)
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        // Others have their turn meanwhile: a draft model's forwards.
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        let (step, answer) = self.flying.pop_front().unwrap();
        if !answer.skipped {
            // Steps follow each other as fast as a stage takes them.
            let arrives =
                (step.sent + TRAVERSAL).max(self.last_answer) + self.row.unwrap_or(ROW) * u32::from(answer.count);
            self.last_answer = arrives;
            CLOCK.set(CLOCK.get().max(arrives));
        }
        Ok(answer)
    }

    async fn row(&mut self, sequence: u32, row: u16) -> Result<Hidden, SessionError> {
        assert!(self.flying.is_empty() && sequence + 1 == self.sequence, "only the last step's rows are kept");
        assert!(usize::from(row) + KEPT_ROWS_MAX >= self.last.len(), "and of those the last ones");
        self.whole_rows += 1;
        if self.whole_rows_max.is_some_and(|max| self.whole_rows > max) {
            let error = StageError::Lost("it is gone".into());
            return Err(SessionError::Own { layers: "0..1".into(), error });
        }
        Ok(Hidden(self.last[usize::from(row)].clone()))
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        Ok(None)
    }

    fn bytes_written(&self) -> u64 {
        0
    }

    async fn let_go(&mut self) {}

    async fn close(self) {}
}

pub fn request(params: SamplingParams, prompt: Vec<u32>, tokens: u32) -> Request {
    Request { params, max_tokens: Some(tokens), ignore_eos: true, ..Request::new(prompt) }
}

pub fn sampled(seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..SamplingParams::default() }
}

/// Token by token, without any of the machinery.
pub fn expected(params: &SamplingParams, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(params.clone(), VOCABULARY).unwrap();
    let mut text = prompt.to_vec();
    text.iter().for_each(|&token| sampler.accept(token));
    while text.len() < prompt.len() + tokens {
        let row = Logits::Whole(Hidden(logits(&text)));
        let Decision::Token { token } = sampler.sample(text.len() as u32, &row, None).unwrap() else { panic!() };
        sampler.accept(token);
        text.push(token);
    }
    text.split_off(prompt.len())
}

pub async fn answered(toy: Toy, drafts: Drafts, request: Request) -> (Outcome, Toy) {
    let mut session = Session::new(toy, small_model().vocabulary().await).with_drafts(drafts, None);
    session.set_clock(now);
    let outcome = session.generate(request, &Cancel::new(), |_| {}).await.unwrap();
    (outcome, session.into_chain())
}
