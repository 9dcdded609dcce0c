//! Engine children: started from this very program, and ended with what they were started for.

use std::{path::PathBuf, sync::OnceLock};

use potluck_core::{StageCommand, StageReply, StageShape};
use potluck_engine::{EngineError, EngineProcess, EngineProgram, Load, VocabularyClient};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::failure::Failure;

/// Commands, and replies, that may wait for the other side.
const QUEUE: usize = 64;

/// An engine that runs, and the task that speaks to it.
#[derive(Debug)]
pub(crate) struct RunningEngine {
    /// What the stage is like.
    pub(crate) shape: StageShape,
    task: JoinHandle<()>,
}

/// Both ends of the way to an engine.
#[derive(Debug)]
pub(crate) struct EnginePipe {
    /// Commands, in order.
    pub(crate) commands: mpsc::Sender<StageCommand>,
    /// Replies: `Ready` first.
    pub(crate) replies: mpsc::Receiver<StageReply>,
}

impl RunningEngine {
    /// Starts an engine; it ends when the pipe's ends are dropped.
    pub(crate) async fn start(load: Load) -> Result<(Self, EnginePipe), Failure> {
        let engine = EngineProcess::start(program()?, load).await?;
        let shape = engine.shape().clone();
        let (commands, to_engine) = mpsc::channel(QUEUE);
        let (from_engine, replies) = mpsc::channel(QUEUE);
        let task = tokio::spawn(async move {
            if let Err(error) = engine.run(to_engine, from_engine).await {
                tracing::warn!(%error, "the engine is given up");
            }
        });
        Ok((Self { shape, task }, EnginePipe { commands, replies }))
    }

    /// Waits until the engine's process is gone. The pipe's ends must have been dropped.
    pub(crate) async fn stop(self) {
        // A task that panicked has taken its child with it.
        let _ = self.task.await;
    }
}

/// Starts the process that knows the vocabulary.
pub(crate) async fn start_vocabulary(load: Load) -> Result<VocabularyClient, Failure> {
    Ok(VocabularyClient::start(program()?, load).await?)
}

/// Starts an engine that its caller speaks to.
pub(crate) async fn start_engine(load: Load) -> Result<EngineProcess, Failure> {
    Ok(EngineProcess::start(program()?, load).await?)
}

/// The program that becomes an engine, where this one cannot: it is another's, and has the client in it.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Starts engines with that program from now on. The first one counts, for the whole process.
pub(crate) fn use_program(program: PathBuf) {
    let _ = PROGRAM.set(program);
}

/// What starts an engine: this very program, unless another was named.
pub(crate) fn program() -> Result<EngineProgram, Failure> {
    match PROGRAM.get() {
        Some(program) => Ok(EngineProgram { program: program.clone(), args: vec!["engine".into()] }),
        None => Ok(EngineProgram::current(["engine"])?),
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let (code, hint) = match &error {
            EngineError::Settings(_) => ("bad_request", "potluck run --help explains the engine's settings"),
            EngineError::CacheBudget { .. } => ("no_memory", "ask for less with --context"),
            EngineError::Context(_) => ("no_memory", "ask for less with --context, or use fewer --gpu-layers"),
            EngineError::Model(_) | EngineError::Mismatch { .. } => ("bad_model", "download the model again"),
            EngineError::NotAStage(_) => ("illegal_cut", "run it whole with --local"),
            _ => ("engine_error", "run it again with RUST_LOG=debug to see the engine's own words"),
        };
        Self::new(code, &error, hint)
    }
}
