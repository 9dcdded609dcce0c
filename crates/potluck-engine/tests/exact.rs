//! Promise 1: in exact mode a chain's logits are the whole model's, bit for bit.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Chain, Gguf, argmax, bits, exact, small_model, tokens};
use potluck_core::{CacheId, LayerRange, Rows, StageError};
use potluck_model::slice;

const CACHE: CacheId = CacheId(0);

/// A prompt in chunks, greedy tokens one by one, a step sent again, and a cut back: the logits of each step.
fn talk(chain: &mut Chain, vocabulary: u32, steps: usize) -> Vec<Vec<u32>> {
    chain.open(CACHE, 512);
    let prompt = tokens(7, 83, vocabulary);
    let mut seen = Vec::new();
    assert!(chain.run(CACHE, 0, &prompt[..40], Rows::None).unwrap().is_empty());
    seen.extend(chain.run(CACHE, 40, &prompt[40..80], Rows::Last).unwrap());
    seen.extend(chain.run(CACHE, 80, &prompt[80..], Rows::All).unwrap());
    let mut position = prompt.len() as u32;
    for _ in 0..steps {
        let token = argmax(seen.last().unwrap());
        seen.extend(chain.run(CACHE, position, &[token], Rows::Last).unwrap());
        position += 1;
    }
    // Sent again, and cut back behind what was computed: the same logits, then others.
    let again = tokens(9, 5, vocabulary);
    seen.extend(chain.run(CACHE, position - 3, &again, Rows::All).unwrap());
    seen.extend(chain.run(CACHE, position - 3, &again, Rows::All).unwrap());
    let twice = seen.split_off(seen.len() - 5);
    assert_eq!(seen[seen.len() - 5..], twice, "a step that is sent again gives the same");
    chain.close(CACHE);
    seen.iter().map(|row| bits(row)).collect()
}

fn equal_to_whole(model: &Gguf, parts: &[usize], steps: usize) {
    let vocabulary = potluck_model::facts::vocabulary(&model.manifest);
    let settings = exact();
    let expected = talk(&mut Chain::load(&[model.whole(&settings)]), vocabulary, steps);
    assert!(
        expected.iter().any(|row| row.iter().any(|&bits| bits != expected[0][0])),
        "logits differ among themselves"
    );
    for &parts in parts {
        let got = talk(&mut Chain::load(&model.chain(parts, &settings)), vocabulary, steps);
        assert!(got == expected, "{parts} stages differ from the whole model");
    }
}

#[test]
fn stages_of_the_small_model_equal_the_whole_bit_for_bit() {
    equal_to_whole(&small_model(), &[1, 2, 3, 5, 10], 64);
}

#[test]
fn the_number_of_threads_and_their_pool_change_nothing() {
    let model = small_model();
    let run = |threads, poll| {
        let settings = potluck_engine::EngineSettings { threads, threads_batch: threads, poll, ..exact() };
        talk(&mut Chain::load(&model.chain(2, &settings)), 49_152, 4)
    };
    let expected = run(1, None);
    assert!(run(2, Some(0)) == expected && run(2, None) == expected && run(1, Some(50)) == expected);
}

#[test]
fn a_fork_continues_as_its_source_would() {
    let model = small_model();
    let mut chain = Chain::load(&model.chain(3, &exact()));
    let prompt = tokens(3, 30, 49_152);
    chain.open(CACHE, 512);
    chain.run(CACHE, 0, &prompt, Rows::None).unwrap();
    chain.fork(CACHE, CacheId(1), 20);
    let expected = chain.run(CACHE, 20, &prompt[20..24], Rows::All).unwrap();
    let forked = chain.run(CacheId(1), 20, &prompt[20..24], Rows::All).unwrap();
    assert!(forked == expected, "a fork's logits differ from its source's");
    let beyond = chain.0[0].fork(CACHE, CacheId(1), 25);
    assert_eq!(beyond, Err(StageError::Gap { start: 25, held: 24 }));
}

#[test]
fn bounds_of_a_cache_are_typed_errors_and_leave_it_usable() {
    let model = small_model();
    let mut chain = Chain::load(&model.chain(2, &exact()));
    chain.open(CACHE, 8);
    let run = |chain: &mut Chain, start, count| chain.run(CACHE, start, &tokens(1, count, 49_152), Rows::Last);
    assert_eq!(run(&mut chain, 0, 9), Err(StageError::ContextFull { end: 9, context: 8 }));
    assert_eq!(run(&mut chain, 1, 1), Err(StageError::Gap { start: 1, held: 0 }));
    assert!(matches!(run(&mut chain, 0, 0), Err(StageError::BadInput(_))));
    assert!(matches!(chain.run(CACHE, 0, &[49_152], Rows::Last), Err(StageError::BadInput(_))));
    assert_eq!(chain.run(CacheId(5), 0, &[1], Rows::Last), Err(StageError::UnknownCache(CacheId(5))));
    assert_eq!(run(&mut chain, 0, 8).unwrap().len(), 1);
    assert_eq!(run(&mut chain, u32::MAX, 1), Err(StageError::Gap { start: u32::MAX, held: 8 }));
    let stage = &mut chain.0[0];
    assert_eq!(stage.open(CacheId(1), 513), Err(StageError::ContextFull { end: 513, context: 512 }));
    stage.open(CacheId(1), 8).unwrap();
    assert_eq!(stage.open(CacheId(2), 8), Err(StageError::Busy { caches: 2 }));
    stage.close(CacheId(1));
    stage.close(CacheId(1));
    assert_eq!(stage.open(CacheId(2), 8), Ok(()));
}

#[test]
fn the_mean_of_a_text_s_states_is_the_whole_model_s() {
    let model = small_model();
    let text = tokens(11, 60, 49_152);
    let mean = |loads: &[potluck_engine::Load]| {
        let mut chain = Chain::load(loads);
        chain.open(CACHE, 512);
        let before = chain.run(CACHE, 0, &text, Rows::Last).unwrap();
        let mean = chain.run(CACHE, 0, &text, Rows::Mean).unwrap();
        assert!(chain.run(CACHE, 0, &text, Rows::Last).unwrap() == before, "logits are what they were");
        let too_many = chain.run(CACHE, 0, &tokens(11, 65, 49_152), Rows::Mean);
        assert!(matches!(too_many, Err(StageError::BadInput(_))), "64 positions at most");
        mean
    };
    let expected = mean(&[model.whole(&exact())]);
    assert_eq!((expected.len(), expected[0].len()), (1, 576));
    assert!(expected[0].iter().any(|value| value.abs() > 0.1), "{:?}", &expected[0][..8]);
    assert!(mean(&model.chain(3, &exact())) == expected);
}

#[test]
fn the_bare_loop_and_the_whole_model_say_the_same() {
    let model = small_model();
    let load = model.whole(&exact());
    let prompt = tokens(5, 40, 49_152);
    let mut bare = potluck_engine::bare::Bare::load(&load).unwrap();
    bare.prefill(&prompt).unwrap();
    let first = bare.likeliest(prompt.len() - 1).unwrap();
    let (rest, _) = bare.decode(first, 12).unwrap();
    bare.clear();
    bare.prefill(&prompt).unwrap();
    assert_eq!(bare.likeliest(prompt.len() - 1).unwrap(), first, "cleared");

    let mut whole = Chain::load(&[load]);
    whole.open(CACHE, 512);
    let mut token = argmax(&whole.run(CACHE, 0, &prompt, Rows::Last).unwrap()[0]);
    assert_eq!(token, first);
    for (position, expected) in (prompt.len() as u32..).zip(rest) {
        token = argmax(&whole.run(CACHE, position, &[token], Rows::Last).unwrap()[0]);
        assert_eq!(token, expected);
    }
}

/// The zoo's models, written once for all tests of this binary.
fn zoo() -> Vec<(String, Gguf, tempfile::TempDir)> {
    let write = |animal: potluck_engine::zoo::Animal| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        potluck_engine::zoo::write(&animal.metadata, &mut std::fs::File::create(&path).unwrap()).unwrap();
        (format!("{}: {}", animal.architecture, animal.shows), Gguf::open(path), folder)
    };
    potluck_engine::zoo::animals().into_iter().map(write).collect()
}

/// The chain cut at `cuts`; none where one of its stages is illegal.
fn cut(model: &Gguf, cuts: &[u32]) -> Option<Chain> {
    let edges: Vec<u32> = [0].into_iter().chain(cuts.iter().copied()).chain([model.layers()]).collect();
    let ranges = edges.windows(2).map(|edge| LayerRange::new(edge[0], edge[1]).unwrap());
    let legal = |layers: LayerRange| {
        let (head, tail) = (layers.start() == 0, layers.end() == model.layers());
        slice::plan(&model.manifest, layers, head, tail).is_ok().then_some(layers)
    };
    let ranges: Vec<LayerRange> = ranges.map(legal).collect::<Option<_>>()?;
    Some(Chain::load(&ranges.into_iter().map(|layers| model.stage(layers, &exact())).collect::<Vec<_>>()))
}

#[test]
fn every_family_of_the_zoo_is_cut_exactly() {
    let mut failures = Vec::new();
    for (name, model, _folder) in zoo() {
        let vocabulary = potluck_model::facts::vocabulary(&model.manifest);
        let expected = talk(&mut Chain::load(&[model.whole(&exact())]), vocabulary, 12);
        let mut proven = 0;
        for cuts in [&[][..], &[1], &[2], &[3], &[4], &[5], &[2, 4], &[1, 3], &[1, 2, 3, 4, 5]] {
            let Some(mut chain) = cut(&model, cuts) else { continue };
            proven += 1;
            if talk(&mut chain, vocabulary, 12) != expected {
                failures.push(format!("{name}, cut at {cuts:?}, differs from the whole"));
            }
        }
        eprintln!("{name}: {proven} cuts");
        if proven < 3 {
            failures.push(format!("{name}: only {proven} of the cuts are legal"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
