//! Services of a peer, reached by its public key: single ports, a SOCKS door to its network, or ranges of addresses.
//!
//! One side exposes ([`expose`]), and nothing but what it lists; the other reaches ([`Far`]) through a listener of its own
//! ([`forward_tcp`], [`forward_udp`]), or a door ([`socks`], and on Linux `tun`). A connection of TCP is a stream of the tunnel's connection; a flow of UDP a
//! stream and datagrams:
//! ```ignore
//! expose(&node, Exposing::new(["22".parse()?]));                      // there
//! let far = Far::new(node, address, find);                            // here
//! forward_tcp(listener, far, Dial { service: Service::Tcp(22), host: Host::Own }).await;
//! ```
//! An application is reached by a topic, in the same way and by the same right: [`Apps`] takes messages and streams, [`Far`] sends
//! and opens them.
//!
//! What it promises: nothing is dialled that the caller's grant does not allow and the peer does not expose, by the address that a name
//! was resolved to; half a close, an end and a reset arrive as what they were; who reads slowly is waited for, in one
//! bounded buffer; a listener outlives the connection behind it.
//! Not here: who may (`potluck-grant`), connections and greetings (`potluck-net`).

mod apps;
mod copy;
mod echo;
mod error;
mod expose;
mod far;
mod flows;
mod forward;
mod frame;
mod reach;
mod serve;
pub mod socks;
#[cfg(target_os = "linux")]
pub mod tun;
mod udp;

pub use apps::{
    Apps, Arriving, Message, Messages, PeerStream, Receipt, WAITING_BYTES_MAX, WAITING_MAX, WAITING_OF_MEMBER_MAX,
};
pub use error::TunnelError;
pub use expose::Exposure;
pub use far::{Far, FindPeer};
pub use forward::{forward_tcp, forward_udp};
pub use reach::Resolver;
pub use serve::{Exposing, expose};
pub use udp::UdpTimes;
