//! The swarm that a machine belongs to, and the root key where it is the one that made the swarm.

use data_encoding::HEXLOWER;
use potluck_core::PeerId;
use potluck_grant::Gate;
use potluck_net::{RELAYS_MAX, RelayAt};
use potluck_wire::PeerAddress;
use serde::{Deserialize, Serialize};

use super::{Admission, Home, Invitations, RootKept, SwarmRoot};
use crate::failure::{Failure, OrFail};

const MEMBERSHIP: &str = "swarm.json";

/// Members whose addresses a machine remembers.
const CONTACTS_KEPT: usize = 16;

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

    /// What a machine was granted, kept, and what leads from the root that the swarm is named after to the one that granted it.
    pub(crate) fn join(home: &Home, admission: &Admission, replace: bool) -> Result<Self, Failure> {
        let swarm = admission.swarm.clone();
        Self::may_join(home, &swarm, replace)?;
        let grants = admission.grants.iter().map(|(peer, grant)| (peer.to_string(), HEXLOWER.encode(grant))).collect();
        let relays = home.reach.relays_or(&usable(&admission.relays));
        let membership = Self { swarm, grants, contacts: admission.contacts.clone(), relays };
        membership.save(home)?;
        if !admission.successions.is_empty() {
            let gate = membership.gate(home)?;
            for succession in &admission.successions {
                gate.revoke(succession.clone()).or_fail("usage", "paste all of the line")?;
            }
            super::authority::keep_revocations(home, &gate)?;
        }
        Ok(membership)
    }

    /// Forgets the swarm of this machine, also where what is kept of it is damaged: its name, if it can be read. `end`: also the
    /// root key that is here, of this swarm or an earlier one.
    pub(crate) fn leave(home: &Home, end: bool) -> Result<Option<String>, Failure> {
        let (here, root) = (home.path(MEMBERSHIP).exists(), RootKept::of(home)?.is_some());
        if !(here || root && end) {
            return Self::open(home).map(|membership| Some(membership.swarm));
        }
        let swarm = Self::find(home).ok().flatten().map(|membership| membership.swarm);
        let elsewhere = root && !end && matches!(SwarmRoot::is_here(home), Ok(false));
        if root && !elsewhere && !end {
            let message = "this swarm was made here: without its root key nobody can be let in any more";
            return Err(Failure::new("root_here", message, "potluck swarm leave --end, if that is what you want"));
        }
        if end {
            Invitations::forget(home)?;
            RootKept::remove_all(home)?;
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

    /// Keeps where members are now that were heard of, where that is new: whoever has let this machine in may be gone next time.
    pub(crate) fn heard_of(home: &Home, swarm: &str, members: Vec<PeerAddress>) -> Result<(), Failure> {
        let mut membership = Self::open(home)?;
        // The machine may have joined another swarm since.
        if membership.swarm == swarm && learn(&mut membership.contacts, members, Room::Free) {
            membership.save(home)?;
        }
        Ok(())
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

    /// The swarm's name as a key: the first root's.
    pub(crate) fn id(&self) -> Result<PeerId, Failure> {
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

/// Whose room a member takes that was not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// What is free: those that are known stay, so that nobody with many keys takes the place of all.
    Free,
    /// Also that of whoever offers nothing now.
    OfAbsent,
}

/// Where members are now, as their own offers say; true if that was not known.
pub(crate) fn learn(contacts: &mut Vec<PeerAddress>, known: Vec<PeerAddress>, room: Room) -> bool {
    let mut new = false;
    let present: Vec<_> = known.iter().map(|member| member.peer).collect();
    for member in known {
        let absent = || contacts.iter().position(|contact| !present.contains(&contact.peer));
        let place = match contacts.iter().position(|contact| contact.peer == member.peer) {
            Some(at) if contacts[at] == member => continue,
            Some(at) => Some(at),
            None if contacts.len() < CONTACTS_KEPT => None,
            None => match absent().filter(|_| room == Room::OfAbsent) {
                Some(at) => Some(at),
                None => continue,
            },
        };
        match place {
            Some(at) => contacts[at] = member,
            None => contacts.push(member),
        }
        new = true;
    }
    new
}

#[cfg(test)]
mod tests {
    use potluck_core::SecretKey;

    use super::*;

    fn member(n: u8, port: u16) -> PeerAddress {
        let peer = SecretKey::from_bytes(&[n; 32]).peer_id();
        PeerAddress { peer, addresses: vec![format!("127.0.0.1:{port}")], relay: None }
    }

    #[test]
    fn a_client_keeps_those_whom_it_knows_whoever_else_there_is() {
        let (own, inviter) = (member(0, 1), member(1, 1));
        let mut contacts = vec![own.clone(), inviter.clone()];
        assert!(learn(&mut contacts, (10..100).map(|n| member(n, 1)).collect(), Room::Free));
        assert_eq!((contacts.len(), &contacts[..2]), (CONTACTS_KEPT, &[own, inviter][..]));
        assert!(learn(&mut contacts, vec![member(1, 2)], Room::Free), "it has moved");
        assert!(
            !learn(&mut contacts, vec![member(1, 2), member(200, 1)], Room::Free),
            "nothing new that there is room for"
        );
    }

    #[test]
    fn who_was_heard_of_is_kept_and_who_offers_nothing_makes_room() {
        let mut contacts = vec![member(1, 1)];
        assert!(learn(&mut contacts, vec![member(1, 2), member(2, 1)], Room::OfAbsent));
        assert_eq!(contacts, [member(1, 2), member(2, 1)]);
        assert!(!learn(&mut contacts, vec![member(2, 1)], Room::OfAbsent), "nothing new");
        let many: Vec<_> = (10..100).map(|n| member(n, 1)).collect();
        assert!(learn(&mut contacts, many.clone(), Room::OfAbsent));
        assert_eq!(contacts.len(), CONTACTS_KEPT);
        assert!(contacts.iter().all(|contact| many.contains(contact)), "both were away");
        assert!(!learn(&mut contacts, many, Room::OfAbsent), "those that are there stay");
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
