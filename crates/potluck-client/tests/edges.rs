//! Drafts where they are seldom tried: branches that are accepted, and answers that end amid a step.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod toy;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use common::small_model;
use potluck_chain::{
    Deadlines,
    sample::{FinishReason, SamplingParams},
};
use potluck_client::{Cancel, DraftCounts, DraftModel, Drafts, LocalChain, Outcome, Request, Session};
use potluck_core::{Hidden, Input, LayerRange, Logits, Output, Rows, StageCommand, StageReply};
use tokio::sync::mpsc;
use toy::{Toy, VOCABULARY, expected, logits, mix, now, request, sampled};

/// What a draft model guesses behind these tokens: the target's two likeliest, close to each other, and one time in two in the wrong
/// order.
fn guessed(text: &[u32]) -> Vec<f32> {
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

/// An engine that holds such a draft model, and counts the positions that it evaluates.
async fn draft_model(read: Arc<AtomicUsize>) -> DraftModel {
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
                        _ => vec![Logits::Whole(Hidden(guessed(&cache)))],
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
    DraftModel::new(LocalChain::over((commands, answers), of, toy::POSITIONS, Deadlines::default()).await.unwrap())
}

#[tokio::test]
async fn a_branch_that_is_accepted_goes_on_as_it_would_have_without() {
    let (mut trees, mut branches) = (0, 0);
    for params in [SamplingParams::greedy(), sampled(3), SamplingParams { temperature: 0.5, ..sampled(4) }] {
        for drafts in [Drafts::Model, Drafts::Auto] {
            for sequential in [false, true] {
                let toy = Toy { sequential, ..Toy::default() };
                let vocabulary = small_model().vocabulary().await;
                let mut session =
                    Session::new(toy, vocabulary).with_drafts(drafts, Some(draft_model(Arc::default()).await));
                session.set_clock(now);
                for prompt in [vec![1, 2], vec![3, 4, 5], vec![9, 8]] {
                    let asked = request(params.clone(), prompt.clone(), 300);
                    let outcome = session.generate(asked, &Cancel::new(), |_| {}).await.unwrap();
                    assert_eq!(outcome.tokens, expected(&params, &prompt, 300), "{params:?}, {drafts:?}");
                    assert!(outcome.drafts.accepted > 20, "{:?}", outcome.drafts);
                }
                let toy = session.into_chain();
                (trees, branches) = (trees + toy.trees, branches + toy.branches);
            }
        }
    }
    assert!(trees > 50 && branches > 20, "{trees} trees, {branches} branches went on");
}

/// Sessions over the same model, one of which drafts and knows its chain, and one that does not draft.
async fn pair(first: u32) -> [Session<Toy>; 2] {
    let vocabulary = small_model().vocabulary().await;
    let mut sessions = [Drafts::Lookup, Drafts::Off].map(|drafts| {
        let mut session = Session::new(Toy { first, ..Toy::default() }, vocabulary.clone()).with_drafts(drafts, None);
        session.set_clock(now);
        session
    });
    let learning = request(SamplingParams::greedy(), vec![1, 2], 400);
    sessions[0].generate(learning, &Cancel::new(), |_| {}).await.unwrap();
    sessions
}

/// What both say to the same, and what drafting came to at the one that drafts.
async fn both(sessions: &mut [Session<Toy>; 2], asked: &Request) -> (Outcome, DraftCounts) {
    let [drafting, plain] = sessions;
    let drafted = drafting.generate(asked.clone(), &Cancel::new(), |_| {}).await.unwrap();
    let outcome = plain.generate(asked.clone(), &Cancel::new(), |_| {}).await.unwrap();
    let told = |outcome: &Outcome| (outcome.tokens.clone(), outcome.text.clone(), outcome.finish_reason);
    assert_eq!(told(&drafted), told(&outcome));
    (outcome, drafted.drafts)
}

/// A prompt that has what follows it in it already, as far as that is.
async fn told_before(sessions: &mut [Session<Toy>; 2], prompt: [u32; 2]) -> Vec<u32> {
    let asked = request(SamplingParams::greedy(), prompt.to_vec(), 80);
    let said = sessions[1].generate(asked, &Cancel::new(), |_| {}).await.unwrap().tokens;
    [&prompt[..], &said, &prompt].concat()
}

#[tokio::test]
async fn the_last_token_may_stand_anywhere_in_a_step() {
    let mut sessions = pair(0).await;
    let (mut tokens, mut steps) = (0, 0);
    let prompt = told_before(&mut sessions, [5, 6]).await;
    for most in 1..40 {
        let asked = request(SamplingParams::greedy(), prompt.clone(), most);
        let (outcome, took) = both(&mut sessions, &asked).await;
        assert_eq!((outcome.tokens.len() as u32, outcome.finish_reason), (most, FinishReason::Length));
        (tokens, steps) = (tokens + outcome.tokens.len(), steps + took.steps);
    }
    assert!(steps * 2 < tokens, "{steps} steps for {tokens} tokens");
}

#[tokio::test]
async fn an_end_token_ends_an_answer_wherever_it_was_drafted() {
    let mut sessions = pair(0).await;
    let mut ended = 0;
    for prompt in (3..VOCABULARY).map(|token| [token, 3]) {
        let prompt = told_before(&mut sessions, prompt).await;
        let asked = Request { ignore_eos: false, ..request(SamplingParams::greedy(), prompt, 60) };
        let (outcome, drafts) = both(&mut sessions, &asked).await;
        // All tokens after the first were drafts, the last one, too.
        let drafted = outcome.tokens.len() > 2 && drafts.accepted + 1 >= outcome.tokens.len();
        ended += usize::from(outcome.finish_reason == FinishReason::Stop && drafted);
    }
    assert!(ended > 2, "{ended} answers ended amid drafts");
}

#[tokio::test]
async fn a_text_that_ends_an_answer_takes_back_what_was_accepted_behind_it() {
    // Tokens whose text is a letter or so.
    const FIRST: u32 = 64;
    let mut sessions = pair(FIRST).await;
    let prompt = told_before(&mut sessions, [FIRST + 5, FIRST + 6]).await;
    let asked = request(SamplingParams::greedy(), prompt, 60);
    let (whole, _) = both(&mut sessions, &asked).await;
    let mut amid = 0;
    for at in 2..whole.text.chars().count().min(30) {
        let stop: String = whole.text.chars().skip(at).take(3).collect();
        let asked = Request { stop: vec![stop], ..asked.clone() };
        let (outcome, drafts) = both(&mut sessions, &asked).await;
        assert_eq!(outcome.finish_reason, FinishReason::Stop);
        assert!(whole.text.starts_with(&outcome.text) && outcome.text.len() < whole.text.len());
        amid += usize::from(drafts.steps + 2 < outcome.tokens.len());
    }
    assert!(amid > 5, "{amid} answers ended amid drafts");
}

#[tokio::test]
async fn who_cancels_amid_a_step_has_what_was_shown_and_the_next_answer_is_whole() {
    let mut sessions = pair(0).await;
    let prompt = told_before(&mut sessions, [7, 8]).await;
    let [mut drafting, _] = sessions;
    let all = expected(&SamplingParams::greedy(), &prompt, 60);
    for after in 1..30 {
        let (cancel, mut shown) = (Cancel::new(), Vec::new());
        let on_token = |event: &potluck_client::TokenEvent| {
            shown.push(event.token);
            if shown.len() == after {
                cancel.cancel();
            }
        };
        let asked = request(SamplingParams::greedy(), prompt.clone(), 60);
        let outcome = drafting.generate(asked.clone(), &cancel, on_token).await.unwrap();
        assert_eq!(outcome.finish_reason, FinishReason::Cancel);
        // What one step has decided is shown together.
        assert!((after..60).contains(&shown.len()), "{} shown", shown.len());
        assert_eq!((&outcome.tokens, &shown[..]), (&shown, &all[..shown.len()]));
        let again = drafting.generate(asked, &Cancel::new(), |_| {}).await.unwrap();
        assert_eq!(again.tokens, all);
    }
}

#[tokio::test]
async fn no_step_has_more_rows_than_its_answer_can_hold() {
    let toy = Toy { most: Some(3), ..Toy::default() };
    let vocabulary = small_model().vocabulary().await;
    let mut session = Session::new(toy, vocabulary).with_drafts(Drafts::Lookup, None);
    session.set_clock(now);
    let outcome =
        session.generate(request(SamplingParams::greedy(), vec![1, 2], 400), &Cancel::new(), |_| {}).await.unwrap();
    assert_eq!(outcome.tokens, expected(&SamplingParams::greedy(), &[1, 2], 400));
    assert!(outcome.drafts.accepted > 100, "{:?}", outcome.drafts);
}

#[tokio::test]
async fn a_session_comes_to_rest_and_forgets_what_its_draft_model_has_read() {
    let (read, vocabulary) = (Arc::<AtomicUsize>::default(), small_model().vocabulary().await);
    let draft = draft_model(read.clone()).await;
    let mut session = Session::new(Toy::default(), vocabulary).with_drafts(Drafts::Auto, Some(draft));
    session.set_clock(now);
    let prompt: Vec<u32> = (0..200).map(|at| (at * 7 + at / 16) % VOCABULARY).collect();
    let (mut restless, mut took) = (0, Vec::new());
    for forgets in [false, false, true] {
        if forgets {
            session.forget_all();
        }
        let asked = request(SamplingParams::greedy(), prompt.clone(), 90);
        let (cancel, mut shown, before) = (Cancel::new(), 0, read.load(Relaxed));
        let on_token = |_: &potluck_client::TokenEvent| {
            shown += 1;
            if shown == 1 {
                // Beside the prompt.
                took.push(read.load(Relaxed) - before);
            }
            if shown == 60 {
                cancel.cancel();
            }
        };
        session.generate(asked, &cancel, on_token).await.unwrap();
        restless += usize::from(!session.is_at_rest());
        session.come_to_rest(Duration::from_secs(5)).await;
        assert!(session.is_at_rest());
    }
    assert!(restless > 0, "steps were in flight when an answer was cancelled");
    assert!(took[1] < prompt.len() / 4 && took[2] >= prompt.len() - 1, "{took:?} positions");
}
