//! Keys that the swarm has granted: each is a grant, and may what that says.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use potluck_core::{ModelId, PeerId};
use potluck_grant::{Asking, Gate, GrantError, Member, Meter, Operating, Place, Request};
use tracing::info;

use crate::{Problem, Whose};

/// Keys whose signatures are remembered as good. Beyond it they are checked anew.
const KNOWN_MAX: usize = 1_024;

/// What judges the keys that a swarm has granted.
#[derive(Debug)]
pub struct Granted {
    gate: Gate,
    at: PeerId,
    meter: Mutex<Meter>,
    known: Mutex<BTreeMap<[u8; 32], Member>>,
}

/// The holder of such a key. Two are the same whose keys are.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    hash: [u8; 32],
    member: Member,
    granted: Arc<Granted>,
    model: Option<ModelId>,
}

fn utc_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Granted {
    /// By this gate, at the gateway with the key `at`; what is used is counted by `meter`.
    pub fn new(gate: Gate, at: PeerId, meter: Meter) -> Self {
        Self { gate, at, meter: Mutex::new(meter), known: Mutex::default() }
    }

    /// Whose key that is, if it holds; why not is for the log.
    pub(crate) fn admit(self: &Arc<Self>, key: &str, hash: blake3::Hash, model: Option<ModelId>) -> Option<Guest> {
        let hash = *hash.as_bytes();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = utc_now();
        let member = match known.get(&hash) {
            Some(member) => self.gate.still(member, now).map(|()| member.clone()),
            None => self.gate.check_api_key(key, now),
        };
        match member {
            Ok(member) => {
                if known.len() >= KNOWN_MAX {
                    known.clear();
                }
                known.insert(hash, member.clone());
                Some(Guest { hash, member, granted: self.clone(), model })
            }
            Err(error) => {
                known.remove(&hash);
                info!(%error, "an API key was refused");
                None
            }
        }
    }
}

impl Guest {
    fn may<R: Request>(&self, request: R) -> Result<(), Problem> {
        let Granted { gate, at, .. } = &*self.granted;
        let allowed = gate.authorize(&self.member, request, Place { peer: *at, now: utc_now() });
        allowed.map(drop).map_err(|error| {
            info!(of = %self.member.peer().short(), %error, "an API key may not do that");
            Problem::new(Whose::Origin, "permission_denied", "This API key does not allow that.")
        })
    }

    /// Whether it may ask the gateway's own model, or one that is lent, which has no id.
    pub(crate) fn may_ask(&self, own: bool) -> Result<(), Problem> {
        self.may(Asking(self.model.filter(|_| own)))
    }

    /// Whether it may change what is on this machine.
    pub(crate) fn may_change(&self) -> Result<(), Problem> {
        self.may(Operating)
    }

    /// Counts so many tokens against what its grant allows in a day.
    pub(crate) fn charge(&self, tokens: u64) -> Result<(), Problem> {
        let mut meter = self.granted.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.charge(self.member.chain().scope(), tokens, utc_now()).map_err(|error| match error {
            GrantError::Spent { tokens_per_day, .. } => {
                let message = format!("You exceeded this API key's {tokens_per_day} tokens a day (UTC).");
                Problem::new(Whose::Busy(3_600), "insufficient_quota", message)
            }
            error => {
                info!(%error, "what an API key uses could not be counted");
                Problem::new(Whose::Ours, "uncounted", "what this API key uses could not be counted")
            }
        })
    }
}

impl PartialEq for Guest {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Guest {}

impl PartialOrd for Guest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Guest {
    fn cmp(&self, other: &Self) -> Ordering {
        self.hash.cmp(&other.hash)
    }
}
