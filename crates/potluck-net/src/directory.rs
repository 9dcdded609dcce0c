//! The offers that a peer knows: its own, and those that members have announced to it.

use std::collections::BTreeMap;

use potluck_core::{Offer, PeerId, SignedOffer, StageSpec};
use potluck_wire::OFFERS_MAX;

/// Offers that a peer keeps. Beyond it, the one that expires first makes room.
pub const OFFERS_KEPT_MAX: usize = 1_024;

/// The latest offer of each stage of each peer. Knows no clock and no socket.
#[derive(Debug, Default, Clone)]
pub struct Directory {
    offers: BTreeMap<(PeerId, StageSpec), (Offer, SignedOffer)>,
}

impl Directory {
    /// Keeps an offer if it is valid at `now` (UTC seconds) and newer than what is known of its stage.
    ///
    /// # Errors
    /// What is wrong with it. An older one is no error: gossip repeats itself.
    pub fn announce(&mut self, offer: SignedOffer, now: u64) -> Result<bool, potluck_core::OfferError> {
        let content = offer.verify(now)?;
        self.expire(now);
        let key = (content.peer, content.shape.spec);
        if self.offers.get(&key).is_some_and(|(known, _)| known.sequence >= content.sequence) {
            return Ok(false);
        }
        if self.offers.len() >= OFFERS_KEPT_MAX && !self.offers.contains_key(&key) {
            let first = self.offers.iter().min_by_key(|(_, (offer, _))| offer.expires).map(|(key, _)| *key);
            first.map(|key| self.offers.remove(&key));
        }
        self.offers.insert(key, (content, offer));
        Ok(true)
    }

    /// Offers that hold at `now`, as they were signed, no more than fit one message.
    pub fn signed(&self, now: u64) -> Vec<SignedOffer> {
        let holding = self.offers.values().filter(|(offer, _)| offer.expires >= now);
        holding.take(OFFERS_MAX).map(|(_, signed)| signed.clone()).collect()
    }

    /// Offers that hold at `now`.
    pub fn offers(&self, now: u64) -> impl Iterator<Item = &Offer> {
        self.offers.values().map(|(offer, _)| offer).filter(move |offer| offer.expires >= now)
    }

    /// Forgets a peer that has left.
    pub fn forget(&mut self, peer: PeerId) {
        self.offers.retain(|(from, _), _| *from != peer);
    }

    fn expire(&mut self, now: u64) {
        self.offers.retain(|_, (offer, _)| offer.expires >= now);
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{LayerRange, SecretKey, Stage as _, StageSpeed};
    use potluck_sim::toy::{ToyStage, spec};

    use super::*;

    fn offer(key: u8, sequence: u64, expires: u64) -> SignedOffer {
        let key = SecretKey::from_bytes(&[key; 32]);
        let shape = ToyStage::new(spec(LayerRange::new(0, 2).unwrap(), 2), 1, 16).shape().clone();
        let speed = StageSpeed { decode_us: 1, prefill_position_us: 1 };
        let addresses = vec![];
        let peer = key.peer_id();
        Offer { peer, sequence, expires, addresses, shape, speed, free_caches: 1, free_bytes: 0 }.sign(&key)
    }

    #[test]
    fn the_latest_offer_counts_until_it_expires() {
        let mut directory = Directory::default();
        assert_eq!(directory.announce(offer(1, 2, 1_060), 1_000), Ok(true));
        assert_eq!(directory.announce(offer(1, 1, 1_090), 1_000), Ok(false), "older");
        assert_eq!(directory.announce(offer(2, 1, 1_020), 1_000), Ok(true));
        assert_eq!(directory.signed(1_020).len(), 2);
        assert_eq!(directory.signed(1_021).len(), 1);
        directory.forget(SecretKey::from_bytes(&[1; 32]).peer_id());
        assert_eq!(directory.offers(1_000).count(), 1);
    }
}
