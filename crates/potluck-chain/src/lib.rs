//! How a token is made: planner, routes, sessions and steps, without IO.
//!
//! A [`ClientSession`] turns events (a frame came, an own stage ran, a deadline passed) into effects, and never waits:
//! ```ignore
//! session.handle(now, Event::Frame { hop, frame });
//! while let Some(effect) = session.poll() { perform(effect); }
//! wake_at(session.poll_timeout());
//! ```
//! Each step is answered once, in order; after a [`SessionError`] there is nothing more to come.
//! Not here: sockets (`potluck-net`), arithmetic (`potluck-engine`), who may (`potluck-grant`), and the peers' side
//! of a session (`potluck-peer`).

pub mod chunks;
mod client;
mod credit;
pub mod draft;
mod error;
mod fit;
mod journal;
pub mod plan;
pub mod sample;

pub use client::{
    Answer, ClientSession, Effect, Event, Hop, OwnStage, RemoteStage, STEPS_IN_FLIGHT_MAX, SessionConfig, SharedPrefix,
    Submission,
};
pub use credit::{Credit, Level, Receipts};
pub use error::{Deadlines, SessionError};
pub use fit::{Fit, StepTimes};
pub use journal::{JOURNAL_BYTES_MAX, Journal, Outgoing, REPLAYED_SINGLY_MAX};
