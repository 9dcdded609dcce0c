//! Prompts in steps, over routes of several machines in virtual time.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::OnceLock,
    time::{Duration, Instant},
};

use common::small_model;
use potluck_chain::{
    Answer, SessionError, Submission,
    chunks::{PREFILL_POSITIONS_IN_FLIGHT, Place},
    sample::{FinishReason, SamplingParams},
};
use potluck_client::{Cancel, Chain, ChainShape, Drafts, Outcome, Request, Session, StageAccount};
use potluck_core::{Account, Hidden, LayerRange, Logits, PeerId, Rows, bounds::STEP_POSITIONS_MAX};

const VOCABULARY: u32 = 16;
const POSITIONS: u32 = 8_192;
/// Bytes of a position in f16.
const BYTES: f64 = 2.0 * 576.0;
/// Seconds of a position in all layers, and of a step beside its positions.
const POSITION_S: f64 = 1.0 / 205.0;
const STEP_S: f64 = 0.004;

thread_local! {
    /// The time of this test, since it began.
    static CLOCK: Cell<f64> = const { Cell::new(0.0) };
}

#[allow(clippy::disallowed_methods, reason = "once, for a clock that the test moves by itself")]
fn now() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs_f64(CLOCK.get())
}

/// Stages on machines of their own, the first and the last with the client: part of the model's time that each takes, and the way
/// to it.
#[derive(Debug, Clone)]
struct Far {
    parts: Vec<f64>,
    delay: f64,
    bytes_per_second: f64,
    /// When a way, and a stage, has done what it was given.
    free: Vec<[f64; 2]>,
    flying: VecDeque<(f64, Answer)>,
    cache: usize,
    sequence: u32,
    accounts: Vec<Account>,
    told: Option<Vec<Account>>,
    log: Rc<RefCell<Log>>,
}

/// What was asked of a chain.
#[derive(Debug, Default)]
struct Log {
    /// First position and rows of each step.
    steps: Vec<(usize, usize)>,
    /// Most steps, and most positions, that were in flight.
    most: (usize, usize),
    questions: usize,
}

impl Far {
    fn new(peers: usize, rtt_ms: f64, mbit: f64) -> Self {
        let ends = 1.0 / 30.0;
        let inner = vec![(1.0 - 2.0 * ends) / peers as f64; peers];
        let parts = [&[ends], &inner[..], &[ends]].concat();
        Self {
            free: vec![[0.0; 2]; parts.len()],
            accounts: vec![Account::default(); parts.len()],
            parts,
            delay: rtt_ms / 2e3,
            bytes_per_second: mbit * 1e6 / 8.0,
            flying: VecDeque::new(),
            cache: 0,
            sequence: 0,
            told: None,
            log: Rc::default(),
        }
    }

    fn step_s(&self, stage: usize, rows: usize) -> f64 {
        self.parts[stage] * (STEP_S + POSITION_S * rows as f64)
    }

    /// Delays, a chunk through all, the rest at the slowest; of the best chunk.
    fn bound(&self, positions: usize) -> f64 {
        let of = |chunk: usize| {
            let stages = (0..self.parts.len()).map(|stage| self.step_s(stage, chunk));
            let sending = chunk as f64 * BYTES / self.bytes_per_second;
            let hops = (self.parts.len() - 1) as f64;
            let first = hops * (self.delay + sending) + stages.clone().sum::<f64>();
            first + (positions as f64 / chunk as f64 - 1.0) * stages.fold(sending, f64::max)
        };
        [32, 64, 128, 256, 512].into_iter().map(of).fold(f64::INFINITY, f64::min)
    }
}

impl Chain for Far {
    fn shape(&self) -> ChainShape {
        ChainShape { vocabulary: VOCABULARY, positions: POSITIONS }
    }

    fn takes_drafts(&self) -> bool {
        true
    }

    async fn submit(&mut self, step: Submission) -> Result<u32, SessionError> {
        let (start, rows, sequence) = (step.start as usize, step.tokens.len(), self.sequence);
        assert!(start <= self.cache, "a gap: {start} beyond {}", self.cache);
        self.cache = start + rows;
        self.sequence += 1;
        let mut at = CLOCK.get();
        for stage in 0..self.parts.len() {
            let took = self.step_s(stage, rows);
            let [way, machine] = &mut self.free[stage];
            if stage > 0 {
                *way = way.max(at) + rows as f64 * BYTES / self.bytes_per_second;
                at = *way + self.delay;
            }
            *machine = machine.max(at) + took;
            at = *machine;
            let account = &mut self.accounts[stage];
            account.steps += 1;
            account.positions += rows as u64;
            account.compute_us += (took * 1e6) as u64;
            account.next_rtt_us = Some((self.delay * 2e6) as u32);
        }
        let next = step.tokens.last().map_or(0, |token| (token + 1) % VOCABULARY);
        let row = (0..VOCABULARY).map(|token| if token == next { 9.0 } else { 0.0 }).collect();
        let wanted = if step.rows == Rows::None { Vec::new() } else { vec![Logits::Whole(Hidden(row))] };
        let answer = Answer { sequence, start: step.start, count: rows as u16, rows: wanted, skipped: false };
        self.flying.push_back((at, answer));
        let mut log = self.log.borrow_mut();
        log.steps.push((start, rows));
        let positions = self.flying.iter().map(|(_, answer)| usize::from(answer.count)).sum();
        log.most = (log.most.0.max(self.flying.len()), log.most.1.max(positions));
        Ok(sequence)
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        let (at, answer) = self.flying.pop_front().unwrap();
        CLOCK.set(CLOCK.get().max(at));
        Ok(answer)
    }

    async fn row(&mut self, _: u32, _: u16) -> Result<Hidden, SessionError> {
        Err(SessionError::Closed)
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        Ok(None)
    }

    fn places(&self) -> Vec<Place> {
        let last = self.parts.len() - 1;
        let place = |stage: usize| Place {
            peer: (1..last).contains(&stage).then(|| PeerId::from_bytes([stage as u8; 32])),
            layers: LayerRange::new(stage as u32, stage as u32 + 1).unwrap(),
            here: stage == 0 || stage == last,
            rtt_s: if stage == 0 || stage == last { 0.0 } else { 2.0 * self.delay },
            speed: None,
        };
        (0..=last).map(place).collect()
    }

    fn ask_accounts(&mut self) -> Result<(), SessionError> {
        self.log.borrow_mut().questions += 1;
        self.told = Some(self.accounts.clone());
        Ok(())
    }

    async fn told_accounts(&mut self) -> Result<Option<Vec<Account>>, SessionError> {
        Ok(self.told.take())
    }

    fn bytes_written(&self) -> u64 {
        0
    }

    async fn let_go(&mut self) {}

    async fn close(self) {}
}

async fn session(chain: Far) -> (Session<Far>, Rc<RefCell<Log>>) {
    let log = chain.log.clone();
    let mut session = Session::new(chain, small_model().vocabulary().await).with_drafts(Drafts::Off, None);
    session.set_clock(now);
    (session, log)
}

fn request(tokens: usize, salt: u32) -> Request {
    let prompt = (0..tokens as u32).map(|at| (at * 7 + salt) % VOCABULARY).collect();
    let params = SamplingParams::greedy();
    Request { params, max_tokens: Some(8), ignore_eos: true, reuse: false, ..Request::new(prompt) }
}

/// An answer, and the seconds until its prompt was evaluated.
async fn ask(session: &mut Session<Far>, request: Request) -> (Outcome, f64) {
    let (began, first) = (CLOCK.get(), Cell::new(None));
    let last = *request.prompt.last().unwrap();
    let never = Cancel::new();
    let outcome = session.generate(request, &never, |_| {
        first.set(first.get().or(Some(CLOCK.get())));
    });
    let outcome = outcome.await.unwrap();
    let expected: Vec<u32> = (1..=outcome.tokens.len() as u32).map(|ahead| (last + ahead) % VOCABULARY).collect();
    assert_eq!(outcome.tokens, expected);
    (outcome, first.get().unwrap() - began)
}

/// The steps of a prompt of so many tokens: each position once, in order, and none too large.
fn check(log: &Rc<RefCell<Log>>, positions: usize) -> Vec<usize> {
    let Log { steps, most, .. } = log.take();
    let prefill: Vec<_> = steps.into_iter().take_while(|(start, _)| *start < positions).collect();
    let ends = prefill.iter().scan(0, |end, (_, rows)| Some(std::mem::replace(end, *end + rows)));
    assert!(prefill.iter().map(|(start, _)| *start).eq(ends), "{prefill:?}");
    assert_eq!(prefill.iter().map(|(_, rows)| rows).sum::<usize>(), positions);
    assert!(prefill.iter().all(|(_, rows)| *rows <= STEP_POSITIONS_MAX) && most.1 <= PREFILL_POSITIONS_IN_FLIGHT);
    prefill.into_iter().map(|(_, rows)| rows).collect()
}

#[tokio::test]
async fn a_route_is_filled_once_it_is_known() {
    for (peers, rtt_ms, mbit) in [(3, 50.0, 20.0), (2, 20.0, 100.0), (5, 100.0, 5.0), (8, 100.0, 20.0)] {
        let chain = Far::new(peers, rtt_ms, mbit);
        let bound = chain.bound(2_048);
        let (mut session, log) = session(chain).await;
        let mut reached = Vec::new();
        for prompt in 0..4 {
            let (_, seconds) = ask(&mut session, request(2_048, prompt)).await;
            check(&log, 2_048);
            reached.push(bound / seconds);
        }
        assert!(reached[1..].iter().all(|reached| *reached >= 0.8), "{peers} {rtt_ms} {mbit}: {reached:?}");
    }
}

#[tokio::test]
async fn what_is_exact_or_asked_for_is_cut_as_it_says() {
    for (exact, fixed, chunk) in [(true, false, 512), (false, true, 200), (true, true, 100)] {
        let (mut session, log) = session(Far::new(3, 50.0, 20.0)).await;
        for prompt in 0..2 {
            ask(&mut session, Request { exact, fixed, chunk, ..request(1_100, prompt) }).await;
            assert_eq!(log.borrow().questions, 0, "nothing is learnt of it");
            let sizes = check(&log, 1_100);
            let cut = |start: usize| (1_100 - start).min(chunk.into());
            assert_eq!(sizes, (0..1_100).step_by(chunk.into()).map(cut).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn steps_are_no_larger_than_a_request_lets_them_be() {
    let (mut session, log) = session(Far::new(3, 50.0, 20.0)).await;
    for prompt in 0..3 {
        ask(&mut session, Request { chunk: 48, in_flight: 5, ..request(1_000, prompt) }).await;
        assert!(log.borrow().most.0 <= 5);
        assert!(check(&log, 1_000).iter().all(|rows| *rows <= 48));
    }
}

#[tokio::test]
async fn a_prompt_that_is_cancelled_in_flight_leaves_nothing_behind() {
    let (mut session, log) = session(Far::new(5, 100.0, 20.0)).await;
    ask(&mut session, request(2_048, 0)).await;
    log.take();
    let cancel = Cancel::new();
    cancel.cancel();
    let outcome = session.generate(request(2_048, 3), &cancel, |_| {}).await.unwrap();
    assert_eq!((outcome.finish_reason, outcome.tokens.len()), (FinishReason::Cancel, 0));
    assert!(log.borrow().most.0 > 8, "it was well under way: {:?}", log.borrow().most);
    log.take();
    ask(&mut session, request(2_000, 5)).await;
    check(&log, 2_000);
    assert!(session.into_chain().flying.is_empty());
}
