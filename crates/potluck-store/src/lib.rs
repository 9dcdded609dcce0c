//! Models on this machine: where their bytes lie, what they are called, and the catalogue that remembers.
//!
//! ```no_run
//! # fn main() -> Result<(), potluck_store::StoreError> {
//! use potluck_core::LayerRange;
//! use potluck_store::{Catalogue, Locations};
//! let catalogue = Catalogue::open("/home/me/.local/share/potluck/models")?;
//! let source = Locations::from_env().find("ollama:smollm2")?;
//! let added = catalogue.add(&source, None, &mut |p| eprintln!("{} of {}", p.done, p.total))?;
//! let plan = potluck_model::slice::plan(&added.entry.manifest, LayerRange::new(0, 10)?, true, false)?;
//! let stage = potluck_store::open_stage(&added.entry, &plan)?; // files and extents for the engine
//! # let _ = stage; Ok(()) }
//! ```
//! Nothing is copied: tensors are read where they are, in a GGUF, in its parts, in the stores of other programs, or
//! inside an uncompressed wheel. A model has one id whichever way it was added. What the catalogue has acknowledged
//! survives `kill -9`. What comes from peers, piece by piece, is taken in by an [`Intake`]; what others ask for is read by
//! [`read_piece`]. What was fetched finds its [`Room`], where a quota says how much; whoever uses a model holds it
//! ([`Catalogue::hold`]). Not here: what a header means and how a model is cut (`potluck-model`).

mod catalogue;
mod error;
mod fetched;
mod hold;
mod import;
mod intake;
mod place;
mod room;
mod share;
mod source;
mod stage;

pub use catalogue::{Added, Catalogue, Entry, begins_with};
pub use error::StoreError;
pub use fetched::Fetched;
pub use hold::InUse;
pub use import::{Imported, Progress, import};
pub use intake::Intake;
pub use place::{GgufPlace, Place, SourceFile, TensorPlace};
pub use room::{For, Promise, Room};
pub use share::{read_piece, read_piece_hashes};
pub use source::{Locations, Part, Source};
pub use stage::{StageFiles, WholeFiles, open_stage, open_whole, verify};
