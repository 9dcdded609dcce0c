//! Which model, and over which machines.

use clap::{Args, ValueEnum};
use potluck_client::Drafts;

use super::{DiskArgs, DraftArgs, PrivacyArgs};
use crate::failure::Failure;

/// Peers that one command starts: what a route may have, less the two ends that the command itself may hold.
pub(crate) const PEERS_MAX: u16 = 62;

const _: () =
    assert!(PEERS_MAX as usize + 2 == potluck_core::bounds::ROUTE_STAGES_MAX, "the ends find room in a route");

/// Which model, and over which machines.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Route")]
pub(crate) struct RouteArgs {
    /// A name from `potluck model list`, an id, or a path [default: the only model there is]
    #[arg(long, short, value_name = "M")]
    pub(crate) model: Option<String>,
    /// Start N peers of its own on this machine and spread all layers over them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(PEERS_MAX)))]
    pub(crate) peers: Option<u16>,
    /// Run the whole model on this machine, in one engine
    #[arg(long, conflicts_with = "peers")]
    pub(crate) local: bool,
    /// Hold the first and the last layer in the command itself: no peer sees a token
    #[arg(long, requires = "peers")]
    pub(crate) own_ends: bool,
    /// What a route through the swarm is chosen for
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with_all = ["peers", "local"], default_value_t = Prefer::Private)]
    pub(crate) prefer: Prefer,
    /// Memory that this machine gives to a model, such as 4GB [default: most of what is free]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, conflicts_with_all = ["peers", "local"])]
    pub(crate) memory: Option<u64>,
    /// Peers that stand by while an answer is under way, each with the layers of a peer of the route: where that one is lost, only what
    /// they have not caught up with is computed again. They compute all of it, too
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["peers", "local"])]
    pub(crate) standby: u16,
    #[command(flatten)]
    pub(crate) drafts: DraftArgs,
    #[command(flatten)]
    pub(crate) privacy: PrivacyArgs,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
}

impl RouteArgs {
    /// Layers at each end that the command itself holds, where it starts the peers.
    pub(crate) fn ends(&self) -> u32 {
        self.privacy.ends(self.own_ends)
    }

    /// Where drafts come from. With padding from nowhere: how many a step has, and whether they were right, would be seen.
    pub(crate) fn drafts(&self) -> Drafts {
        if self.privacy.pad { Drafts::Off } else { self.drafts.drafts() }
    }

    /// Refuses wishes that exclude each other.
    ///
    /// # Errors
    /// `usage`, with which.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.peers.is_none() && !self.local { self.privacy.check(self.prefer) } else { Ok(()) }
    }
}

/// A size as people write it.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 4] = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("B", 1)];
    let upper = text.trim().to_ascii_uppercase();
    let (number, unit) =
        UNITS.iter().find_map(|&(name, bytes)| Some((upper.strip_suffix(name)?, bytes))).unwrap_or((upper.as_str(), 1));
    let number: f64 = number.trim().parse().map_err(|_| format!("`{text}` is no size, such as 4GB"))?;
    let bytes = number * unit as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(format!("`{text}` is no size of memory")) }
}

/// What a route is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Prefer {
    /// Hold both ends on this machine where they fit: no peer sees a token
    Private,
    /// The fastest answer
    Latency,
    /// Peers only, also where this machine could do it alone
    Swarm,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("92MB"), Ok(92_000_000));
        assert_eq!(parse_bytes("1.5 gb"), Ok(1_500_000_000));
        assert_eq!(parse_bytes("4096"), Ok(4_096));
        for text in ["", "GB", "-1GB", "0", "nan", "inf", "1e30TB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
