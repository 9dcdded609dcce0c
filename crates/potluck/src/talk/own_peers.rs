//! Peers of the command's own, and a session over them.

use potluck_chain::{
    Hop, OwnStage,
    plan::{Machine, Preview, Who, placed, split_evenly},
};
use potluck_core::{LayerRange, StageSpec};
use potluck_model::slice;
use potluck_net::{Bind, Identity, Lan, NetDeadlines, Node, NodeConfig};
use potluck_store::Entry;

use super::{
    AnyChain,
    route::RouteChain,
    start::{OWN_CACHE, Opened, Wanted, own_engine, session_config},
    substitutes::Substitutes,
};
use crate::{
    embedded::Embedded,
    failure::{Failure, OrFail},
    home::new_key,
    models::all_layers,
    placement::{here, model_facts, own_machine},
};

/// Starts `peers` peers and opens a session over them, with `ends` layers of each end on this machine.
pub(super) async fn open(wanted: &Wanted<'_>, peers: usize, ends: u32) -> Result<Opened, Failure> {
    let stages = split(wanted.entry, peers, ends)?;
    let embedded = Embedded::start(wanted.home, wanted.settings, of_peers(&stages, ends)).await?;
    match open_again(wanted, &embedded, ends).await {
        Ok(chain) => {
            Ok(Opened { chain, embedded: Some(embedded), verdict: String::new(), plan: None, ends_here: false })
        }
        Err(failure) => {
            embedded.stop().await;
            Err(failure)
        }
    }
}

/// Of all stages, those that peers hold.
pub(super) fn of_peers(stages: &[StageSpec], ends: u32) -> &[StageSpec] {
    if ends > 0 { &stages[1..stages.len() - 1] } else { stages }
}

/// Opens a session over peers that run already.
pub(super) async fn open_again(wanted: &Wanted<'_>, embedded: &Embedded, ends: u32) -> Result<AnyChain, Failure> {
    let stages = split(wanted.entry, embedded.peers.len(), ends)?;
    let (mut route, mut own) = (Vec::with_capacity(stages.len()), Vec::new());
    for (hop, &spec) in stages.iter().enumerate() {
        route.push(match embedded.peers.iter().find(|peer| peer.spec == spec) {
            Some(peer) => peer.hop()?,
            None => {
                own.push(own_engine(wanted, hop, spec).await?);
                Hop::Own(OwnStage { spec, cache: OWN_CACHE })
            }
        });
    }
    let node = client_node(embedded).await?;
    let config = session_config(wanted, node.id(), route)?;
    let chain = RouteChain::open(node, false, config, own, None, Substitutes::Same).await?;
    Ok(AnyChain::Route(Box::new(chain)))
}

/// A client of these peers, with a key of its own.
pub(super) async fn client_node(embedded: &Embedded) -> Result<Node, Failure> {
    let key = new_key()?;
    let identity = Identity { grant: embedded.admit(key.peer_id())?, key, gate: embedded.gate() };
    let config =
        NodeConfig { identity, bind: Bind::Loopback, lan: Lan::Off, relay: None, deadlines: NetDeadlines::default() };
    Ok(Node::bind(config).await?)
}

/// What to expect of such peers, and of this command's own ends: the placement that no planner chooses.
pub(crate) fn own_peers_plan(wanted: &Wanted<'_>, peers: usize, ends: u32) -> Result<Preview, Failure> {
    own_peers_plan_on(wanted, &own_machine(wanted)?, peers, ends)
}

/// The same, on a machine that is this fast.
pub(super) fn own_peers_plan_on(
    wanted: &Wanted<'_>,
    own: &Machine,
    peers: usize,
    ends: u32,
) -> Result<Preview, Failure> {
    let specs = split(wanted.entry, peers, ends)?;
    let of_command = |spec: &StageSpec| ends > 0 && (spec.head || spec.tail);
    let mut numbers = 1..;
    let who = |spec: &StageSpec| if of_command(spec) { None } else { numbers.next() }.map_or(Who::Own, Who::Started);
    let stages: Vec<_> = specs.iter().map(who).zip(specs.iter().map(|spec| spec.layers)).collect();
    placed_here(wanted, own, &stages)
}

/// What to expect of these stages, all of them on this machine.
pub(super) fn placed_here(
    wanted: &Wanted<'_>,
    own: &Machine,
    stages: &[(Who, LayerRange)],
) -> Result<Preview, Failure> {
    let facts = model_facts(wanted.entry, wanted.settings.kv)?;
    placed(&facts, &here(own), stages, &wanted.wish(None, true)).or_fail("bad_model", "potluck model show MODEL")
}

/// Stages over all layers for this many peers; with `ends`, so many layers at each end for the command itself.
pub(crate) fn split(entry: &Entry, peers: usize, ends: u32) -> Result<Vec<StageSpec>, Failure> {
    let layers = all_layers(&entry.manifest)?.count();
    let cuts = slice::legal_cuts(&entry.manifest);
    let legal = |cut: u32| cuts.get(cut as usize - 1).is_some_and(Result::is_ok);
    let fewer = if ends > 1 { "fewer peers, or a smaller --hide-layers" } else { "fewer peers" };
    let hint = format!("the model has {layers} layers: ask for {fewer}");
    if ends > 0 && ends.saturating_mul(2) >= layers {
        let message = format!("{ends} layers at each end of {layers} leave none to peers");
        return Err(Failure::usage(message, "run it whole on this machine: --local"));
    }
    let (first, last) = (ends, layers - ends);
    let cuts_within: Vec<u32> = (first + 1..last).filter(|&cut| legal(cut)).map(|cut| cut - first).collect();
    let inner = split_evenly(last.saturating_sub(first), peers, &cuts_within).or_fail("usage", &hint)?;
    let shifted = inner.iter().map(|range| LayerRange::new(range.start() + first, range.end() + first));
    let ends = (ends > 0).then(|| [LayerRange::new(0, first), LayerRange::new(last, layers)]);
    let mut ranges =
        shifted.chain(ends.into_iter().flatten()).collect::<Result<Vec<_>, _>>().or_fail("usage", &hint)?;
    ranges.sort_unstable();
    // A boundary may be legal and the stage beside it not: then the reason is told.
    ranges.iter().try_for_each(|&range| slice::check_range(&entry.manifest, range))?;
    let spec = |range: LayerRange| StageSpec {
        model: entry.id,
        layers: range,
        head: range.start() == 0,
        tail: range.end() == layers,
    };
    Ok(ranges.into_iter().map(spec).collect())
}
