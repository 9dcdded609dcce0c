//! Several sessions on one chain: alone in exact mode, never another's rows by default, and no memory that grows.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Chain, Gguf, argmax, bits, exact, small_model, tokens, whole};
use potluck_core::{
    CacheId, Hidden, Input, LayerRange, Output, Rows, STATE_PART_BYTES_MAX, Stage, StageError, StatePart, Step, Tree,
};
use potluck_engine::{EngineProgram, EngineSettings, EngineStage, FlashAttention, LlamaStage};

const SESSIONS: u16 = 8;

/// Rounds of steps: prefill chunks of several lengths, then single positions, so that every call mixes both.
fn script(session: u16) -> Vec<Vec<u32>> {
    let prompt = tokens(u64::from(session) + 100, 60, 49_152);
    let (first, second) = prompt.split_at(20 + 3 * usize::from(session % 4));
    let singles = tokens(u64::from(session) + 900, 12, 49_152);
    let mut steps = vec![first.to_vec(), second.to_vec()];
    steps.extend(singles.chunks(if session.is_multiple_of(3) { 2 } else { 1 }).map(<[u32]>::to_vec));
    steps
}

fn step(session: u16, start: u32, tokens: &[u32]) -> Step {
    Step {
        cache: CacheId(session),
        start,
        input: Input::Tokens(tokens.to_vec()),
        rows: Rows::Last,
        top: 0,
        tree: Tree::chain(),
    }
}

/// Each session's logits, all sessions at once; session `n` begins `n` rounds late.
fn together(chain: &mut Chain, sessions: &[u16]) -> Vec<Vec<Vec<f32>>> {
    let scripts: Vec<_> = sessions.iter().map(|&session| script(session)).collect();
    let mut seen: Vec<Vec<Vec<f32>>> = sessions.iter().map(|_| Vec::new()).collect();
    sessions.iter().for_each(|&session| chain.open(CacheId(session), 128));
    for round in 0.. {
        let due: Vec<usize> = (0..sessions.len()).filter(|&at| round >= at && round - at < scripts[at].len()).collect();
        if due.is_empty() {
            break;
        }
        let start = |at: usize| scripts[at][..round - at].iter().map(Vec::len).sum::<usize>() as u32;
        let steps = due.iter().map(|&at| step(sessions[at], start(at), &scripts[at][round - at])).collect();
        for (&at, result) in due.iter().zip(chain.steps(steps)) {
            seen[at].extend(result.unwrap().into_iter().map(whole));
        }
    }
    sessions.iter().for_each(|&session| chain.close(CacheId(session)));
    seen
}

fn settings(exact_mode: bool) -> EngineSettings {
    let flash = if exact_mode { FlashAttention::Off } else { FlashAttention::Auto };
    EngineSettings { caches: SESSIONS, context: 256, exact: exact_mode, flash, ..exact() }
}

fn alone(model: &Gguf) -> Vec<Vec<Vec<f32>>> {
    let mut whole = Chain::load(&[model.whole(&settings(true))]);
    (0..SESSIONS).flat_map(|session| together(&mut whole, &[session])).collect()
}

#[test]
fn eight_sessions_at_once_in_exact_mode_equal_each_alone_on_the_whole_model() {
    let model = small_model();
    let expected = alone(&model);
    let mut chain = Chain::load(&model.chain(3, &settings(true)));
    let got = together(&mut chain, &(0..SESSIONS).collect::<Vec<_>>());
    for (session, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(got.len(), expected.len());
        assert!(got.iter().zip(expected).all(|(a, b)| bits(a) == bits(b)), "session {session} differs");
    }
}

#[test]
fn by_default_differences_are_near_ties_only() {
    let model = small_model();
    let expected = alone(&model);
    let mut chain = Chain::load(&model.chain(3, &settings(false)));
    let got = together(&mut chain, &(0..SESSIONS).collect::<Vec<_>>());
    let (mut rows, mut flips) = (0, Vec::new());
    for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
        rows += 1;
        let (a, b) = (argmax(got), argmax(expected));
        if a != b {
            flips.push(expected[b as usize] - expected[a as usize]);
        }
    }
    eprintln!("{} of {rows} rows have another largest logit; margins {flips:?}", flips.len());
    // The prompts are random tokens, after which nothing is likely: many rows are near-ties.
    assert!(flips.iter().all(|&margin| margin < 0.5), "no near-tie: {flips:?}");
    assert!(flips.len() * 4 < rows, "{} of {rows} differ", flips.len());
}

/// Rows that name their session: with all weights as they are, a hidden state far from all others.
#[test]
fn no_row_reaches_another_session() {
    let model = small_model();
    let load = model.stage(LayerRange::new(10, 12).unwrap(), &settings(false));
    let mut stage = LlamaStage::load(&load, |_| {}).unwrap();
    let width = stage.shape().width as usize;
    let row = |session: u16, position: usize| {
        let mut row = vec![0.1; width];
        row[usize::from(session)] = 10_000.0 + position as f32;
        row
    };
    let name = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u16;
    let lengths = [6usize, 1, 1, 6, 3, 1, 40, 6];
    // In an order that is not that of the sequences, with a gap where one is missing.
    for order in [[5u16, 0, 3, 7, 1, 6, 2, 4], [7, 6, 5, 4, 3, 2, 1, 0], [0, 2, 4, 6, 1, 3, 5, 7]] {
        order.iter().for_each(|&session| stage.open(CacheId(session), 256).unwrap());
        let mut starts = [0u32; 8];
        for round in 0..3 {
            let present: Vec<u16> = order.iter().copied().filter(|session| (session + round) % 4 != 1).collect();
            let mut steps: Vec<Step> = present
                .iter()
                .map(|&session| {
                    let rows = lengths[usize::from(session + round) % 8];
                    let hidden = (0..rows).flat_map(|position| row(session, position)).collect();
                    let start = starts[usize::from(session)];
                    starts[usize::from(session)] += rows as u32;
                    let input = Input::Hidden(Hidden(hidden));
                    Step { cache: CacheId(session), start, input, rows: Rows::None, top: 0, tree: Tree::chain() }
                })
                .collect();
            for (result, &session) in stage.forward(&mut steps).into_iter().zip(&present) {
                let Ok(Output::Hidden(Hidden(values))) = result else { panic!("{result:?}") };
                assert_eq!(values.len(), lengths[usize::from(session + round) % 8] * width);
                for row in values.chunks(width) {
                    assert_eq!(name(row), session, "round {round} of {order:?}");
                }
            }
        }
        order.iter().for_each(|&session| stage.close(CacheId(session)));
    }
}

#[test]
fn one_bad_step_leaves_the_others_alone() {
    let model = small_model();
    let load = model.stage(LayerRange::new(10, 12).unwrap(), &settings(false));
    let mut stage = LlamaStage::load(&load, |_| {}).unwrap();
    let width = stage.shape().width as usize;
    (0..4).for_each(|session| stage.open(CacheId(session), 16).unwrap());
    let step = |session, value: f32| {
        let input = Input::Hidden(Hidden(vec![value; width]));
        Step { cache: CacheId(session), start: 0, input, rows: Rows::None, top: 0, tree: Tree::chain() }
    };
    let mut steps = vec![step(0, 1.0), step(1, f32::NAN), step(2, 1.0), step(9, 1.0), step(0, 2.0), step(3, 1.0e30)];
    let results = stage.forward(&mut steps);
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert!(matches!(results[1], Err(StageError::BadInput(_))), "not finite");
    assert_eq!(results[3], Err(StageError::UnknownCache(CacheId(9))));
    assert!(matches!(results[4], Err(StageError::BadInput(_))), "a second step of one cache");
    // Huge but finite: the result is finite, or a typed error, and its neighbours are as if it were not there.
    if let Ok(Output::Hidden(Hidden(values))) = &results[5] {
        assert!(values.iter().all(|value| value.is_finite()));
    }
    let mut again = vec![step(0, 1.0)];
    assert_eq!(bits_of(&stage.forward(&mut again)[0]), bits_of(&results[0]), "and the good one can be sent again");
}

fn bits_of(result: &Result<Output, StageError>) -> usize {
    let Ok(Output::Hidden(Hidden(values))) = result else { panic!("{result:?}") };
    values.len()
}

/// Resident kB of a process.
#[cfg(target_os = "linux")]
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn memory_after_the_tenth_round_is_that_after_the_second() {
    // Children inherit it. A huge page is 3 % of so small a stage, and when the kernel hands one out is its own affair.
    rustix::thread::disable_transparent_huge_pages(true).unwrap();
    let model = small_model();
    let program = EngineProgram { program: env!("CARGO_BIN_EXE_potluck-engine-child").into(), args: Vec::new() };
    let stages: Vec<EngineStage> = model
        .chain(2, &settings(false))
        .into_iter()
        .map(|load| EngineStage::start(program.clone(), load).unwrap())
        .collect();
    let pids: Vec<u32> = stages.iter().map(|stage| stage.pid().unwrap()).collect();
    let mut chain = Chain(stages.into_iter().map(|stage| Box::new(stage) as Box<dyn Stage>).collect());
    let sessions: Vec<u16> = (0..SESSIONS).collect();
    let mut second = Vec::new();
    for round in 1..=10 {
        together(&mut chain, &sessions);
        if round == 2 {
            second = pids.iter().map(|&pid| resident(pid)).collect();
        }
    }
    for (&pid, second) in pids.iter().zip(second) {
        let growth = resident(pid) / second;
        assert!(growth < 1.02, "process {pid} grew by {:.1} %", (growth - 1.0) * 100.0);
    }
}

/// All of what a cache holds.
fn state(stage: &mut dyn Stage, cache: CacheId) -> Vec<StatePart> {
    let mut parts = vec![stage.export(cache, 0).unwrap()];
    while !parts.last().unwrap().is_last() {
        let offset = parts.iter().map(|part| part.bytes.len() as u64).sum();
        parts.push(stage.export(cache, offset).unwrap());
    }
    assert!(parts.iter().all(|part| part.bytes.len() <= STATE_PART_BYTES_MAX));
    parts
}

#[test]
fn a_session_that_was_put_aside_goes_on_as_if_it_never_was() {
    let model = small_model();
    let (prompt, rest) = (tokens(7, 90, 49_152), tokens(8, 5, 49_152));
    for exact in [true, false] {
        let loads = model.chain(3, &settings(exact));
        let mut chain = Chain::load(&loads);
        [1, 2].into_iter().for_each(|cache| chain.open(CacheId(cache), 128));
        chain.run(CacheId(2), 0, &tokens(9, 30, 49_152), Rows::Last).unwrap();
        chain.run(CacheId(1), 0, &prompt, Rows::Last).unwrap();
        let states: Vec<_> = chain.0.iter_mut().map(|stage| state(stage.as_mut(), CacheId(1))).collect();
        assert!(states.iter().flatten().all(|part| part.positions == 90), "{states:?}");
        let unbroken = chain.run(CacheId(1), 90, &rest, Rows::All).unwrap();
        // In other engines, in another place.
        let mut others = Chain::load(&loads);
        [4, 5].into_iter().for_each(|cache| others.open(CacheId(cache), 128));
        for (stage, parts) in others.0.iter_mut().zip(&states) {
            parts.iter().for_each(|part| stage.import(CacheId(5), part.clone()).unwrap());
        }
        let after = others.run(CacheId(5), 90, &rest, Rows::All).unwrap();
        for (after, unbroken) in after.iter().zip(&unbroken) {
            assert_eq!(argmax(after), argmax(unbroken));
            assert!(!exact || bits(after) == bits(unbroken));
        }
        // It is cut back as any other, and given another state in its place.
        let cut = others.run(CacheId(5), 40, &prompt[40..], Rows::Last).unwrap();
        assert_eq!(cut[0].len(), unbroken[0].len());
        let stage = &mut others.0[1];
        let part = &states[1][0];
        let refused = |stage: &mut dyn Stage, part: StatePart| {
            assert!(stage.import(CacheId(4), part.clone()).is_err(), "{part:?}");
        };
        refused(stage.as_mut(), StatePart { offset: 1, ..part.clone() });
        refused(stage.as_mut(), StatePart { positions: 129, ..part.clone() });
        refused(stage.as_mut(), StatePart { total: u64::MAX, ..part.clone() });
        refused(stage.as_mut(), StatePart { bytes: Vec::new(), ..part.clone() });
        refused(stage.as_mut(), StatePart { positions: 89, ..part.clone() });
        assert!(stage.export(CacheId(4), 1).is_err() && stage.export(CacheId(9), 0).is_err());
        assert_eq!(state(stage.as_mut(), CacheId(4))[0].positions, 0, "nothing of it stays");
    }
}

#[test]
fn a_state_goes_through_an_engines_process() {
    let load = small_model().whole(&settings(true));
    let program = EngineProgram { program: env!("CARGO_BIN_EXE_potluck-engine-child").into(), args: Vec::new() };
    let mut engines = [(); 2].map(|()| EngineStage::start(program.clone(), load.clone()).unwrap());
    let (prompt, cache) = (tokens(7, 90, 49_152), CacheId(3));
    engines.iter_mut().for_each(|engine| engine.open(cache, 128).unwrap());
    engines[0].forward(&mut [step(3, 0, &prompt)]).remove(0).unwrap();
    for part in state(&mut engines[0], cache) {
        engines[1].import(cache, part).unwrap();
    }
    let next = engines.each_mut().map(|engine| engine.forward(&mut [step(3, 90, &[11])]).remove(0).unwrap());
    assert_eq!(next[0], next[1]);
}
