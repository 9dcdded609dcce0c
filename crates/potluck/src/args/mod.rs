//! Arguments that several commands share.

mod disk;
mod door;
mod drafts;
mod engine;
mod privacy;
mod reach;
mod root;
mod route;
mod sampling;

pub(crate) use disk::DiskArgs;
pub(crate) use door::{DoorArgs, take_handles};
pub(crate) use drafts::DraftArgs;
pub(crate) use engine::EngineArgs;
pub(crate) use privacy::{Privacy, PrivacyArgs};
pub(crate) use reach::{Reach, RelayChoice};
pub(crate) use root::RootArgs;
pub(crate) use route::{PEERS_MAX, Prefer, RouteArgs, parse_bytes};
pub(crate) use sampling::{SamplingArgs, StopArgs};
