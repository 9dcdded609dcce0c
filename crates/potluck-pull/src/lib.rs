//! Models that travel: what a peer needs of a model, from the peers that have it.
//!
//! ```ignore
//! let shared = potluck_pull::shared(&node, &peers).await;               // who has which models
//! let manifest = potluck_pull::manifest(&node, &peers, model).await?;   // checked: its hash is the model's name
//! let entry = catalogue.note(manifest, "llama-70b")?;
//! let pulled = potluck_pull::pull(&node, &catalogue, &entry, &tensors, &peers, &mut |bytes| make_room(bytes), &mut |p| show(p)).await?;
//! ```
//! Pieces come from several peers at once, and each is checked against the model's name before it is written: no peer is
//! trusted with more than its time. What was written survives `kill -9`; another attempt goes on from there. Which piece is
//! asked from whom is decided by the schedule, which knows no clock and no socket. The other side is a
//! [`Library`]: what a peer that serves gives to others.

mod error;
mod peers;
mod schedule;
mod shelf;
mod web;

pub use error::PullError;
pub use peers::{Pulled, Shared, manifest, pull, shared};
pub use schedule::{Ask, Item, Schedule, Setback, SourceId};
pub use shelf::Library;
pub use web::{Address, Coming, Web};

/// Asked how it is with room for so many bytes, once that many are to come and before the first of them is written; an error ends the pull.
pub type RoomFor<'a> = dyn FnMut(u64) -> Result<(), potluck_store::StoreError> + 'a;
