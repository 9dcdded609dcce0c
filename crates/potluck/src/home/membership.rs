//! The swarm that a machine belongs to, and the root key where it is the one that made the swarm.

use data_encoding::HEXLOWER;
use potluck_core::{Order, PeerId, SecretKey, SignedOrder};
use potluck_grant::{Caveats, Gate, RelayPass, Root, SwarmId};
use potluck_net::{RELAYS_MAX, RelayAt};
use potluck_wire::PeerAddress;
use serde::{Deserialize, Serialize};

use super::{
    Admission, Home, Invitations,
    identity::{check_mode, new_key},
};
use crate::failure::{Failure, OrFail};

const MEMBERSHIP: &str = "swarm.json";
const ROOT: &str = "root.key";

/// Members whose addresses a machine remembers.
pub(crate) const CONTACTS_KEPT: usize = 16;

/// What a machine knows of its swarm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// The public key of the swarm's root, in hexadecimal: the swarm's name.
    pub(crate) swarm: String,
    grants: Vec<(String, String)>,
    /// Members to ask for offers.
    pub(crate) contacts: Vec<PeerAddress>,
    /// The relays at which this machine listens, and by which it reaches others that it reaches no other way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) relays: Vec<String>,
}

/// The key that grants places in a swarm.
#[derive(Debug)]
pub(crate) struct SwarmRoot(Root);

impl Membership {
    /// The swarm of this machine, if it has one.
    pub(crate) fn find(home: &Home) -> Result<Option<Self>, Failure> {
        let Some(text) = home.read(MEMBERSHIP)? else { return Ok(None) };
        let damaged = "restore it from a copy, or join again: potluck swarm join --replace INVITATION, or leave: potluck swarm leave";
        serde_json::from_str(&text).map(Some).or_fail("membership", damaged)
    }

    /// The swarm of this machine.
    pub(crate) fn open(home: &Home) -> Result<Self, Failure> {
        Self::find(home)?.ok_or_else(|| {
            let hint = "potluck swarm create, or ask for an invitation: potluck swarm join";
            Failure::new("no_swarm", "this machine belongs to no swarm", hint)
        })
    }

    /// Whether this machine may join that swarm. `replace`: even if it belongs to another.
    pub(crate) fn may_join(home: &Home, swarm: &str, replace: bool) -> Result<(), Failure> {
        match Self::find(home) {
            // What is damaged is replaced, too.
            Err(_) if replace => Ok(()),
            Err(failure) => Err(failure),
            Ok(Some(old)) if old.swarm != swarm && !replace => {
                let message = format!("this machine belongs to swarm {} already", &old.swarm[..10]);
                Err(Failure::new("already_joined", message, "leave that swarm for this one with --replace"))
            }
            Ok(_) => Ok(()),
        }
    }

    /// What a machine was granted, kept.
    pub(crate) fn join(home: &Home, admission: &Admission, replace: bool) -> Result<Self, Failure> {
        let swarm = admission.swarm.clone();
        Self::may_join(home, &swarm, replace)?;
        let grants = admission.grants.iter().map(|(peer, grant)| (peer.to_string(), HEXLOWER.encode(grant))).collect();
        let relays = home.reach.relays_or(&usable(&admission.relays));
        let membership = Self { swarm, grants, contacts: admission.contacts.clone(), relays };
        membership.save(home)?;
        Ok(membership)
    }

    /// Forgets the swarm of this machine, also where what is kept of it is damaged: its name, if it can be read. `end`: also the
    /// root key that is here, of this swarm or an earlier one.
    pub(crate) fn leave(home: &Home, end: bool) -> Result<Option<String>, Failure> {
        let (here, root) = (home.path(MEMBERSHIP).exists(), home.path(ROOT).exists());
        if !(here || root && end) {
            return Self::open(home).map(|membership| Some(membership.swarm));
        }
        let swarm = Self::find(home).ok().flatten().map(|membership| membership.swarm);
        let elsewhere = root && matches!(SwarmRoot::open(home), Err(failure) if failure.code == "no_root");
        if root && !elsewhere && !end {
            let message = "this swarm was made here: without its root key nobody can be let in any more";
            return Err(Failure::new("root_here", message, "potluck swarm leave --end, if that is what you want"));
        }
        if end {
            Invitations::forget(home)?;
            home.remove(ROOT)?;
        }
        home.remove(MEMBERSHIP)?;
        Ok(swarm)
    }

    /// The relays of this machine: what the user wants this time, or else what is kept.
    pub(crate) fn relays(&self, home: &Home) -> Vec<String> {
        home.reach.relays_or(&self.relays)
    }

    /// Keeps one more relay; one that is known at the same place is replaced.
    pub(crate) fn keep_relay(&mut self, relay: &RelayAt) {
        self.forget_relay(relay);
        self.relays.push(relay.to_string());
        self.relays.truncate(RELAYS_MAX);
    }

    /// Keeps one relay less; whether it was there.
    pub(crate) fn forget_relay(&mut self, relay: &RelayAt) -> bool {
        let before = self.relays.len();
        self.relays.retain(|kept| RelayAt::parse(kept).is_ok_and(|kept| kept.url() != relay.url()));
        self.relays.len() < before
    }

    /// Keeps what has changed.
    pub(crate) fn save(&self, home: &Home) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).or_fail("internal", "report this")?;
        home.write(MEMBERSHIP, &(text + "\n"))
    }

    /// Notes where a member is reached: whoever is invited from here asks it first.
    pub(crate) fn knows(&mut self, member: PeerAddress) {
        self.contacts.retain(|contact| contact.peer != member.peer);
        self.contacts.push(member);
    }

    /// Notes where the others are: these first, and of those that were known before as many as there is room for.
    pub(crate) fn keep_contacts(&mut self, own: PeerId, others: &[PeerAddress]) {
        let before = std::mem::take(&mut self.contacts);
        self.contacts = before.iter().filter(|contact| contact.peer == own).chain(others).cloned().collect();
        for contact in before {
            if self.contacts.len() < CONTACTS_KEPT && self.contacts.iter().all(|known| known.peer != contact.peer) {
                self.contacts.push(contact);
            }
        }
    }

    /// The grant of one of this machine's keys.
    pub(crate) fn grant(&self, peer: PeerId) -> Result<Vec<u8>, Failure> {
        let name = peer.to_string();
        let found = self.grants.iter().find(|(holder, _)| *holder == name);
        found.and_then(|(_, grant)| HEXLOWER.decode(grant.as_bytes()).ok()).ok_or_else(|| {
            let message =
                format!("swarm {} has granted nothing to this machine's key {}", &self.swarm[..10], peer.short());
            Failure::new("no_grant", message, format!("ask the swarm's owner for: potluck swarm grant {name}"))
        })
    }

    /// The swarm's root, by its public key: what it signs is obeyed.
    pub(crate) fn root(&self) -> Result<PeerId, Failure> {
        self.swarm.parse().or_fail("membership", "join again: potluck swarm join --replace INVITATION")
    }

    /// What checks the grants of this swarm's members.
    /// It knows what this machine knows to be taken back.
    pub(crate) fn gate(&self, home: &Home) -> Result<Gate, Failure> {
        let swarm = self.swarm.parse().or_fail("membership", "join again: potluck swarm join --replace INVITATION")?;
        let gate = Gate::new(swarm);
        super::authority::tell(home, &gate)?;
        Ok(gate)
    }
}

/// Those that are relays, of what a line named: as many as a machine listens at.
pub(crate) fn usable(relays: &[String]) -> Vec<String> {
    let read = relays.iter().filter_map(|text| RelayAt::parse(text).ok());
    read.map(|at| at.to_string()).take(RELAYS_MAX).collect()
}

impl SwarmRoot {
    /// The root key of the swarm that this machine made, and belongs to still.
    pub(crate) fn open(home: &Home) -> Result<Self, Failure> {
        check_mode(&home.path(ROOT))?;
        let text = home.read(ROOT)?.ok_or_else(|| {
            let hint = "run this where `potluck swarm create` was run";
            Failure::new("no_root", "this machine does not hold the swarm's root key", hint)
        })?;
        let bytes = HEXLOWER.decode(text.trim().as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let bytes: [u8; 32] = bytes.ok_or_else(|| Failure::new("identity", "the root key is damaged", "restore it"))?;
        let root = Self(Root::from_bytes(&bytes));
        let swarm = root.swarm().to_string();
        match Membership::find(home)? {
            Some(now) if now.swarm != swarm => {
                let message =
                    format!("this machine made swarm {}, and belongs to {} now", &swarm[..10], &now.swarm[..10]);
                Err(Failure::new("no_root", message, "run this where `potluck swarm create` of its swarm was run"))
            }
            _ => Ok(root),
        }
    }

    /// The swarm's name.
    pub(crate) fn swarm(&self) -> SwarmId {
        self.0.public()
    }

    /// Makes a swarm: its root key, kept here.
    pub(crate) fn create(home: &Home) -> Result<Self, Failure> {
        if home.path(ROOT).exists() {
            let message = format!("{} holds a swarm's root key already", home.path(ROOT).display());
            return Err(Failure::new(
                "already_created",
                message,
                "use another POTLUCK_HOME for a second swarm, or end that one: potluck swarm leave --end",
            ));
        }
        let root = Self::ephemeral()?;
        home.write(ROOT, &(HEXLOWER.encode(&root.0.to_bytes()) + "\n"))?;
        Ok(root)
    }

    /// A root that nobody keeps: for the peers that one command starts and ends.
    pub(crate) fn ephemeral() -> Result<Self, Failure> {
        Ok(Self(Root::from_bytes(&new_key()?.to_bytes())))
    }

    /// An order, signed.
    pub(crate) fn order(&self, order: &Order) -> SignedOrder {
        order.sign(&self.0.key())
    }

    /// A grant that makes this key a member until `expires` (UTC seconds).
    pub(crate) fn admit(&self, holder: PeerId, expires: u64) -> Result<Vec<u8>, Failure> {
        Ok(self.0.grant(holder, expires).or_fail("internal", "report this")?.into_bytes())
    }

    /// A grant as these caveats say.
    pub(crate) fn admit_as(&self, holder: PeerId, caveats: &Caveats) -> Result<Vec<u8>, Failure> {
        Ok(self.0.grant_as(holder, caveats).or_fail("grant", "name fewer models and peers")?.into_bytes())
    }

    /// Lets whoever knows that invitation's secret be helped by the swarm's relays until then.
    pub(crate) fn relay_pass(&self, secret: &[u8; 16], until: u64) -> RelayPass {
        self.0.relay_pass(secret, until)
    }

    /// The root's key, to take something back with.
    pub(crate) fn key(&self) -> SecretKey {
        self.0.key()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(n: u8, port: u16) -> PeerAddress {
        let peer = SecretKey::from_bytes(&[n; 32]).peer_id();
        PeerAddress { peer, addresses: vec![format!("127.0.0.1:{port}")], relay: None }
    }

    #[test]
    fn contacts_are_renewed_and_never_pile_up() {
        let own = member(0, 1);
        let contacts = vec![member(1, 1), own.clone(), member(2, 1), member(3, 1)];
        let mut membership = Membership { swarm: "07".into(), grants: Vec::new(), contacts, relays: Vec::new() };
        membership.keep_contacts(own.peer, &[member(2, 2), member(4, 2)]);
        let kept = [own.clone(), member(2, 2), member(4, 2), member(1, 1), member(3, 1)];
        assert_eq!(membership.contacts, kept, "own, what is known now, and who was known before");
        for first in (10..=200).step_by(10) {
            let others: Vec<_> = (first..first + 10).map(|n| member(n, 3)).collect();
            membership.keep_contacts(own.peer, &others);
            assert_eq!(membership.contacts[0], own);
            assert_eq!(membership.contacts[1..=10], others);
            assert!(membership.contacts.len() <= CONTACTS_KEPT);
        }
    }
}
