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
//! Further roles and limits are [`Caveats`]; a holder hands its grant on, narrower, without asking anybody ([`Grant::hand_on`]). A
//! biscuit is a bearer token: this one is worth nothing without its last holder's key. What is taken back ([`Gate::revoke`]) ends all
//! that rests on it; a root that another follows ([`Root::rotate`]) signs no longer. No IO and no clock: the caller says what time it is.

mod api_key;
mod chain;
mod gate;
mod meter;
mod pass;
mod reach;
mod request;
mod revoked;
mod rights;
mod root;
mod rotate;
mod succession;

pub use api_key::{API_KEY_CHARS_MAX, ApiKey, Asking, Operating};
pub use chain::{Chain, GrantId, LINKS_MAX, Link};
pub use gate::{Authorized, Gate, GrantError, Member, Request, Taken};
pub use meter::{ByteMeter, Keep, Meter};
pub use pass::{RELAY_TOKEN_CHARS_MAX, RelayPass, Relayed, relay_pass_key, relay_token};
pub use reach::{ByteBudget, Net, Ports, Reach, is_link_local};
pub use request::{Lending, Looking};
pub use revoked::{REVOCATIONS_MAX, STATEMENTS_MAX};
pub use rights::{Budget, Caveats, Hours, Need, Place, Right, Role, Scope};
pub use root::{Grant, Root, SwarmId};
