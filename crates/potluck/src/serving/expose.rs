//! `--expose`: services of this machine that members reach by its key.

use clap::Args;
use potluck_net::Node;
use potluck_tunnel::{Exposing, Exposure, TunnelError, expose};
use tokio::task::JoinSet;

use crate::{
    failure::Failure,
    home::{Home, byte_meter},
    screen::Screen,
};

/// What members may reach through this peer.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExposeArgs {
    /// Let members reach a service: 22 of this machine alone, udp:53, 192.168.1.10:5432, 10.0.0.0/8:* (repeatable)
    #[arg(long, value_name = "[HOST:]PORT")]
    pub(crate) expose: Vec<Exposure>,
}

impl ExposeArgs {
    /// Exposes it on that node, for as long as what it returns is kept.
    ///
    /// # Errors
    /// `meter`: what is used of grants cannot be kept.
    pub(crate) fn open(&self, home: &Home, screen: Screen, node: &Node) -> Result<JoinSet<()>, Failure> {
        if self.expose.is_empty() {
            return Ok(JoinSet::new());
        }
        screen.note(format!("exposing {} to members", self.names().join(", ")));
        let exposing = Exposing::new(self.expose.iter().cloned()).counting(byte_meter(home)?);
        Ok(expose(node, exposing))
    }

    /// What is exposed, as it would be written.
    pub(crate) fn names(&self) -> Vec<String> {
        self.expose.iter().map(ToString::to_string).collect()
    }
}

impl From<TunnelError> for Failure {
    fn from(error: TunnelError) -> Self {
        Self::new(error.code(), &error, error.hint())
    }
}
