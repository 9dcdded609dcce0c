//! What has been taken back: whom a gate lets in no longer, whatever they show.

use std::collections::{BTreeMap, BTreeSet};

use potluck_core::{PeerId, SecretKey};
use serde::{Deserialize, Serialize};

use crate::{Chain, GrantError, Right, Role, SwarmId};

/// Revocations that are kept. A further one is refused: the swarm's root has to be renewed long before.
pub const REVOCATIONS_MAX: usize = 65_536;

/// The same of one signer that is no root.
const SIGNER_MAX: usize = 1_024;

/// Bytes of what is signed.
const BYTES_MAX: usize = 128;

const CONTEXT: &[u8] = b"potluck revocation 1\0";

/// What is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Revoked {
    /// A key: every grant that it holds or has handed on. One is enough for a lost device.
    Key(PeerId),
    /// A link of a grant, and all that was handed on from it.
    Link([u8; 16]),
}

/// What a revocation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// In which swarm.
    pub swarm: [u8; 32],
    /// What.
    pub what: Revoked,
    /// Who says so: the root, or a key that stands above it in the chain.
    pub by: PeerId,
    /// UTC seconds.
    pub at: u64,
}

/// A revocation and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRevocation {
    revocation: Vec<u8>,
    signature: serde_bytes::ByteArray<64>,
    /// The signer's grant, where it stands on its right to revoke: empty otherwise.
    grant: Vec<u8>,
}

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

impl Revocation {
    /// Takes something back, signed by `key`: the root's, or one that stands above it, or one whose `grant` allows it.
    pub fn sign(swarm: SwarmId, what: Revoked, at: u64, key: &SecretKey, grant: Vec<u8>) -> SignedRevocation {
        let said = Self { swarm: *swarm.as_bytes(), what, by: key.peer_id(), at };
        #[expect(clippy::expect_used, reason = "writing to memory fails only where memory ends")]
        let revocation = postcard::to_stdvec(&said).expect("a revocation encodes");
        let signature = key.sign(&[CONTEXT, &revocation].concat());
        SignedRevocation { revocation, signature: signature.into(), grant }
    }
}

impl SignedRevocation {
    /// What it says, if it is of that swarm and signed by whom it names.
    ///
    /// # Errors
    /// `Unreadable`.
    pub fn verify(&self, swarm: SwarmId) -> Result<Revocation, GrantError> {
        let bad = |why: &str| GrantError::Unreadable(format!("no revocation: {why}"));
        if self.revocation.len() > BYTES_MAX {
            return Err(bad("too long"));
        }
        let said: Revocation = postcard::from_bytes(&self.revocation).map_err(|_| bad("damaged"))?;
        if said.swarm != *swarm.as_bytes() {
            return Err(bad("of another swarm"));
        }
        if !said.by.verify(&[CONTEXT, &self.revocation].concat(), &self.signature) {
            return Err(bad("not signed by whom it names"));
        }
        Ok(said)
    }
}

/// All revocations that a peer knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Revocations {
    signed: BTreeMap<(Revoked, PeerId), (Weight, SignedRevocation)>,
    by_signer: BTreeMap<PeerId, usize>,
}

impl Revocations {
    /// Takes note of one; whether it is new.
    ///
    /// # Errors
    /// `Unreadable` where it is none of this swarm, or stands on a grant that does not allow it; `TooMany` where there is no
    /// room, which the root's have always.
    pub(crate) fn note(&mut self, signed: SignedRevocation, swarm: SwarmId) -> Result<bool, GrantError> {
        let said = signed.verify(swarm)?;
        let weight = self.weight(&said, &signed.grant, swarm)?;
        let place = (said.what, said.by);
        if self.signed.get(&place).is_some_and(|(known, _)| *known >= weight) {
            return Ok(false);
        }
        let count = self.by_signer.entry(said.by).or_default();
        if weight != Weight::Root && (*count >= SIGNER_MAX || self.signed.len() >= REVOCATIONS_MAX) {
            return Err(GrantError::TooMany);
        }
        *count += 1;
        self.signed.insert(place, (weight, signed));
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
