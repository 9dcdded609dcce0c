//! How this machine and the others reach each other.

use std::str::FromStr;

use clap::{Args, builder::FalseyValueParser};
use potluck_net::{Lan, NetError, parse_relay};

/// How this machine and the others reach each other.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Reach {
    /// Look nobody up on the local network, and do not answer there: no mDNS
    #[arg(long, global = true, env = "POTLUCK_NO_MDNS", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) no_mdns: bool,
    /// The relay that helps where machines do not reach each other, or `none` [default: the one that the swarm was joined with]
    #[arg(long, global = true, value_name = "URL", env = "POTLUCK_RELAY", hide_env = true)]
    pub(crate) relay: Option<RelayChoice>,
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

    /// The relay that the user wants, or else this one.
    pub(crate) fn relay_or(&self, kept: Option<&String>) -> Option<String> {
        match &self.relay {
            Some(RelayChoice::None) => None,
            Some(RelayChoice::At(url)) => Some(url.clone()),
            None => kept.cloned(),
        }
    }
}

impl FromStr for RelayChoice {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        if text == "none" { Ok(Self::None) } else { parse_relay(text).map(Self::At) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_this_time_counts_before_what_is_kept() {
        let kept = "https://kept.example/".to_owned();
        let chosen = |text: Option<&str>| {
            let reach = Reach { no_mdns: false, relay: text.map(|text| text.parse().unwrap()) };
            (reach.relay_or(Some(&kept)), reach.relay_or(None))
        };
        assert_eq!(chosen(None), (Some(kept.clone()), None));
        assert_eq!(chosen(Some("none")), (None, None));
        let other = Some("https://other.example/".to_owned());
        assert_eq!(chosen(Some("https://other.example")), (other.clone(), other));
        assert!("other.example".parse::<RelayChoice>().is_err());
    }
}
