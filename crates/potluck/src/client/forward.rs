//! A port of this machine that leads to one of a peer.

use std::net::SocketAddr;

use tokio::task::AbortHandle;

/// A port of this machine that leads to one of a peer ([`Client::forward_tcp`](super::Client::forward_tcp)), until it
/// is dropped.
#[derive(Debug)]
pub struct Forward {
    at: SocketAddr,
    task: AbortHandle,
}

impl Forward {
    pub(super) fn new(at: SocketAddr, task: AbortHandle) -> Self {
        Self { at, task }
    }

    /// Where programs of this machine reach it.
    pub fn local_addr(&self) -> SocketAddr {
        self.at
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}
