//! What is drafted: tokens that are guessed here, and that the model verifies several at a time.

use clap::{Args, ValueEnum};
use potluck_client::Drafts;

/// What is drafted.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Drafts")]
pub(crate) struct DraftArgs {
    /// Where guesses at the next tokens come from, which the model verifies several at a time: the answer is the same, and comes
    /// sooner
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = DraftsArg::Auto)]
    drafts: DraftsArg,
    /// A small model with the same vocabulary, to guess on this machine: a name, an id, or a path
    #[arg(long, value_name = "M")]
    pub(crate) draft_model: Option<String>,
}

/// Where drafts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DraftsArg {
    /// Whichever pays
    Auto,
    /// The conversation's own text
    Lookup,
    /// The draft model
    Model,
    /// Nowhere: one token after the other
    Off,
}

impl DraftArgs {
    /// Where drafts come from.
    pub(crate) fn drafts(&self) -> Drafts {
        match self.drafts {
            DraftsArg::Auto => Drafts::Auto,
            DraftsArg::Lookup => Drafts::Lookup,
            DraftsArg::Model => Drafts::Model,
            DraftsArg::Off => Drafts::Off,
        }
    }
}
