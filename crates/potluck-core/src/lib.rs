//! The words that every part of Potluck shares.
//!
//! A model is named by a [`ModelId`], cut into [`LayerRange`]s, and each range that is loaded in a peer is a
//! [`Stage`]. A client's session is keyed by [`SessionKey`]; what it sends down a route is a [`Step`]:
//! ```
//! use potluck_core::LayerRange;
//! let all = LayerRange::new(0, 30)?;
//! let parts = all.split(3)?;
//! assert_eq!(parts.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0..10", "10..20", "20..30"]);
//! # Ok::<(), potluck_core::RangeError>(())
//! ```
//! No IO, no clock, no engine: the network, the simulator and the engines all build on this crate.

mod account;
pub mod bounds;
mod causes;
mod defence;
mod endpoint;
mod ids;
mod manifest;
mod offer;
mod order;
mod piece;
mod range;
mod reduce;
mod revocation;
mod stage;
mod tree;

pub use account::Account;
pub use causes::with_causes;
pub use defence::Defence;
#[cfg(feature = "undefended")]
pub use defence::SwitchedOff;
pub use endpoint::{Endpoint, PASSED_ON};
pub use ids::{CacheId, IdError, ModelId, PeerId, SecretKey, SessionId, SessionKey};
pub use manifest::{Manifest, ManifestError, MetaArray, MetaValue, TensorEntry, TensorType};
pub use offer::{Offer, OfferError, SignedOffer, StageSpeed};
pub use order::{Action, Order, OrderError, SignedOrder};
pub use piece::{PIECE_BYTES, PieceHash, piece_hash, piece_range, pieces_of, tensor_hash};
pub use range::{LayerRange, RangeError};
pub use revocation::{Renewal, Revocation, RevocationError, Revoked, SignedRevocation, Succession};
pub use stage::{
    Hidden, Input, Logits, Output, Rows, STATE_FORGOTTEN, STATE_PART_BYTES_MAX, Stage, StageCommand, StageError,
    StageReply, StageShape, StageSpec, StateKey, StatePart, Step,
};
pub use tree::{Tree, TreeError};
