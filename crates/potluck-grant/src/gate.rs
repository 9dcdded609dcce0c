//! The check that every connection passes before any work is done for it.

use std::time::Duration;

use biscuit_auth::{Biscuit, datalog::RunLimits, error, macros::authorizer};
use potluck_core::PeerId;
use potluck_wire::GRANT_BYTES_MAX;

use crate::SwarmId;

/// Facts that checking one grant may derive; a grant that needs more is refused.
const FACTS_MAX: u64 = 64;

/// Rounds of derivation that checking one grant may take; a grant that needs more is refused.
const ITERATIONS_MAX: u64 = 16;

/// Time that checking one grant may take. The library's own bound of 1 ms trips on a busy machine.
const CHECK_TIME_MAX: Duration = Duration::from_millis(50);

/// A member of the swarm, as its connection's key and a valid grant have proven. Only [`Gate::check`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    peer: PeerId,
}

impl Member {
    /// Its key.
    pub fn peer(&self) -> PeerId {
        self.peer
    }
}

/// Whom a swarm lets in.
#[derive(Debug, Clone)]
pub struct Gate {
    swarm: SwarmId,
}

/// Why a grant does not let its bearer in. The stranger learns no more than that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    /// The bearer: larger than any grant.
    #[error("a grant of {len} bytes; the limit is {max}", max = GRANT_BYTES_MAX)]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// The bearer: not a token, or not signed by this swarm's root.
    #[error("no grant of this swarm: {0}")]
    NotOurs(String),
    /// The bearer: somebody has added to the grant, which grants of this version do not provide for.
    #[error("the grant carries {0} blocks that its root did not sign")]
    Extended(usize),
    /// The bearer: another key's grant, or an expired one. Hint: ask for a new one (`potluck swarm grant`).
    #[error("the grant does not admit {} now: it names another key, or has expired", .0.short())]
    NotAdmitted(PeerId),
    /// The bearer: checking it takes more than it may.
    #[error("checking the grant exceeds a limit: {0}")]
    TooCostly(String),
    /// We: the grant could not be signed.
    #[error("the grant could not be signed: {0}")]
    Unsigned(String),
    /// The user: this is no swarm's id.
    #[error("not a swarm's id: expected 64 hexadecimal digits")]
    NoSwarm,
}

impl Gate {
    /// The gate of the swarm that trusts this root.
    pub fn new(swarm: SwarmId) -> Self {
        Self { swarm }
    }

    /// The swarm.
    pub fn swarm(&self) -> SwarmId {
        self.swarm
    }

    /// Whether `grant` admits the peer whose connection has proven the key `holder`, at `now` (UTC seconds).
    ///
    /// # Errors
    /// As [`GrantError`] says; the bytes may come from anybody.
    pub fn check(&self, grant: &[u8], holder: PeerId, now: u64) -> Result<Member, GrantError> {
        if grant.len() > GRANT_BYTES_MAX {
            return Err(GrantError::TooLarge { len: grant.len() });
        }
        let key = self.swarm.key().ok_or(GrantError::NoSwarm)?;
        let token = Biscuit::from(grant, key).map_err(|error| GrantError::NotOurs(error.to_string()))?;
        // Block 0 is the root's. Further blocks can only narrow what it grants, but they are a stranger's code to run.
        if token.block_count() > 1 {
            return Err(GrantError::Extended(token.block_count() - 1));
        }
        let connection = holder.as_bytes().to_vec();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let limits = RunLimits { max_facts: FACTS_MAX, max_iterations: ITERATIONS_MAX, max_time: CHECK_TIME_MAX };
        let checked = authorizer!(
            r#"
            connection({connection});
            now({now});
            allow if connection($key), role($key, "member") trusting authority;
            "#
        )
        .set_limits(limits)
        .build(&token)
        .and_then(|mut authorizer| authorizer.authorize());
        match checked {
            Ok(_) => Ok(Member { peer: holder }),
            Err(error::Token::RunLimit(limit)) => Err(GrantError::TooCostly(limit.to_string())),
            Err(_) => Err(GrantError::NotAdmitted(holder)),
        }
    }
}

#[cfg(test)]
mod tests {
    use biscuit_auth::macros::block;
    use potluck_core::SecretKey;
    use proptest::prelude::*;

    use super::*;
    use crate::Root;

    const NOW: u64 = 1_800_000_000;

    fn peer(n: u8) -> PeerId {
        SecretKey::from_bytes(&[n; 32]).peer_id()
    }

    fn gate() -> (Root, Gate) {
        let root = Root::from_bytes(&[9; 32]);
        let gate = Gate::new(root.public());
        (root, gate)
    }

    #[test]
    fn admits_its_holder_until_it_expires() {
        let (root, gate) = gate();
        let grant = root.grant(peer(1), NOW + 10).unwrap();
        assert_eq!(gate.check(grant.as_bytes(), peer(1), NOW).unwrap().peer(), peer(1));
        assert!(gate.check(grant.as_bytes(), peer(1), NOW + 10).is_ok());
        assert_eq!(gate.check(grant.as_bytes(), peer(1), NOW + 11), Err(GrantError::NotAdmitted(peer(1))));
    }

    #[test]
    fn a_stolen_grant_is_worth_nothing() {
        let (root, gate) = gate();
        let grant = root.grant(peer(1), NOW + 10).unwrap();
        assert_eq!(gate.check(grant.as_bytes(), peer(2), NOW), Err(GrantError::NotAdmitted(peer(2))));
    }

    #[test]
    fn another_root_admits_nobody_here() {
        let (_, gate) = gate();
        let grant = Root::from_bytes(&[8; 32]).grant(peer(1), NOW + 10).unwrap();
        assert!(matches!(gate.check(grant.as_bytes(), peer(1), NOW), Err(GrantError::NotOurs(_))));
    }

    #[test]
    fn nothing_can_be_added() {
        let (root, gate) = gate();
        let grant = root.grant(peer(1), NOW + 10).unwrap();
        let token = Biscuit::from(grant.as_bytes(), root.public().key().unwrap()).unwrap();
        let other = peer(2).as_bytes().to_vec();
        let wider = token.append(block!(r#"role({other}, "member");"#)).unwrap().to_vec().unwrap();
        assert_eq!(gate.check(&wider, peer(2), NOW), Err(GrantError::Extended(1)));
        assert_eq!(gate.check(&wider, peer(1), NOW), Err(GrantError::Extended(1)));
    }

    #[test]
    fn oversized_grants_are_not_parsed() {
        let (_, gate) = gate();
        let grant = vec![0; GRANT_BYTES_MAX + 1];
        assert!(matches!(gate.check(&grant, peer(1), NOW), Err(GrantError::TooLarge { .. })));
    }

    #[test]
    fn a_swarm_id_reads_what_it_prints() {
        let (root, _) = gate();
        assert_eq!(root.public().to_string().parse(), Ok(root.public()));
        assert!("00".parse::<SwarmId>().is_err());
        assert!(!format!("{root:?}").contains("0909"));
    }

    proptest! {
        #[test]
        fn hostile_bytes(bytes: Vec<u8>) {
            prop_assert!(gate().1.check(&bytes, peer(1), NOW).is_err());
        }

        #[test]
        fn a_changed_byte_never_admits_another(at in 0usize..400, byte: u8) {
            let (root, gate) = gate();
            let mut grant = root.grant(peer(1), NOW + 10).unwrap().into_bytes();
            let at = at % grant.len();
            grant[at] = byte;
            prop_assert!(gate.check(&grant, peer(2), NOW).is_err());
            prop_assert!(gate.check(&grant[..at], peer(1), NOW).is_err());
        }
    }
}
