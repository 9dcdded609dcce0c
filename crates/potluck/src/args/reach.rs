//! How this machine and the others reach each other.

use clap::{Args, builder::FalseyValueParser};
use potluck_net::Lan;

/// How this machine and the others reach each other.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Reach {
    /// Look nobody up on the local network, and do not answer there: no mDNS
    #[arg(long, global = true, env = "POTLUCK_NO_MDNS", hide_env = true, value_parser = FalseyValueParser::new())]
    pub(crate) no_mdns: bool,
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
}
