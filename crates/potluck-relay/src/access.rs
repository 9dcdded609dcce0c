//! Who is let in, and who has to go.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use iroh_relay::server::{Access, AccessControl, ClientRequest, ConnectionId};
use potluck_core::{Defence, PeerId};
use potluck_grant::{Gate, GrantError, Relayed};
use tracing::info;

use crate::{Limits, metrics::AccessMetrics};

/// What a stranger is told: no more than the kind of refusal.
const NOT_ALLOWED: &str = "not_allowed";
const BUSY: &str = "busy";
const SPENT: &str = "spent";

/// iroh's name of a key.
pub(crate) type Key = iroh_base::EndpointId;

/// Decides about each connection, once its key is proven.
#[derive(Debug)]
pub(crate) struct Guard {
    gates: Vec<Gate>,
    limits: Limits,
    inside: Mutex<Inside>,
    pub(crate) metrics: Arc<AccessMetrics>,
}

#[derive(Debug, Default)]
struct Inside {
    connections: HashMap<ConnectionId, Guest>,
    /// By a member's key, or by the invitation that lets somebody in: keys cost nothing.
    of_key: HashMap<PeerId, usize>,
    /// The day's bytes are used up.
    spent: bool,
}

#[derive(Debug)]
struct Guest {
    key: Key,
    gate: usize,
    relayed: Relayed,
}

/// For whom a connection is counted.
fn counted_as(relayed: &Relayed) -> PeerId {
    match relayed {
        Relayed::Member(member) => member.peer(),
        Relayed::Invited { by, .. } => *by,
    }
}

/// UTC seconds by this machine's clock.
pub(crate) fn utc_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Guard {
    pub(crate) fn new(gates: Vec<Gate>, limits: Limits) -> Self {
        Self { gates, limits, inside: Mutex::default(), metrics: Arc::default() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of which of its swarms, and as what.
    fn judge(&self, request: &ClientRequest, now: u64) -> Result<(usize, Relayed), GrantError> {
        let peer = PeerId::from_bytes(*request.endpoint_id().as_bytes());
        let token = request.auth_token();
        let mut refused = GrantError::NotOurs("this relay serves no swarm".into());
        for (at, gate) in self.gates.iter().enumerate() {
            let shown = token.as_deref().ok_or_else(|| GrantError::Unreadable("no grant was shown".into()));
            match shown.and_then(|token| gate.check_relayed(token, peer, now)) {
                Ok(relayed) => return Ok((at, relayed)),
                Err(error) => refused = error,
            }
        }
        if !Defence::RelayAccess.stands() {
            return Ok((0, Relayed::Invited { peer, by: peer, until: u64::MAX }));
        }
        Err(refused)
    }

    fn admit(&self, request: &ClientRequest) -> Result<(), &'static str> {
        let key = request.endpoint_id();
        let peer = PeerId::from_bytes(*key.as_bytes()).short();
        // Before any signature is looked at.
        if self.inside().spent {
            self.metrics.spent.inc();
            return Err(SPENT);
        }
        let (gate, relayed) = self.judge(request, utc_now()).map_err(|error| {
            info!(%peer, "refused: {error}");
            self.metrics.refused.inc();
            NOT_ALLOWED
        })?;
        let mut inside = self.inside();
        let by = counted_as(&relayed);
        let of_key = inside.of_key.get(&by).copied().unwrap_or(0);
        let full = inside.connections.len() >= self.limits.connections || of_key >= self.limits.connections_of_key;
        if full && Defence::RelayPlaces.stands() {
            info!(%peer, of_key, "refused: no room");
            self.metrics.full.inc();
            return Err(BUSY);
        }
        match &relayed {
            Relayed::Member(_) => self.metrics.members.inc(),
            Relayed::Invited { .. } => self.metrics.invited.inc(),
        };
        *inside.of_key.entry(by).or_default() += 1;
        inside.connections.insert(request.connection_id(), Guest { key, gate, relayed });
        self.metrics.connections.set(inside.connections.len() as i64);
        Ok(())
    }

    /// Who is there and may not be any longer. `spent`: nobody may.
    pub(crate) fn to_put_out(&self, spent: bool) -> Vec<(Key, ConnectionId)> {
        let now = utc_now();
        let mut inside = self.inside();
        inside.spent = spent;
        let over = inside
            .connections
            .iter()
            .filter(|(_, guest)| spent || self.gates[guest.gate].still_relayed(&guest.relayed, now).is_err());
        over.map(|(&id, guest)| (guest.key, id)).collect()
    }
}

impl AccessControl for Guard {
    async fn on_connect(&self, request: &ClientRequest) -> Access {
        match self.admit(request) {
            Ok(()) => Access::Allow,
            Err(code) => Access::Deny { reason: Some(code.to_owned()) },
        }
    }

    fn on_disconnect(&self, _: Key, id: ConnectionId) {
        let mut inside = self.inside();
        if let Some(guest) = inside.connections.remove(&id) {
            let by = counted_as(&guest.relayed);
            if let Some(count) = inside.of_key.get_mut(&by) {
                *count -= 1;
                if *count == 0 {
                    inside.of_key.remove(&by);
                }
            }
            self.metrics.connections.set(inside.connections.len() as i64);
        }
    }
}
