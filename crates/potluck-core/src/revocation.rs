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
    /// The root that signs this, and with it every grant that it has signed, but those that the next one lets stand.
    Root(Succession),
    /// Nothing: what the signer, a new root, lets stand of what the roots before it said, a page of it.
    Renewed {
        /// Which page, of those that the succession names.
        page: u16,
        /// The hash of what is on it.
        hash: [u8; 32],
    },
}

/// Who signs in a root's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Succession {
    /// The next root's public key.
    pub next: PeerId,
    /// On how many pages it says what stands of what was before. The succession counts once all of them are known.
    pub pages: u16,
    /// UTC seconds until which grants of the root before hold that it does not let stand; 0: no longer.
    pub until: u64,
}

/// One thing that a new root lets stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Renewal {
    /// The first link of a grant that a root before it has signed, and all that was handed on from it.
    Adopted([u8; 16]),
    /// That a root before it took back this key.
    Key(PeerId),
    /// That a root before it took back this link.
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
    /// What belongs to it: its signer's grant, or what is on a page; nothing where the root takes something back.
    #[serde(with = "serde_bytes")]
    pub beside: Vec<u8>,
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

    /// Bytes of a page of what a new root lets stand.
    pub const PAGE_BYTES_MAX: usize = Offer::GRANT_BYTES_MAX;

    /// Takes something back at `at` (UTC seconds), signed by `key`. `beside`: that key's grant; empty where it is the root's.
    pub fn sign(swarm: PeerId, what: Revoked, at: u64, key: &SecretKey, beside: Vec<u8>) -> SignedRevocation {
        let said = Self { swarm, what, by: key.peer_id(), at };
        #[expect(clippy::expect_used, reason = "writing to memory fails only where memory ends")]
        let revocation = postcard::to_stdvec(&said).expect("a revocation encodes");
        let signature = key.sign(&[Self::CONTEXT, &revocation].concat());
        SignedRevocation { revocation, signature: signature.into(), beside }
    }

    /// A page of what the new root with that key lets stand; as many as there is room for, and how many those are.
    pub fn sign_page(
        swarm: PeerId,
        page: u16,
        renewals: &[Renewal],
        at: u64,
        key: &SecretKey,
    ) -> (SignedRevocation, usize) {
        let (mut beside, mut count) = (Vec::new(), 0);
        for renewal in renewals {
            #[expect(clippy::expect_used, reason = "writing to memory fails only where memory ends")]
            let bytes = postcard::to_stdvec(renewal).expect("a renewal encodes");
            if beside.len() + bytes.len() > Self::PAGE_BYTES_MAX {
                break;
            }
            beside.extend(bytes);
            count += 1;
        }
        let what = Revoked::Renewed { page, hash: page_hash(&beside) };
        (Self::sign(swarm, what, at, key, beside), count)
    }
}

impl SignedRevocation {
    /// What it says, if it is of that swarm and signed by whom it names.
    ///
    /// # Errors
    /// As [`RevocationError`] says.
    pub fn verify(&self, swarm: PeerId) -> Result<Revocation, RevocationError> {
        if self.revocation.len() > Revocation::BYTES_MAX || self.beside.len() > Offer::GRANT_BYTES_MAX {
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
        match said.what {
            Revoked::Renewed { hash, .. } if hash != page_hash(&self.beside) => Err(RevocationError::Malformed),
            _ => Ok(said),
        }
    }

    /// What is on the page, where it is one that [`verify`](Self::verify) has found good.
    ///
    /// # Errors
    /// `Malformed` where something else is on it.
    pub fn renewals(&self) -> Result<Vec<Renewal>, RevocationError> {
        if self.beside.len() > Revocation::PAGE_BYTES_MAX {
            return Err(RevocationError::Malformed);
        }
        let (mut rest, mut renewals) = (self.beside.as_slice(), Vec::new());
        while !rest.is_empty() {
            let (renewal, further) = postcard::take_from_bytes(rest).map_err(|_| RevocationError::Malformed)?;
            renewals.push(renewal);
            rest = further;
        }
        Ok(renewals)
    }
}

fn page_hash(page: &[u8]) -> [u8; 32] {
    blake3::derive_key("potluck 2026-11 what a new root lets stand", page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_bytes(&[n; 32])
    }

    #[test]
    fn the_longest_statement_fits_its_bound() {
        let next = PeerId::from_bytes([255; 32]);
        let whats = [
            Revoked::Root(Succession { next, pages: u16::MAX, until: u64::MAX }),
            Revoked::Renewed { page: u16::MAX, hash: [255; 32] },
        ];
        for what in whats {
            let signed = Revocation::sign(key(1).peer_id(), what, u64::MAX, &key(1), Vec::new());
            assert!(signed.revocation.len() <= Revocation::BYTES_MAX, "{} bytes", signed.revocation.len());
        }
    }

    #[test]
    fn a_page_holds_what_there_is_room_for_and_nothing_else() {
        let swarm = key(1).peer_id();
        let all: Vec<_> = (0..200).map(|n| Renewal::Adopted([n; 16])).chain([Renewal::Key(swarm)]).collect();
        let (first, count) = Revocation::sign_page(swarm, 0, &all, 1, &key(1));
        assert!((100..200).contains(&count) && first.beside.len() <= Revocation::PAGE_BYTES_MAX);
        let (second, rest) = Revocation::sign_page(swarm, 1, &all[count..], 1, &key(1));
        assert_eq!(count + rest, all.len());
        assert!(first.verify(swarm).is_ok() && second.verify(swarm).is_ok());
        assert_eq!([first.renewals().unwrap(), second.renewals().unwrap()].concat(), all);
        // What is on it is signed with it, and all of it is read.
        let other = SignedRevocation { beside: second.beside.clone(), ..first.clone() };
        assert_eq!(other.verify(swarm), Err(RevocationError::Malformed));
        let mut cut = first;
        cut.beside.pop();
        assert_eq!(
            (cut.verify(swarm), cut.renewals()),
            (Err(RevocationError::Malformed), Err(RevocationError::Malformed))
        );
    }
}
