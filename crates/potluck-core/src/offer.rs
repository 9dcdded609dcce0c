//! Offers: a signed statement, which expires, that a peer serves a stage.

use serde::{Deserialize, Serialize};

use crate::{Defence, PeerId, SecretKey, StageShape};

/// How fast a stage was when its peer measured it: its own numbers, on its own machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSpeed {
    /// Microseconds for one position of one session (decode), whole stage.
    pub decode_us: u64,
    /// Microseconds for a position of a full prefill chunk, whole stage.
    pub prefill_position_us: u64,
}

impl StageSpeed {
    /// Nobody has measured it.
    pub const UNKNOWN: Self = Self { decode_us: 0, prefill_position_us: 0 };
}

/// What a peer lends: one stage, how fast, and how much room is left in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Who offers.
    pub peer: PeerId,
    /// Counts up with each offer of this peer: an older one never replaces a newer one.
    pub sequence: u64,
    /// UTC seconds after which nobody may rely on it.
    pub expires: u64,
    /// Where the peer is reached, as text (`ip:port`), at most [`Offer::ADDRESSES_MAX`].
    pub addresses: Vec<String>,
    /// URL of the relay that it listens at, if any.
    pub relay: Option<String>,
    /// The stage.
    pub shape: StageShape,
    /// Its speed.
    pub speed: StageSpeed,
    /// Caches that are free now.
    pub free_caches: u16,
    /// Bytes of memory that the lender would still lend. 0 where what it serves is its owner's choice: more than that tells that it chooses
    /// for itself, and may take layers that nobody serves.
    pub free_bytes: u64,
}

/// An offer, its peer's signature, and the grant that makes the peer a member: who hears of an offer from a third has never
/// met the peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOffer {
    offer: Vec<u8>,
    signature: serde_bytes::ByteArray<64>,
    #[serde(with = "serde_bytes")]
    grant: Vec<u8>,
}

/// Whoever sent the offer: it is not to be relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// The bytes are no offer, or exceed a bound.
    #[error("these bytes are no offer: {0}")]
    Malformed(String),
    /// The signature is not that of the peer that it names.
    #[error("the offer is not signed by {0}")]
    Signature(PeerId),
    /// Too old. Hint: compare both machines' clocks.
    #[error("the offer of {peer} expired {seconds} s ago")]
    Expired {
        /// Who offered.
        peer: PeerId,
        /// How long ago.
        seconds: u64,
    },
    /// It claims to hold for longer than offers may.
    #[error("the offer of {peer} expires {seconds} s from now; the limit is {max} s", max = Offer::LIFETIME_SECONDS_MAX)]
    TooLong {
        /// Who offered.
        peer: PeerId,
        /// How far ahead.
        seconds: u64,
    },
}

impl Offer {
    /// Addresses in one offer.
    pub const ADDRESSES_MAX: usize = 16;
    /// Characters of an address.
    pub const ADDRESS_CHARS_MAX: usize = 64;
    /// Characters of the relay's URL.
    pub const RELAY_CHARS_MAX: usize = 256;
    /// Bytes of an encoded, signed offer: it fits a gossip message.
    pub const BYTES_MAX: usize = 2_048;
    /// Bytes of the grant beside an offer. A longer one is no offer's; a grant of today has some 300.
    pub const GRANT_BYTES_MAX: usize = 2_048;
    /// Seconds that an offer may hold, clocks' difference included.
    pub const LIFETIME_SECONDS_MAX: u64 = 300;
    const CONTEXT: &'static [u8] = b"potluck offer 2\0";

    /// Whether the stage is about to be there: its peer is loading it, and nobody can have a session of it yet.
    pub fn is_coming(&self) -> bool {
        self.free_caches == 0 && self.speed == StageSpeed::UNKNOWN
    }

    /// Signs the offer. `key` must be that of `self.peer`, and `grant` what admits that key to its swarm.
    pub fn sign(&self, key: &SecretKey, grant: Vec<u8>) -> SignedOffer {
        #[expect(clippy::expect_used, reason = "writing to memory fails only where memory ends")]
        let offer = postcard::to_stdvec(self).expect("an offer encodes");
        let signature = key.sign(&[Self::CONTEXT, &offer].concat());
        SignedOffer { offer, signature: signature.into(), grant }
    }
}

impl SignedOffer {
    /// The grant of the peer that offers, as it came: whether it admits the peer is for a gate to say.
    pub fn grant(&self) -> &[u8] {
        &self.grant
    }

    /// The offer, if it is well formed, signed by the peer it names, and holds at `now` (UTC seconds).
    ///
    /// # Errors
    /// As [`OfferError`] says.
    pub fn verify(&self, now: u64) -> Result<Offer, OfferError> {
        if self.offer.len() > Offer::BYTES_MAX {
            return Err(OfferError::Malformed(format!("{} bytes", self.offer.len())));
        }
        if self.grant.len() > Offer::GRANT_BYTES_MAX {
            return Err(OfferError::Malformed(format!("a grant of {} bytes", self.grant.len())));
        }
        let offer: Offer = postcard::from_bytes(&self.offer).map_err(|e| OfferError::Malformed(e.to_string()))?;
        if offer.addresses.len() > Offer::ADDRESSES_MAX
            || offer.addresses.iter().any(|a| a.len() > Offer::ADDRESS_CHARS_MAX)
        {
            return Err(OfferError::Malformed("too many or too long addresses".into()));
        }
        if offer.relay.as_ref().is_some_and(|url| url.len() > Offer::RELAY_CHARS_MAX) {
            return Err(OfferError::Malformed("too long a relay".into()));
        }
        let signed = offer.peer.verify(&[Offer::CONTEXT, &self.offer].concat(), &self.signature);
        if !signed && Defence::OfferSignature.stands() {
            return Err(OfferError::Signature(offer.peer));
        }
        let peer = offer.peer;
        if offer.expires < now {
            return Err(OfferError::Expired { peer, seconds: now - offer.expires });
        }
        if offer.expires - now > Offer::LIFETIME_SECONDS_MAX {
            return Err(OfferError::TooLong { peer, seconds: offer.expires - now });
        }
        Ok(offer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerRange, ModelId, StageSpec};

    fn offer(key: &SecretKey) -> Offer {
        Offer {
            peer: key.peer_id(),
            sequence: 1,
            expires: 1_060,
            addresses: vec!["127.0.0.1:4000".into()],
            relay: Some("https://relay.example/".into()),
            shape: StageShape {
                spec: StageSpec {
                    model: ModelId::from_bytes([1; 32]),
                    layers: LayerRange::new(0, 4).unwrap(),
                    head: true,
                    tail: false,
                },
                width: 8,
                vocabulary: 16,
                caches: 2,
                context: 64,
                cache_bytes_per_position: 32,
                weight_bytes: 1_000,
                exact: false,
            },
            speed: StageSpeed { decode_us: 100, prefill_position_us: 20 },
            free_caches: 2,
            free_bytes: 0,
        }
    }

    #[test]
    fn an_offer_holds_for_its_time_and_its_signer_only() {
        let key = SecretKey::from_bytes(&[3; 32]);
        let signed = offer(&key).sign(&key, vec![7]);
        assert_eq!(signed.verify(1_000), Ok(offer(&key)));
        assert!(matches!(signed.verify(1_061), Err(OfferError::Expired { seconds: 1, .. })));
        assert!(matches!(signed.verify(0), Err(OfferError::TooLong { .. })));
        let forged = offer(&key).sign(&SecretKey::from_bytes(&[4; 32]), vec![]);
        assert_eq!(forged.verify(1_000), Err(OfferError::Signature(key.peer_id())));
        let long = offer(&key).sign(&key, vec![0; Offer::GRANT_BYTES_MAX + 1]);
        assert!(matches!(long.verify(1_000), Err(OfferError::Malformed(_))));
        let far = Offer { relay: Some("r".repeat(Offer::RELAY_CHARS_MAX + 1)), ..offer(&key) }.sign(&key, vec![]);
        assert!(matches!(far.verify(1_000), Err(OfferError::Malformed(_))));
        let mut altered = signed;
        altered.offer[40] ^= 1;
        assert!(altered.verify(1_000).is_err());
    }
}
