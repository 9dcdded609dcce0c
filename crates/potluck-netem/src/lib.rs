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
//! two namespaces, and a `Star` one between each of many machines and a router. [`link::Line`] has figures of lines that people
//! have, by name.
//!
//! Not here: what peers should make of it (the tests of `potluck-net`). It needs Linux, root, `ip`, `nft` and `conntrack`;
//! without the feature `namespaces` there are links alone, which need nothing.

pub mod link;
#[cfg(feature = "namespaces")]
mod nat;

#[cfg(all(target_os = "linux", feature = "namespaces"))]
mod carrier;
#[cfg(all(target_os = "linux", feature = "namespaces"))]
mod error;
#[cfg(all(target_os = "linux", feature = "namespaces"))]
mod namespace;
#[cfg(all(target_os = "linux", feature = "namespaces"))]
mod side;
#[cfg(all(target_os = "linux", feature = "namespaces"))]
mod star;
#[cfg(all(target_os = "linux", feature = "namespaces"))]
mod wire;
#[cfg(all(target_os = "linux", feature = "namespaces"))]
mod world;

#[cfg(feature = "namespaces")]
pub use nat::{Class, Nat};

#[cfg(all(target_os = "linux", feature = "namespaces"))]
pub use {
    error::NetemError,
    namespace::{Namespace, Running},
    side::Side,
    star::Star,
    wire::Wire,
    world::{RELAY_HOST, RELAY_V4, RELAY_V6, SideId, World},
};
