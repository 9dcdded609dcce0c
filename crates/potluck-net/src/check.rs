//! What the network that this node is on lets through, as its relays see it: from the node's own socket, so that it holds for it.

use std::{net::SocketAddr, time::Duration};

use iroh::Watcher as _;
use tokio::time::timeout;

use crate::{Node, PathInfo, PathKind};

/// What the network lets through. What was not found out is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetCheck {
    /// From where relays see this node's packets, where UDP gets through to them.
    pub seen_from: Vec<SocketAddr>,
    /// Whether each peer sees this node at another port, as behind a symmetric NAT; it takes two relays to tell.
    pub port_varies: Option<bool>,
    /// Whether somebody answers in the Internet's place, as before a hotel's network is paid for.
    pub captive: Option<bool>,
    /// The relays that answered, and how far they are.
    pub relays: Vec<(String, Duration)>,
}

impl NetCheck {
    /// Whether UDP gets out: without it, no path is direct.
    pub fn has_udp(&self) -> bool {
        !self.seen_from.is_empty()
    }

    /// Why a peer that was reached by a relay is not reached directly, as far as this side knows.
    pub fn why_relayed(&self) -> &'static str {
        if !self.has_udp() {
            return "UDP does not get out of this network: let it, at least to the relay's port 7842 and to the peer's port";
        }
        match self.port_varies {
            Some(true) => {
                "this network shows another port to each peer (symmetric NAT): turn on UPnP at the router, or use IPv6, unless the peer's network lets anybody in"
            }
            _ => {
                "the peer's network lets nothing in from here, or a direct path is still being looked for: ask for `potluck doctor` there, and look again in a minute"
            }
        }
    }
}

impl PathInfo {
    /// Whether it goes through a relay.
    pub fn is_relayed(&self) -> bool {
        self.kind == PathKind::Relay
    }
}

impl Node {
    /// What this network lets through; none where the node has no relay to ask, or none tells in time.
    pub async fn check_network(&self) -> Option<NetCheck> {
        if self.relays.is_empty() {
            return None;
        }
        let mut reports = self.endpoint.net_report();
        let report = timeout(self.deadlines.connect, reports.initialized()).await.ok()?;
        let v4 = report.global_v4.map(SocketAddr::V4);
        let v6 = report.global_v6.map(SocketAddr::V6);
        let relays = report.relay_latency.iter().map(|(_, url, latency)| (url.to_string(), latency));
        let mut relays: Vec<_> = relays.collect();
        relays.sort();
        relays.dedup_by(|later, first| later.0 == first.0);
        Some(NetCheck {
            seen_from: v4.into_iter().chain(v6).collect(),
            port_varies: report.mapping_varies_by_dest(),
            captive: report.captive_portal,
            relays,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_first_that_explains_it() {
        let blocked = NetCheck::default();
        assert!(blocked.why_relayed().starts_with("UDP"));
        let open = NetCheck { seen_from: vec![SocketAddr::from(([198, 18, 0, 1], 7))], ..blocked };
        assert!(open.why_relayed().starts_with("the peer's network"));
        assert!(NetCheck { port_varies: Some(true), ..open }.why_relayed().contains("symmetric"));
    }
}
