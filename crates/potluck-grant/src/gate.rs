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
    /// The bearer: another key's grant, or one of another role. Hint: ask for one of this key (`potluck swarm grant`).
    #[error("the grant does not admit {}: it names another key", .0.short())]
    NotAdmitted(PeerId),
    /// The bearer: the grant's time is over. Hint: ask for a new one (`potluck swarm grant`).
    #[error("the grant of {} has expired", .0.short())]
    Expired(PeerId),
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
            // The policy matched and a check failed: the root's only check is the expiry.
            Err(error::Token::FailedLogic(error::Logic::Unauthorized { .. })) => Err(GrantError::Expired(holder)),
            Err(_) => Err(GrantError::NotAdmitted(holder)),
        }
    }
}
