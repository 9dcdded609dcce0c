//! A client's place in its swarm: its endpoint, who is told where it is, and what it hears of others.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use potluck_core::PeerId;
use potluck_net::{Identity, NetDeadlines, Node, NodeConfig, RelayUse};
use potluck_tunnel::{Apps, Exposing, expose};
use potluck_wire::{ADDRESSES_MAX, PeerAddress};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{ClientError, Settings};
use crate::{
    commands::swarm::utc_now,
    home::{Home, KeyLock, Room, learn},
    placement::members,
    serving::{keep_hearing, offers_of, serve_nothing},
    stragglers::most,
};

/// How often members are asked what was taken back.
const HEAR_EVERY: Duration = Duration::from_secs(3);

/// How often they are told where this one is.
const TELL_EVERY: Duration = Duration::from_secs(15);

/// Longest that they may take to answer, all at once. A dial that fails takes less.
const ROUND_MAX: Duration = Duration::from_secs(12);

/// After so long they forget it.
const REMEMBERED: Duration = Duration::from_secs(60);

const _: () = assert!(
    TELL_EVERY.as_secs() + 2 * ROUND_MAX.as_secs() + HEAR_EVERY.as_secs() < REMEMBERED.as_secs(),
    "whoever is away makes nobody forget"
);

/// Longest that whoever begins to listen waits until the contacts know where it is.
const TOLD_MAX: Duration = Duration::from_secs(4);

/// How long the others are listened to once one has said where a peer is.
const OTHERS_SAY: Duration = Duration::from_millis(500);

/// A client's place in its swarm. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Member(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: Node,
    apps: Apps,
    lends: bool,
    contacts: Mutex<Vec<PeerAddress>>,
    told: watch::Sender<bool>,
}

impl Member {
    /// Takes it up. Called on the client's thread.
    pub(super) async fn enter(
        identity: Identity,
        contacts: Vec<PeerAddress>,
        relay: Option<RelayUse>,
        settings: &Settings,
    ) -> Result<Self, ClientError> {
        let lends = identity.gate.check_lender(&identity.grant, identity.key.peer_id(), utc_now()).is_ok();
        if let Err(error) = identity.gate.check(&identity.grant, identity.key.peer_id(), utc_now()) {
            return Err(ClientError::NotAllowed { message: error.to_string() });
        }
        let (bind, lan, deadlines) = (settings.binding(), settings.lan(lends), NetDeadlines::default());
        let own = identity.key.peer_id();
        let node = Node::bind(NodeConfig { identity, bind, lan, relay, deadlines }).await?;
        let node = settings.reach()?.in_public(node, lends);
        let contacts: Vec<_> = contacts.into_iter().filter(|contact| contact.peer != own).collect();
        let told = watch::Sender::new(false);
        let contacts = Mutex::new(contacts);
        Ok(Self(Arc::new(Inner { node, apps: Apps::default(), lends, contacts, told })))
    }

    /// Answers members, tells them where this one is, and hears what was taken back; never returns. Nobody else is this
    /// key for as long as it runs.
    pub(super) async fn stay(self, home: Option<Home>, _lock: Option<KeyLock>) {
        let node = &self.0.node;
        let _serving = serve_nothing(node);
        let _exposing = expose(node, Exposing::new([]).serving(self.0.apps.clone()));
        // In a folder the same is done as for commands, and what is heard is kept.
        let pulls = home.is_none();
        let _hearing = home.map(|home| keep_hearing(&home, Some(node.clone()), None));
        let mut ticks = interval(HEAR_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None::<Instant>;
        loop {
            ticks.tick().await;
            let tells = told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
            if tells {
                told = Some(Instant::now());
            }
            self.go_round(tells, pulls).await;
        }
    }

    /// Asks all contacts at once: one that is away holds nobody up.
    async fn go_round(&self, tells: bool, pulls: bool) {
        let mut asked = JoinSet::new();
        for contact in self.contacts() {
            let (node, tells) = (self.0.node.clone(), tells && self.0.lends);
            asked.spawn(async move {
                let told = async { if tells { node.tell_lending(&contact).await } else { Ok(()) } };
                let pulled = async { if pulls { node.pull_revocations(&contact).await.map(drop) } else { Ok(()) } };
                if let (Err(error), _) | (Ok(()), Err(error)) = tokio::join!(told, pulled) {
                    tracing::debug!(peer = %contact.peer.short(), %error, "a contact was not asked");
                }
            });
        }
        // Those that have not answered by then are asked again.
        let _ = timeout(ROUND_MAX, asked.join_all()).await;
        if tells {
            self.0.told.send_replace(true);
            let _ = timeout(ROUND_MAX, self.learn()).await;
        }
    }

    /// Where the others are, as their offers say: a contact that goes away is not the only one. Those that are known stay, so that
    /// nobody with many keys takes the place of all.
    async fn learn(&self) {
        let (offers, _) = offers_of(&self.0.node, &self.contacts()).await;
        let mut found = members(&offers, &[]);
        found.retain(|member| member.peer != self.0.node.id());
        learn(&mut self.0.contacts.lock().unwrap_or_else(PoisonError::into_inner), found, Room::Free);
    }

    /// Waits until the contacts know where this one is, and no longer than a listener wants to wait.
    pub(super) async fn is_known(&self) {
        let mut told = self.0.told.subscribe();
        // Whoever does not know it finds it on the local network, or by address.
        let _ = timeout(TOLD_MAX, told.wait_for(|told| *told)).await;
    }

    /// An error where others do not connect to this key: its grant does not let it serve.
    pub(super) fn may_listen(&self) -> Result<(), ClientError> {
        if self.0.lends {
            return Ok(());
        }
        let message =
            "this key's grant does not let others connect to it: that takes the right to lend, which members have";
        Err(ClientError::NotAllowed { message: message.into() })
    }

    /// Where that peer is, by all who say so soon: one that lies does not hide what others know. None where nobody says.
    pub(super) async fn find(&self, peer: PeerId) -> Option<PeerAddress> {
        let contacts = self.contacts();
        if let Some(contact) = contacts.iter().find(|contact| contact.peer == peer) {
            return Some(contact.clone());
        }
        let mut asked = JoinSet::new();
        for contact in contacts {
            let member = self.clone();
            asked.spawn(async move { member.ask(&contact, peer).await });
        }
        let mut said = Vec::new();
        most(&mut asked, OTHERS_SAY, |found| {
            let before = said.len();
            said.extend(found);
            said.len() > before
        })
        .await;
        together(peer, &said)
    }

    async fn ask(&self, contact: &PeerAddress, peer: PeerId) -> Option<PeerAddress> {
        let node = &self.0.node;
        let gate = &node.identity().gate;
        let told = async {
            let upstreams = node.upstreams(contact).await.ok()?;
            let mut others = upstreams.others.into_iter().filter(|other| other.address.peer == peer);
            // Named by others, it need not be a member.
            others.find(|other| gate.check(&other.grant, peer, utc_now()).is_ok()).map(|other| other.address)
        };
        let offered = async {
            let (offers, _) = offers_of(node, std::slice::from_ref(contact)).await;
            members(&offers, &[]).into_iter().find(|member| member.peer == peer)
        };
        let (told, offered) = tokio::join!(told, offered);
        // What it has signed itself, before what is said of it.
        offered.or(told)
    }

    pub(super) fn node(&self) -> &Node {
        &self.0.node
    }

    pub(super) fn apps(&self) -> &Apps {
        &self.0.apps
    }

    pub(super) fn contacts(&self) -> Vec<PeerAddress> {
        self.0.contacts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One place of what several said: of each as much as of the others, so that none of them leaves the rest no room.
fn together(peer: PeerId, said: &[PeerAddress]) -> Option<PeerAddress> {
    let longest = said.iter().map(|one| one.addresses.len()).max()?;
    let mut addresses: Vec<String> = Vec::new();
    for address in (0..longest).flat_map(|at| said.iter().filter_map(move |one| one.addresses.get(at))) {
        if addresses.len() < ADDRESSES_MAX && !addresses.contains(address) {
            addresses.push(address.clone());
        }
    }
    // The one that most name; of those the first.
    let relays = || said.iter().filter_map(|one| one.relay.as_ref());
    let named = |relay: &String| relays().filter(|other| *other == relay).count();
    let relay = relays().rev().max_by_key(|relay| named(relay)).cloned();
    Some(PeerAddress { peer, addresses, relay })
}

#[cfg(test)]
mod tests {
    use potluck_core::SecretKey;

    use super::*;

    #[test]
    fn one_that_lies_hides_nothing_that_another_knows() {
        let peer = SecretKey::from_bytes(&[1; 32]).peer_id();
        let at = |addresses: Vec<String>, relay: Option<&str>| PeerAddress {
            peer,
            addresses,
            relay: relay.map(str::to_owned),
        };
        let lies = at((0..ADDRESSES_MAX).map(|n| format!("10.0.0.{n}:1")).collect(), Some("https://liar.example/"));
        let told = at(vec!["192.168.1.7:7575".into(), "10.0.0.0:1".into()], Some("https://relay.example/"));
        let found = together(peer, &[lies, told.clone(), told]).unwrap();
        assert_eq!(found.addresses.len(), ADDRESSES_MAX);
        assert_eq!(found.addresses[..2], ["10.0.0.0:1", "192.168.1.7:7575"]);
        assert_eq!(found.relay.as_deref(), Some("https://relay.example/"));
        assert_eq!(together(peer, &[]), None);
    }
}
