//! GGUF models as data: parse, describe, cut into stages. No IO.
//!
//! [`gguf`] reads a header, [`manifest_of`] names the model, [`Family`] says whether and where it may be cut, and
//! [`slice::plan`] gives the virtual GGUF that a stage loads; [`proof`] says which codec was proven of it:
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (bytes, hash) = (Vec::new(), [0; 32]);
//! use potluck_core::LayerRange;
//! use potluck_model::{gguf, manifest_of, slice};
//! let header = gguf::parse(&bytes)?;
//! let manifest = manifest_of(&[&header], |_part, _tensor| Some(hash))?;
//! let plan = slice::plan(&manifest, LayerRange::new(0, 10)?, true, false)?;
//! println!("{} bytes to load", plan.size);
//! # Ok(()) }
//! ```
//! A file is a stranger's: every count is bounded before memory is taken, and what the engine would abort on is
//! refused here. Not here: files and catalogues (`potluck-store`), arithmetic (`potluck-engine`).

mod build;
pub mod facts;
pub mod family;
mod file;
pub mod gguf;
pub mod proof;
pub mod slice;
pub mod types;

pub use build::{ENGINE_LAYERS_MAX, ModelError, SPLIT_PREFIX, TENSOR_BYTES_MAX, check, layer_of, manifest_of};
pub use facts::Facts;
pub use family::{Admission, Cuts, EmbeddingScale, Family};
pub use file::{Extent, VirtualFile};
pub use slice::{CutError, EmbeddingTable, Segment, StageBytes, StagePlan, StageSource};
