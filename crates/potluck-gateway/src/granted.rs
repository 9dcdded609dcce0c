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
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (known().get(&hash).cloned(), utc_now());
        let is_new = before.is_none();
        // Signatures are verified while nobody waits: the text may be a stranger's.
        let member = match before {
            Some(member) => self.gate.still(&member, now).map(|()| member),
            None => self.gate.check_api_key(key, now),
        };
        match member {
            Ok(member) => {
                if is_new {
                    let mut known = known();
                    if known.len() >= KNOWN_MAX {
                        known.clear();
                    }
                    known.insert(hash, member.clone());
                }
                Some(Guest { hash, member, granted: self.clone(), model })
            }
            Err(error) => {
                known().remove(&hash);
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

    /// Whether others go first.
    pub(crate) fn yields(&self) -> bool {
        self.member.chain().scope().yields()
    }

    /// Counts so many tokens against what its grant allows in a day, if it still allows anything.
    pub(crate) fn charge(&self, tokens: u64) -> Result<(), Problem> {
        let now = utc_now();
        self.granted.gate.still(&self.member, now).map_err(|error| {
            info!(of = %self.member.peer().short(), %error, "an API key holds no longer");
            Problem::new(Whose::Key, "invalid_api_key", "This API key holds no longer.")
        })?;
        let scope = self.member.chain().scope();
        if scope.budgets().is_empty() {
            return Ok(());
        }
        let mut meter = self.granted.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.charge(scope, tokens, now).map_err(|error| match error {
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

#[cfg(test)]
pub(crate) mod tests {
    use potluck_core::{Revocation, Revoked, SecretKey};
    use potluck_grant::{ApiKey, Caveats, Role, Root};

    use super::*;

    /// A guest with so many tokens a day, and what takes its key back.
    pub(crate) fn guest(tokens_per_day: Option<u64>) -> (Guest, impl Fn()) {
        guest_of(Caveats { tokens_per_day, ..Caveats::default() })
    }

    /// A guest within these limits, and what takes its key back.
    pub(crate) fn guest_of(limits: Caveats) -> (Guest, impl Fn()) {
        let (root, secret) = (Root::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]));
        let caveats = Caveats { role: Some(Role::Guest), until: Some(u64::MAX), ..limits };
        let grant = root.grant_as(secret.peer_id(), &caveats).unwrap().into_bytes();
        let text = ApiKey::new(&secret, grant).to_string();
        let gate = Gate::new(root.public());
        let granted = Arc::new(Granted::new(gate.clone(), secret.peer_id(), Meter::default()));
        let guest = granted.admit(&text, blake3::hash(text.as_bytes()), None).unwrap();
        let take_back = move || {
            let (swarm, what) = (root.key().peer_id(), Revoked::Key(secret.peer_id()));
            assert!(gate.revoke(Revocation::sign(swarm, what, 1, &root.key(), Vec::new())).unwrap());
        };
        (guest, take_back)
    }

    #[test]
    fn what_a_key_may_ends_in_the_midst_of_an_answer() {
        let (limited, _) = guest(Some(50));
        assert!(limited.charge(50).is_ok());
        assert_eq!(limited.charge(1).unwrap_err().code, "insufficient_quota");
        let (unlimited, take_back) = guest(None);
        assert!(unlimited.charge(1 << 40).is_ok());
        take_back();
        assert_eq!(unlimited.charge(1).unwrap_err().code, "invalid_api_key");
        assert!(unlimited.may_ask(false).is_err() && unlimited.may_change().is_err());
    }
}
