//! Who can take the place of a peer that is lost: whoever has offered the same stage.

use std::time::Duration;

use potluck_chain::{Hop, RemoteStage, SessionError, plan::Wish};
use potluck_core::{Offer, PeerId, StageSpec};
use potluck_net::Node;
use tokio::time::timeout;

use crate::{
    failure::Failure,
    home::{Home, Membership, trusted},
    placement::{Distances, address},
    serving::Hearing,
};

/// How long the swarm is asked for others: who is gone itself does not answer, and another route may be known sooner.
const ASKED_WITHIN: Duration = Duration::from_secs(3);

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
    },
}

/// Who is to take which place of a route.
pub(super) type Places = Vec<(usize, RemoteStage)>;

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

    fn spec(&self) -> StageSpec {
        self.last.spec
    }

    /// Whether the offer is of the same stage, by a peer that has room and is not on the route.
    fn suits(&self, offer: &Offer) -> bool {
        let has_room = offer.free_caches > 0 && offer.shape.context >= self.positions;
        offer.shape.spec == self.spec() && has_room && !self.others.contains(&offer.peer)
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

    /// A peer that can stand by, to which there is a connection already.
    ///
    /// # Errors
    /// `no_route` where there is none.
    pub(super) async fn find_standby(self, node: Node, vacancy: Vacancy) -> Result<Places, Failure> {
        let places = self.find(node.clone(), vec![vacancy]).await?;
        for (_, stage) in &places {
            // Kept by the node: whoever opens the session finds it.
            node.connect(&stage.address).await?;
        }
        Ok(places)
    }

    /// A peer for each of them, the nearest and fastest that answers; the same one again where its engine starts again and nobody else has
    /// the stage.
    ///
    /// # Errors
    /// `no_route` where there is nobody for one of them.
    pub(super) async fn find(self, node: Node, vacancies: Vec<Vacancy>) -> Result<Places, Failure> {
        let Self::Swarm { home, trusted_layers, .. } = self else {
            if let Some(gone) = vacancies.iter().find(|vacancy| !vacancy.restarts) {
                return Err(gone.to_nobody());
            }
            return Ok(vacancies.into_iter().map(|vacancy| (vacancy.hop, vacancy.last)).collect());
        };
        let message = format!("nobody answered within {} s who offers the same layers", ASKED_WITHIN.as_secs());
        let late = |_| Err(Failure::new("no_route", message, "potluck peers shows who is there"));
        timeout(ASKED_WITHIN, Self::in_swarm(*home, trusted_layers, node, vacancies)).await.unwrap_or_else(late)
    }

    async fn in_swarm(home: Home, trusted_layers: u32, node: Node, vacancies: Vec<Vacancy>) -> Result<Places, Failure> {
        let contacts = Membership::open(&home)?.contacts;
        let list = trusted(&home)?;
        let mut hearing = Hearing::begin(&node, &contacts);
        hearing.most(MOMENT, |offer| vacancies.iter().any(|vacancy| vacancy.suits(offer))).await;
        let offers: Vec<Offer> = hearing.offers();
        let mut distances = Distances::from(&node);
        let suiting =
            |vacancy: &Vacancy| offers.iter().filter(|offer| vacancy.suits(offer)).cloned().collect::<Vec<_>>();
        distances.ask(&vacancies.iter().flat_map(suiting).collect::<Vec<_>>());
        distances.most(MOMENT).await;
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
                    found.push((vacancy.hop, vacancy.last));
                    continue;
                }
                return Err(vacancy.to_nobody());
            };
            taken.push(offer.peer);
            let (spec, speed) = (vacancy.spec(), Some(offer.speed));
            found.push((vacancy.hop, RemoteStage { spec, address: address(offer), grant: Vec::new(), speed }));
        }
        Ok(found)
    }
}
