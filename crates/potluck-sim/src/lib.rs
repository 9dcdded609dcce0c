//! A deterministic simulator: production peers and client sessions, under a virtual clock and network.
//!
//! It replaces sockets, engines and time, and nothing else. A seed repeats everything:
//! ```
//! use potluck_sim::{Scenario, World};
//! let report = World::new(Scenario::calm(0x5eed)).run();
//! assert_eq!(report.failed.len(), 0);
//! assert_eq!(report, World::new(Scenario::calm(0x5eed)).run());
//! ```
//! What it checks, after every event: a token that a session delivers is the one that the unbroken, uncut model gives;
//! queues stay within their bounds. And at the end: every session has ended, well or with a typed error; no peer that
//! is alive holds a stream, a session, a dial or a cache. A violation panics with what repeats it; [`minimised`] finds a smaller run
//! that breaks a promise as well.

mod client;
mod disk;
mod faults;
mod minimise;
mod peer;
mod scenario;
pub mod toy;
mod user;
mod wire;
mod world;

pub use minimise::{Failed, minimised, tried};
pub use scenario::{Faults, Kind, Line, Report, Scenario};
pub use world::World;
