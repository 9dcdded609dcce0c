//! A swarm gets another root: what the old one and the new one sign for it.

use std::collections::BTreeSet;

use potluck_core::{Renewal, Revocation, Revoked, SignedRevocation, Succession};
use potluck_wire::SUCCESSIONS_MAX;

use crate::{Gate, GrantError, GrantId, Root, succession::PAGES_MAX};

impl Root {
    /// Lets `next` sign in this root's place, at `at` (UTC seconds): what to tell a gate ([`Gate::revoke`]) and every member, in this order.
    ///
    /// `adopted`: the first links of the grants that stay good. Others of this root's, and of those before it, hold until `until` (UTC
    /// seconds), or no longer where that is 0. What roots have taken back, as far as `gate` knows, stays taken back.
    ///
    /// # Errors
    /// `Superseded` where this is not the present root; `TooMany` where there were so many already, or it adopts too much.
    pub fn rotate(
        &self,
        gate: &Gate,
        next: &Self,
        adopted: &BTreeSet<GrantId>,
        at: u64,
        until: u64,
    ) -> Result<Vec<SignedRevocation>, GrantError> {
        self.rotate_over(gate, next, (adopted, &gate.revoked_by_roots()), at, until)
    }

    /// The same, where of what roots have taken back only this stays so: the rest may have been a thief's.
    ///
    /// # Errors
    /// As those of [`Root::rotate`].
    pub fn rotate_over(
        &self,
        gate: &Gate,
        next: &Self,
        (adopted, taken): (&BTreeSet<GrantId>, &BTreeSet<Revoked>),
        at: u64,
        until: u64,
    ) -> Result<Vec<SignedRevocation>, GrantError> {
        let (swarm, key, next) = (gate.swarm().root(), self.key(), next.key());
        if gate.root() != key.peer_id() {
            return Err(GrantError::Superseded);
        }
        if gate.successions().len() >= SUCCESSIONS_MAX {
            return Err(GrantError::TooMany);
        }
        let adopted = adopted.iter().map(|id| Renewal::Adopted(*id.as_bytes()));
        let taken = taken.iter().filter_map(|what| match what {
            Revoked::Key(key) => Some(Renewal::Key(*key)),
            Revoked::Link(id) => Some(Renewal::Link(*id)),
            Revoked::Root(_) | Revoked::Renewed { .. } => None,
        });
        let renewals: Vec<_> = adopted.chain(taken).collect();
        let (mut rest, mut signed) = (renewals.as_slice(), Vec::new());
        while !rest.is_empty() {
            let page = u16::try_from(signed.len()).ok().filter(|page| *page < PAGES_MAX).ok_or(GrantError::TooMany)?;
            let (one, count) = Revocation::sign_page(swarm, page, rest, at, &next);
            rest = &rest[count..];
            signed.push(one);
        }
        let pages = u16::try_from(signed.len()).map_err(|_| GrantError::TooMany)?;
        let succession = Revoked::Root(Succession { next: next.peer_id(), pages, until });
        signed.insert(0, Revocation::sign(swarm, succession, at, &key, Vec::new()));
        Ok(signed)
    }
}
