//! How this machine and the others reach each other.

use std::str::FromStr;

use clap::{Args, builder::FalseyValueParser};
use potluck_net::{Lan, NetError, Node, PublicLookup, RelayAt};

/// How this machine and the others reach each other.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Reach {
    /// Look nobody up on the local network, and do not answer there: no mDNS
    #[arg(long, global = true, env = "POTLUCK_NO_MDNS", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) no_mdns: bool,
    /// The relay that helps where machines do not reach each other, or `none` (repeatable) [default: those of the swarm, as `potluck
    /// swarm relays` prints them]
    #[arg(long, global = true, value_name = "URL", env = "POTLUCK_RELAY", hide_env = true, value_delimiter = ',')]
    pub(crate) relay: Vec<RelayChoice>,
    /// Look peers up by their keys in public, where those whom this machine knows are gone, and be found there where it serves: `dht`
    /// (BitTorrent's), or the URL of a pkarr relay
    #[arg(long, global = true, value_name = "dht|URL", env = "POTLUCK_DISCOVERY", hide_env = true)]
    pub(crate) discovery: Option<PublicLookup>,
}

/// Which relay the user wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RelayChoice {
    /// None: only who reaches this machine directly reaches it.
    None,
    /// The one at this URL.
    At(String),
}

impl Reach {
    /// What this machine does with its network where it asks others.
    pub(crate) fn asking(&self) -> Lan {
        if self.no_mdns { Lan::Off } else { Lan::Ask }
    }

    /// The same, where others ask it.
    pub(crate) fn serving(&self) -> Lan {
        if self.no_mdns { Lan::Off } else { Lan::Announce }
    }

    /// That node, as one that looks peers up in public where the user wants it; `publish`: and is found there.
    pub(crate) fn in_public(&self, node: Node, publish: bool) -> Node {
        match &self.discovery {
            Some(at) => node.with_public_lookup(at, publish),
            None => node,
        }
    }

    /// The relays that the user wants, or else these.
    pub(crate) fn relays_or(&self, kept: &[String]) -> Vec<String> {
        if self.relay.is_empty() {
            return kept.to_vec();
        }
        if self.relay.contains(&RelayChoice::None) {
            return Vec::new();
        }
        self.relay.iter().filter_map(RelayChoice::url).collect()
    }
}

impl FromStr for RelayChoice {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        if text == "none" { Ok(Self::None) } else { RelayAt::parse(text).map(|at| Self::At(at.to_string())) }
    }
}

impl RelayChoice {
    fn url(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::At(url) => Some(url.clone()),
        }
    }

    /// As it is written on the command line.
    pub(crate) fn word(&self) -> String {
        self.url().unwrap_or_else(|| "none".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_this_time_counts_before_what_is_kept() {
        let kept = ["https://kept.example/".to_owned()];
        let chosen = |texts: &[&str]| {
            let reach = Reach { relay: texts.iter().map(|text| text.parse().unwrap()).collect(), ..Reach::default() };
            (reach.relays_or(&kept), reach.relays_or(&[]))
        };
        assert_eq!(chosen(&[]), (kept.to_vec(), vec![]));
        assert_eq!(chosen(&["none"]), (vec![], vec![]));
        let others = vec!["https://a.example/".to_owned(), "https://b.example/".to_owned()];
        assert_eq!(chosen(&["https://a.example", "https://b.example"]), (others.clone(), others));
        assert!("other.example".parse::<RelayChoice>().is_err());
    }
}
