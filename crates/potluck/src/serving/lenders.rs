//! Who lends by an upstream: asked of the members that this machine knows, and of those whom they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use potluck_core::PeerId;
use potluck_net::{NetError, Node};
use potluck_wire::{PeerAddress, Upstream, UpstreamModel, Upstreams};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::commands::swarm::utc_now;

/// Longest wait for all answers together: whoever is away holds nobody up for longer.
const PATIENCE: Duration = Duration::from_secs(4);

/// Members that are asked at a time. Those that are named beyond it are not.
const ASKED_MAX: usize = 128;

/// Places where one member is looked for.
const PLACES_MAX: usize = 3;

/// A member that lends by an upstream, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundLender {
    /// Where it is.
    pub(crate) address: PeerAddress,
    /// What it lends, and how busy it is.
    pub(crate) upstream: Upstream,
}

/// What came of asking a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It lends by an upstream, which may not be well.
    Lends(FoundLender),
    /// It lends by none.
    Nothing(PeerId),
    /// It was not reached.
    Lost(PeerId),
    /// It was slow.
    Late(PeerId),
}

/// Asks these members, and whom they name, what they lend by upstreams; says what is heard as soon as it is.
pub(crate) async fn hear_lenders(node: &Node, members: Vec<PeerAddress>, mut heard: impl FnMut(Heard)) {
    let until = Instant::now() + PATIENCE;
    let mut round = Round { node, asked: BTreeMap::new(), asking: JoinSet::new() };
    members.into_iter().for_each(|member| round.ask(member));
    let (mut answered, mut lost) = (BTreeSet::new(), BTreeSet::new());
    while let Ok(Some(joined)) = timeout_at(until, round.asking.join_next()).await {
        let Ok((address, answer)) = joined else { continue };
        let Upstreams { own, others } = match answer {
            Ok(upstreams) => upstreams,
            Err(error) => {
                tracing::debug!(peer = %address.peer.short(), %error, "a member was not asked what it lends");
                lost.insert(address.peer);
                continue;
            }
        };
        // Named by others, it need not be a member: who was reached has shown that it is one.
        let gate = &node.identity().gate;
        let fit = others.into_iter().filter(|other| gate.check(&other.grant, other.address.peer, utc_now()).is_ok());
        fit.for_each(|other| round.ask(other.address));
        if answered.insert(address.peer) {
            heard(match own.map(tidy) {
                Some(upstream) => Heard::Lends(FoundLender { address, upstream }),
                None => Heard::Nothing(address.peer),
            });
        }
    }
    let unheard = round.asked.keys().filter(|peer| !answered.contains(peer));
    unheard.for_each(|&peer| heard(if lost.contains(&peer) { Heard::Lost(peer) } else { Heard::Late(peer) }));
}

/// Everybody among these members, and those whom they name, who lends by an upstream now.
pub(crate) async fn lenders_among(node: &Node, members: Vec<PeerAddress>) -> Vec<FoundLender> {
    let mut found = Vec::new();
    hear_lenders(node, members, |heard| {
        if let Heard::Lends(lender) = heard {
            found.push(lender);
        }
    })
    .await;
    found.sort_by_key(|lender| lender.address.peer);
    found
}

/// What a lender says is a stranger's text: names that would not show are left out.
fn tidy(mut upstream: Upstream) -> Upstream {
    upstream.models.retain(|model| UpstreamModel::is_fit(&model.name));
    upstream
}

struct Round<'a> {
    node: &'a Node,
    /// Whom, and where.
    asked: BTreeMap<PeerId, Vec<PeerAddress>>,
    asking: JoinSet<(PeerAddress, Result<Upstreams, NetError>)>,
}

impl Round<'_> {
    fn ask(&mut self, member: PeerAddress) {
        let new = !self.asked.contains_key(&member.peer);
        if member.peer == self.node.id() || new && self.asked.len() >= ASKED_MAX {
            return;
        }
        let places = self.asked.entry(member.peer).or_default();
        if places.contains(&member) || places.len() >= PLACES_MAX {
            return;
        }
        places.push(member.clone());
        let node = self.node.clone();
        self.asking.spawn(async move {
            let answer = node.upstreams(&member).await;
            (member, answer)
        });
    }
}
