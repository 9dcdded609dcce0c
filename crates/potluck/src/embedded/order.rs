//! What a command tells a peer that it starts, and what the peer answers: a line of JSON each.

use std::{net::SocketAddr, path::PathBuf};

use data_encoding::HEXLOWER;
use potluck_core::{LayerRange, SecretKey, StageSpec};
use potluck_engine::EngineSettings;
use potluck_grant::SwarmId;
use serde::{Deserialize, Serialize};

use crate::{
    failure::{Failure, OrFail},
    home::{Home, SwarmRoot},
};

/// Bytes of an order. A longer line is refused.
pub(crate) const ORDER_BYTES_MAX: u64 = 64 << 10;

/// What a peer is to serve, and as whom.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    key: String,
    swarm: String,
    grant: String,
    /// Where the catalogue lies.
    pub(crate) models: PathBuf,
    model: String,
    layers: LayerRange,
    head: bool,
    tail: bool,
    /// How its engine runs.
    pub(crate) settings: EngineSettings,
    /// Where it listens; none: on this machine only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bind: Option<SocketAddr>,
}

/// A peer that serves, as it says so on stdout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Its id.
    pub(crate) id: String,
    /// Where it is reached, `ip:port`.
    pub(crate) addresses: Vec<String>,
    /// Its layers, half open.
    pub(crate) layers: [u32; 2],
    /// Its process.
    pub(crate) pid: u32,
    /// The swarm that it serves.
    pub(crate) swarm: String,
}

impl Order {
    /// For a peer with this key.
    pub(crate) fn new(
        key: &SecretKey,
        root: &SwarmRoot,
        grant: &[u8],
        home: &Home,
        spec: StageSpec,
        settings: &EngineSettings,
    ) -> Self {
        Self {
            key: HEXLOWER.encode(&key.to_bytes()),
            swarm: root.swarm().to_string(),
            grant: HEXLOWER.encode(grant),
            models: home.models(),
            model: spec.model.to_string(),
            layers: spec.layers,
            head: spec.head,
            tail: spec.tail,
            settings: settings.clone(),
            bind: None,
        }
    }

    /// Reads the line that [`Order`] was sent as.
    pub(crate) fn parse(line: &str) -> Result<Self, Failure> {
        serde_json::from_str(line).or_fail("usage", "a peer's order comes from the command that starts it")
    }

    /// The peer's key.
    pub(crate) fn key(&self) -> Result<SecretKey, Failure> {
        let bytes = HEXLOWER.decode(self.key.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| SecretKey::from_bytes(&bytes)).ok_or_else(|| Failure::usage("the order holds no key", ""))
    }

    /// The swarm that it serves.
    pub(crate) fn swarm(&self) -> Result<SwarmId, Failure> {
        self.swarm.parse().or_fail("usage", "")
    }

    /// Its grant there.
    pub(crate) fn grant(&self) -> Result<Vec<u8>, Failure> {
        HEXLOWER.decode(self.grant.as_bytes()).or_fail("usage", "")
    }

    /// What it is to serve.
    pub(crate) fn spec(&self) -> Result<StageSpec, Failure> {
        let model = self.model.parse().or_fail("usage", "")?;
        Ok(StageSpec { model, layers: self.layers, head: self.head, tail: self.tail })
    }
}
