//! The offers that a peer knows: its own, and those that members have announced to it.

use std::collections::BTreeMap;

use potluck_core::{Offer, OfferError, PeerId, SignedOffer, StageSpec};
use potluck_grant::{Gate, GrantError, Member};
use potluck_wire::OFFERS_MAX;

/// Offers that a peer keeps. Beyond it, the one that expires first makes room.
pub const OFFERS_KEPT_MAX: usize = 1_024;

/// Offers of one peer that are kept: a stage each. A further one is dropped.
pub const PEER_OFFERS_MAX: usize = 16;

/// Whoever passed the offer on, or made it: it is not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferRefused {
    /// It is not to be relied on.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// Its peer is no member: anybody can make keys, and sign offers with them.
    #[error(transparent)]
    NotMember(#[from] GrantError),
}

/// The latest offer of each stage of each member. Knows no clock and no socket.
#[derive(Debug, Default, Clone)]
pub struct Directory {
    offers: BTreeMap<(PeerId, StageSpec), Kept>,
}

#[derive(Debug, Clone)]
struct Kept {
    offer: Offer,
    signed: SignedOffer,
    lender: Member,
}

impl Directory {
    /// Keeps an offer if it is valid at `now` (UTC seconds), of a member, and newer than what is known of its stage.
    ///
    /// So neither a member nor whoever it repeats can fill the directory, or a plan, with peers that do not exist.
    /// # Errors
    /// What is wrong with it. An older one is no error: gossip repeats itself.
    pub fn announce(&mut self, offer: SignedOffer, gate: &Gate, now: u64) -> Result<bool, OfferRefused> {
        let content = offer.verify(now)?;
        self.expire(now);
        let key = (content.peer, content.shape.spec);
        if self.offers.get(&key).is_some_and(|known| known.offer.sequence >= content.sequence) {
            return Ok(false);
        }
        if !self.offers.contains_key(&key) && self.of(content.peer) >= PEER_OFFERS_MAX && !self.bury(content.peer, now)
        {
            return Ok(false);
        }
        let (_, lender) = gate.check_lender(offer.grant(), content.peer, now)?.into_parts();
        if self.offers.len() >= OFFERS_KEPT_MAX && !self.offers.contains_key(&key) {
            let first = self.offers.iter().min_by_key(|(_, kept)| kept.offer.expires).map(|(key, _)| *key);
            first.map(|key| self.offers.remove(&key));
        }
        self.offers.insert(key, Kept { offer: content, signed: offer, lender });
        Ok(true)
    }

    /// Offers that hold at `now`, as they were signed.
    pub fn signed(&self, now: u64) -> Vec<SignedOffer> {
        let holding = self.offers.values().filter(|kept| kept.offer.expires >= now);
        holding.map(|kept| kept.signed.clone()).collect()
    }

    /// The same as messages: full pages, and a last one that is not full.
    pub fn pages(&self, now: u64) -> Vec<Vec<SignedOffer>> {
        let signed = self.signed(now);
        let mut pages: Vec<_> = signed.chunks(OFFERS_MAX).map(<[_]>::to_vec).collect();
        if signed.len().is_multiple_of(OFFERS_MAX) {
            pages.push(Vec::new());
        }
        pages
    }

    /// Offers that hold at `now`.
    pub fn offers(&self, now: u64) -> impl Iterator<Item = &Offer> {
        self.offers.values().map(|kept| &kept.offer).filter(move |offer| offer.expires >= now)
    }

    /// Forgets whoever may not lend any more: something was taken back.
    pub(crate) fn review(&mut self, gate: &Gate, now: u64) {
        self.offers.retain(|_, kept| gate.still(&kept.lender, now).is_ok());
    }

    /// Forgets a peer that has left.
    pub fn forget(&mut self, peer: PeerId) {
        self.offers.retain(|(from, _), _| *from != peer);
    }

    fn of(&self, peer: PeerId) -> usize {
        self.offers.keys().filter(|(from, _)| *from == peer).count()
    }

    /// What has expired is remembered for as long as an earlier offer may hold: whoever has missed the last word passes that on.
    fn expire(&mut self, now: u64) {
        self.offers.retain(|_, kept| kept.offer.expires + Offer::LIFETIME_SECONDS_MAX >= now);
    }

    /// Forgets an offer of that peer that has expired, for another; whether there was one.
    fn bury(&mut self, peer: PeerId, now: u64) -> bool {
        let expired = self.offers.iter().filter(|((from, _), kept)| *from == peer && kept.offer.expires < now);
        let first = expired.min_by_key(|(_, kept)| kept.offer.expires).map(|(key, _)| *key);
        first.is_some_and(|key| self.offers.remove(&key).is_some())
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::{LayerRange, SecretKey, Stage as _, StageSpeed};
    use potluck_grant::Root;
    use potluck_sim::toy::{ToyStage, spec};

    use super::*;

    const FAR: u64 = 4_000_000_000;

    fn gate() -> Gate {
        Gate::new(Root::from_bytes(&[7; 32]).public())
    }

    fn grant(root: u8, key: u8, expires: u64) -> Vec<u8> {
        let holder = SecretKey::from_bytes(&[key; 32]).peer_id();
        Root::from_bytes(&[root; 32]).grant(holder, expires).unwrap().into_bytes()
    }

    fn offer(key: u8, sequence: u64, expires: u64) -> SignedOffer {
        stage_offer(key, 0, sequence, expires)
    }

    fn stage_offer(key: u8, start: u32, sequence: u64, expires: u64) -> SignedOffer {
        granted_offer(key, start, sequence, expires, grant(7, key, FAR))
    }

    fn granted_offer(key: u8, start: u32, sequence: u64, expires: u64, grant: Vec<u8>) -> SignedOffer {
        let key = SecretKey::from_bytes(&[key; 32]);
        let range = LayerRange::new(start, start + 1).unwrap();
        let shape = ToyStage::new(spec(range, 200), 1, 16).shape().clone();
        let speed = StageSpeed { decode_us: 1, prefill_position_us: 1 };
        let addresses = vec![];
        let peer = key.peer_id();
        Offer { peer, sequence, expires, addresses, relay: None, shape, speed, free_caches: 1, free_bytes: 0 }
            .sign(&key, grant)
    }

    #[test]
    fn the_latest_offer_counts_until_it_expires() {
        let mut directory = Directory::default();
        assert_eq!(directory.announce(offer(1, 2, 1_060), &gate(), 1_000), Ok(true));
        assert_eq!(directory.announce(offer(1, 1, 1_090), &gate(), 1_000), Ok(false), "older");
        assert_eq!(directory.announce(offer(2, 1, 1_020), &gate(), 1_000), Ok(true));
        assert_eq!(directory.signed(1_020).len(), 2);
        assert_eq!(directory.signed(1_021).len(), 1);
        directory.forget(SecretKey::from_bytes(&[1; 32]).peer_id());
        assert_eq!(directory.offers(1_000).count(), 1);
    }

    #[test]
    fn what_was_withdrawn_does_not_come_back_with_an_older_word() {
        let mut directory = Directory::default();
        let older = offer(1, 1, 1_120);
        assert_eq!(directory.announce(older.clone(), &gate(), 1_000), Ok(true));
        assert_eq!(directory.announce(offer(1, 2, 1_002), &gate(), 1_000), Ok(true));
        for now in [1_001, 1_003, 1_100] {
            assert_eq!(directory.announce(older.clone(), &gate(), now), Ok(false), "at {now}");
        }
        assert_eq!((directory.offers(1_003).count(), directory.signed(1_003).len()), (0, 0));
        // A stage that is lent no longer takes no other's place.
        for start in 1..2 * PEER_OFFERS_MAX as u32 {
            assert_eq!(directory.announce(stage_offer(1, start, 1, 1_010), &gate(), 1_009), Ok(start <= 16), "{start}");
        }
        assert_eq!(directory.announce(stage_offer(1, 99, 1, 1_060), &gate(), 1_011), Ok(true));
    }

    #[test]
    fn who_is_no_member_is_not_kept() {
        let mut directory = Directory::default();
        for (grant, what) in [
            (vec![], "none"),
            (b"nonsense".to_vec(), "no grant"),
            (grant(8, 1, FAR), "another swarm's"),
            (grant(7, 2, FAR), "another member's"),
            (grant(7, 1, 999), "one that has expired"),
        ] {
            let kept = directory.announce(granted_offer(1, 0, 1, 1_060, grant), &gate(), 1_000);
            assert!(matches!(kept, Err(OfferRefused::NotMember(_))), "{what}: {kept:?}");
        }
        assert_eq!(directory.offers(1_000).count(), 0);
        assert_eq!(directory.announce(offer(1, 1, 1_060), &gate(), 1_000), Ok(true));
    }

    #[test]
    fn one_peer_cannot_fill_it() {
        let mut directory = Directory::default();
        for start in 0..PEER_OFFERS_MAX as u32 {
            assert_eq!(directory.announce(stage_offer(1, start, 1, 1_060), &gate(), 1_000), Ok(true));
        }
        assert_eq!(directory.announce(stage_offer(1, 99, 1, 1_060), &gate(), 1_000), Ok(false));
        assert_eq!(
            directory.announce(stage_offer(1, 0, 2, 1_060), &gate(), 1_000),
            Ok(true),
            "what is known may change"
        );
        assert_eq!(directory.announce(offer(2, 1, 1_060), &gate(), 1_000), Ok(true), "another peer has its own share");
    }

    #[test]
    fn the_last_page_is_never_full() {
        let mut directory = Directory::default();
        let sizes = |directory: &Directory| directory.pages(1_000).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(&directory), [0]);
        for n in 0..OFFERS_MAX as u32 {
            directory.announce(stage_offer(n as u8 % 4 + 1, n, 1, 1_060), &gate(), 1_000).unwrap();
        }
        assert_eq!(sizes(&directory), [OFFERS_MAX, 0]);
        directory.announce(stage_offer(9, 0, 1, 1_060), &gate(), 1_000).unwrap();
        assert_eq!(sizes(&directory), [OFFERS_MAX, 1]);
    }
}
