//! What must hold for every row and every parameter.

use potluck_core::{Hidden, Logits};
use proptest::prelude::*;

use super::*;

fn whole(row: &[f32]) -> Logits {
    Logits::Whole(Hidden(row.to_vec()))
}

fn sampler(params: SamplingParams, row: &[f32], history: &[u32]) -> Sampler {
    let mut sampler = Sampler::new(params, row.len() as u32).unwrap();
    history.iter().for_each(|&token| sampler.accept(token));
    sampler
}

/// Logits as models make them: few large ones, ties, and now and then an infinity or none at all.
fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        20 => -12f32..4.0,
        5 => 4f32..14.0,
        5 => (-8i8..8).prop_map(f32::from),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::NAN),
    ]
}

fn params(vocabulary: u32) -> impl Strategy<Value = SamplingParams> {
    let share = || prop_oneof![Just(1.0f32), 0f32..1.0, Just(0.95)];
    let bias = prop_oneof![-3f32..6.0, Just(f32::NEG_INFINITY)];
    let filters = (0u32..60, share(), share(), prop_oneof![Just(0f32), 0f32..0.5]);
    let penalties = (prop_oneof![Just(1f32), 0.7f32..1.6], 0u32..20, -1f32..1.0, -0.5f32..0.5);
    let rest = (prop_oneof![Just(0f32), 0.1f32..3.0], prop::collection::vec((0..vocabulary, bias), 0..6), any::<u64>());
    (filters, penalties, rest).prop_map(
        |((top_k, typical_p, top_p, min_p), penalties, (temperature, logit_bias, seed))| {
            let (repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty) = penalties;
            SamplingParams {
                temperature,
                top_k: top_k.saturating_sub(20),
                typical_p,
                top_p,
                min_p,
                repeat_penalty,
                repeat_last_n,
                presence_penalty,
                frequency_penalty,
                logit_bias,
                seed,
                logprobs: None,
            }
        },
    )
}

#[derive(Debug, Clone)]
struct Case {
    row: Vec<f32>,
    params: SamplingParams,
    history: Vec<u32>,
    allowed: Option<Vec<bool>>,
    top: usize,
    position: u32,
}

fn case() -> impl Strategy<Value = Case> {
    (2u32..120).prop_flat_map(|vocabulary| {
        let mask = prop::collection::vec(prop::bool::weighted(0.6), vocabulary as usize);
        let history = prop::collection::vec(0..vocabulary, 0..30);
        let row = prop::collection::vec(logit(), vocabulary as usize);
        (row, params(vocabulary), history, prop::option::weighted(0.3, mask), 1usize..120, any::<u32>()).prop_map(
            |(row, params, history, allowed, top, position)| Case { row, params, history, allowed, top, position },
        )
    })
}

/// Few tokens, few of them absent, much noise: what is uncertain wins often.
fn crowded() -> impl Strategy<Value = Case> {
    (3u32..9, 1usize..3).prop_flat_map(|(vocabulary, absent)| {
        let row = prop::collection::vec(-1f32..1.0, vocabulary as usize);
        let bias = prop::collection::vec((0..vocabulary, -2f32..1.0), 0..4);
        (row, bias, 0u32..5, 2f32..6.0, any::<u64>()).prop_map(move |(row, logit_bias, top_k, temperature, seed)| {
            let filters = SamplingParams { top_p: 1.0, min_p: 0.0, ..SamplingParams::default() };
            let params = SamplingParams { top_k, temperature, logit_bias, seed, ..filters };
            let top = (row.len() - absent).max(1);
            Case { row, params, history: Vec::new(), allowed: None, top, position: 0 }
        })
    })
}

/// Top-p so close to the mass of the first few tokens that rounding decides.
fn at_an_edge() -> impl Strategy<Value = Case> {
    let row = prop::collection::vec(-40f32..-34.0, 24);
    (row, 1usize..7, any::<u64>(), -3i32..4).prop_map(|(row, first, seed, ulps)| {
        let mut sorted = row.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let mass = |row: &[f32]| row.iter().map(|&l| f64::from(l).exp()).sum::<f64>();
        let top_p = (mass(&sorted[..first]) / mass(&sorted)) as f32;
        let top_p = f32::from_bits(top_p.to_bits().saturating_add_signed(ulps));
        let params =
            SamplingParams { top_k: 0, top_p, min_p: 0.0, temperature: 50.0, seed, ..SamplingParams::default() };
        Case { row, params, history: Vec::new(), allowed: None, top: 12, position: 0 }
    })
}

fn decide_both_ways(case: &Case) -> (Result<Decision, SampleError>, Result<Decision, SampleError>) {
    let sampler = sampler(case.params.clone(), &case.row, &case.history);
    let reduced = Logits::reduce(&case.row, case.top);
    let of = |row: &Logits| {
        let mask = |allowed: &Vec<bool>| Sampler::tokens_of(row).iter().map(|&t| allowed[t as usize]).collect();
        let mask: Option<Vec<bool>> = case.allowed.as_ref().map(mask);
        sampler.sample(case.position, row, mask.as_deref())
    };
    (of(&reduced), of(&whole(&case.row)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    /// The promise of this module.
    #[test]
    fn a_reduced_row_decides_as_the_whole_row_would(case in case()) {
        let (reduced, whole) = decide_both_ways(&case);
        prop_assert_ne!(&whole, &Ok(Decision::NeedWholeRow));
        if reduced != Ok(Decision::NeedWholeRow) {
            prop_assert_eq!(reduced, whole);
        }
    }

    #[test]
    fn and_where_the_uncertain_wins_or_rounding_decides(case in prop_oneof![crowded(), at_an_edge()]) {
        let (reduced, whole) = decide_both_ways(&case);
        if reduced != Ok(Decision::NeedWholeRow) {
            prop_assert_eq!(reduced, whole);
        }
    }

    /// A tail that lies or breaks may spoil the answer, but nothing else.
    #[test]
    fn hostile_rows_do_not_panic(
        largest in prop::collection::vec((0u32..60, prop_oneof![logit(), Just(f32::INFINITY), any::<f32>()]), 0..70),
        log_sum_exp in prop_oneof![any::<f32>(), -5f32..5.0, Just(f32::NAN)],
        params in params(50),
    ) {
        let _ = sampler(params, &[0.0; 50], &[1, 2, 3]).sample(3, &Logits::Top { largest, log_sum_exp }, None);
    }

    /// Filters against the definitions, one token at a time.
    #[test]
    fn filters_keep_what_their_definitions_say(case in case()) {
        let sampler = sampler(case.params.clone(), &case.row, &case.history);
        let (mut pool, _) = sampler.pool(&whole(&case.row), case.allowed.as_deref()).unwrap();
        if case.params.temperature == 0.0 { return Ok(()) }
        prop_assert_eq!(pool.filter(&case.params), Some(()));
        let kept: Vec<u32> = pool.candidates.iter().map(|c| c.token).collect();
        let expected = naive(&case);
        prop_assert!(kept == expected || near_tie(&case, &kept, &expected), "{kept:?} {expected:?}");
    }
}

/// The kept tokens by the definitions, in order, computed over all of them at each step.
fn naive(case: &Case) -> Vec<u32> {
    let history = {
        let mut history = History::new(&case.params);
        case.history.iter().for_each(|&t| history.push(t));
        history
    };
    let allowed = |i: usize| case.allowed.as_ref().is_none_or(|a| a[i]);
    let mut left: Vec<(u32, f64)> = (0..case.row.len())
        .filter(|&i| allowed(i) && !case.row[i].is_nan())
        .map(|i| (i as u32, history.adjust(&case.params, i as u32, case.row[i]).into()))
        .filter(|(_, l)| *l > f64::NEG_INFINITY)
        .collect();
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let softmax = |left: &[(u32, f64)]| -> Vec<f64> {
        let sum: f64 = left.iter().map(|x| x.1.exp()).sum();
        left.iter().map(|x| x.1.exp() / sum).collect()
    };
    if case.params.top_k > 0 {
        left.truncate(case.params.top_k as usize);
    }
    if case.params.typical_p < 1.0 && !left.is_empty() {
        let p = softmax(&left);
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        let mut by: Vec<usize> = (0..left.len()).collect();
        by.sort_by(|&a, &b| ((-p[a].ln() - entropy).abs()).total_cmp(&(-p[b].ln() - entropy).abs()));
        let mut sum = 0.0;
        let mut keep = by.len();
        for (i, &j) in by.iter().enumerate() {
            sum += p[j];
            if sum > f64::from(case.params.typical_p) {
                keep = i + 1;
                break;
            }
        }
        let mut kept = by[..keep].to_vec();
        kept.sort_unstable();
        left = kept.into_iter().map(|i| left[i]).collect();
    }
    if case.params.top_p < 1.0 {
        let p = softmax(&left);
        let before = |i: usize| p[..i].iter().sum::<f64>();
        left =
            (0..left.len()).filter(|&i| i == 0 || before(i) < f64::from(case.params.top_p)).map(|i| left[i]).collect();
    }
    if case.params.min_p > 0.0 && !left.is_empty() {
        let p = softmax(&left);
        let most = p[0];
        left = (0..left.len()).filter(|&i| p[i] >= most * f64::from(case.params.min_p)).map(|i| left[i]).collect();
    }
    left.into_iter().map(|x| x.0).collect()
}

/// True where both differ by tokens of one logit only, or by one token at a threshold: rounding, not a rule.
fn near_tie(case: &Case, a: &[u32], b: &[u32]) -> bool {
    let mut different: Vec<u32> = a.iter().chain(b).filter(|t| a.contains(t) != b.contains(t)).copied().collect();
    different.sort_unstable();
    let typical_ties = case.params.typical_p < 1.0 && case.row.iter().any(|l| l.fract() == 0.0);
    different.len() <= 1 || typical_ties
}

fn peaked_row(seed: u64, vocabulary: usize) -> Vec<f32> {
    let noise = Noise::new(seed, 0);
    (0..vocabulary as u32).map(|t| noise.gumbel(t) as f32 * 2.0).collect()
}

#[test]
fn usual_parameters_need_no_whole_row() {
    let mut params = SamplingParams { seed: 3, repeat_penalty: 1.1, ..SamplingParams::default() };
    for top_k in [1, 40] {
        params.top_k = top_k;
        for seed in 0..50 {
            let row = peaked_row(seed, 20_000);
            let sampler = sampler(params.clone(), &row, &(0..40).map(|t| t * 37).collect::<Vec<_>>());
            let reduced = sampler.sample(9, &Logits::reduce(&row, params.top(false).into()), None).unwrap();
            assert_ne!(reduced, Decision::NeedWholeRow, "seed {seed}");
            assert_eq!(reduced, sampler.sample(9, &whole(&row), None).unwrap());
        }
    }
}

#[test]
fn a_draw_from_all_is_mostly_decided_by_the_largest() {
    let params = SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 0.7, ..SamplingParams::default() };
    let rows = (0..100).map(|seed| (seed, peaked_row(seed, 20_000)));
    let decided = rows
        .filter(|(seed, row)| {
            let sampler = sampler(SamplingParams { seed: *seed, ..params.clone() }, row, &[]);
            sampler.sample(1, &Logits::reduce(row, 128), None).unwrap() != Decision::NeedWholeRow
        })
        .count();
    assert!((60..100).contains(&decided), "{decided} of 100: some need the row, most do not");
}

#[test]
fn what_a_reduced_row_cannot_decide_is_asked_for() {
    let row: Vec<f32> = (0..100).map(|i| -(i as f32) / 100.0).collect();
    let needs = |params: SamplingParams, allowed: Option<&[bool]>| {
        let sampler = sampler(params, &row, &[]);
        sampler.sample(0, &Logits::reduce(&row, 10), allowed).unwrap() == Decision::NeedWholeRow
    };
    let greedy = SamplingParams::greedy;
    assert!(!needs(greedy(), None));
    assert!(needs(SamplingParams { logit_bias: vec![(50, 2.0)], ..greedy() }, None), "a bias on an absent token");
    assert!(!needs(SamplingParams { logit_bias: vec![(50, -2.0)], ..greedy() }, None), "which only lowers it");
    assert!(needs(greedy(), Some(&[false; 10])), "a grammar that forbids all that is present");
    assert!(needs(SamplingParams { typical_p: 0.5, top_k: 0, ..greedy() }, None), "typical looks at all");
    assert!(!needs(SamplingParams { typical_p: 0.5, top_k: 5, ..greedy() }, None), "of five");
}

#[test]
fn nothing_left_and_misshapen_rows_are_errors() {
    let sampler =
        Sampler::new(SamplingParams { logit_bias: vec![(0, f32::NEG_INFINITY)], ..Default::default() }, 2).unwrap();
    let row = whole(&[1.0, 2.0]);
    assert_eq!(sampler.sample(0, &row, Some(&[true, false])), Err(SampleError::NothingLeft(2)));
    assert!(matches!(sampler.sample(0, &row, Some(&[true])), Err(SampleError::Shape { mask: 1, .. })));
    assert!(matches!(sampler.sample(0, &whole(&[1.0]), None), Err(SampleError::Shape { row: 1, .. })));
    let stranger = Logits::Top { largest: vec![(2, 0.0)], log_sum_exp: 0.0 };
    assert!(sampler.sample(0, &stranger, None).is_err());
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    let row = [1.0, 3.0, 3.0, 3.0];
    for top in 1..=4 {
        let sampler = sampler(SamplingParams::greedy(), &row, &[]);
        assert_eq!(sampler.sample(0, &Logits::reduce(&row, top), None), Ok(Decision::Token { token: 1 }), "{top}");
    }
}

/// Pearson's statistic of `draws` draws against the softmax of `row` at `temperature`.
fn chi_square(row: &[f32], temperature: f64, draws: u32, draw: impl Fn(u32) -> usize) -> f64 {
    let weights: Vec<f64> = row.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut counts = vec![0u32; row.len()];
    (0..draws).for_each(|position| counts[draw(position)] += 1);
    let expected = weights.iter().map(|w| w / sum * f64::from(draws));
    counts.iter().zip(expected).map(|(&n, e)| (f64::from(n) - e).powi(2) / e).sum()
}

/// With 11 degrees of freedom a sound rule stays below this all but once in ten million.
const CHI_SQUARE_MAX: f64 = 54.0;

#[test]
fn draws_follow_the_softmax_and_wrong_rules_do_not() {
    let row: Vec<f32> = (0..12).map(|i| (i as f32 * 1.7).sin() * 1.5).collect();
    let draws = 60_000;
    for temperature in [0.5f32, 1.0, 1.8] {
        let params = SamplingParams { temperature, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 11, ..Default::default() };
        let sampler = sampler(params, &row, &[]);
        let with_row = |position| match sampler.sample(position, &whole(&row), None) {
            Ok(Decision::Token { token }) => token as usize,
            other => panic!("{other:?}"),
        };
        let t = f64::from(temperature);
        let statistic = chi_square(&row, t, draws, with_row);
        assert!(statistic < CHI_SQUARE_MAX, "temperature {temperature}: {statistic}");
        let both_ways = |position| match sampler.sample(position, &Logits::reduce(&row, 5), None) {
            Ok(Decision::Token { token }) => token as usize,
            _ => with_row(position),
        };
        assert!(chi_square(&row, t, draws, both_ways) < CHI_SQUARE_MAX);

        let argmax =
            |score: &dyn Fn(u32) -> f64| (0..12u32).max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap() as usize;
        let uniform_noise = |position| {
            let noise = Noise::new(11, position);
            argmax(&|token| f64::from(row[token as usize]) / t + noise.bits(token) as f64 / u64::MAX as f64)
        };
        let present_only = |position| match sampler.sample(position, &Logits::reduce(&row, 5), None) {
            Ok(Decision::Token { token }) => token as usize,
            _ => argmax(&|token| row[token as usize].into()),
        };
        let cold = |position| {
            let noise = Noise::new(11, position);
            argmax(&|token| f64::from(row[token as usize]) / t * 1.1 + noise.gumbel(token))
        };
        assert!(chi_square(&row, t, draws, uniform_noise) > CHI_SQUARE_MAX, "the test must tell uniform noise");
        assert!(chi_square(&row, t, draws, present_only) > CHI_SQUARE_MAX, "and a draw that forgets the rest");
        assert!(chi_square(&row, t, draws, cold) > CHI_SQUARE_MAX, "and a temperature off by a tenth");
    }
}

#[test]
fn seeds_are_independent() {
    let row = [0.0; 12];
    let params = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Default::default() };
    let draw = |seed: u32| {
        let sampler = sampler(SamplingParams { seed: seed.into(), ..params.clone() }, &row, &[]);
        match sampler.sample(5, &whole(&row), None) {
            Ok(Decision::Token { token }) => token as usize,
            other => panic!("{other:?}"),
        }
    };
    assert!(chi_square(&row, 1.0, 60_000, draw) < CHI_SQUARE_MAX);
}

proptest! {
    /// Two models that say the same choose the same: what a draft model guesses first is what the target chooses.
    #[test]
    fn the_first_guess_at_a_row_is_what_is_chosen_from_it(
        row in proptest::collection::vec(-6f32..6.0, 12),
        seed: u64,
        position in 0u32..10_000,
        temperature in prop_oneof![Just(0.0), 0.1f32..2.0],
        top_k in 0u32..6,
        min_p in prop_oneof![Just(0.0), Just(0.05)],
        recent in proptest::collection::vec(0u32..12, 0..4),
    ) {
        let params =
            SamplingParams { temperature, top_k, top_p: 1.0, min_p, seed, repeat_penalty: 1.3, ..Default::default() };
        let sampler = sampler(params, &row, &recent);
        let guesses = sampler.guesses(position, &whole(&row), 4);
        let Ok(Decision::Token { token }) = sampler.sample(position, &whole(&row), None) else { panic!("a whole row") };
        prop_assert_eq!(guesses[0].0, token);
        prop_assert!(guesses.is_sorted_by(|a, b| a.1 >= b.1));
        prop_assert!(guesses.iter().map(|guess| guess.1).sum::<f32>() <= 1.0 + 1e-4);
    }
}
