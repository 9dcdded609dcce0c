//! What a closed session leaves in an engine's memory, as root reads it: nothing in the cells, and nothing in our buffers.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use common::{Gguf, bits, exact, small_model, tokens, whole};
use potluck_core::{CacheId, Input, LayerRange, Output, Rows, Stage as _, Step, Tree};
use potluck_engine::{EngineProgram, EngineSettings, EngineStage, Load};

/// Longest that what is due may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Positions of each cache: so many that no other part of the engine's memory is as large as the caches.
const CONTEXT: u32 = 8_192;

fn settings(wipe_within: Option<Duration>) -> EngineSettings {
    EngineSettings { context: CONTEXT, caches: 4, chunk: 64, wipe_within, ..exact() }
}

fn start(load: Load) -> EngineStage {
    let program = EngineProgram { program: env!("CARGO_BIN_EXE_potluck-engine-child").into(), args: Vec::new() };
    EngineStage::start(program, load).unwrap()
}

/// A stage in the middle: hidden states enter and leave.
fn middle(model: &Gguf, wipe_within: Option<Duration>) -> EngineStage {
    start(model.stage(LayerRange::new(0, 2).unwrap(), &settings(wipe_within)))
}

fn run(stage: &mut EngineStage, cache: u16, start: u32, tokens: &[u32]) -> Vec<f32> {
    let input = Input::Tokens(tokens.to_vec());
    let mut steps = [Step { cache: CacheId(cache), start, input, rows: Rows::All, top: 0, tree: Tree::chain() }];
    match stage.forward(&mut steps).pop().unwrap().unwrap() {
        Output::Hidden(hidden) => hidden.0,
        Output::Logits(mut rows) => whole(rows.pop().unwrap()),
    }
}

/// The anonymous memory of a process, region by region; none where this user may not read it.
fn regions(pid: u32) -> Option<Vec<Vec<u8>>> {
    let memory = match File::open(format!("/proc/{pid}/mem")) {
        Ok(memory) => memory,
        Err(error) => {
            assert!(std::env::var_os("POTLUCK_SKIP_NOTHING").is_none(), "reading an engine's memory: {error}");
            println!("SKIPPED: only root reads an engine's memory");
            return None;
        }
    };
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let region = |line: &str| {
        let mut fields = line.split_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let writable = fields.next()?.starts_with("rw");
        let anonymous = fields.nth(2)? == "0";
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        if !writable || !anonymous {
            return None;
        }
        let mut bytes = vec![0; (to - from) as usize];
        memory.read_exact_at(&mut bytes, from).ok().map(|()| bytes)
    };
    Some(maps.lines().filter_map(region).collect())
}

/// Bytes of cells that 60 positions take in two layers, but for those of their values that happen to be zero.
const CELLS_BYTES: usize = 60 * 2 * 768 * 9 / 10;

/// Bytes that are not zero in the largest region: there the caches lie, and what else the system has put beside them.
fn used_cells(pid: u32) -> Option<usize> {
    let largest = regions(pid)?.into_iter().max_by_key(Vec::len)?;
    Some(largest.iter().filter(|byte| **byte != 0).count())
}

/// Reads again until it is so, and not for ever.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn cells_are_overwritten_once_no_session_is_open() {
    let model = small_model();
    for (wipe_within, wiped) in [(Some(Duration::from_secs(3_600)), true), (None, false)] {
        let mut stage = middle(&model, wipe_within);
        let pid = stage.pid().unwrap();
        let Some(empty) = used_cells(pid) else { return };
        stage.open(CacheId(0), CONTEXT).unwrap();
        run(&mut stage, 0, 0, &tokens(5, 60, 49_152));
        let used = used_cells(pid).unwrap();
        assert!(used >= empty + CELLS_BYTES, "the cells are found: {empty} and {used} bytes");
        stage.close(CacheId(0));
        // The next command is answered when the one before has been carried out.
        stage.open(CacheId(1), CONTEXT).unwrap();
        let left = used_cells(pid).unwrap();
        let gone = used.saturating_sub(left) >= CELLS_BYTES;
        assert_eq!(gone, wiped, "{left} bytes are left of {used}, with {wipe_within:?}");
    }
}

#[test]
fn while_another_is_open_they_are_overwritten_in_time_and_it_is_none_the_worse() {
    let model = small_model();
    let (canary, other) = (tokens(5, 60, 49_152), tokens(6, 60, 49_152));
    let expected = {
        let mut alone = middle(&model, None);
        alone.open(CacheId(0), CONTEXT).unwrap();
        run(&mut alone, 0, 0, &other);
        bits(&run(&mut alone, 0, 60, &tokens(7, 3, 49_152)))
    };
    for wipe_within in [Duration::ZERO, Duration::from_millis(300)] {
        let mut stage = middle(&model, Some(wipe_within));
        let pid = stage.pid().unwrap();
        for cache in [0, 1] {
            stage.open(CacheId(cache), CONTEXT).unwrap();
        }
        run(&mut stage, 1, 0, &other);
        let Some(others) = used_cells(pid) else { return };
        run(&mut stage, 0, 0, &canary);
        let both = used_cells(pid).unwrap();
        assert!(both >= others + CELLS_BYTES, "{others} and {both} bytes");
        stage.close(CacheId(0));
        eventually("the cells of the closed session stay", || used_cells(pid).unwrap() + CELLS_BYTES <= both);
        // What the open one holds is back, to the last bit.
        assert_eq!(bits(&run(&mut stage, 1, 60, &tokens(7, 3, 49_152))), expected, "within {wipe_within:?}");
    }
}

#[test]
fn our_buffers_keep_nothing_of_a_closed_session() {
    let model = small_model();
    // Token ids as a command's steps hold them. This stage looks them up itself: llama.cpp is told hidden states.
    let canary = tokens(5, 60, 49_152);
    let ids: Vec<u8> = canary.iter().flat_map(|token| token.to_le_bytes()).collect();
    for (wipe_within, wiped) in [(Some(Duration::from_secs(3_600)), true), (None, false)] {
        let mut stage = middle(&model, wipe_within);
        let pid = stage.pid().unwrap();
        stage.open(CacheId(0), 512).unwrap();
        run(&mut stage, 0, 0, &canary);
        stage.close(CacheId(0));
        stage.open(CacheId(1), 512).unwrap();
        let Some(regions) = regions(pid) else { return };
        // Not from their beginning: there the system's allocator keeps its books.
        let found = regions.iter().any(|region| region.windows(16).any(|bytes| bytes == &ids[120..136]));
        assert_eq!(found, !wiped, "with {wipe_within:?}");
    }
}
