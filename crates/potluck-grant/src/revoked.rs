//! What has been taken back: whom a gate lets in no longer, whatever they show.

use std::collections::{BTreeMap, BTreeSet};

use potluck_core::{PeerId, Revocation, Revoked, SignedRevocation};

use crate::{Chain, GrantError, Right, Role, SwarmId};

/// Revocations that are kept. A further one is refused: the swarm's root has to be renewed long before.
pub const REVOCATIONS_MAX: usize = 65_536;

/// The same of one signer that is no root.
const SIGNER_MAX: usize = 1_024;

/// What a signer's word is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// Against chains that it stands in, above what it takes back.
    Holder,
    /// Against all but owners.
    Operator,
    /// Against all.
    Root,
}

/// All revocations that a peer knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Revocations {
    signed: BTreeMap<(Revoked, PeerId), (Weight, SignedRevocation)>,
    by_signer: BTreeMap<PeerId, usize>,
    digest: [u8; 32],
}

impl Revocations {
    /// Takes note of one; whether it is new.
    ///
    /// # Errors
    /// `Unreadable` where it is none of this swarm, or stands on a grant that does not allow it; `TooMany` where there is no
    /// room, which the root's have always.
    pub(crate) fn note(&mut self, signed: SignedRevocation, swarm: SwarmId) -> Result<bool, GrantError> {
        let said = signed.verify(swarm.root()).map_err(|error| GrantError::Unreadable(error.to_string()))?;
        let weight = self.weight(&said, &signed.grant, swarm)?;
        let place = (said.what, said.by);
        if self.signed.get(&place).is_some_and(|(known, _)| *known >= weight) {
            return Ok(false);
        }
        let count = self.by_signer.entry(said.by).or_default();
        if weight != Weight::Root && (*count >= SIGNER_MAX || self.signed.len() >= REVOCATIONS_MAX) {
            return Err(GrantError::TooMany);
        }
        let before = self.signed.insert(place, (weight, signed)).map(|(weight, _)| weight);
        *count += usize::from(before.is_none());
        // The same set has the same digest, in whichever order it came. Who may revoke could make two sets alike, and gain nothing.
        for weight in before.into_iter().chain([weight]) {
            let one = blake3::hash(&[place_bytes(place), vec![weight as u8]].concat());
            self.digest.iter_mut().zip(one.as_bytes()).for_each(|(sum, byte)| *sum ^= byte);
        }
        Ok(true)
    }

    fn weight(&self, said: &Revocation, grant: &[u8], swarm: SwarmId) -> Result<Weight, GrantError> {
        if said.by.as_bytes() == swarm.as_bytes() {
            return Ok(Weight::Root);
        }
        if grant.is_empty() {
            return Ok(Weight::Holder);
        }
        let chain = Chain::read(grant, swarm.key().ok_or(GrantError::NoSwarm)?)?;
        // What was said while the grant held stands, also when the grant is over; not when it was taken back.
        let (from, until) = chain.scope.time();
        let allowed = chain.holder() == said.by && chain.scope.rights().contains(&Right::Revoke);
        if !allowed || !(from..=until).contains(&said.at) || self.ends(&chain, swarm).is_some() {
            return Err(GrantError::NoRight(Right::Revoke));
        }
        Ok(Weight::Operator)
    }

    /// Of what and by whom, over all of them.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// All of them, in a fixed order.
    pub(crate) fn all(&self) -> impl ExactSizeIterator<Item = &SignedRevocation> {
        self.signed.values().map(|(_, signed)| signed)
    }

    /// Whether something that the chain rests on was taken back by whoever may: the root, an operator, or a key above it in this
    /// chain. A key may give up its own grants.
    pub(crate) fn ends(&self, chain: &Chain, swarm: SwarmId) -> Option<Revoked> {
        if self.signed.is_empty() {
            return None;
        }
        let owner = chain.links.first().is_some_and(|link| link.caveats.role == Some(Role::Owner));
        let mut above = BTreeSet::new();
        for link in &chain.links {
            above.insert(link.holder);
            for what in [Revoked::Key(link.holder), Revoked::Link(*link.id.as_bytes())] {
                let by_anybody = (what, PeerId::from_bytes([0; 32]))..=(what, PeerId::from_bytes([255; 32]));
                let counts = |weight: Weight, by: PeerId| match weight {
                    Weight::Root => by.as_bytes() == swarm.as_bytes(),
                    Weight::Operator => !owner || above.contains(&by),
                    Weight::Holder => above.contains(&by),
                };
                if self.signed.range(by_anybody).any(|((_, by), (weight, _))| counts(*weight, *by)) {
                    return Some(what);
                }
            }
        }
        None
    }
}

fn place_bytes((what, by): (Revoked, PeerId)) -> Vec<u8> {
    let what: &[u8] = match &what {
        Revoked::Key(peer) => peer.as_bytes(),
        Revoked::Link(id) => id,
    };
    [what, by.as_bytes()].concat()
}
