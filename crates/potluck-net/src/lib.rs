//! Peers on a network: endpoints, greetings, and the drivers of `potluck-peer` and `potluck-chain`.
//!
//! [`Node`] is one endpoint with one key. [`serve`] runs a [`potluck_peer::Peer`] on it until told to stop;
//! [`Node::open`] opens a session over a route and drives it:
//! ```ignore
//! let mut session = node.open(config, own_stages).await?;
//! let step = session.submit(Submission::chain(0, tokens, Rows::Last, 128))?;
//! while let SessionEvent::Answer(answer) = session.next().await? { ... }
//! ```
//! The drivers move bytes and decide nothing. They are made for a current-thread runtime: a token's way through a
//! peer is a handful of task switches and no wake-up of another thread.
//!
//! What they promise: nobody is served before its grant has been checked; every connect, greeting and opening of a stream
//! has a deadline; what a stream holds in memory is bounded, and a reader that is not drained stops reading.

mod accept;
mod ask;
mod check;
mod connect;
mod deadlines;
mod directory;
mod echo;
mod error;
mod greet;
mod join;
mod lan;
mod lenders;
mod lending;
mod lent;
mod node;
#[cfg(feature = "undefended")]
mod null;
mod orders;
mod path;
mod places;
mod public;
mod rates;
mod relay;
mod revoke;
mod serve;
mod session;
mod shelf;
mod states;
mod stream;
mod tunnel;
mod upload;

pub use check::NetCheck;
pub use connect::{Found, Link};
pub use deadlines::NetDeadlines;
pub use directory::{Directory, OFFERS_KEPT_MAX, OfferRefused, PEER_OFFERS_MAX};
pub use error::NetError;
pub use join::Door;
pub use lan::Lan;
pub use lending::{Asked, Lending, Reply};
pub use lent::{LentAnswer, LentBody};
pub use node::{Bind, Identity, Node, NodeConfig};
pub use orders::{Giver, Orders};
pub use path::{PathInfo, PathKind};
pub use public::PublicLookup;
pub use relay::{RELAYS_MAX, RelayAt, RelayInvitation, RelayUse};
pub use serve::{Serving, StagePort, StatusWatch, serve, serve_keeping};
pub use session::{OwnPort, Session, SessionEvent};
pub use shelf::{Question, Shelf};
pub use states::{StateJob, StateJobs};
pub use tunnel::{TUNNEL_STREAMS_MAX, Tunnel, Tunnels};

/// The halves of a tunnel's stream.
pub use iroh::endpoint::{ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
