//! GGUF models as data: parse, describe, cut into stages. No IO.

mod file;
pub mod slice;

pub use file::{Extent, VirtualFile};
pub use slice::{CutError, EmbeddingTable, Segment, StagePlan, StageSource};
