//! Offers: told to the members that this machine knows, asked from them, and renewed before they expire.

use std::time::Duration;

use potluck_core::{Offer, SecretKey, SignedOffer};
use potluck_net::{Directory, Node};
use potluck_wire::PeerAddress;

use super::ServingPeer;
use crate::commands::swarm::utc_now;

/// Seconds that an offer holds.
pub(crate) const OFFER_SECONDS: u64 = 120;

/// How often an offer is renewed: well before it expires, and soon after a contact that was gone is back.
const RENEW_EVERY: Duration = Duration::from_secs(OFFER_SECONDS / 8);

const _: () = assert!(OFFER_SECONDS <= Offer::LIFETIME_SECONDS_MAX, "an offer holds no longer than offers may");

/// Tells a peer's offer to its own directory and to others.
#[derive(Debug)]
pub(crate) struct Announcer {
    key: SecretKey,
    grant: Vec<u8>,
    contacts: Vec<PeerAddress>,
    sequence: u64,
}

impl Announcer {
    /// For a peer with this key and this grant that knows these members.
    pub(crate) fn new(key: SecretKey, grant: Vec<u8>, contacts: Vec<PeerAddress>) -> Self {
        let contacts = contacts.into_iter().filter(|contact| contact.peer != key.peer_id()).collect();
        // A peer that starts again must not be older than it was.
        Self { key, grant, contacts, sequence: utc_now() << 16 }
    }

    /// Announces now, and again before each offer expires; never returns.
    pub(crate) async fn run(&mut self, peer: &ServingPeer) {
        loop {
            self.announce(peer).await;
            tokio::time::sleep(RENEW_EVERY).await;
        }
    }

    /// Tells everybody that what was offered is no longer: an offer that ends now takes the place of the last one.
    pub(crate) async fn withdraw(&mut self, peer: &ServingPeer) {
        let Some(offer) = self.offer(peer, 0) else { return };
        for contact in &self.contacts {
            if let Err(error) = peer.node.announce(contact, offer.clone()).await {
                tracing::info!(peer = %contact.peer.short(), %error, "a contact was not told of the end of an offer");
            }
        }
    }

    async fn announce(&mut self, peer: &ServingPeer) {
        let Some(offer) = self.offer(peer, OFFER_SECONDS) else { return };
        peer.serving.announce(offer.clone()).await;
        for contact in &self.contacts {
            let told = peer.node.announce(contact, offer.clone()).await;
            let known = match told {
                Ok(()) => peer.node.offers(contact).await,
                Err(error) => Err(error),
            };
            match known {
                Ok(offers) => {
                    for offer in offers {
                        peer.serving.announce(offer).await;
                    }
                }
                Err(error) => {
                    tracing::info!(peer = %contact.peer.short(), %error, "a contact was not told of the offer")
                }
            }
        }
    }

    fn offer(&mut self, peer: &ServingPeer, seconds: u64) -> Option<SignedOffer> {
        self.sequence += 1;
        let mut addresses = peer.address().addresses;
        addresses.retain(|address| address.len() <= Offer::ADDRESS_CHARS_MAX);
        addresses.truncate(Offer::ADDRESSES_MAX);
        let offer = Offer {
            peer: peer.id(),
            sequence: self.sequence,
            expires: utc_now() + seconds,
            addresses,
            shape: peer.shape.clone(),
            speed: peer.speed?,
            free_caches: peer.serving.status.borrow().free_caches,
            free_bytes: 0,
        };
        Some(offer.sign(&self.key, self.grant.clone()))
    }
}

/// Every offer of a member that these members know and that holds now: the latest of each stage of each peer.
pub(crate) async fn offers_of(node: &Node, contacts: &[PeerAddress]) -> (Vec<Offer>, Vec<String>) {
    let mut directory = Directory::default();
    let mut silent = Vec::new();
    for contact in contacts {
        match node.offers(contact).await {
            Ok(signed) => signed.into_iter().for_each(|offer| {
                if let Err(refused) = directory.announce(offer, &node.identity().gate, utc_now()) {
                    tracing::info!(peer = %contact.peer.short(), %refused, "a contact passed an offer on that is none");
                }
            }),
            Err(error) => silent.push(error.to_string()),
        }
    }
    (directory.offers(utc_now()).cloned().collect(), silent)
}
