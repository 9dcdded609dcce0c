//! Arguments that several commands share.

mod door;
mod engine;
mod route;
mod sampling;

pub(crate) use door::DoorArgs;
pub(crate) use engine::EngineArgs;
pub(crate) use route::{PEERS_MAX, Prefer, RouteArgs, parse_bytes};
pub(crate) use sampling::{SamplingArgs, StopArgs};
