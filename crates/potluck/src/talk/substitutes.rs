//! Who can take the place of a peer that is lost: whoever has offered the same stage, or is about to.

use std::time::{Duration, Instant};

use potluck_chain::{Hop, RemoteStage, SessionError, plan::Wish};
use potluck_core::{LayerRange, Offer, PeerId, StageSpec};
use potluck_net::Node;
use potluck_wire::PeerAddress;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout, timeout_at},
};

use crate::{
    failure::Failure,
    home::{Home, Membership, trusted},
    placement::{Distances, address},
    screen::Screen,
    serving::Hearing,
};

/// How long the swarm is asked for others: who is gone itself does not answer, and another route may be known sooner.
const ASKED_WITHIN: Duration = Duration::from_secs(3);

/// How long it may take to reach those who do not have them, and may come to.
const REACHED_WITHIN: Duration = Duration::from_secs(1);

/// How many of them are tried at most.
const PEERS_MAX: usize = 64;

/// How long it takes at most until machines that choose for themselves what they serve have noticed that nobody serves these layers.
const MENDED_WITHIN: Duration = Duration::from_secs(20);

/// How long is waited for a machine that is loading them: the others of the route keep what they hold for about as long.
const HELD_WITHIN: Duration = Duration::from_secs(55);

/// How often it is asked whether they are there.
const ASKED_EVERY: Duration = Duration::from_millis(500);

/// How long it is tried to come back to peers where nobody answers: what is lost by going on elsewhere is what was computed. One attempt, and
/// how long is waited before the next: packets that are lost while the line is cut are sent again ever later.
const BACK_WITHIN: Duration = Duration::from_secs(8);
const BACK_ATTEMPT: Duration = Duration::from_millis(1_500);
const BACK_EVERY: Duration = Duration::from_millis(200);

/// How long a better one is waited for after the first: somebody reads along.
const MOMENT: Duration = Duration::from_millis(200);

/// Where others are looked for.
#[derive(Debug, Clone)]
pub(crate) enum Substitutes {
    /// Nowhere: peers of this command's own, whose engines start again by themselves.
    Same,
    /// In the swarm.
    Swarm {
        home: Box<Home>,
        /// How many layers of each end are for trusted peers alone.
        trusted_layers: u32,
        /// How many peers are to stand by.
        standby: usize,
        /// Where whoever reads along is told of it.
        screen: Option<Screen>,
    },
}

/// Who is to take which place of a route.
pub(super) type Places = Vec<(usize, RemoteStage)>;

/// Nobody can take a place.
#[derive(Debug)]
enum Nobody {
    /// Nor will anybody be able to soon, as far as is known.
    Soon(Failure),
    /// This peer is loading the layers.
    Loads(PeerId),
    /// Somebody may notice that they are missing: some peers choose for themselves what they serve.
    Noticed(Failure),
    /// Nobody answers at all.
    Silence(Failure),
}

/// What a search has come to.
#[derive(Debug)]
pub(super) enum Search {
    /// Others can take the places.
    Others {
        /// Who is to take which.
        places: Places,
        /// How long it was waited until somebody had loaded what was missing.
        load: Duration,
    },
    /// Those that were lost are reached again: it was the way to them alone.
    Back,
}

/// Peers to which the connections are lost, and of which no more is known.
#[derive(Debug, Clone)]
pub(super) struct Parted {
    pub(super) peers: Vec<PeerAddress>,
    /// They are all that the session has: it may well be this machine that is cut off.
    pub(super) are_all: bool,
}

/// A stage whose peer is lost.
#[derive(Debug, Clone)]
pub(super) struct Vacancy {
    pub(super) hop: usize,
    /// Who had it.
    pub(super) last: RemoteStage,
    /// Its engine alone was lost, and starts again.
    pub(super) restarts: bool,
    /// Who is elsewhere on the route.
    pub(super) others: Vec<PeerId>,
    /// Positions that the session may grow to.
    pub(super) positions: u32,
    /// Layers of the whole model.
    pub(super) layers: u32,
}

impl Vacancy {
    /// A stage for which somebody is to stand by, beside the peers that the session has.
    pub(super) fn beside(route: &[Hop], hop: usize, others: Vec<PeerId>, positions: u32) -> Option<Self> {
        let Hop::Remote(last) = route.get(hop)? else { return None };
        let layers = route.last()?.layers().end();
        Some(Self { hop, last: last.clone(), restarts: false, others, positions, layers })
    }

    /// The lost stages of a route.
    pub(super) fn of(route: &[Hop], lost: &[(usize, SessionError)], positions: u32) -> Vec<Self> {
        let vacant = |(hop, error): &(usize, SessionError)| {
            let Hop::Remote(last) = route.get(*hop)? else { return None };
            let restarts = error.code() == "engine_lost";
            let elsewhere = route.iter().enumerate().filter(|(at, _)| at != hop);
            let others = elsewhere.filter_map(|(_, stage)| stage.peer()).collect();
            let layers = route.last()?.layers().end();
            Some(Self { hop: *hop, last: last.clone(), restarts, others, positions, layers })
        };
        lost.iter().filter_map(vacant).collect()
    }

    /// Nobody can take it.
    fn to_nobody(&self) -> Failure {
        let message = format!("nobody else offers layers {}", self.spec().layers);
        Failure::new("no_route", message, "lend more machines: potluck serve")
    }

    /// Whether somebody is about to be able to take it, by what those offer who are there and may.
    fn hope(&self, offers: &[&Offer]) -> Nobody {
        let gone = self.last.address.peer;
        let of_model = offers.iter().filter(|offer| offer.shape.spec.model == self.spec().model);
        let known: Vec<&Offer> = of_model.copied().filter(|offer| offer.peer != gone).collect();
        let comes = |offer: &&&Offer| {
            let is_same = offer.shape.spec == self.spec() && offer.shape.context >= self.positions;
            is_same && offer.is_coming() && self.may_be_taken_by(offer)
        };
        if let Some(offer) = known.iter().find(comes) {
            return Nobody::Loads(offer.peer);
        }
        // Where others serve all of the layers, though they may be full, nobody takes them. Only who is spare takes them alone.
        let served = |layers: LayerRange, but: Option<PeerId>| {
            let others: Vec<_> = known.iter().filter(|offer| Some(offer.peer) != but).collect();
            let mut layers = layers.start()..layers.end();
            layers.all(|layer| others.iter().any(|offer| offer.shape.spec.layers.contains(layer)))
        };
        let mut may = known.iter().filter(|offer| self.may_be_taken_by(offer));
        let may_notice = may.any(|offer| served(offer.shape.spec.layers, Some(offer.peer)));
        match may_notice && !served(self.spec().layers, None) {
            true => Nobody::Noticed(self.to_nobody()),
            false => Nobody::Soon(self.to_nobody()),
        }
    }

    /// Whether its peer serves the model and chooses for itself which layers.
    fn may_be_taken_by(&self, offer: &Offer) -> bool {
        offer.free_bytes > 0 && offer.shape.spec.model == self.spec().model && !self.others.contains(&offer.peer)
    }

    fn spec(&self) -> StageSpec {
        self.last.spec
    }

    /// Whether the offer is of the same stage, by a peer that has room and is not on the route.
    fn suits(&self, offer: &Offer) -> bool {
        let has_room = offer.free_caches > 0 && offer.shape.context >= self.positions;
        offer.shape.spec == self.spec() && has_room && !self.others.contains(&offer.peer)
    }
}

impl Nobody {
    fn into_failure(self) -> Failure {
        match self {
            Self::Soon(failure) | Self::Noticed(failure) | Self::Silence(failure) => failure,
            Self::Loads(peer) => {
                let message = format!("peer {} is still loading the layers that are missing", peer.short());
                Failure::new("no_route", message, "run it again in a while")
            }
        }
    }
}

impl From<Failure> for Nobody {
    fn from(failure: Failure) -> Self {
        Self::Soon(failure)
    }
}

impl Substitutes {
    /// How many peers are to stand by.
    pub(super) fn standbys(&self) -> usize {
        match self {
            Self::Same => 0,
            Self::Swarm { standby, .. } => *standby,
        }
    }

    /// Tells whoever reads along.
    pub(super) fn tell(&self, what: impl AsRef<str>) {
        if let Self::Swarm { screen: Some(screen), .. } = self {
            screen.aside(what);
        }
    }

    /// A peer that can stand by, to which there is a connection already.
    ///
    /// # Errors
    /// `no_route` where there is none.
    pub(super) async fn find_standby(self, node: Node, vacancy: Vacancy) -> Result<Places, Failure> {
        let places = self.ask(&node, &[vacancy]).await.map_err(Nobody::into_failure)?;
        for (_, stage) in &places {
            // Kept by the node: whoever opens the session finds it.
            node.connect(&stage.address).await?;
        }
        Ok(places)
    }

    /// A peer for each of them; or those that were lost, where these are reached sooner. Where nobody answers at all, it is tried for a
    /// while to reach them.
    ///
    /// # Errors
    /// `no_route` where there is nobody for one of them.
    pub(super) async fn find(
        self,
        node: Node,
        vacancies: Vec<Vacancy>,
        parted: Option<Parted>,
    ) -> Result<Search, Failure> {
        let Some(Parted { peers, are_all }) = parted else {
            return self.others(node, vacancies).await.map_err(Nobody::into_failure);
        };
        let until = Instant::now() + BACK_WITHIN;
        let mut back = std::pin::pin!(timeout_at(until.into(), reach(node.clone(), peers)));
        let nobody = tokio::select! {
            biased;
            Ok(()) = &mut back => return Ok(Search::Back),
            found = self.others(node, vacancies) => match found {
                Ok(found) => return Ok(found),
                Err(nobody) => nobody,
            },
        };
        match nobody {
            Nobody::Silence(_) if are_all && back.as_mut().await.is_ok() => Ok(Search::Back),
            nobody => Err(nobody.into_failure()),
        }
    }

    /// A peer for each of them, the nearest and fastest that answers; the same one again where its engine starts again and nobody else has
    /// the stage. Where nobody has it and somebody is loading it, or may be about to, that one is waited for.
    ///
    /// # Errors
    /// `no_route` where there is nobody for one of them.
    async fn others(self, node: Node, vacancies: Vec<Vacancy>) -> Result<Search, Nobody> {
        let (begun, mut since, mut loads) = (Instant::now(), None, None);
        loop {
            let nobody = match self.ask(&node, &vacancies).await {
                Ok(places) => {
                    let load = since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
                    return Ok(Search::Others { places, load });
                }
                Err(nobody) => nobody,
            };
            let within = match &nobody {
                Nobody::Soon(_) | Nobody::Silence(_) => Duration::ZERO,
                Nobody::Noticed(_) => MENDED_WITHIN,
                Nobody::Loads(_) => HELD_WITHIN,
            };
            if let Nobody::Loads(peer) = &nobody
                && loads.replace(*peer) != Some(*peer)
            {
                self.tell(format!("peer {} is loading the layers that are missing", peer.short()));
            }
            if begun.elapsed() >= within {
                return Err(nobody);
            }
            since.get_or_insert_with(Instant::now);
            sleep(ASKED_EVERY).await;
        }
    }

    async fn ask(&self, node: &Node, vacancies: &[Vacancy]) -> Result<Places, Nobody> {
        let Self::Swarm { home, trusted_layers, .. } = self else {
            if let Some(gone) = vacancies.iter().find(|vacancy| !vacancy.restarts) {
                return Err(Nobody::Soon(gone.to_nobody()));
            }
            return Ok(vacancies.iter().map(|vacancy| (vacancy.hop, vacancy.last.clone())).collect());
        };
        Self::in_swarm(home, *trusted_layers, node, vacancies).await
    }

    async fn in_swarm(home: &Home, trusted_layers: u32, node: &Node, vacancies: &[Vacancy]) -> Result<Places, Nobody> {
        let membership = Membership::open(home)?;
        let list = trusted(home)?;
        let mut hearing = Hearing::begin(node, &membership.contacts);
        let asked_until = Instant::now() + ASKED_WITHIN;
        // Who does not answer is not waited for any longer; what the others know counts.
        let most = hearing.most(MOMENT, |offer| vacancies.iter().any(|vacancy| vacancy.suits(offer)));
        let _ = timeout_at(asked_until.into(), most).await;
        let offers: Vec<Offer> = hearing.offers();
        let mut distances = Distances::from(node);
        let suiting =
            |vacancy: &Vacancy| offers.iter().filter(|offer| vacancy.suits(offer)).cloned().collect::<Vec<_>>();
        distances.ask(&vacancies.iter().flat_map(suiting).collect::<Vec<_>>());
        let mut reached_until = asked_until;
        // Of the lost one there is an offer as well, for a while.
        let is_gone = |vacancy: &Vacancy, offer: &Offer| offer.peer == vacancy.last.address.peer;
        if vacancies.iter().any(|vacancy| suiting(vacancy).iter().all(|offer| is_gone(vacancy, offer))) {
            // Whether those are there who may come to have it: whoever did not answer has left no time to find out.
            let of_model = |offer: &&Offer| vacancies.iter().any(|it| it.spec().model == offer.shape.spec.model);
            distances.ask(&offers.iter().filter(of_model).take(PEERS_MAX).cloned().collect::<Vec<_>>());
            reached_until = reached_until.max(Instant::now() + REACHED_WITHIN);
        }
        let _ = timeout_at(reached_until.into(), distances.most(MOMENT)).await;
        let mut taken: Vec<PeerId> = Vec::new();
        let mut found = Vec::new();
        for vacancy in vacancies {
            let may = |offer: &&Offer| {
                let is_sensitive = Wish::touches_ends(vacancy.spec().layers, trusted_layers, vacancy.layers);
                vacancy.suits(offer) && !taken.contains(&offer.peer) && (!is_sensitive || list.contains(&offer.peer))
            };
            let seconds = |offer: &&Offer| {
                let rtt = node.path_to(offer.peer)?.rtt.as_micros() as u64;
                // Whoever was lost comes last: it may be gone, and not known to be.
                Some((offer.peer == vacancy.last.address.peer, rtt + offer.speed.decode_us))
            };
            let near = offers.iter().filter(may).filter_map(|offer| Some((seconds(&offer)?, offer)));
            let Some((_, offer)) = near.min_by_key(|(seconds, _)| *seconds) else {
                if vacancy.restarts {
                    found.push((vacancy.hop, vacancy.last.clone()));
                    continue;
                }
                let is_sensitive = Wish::touches_ends(vacancy.spec().layers, trusted_layers, vacancy.layers);
                let may = |offer: &&Offer| !is_sensitive || list.contains(&offer.peer);
                // What this machine lends itself it reaches without any line.
                let is_another = |peer: &&PeerId| membership.grant(**peer).is_err();
                if hearing.shut_out().is_none() && !hearing.heard().iter().any(|peer| is_another(&peer)) {
                    return Err(Nobody::Silence(vacancy.to_nobody()));
                }
                let is_there = |offer: &&Offer| node.path_to(offer.peer).is_some();
                return Err(vacancy.hope(&offers.iter().filter(may).filter(is_there).collect::<Vec<_>>()));
            };
            taken.push(offer.peer);
            let (spec, speed) = (vacancy.spec(), Some(offer.speed));
            found.push((vacancy.hop, RemoteStage { spec, address: address(offer), grant: Vec::new(), speed }));
        }
        Ok(found)
    }
}

/// Waits until there are connections to all of them.
async fn reach(node: Node, peers: Vec<PeerAddress>) {
    let mut reached = JoinSet::new();
    for peer in peers {
        let node = node.clone();
        reached.spawn(async move {
            // A way by a relay takes longer than one that was cut a moment ago.
            for attempt in 1.. {
                if matches!(timeout(BACK_ATTEMPT * attempt, node.connect(&peer)).await, Ok(Ok(_))) {
                    return;
                }
                sleep(BACK_EVERY).await;
            }
        });
    }
    while reached.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_core::{ModelId, StageShape, StageSpeed};

    fn spec(start: u32, end: u32) -> StageSpec {
        let layers = LayerRange::new(start, end).unwrap();
        StageSpec { model: ModelId::from_bytes([7; 32]), layers, head: start == 0, tail: end == 30 }
    }

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    /// An offer of somebody who chooses for itself what it serves.
    fn offer(n: u8, (start, end): (u32, u32), free_caches: u16) -> Offer {
        let shape = StageShape {
            spec: spec(start, end),
            width: 1,
            vocabulary: 1,
            caches: 8,
            context: 512,
            cache_bytes_per_position: 1,
            weight_bytes: 1,
            exact: true,
        };
        let speed = StageSpeed { decode_us: 9, prefill_position_us: 9 };
        let (addresses, relay) = (Vec::new(), None);
        Offer { peer: peer(n), sequence: 1, expires: 1, addresses, relay, shape, speed, free_caches, free_bytes: 1 }
    }

    fn coming(n: u8, layers: (u32, u32)) -> Offer {
        Offer { speed: StageSpeed::UNKNOWN, ..offer(n, layers, 0) }
    }

    /// What becomes of layers 10..20, which peer 2 had, between those of peers 1 and 3.
    fn hope(offers: &[Offer]) -> Nobody {
        let address = PeerAddress { peer: peer(2), addresses: Vec::new(), relay: None };
        let last = RemoteStage { spec: spec(10, 20), address, grant: Vec::new(), speed: None };
        let others = vec![peer(1), peer(3)];
        let vacancy = Vacancy { hop: 1, last, restarts: false, others, positions: 512, layers: 30 };
        vacancy.hope(&offers.iter().collect::<Vec<_>>())
    }

    #[test]
    fn who_loads_the_layers_is_waited_for_and_who_may_for_a_while() {
        let route = [offer(1, (0, 10), 1), offer(3, (20, 30), 1)];
        let with = |more: &[Offer]| hope(&[&route[..], more].concat());
        assert!(matches!(with(&[]), Nobody::Soon(_)), "those of the route have places of their own");
        assert!(matches!(with(&[offer(2, (10, 20), 1)]), Nobody::Soon(_)), "it is lost");
        assert!(matches!(with(&[offer(4, (0, 10), 1)]), Nobody::Noticed(_)), "it is spare");
        let chosen = Offer { free_bytes: 0, ..offer(4, (0, 10), 1) };
        assert!(matches!(with(&[chosen]), Nobody::Soon(_)), "its owner has chosen");
        assert!(matches!(with(&[offer(4, (0, 10), 1), coming(5, (10, 20))]), Nobody::Loads(by) if by == peer(5)));
        let short = coming(5, (10, 20));
        let short = Offer { shape: StageShape { context: 511, ..short.shape.clone() }, ..short };
        assert!(!matches!(with(&[short]), Nobody::Loads(_)), "it holds no session as long");
        assert!(!matches!(with(&[coming(3, (10, 30))]), Nobody::Loads(_)), "it comes in another cut");
    }

    #[test]
    fn where_others_have_the_layers_or_nobody_is_spare_nobody_waits() {
        let spare = [offer(1, (0, 10), 1), offer(4, (0, 10), 1)];
        let with = |more: Offer| hope(&[&spare[..], &[more]].concat());
        assert!(matches!(with(offer(5, (5, 25), 1)), Nobody::Soon(_)), "there may be another route");
        assert!(matches!(with(offer(5, (10, 20), 0)), Nobody::Soon(_)), "they are full, and nothing is missing");
        assert!(matches!(with(offer(5, (5, 15), 1)), Nobody::Noticed(_)), "half of them");
        assert!(matches!(hope(&[offer(4, (0, 10), 1)]), Nobody::Soon(_)), "it is needed where it is");
    }
}
