//! What has been taken back: whom a gate lets in no longer, whatever they show.

use std::collections::{BTreeMap, BTreeSet};

use potluck_core::{Defence, PeerId, Revocation, Revoked, SignedRevocation};

use crate::{Chain, GrantError, Right, Role, SwarmId, Taken};

/// Revocations that are kept. A further one is refused: the swarm's root has to be renewed long before.
pub const REVOCATIONS_MAX: usize = 16_384;

/// The same of those who are no operators: they leave room to those who are.
const HOLDERS_MAX: usize = REVOCATIONS_MAX / 2;

/// The same of one that the root let in and of all that it has handed on to: new keys give nobody more room.
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

#[derive(Debug)]
struct Kept {
    weight: Weight,
    signed: SignedRevocation,
    /// Its number in the order in which they came.
    came: u64,
}

/// All revocations that a peer knows.
#[derive(Debug, Default)]
pub(crate) struct Revocations {
    signed: BTreeMap<(Revoked, PeerId), Kept>,
    /// How many have come so far.
    came: u64,
    /// By the holder of the first link of the signer's grant.
    by_signer: BTreeMap<PeerId, usize>,
    /// Of those who are no operators.
    holders: usize,
    digest: [u8; 32],
}

impl Revocations {
    /// Takes note of one; whether it is new.
    ///
    /// # Errors
    /// `Unreadable` where it is none of this swarm; what is wrong with its signer's grant; `TooMany` where there is no room, which
    /// the root's have always.
    pub(crate) fn note(&mut self, signed: SignedRevocation, swarm: SwarmId) -> Result<bool, GrantError> {
        let said = signed.verify(swarm.root()).map_err(|error| GrantError::Unreadable(error.to_string()))?;
        let (weight, first) = self.weight(&said, &signed.grant, swarm)?;
        let place = (said.what, said.by);
        if self.signed.get(&place).is_some_and(|known| known.weight >= weight) {
            return Ok(false);
        }
        let count = self.by_signer.entry(first).or_default();
        let full = match weight {
            Weight::Root => false,
            Weight::Operator => *count >= SIGNER_MAX || self.signed.len() >= REVOCATIONS_MAX,
            Weight::Holder => {
                *count >= SIGNER_MAX || self.holders >= HOLDERS_MAX || self.signed.len() >= REVOCATIONS_MAX
            }
        };
        if full {
            return Err(GrantError::TooMany);
        }
        self.came += 1;
        let kept = Kept { weight, signed, came: self.came };
        let before = self.signed.insert(place, kept).map(|kept| kept.weight);
        *count += usize::from(before.is_none());
        self.holders += usize::from(weight == Weight::Holder);
        self.holders -= usize::from(before == Some(Weight::Holder));
        // The same set has the same digest, in whichever order it came. Who may revoke could make two sets alike, and gain nothing.
        for weight in before.into_iter().chain([weight]) {
            let one = blake3::hash(&[place_bytes(place), vec![weight as u8]].concat());
            self.digest.iter_mut().zip(one.as_bytes()).for_each(|(sum, byte)| *sum ^= byte);
        }
        Ok(true)
    }

    /// What it is worth, and the key that the root let in, by whose leave it was said.
    fn weight(&self, said: &Revocation, grant: &[u8], swarm: SwarmId) -> Result<(Weight, PeerId), GrantError> {
        if said.by.as_bytes() == swarm.as_bytes() {
            return Ok((Weight::Root, said.by));
        }
        // Anybody can make keys, and sign with them.
        let chain = Chain::read(grant, swarm.key().ok_or(GrantError::NoSwarm)?)?;
        if chain.holder() != said.by {
            return Err(GrantError::NotAdmitted(said.by));
        }
        // What was said while the grant held stands, also when the grant is over; not when it was taken back.
        let (from, until) = chain.scope.time();
        if !(from..=until).contains(&said.at) {
            return Err(GrantError::Expired { at: until });
        }
        if let Some(what) = self.ends(&chain, swarm) {
            return Err(GrantError::Revoked(Taken(what)));
        }
        let operator = chain.scope.rights().contains(&Right::Revoke) || !Defence::RevokerRights.stands();
        Ok((if operator { Weight::Operator } else { Weight::Holder }, chain.links[0].holder))
    }

    /// Whether that key was taken back by the root or by an operator, whatever it holds.
    pub(crate) fn ends_key(&self, peer: PeerId) -> Option<Revoked> {
        let what = Revoked::Key(peer);
        let by_anybody = (what, PeerId::from_bytes([0; 32]))..=(what, PeerId::from_bytes([255; 32]));
        self.signed.range(by_anybody).any(|(_, kept)| kept.weight != Weight::Holder).then_some(what)
    }

    /// Of what and by whom, over all of them.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// All of them, in the order in which they came: what an operator said before it was shut out is heard before that.
    pub(crate) fn all(&self) -> Vec<SignedRevocation> {
        let mut all: Vec<_> = self.signed.values().collect();
        all.sort_by_key(|kept| kept.came);
        all.into_iter().map(|kept| kept.signed.clone()).collect()
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
                if self.signed.range(by_anybody).any(|((_, by), kept)| counts(kept.weight, *by)) {
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
