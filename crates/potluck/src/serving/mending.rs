//! Layers that no route leads through any more: a peer that chooses for itself what it serves notices, and takes them.
//!
//! Nobody decides it for the others. Each knows the same offers, and comes to the same list of who had better move
//! ([`menders`]); the first does so and says what it is about to serve, and the others find nothing missing. Where the first does not,
//! the next one's turn comes.

use std::{
    cell::Cell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use potluck_chain::plan::{Lender, ModelFacts, Turn, lent_bytes, menders};
use potluck_core::{LayerRange, Offer, PeerId, StageShape, StageSpec};
use potluck_engine::EngineSettings;
use potluck_model::facts;
use potluck_net::Node;
use potluck_store::Entry;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use super::{Hearing, ServingPeer, offers::WITHDRAWN_SECONDS};
use crate::{
    commands::swarm::utc_now,
    failure::Failure,
    models::cache_bytes,
    placement::{address, latest, model_facts},
    stragglers::STRAGGLERS,
};

/// How often it is looked who is there.
const LOOK_EVERY: Duration = Duration::from_millis(1_500);

/// How long a peer may take to answer, and how often in a row it may fail to before it counts as gone.
const ANSWERS_WITHIN: Duration = Duration::from_millis(1_500);
const SILENT_MAX: u32 = 2;

/// How long a peer that was never reached from here, or is not any more and goes on elsewhere, may offer nothing new before it counts as gone:
/// as long as it takes to renew what it offers where some do not answer it, and to hear of that from a third.
const RENEWS_WITHIN: Duration = Duration::from_secs(60);

/// How long it takes at most until what was heard is in the directory.
const NOTED_WITHIN: Duration = Duration::from_millis(100);

/// Peers that are looked for. Others are taken to be there until their offers expire.
const PEERS_MAX: usize = 64;

/// How long a peer does not try again that could not load what it should: twice as long each time.
const RESTS: Duration = Duration::from_secs(60);
const RESTS_MAX: Duration = Duration::from_secs(3_600);

/// What a peer knows that chooses for itself which layers of a model it serves.
#[derive(Debug)]
pub(crate) struct Mending {
    facts: ModelFacts,
    /// Positions that it keeps caches for, in all.
    positions: u64,
    /// Bytes that it gives for layers and caches.
    memory: u64,
    /// What it could not load it does not try again before.
    rests_until: Cell<Option<Instant>>,
    rests: Cell<Duration>,
}

impl Mending {
    /// For a machine that gives so many bytes.
    ///
    /// # Errors
    /// Where the model cannot be cut.
    pub(crate) fn new(entry: &Entry, settings: &EngineSettings, memory: u64) -> Result<Self, Failure> {
        let positions = u64::from(settings.caches) * u64::from(settings.context);
        Ok(Self {
            facts: model_facts(entry, settings.kv)?,
            positions,
            memory,
            rests_until: Cell::new(None),
            rests: Cell::new(RESTS),
        })
    }

    /// Bytes that it would still give beside these layers: at least one, which tells others that it chooses for itself.
    pub(crate) fn free_bytes(&self, layers: LayerRange) -> u64 {
        self.memory.saturating_sub(lent_bytes(&self.facts, layers, self.positions)).max(1)
    }

    /// What a stage will be that is not loaded yet.
    pub(crate) fn shape(&self, entry: &Entry, spec: StageSpec, settings: &EngineSettings) -> StageShape {
        StageShape {
            spec,
            width: entry.manifest.width(),
            vocabulary: facts::vocabulary(&entry.manifest),
            caches: settings.caches,
            context: settings.context,
            cache_bytes_per_position: cache_bytes(&entry.manifest, spec.layers, settings.kv),
            weight_bytes: self.facts.weight_bytes(spec.layers),
            exact: settings.exact,
        }
    }

    /// It has loaded what it should.
    pub(crate) fn succeeded(&self) {
        self.rests.set(RESTS);
    }

    /// It could not load what it should: others may.
    pub(crate) fn failed(&self) {
        self.rests_until.set(Some(Instant::now() + self.rests.get()));
        self.rests.set((2 * self.rests.get()).min(RESTS_MAX));
    }

    /// Until this peer had better serve other layers: which. `answers` counts those of its contacts.
    pub(super) async fn due(
        &self,
        peer: &ServingPeer,
        mut answers: watch::Receiver<u64>,
        silent: &mut Silent,
    ) -> LayerRange {
        // Whoever has just come, or loaded for a while, knows of nobody yet.
        if answers.changed().await.is_err() {
            return std::future::pending().await;
        }
        let (mut turn, heard) = (Turn::default(), Instant::now());
        // It meets whoever is there: who was never reached is not missed for a while.
        while heard.elapsed() < STRAGGLERS {
            silent.look(&peer.node, &self.newest(peer)).await;
            sleep(LOOK_EVERY / 3).await;
        }
        if let Some(until) = self.rests_until.get() {
            sleep_until(until.into()).await;
        }
        let mut asked = None;
        loop {
            // What the others were asked for a moment ago is as new as it gets.
            if asked.is_none_or(|at: Instant| at.elapsed() > LOOK_EVERY) {
                sleep(LOOK_EVERY).await;
                let known = self.newest(peer);
                silent.look(&peer.node, &known).await;
                // What it offered last, others may have heard before it was gone.
                if silent.is_any_new() {
                    hear(peer, &known.iter().collect::<Vec<_>>()).await;
                    silent.heard(self.newest(peer).iter().map(|offer| (offer.peer, offer.sequence)));
                }
            }
            // They may have said something meanwhile. Of itself it knows here what the others do: so all come to the same list.
            let offers = self.newest(peer);
            let there: Vec<_> =
                offers.iter().filter(|it| !silent.is_gone(Instant::now(), it.peer, it.sequence)).collect();
            let lenders: Vec<_> = there.iter().map(|offer| self.lender(offer)).collect();
            let taken = turn.look(Instant::now(), &menders(&self.facts, &lenders), peer.id());
            // Whoever reaches nobody is cut off, as far as it knows: then a part of the model is of no use to anybody.
            let is_whole = |layers: &LayerRange| layers.count() as usize == self.facts.layers.len();
            let taken = taken.filter(|layers| lenders.len() > 1 || is_whole(layers));
            match (taken, asked.take()) {
                (Some(layers), Some(_)) => return layers,
                // Whoever goes first may have told others alone.
                (Some(_), None) => {
                    hear(peer, &there).await;
                    asked = Some(Instant::now());
                }
                (None, _) => {}
            }
        }
    }

    /// What each serves of the model, or is about to: its newest offer.
    fn newest(&self, peer: &ServingPeer) -> Vec<Offer> {
        let (known, now) = (peer.serving.directory(), utc_now());
        // What is withdrawn holds for a moment still.
        let holds = |offer: &&Offer| offer.expires > now + WITHDRAWN_SECONDS;
        let of_model = known.offers(now).filter(holds).filter(|offer| offer.shape.spec.model == self.facts.model);
        latest(of_model).into_values().cloned().collect()
    }

    fn lender(&self, offer: &Offer) -> Lender {
        let (peer, layers) = (offer.peer, offer.shape.spec.layers);
        let positions = u64::from(offer.shape.caches) * u64::from(offer.shape.context);
        let chooses = offer.free_bytes > 0;
        let memory = || lent_bytes(&self.facts, layers, positions).saturating_add(offer.free_bytes);
        let is_used = !offer.is_coming() && offer.free_caches < offer.shape.caches;
        Lender { peer, layers, positions, memory: chooses.then(memory), is_used }
    }
}

/// Asks those who are there what they know of others.
async fn hear(peer: &ServingPeer, there: &[&Offer]) {
    let others = there.iter().filter(|offer| offer.peer != peer.id()).take(PEERS_MAX);
    let mut hearing = Hearing::begin(&peer.node, &others.map(|offer| address(offer)).collect::<Vec<_>>());
    let _ = timeout(ANSWERS_WITHIN, hearing.rest()).await;
    for offer in hearing.signed() {
        peer.announce(offer).await;
    }
    // They are in the directory in a moment.
    sleep(NOTED_WITHIN).await;
}

/// Peers, and whether they answer.
#[derive(Debug, Default)]
pub(super) struct Silent(BTreeMap<PeerId, Silence>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// It answers.
    Not,
    /// It has answered, and then not so often in a row; it had offered this last before.
    For { times: u32, sequence: u64 },
    /// It has never answered, or has offered something since it did: it may be there for others. Since when it has offered nothing newer.
    Apart { since: Instant, sequence: u64 },
}

impl Silent {
    /// Asks them all at once. A connection that stands is an answer.
    async fn look(&mut self, node: &Node, offers: &[Offer]) {
        let mut asked = JoinSet::new();
        for offer in offers.iter().filter(|offer| offer.peer != node.id()).take(PEERS_MAX) {
            let (node, to, sequence) = (node.clone(), address(offer), offer.sequence);
            asked.spawn(async move {
                let answered = timeout(ANSWERS_WITHIN, node.connect(&to)).await.is_ok_and(|link| link.is_ok());
                (to.peer, sequence, answered)
            });
        }
        let answers = asked.join_all().await;
        let now = Instant::now();
        answers.into_iter().for_each(|(peer, sequence, answered)| self.note(now, peer, sequence, answered));
        self.0.retain(|peer, _| offers.iter().any(|offer| offer.peer == *peer));
    }

    fn note(&mut self, now: Instant, peer: PeerId, sequence: u64, answered: bool) {
        let apart = Silence::Apart { since: now, sequence };
        let next = match self.0.get(&peer) {
            _ if answered => Silence::Not,
            None => apart,
            Some(Silence::Not) => Silence::For { times: 1, sequence },
            Some(Silence::For { times, sequence: before }) if *before == sequence => {
                Silence::For { times: times.saturating_add(1), sequence }
            }
            Some(Silence::Apart { since, sequence: before }) if *before == sequence => {
                Silence::Apart { since: *since, sequence }
            }
            Some(Silence::For { .. } | Silence::Apart { .. }) => apart,
        };
        self.0.insert(peer, next);
    }

    /// Whether a peer did not answer for the first time.
    fn is_any_new(&self) -> bool {
        self.0.values().any(|silence| matches!(silence, Silence::For { times: 1, .. }))
    }

    /// What those have offered last that did not answer for the first time just now, as all know who are there.
    fn heard(&mut self, newest: impl IntoIterator<Item = (PeerId, u64)>) {
        for (peer, newest) in newest {
            if let Some(Silence::For { times: 1, sequence }) = self.0.get_mut(&peer) {
                *sequence = newest.max(*sequence);
            }
        }
    }

    /// Whether a peer is gone whose newest offer is that one.
    fn is_gone(&self, now: Instant, peer: PeerId, newest: u64) -> bool {
        match self.0.get(&peer) {
            Some(Silence::For { times, sequence }) => *times >= SILENT_MAX && *sequence >= newest,
            Some(Silence::Apart { since, sequence }) => {
                now.saturating_duration_since(*since) >= RENEWS_WITHIN && *sequence >= newest
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_twice_is_gone_and_who_says_something_is_there() {
        let (mut silent, peer, now) = (Silent::default(), PeerId::from_bytes([1; 32]), Instant::now());
        let mut after = |sequence, answered| {
            silent.note(now, peer, sequence, answered);
            silent.0.get(&peer).copied()
        };
        let apart = |sequence| Some(Silence::Apart { since: now, sequence });
        assert_eq!(after(1, false), apart(1), "it may be there for others");
        assert_eq!(after(1, true), Some(Silence::Not));
        assert_eq!(after(1, false), Some(Silence::For { times: 1, sequence: 1 }));
        assert_eq!(after(1, false), Some(Silence::For { times: 2, sequence: 1 }), "gone");
        assert_eq!(after(2, false), apart(2));
        assert_eq!(after(2, false), apart(2), "until it says nothing for a while");
        assert_eq!(after(3, false), apart(3));
        assert_eq!(after(3, true), Some(Silence::Not));
    }

    #[test]
    fn what_was_offered_before_it_was_gone_is_no_sign_of_life_and_what_comes_later_is() {
        let (mut silent, peer, now) = (Silent::default(), PeerId::from_bytes([1; 32]), Instant::now());
        silent.note(now, peer, 1, true);
        assert!(!silent.is_any_new());
        silent.note(now, peer, 1, false);
        assert!(silent.is_any_new());
        // Others had heard of this one.
        silent.heard([(peer, 2)]);
        silent.note(now, peer, 2, false);
        assert!(silent.is_gone(now, peer, 2) && !silent.is_any_new());
        silent.heard([(peer, 3)]);
        assert!(!silent.is_gone(now, peer, 3), "it has offered this one since");
    }

    #[test]
    fn who_is_gone_is_missed_at_once_where_it_was_reached_and_late_where_it_never_was() {
        let (mut silent, peer, now) = (Silent::default(), PeerId::from_bytes([1; 32]), Instant::now());
        let is_gone = |silent: &Silent, after, newest| silent.is_gone(now + after, peer, newest);
        silent.note(now, peer, 1, false);
        assert!(!is_gone(&silent, RENEWS_WITHIN - NOTED_WITHIN, 1));
        assert!(is_gone(&silent, RENEWS_WITHIN, 1) && !is_gone(&silent, RENEWS_WITHIN, 2));
        silent.note(now, peer, 1, true);
        assert!(!is_gone(&silent, RENEWS_WITHIN, 1));
        silent.note(now, peer, 1, false);
        assert!(!is_gone(&silent, Duration::ZERO, 1), "once is no loss");
        silent.note(now, peer, 1, false);
        assert!(is_gone(&silent, Duration::ZERO, 1));
        assert!(!is_gone(&silent, Duration::ZERO, 2), "it has offered something since");
    }
}
