//! The engine's process: it computes what the stage here computes, dies alone, and cannot leave its sandbox.
#![allow(clippy::unwrap_used)]

mod common;

use std::{io::Write as _, sync::Arc};

use common::{Chain, Gguf, argmax, bits, exact, small_model, tokens};
use potluck_core::{CacheId, Input, LayerRange, Rows, Stage, StageCommand, StageError, StageReply, Step, Tree};
use potluck_engine::{EngineError, EngineProcess, EngineProgram, EngineStage, Load, Part, try_out_sandbox};
use potluck_model::{Extent, VirtualFile};
use tokio::sync::mpsc;

const CACHE: CacheId = CacheId(0);

fn program() -> EngineProgram {
    EngineProgram { program: env!("CARGO_BIN_EXE_potluck-engine-child").into(), args: Vec::new() }
}

fn children(loads: &[Load]) -> Chain {
    let start = |load: &Load| Box::new(EngineStage::start(program(), load.clone()).unwrap()) as Box<dyn Stage>;
    Chain(loads.iter().map(start).collect())
}

fn greedy(chain: &mut Chain, steps: usize) -> Vec<Vec<u32>> {
    chain.open(CACHE, 512);
    let prompt = tokens(11, 50, 49_152);
    let mut rows = chain.run(CACHE, 0, &prompt, Rows::Last).unwrap();
    for position in 50..50 + steps as u32 {
        let token = argmax(rows.last().unwrap());
        rows.extend(chain.run(CACHE, position, &[token], Rows::Last).unwrap());
    }
    chain.close(CACHE);
    rows.iter().map(|row| bits(row)).collect()
}

#[test]
fn three_children_equal_the_whole_model_in_a_child() {
    let model = small_model();
    let whole = greedy(&mut children(&[model.whole(&exact())]), 16);
    assert!(greedy(&mut children(&model.chain(3, &exact())), 16) == whole);
}

#[test]
#[cfg(target_os = "linux")]
fn a_child_cannot_open_a_file_nor_a_socket_nor_start_a_program() {
    let attempts = try_out_sandbox(&program()).unwrap();
    assert!(attempts.len() >= 12);
    for attempt in attempts {
        let refused = attempt.refused.unwrap_or_else(|| panic!("a hole in the sandbox: {}", attempt.what));
        assert!([libc::EPERM, libc::EACCES].contains(&refused), "{}: error {refused}", attempt.what);
    }
    assert!(!std::path::Path::new("/tmp/potluck-sandbox-hole").exists());
}

/// A stage of the small model's first two layers, as a task of its own.
async fn engine(load: Load) -> (u32, mpsc::Sender<StageCommand>, mpsc::Receiver<StageReply>) {
    let engine = EngineProcess::start(program(), load).await.unwrap();
    let pid = engine.pid();
    let (commands, to_engine) = mpsc::channel(8);
    let (from_engine, replies) = mpsc::channel(8);
    tokio::spawn(engine.run(to_engine, from_engine));
    (pid, commands, replies)
}

fn first_layers(model: &Gguf) -> Load {
    model.stage(LayerRange::new(0, 2).unwrap(), &exact())
}

fn forward(batch: u64, start: u32) -> StageCommand {
    let input = Input::Tokens(tokens(1, 4, 49_152));
    StageCommand::Forward {
        batch,
        steps: vec![Step { cache: CACHE, start, input, rows: Rows::None, top: 0, tree: Tree::chain() }],
    }
}

async fn expect_forwarded(replies: &mut mpsc::Receiver<StageReply>, expected: u64) {
    let Some(StageReply::Forwarded { batch, results, compute_us }) = replies.recv().await else { panic!("no result") };
    assert_eq!(batch, expected);
    assert!(results[0].is_ok(), "{:?}", results[0]);
    assert!(compute_us > 0);
}

#[tokio::test]
async fn a_killed_child_is_lost_then_ready_and_the_next_session_works() {
    let (pid, commands, mut replies) = engine(first_layers(&small_model())).await;
    assert!(matches!(replies.recv().await, Some(StageReply::Ready(_))));
    commands.send(StageCommand::Open { cache: CACHE, positions: 64 }).await.unwrap();
    assert!(matches!(replies.recv().await, Some(StageReply::Opened { result: Ok(()), .. })));
    commands.send(forward(1, 0)).await.unwrap();
    expect_forwarded(&mut replies, 1).await;

    assert_eq!(unsafe_kill(pid), 0);
    commands.send(forward(2, 4)).await.unwrap();
    let (mut lost, mut unanswered) = (false, true);
    loop {
        match replies.recv().await.unwrap() {
            StageReply::Forwarded { batch: 2, results, .. } => {
                assert!(matches!(results[..], [Err(StageError::Lost(_))]), "{results:?}");
                unanswered = false;
            }
            StageReply::Lost { reason } => {
                assert!(reason.contains('9'), "the signal is named: {reason}");
                lost = true;
            }
            StageReply::Ready(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(lost && !unanswered, "lost {lost}, unanswered {unanswered}");

    commands.send(StageCommand::Open { cache: CACHE, positions: 64 }).await.unwrap();
    assert!(matches!(replies.recv().await, Some(StageReply::Opened { result: Ok(()), .. })));
    commands.send(forward(3, 0)).await.unwrap();
    expect_forwarded(&mut replies, 3).await;
    drop(commands);
    assert!(replies.recv().await.is_none(), "the task ends with its commands");
}

/// Processes that this one has started, and that run.
#[cfg(target_os = "linux")]
fn running_children() -> usize {
    let own = std::process::id().to_string();
    let parent = |entry: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit(") ").next()?.split(' ');
        (!matches!(fields.next()?, "Z" | "X")).then(|| fields.next().map(str::to_owned))?
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(parent).filter(|parent| *parent == own).count()
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn whoever_does_not_wait_for_a_child_that_loads_has_its_memory_back() {
    let model = small_model();
    // It would load for ever, as far as anybody can tell.
    let sleeps = EngineProgram { program: "/bin/sh".into(), args: vec!["-c".into(), "exec sleep 1000".into()] };
    let mut starting = Box::pin(EngineProcess::start(sleeps, model.whole(&exact())));
    // Until there is a child, and no longer.
    tokio::select! {
        loaded = &mut starting => panic!("it has loaded: {loaded:?}"),
        () = async {
            while running_children() == 0 {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    drop(starting);
    let since = std::time::Instant::now();
    while running_children() > 0 {
        assert!(since.elapsed() < exact().load_timeout / 2, "it is still there");
        tokio::task::yield_now().await;
    }
    // What is started then is not that one's to end.
    let (_, commands, mut replies) = engine(first_layers(&model)).await;
    assert!(matches!(replies.recv().await, Some(StageReply::Ready(_))));
    drop(commands);
}

/// `kill -9`, through the system's own command: the tests have no foreign functions.
fn unsafe_kill(pid: u32) -> i32 {
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().code().unwrap()
}

#[tokio::test]
async fn an_oversized_command_is_an_error_in_its_place_and_harms_nobody() {
    let (_, commands, mut replies) = engine(first_layers(&small_model())).await;
    assert!(matches!(replies.recv().await, Some(StageReply::Ready(_))));
    commands.send(StageCommand::Open { cache: CACHE, positions: 64 }).await.unwrap();
    let hidden = potluck_core::Hidden(vec![0.0; potluck_engine::FRAME_BYTES_MAX / 4 + 1]);
    let step =
        Step { cache: CACHE, start: 0, input: Input::Hidden(hidden), rows: Rows::None, top: 0, tree: Tree::chain() };
    commands.send(StageCommand::Forward { batch: 7, steps: vec![step] }).await.unwrap();
    commands.send(forward(8, 0)).await.unwrap();
    assert!(matches!(replies.recv().await, Some(StageReply::Opened { result: Ok(()), .. })));
    match replies.recv().await {
        Some(StageReply::Forwarded { batch: 7, results, .. }) => {
            assert!(matches!(results[..], [Err(StageError::BadInput(_))]), "{results:?}");
        }
        other => panic!("{other:?}"),
    }
    expect_forwarded(&mut replies, 8).await;
}

#[test]
fn a_child_that_talks_nonsense_is_ended_with_a_typed_error() {
    // The shell inherits the socket as descriptor 3; each line is what it says first.
    let says = |words: &str| {
        let script = format!("printf '{words}' >&3; cat <&3 >/dev/null");
        let program = EngineProgram { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] };
        EngineStage::start(program, first_layers(&small_model())).unwrap_err()
    };
    assert!(matches!(says(r"\377\377\377\377"), EngineError::Protocol(_)), "a length beyond the limit");
    assert!(matches!(says(r"\003\000\000\000\377\377\377"), EngineError::Protocol(_)), "no message");
    assert!(matches!(says(r"\001\000\000\000\003"), EngineError::Protocol(_)), "half a message");
    let silent = EngineProgram { program: "/bin/true".into(), args: Vec::new() };
    assert!(matches!(EngineStage::start(silent, first_layers(&small_model())), Err(EngineError::Ended(_))));
}

#[test]
fn a_hostile_file_is_a_typed_error_and_not_a_dead_caller() {
    let model = small_model();
    let Part::Stage { source, .. } = first_layers(&model).part else { unreachable!() };
    let header: Vec<u8> = match &source.model.extents[0] {
        Extent::Inline(bytes) => bytes.clone(),
        other => panic!("{other:?}"),
    };
    let with_header = |header: Vec<u8>| {
        let mut load = first_layers(&model);
        let Part::Stage { source, .. } = &mut load.part else { unreachable!() };
        let rest = source.model.extents[1..].iter().cloned();
        source.model = VirtualFile::new(std::iter::once(Extent::Inline(header)).chain(rest).collect());
        EngineStage::start(program(), load).map(drop)
    };
    assert_eq!(with_header(header.clone()), Ok(()));
    let mut refused = 0;
    // Every bit of the counts, then bytes all over: whatever llama.cpp makes of it, we are told, and live.
    for at in (4..24).chain((24..header.len()).step_by(header.len() / 24)) {
        let mut broken = header.clone();
        broken[at] ^= 0xff;
        refused += u32::from(with_header(broken).is_err());
    }
    assert!(refused > 15, "only {refused} were refused");
    let mut short = first_layers(&model);
    let mut stub = tempfile::tempfile().unwrap();
    stub.write_all(b"GGUF").unwrap();
    short.files = vec![Arc::new(stub)];
    assert!(matches!(EngineStage::start(program(), short), Err(EngineError::Model(_))));
}

#[test]
fn a_budget_is_kept_before_anything_is_loaded() {
    let mut load = first_layers(&small_model());
    load.settings.cache_bytes_max = 1 << 10;
    match EngineStage::start(program(), load) {
        Err(EngineError::CacheBudget { needed, budget: 1_024, caches: 2, context: 512, .. }) => assert!(needed > 1_024),
        other => panic!("{other:?}"),
    }
}
