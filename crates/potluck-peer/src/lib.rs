//! A whole peer as one state machine: sessions, hops, and the queue in front of each stage.
//!
//! A [`Peer`] turns events (a frame came, a stage ran, a stream closed) into effects, and never waits:
//! ```ignore
//! peer.handle(now, Event::Frame { stream, frame });
//! while let Some(effect) = peer.poll() { perform(effect); }
//! wake_at(peer.poll_timeout());
//! ```
//! The driver (`potluck-net`, or the simulator) owns sockets and engines and decides nothing. It greets: a stream
//! exists for this machine only once its connection has shown a valid grant ([`potluck_grant::Member`]).
//!
//! What it promises: a step runs once and in order; nothing is passed on before the next peer has confirmed the same
//! session of the same client; a session that ends, for whatever reason, frees its cache and ends on every stream it
//! had; each wait has a deadline. A stranger's frame ends the stream it came on and nothing else.

mod account;
mod away;
mod company;
mod event;
mod open;
mod peer;
mod queue;
mod repair;
mod saving;
mod session;
mod standby;
mod steps;

pub use away::AWAY_MAX;
pub use event::{DialId, Effect, Event, Now, PeerConfig, StageSlot, StreamId};
pub use peer::{DRAIN_REST, Peer, PeerStatus};
pub use repair::GRACE_MAX;
