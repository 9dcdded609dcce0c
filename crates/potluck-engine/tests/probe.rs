//! The probe of a cut: it passes what is exact and refuses what is not.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Gguf, exact, small_model};
use potluck_core::LayerRange;
use potluck_engine::{
    EngineError, EngineProgram, Load,
    probe::{Verdict, probe},
};

fn program() -> EngineProgram {
    EngineProgram { program: env!("CARGO_BIN_EXE_potluck-engine-child").into(), args: Vec::new() }
}

fn loads(model: &Gguf, (a, b, c): (u32, u32, u32)) -> [Load; 3] {
    [(a, c), (a, b), (b, c)].map(|(a, b)| model.ends(LayerRange::new(a, b).unwrap(), false, false, &exact()))
}

#[test]
fn an_exact_cut_passes() {
    let [joined, first, second] = loads(&small_model(), (9, 10, 11));
    assert_eq!(probe(&program(), &joined, &first, &second), Ok(Verdict::Exact));
}

#[test]
fn other_layers_differ_and_a_slice_that_does_not_load_fails() {
    let model = small_model();
    let [joined, first, _] = loads(&model, (9, 10, 11));
    let [_, _, other] = loads(&model, (10, 11, 12));
    match probe(&program(), &joined, &first, &other) {
        Ok(Verdict::Differs { position: 0, largest }) => assert!(largest > 0.0),
        verdict => panic!("{verdict:?}"),
    }
    let mut broken = other;
    broken.files.clear();
    assert!(matches!(probe(&program(), &joined, &first, &broken), Ok(Verdict::Fails(_))));
}

#[test]
fn a_probe_wants_exact_mode_and_a_machine_at_fault_is_no_verdict() {
    let [joined, first, mut second] = loads(&small_model(), (9, 10, 11));
    second.settings.exact = false;
    assert!(matches!(probe(&program(), &joined, &first, &second), Err(EngineError::Settings(_))));
    second.settings.exact = true;
    second.settings.cache_bytes_max = 1;
    assert!(matches!(probe(&program(), &joined, &first, &second), Err(EngineError::CacheBudget { .. })));
}
