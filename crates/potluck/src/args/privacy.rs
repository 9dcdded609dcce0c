//! What stays on this machine, who may hold what is sensitive, and what packets tell.

use clap::{Args, ValueEnum};

use super::Prefer;
use crate::failure::Failure;

/// What stays on this machine, who may hold what is sensitive, and what packets tell.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Privacy")]
pub(crate) struct PrivacyArgs {
    /// Keep at least K layers at each end of the model on this machine: no peer sees a token, and hidden states only after K
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) hide_layers: Option<u32>,
    /// Whose machines may hold layers of the model
    #[arg(long, value_enum, value_name = "WHOSE")]
    pub(crate) only: Option<Only>,
    /// With --only: for the first and the last N layers; others may hold the rest [default: all layers]
    #[arg(long, value_name = "N", requires = "only", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) only_layers: Option<u32>,
    /// Send steps and answers in a few sizes: who sees packets learns less of how long prompts are
    #[arg(long)]
    pub(crate) pad: bool,
}

/// Whose machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Only {
    /// This one, and those on the list of `potluck swarm trust`
    Trusted,
}

/// The same, as planners and sessions are told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Privacy {
    /// Layers at each end that stay here.
    pub(crate) hide_layers: u32,
    /// Layers at each end that are for trusted machines alone.
    pub(crate) trusted_layers: u32,
    /// Whether steps and answers come in a few sizes.
    pub(crate) pad: bool,
}

impl PrivacyArgs {
    /// Layers that stay here at each end of peers of one's own.
    pub(crate) fn ends(&self, own_ends: bool) -> u32 {
        self.hide_layers.unwrap_or(u32::from(own_ends))
    }

    /// Refuses what a route through the swarm cannot be both of.
    ///
    /// # Errors
    /// `usage`, with which.
    pub(crate) fn check(&self, prefer: Prefer) -> Result<(), Failure> {
        if prefer == Prefer::Swarm && self.hide_layers.is_some() {
            let message = "--prefer swarm gives every layer to peers, --hide-layers keeps some here";
            return Err(Failure::usage(message, "leave one of them out"));
        }
        Ok(())
    }

    /// As planners and sessions are told.
    pub(crate) fn read(&self) -> Privacy {
        Privacy {
            hide_layers: self.hide_layers.unwrap_or(0),
            trusted_layers: self.only.map_or(0, |Only::Trusted| self.only_layers.unwrap_or(u32::MAX)),
            pad: self.pad,
        }
    }
}
