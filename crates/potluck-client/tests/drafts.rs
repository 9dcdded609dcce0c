//! Drafts change how long an answer takes, and nothing else: against a toy model whose every row is known.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
mod toy;

use common::small_model;
use potluck_chain::{SessionError, sample::SamplingParams};
use potluck_client::{Cancel, Drafts, Session};
use proptest::prelude::*;
use toy::{CLOCK, TRAVERSAL, Toy, VOCABULARY, answered, expected, logits, now, request, sampled};

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

/// Pearson's statistic of which token followed which two, over what the toy model says; and its degrees of freedom.
fn chi_square(text: &[u32]) -> (f64, usize) {
    let mut seen = std::collections::BTreeMap::<&[u32], Vec<f64>>::new();
    for window in text.windows(3) {
        seen.entry(&window[..2]).or_insert_with(|| vec![0.0; VOCABULARY as usize])[window[2] as usize] += 1.0;
    }
    let (mut statistic, mut freedom) = (0.0, 0);
    for (context, counts) in seen {
        let row = logits(context);
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        let all: f64 = counts.iter().sum();
        let expected: Vec<f64> = row.iter().map(|logit| all * f64::from(*logit).exp() / sum).collect();
        // Cells that are too rare for the approximation are one cell.
        let (rare, common): (Vec<_>, Vec<_>) = counts.iter().zip(&expected).partition(|(_, expected)| **expected < 5.0);
        let pooled = rare.iter().fold((0.0, 0.0), |sum, (count, expected)| (sum.0 + *count, sum.1 + *expected));
        let cells: Vec<(f64, f64)> = common.into_iter().map(|(c, e)| (*c, *e)).chain([pooled]).collect();
        let cells: Vec<_> = cells.into_iter().filter(|(_, expected)| *expected >= 5.0).collect();
        statistic += cells.iter().map(|(count, expected)| (count - expected).powi(2) / expected).sum::<f64>();
        freedom += cells.len().saturating_sub(1);
    }
    (statistic, freedom)
}

/// How many standard deviations the statistic is above its mean (Wilson and Hilferty, 1931).
fn deviations(text: &[u32]) -> f64 {
    let (statistic, freedom) = chi_square(text);
    let freedom = freedom as f64;
    let spread = 2.0 / (9.0 * freedom);
    ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

/// 10^5 tokens drawn with drafts from the text so far.
async fn drawn(lenient: bool) -> Vec<u32> {
    let toy = Toy { lenient, ..Toy::default() };
    let mut session = Session::new(toy, small_model().vocabulary().await).with_drafts(Drafts::Lookup, None);
    session.set_clock(now);
    let (mut text, mut accepted) = (Vec::new(), 0);
    for seed in 0..25 {
        let request = request(sampled(seed), vec![1, 2], 4_000);
        let outcome = session.generate(request, &Cancel::new(), |_| {}).await.unwrap();
        accepted += outcome.drafts.accepted;
        text.extend(outcome.tokens);
    }
    assert!(accepted > 5_000, "{accepted} drafts accepted");
    text
}

#[tokio::test]
async fn what_is_drawn_has_the_targets_distribution() {
    let text = drawn(false).await;
    assert_eq!(text.len(), 100_000);
    let direct: Vec<u32> = (100..125).flat_map(|seed| expected(&sampled(seed), &[1, 2], 4_000)).collect();
    assert!(deviations(&direct).abs() < 4.0, "direct sampling: {}", deviations(&direct));
    assert!(deviations(&text).abs() < 4.0, "with drafts: {}", deviations(&text));
    let wrong = deviations(&drawn(true).await);
    assert!(wrong > 10.0, "a rule that favours drafts must be told: {wrong}");
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
