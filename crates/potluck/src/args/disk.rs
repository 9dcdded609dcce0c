//! How much of the disk what is fetched may take.

use clap::Args;

use super::parse_bytes;
use crate::home::Home;

/// How much of the disk what is fetched may take.
#[derive(Debug, Clone, Args)]
pub(crate) struct DiskArgs {
    /// Disk that fetched models may take, such as 50GB: what was used longest ago is removed to make room [default: what is free, and nothing is removed]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, env = "POTLUCK_DISK", hide_env_values = true)]
    pub(crate) disk: Option<u64>,
}

impl DiskArgs {
    /// The same home, with this quota.
    pub(crate) fn limit(&self, home: &Home) -> Home {
        home.with_disk(self.disk)
    }
}
