//! Revocations: who is let in no longer, as whoever may say so has signed it.

use serde::{Deserialize, Serialize};

use crate::{Defence, Offer, PeerId, SecretKey};

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
    /// In which swarm: its root's public key.
    pub swarm: PeerId,
    /// What.
    pub what: Revoked,
    /// Who says so.
    pub by: PeerId,
    /// UTC seconds.
    pub at: u64,
}

/// A revocation and its signature. Whether its signer may is for the gate to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRevocation {
    revocation: Vec<u8>,
    signature: serde_bytes::ByteArray<64>,
    /// The signer's grant; empty where the root signs.
    #[serde(with = "serde_bytes")]
    pub grant: Vec<u8>,
}

/// Whoever sent the revocation: it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RevocationError {
    /// The bytes are none, or too many.
    #[error("these bytes are no revocation")]
    Malformed,
    /// It is about another swarm.
    #[error("the revocation is another swarm's")]
    Elsewhere,
    /// Not signed by whom it names.
    #[error("the revocation is not signed by whom it names")]
    Signature,
}

impl Revocation {
    /// Bytes of an encoded revocation.
    pub const BYTES_MAX: usize = 128;
    const CONTEXT: &'static [u8] = b"potluck revocation 1\0";

    /// Takes something back at `at` (UTC seconds), signed by `key`. `grant`: that key's; empty where it is
    /// the root's.
    pub fn sign(swarm: PeerId, what: Revoked, at: u64, key: &SecretKey, grant: Vec<u8>) -> SignedRevocation {
        let said = Self { swarm, what, by: key.peer_id(), at };
        #[expect(clippy::expect_used, reason = "writing to memory fails only where memory ends")]
        let revocation = postcard::to_stdvec(&said).expect("a revocation encodes");
        let signature = key.sign(&[Self::CONTEXT, &revocation].concat());
        SignedRevocation { revocation, signature: signature.into(), grant }
    }
}

impl SignedRevocation {
    /// What it says, if it is of that swarm and signed by whom it names.
    ///
    /// # Errors
    /// As [`RevocationError`] says.
    pub fn verify(&self, swarm: PeerId) -> Result<Revocation, RevocationError> {
        if self.revocation.len() > Revocation::BYTES_MAX || self.grant.len() > Offer::GRANT_BYTES_MAX {
            return Err(RevocationError::Malformed);
        }
        let said: Revocation = postcard::from_bytes(&self.revocation).map_err(|_| RevocationError::Malformed)?;
        if said.swarm != swarm {
            return Err(RevocationError::Elsewhere);
        }
        let signed = said.by.verify(&[Revocation::CONTEXT, &self.revocation].concat(), &self.signature);
        if !signed && Defence::RevocationSignature.stands() {
            return Err(RevocationError::Signature);
        }
        Ok(said)
    }
}
