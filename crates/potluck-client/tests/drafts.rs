//! Drafts change how long an answer takes, and nothing else: against a toy model whose every row is known.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod toy;

use std::{collections::BTreeMap, sync::Arc};

use common::small_model;
use potluck_chain::{
    SessionError,
    sample::{Decision, Sampler, SamplingParams},
};
use potluck_client::{Cancel, Drafts, Session};
use potluck_core::{Hidden, Logits};
use proptest::prelude::*;
use toy::{
    CLOCK, TRAVERSAL, Toy, VOCABULARY, answered, draft_engine, draft_model, expected, guessed, guessed_alone, logits,
    mix, now, request, sampled,
};

#[tokio::test]
async fn an_answer_with_drafts_is_the_answer_without() {
    let prompt: Vec<u32> = (0..9).collect();
    let penalised = SamplingParams {
        repeat_penalty: 1.2,
        presence_penalty: 0.3,
        logit_bias: vec![(3, 1.0), (4, f32::NEG_INFINITY)],
        ..sampled(7)
    };
    for params in [SamplingParams::greedy(), sampled(1), sampled(2), penalised] {
        for top in [None, Some(4), Some(1)] {
            let toy = Toy { top, ..Toy::default() };
            let began = CLOCK.get();
            let (outcome, toy) = answered(toy, Drafts::Lookup, request(params.clone(), prompt.clone(), 600)).await;
            let took = CLOCK.get() - began;
            assert_eq!(outcome.tokens, expected(&params, &prompt, 600), "{params:?}, {top:?}");
            assert!(outcome.drafts.drafted > 0, "{:?}", outcome.drafts);
            if params.temperature == 0.0 {
                assert!(
                    took < 100 * TRAVERSAL,
                    "a text that repeats itself is drafted: {took:?}, {:?}",
                    outcome.drafts
                );
            }
            if top == Some(1) && params.temperature > 0.0 {
                assert!(toy.whole_rows > 0, "one logit seldom decides");
            }
        }
    }
}

#[tokio::test]
async fn text_that_repeats_itself_keeps_the_chain_busy() {
    let request = request(SamplingParams::greedy(), (0..9).collect(), 3_000);
    let (outcome, toy) = answered(Toy::default(), Drafts::Lookup, request).await;
    assert_eq!(outcome.tokens.len(), 3_000);
    // The prompt, steps without drafts that are measured now and then, and what was learnt at first.
    assert!(toy.alone < 20, "{} of {} steps found an idle chain", toy.alone, outcome.drafts.steps);
}

#[tokio::test]
async fn what_is_in_vain_is_fenced_off() {
    let mut fences = 0;
    for seed in 0..12 {
        let params = SamplingParams { temperature: 0.5, ..sampled(seed) };
        let (outcome, toy) = answered(Toy::default(), Drafts::Auto, request(params.clone(), vec![1, 2], 400)).await;
        assert_eq!(outcome.tokens, expected(&params, &[1, 2], 400));
        fences += toy.fences;
    }
    assert!(fences > 0, "no window was ever in vain");
}

#[tokio::test]
async fn every_token_that_was_chosen_is_shown_also_where_the_chain_is_lost_amid_a_step() {
    let params = SamplingParams { temperature: 0.3, ..sampled(3) };
    let toy = |max| Toy { top: Some(2), whole_rows_max: max, ..Toy::default() };
    let mut session = Session::new(toy(Some(20)), small_model().vocabulary().await).with_drafts(Drafts::Lookup, None);
    session.set_clock(now);
    let (mut shown, mut lost) = (Vec::new(), 0);
    let never = Cancel::new();
    let on_token = |event: &potluck_client::TokenEvent| shown.push(event.token);
    let reopen = async |_: &SessionError| {
        lost += 1;
        Some(toy(Some(20)))
    };
    let request = request(params.clone(), vec![1, 2], 300);
    let outcome = session.generate_over(request, &never, on_token, reopen).await;
    // It ends well, or after as many losses as an answer outlives: what was shown is what was chosen.
    assert!(lost > 2, "{lost} losses");
    let expected = expected(&params, &[1, 2], 300);
    assert_eq!(shown, expected[..shown.len()]);
    if let Ok(outcome) = outcome {
        assert_eq!(outcome.tokens, shown);
    }
}

#[tokio::test]
async fn drafts_follow_the_prompt_where_they_follow_what_is_certain() {
    // A guess takes its time: what is certain does not wait for it.
    let toy = Toy { row: Some(TRAVERSAL / 20), ..Toy::default() };
    let model = draft_engine(guessed_alone, TRAVERSAL / 5, Arc::default()).await;
    let mut session = Session::new(toy, small_model().vocabulary().await).with_drafts(Drafts::Model, Some(model));
    session.set_clock(now);
    let params = SamplingParams::greedy();
    for (first, tokens) in [(0, 400), (1, 40), (2, 2), (3, 1), (4, 40), (5, 40), (6, 40), (8, 40)] {
        let prompt = vec![first, 7, 3, first];
        let asked = request(params.clone(), prompt.clone(), tokens);
        let outcome = session.generate(asked, &Cancel::new(), |_| {}).await.unwrap();
        assert_eq!(outcome.tokens, expected(&params, &prompt, tokens as usize), "{prompt:?}");
    }
    let toy = session.into_chain();
    assert!(toy.behind_prompt >= 4, "{} steps followed a prompt", toy.behind_prompt);
}

#[tokio::test]
async fn nothing_is_drafted_where_it_is_off_or_exact() {
    for (drafts, exact) in [(Drafts::Off, false), (Drafts::Lookup, true)] {
        let request = potluck_client::Request { exact, ..request(SamplingParams::greedy(), vec![1, 2, 3], 100) };
        let (outcome, _) = answered(Toy::default(), drafts, request).await;
        assert_eq!((outcome.drafts.drafted, outcome.drafts.steps), (0, 99));
    }
}

#[tokio::test]
async fn the_second_answer_goes_on_where_drafts_were_in_flight() {
    let vocabulary = small_model().vocabulary().await;
    let mut session = Session::new(Toy::default(), vocabulary).with_drafts(Drafts::Lookup, None);
    session.set_clock(now);
    let mut prompt: Vec<u32> = (0..6).collect();
    for seed in 0..6 {
        let params = SamplingParams { temperature: 0.4, ..sampled(seed) };
        let outcome =
            session.generate(request(params.clone(), prompt.clone(), 90), &Cancel::new(), |_| {}).await.unwrap();
        assert_eq!(outcome.tokens, expected(&params, &prompt, 90), "seed {seed}");
        prompt.extend(outcome.tokens);
        prompt.push(2);
    }
}

/// What each answer of the tests of distributions follows, and their tokens in all.
const PROMPT: [u32; 2] = [1, 2];
const TOKENS: usize = 100_000;

/// A cell of Pearson's statistic is expected to hold so many at least: below that its distribution is another.
const CELL: f64 = 5.0;

/// Standard deviations that chance does not make, and that a rule which is wrong has to make.
const CHANCE: f64 = 4.0;
const WRONG: f64 = 10.0;

/// What the target says behind a context at temperature 1, by the definitions: of the `top_k` likeliest those before
/// which less than `top_p` lies.
fn shares(context: &[u32], params: &SamplingParams) -> Vec<f64> {
    let row: Vec<f64> = logits(context).into_iter().map(|logit| f64::from(logit).exp()).collect();
    let mut kept: Vec<usize> = (0..row.len()).collect();
    // The sort is stable: of equals the first stays first.
    kept.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    let of = |tokens: &[usize]| tokens.iter().map(|token| row[*token]).sum::<f64>();
    let (all, mut before) = (of(&kept), 0.0);
    kept.retain(|token| {
        let is_kept = before < f64::from(params.top_p) * all;
        before += row[*token];
        is_kept
    });
    let sum = of(&kept);
    (0..row.len()).map(|token| if kept.contains(&token) { row[token] / sum } else { 0.0 }).collect()
}

/// Pearson's statistic of which token followed which two, over what the toy model says; and its degrees of freedom. A
/// token that it never says there makes the statistic infinite.
fn chi_square(texts: &[Vec<u32>], params: &SamplingParams) -> (f64, usize) {
    let mut seen = BTreeMap::<&[u32], Vec<f64>>::new();
    for window in texts.iter().flat_map(|text| text.windows(3)) {
        seen.entry(&window[..2]).or_insert_with(|| vec![0.0; VOCABULARY as usize])[window[2] as usize] += 1.0;
    }
    let (mut statistic, mut freedom) = (0.0, 0);
    for (context, counts) in seen {
        let all: f64 = counts.iter().sum();
        let (mut cells, mut rare) = (Vec::<(f64, f64)>::new(), (0.0, 0.0));
        for (count, share) in counts.into_iter().zip(shares(context, params)) {
            let expected = all * share;
            if share == 0.0 && count > 0.0 {
                statistic = f64::INFINITY;
            } else if expected < CELL {
                rare = (rare.0 + count, rare.1 + expected);
            } else {
                cells.push((count, expected));
            }
        }
        // What is too rare for the approximation is one cell; where that is too rare itself, it is part of another.
        if rare.1 < CELL
            && let Some(last) = cells.last_mut()
        {
            *last = (last.0 + rare.0, last.1 + rare.1);
        } else {
            cells.push(rare);
        }
        statistic += cells.iter().map(|(count, expected)| (count - expected).powi(2) / expected).sum::<f64>();
        freedom += cells.len() - 1;
    }
    (statistic, freedom)
}

/// How many standard deviations the statistic is above its mean (Wilson and Hilferty, 1931).
fn deviations(texts: &[Vec<u32>], params: &SamplingParams) -> f64 {
    assert_eq!(texts.iter().map(|text| text.len() - PROMPT.len()).sum::<usize>(), TOKENS);
    let (statistic, freedom) = chi_square(texts, params);
    let freedom = freedom as f64;
    let spread = 2.0 / (9.0 * freedom);
    ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

/// As many tokens, drawn with drafts from there in so many answers.
async fn drawn(toy: Toy, drafts: Drafts, params: &SamplingParams, answers: u64) -> Vec<Vec<u32>> {
    let model = match drafts {
        Drafts::Lookup => None,
        _ => Some(draft_model(Arc::default()).await),
    };
    let mut session = Session::new(toy, small_model().vocabulary().await).with_drafts(drafts, model);
    session.set_clock(now);
    let (mut texts, mut accepted, mut forwards) = (Vec::new(), 0, 0);
    for seed in 0..answers {
        let params = SamplingParams { seed, ..params.clone() };
        let asked = request(params, PROMPT.to_vec(), TOKENS as u32 / answers as u32);
        let outcome = session.generate(asked, &Cancel::new(), |_| {}).await.unwrap();
        (accepted, forwards) = (accepted + outcome.drafts.accepted, forwards + outcome.drafts.forwards);
        texts.push([&PROMPT[..], &outcome.tokens].concat());
    }
    assert!(accepted > TOKENS / 20, "{accepted} drafts of {drafts:?} accepted");
    assert!(forwards > TOKENS / 100 || drafts == Drafts::Lookup, "{forwards} forwards of the draft model");
    texts
}

/// As many, token by token, without any of the machinery.
fn direct(params: &SamplingParams) -> Vec<Vec<u32>> {
    let answer = |seed| expected(&SamplingParams { seed, ..params.clone() }, &PROMPT, TOKENS / 25);
    (100..125).map(|seed| [&PROMPT[..], &answer(seed)].concat()).collect()
}

#[tokio::test]
async fn what_is_drawn_has_the_targets_distribution() {
    let params = sampled(0);
    let by_itself = deviations(&direct(&params), &params);
    assert!(by_itself.abs() < CHANCE, "direct sampling: {by_itself}");
    let drafted = deviations(&drawn(Toy::default(), Drafts::Lookup, &params, 25).await, &params);
    assert!(drafted.abs() < CHANCE, "with drafts: {drafted}");
    let toy = Toy { lenient: true, ..Toy::default() };
    let wrong = deviations(&drawn(toy, Drafts::Lookup, &params, 25).await, &params);
    assert!(wrong > WRONG, "a chain that favours drafts must be told: {wrong}");
}

#[tokio::test]
async fn a_draft_model_leaves_the_targets_distribution_as_it_is() {
    let params = sampled(0);
    let drafted = deviations(&drawn(Toy::default(), Drafts::Model, &params, 100).await, &params);
    assert!(drafted.abs() < CHANCE, "{drafted}");
}

#[tokio::test]
async fn where_the_likeliest_alone_are_kept_their_distribution_is_left_as_it_is() {
    let params = SamplingParams { top_k: 6, top_p: 0.8, ..sampled(0) };
    let by_itself = deviations(&direct(&params), &params);
    assert!(by_itself.abs() < CHANCE, "direct sampling: {by_itself}");
    let drafted = deviations(&drawn(Toy::default(), Drafts::Auto, &params, 100).await, &params);
    assert!(drafted.abs() < CHANCE, "with drafts: {drafted}");
    let all = deviations(&direct(&sampled(0)), &params);
    assert!(all > WRONG, "tokens that are left out must be told: {all}");
}

/// How a draft may be judged, other than by what the target draws: whether it stands, by its share at the target and a
/// number between 0 and 1; and whether what is drawn in the place of one that does not may be the same again.
struct Rule {
    stands: fn(f64, f64) -> bool,
    again: bool,
}

/// A number between 0 and 1 that depends on these alone, and not on the sampler's noise.
fn coin(seed: u64, position: usize) -> f64 {
    let bits = mix(mix(seed.wrapping_add(0x5851_f42d_4c95_7f2d)) ^ position as u64);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// As many tokens, each guessed by the draft model and judged by that rule.
fn judged_by(rule: &Rule) -> Vec<Vec<u32>> {
    let params = sampled(0);
    let mut accepted = 0;
    let mut answer = |seed: u64| {
        let sampler = Sampler::new(sampled(seed), VOCABULARY).unwrap();
        let mut text = PROMPT.to_vec();
        while text.len() < PROMPT.len() + TOKENS / 25 {
            let guesses = guessed(&text);
            let likelier = |a: &u32, b: &u32| guesses[*a as usize].total_cmp(&guesses[*b as usize]);
            let draft = (0..VOCABULARY).max_by(likelier).unwrap();
            let share = shares(&text, &params)[draft as usize];
            let token = if (rule.stands)(share, coin(seed, text.len())) {
                accepted += 1;
                draft
            } else {
                let (row, position) = (Logits::Whole(Hidden(logits(&text))), text.len() as u32);
                let allowed: Vec<bool> = (0..VOCABULARY).map(|token| rule.again || token != draft).collect();
                let decision = sampler.sample(position, &row, Some(&allowed)).unwrap();
                let Decision::Token { token } = decision else { panic!("a whole row decides") };
                token
            };
            text.push(token);
        }
        text
    };
    let texts = (0..25).map(&mut answer).collect();
    assert!(accepted > TOKENS / 100, "{accepted} drafts stood");
    texts
}

/// The client's own rule is that a draft stands where the target has drawn the same: it is tested above. Here are
/// others, for the same statistic.
#[test]
fn a_rule_of_acceptance_that_is_wrong_is_told() {
    let by = |rule: &Rule| deviations(&judged_by(rule), &sampled(0));
    // As often as the target says it, and otherwise another: Leviathan et al., arXiv:2211.17192, for one sure guess.
    let right = by(&Rule { stands: |share, coin| coin < share, again: false });
    assert!(right.abs() < CHANCE, "the textbook's rule: {right}");
    let forgets = by(&Rule { stands: |share, coin| coin < share, again: true });
    assert!(forgets > WRONG, "one that may draw what it has refused: {forgets}");
    let content = by(&Rule { stands: |share, _| share > 0.2, again: true });
    assert!(content > WRONG, "one that is content with what is likely enough: {content}");
    let always = by(&Rule { stands: |_, _| true, again: true });
    assert!(always > WRONG, "one that refuses nothing: {always}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_prompt_and_seed(prompt in proptest::collection::vec(0..VOCABULARY, 1..40), seed: u64, temperature in 0.1f32..1.5, top in 1usize..8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let params = SamplingParams { temperature, ..sampled(seed) };
        let toy = Toy { top: Some(top), ..Toy::default() };
        let (outcome, _) = runtime.block_on(answered(toy, Drafts::Auto, request(params.clone(), prompt.clone(), 120)));
        prop_assert_eq!(outcome.tokens, expected(&params, &prompt, 120));
    }
}
