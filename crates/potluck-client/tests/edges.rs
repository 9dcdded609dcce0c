//! Drafts where they are seldom tried: branches that are accepted, answers that end amid a step, grammars and biases.
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
use potluck_chain::sample::{FinishReason, SamplingParams};
use potluck_client::{Cancel, DraftCounts, Drafts, Outcome, Request, Session};
use potluck_engine::GrammarSource;
use toy::{Toy, VOCABULARY, answered, draft_model, expected, now, request, sampled};

/// Where the toy's tokens begin that are text, a letter or so each: `P` to `_`.
const LETTERS: u32 = 64;

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
    let mut sessions = pair(LETTERS).await;
    let prompt = told_before(&mut sessions, [LETTERS + 5, LETTERS + 6]).await;
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

#[tokio::test]
async fn a_grammar_shapes_an_answer_as_without_drafts_and_drafts_that_follow_it_are_accepted() {
    let pairs = GrammarSource::Gbnf("root ::= ([P-W] [X-_])+".into());
    let schema = GrammarSource::JsonSchema(r#"{"type":"string","pattern":"^([P-W][X-Z])+$"}"#.into());
    // The grammar is asked about the tokens of a row, for it knows more of them than the toy has.
    let toy = || Toy { first: LETTERS, top: Some((LETTERS + VOCABULARY) as usize), ..Toy::default() };
    for (grammar, opening) in [(pairs, ""), (schema, "\"")] {
        for params in [SamplingParams::greedy(), SamplingParams { temperature: 0.5, ..sampled(6) }] {
            let asked = request(params, vec![LETTERS, LETTERS + 1], 300);
            let asked = Request { grammar: Some(grammar.clone()), ..asked };
            let (drafted, _) = answered(toy(), Drafts::Lookup, asked.clone()).await;
            let (plain, _) = answered(toy(), Drafts::Off, asked.clone()).await;
            assert_eq!((&drafted.tokens, &drafted.text), (&plain.tokens, &plain.text), "{asked:?}");
            let (with, without) = (drafted.drafts, plain.drafts);
            assert!(with.accepted > 20 && without.drafted == 0, "{asked:?}: {with:?}, {without:?}");
            let letters = plain.text.strip_prefix(opening).unwrap();
            let follows = |(at, letter): (usize, char)| match at.is_multiple_of(2) {
                true => ('P'..='W').contains(&letter),
                false => ('X'..='_').contains(&letter),
            };
            assert!(letters.len() > 290 && letters.chars().enumerate().all(follows), "{}", plain.text);
        }
    }
}

#[tokio::test]
async fn a_bias_shifts_what_is_said_and_no_draft_shifts_it_back() {
    const BANNED: u32 = 4;
    let (vocabulary, prompt) = (small_model().vocabulary().await, vec![1, 2]);
    assert!(expected(&sampled(9), &prompt, 400).contains(&BANNED), "without a bias it is said");
    for drafts in [Drafts::Lookup, Drafts::Model, Drafts::Auto] {
        let mut accepted = 0;
        for params in [SamplingParams::greedy(), SamplingParams { temperature: 0.5, ..sampled(8) }, sampled(9)] {
            let params = SamplingParams { logit_bias: vec![(3, 1.0), (BANNED, f32::NEG_INFINITY)], ..params };
            let asked = request(params.clone(), prompt.clone(), 400);
            let mut session = Session::new(Toy::default(), vocabulary.clone())
                .with_drafts(drafts, Some(draft_model(Arc::default()).await));
            session.set_clock(now);
            let drafted = session.generate(asked.clone(), &Cancel::new(), |_| {}).await.unwrap();
            let (plain, _) = answered(Toy::default(), Drafts::Off, asked).await;
            assert_eq!(drafted.tokens, plain.tokens, "{drafts:?}, {params:?}");
            assert_eq!(plain.tokens, expected(&params, &prompt, 400), "{params:?}");
            assert!(!plain.tokens.contains(&BANNED), "{params:?}");
            accepted += drafted.drafts.accepted;
        }
        assert!(accepted > 20, "{accepted} drafts of {drafts:?} accepted");
    }
}
