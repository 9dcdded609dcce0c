//! A route through the swarm, as the planner chose it; this machine alone where that is enough.

use potluck_chain::{
    Hop, OwnStage, RemoteStage,
    plan::{Machine, ModelFacts, PlanError, Preference, Preview, VerdictKind, Who, Wish, alone, plan},
};
use potluck_core::{LayerRange, Offer, PeerId, StageSpec, StageSpeed};
use potluck_net::{Bind, Identity, NetDeadlines, Node, NodeConfig};

use super::{
    AnyChain,
    opening::{LOADING, Unopened},
    route::RouteChain,
    start::{OWN_CACHE, Opened, Wanted, local, own_engine, session_config},
    substitutes::Substitutes,
};
use crate::{
    args::Prefer,
    failure::Failure,
    home::{self, Home, Membership, Role, trusted},
    placement::{Distances, address, known_machine, members, missing_layers, model_facts, own_machine},
    serving::Hearing,
    states::{STATES_BYTES, Whose, keep_states},
    stragglers::STRAGGLERS,
};

/// A plan, and what it rests on.
pub(crate) struct Surveyed {
    /// The plan, or why there is none.
    pub(crate) preview: Result<Preview, Failure>,
    /// Peers that did not answer, and why.
    pub(crate) silent: Vec<String>,
    node: Option<Node>,
    offers: Vec<Offer>,
}

/// Asks the swarm who offers what, and plans. `may_load`: machines may load what they have not loaded.
pub(super) async fn survey(
    wanted: &Wanted<'_>,
    prefer: Prefer,
    may_load: bool,
    without: &[PeerId],
) -> Result<Surveyed, Failure> {
    let swarm = match Membership::find(wanted.home)? {
        Some(membership) => Some((client_node(wanted.home, &membership).await?, membership)),
        None => None,
    };
    match plan_over(wanted, prefer, may_load, swarm.as_ref(), without).await {
        Ok((preview, silent, offers)) => Ok(Surveyed { preview, silent, node: swarm.map(|(node, _)| node), offers }),
        Err(failure) => {
            if let Some((node, _)) = swarm {
                wanted.home.let_go(&node).await;
            }
            Err(failure)
        }
    }
}

/// A plan, who did not answer, and what was offered.
type Planned = (Result<Preview, Failure>, Vec<String>, Vec<Offer>);

async fn plan_over(
    wanted: &Wanted<'_>,
    prefer: Prefer,
    may_load: bool,
    swarm: Option<&(Node, Membership)>,
    without: &[PeerId],
) -> Result<Planned, Failure> {
    let missing = missing_layers(wanted.entry);
    // Of a model that is not here this machine can run nothing yet.
    let takes_part = may_load || (missing.len() as u32) < wanted.entry.manifest.layers();
    let mut machines = Vec::new();
    // One that takes no part is compared where it is known how fast it is: finding out takes a moment.
    let mut beside = None;
    if prefer != Prefer::Swarm && takes_part {
        machines.push(Machine { missing, ..own_machine(wanted)? });
    } else {
        beside = known_machine(wanted)?.map(|own| Machine { missing, ..own });
    }
    let mut asked = None;
    if let Some((client, membership)) = swarm {
        let own = home::Identity::open(wanted.home, Role::Peer)?.key.peer_id();
        let (hearing, distances) =
            asked.insert((Hearing::begin(client, &membership.contacts), Distances::from(client)));
        if may_load {
            // Who is to be shown what there is wants all of it.
            hearing.rest().await;
        } else {
            hearing.most(STRAGGLERS, |offer| offer.peer != own && offer.shape.spec.model == wanted.entry.id).await;
        }
        distances.ask(&hearing.offers());
        if may_load {
            distances.rest().await;
        } else {
            distances.most(STRAGGLERS).await;
        }
    }
    let preference = match prefer {
        Prefer::Private => None,
        Prefer::Latency | Prefer::Swarm => Some(Preference::Latency),
    };
    let wish = wanted.wish(preference, may_load);
    let facts = model_facts(wanted.entry, wanted.settings.kv)?;
    let planned = loop {
        let mut all = machines.clone();
        if let Some((hearing, distances)) = &asked {
            // As the list is now: whoever was taken off it is given nothing more.
            let list = trusted(wanted.home)?;
            let trusted = |machine: &Machine| matches!(machine.who, Who::Peer(peer) if list.contains(&peer));
            let offered = distances.machines(&hearing.offers()).into_iter();
            all.extend(offered.map(|machine| Machine { trusted: trusted(&machine), ..machine }));
        }
        let planned = plan_without(&facts, &all, &wish, without);
        let Some((hearing, distances)) = &mut asked else { break planned };
        // Where nobody but this machine would read what is said, it is worth the wait; and so is any way, where there is none.
        let open = planned.as_ref().is_ok_and(|preview| preview.preference != Preference::Private);
        if planned.is_ok() && !(prefer == Prefer::Private && open) {
            break planned;
        }
        // Who is gone does not answer, and somebody may be loading what it had.
        if planned.is_err() && loads_what_is_missing(wanted, (&facts, &wish), &machines, (hearing, distances)).is_some()
        {
            break planned;
        }
        let late = hearing.rest().await;
        distances.ask(&hearing.offers());
        if !(distances.rest().await || late) {
            break planned;
        }
    };
    let planned = planned.map(|preview| match beside {
        Some(own) => Preview { alone: alone(&facts, &own, &wish), ..preview },
        None => preview,
    });
    let (mut offers, mut silent) = (Vec::new(), Vec::new());
    let loads = match (&planned, &asked) {
        (Err(_), Some((hearing, distances))) => {
            loads_what_is_missing(wanted, (&facts, &wish), &machines, (hearing, distances))
        }
        _ => None,
    };
    let shut_out = asked.as_ref().and_then(|(hearing, _)| hearing.shut_out()).map(ToString::to_string);
    if let (Some((hearing, distances)), Some((_, membership))) = (asked, swarm) {
        offers = hearing.offers();
        silent = hearing.silent().into_iter().chain(distances.unreached()).collect();
        if let Err(failure) = Membership::heard_of(wanted.home, &membership.swarm, members(&offers, &[])) {
            tracing::info!(code = %failure.code, "where the others are was not kept: {}", failure.message);
        }
    }
    let preview = planned.map_err(|error| {
        if let Some(refused) = shut_out {
            let hint = "potluck swarm whoami says what this machine may; its owner may have taken that back";
            return Failure::new("not_admitted", refused, hint);
        }
        if let Some(peer) = loads {
            let message = format!("peer {} is loading layers that are missing", peer.short());
            return Failure::new(LOADING, message, "run it again in a while");
        }
        let shorter = offers.iter().filter(|offer| offer.shape.spec.model == wanted.entry.id);
        let shorter = shorter.map(|offer| offer.shape.context).filter(|&context| context < wish.positions).min();
        let hint = match (&error, shorter) {
            (PlanError::NotTrusted { .. }, _) => {
                "potluck peers shows the keys of those that are there; say whom you trust: potluck swarm trust KEY"
                    .into()
            }
            (PlanError::NotHidden { missing: 1.., .. }, _) => {
                format!("fetch them: potluck model pull {}; or hide fewer", wanted.entry.name)
            }
            (PlanError::NotHidden { needed_bytes, memory_bytes, .. }, _) if needed_bytes > memory_bytes => {
                "hide fewer layers, ask for a shorter --context, or give more: --memory".into()
            }
            (_, Some(context)) => {
                format!("its peers keep {context} positions a session: run it with --context {context}")
            }
            (_, None) => {
                "potluck model plan says who is there and what is missing; lend more machines: potluck serve".into()
            }
        };
        Failure::new("no_route", error, hint)
    });
    Ok((preview, silent, offers))
}

/// A plan over others than these; over them, too, where there is none over others.
fn plan_without(
    facts: &ModelFacts,
    machines: &[Machine],
    wish: &Wish,
    without: &[PeerId],
) -> Result<Preview, PlanError> {
    let is_other = |machine: &&Machine| !matches!(machine.who, Who::Peer(peer) if without.contains(&peer));
    let others: Vec<_> = machines.iter().filter(is_other).cloned().collect();
    if others.len() < machines.len()
        && let Ok(preview) = plan(facts, &others, wish)
    {
        return Ok(preview);
    }
    plan(facts, machines, wish)
}

/// A peer that is loading layers, where there will be a route once it has. Who did not answer may be gone, and loads nothing then.
fn loads_what_is_missing(
    wanted: &Wanted<'_>,
    (facts, wish): (&ModelFacts, &Wish),
    own: &[Machine],
    (hearing, distances): (&Hearing, &Distances),
) -> Option<PeerId> {
    if wish.may_load {
        return None;
    }
    let offers = hearing.offers();
    let loads = |offer: &&Offer| offer.is_coming() && offer.shape.spec.model == wanted.entry.id;
    let coming = offers.iter().filter(loads).find(|offer| distances.has_reached(offer.peer))?;
    // As fast as anything: whether there will be a route does not depend on it.
    let ready = |offer: &Offer| match offer.is_coming() {
        true => Offer { free_caches: 1, speed: StageSpeed { decode_us: 1, prefill_position_us: 1 }, ..offer.clone() },
        false => offer.clone(),
    };
    let list = trusted(wanted.home).ok()?;
    let trusted = |machine: &Machine| matches!(machine.who, Who::Peer(peer) if list.contains(&peer));
    let offered = distances.machines(&offers.iter().map(ready).collect::<Vec<_>>()).into_iter();
    let offered = offered.map(|machine| Machine { trusted: trusted(&machine), ..machine });
    let machines: Vec<_> = own.iter().cloned().chain(offered).collect();
    plan(facts, &machines, wish).is_ok().then_some(coming.peer)
}

/// Opens a session as the planner says: over others than these, where there is a route over others.
pub(super) async fn open(wanted: &Wanted<'_>, prefer: Prefer, without: &[PeerId]) -> Result<Opened, Unopened> {
    let Surveyed { preview, silent, node, offers } = survey(wanted, prefer, false, without).await?;
    silent.iter().for_each(|why| tracing::info!("{why}"));
    let preview = match preview {
        Ok(preview) => preview,
        Err(failure) => {
            if let Some(node) = node {
                wanted.home.let_go(&node).await;
            }
            return Err(failure.into());
        }
    };
    let verdict = preview.verdict.reason.clone();
    let Some(node) = node.filter(|_| !is_own(&preview)) else {
        let opened = local(wanted, verdict).await?;
        return Ok(Opened { plan: Some(preview), ..opened });
    };
    let stages = preview.stages.iter().map(|stage| match stage.who {
        Who::Own => Ok((None, stage.layers)),
        Who::Peer(peer) => Ok((Some(peer), stage.layers)),
        Who::Started(_) => Err(Failure::new("internal", "a plan of the swarm starts no peer", "report this")),
    });
    let stages: Result<Vec<_>, Failure> = stages.collect();
    let (chain, ends_here) = open_route(wanted, node, &offers, stages).await?;
    Ok(Opened { chain, embedded: None, verdict, plan: Some(preview), ends_here })
}

/// A session over these stages, and whether both ends are this machine's. Where there is none, the node is let go of.
async fn open_route(
    wanted: &Wanted<'_>,
    node: Node,
    offers: &[Offer],
    stages: Result<Vec<(Option<PeerId>, LayerRange)>, Failure>,
) -> Result<(AnyChain, bool), Unopened> {
    let prepared = async {
        let (mut route, mut own, stages) = (Vec::new(), Vec::new(), stages?);
        let layers = wanted.entry.manifest.layers();
        for (hop, (peer, range)) in stages.into_iter().enumerate() {
            let (head, tail) = (range.start() == 0, range.end() == layers);
            let spec = StageSpec { model: wanted.entry.id, layers: range, head, tail };
            route.push(match peer {
                None => {
                    own.push(own_engine(wanted, hop, spec).await?);
                    Hop::Own(OwnStage { spec, cache: OWN_CACHE })
                }
                Some(peer) => remote_hop(offers, peer, spec)?,
            });
        }
        let ends_here = has_both_ends(&route);
        let config = session_config(wanted, node.id(), route)?;
        let keep = || keep_states(wanted.home, Whose::Own, STATES_BYTES, wanted.settings);
        let states = if own.is_empty() { None } else { Some(keep()?) };
        Ok::<_, Failure>((config, own, states, ends_here))
    };
    let prepared = prepared.await;
    let (config, own, states, ends_here) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            wanted.home.let_go(&node).await;
            return Err(failure.into());
        }
    };
    let kept = wanted.home.node().is_some();
    let chain = RouteChain::open(node, kept, config, own, states, substitutes(wanted)).await?;
    Ok((AnyChain::Route(Box::new(chain)), ends_here))
}

/// Opens a session over these stages; none where one is not offered any more, or may not be at that peer now.
pub(super) async fn open_over(
    wanted: &Wanted<'_>,
    stages: &[(Option<PeerId>, LayerRange)],
) -> Result<Option<AnyChain>, Unopened> {
    let list = trusted(wanted.home)?;
    let (layers, wish) = (wanted.entry.manifest.layers(), wanted.wish(None, false));
    if stages.last().is_none_or(|(_, last)| last.end() != layers) {
        return Ok(None);
    }
    let may = |(peer, range): &(Option<PeerId>, LayerRange)| {
        let touches = |ends| Wish::touches_ends(*range, ends, layers);
        peer.is_none_or(|peer| !touches(wish.hide_layers) && (!touches(wish.trusted_layers) || list.contains(&peer)))
    };
    if !stages.iter().all(may) {
        return Ok(None);
    }
    let Surveyed { node, offers, .. } = survey(wanted, Prefer::Swarm, false, &[]).await?;
    let Some(node) = node else { return Ok(None) };
    let (chain, _) = open_route(wanted, node, &offers, Ok(stages.to_vec())).await?;
    Ok(Some(chain))
}

/// Where others are looked for in the places of lost peers.
pub(super) fn substitutes(wanted: &Wanted<'_>) -> Substitutes {
    let (home, trusted_layers) = (Box::new(wanted.home.clone()), wanted.privacy.trusted_layers);
    Substitutes::Swarm { home, trusted_layers, standby: wanted.standby.into(), screen: wanted.screen }
}

/// A route for sessions that share it, with stages of this machine at its ends where they fit and nothing else was asked for;
/// none where this machine alone is the better choice. Over others than `without`, where there is a route over others.
pub(super) async fn shared_route(
    wanted: &Wanted<'_>,
    prefer: Prefer,
    swarm: &(Node, Membership),
    without: &[PeerId],
) -> Result<Option<Vec<Hop>>, Failure> {
    let (preview, silent, offers) = plan_over(wanted, prefer, false, Some(swarm), without).await?;
    silent.iter().for_each(|why| tracing::info!("{why}"));
    let preview = preview?;
    if is_own(&preview) {
        return Ok(None);
    }
    let mut route = Vec::new();
    for stage in &preview.stages {
        let spec = StageSpec { model: wanted.entry.id, layers: stage.layers, head: stage.head, tail: stage.tail };
        match stage.who {
            Who::Peer(peer) => route.push(remote_hop(&offers, peer, spec)?),
            _ => route.push(Hop::Own(OwnStage { spec, cache: OWN_CACHE })),
        }
    }
    Ok(Some(route))
}

/// True where the first and the last stage of a route are this machine's.
pub(super) fn has_both_ends(route: &[Hop]) -> bool {
    matches!((route.first(), route.last()), (Some(Hop::Own(_)), Some(Hop::Own(_))))
}

/// True where this machine is to run all of it.
fn is_own(preview: &Preview) -> bool {
    preview.verdict.kind == VerdictKind::Single && preview.stages[0].who == Who::Own
}

fn remote_hop(offers: &[Offer], peer: PeerId, spec: StageSpec) -> Result<Hop, Failure> {
    let offer = offers.iter().find(|offer| offer.peer == peer && offer.shape.spec == spec);
    let offer = offer.ok_or_else(|| Failure::new("no_route", "an offer has expired", "run it again"))?;
    // The peer shows its grant when it greets us.
    Ok(Hop::Remote(RemoteStage { spec, address: address(offer), grant: Vec::new(), speed: Some(offer.speed) }))
}

/// This machine as a client of its swarm.
pub(crate) async fn client_node(home: &Home, membership: &Membership) -> Result<Node, Failure> {
    if let Some(node) = home.node() {
        return Ok(node.clone());
    }
    let key = home::Identity::open(home, Role::Client)?.key;
    let grant = membership.grant(key.peer_id())?;
    let identity = Identity { key, grant, gate: membership.gate(home)? };
    let (lan, deadlines) = (home.reach.asking(), NetDeadlines::default());
    let relay = home.claim_relays(membership.relays(home), None);
    let node = Node::bind(NodeConfig { identity, bind: Bind::Any, lan, relay, deadlines }).await?;
    Ok(home.reach.in_public(node, false))
}

/// Plans without opening anything: `potluck model plan`.
pub(crate) async fn preview(wanted: &Wanted<'_>, prefer: Prefer) -> Result<Surveyed, Failure> {
    let mut surveyed = survey(wanted, prefer, true, &[]).await?;
    if let Some(node) = surveyed.node.take() {
        wanted.home.let_go(&node).await;
    }
    Ok(surveyed)
}

/// Whose machine, in a word or two.
pub(crate) fn who_name(who: Who) -> String {
    match who {
        Who::Own => "this machine".into(),
        Who::Peer(peer) => peer.short(),
        Who::Started(number) => format!("peer {number}"),
    }
}
