//! Trees of drafts: each path gives what it gives by itself, and the cache keeps the first one.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Chain, argmax, bits, exact, small_model, tokens, whole};
use potluck_core::{CacheId, Input, Rows, Step, Tree};
use potluck_engine::EngineSettings;

const CACHE: CacheId = CacheId(0);
const PROMPT: usize = 40;

/// How far logits may be from those of other batches of the same rows: facts of the kernels, measured below 1.
const ROUNDING: f32 = 1.5;

//        0
//      1     4   6
//     2 3    5
const PARENTS: [u8; 7] = [0, 0, 1, 1, 0, 4, 0];
const PATHS: [&[usize]; 4] = [&[0, 1, 2], &[0, 1, 3], &[0, 4, 5], &[0, 6]];

fn settings(lanes: u16) -> EngineSettings {
    EngineSettings { exact: false, lanes, caches: 2, context: 256, ..exact() }
}

fn opened(parts: usize, lanes: u16) -> Chain {
    let model = small_model();
    let mut chain = Chain::load(&model.chain(parts, &settings(lanes)));
    chain.open(CACHE, 256);
    chain.run(CACHE, 0, &tokens(3, PROMPT, 49_152), Rows::Last).unwrap();
    chain
}

fn tree_rows(chain: &mut Chain, drafts: &[u32]) -> Vec<Vec<f32>> {
    let (input, tree) = (Input::Tokens(drafts.to_vec()), Tree::new(PARENTS.to_vec()).unwrap());
    let step = Step { cache: CACHE, start: PROMPT as u32, input, rows: Rows::All, top: 0, tree };
    chain.steps(vec![step]).pop().unwrap().unwrap().into_iter().map(whole).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_path_gives_what_it_gives_alone() {
    let drafts = tokens(9, PARENTS.len(), 49_152);
    for (parts, lanes) in [(1, 0), (1, 3), (3, 0), (3, 8)] {
        let mut chain = opened(parts, lanes);
        let rows = tree_rows(&mut chain, &drafts);
        for path in PATHS {
            let chosen: Vec<u32> = path.iter().map(|&row| drafts[row]).collect();
            let alone = chain.run(CACHE, PROMPT as u32, &chosen, Rows::All).unwrap();
            for (&row, alone) in path.iter().zip(&alone) {
                let far = distance(&rows[row], alone);
                assert!(far < ROUNDING, "{parts} parts, {lanes} lanes: row {row} is off by {far}");
            }
        }
        // The test can tell: another path's rows are another's.
        assert!(distance(&rows[2], &rows[3]) > 2.0 * ROUNDING && distance(&rows[5], &rows[2]) > 2.0 * ROUNDING);
    }
}

#[test]
fn branches_one_after_the_other_give_the_very_bits_of_single_rows() {
    let drafts = tokens(9, PARENTS.len(), 49_152);
    let mut chain = opened(2, 0);
    let rows = tree_rows(&mut chain, &drafts);
    // Where a row is evaluated by itself in both ways.
    let mut alone = |path: &[usize]| {
        let mut last = Vec::new();
        for (at, &row) in path.iter().enumerate() {
            last = chain.run(CACHE, (PROMPT + at) as u32, &[drafts[row]], Rows::Last).unwrap().remove(0);
        }
        last
    };
    for path in [&[0][..], &[0, 6], &[0, 1], &[0, 1, 3], &[0, 1, 2]] {
        assert_eq!(bits(&alone(path)), bits(&rows[*path.last().unwrap()]), "{path:?}");
    }
}

#[test]
fn the_cache_keeps_the_first_path_and_nothing_else() {
    let (drafts, next) = (tokens(9, PARENTS.len(), 49_152), tokens(11, 1, 49_152));
    for lanes in [0, 8] {
        let mut chain = opened(2, lanes);
        tree_rows(&mut chain, &drafts);
        let after = chain.run(CACHE, PROMPT as u32 + 3, &next, Rows::Last).unwrap();
        let mut plain = opened(2, lanes);
        plain.run(CACHE, PROMPT as u32, &drafts[..3], Rows::All).unwrap();
        let expected = plain.run(CACHE, PROMPT as u32 + 3, &next, Rows::Last).unwrap();
        assert!(distance(&after[0], &expected[0]) < ROUNDING, "{lanes} lanes");
        assert_eq!(argmax(&after[0]), argmax(&expected[0]));
        // Four positions were asked for beyond the prompt, and a fifth is a gap.
        assert!(chain.run(CACHE, PROMPT as u32 + 5, &next, Rows::Last).is_err());
    }
}

#[test]
fn another_session_is_not_touched_by_a_tree() {
    let drafts = tokens(9, PARENTS.len(), 49_152);
    for lanes in [0, 8] {
        let mut chain = opened(1, lanes);
        let other = CacheId(1);
        chain.open(other, 256);
        let text = tokens(21, 30, 49_152);
        chain.run(other, 0, &text, Rows::Last).unwrap();
        let before = chain.run(other, 30, &[5], Rows::Last).unwrap();
        tree_rows(&mut chain, &drafts);
        let after = chain.run(other, 30, &[5], Rows::Last).unwrap();
        assert!(distance(&before[0], &after[0]) < ROUNDING, "{lanes} lanes");
    }
}

#[test]
fn a_tree_that_is_none_is_refused() {
    let mut chain = opened(1, 4);
    let drafts = tokens(9, 3, 49_152);
    let (input, tree) = (Input::Tokens(drafts), Tree::new(PARENTS.to_vec()).unwrap());
    let step = Step { cache: CACHE, start: PROMPT as u32, input, rows: Rows::All, top: 0, tree };
    assert!(chain.steps(vec![step]).pop().unwrap().is_err(), "seven parents for three rows");
}
