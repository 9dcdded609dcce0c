//! How a connection runs: over loopback, directly, or through a relay.

use std::{fmt, time::Duration};

use iroh::{
    TransportAddr,
    endpoint::{Connection, Path, PathId, PathList},
};

/// What kind of path a connection's packets take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathKind {
    /// Within this machine.
    Loopback,
    /// From socket to socket.
    Direct,
    /// Through a relay, which sees ciphertext.
    Relay,
}

/// The path that a connection uses at present.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathInfo {
    /// What kind.
    pub kind: PathKind,
    /// Its round trip, as measured by the transport.
    pub rtt: Duration,
    /// Packets that this side sent on it and that were lost, of all that it sent: 0 to 1.
    pub loss: f64,
}

impl PathInfo {
    /// The selected path of a connection; none before one is chosen.
    pub(crate) fn of(connection: &Connection) -> Option<Self> {
        let paths = connection.paths();
        let path = selected(&paths)?;
        let kind = match path.remote_addr() {
            TransportAddr::Ip(address) if address.ip().to_canonical().is_loopback() => PathKind::Loopback,
            TransportAddr::Ip(_) => PathKind::Direct,
            _ => PathKind::Relay,
        };
        let stats = path.stats();
        let loss = stats.lost_packets as f64 / stats.sent_packets.max(1) as f64;
        Some(Self { kind, rtt: stats.rtt, loss })
    }
}

/// Packets that this side has sent on a connection's selected path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packets {
    pub(crate) path: PathId,
    pub(crate) sent: u64,
    /// How many of them were lost, but for probes of how long packets may be, which are meant to be.
    pub(crate) lost: u64,
}

impl Packets {
    pub(crate) fn of(connection: &Connection) -> Option<Self> {
        let paths = connection.paths();
        let path = selected(&paths)?;
        let stats = path.stats();
        let lost = stats.lost_packets.saturating_sub(stats.lost_plpmtud_probes);
        Some(Self { path: path.id(), sent: stats.sent_packets, lost })
    }
}

fn selected<'a>(paths: &'a PathList<'_>) -> Option<Path<'a>> {
    paths.iter().find(Path::is_selected).or_else(|| paths.iter().next())
}

impl PathKind {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Direct => "direct",
            Self::Relay => "relay",
        }
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
