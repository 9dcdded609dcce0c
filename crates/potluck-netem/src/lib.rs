//! Networks for tests, on one machine: what real ones do to packets, without a real one.
//!
//! A [`World`] is a small internet of network namespaces, with a [`Side`] for each kind of NAT and firewall that peers sit
//! behind. Programs run inside by [`Namespace::command`], sockets are opened there by [`Namespace::inside`], and all of it is
//! gone when the world is dropped:
//! ```no_run
//! # fn main() -> Result<(), potluck_netem::NetemError> {
//! use potluck_netem::{Nat, World};
//! let mut world = World::new()?;
//! let home = world.side(Nat::PortRestricted)?;
//! let socket = world[home].host().inside(|| std::net::UdpSocket::bind("0.0.0.0:0"))?;
//! # Ok(()) }
//! ```
//! A [`link::Link`] delays, drops and paces packets out of a seed, and knows no clock and no socket; a `Wire` puts one between
//! two namespaces.
//!
//! Not here: what peers should make of it (the tests of `potluck-net`). It needs Linux, root, `ip`, `nft` and `conntrack`.

pub mod link;
mod nat;

#[cfg(target_os = "linux")]
mod error;
#[cfg(target_os = "linux")]
mod namespace;
#[cfg(target_os = "linux")]
mod side;
#[cfg(target_os = "linux")]
mod wire;
#[cfg(target_os = "linux")]
mod world;

pub use nat::{Class, Nat};

#[cfg(target_os = "linux")]
pub use {
    error::NetemError,
    namespace::{Namespace, Running},
    side::Side,
    wire::{Wire, WireStats},
    world::{RELAY_HOST, RELAY_V4, RELAY_V6, SideId, World},
};
