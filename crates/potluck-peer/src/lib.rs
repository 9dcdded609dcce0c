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

mod event;

pub use event::{DialId, Effect, Event, PeerConfig, StageSlot, StreamId};
