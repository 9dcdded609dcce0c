//! Answers of the small model by one engine child: the loop against a naive one, both ways to sample, and every end.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    process::Command,
    time::{Duration, Instant},
};

use common::{program, small_model};
use potluck_chain::Submission;
use potluck_chain::{
    Answer, Deadlines, SessionError,
    sample::{FinishReason, SamplingParams},
};
use potluck_client::{
    Cancel, Chain, ChainShape, DraftModel, Drafts, GenerateError, LocalChain, Outcome, Request, Session, StageAccount,
    TokenEvent,
};
use potluck_core::{Hidden, Logits, Rows};
use potluck_engine::{EngineProcess, GrammarSource};

const POSITIONS: u32 = 512;

/// The shape of a batch alone moves a logit of this model by up to so much (`docs/benchmarks.md`): a token that is no
/// further behind the largest is as good as it, and one that is further behind was not the target's choice.
const NEAR_TIE: f32 = 0.4;

const PROMPT: &str = "<|im_start|>user\nTell me a story about a llama.<|im_end|>\n<|im_start|>assistant\n";

async fn chain() -> (LocalChain, u32) {
    let engine = EngineProcess::start(program(), small_model().whole()).await.unwrap();
    let pid = engine.pid();
    (LocalChain::open(engine, POSITIONS, Deadlines::default()).await.unwrap(), pid)
}

/// One that drafts nothing: whether it pays to is the clock's to say, and a near-tie may fall otherwise then (`edges.rs` has drafts).
async fn session() -> Session<LocalChain> {
    Session::new(chain().await.0, small_model().vocabulary().await).with_drafts(Drafts::Off, None)
}

async fn request<C: Chain>(session: &Session<C>, max_tokens: u32) -> Request {
    let prompt = session.tokenize(PROMPT).await.unwrap();
    Request { max_tokens: Some(max_tokens), params: SamplingParams::greedy(), ..Request::new(prompt) }
}

async fn answer<C: Chain>(request: Request, session: &mut Session<C>) -> Outcome {
    session.generate(request, &Cancel::new(), |_| {}).await.unwrap()
}

fn largest(row: &Logits) -> u32 {
    let Logits::Whole(row) = row else { panic!("a whole row was asked for") };
    (0..row.0.len()).max_by(|&a, &b| row.0[a].total_cmp(&row.0[b]).then(b.cmp(&a))).unwrap() as u32
}

#[tokio::test]
async fn greedy_is_the_largest_logit_token_by_token() {
    let mut session = session().await;
    let request = request(&session, 40).await;
    let prompt = request.prompt.clone();
    let mut shown = String::new();
    let outcome = session.generate(request, &Cancel::new(), |event| shown += &event.text).await.unwrap();
    assert_eq!(shown, outcome.text);
    assert_eq!((outcome.finish_reason, outcome.tokens.len()), (FinishReason::Length, 40));
    assert_eq!((outcome.prompt_tokens, outcome.reused_tokens), (prompt.len(), 0));
    assert!(outcome.ttft_s > 0.0 && outcome.prefill_tokens_per_s > 0.0 && outcome.decode_tokens_per_s > 0.0);

    let (mut chain, _) = chain().await;
    chain.submit(Submission::chain(0, prompt.clone(), Rows::Last, 0)).await.unwrap();
    let mut expected = Vec::new();
    while expected.len() < 40 {
        let Answer { start, count, rows, .. } = chain.answer().await.unwrap();
        expected.push(largest(&rows[0]));
        chain
            .submit(Submission::chain(start + u32::from(count), expected[expected.len() - 1..].to_vec(), Rows::Last, 0))
            .await
            .unwrap();
    }
    assert_eq!(outcome.tokens, expected);
}

/// A chain that is asked for other numbers of logits than the loop wanted.
struct Asked {
    chain: LocalChain,
    top: u16,
    rows: usize,
}

impl Chain for Asked {
    fn shape(&self) -> ChainShape {
        self.chain.shape()
    }

    fn takes_drafts(&self) -> bool {
        self.chain.takes_drafts()
    }

    async fn submit(&mut self, submission: Submission) -> Result<u32, SessionError> {
        self.chain.submit(Submission { top: self.top, ..submission }).await
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        self.chain.answer().await
    }

    async fn row(&mut self, sequence: u32, row: u16) -> Result<Hidden, SessionError> {
        self.rows += 1;
        self.chain.row(sequence, row).await
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        self.chain.accounts().await
    }

    fn bytes_written(&self) -> u64 {
        self.chain.bytes_written()
    }

    async fn let_go(&mut self) {
        self.chain.let_go().await;
    }

    async fn close(self) {
        self.chain.close().await;
    }
}

/// A chain that is far away, as the loop's clock tells it; when the steps left that are under way.
struct Far(LocalChain, VecDeque<Instant>);

impl Far {
    fn new(chain: LocalChain) -> Self {
        Self(chain, VecDeque::new())
    }
}

thread_local! {
    static AWAY: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Milliseconds there and back.
const TRAVERSAL: Duration = Duration::from_millis(300);

fn far_away() -> Instant {
    Instant::now() + AWAY.get()
}

impl Chain for Far {
    fn shape(&self) -> ChainShape {
        self.0.shape()
    }

    fn takes_drafts(&self) -> bool {
        true
    }

    async fn submit(&mut self, submission: Submission) -> Result<u32, SessionError> {
        self.1.push_back(far_away());
        self.0.submit(submission).await
    }

    async fn answer(&mut self) -> Result<Answer, SessionError> {
        let answer = self.0.answer().await?;
        let comes = self.1.pop_front().unwrap() + TRAVERSAL;
        AWAY.set(AWAY.get() + comes.saturating_duration_since(far_away()));
        Ok(answer)
    }

    async fn row(&mut self, sequence: u32, row: u16) -> Result<Hidden, SessionError> {
        self.0.row(sequence, row).await
    }

    async fn accounts(&mut self) -> Result<Option<Vec<StageAccount>>, SessionError> {
        self.0.accounts().await
    }

    fn bytes_written(&self) -> u64 {
        0
    }

    async fn let_go(&mut self) {
        self.0.let_go().await;
    }

    async fn close(self) {
        self.0.close().await;
    }
}

#[tokio::test]
async fn a_draft_model_saves_traversals_and_each_token_is_the_targets_own() {
    let vocabulary = small_model().vocabulary().await;
    let draft = DraftModel::new(chain().await.0);
    let mut session = Session::new(Far::new(chain().await.0), vocabulary).with_drafts(Drafts::Model, Some(draft));
    session.set_clock(far_away);
    let request = request(&session, 80).await;
    let prompt = request.prompt.clone();
    let outcome = answer(request, &mut session).await;
    // What was waited for the way alone: how fast this machine is says nothing.
    let waited = AWAY.get();
    assert_eq!(outcome.tokens.len(), 80);
    let drafts = outcome.drafts;
    let saved = waited < 40 * TRAVERSAL;
    assert!(drafts.accepted > 40 && saved, "it guesses what it would say itself: {waited:?}, {drafts:?}");
    assert!(drafts.forwards >= drafts.accepted);

    // One batch of all of it is rounded otherwise: what was chosen is the largest, or as good as the largest.
    let (mut chain, _) = chain().await;
    let text = [&prompt[..], &outcome.tokens].concat();
    chain.submit(Submission::chain(0, text[..text.len() - 1].to_vec(), Rows::All, 0)).await.unwrap();
    let rows = chain.answer().await.unwrap().rows;
    for (row, &token) in rows[prompt.len() - 1..].iter().zip(&outcome.tokens) {
        let Logits::Whole(logits) = row else { panic!("a whole row was asked for") };
        let (chosen, largest) = (logits.0[token as usize], logits.0[largest(row) as usize]);
        assert!(largest - chosen <= NEAR_TIE, "{token} has {chosen}, the largest {largest}");
    }
}

#[tokio::test]
async fn a_draft_model_that_is_lost_is_done_without() {
    let vocabulary = small_model().vocabulary().await;
    let (draft, pid) = chain().await;
    let mut session =
        Session::new(Far::new(chain().await.0), vocabulary).with_drafts(Drafts::Auto, Some(DraftModel::new(draft)));
    session.set_clock(far_away);
    let kill = || Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    let request = request(&session, 60).await;
    let mut shown = 0;
    let never = Cancel::new();
    let outcome = session.generate(request, &never, |_| {
        shown += 1;
        if shown == 20 {
            kill();
        }
    });
    assert_eq!(outcome.await.unwrap().tokens.len(), 60);
    assert!(session.take_drafting().take_model().is_none());
}

#[tokio::test]
async fn one_seed_gives_one_text_however_much_of_a_row_is_seen() {
    let params = SamplingParams {
        temperature: 0.9,
        top_k: 0,
        top_p: 0.9,
        min_p: 0.0,
        repeat_penalty: 1.1,
        seed: 5,
        logprobs: Some(2),
        ..SamplingParams::default()
    };
    let mut seen = Vec::new();
    for top in [0, 2, 40, 128] {
        let asked = Asked { chain: chain().await.0, top, rows: 0 };
        let mut session = Session::new(asked, small_model().vocabulary().await).with_drafts(Drafts::Off, None);
        let request = Request { params: params.clone(), ..request(&session, 48).await };
        let outcome = answer(request, &mut session).await;
        seen.push((outcome.tokens, outcome.text, session.chain().rows));
    }
    assert!(seen.iter().all(|(tokens, text, _)| (tokens, text) == (&seen[0].0, &seen[0].1)), "{seen:?}");
    let rows: Vec<usize> = seen.iter().map(|(_, _, rows)| *rows).collect();
    assert_eq!(rows[0], 0, "whole rows need no second question");
    assert!(rows[1] > rows[3] && rows[1] > 20, "two logits seldom decide: {rows:?}");
    assert!(rows[3] < 24, "128 mostly do: {rows:?}");
}

#[tokio::test]
async fn every_end_is_named() {
    let mut session = session().await;
    // The same text each time: the prompt is evaluated in the same steps.
    let request = async |session: &Session<LocalChain>, max| Request { reuse: false, ..request(session, max).await };
    let free = answer(request(&session, 60).await, &mut session).await;
    // A text from the middle of the answer, across tokens.
    let (at, _) = free.text.char_indices().nth(60).unwrap();
    let stop = free.text[at..at + 9].to_owned();
    let stopped = answer(Request { stop: vec![stop.clone()], ..request(&session, 60).await }, &mut session).await;
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert_eq!(stopped.text, free.text[..free.text.find(&stop).unwrap()]);
    assert_eq!(stopped.tokens[..], free.tokens[..stopped.tokens.len()]);

    let end = session.vocabulary().info().ends[0];
    let logit_bias = vec![(end, 1_000.0)];
    let ends =
        Request { params: SamplingParams { logit_bias, ..SamplingParams::greedy() }, ..request(&session, 5).await };
    let ended = answer(ends.clone(), &mut session).await;
    assert_eq!((ended.finish_reason, ended.tokens, ended.text.as_str()), (FinishReason::Stop, vec![end], ""));
    let ignored = answer(Request { ignore_eos: true, ..ends }, &mut session).await;
    assert_eq!((ignored.finish_reason, ignored.tokens), (FinishReason::Length, vec![end; 5]));

    let none = answer(request(&session, 0).await, &mut session).await;
    assert_eq!((none.finish_reason, none.tokens.len()), (FinishReason::Length, 0));
}

#[tokio::test]
async fn a_cancelled_answer_leaves_a_session_that_goes_on() {
    let mut session = session().await;
    let cancel = Cancel::new();
    let request = Request { chunk: 8, ..request(&session, 200).await };
    let mut tokens = 0;
    let result = session.generate(request.clone(), &cancel, |_| {
        tokens += 1;
        if tokens == 5 {
            cancel.cancel();
        }
    });
    let cancelled = result.await.unwrap();
    assert_eq!((cancelled.finish_reason, cancelled.tokens.len()), (FinishReason::Cancel, 5), "within a step");
    // Already cancelled: nothing of the prompt is waited for.
    let nothing = session.generate(request.clone(), &cancel, |_| {}).await.unwrap();
    assert_eq!((nothing.finish_reason, nothing.tokens.len()), (FinishReason::Cancel, 0));

    let next = [request.prompt.clone(), cancelled.tokens.clone()].concat();
    let again = answer(Request { prompt: next, max_tokens: Some(8), ..request.clone() }, &mut session).await;
    assert!(again.reused_tokens >= 8, "what a cancelled prefill had sent is not sent again");
    assert_eq!(again.tokens.len(), 8);
}

#[tokio::test]
async fn a_conversation_evaluates_only_what_is_new() {
    let mut session = session().await;
    let request = request(&session, 12).await;
    let first = answer(request.clone(), &mut session).await;
    let question = session.tokenize_raw("\nAnd then?").await.unwrap();
    let prompt = [request.prompt.clone(), first.tokens.clone(), question].concat();
    let second = answer(Request { prompt: prompt.clone(), ..request.clone() }, &mut session).await;
    // All but the answer's last token, which no step ever carried.
    assert_eq!(second.reused_tokens, request.prompt.len() + first.tokens.len() - 1);
    let other = answer(request.clone(), &mut session).await;
    assert_eq!(other.reused_tokens, request.prompt.len() - 1, "the last token's logits are always wanted");
}

#[tokio::test]
async fn a_schema_is_followed() {
    let mut session = session().await.with_drafts(Drafts::Lookup, None);
    let schema = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":0,"maximum":99}},"required":["name","age"],"additionalProperties":false}"#;
    for params in [SamplingParams::greedy(), SamplingParams { seed: 3, ..SamplingParams::default() }] {
        let grammar = Some(GrammarSource::JsonSchema(schema.into()));
        let outcome = answer(Request { grammar, params, ..request(&session, 100).await }, &mut session).await;
        let value: serde_json::Value =
            serde_json::from_str(&outcome.text).unwrap_or_else(|_| panic!("{}", outcome.text));
        assert!(value["name"].is_string() && value["age"].as_u64().is_some_and(|age| age <= 99), "{value}");
        assert_eq!(outcome.finish_reason, FinishReason::Stop);
    }
    let broken = Request { grammar: Some(GrammarSource::Gbnf("root ::= (".into())), ..request(&session, 5).await };
    let error = session.generate(broken, &Cancel::new(), |_| {}).await.unwrap_err();
    assert_eq!(error.code(), "bad_grammar");
    assert_eq!(answer(request(&session, 5).await, &mut session).await.tokens.len(), 5, "and the session lives");
}

#[tokio::test]
async fn the_context_ends_an_answer_and_refuses_a_prompt() {
    let mut session = session().await;
    let long = vec![500; POSITIONS as usize - 3];
    let request =
        Request { prompt: long, ignore_eos: true, params: SamplingParams::greedy(), ..Request::new(Vec::new()) };
    let outcome = answer(request.clone(), &mut session).await;
    assert_eq!((outcome.finish_reason, outcome.tokens.len()), (FinishReason::Length, 4));
    let too_long = Request { prompt: vec![500; POSITIONS as usize + 1], ..request.clone() };
    let error = session.generate(too_long, &Cancel::new(), |_| {}).await.unwrap_err();
    assert_eq!(error, GenerateError::PromptTooLong { tokens: 513, positions: POSITIONS });
    let empty = session.generate(Request { prompt: Vec::new(), ..request }, &Cancel::new(), |_| {}).await;
    assert_eq!(empty.unwrap_err(), GenerateError::EmptyPrompt);
}

#[tokio::test]
async fn log_probabilities_come_with_each_token() {
    let mut session = session().await;
    let params = SamplingParams { logprobs: Some(3), ..SamplingParams::greedy() };
    let outcome = answer(Request { params, ..request(&session, 6).await }, &mut session).await;
    let logprobs = outcome.logprobs.unwrap();
    assert_eq!(logprobs.len(), 6);
    for (entry, token) in logprobs.iter().zip(&outcome.tokens) {
        assert_eq!((entry.top.len(), entry.top[0].0), (3, *token), "greedy takes the likeliest");
        assert_eq!(entry.logprob, Some(entry.top[0].1));
        assert!(entry.top.windows(2).all(|pair| pair[0].1 >= pair[1].1) && entry.top[0].1 <= 0.0);
    }
}

#[tokio::test]
async fn a_killed_engine_ends_the_answer_with_its_reason() {
    let (chain, pid) = chain().await;
    let mut session = Session::new(chain, small_model().vocabulary().await);
    let request = request(&session, 400).await;
    let (mut tokens, cancel) = (0, Cancel::new());
    let result = session.generate(request, &cancel, |_| {
        tokens += 1;
        if tokens == 3 {
            assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        }
    });
    let error = result.await.unwrap_err();
    assert!(matches!(error, GenerateError::Session(SessionError::Own { .. })), "{error}");
    assert!(tokens < 100, "it ended when the engine did");
}

/// Kills its engine after so many tokens each time, as long as there is another to go on with.
async fn goes_on(kill_at: &[usize], chains: usize) -> (Result<Outcome, GenerateError>, Vec<u32>, String) {
    let (first, pid) = chain().await;
    let mut session = Session::new(first, small_model().vocabulary().await);
    let request = Request { exact: true, ..request(&session, 40).await };
    let (pid, tokens, text) = (Cell::new(pid), RefCell::new(Vec::new()), RefCell::new(String::new()));
    let on_token = |event: &TokenEvent| {
        tokens.borrow_mut().push(event.token);
        text.borrow_mut().push_str(&event.text);
        if kill_at.contains(&tokens.borrow().len()) {
            assert!(Command::new("kill").args(["-9", &pid.get().to_string()]).status().unwrap().success());
        }
    };
    let mut left = chains;
    let reopen = async |_: &SessionError| {
        left = left.checked_sub(1)?;
        let (chain, its) = chain().await;
        pid.set(its);
        Some(chain)
    };
    let result = session.generate_over(request, &Cancel::new(), on_token, reopen).await;
    (result, tokens.into_inner(), text.into_inner())
}

#[tokio::test]
async fn an_answer_goes_on_over_another_chain_without_losing_a_token() {
    let mut alone = session().await;
    let request = request(&alone, 40).await;
    let whole = answer(request, &mut alone).await;
    let (outcome, tokens, text) = goes_on(&[1, 17, 39], 3).await;
    let outcome = outcome.unwrap();
    assert_eq!((outcome.resumed, whole.resumed), (3, 0));
    assert_eq!(outcome.tokens, whole.tokens, "as if nothing had happened");
    assert_eq!((tokens, text), (whole.tokens, whole.text), "and each was shown once");
    // Where there is no other chain, the error is the last one's, and what was shown stands.
    let (outcome, tokens, _) = goes_on(&[5, 9], 1).await;
    assert!(matches!(outcome.unwrap_err(), GenerateError::Session(SessionError::Own { .. })));
    assert!((9..12).contains(&tokens.len()), "{}", tokens.len());
    assert_eq!(tokens, outcome_prefix(&tokens, alone).await);
}

async fn outcome_prefix(tokens: &[u32], mut session: Session<LocalChain>) -> Vec<u32> {
    let request = request(&session, tokens.len() as u32).await;
    answer(request, &mut session).await.tokens
}
