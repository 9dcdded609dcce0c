//! Stages over llama.cpp, in a sandboxed child process. The only home of foreign functions.
//!
//! A peer starts an [`EngineProcess`] for each stage that it lends, and pumps messages through it:
//! ```no_run
//! # async fn lend(load: potluck_engine::Load) -> Result<(), potluck_engine::EngineError> {
//! use potluck_engine::{EngineProcess, EngineProgram};
//! let program = EngineProgram::current(["engine"])?; // a program whose `main` calls `child_main`
//! let engine = EngineProcess::start(program, load).await?;
//! let (commands, to_engine) = tokio::sync::mpsc::channel(8); // StageCommand
//! let (from_engine, replies) = tokio::sync::mpsc::channel(8); // StageReply: `Ready` first
//! engine.run(to_engine, from_engine).await
//! # }
//! ```
//! Kernels abort on bad input and model files come from strangers: so llama.cpp runs in a child that opens nothing
//! itself. It is handed the open files of a [virtual file](potluck_model::VirtualFile), enters its [sandbox], loads, and
//! serves one command after the other. When it dies the peer hears `Lost`, and `Ready` once another has loaded.
//!
//! **Invariants.** No prompt, output or hidden state is in a log. No file is opened, no socket made, no program started
//! in a child (`tests/process.rs` tries). No frame makes memory grow before its bytes have arrived. No row of one session
//! reaches another (`stage::group` says how).
//!
//! What holds where: on Linux all of this. On macOS a child is a fence against crashes, without a sandbox, and a virtual
//! file is copied to a temporary one to be loaded. On Windows this crate does not build yet.

pub mod bare;
pub mod codecs;
mod cores;
mod error;
#[allow(unsafe_code, reason = "the foreign functions are here")]
mod llama;
mod load;
#[allow(unsafe_code, reason = "an allocator, and limits of the process")]
pub mod memory;
pub mod probe;
#[allow(unsafe_code, reason = "descriptors, and what happens between fork and exec")]
mod process;
#[allow(unsafe_code, reason = "system calls that the standard library does not make")]
pub mod sandbox;
mod settings;
mod stage;
#[allow(unsafe_code, reason = "a limit of the process")]
pub mod vocabulary;
#[allow(unsafe_code, reason = "llama.cpp makes the models")]
pub mod zoo;

pub use error::EngineError;
pub use llama::LLAMA_BUILD;
pub use load::{FILES_MAX, Load, Part};
#[doc(hidden)]
pub use process::fuzzing;
pub use process::{
    EngineProcess, EngineProgram, EngineStage, FRAME_BYTES_MAX, RESTARTS_MAX, child_main, try_out_sandbox,
};
pub use settings::{EngineSettings, FlashAttention, KvType, SHARES, THREADS_MAX};
pub use stage::{KEPT_ROWS_MAX, LlamaStage};
pub use vocabulary::{GrammarId, GrammarSource, VocabularyClient, VocabularyError, VocabularyInfo};

/// True if this build can compute on a GPU.
pub const GPU: bool = cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan"));
