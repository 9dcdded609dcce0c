//! Stages over llama.cpp, in a sandboxed child process.
mod error;
mod load;
mod settings;
mod stage;
#[allow(dead_code, unused_imports, unsafe_code)]
mod llama;
pub use error::EngineError;
pub use load::{FILES_MAX, Load, Part};
pub use settings::{EngineSettings, FlashAttention, KvType, THREADS_MAX};
pub use stage::{KEPT_ROWS_MAX, LlamaStage};
/// The child.
pub fn child_main() -> ! { std::process::exit(2) }
