//! Who may do what: biscuit grants, bound to a key, checked before any work.
//!
//! A swarm's root signs a grant that names its holder; [`Gate::check`] is the only maker of a [`Member`], and what
//! needs a grant takes a `Member`: forgetting the check does not compile.
//! ```
//! use potluck_core::SecretKey;
//! use potluck_grant::{Gate, Root};
//! let root = Root::from_bytes(&[1; 32]);
//! let peer = SecretKey::from_bytes(&[2; 32]).peer_id();
//! let grant = root.grant(peer, 2_000_000_000)?;
//! let gate = Gate::new(root.public());
//! assert_eq!(gate.check(grant.as_bytes(), peer, 1_900_000_000)?.peer(), peer);
//! # Ok::<(), potluck_grant::GrantError>(())
//! ```
//! One role, `member`, and an expiry. A biscuit is a bearer token: this one is worth nothing without its holder's key.
//! No IO and no clock: the caller says what time it is.

mod gate;
mod root;

pub use gate::{Gate, GrantError, Member};
pub use root::{Grant, Root, SwarmId};
