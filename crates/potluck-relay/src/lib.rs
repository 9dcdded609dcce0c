//! A swarm's own relay: it passes on ciphertext between members that do not reach each other, and tells each where it is seen from.
//!
//! ```no_run
//! # use potluck_grant::{Gate, Root};
//! # use potluck_relay::{Certificate, Relay, RelayConfig};
//! # async fn run(root: Root) -> Result<(), potluck_relay::RelayError> {
//! let certificate = Certificate::self_signed("relay".as_ref(), &["relay.example".into()])?;
//! let relay = Relay::start(RelayConfig::new(vec![Gate::new(root.public())], certificate)).await?;
//! relay.stop().await
//! # }
//! ```
//! The protocol is iroh's relay protocol 1.x: a WebSocket over TLS, and QUIC address discovery beside it, without which no two machines
//! behind address translation find a direct path. What is Potluck's own: who is let in ([`potluck_grant::Gate::check_relayed`]), that
//! whoever is shut out is put out, how many, and how much.
//!
//! **Invariant:** nobody's datagram is passed on before its key has shown a grant or an invitation's pass of a swarm that this relay serves.

mod access;
mod certificate;
mod config;
mod metrics;
mod server;

pub use certificate::{Acme, Certificate};
pub use config::{Limits, RelayConfig, Spent};
pub use server::{Relay, RelayError};
