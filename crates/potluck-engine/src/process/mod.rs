//! An engine in a process of its own: started, spoken to in frames, ended, started again.

mod child;
mod client;
mod connect;
mod descriptors;
mod due;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod spawn;
mod supervise;
pub(crate) mod wire;

pub use child::child_main;
pub use client::EngineStage;
pub use connect::try_out_sandbox;
pub use frame::FRAME_BYTES_MAX;
pub use spawn::EngineProgram;
pub use supervise::{EngineProcess, RESTARTS_MAX};

pub(crate) use connect::{Connection, Loaded, Patience, connect};
pub(crate) use frame::{Inbox, decode, encode};
