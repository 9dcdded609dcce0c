//! Where the swarm's root key is, and what opens it.

use std::path::PathBuf;

use clap::Args;

use crate::home::{Home, RootSource};

/// Where the swarm's root key is, and what opens it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RootArgs {
    /// The swarm's root key, where it lies elsewhere: a file of `potluck swarm root --export` [default: the one that is kept here]
    #[arg(long, value_name = "FILE", env = "POTLUCK_ROOT", hide_env = true)]
    root: Option<PathBuf>,
    /// A file whose first line is the root key's passphrase, or `-` for stdin [default: asked for on the terminal]
    #[arg(long, value_name = "FILE", env = "POTLUCK_ROOT_PASSPHRASE_FILE", hide_env = true)]
    passphrase_file: Option<PathBuf>,
}

impl RootArgs {
    /// The same home, with the root key from there.
    pub(crate) fn of(&self, home: &Home) -> Home {
        let (file, passphrase) = (self.root.clone(), self.passphrase_file.clone());
        home.with_root(RootSource { file, passphrase, held: None })
    }
}
