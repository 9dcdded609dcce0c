//! Offers: told to the members that this machine knows, asked from them, and renewed before they expire.

use std::time::{Duration, Instant};

use potluck_core::{Offer, PeerId, SecretKey, SignedOffer, StageShape, StageSpeed};
use potluck_net::{Directory, NetError, Node, Serving};
use potluck_wire::PeerAddress;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use super::ServingPeer;
use crate::{
    commands::swarm::utc_now,
    failure::Failure,
    home::{Home, Membership, Room, learn},
    placement::members,
    stragglers::{most, rest},
};

/// Seconds that an offer holds.
pub(crate) const OFFER_SECONDS: u64 = 120;

/// How often an offer is renewed: well before it expires, and soon after a contact that was gone is back.
const RENEW_EVERY: Duration = Duration::from_secs(OFFER_SECONDS / 8);

const _: () = assert!(OFFER_SECONDS <= Offer::LIFETIME_SECONDS_MAX, "an offer holds no longer than offers may");

/// Seconds that the last offer of a stage holds which is served no longer: clocks differ a little.
pub(super) const WITHDRAWN_SECONDS: u64 = 2;

/// A contact that lets go of a connection sooner is not stuck; and how long after that it is asked again.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);
const ASKED_AGAIN: Duration = Duration::from_millis(300);

/// Tells a peer's offer to its own directory and to others, and remembers where they are: a peer that moves finds the others
/// again, as long as not all have moved.
#[derive(Debug)]
pub(crate) struct Announcer {
    home: Home,
    key: SecretKey,
    grant: Vec<u8>,
    swarm: String,
    contacts: Vec<PeerAddress>,
    sequence: u64,
    free_bytes: u64,
    /// How many have been told what is offered, and were heard of others.
    answers: watch::Sender<u64>,
}

impl Announcer {
    /// For a peer with this key and this grant in that swarm.
    pub(crate) fn new(home: &Home, key: SecretKey, grant: Vec<u8>, membership: &Membership) -> Self {
        let others = membership.contacts.iter().filter(|contact| contact.peer != key.peer_id());
        let (swarm, contacts) = (membership.swarm.clone(), others.cloned().collect());
        // A peer that starts again must not be older than it was.
        Self {
            home: home.clone(),
            key,
            grant,
            swarm,
            contacts,
            sequence: utc_now() << 16,
            free_bytes: 0,
            answers: watch::channel(0).0,
        }
    }

    /// Counts up whenever a contact was told what is offered, and heard of others.
    pub(crate) fn answers(&self) -> watch::Receiver<u64> {
        self.answers.subscribe()
    }

    /// Says in each offer from now on that so much more would be lent.
    pub(crate) fn would_lend(&mut self, free_bytes: u64) {
        self.free_bytes = free_bytes;
    }

    /// Announces now, and again before each offer expires; never returns.
    pub(crate) async fn run(&mut self, peer: &ServingPeer) {
        loop {
            self.announce(peer).await;
            tokio::time::sleep(RENEW_EVERY).await;
        }
    }

    /// Tells everybody that what was offered is no longer: an offer that ends now takes the place of the last one. Whoever asks this
    /// peer learns of it at once; what is returned ends when the others have heard.
    pub(crate) async fn withdraw(&mut self, peer: &ServingPeer) -> Option<JoinHandle<()>> {
        let offer = self.offer(peer, WITHDRAWN_SECONDS)?;
        peer.serving.announce(offer.clone()).await;
        Some(in_passing(self.tell(&peer.node, Some(&offer))))
    }

    /// Tells everybody what is about to be offered: nobody else needs to load it, and who waits for it knows. Nobody can open a session on
    /// it yet.
    pub(crate) async fn claim(&mut self, node: &Node, serving: &Serving, shape: &StageShape) {
        let offer = self.sign(node, shape.clone(), StageSpeed::UNKNOWN, (0, OFFER_SECONDS));
        serving.announce(offer.clone()).await;
        in_passing(self.tell(node, Some(&offer)));
    }

    /// Says so again and again, while it is loaded. Never returns.
    pub(crate) async fn run_coming(&mut self, node: &Node, idle: &Serving, shape: &StageShape) {
        loop {
            self.claim(node, idle, shape).await;
            tokio::time::sleep(RENEW_EVERY).await;
        }
    }

    /// It is not to be offered after all. `serving`: what answers for this peer now. What is returned ends when the others have heard.
    pub(crate) async fn unclaim(
        &mut self,
        node: &Node,
        serving: Option<&Serving>,
        shape: &StageShape,
    ) -> JoinHandle<()> {
        let offer = self.sign(node, shape.clone(), StageSpeed::UNKNOWN, (0, WITHDRAWN_SECONDS));
        if let Some(serving) = serving {
            serving.announce(offer.clone()).await;
        }
        in_passing(self.tell(node, Some(&offer)))
    }

    /// The same for a peer that lends by an upstream, and has no stage to offer.
    pub(crate) async fn run_lending(&mut self, node: &Node, serving: &Serving) {
        loop {
            let told = self.tell(node, None);
            self.hear_all(serving, told).await;
            tokio::time::sleep(RENEW_EVERY).await;
        }
    }

    async fn announce(&mut self, peer: &ServingPeer) {
        let Some(offer) = self.offer(peer, OFFER_SECONDS) else { return };
        peer.serving.announce(offer.clone()).await;
        let told = self.tell(&peer.node, Some(&offer));
        self.hear_all(&peer.serving, told).await;
    }

    /// Passes on what each knows of others, as it comes: whoever is away holds nobody up.
    async fn hear_all(&mut self, serving: &Serving, mut told: JoinSet<Option<Vec<SignedOffer>>>) {
        while let Some(known) = told.join_next().await {
            if let Ok(Some(known)) = known {
                self.hear(serving, known).await;
                self.answers.send_modify(|answers| *answers += 1);
            }
        }
        // Others may have come here by themselves, whom it does not know otherwise.
        self.hear(serving, Vec::new()).await;
    }

    /// Passes on what was heard of others, and remembers where they are.
    async fn hear(&mut self, serving: &Serving, offers: Vec<SignedOffer>) {
        for offer in offers {
            serving.announce(offer).await;
        }
        let mut known = members(serving.directory().offers(utc_now()), &[]);
        known.retain(|member| member.peer != self.key.peer_id());
        if learn(&mut self.contacts, known, Room::OfAbsent)
            && let Err(failure) = self.remember()
        {
            tracing::warn!(code = %failure.code, "where the others are was not kept: {}", failure.message);
        }
    }

    /// Tells all contacts at once of this offer, or that this peer lends by an upstream: what each knows of others, none where it is away.
    fn tell(&self, node: &Node, offer: Option<&SignedOffer>) -> JoinSet<Option<Vec<SignedOffer>>> {
        let mut asked = JoinSet::new();
        for contact in self.contacts.clone() {
            let (node, offer) = (node.clone(), offer.cloned());
            asked.spawn(async move {
                let known = async {
                    match offer {
                        Some(offer) => node.announce(&contact, offer).await?,
                        None => node.tell_lending(&contact).await?,
                    }
                    // What was taken back while this peer was away, too; who does not say keeps its offers all the same.
                    let (offers, _) = tokio::join!(node.offers(&contact), node.pull_revocations(&contact));
                    offers
                };
                let missed = |error: &NetError| {
                    tracing::info!(peer = %contact.peer.short(), %error, "a contact was not told what is lent");
                };
                known.await.inspect_err(missed).ok()
            });
        }
        asked
    }

    fn remember(&self) -> Result<(), Failure> {
        let mut membership = Membership::open(&self.home)?;
        // The machine may have joined another swarm since.
        if membership.swarm != self.swarm {
            return Ok(());
        }
        membership.keep_contacts(self.key.peer_id(), &self.contacts);
        membership.save(&self.home)
    }

    fn offer(&mut self, peer: &ServingPeer, seconds: u64) -> Option<SignedOffer> {
        let status = *peer.serving.status.borrow();
        // Who is away makes room for whoever comes.
        let free_caches = status.free_caches + status.away;
        Some(self.sign(&peer.node, peer.shape.clone(), peer.speed?, (free_caches, seconds)))
    }

    fn sign(
        &mut self,
        node: &Node,
        shape: StageShape,
        speed: StageSpeed,
        (free_caches, seconds): (u16, u64),
    ) -> SignedOffer {
        self.sequence += 1;
        let PeerAddress { mut addresses, relay, .. } = node.address();
        addresses.retain(|address| address.len() <= Offer::ADDRESS_CHARS_MAX);
        addresses.truncate(Offer::ADDRESSES_MAX);
        let offer = Offer {
            peer: node.id(),
            sequence: self.sequence,
            expires: utc_now() + seconds,
            addresses,
            relay,
            shape,
            speed,
            free_caches,
            free_bytes: self.free_bytes,
        };
        offer.sign(&self.key, self.grant.clone())
    }
}

/// All are told, and nobody waits for it.
fn in_passing(told: JoinSet<Option<Vec<SignedOffer>>>) -> JoinHandle<()> {
    tokio::spawn(async move { drop(told.join_all().await) })
}

/// Every offer of a member that these members know and that holds now: the latest of each stage of each peer. And who did not answer.
pub(crate) async fn offers_of(node: &Node, contacts: &[PeerAddress]) -> (Vec<Offer>, Vec<String>) {
    let mut hearing = Hearing::begin(node, contacts);
    hearing.rest().await;
    (hearing.offers(), hearing.silent())
}

/// What members know of offers, as they answer.
#[derive(Debug)]
pub(crate) struct Hearing {
    node: Node,
    asked: JoinSet<(PeerId, Result<Vec<SignedOffer>, NetError>)>,
    directory: Directory,
    silent: Vec<String>,
    /// Who has answered, and who does not let this machine in.
    answered: Vec<PeerId>,
    refused: Option<NetError>,
}

/// What a contact offers. One that lets go of its connections at once may be about to serve something else: it is asked once more.
async fn offers_by(node: &Node, contact: &PeerAddress) -> Result<Vec<SignedOffer>, NetError> {
    let begun = Instant::now();
    let offers = node.offers(contact).await;
    let let_go = matches!(&offers, Err(NetError::Lost { .. } | NetError::Failed { .. }));
    if !let_go || begun.elapsed() > LET_GO_WITHIN {
        return offers;
    }
    sleep(ASKED_AGAIN).await;
    node.offers(contact).await
}

impl Hearing {
    /// Asks all of them at once.
    pub(crate) fn begin(node: &Node, contacts: &[PeerAddress]) -> Self {
        let mut asked = JoinSet::new();
        for contact in contacts.iter().cloned() {
            let node = node.clone();
            asked.spawn(async move {
                let (offers, _) = tokio::join!(offers_by(&node, &contact), node.pull_revocations(&contact));
                (contact.peer, offers)
            });
        }
        let (directory, silent) = (Directory::default(), Vec::new());
        Self { node: node.clone(), asked, directory, silent, answered: Vec::new(), refused: None }
    }

    /// Waits until they have answered: for the late ones no longer than `moment` after one of them knew an offer that is `wanted`.
    pub(crate) async fn most(&mut self, moment: Duration, wanted: impl Fn(&Offer) -> bool) {
        let mut asked = std::mem::take(&mut self.asked);
        most(&mut asked, moment, |answer| {
            self.note(answer);
            self.directory.offers(utc_now()).any(&wanted)
        })
        .await;
        self.asked = asked;
    }

    /// Waits for the late ones as well; whether there were any.
    pub(crate) async fn rest(&mut self) -> bool {
        let mut asked = std::mem::take(&mut self.asked);
        rest(&mut asked, |answer| self.note(answer)).await
    }

    fn note(&mut self, (peer, offers): (PeerId, Result<Vec<SignedOffer>, NetError>)) {
        let signed = match offers {
            Ok(signed) => signed,
            Err(error) => {
                self.silent.push(error.to_string());
                if error.code() == "not_admitted" {
                    self.refused = Some(error);
                }
                return;
            }
        };
        self.answered.push(peer);
        for offer in signed {
            if let Err(refused) = self.directory.announce(offer, &self.node.identity().gate, utc_now()) {
                tracing::info!(peer = %peer.short(), %refused, "a contact passed an offer on that is none");
            }
        }
    }

    /// Who has answered so far.
    pub(crate) fn heard(&self) -> &[PeerId] {
        &self.answered
    }

    /// Why nobody lets this machine in, where nobody does.
    pub(crate) fn shut_out(&self) -> Option<&NetError> {
        self.refused.as_ref().filter(|_| self.answered.is_empty())
    }

    /// What is offered, as far as it was heard.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        self.directory.offers(utc_now()).cloned().collect()
    }

    /// The same, as it was signed.
    pub(crate) fn signed(&self) -> Vec<SignedOffer> {
        self.directory.signed(utc_now())
    }

    /// Why others did not answer.
    pub(crate) fn silent(self) -> Vec<String> {
        let late = self.asked.len();
        let late = (late > 0).then(|| format!("{late} more members did not answer while others did"));
        self.silent.into_iter().chain(late).collect()
    }
}
