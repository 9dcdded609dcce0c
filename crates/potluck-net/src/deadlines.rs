//! How long each wait on the network may last.

use std::time::Duration;

/// How long each wait on the network may last. Beyond it, a typed error: nothing hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetDeadlines {
    /// From the first packet to a finished handshake.
    pub connect: Duration,
    /// From a connection to its welcome.
    pub greet: Duration,
    /// For a stream to be opened on a connection that stands.
    pub open_stream: Duration,
    /// Without a byte of an answer that was asked for.
    pub stall: Duration,
    /// Without a packet before a path, and with it a connection that has no other, counts as lost.
    pub path_idle: Duration,
}

impl Default for NetDeadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            greet: Duration::from_secs(5),
            open_stream: Duration::from_secs(5),
            stall: Duration::from_secs(15),
            path_idle: Duration::from_secs(3),
        }
    }
}

impl NetDeadlines {
    /// Between packets that keep a path alive: four of them may be lost before it counts as dead.
    pub(crate) fn keep_alive(&self) -> Duration {
        self.path_idle * 7 / 30
    }
}
