//! What has been taken back: whom a gate lets in no longer, whatever they show.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use potluck_core::{Defence, PeerId, Revocation, RevocationError, Revoked, SignedRevocation, Succession};
use potluck_wire::SUCCESSIONS_MAX;

use crate::{
    Chain, GrantError, GrantId, Right, Role, Taken,
    succession::{Heard, PAGES_MAX, Roots},
};

/// Revocations that are kept of others than the root. A further one is refused: the swarm's root has to be renewed long before.
pub const REVOCATIONS_MAX: usize = 16_384;

/// The same of the root: what it has taken back has room on the pages of the next one, whoever may have its key.
const ROOT_MAX: usize = REVOCATIONS_MAX / 2;

/// All of them, and the successions and the pages of new roots.
pub const STATEMENTS_MAX: usize = REVOCATIONS_MAX + ROOT_MAX + PAGES_MAX as usize + 2 * SUCCESSIONS_MAX;

/// The same of those who are no operators: they leave room to those who are.
const HOLDERS_MAX: usize = REVOCATIONS_MAX / 2;

/// The same of one that the root let in and of all that it has handed on to: new keys give nobody more room.
const SIGNER_MAX: usize = 1_024;

/// What a signer's word is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// Against chains that it stands in, above what it takes back.
    Holder,
    /// Against all but owners.
    Operator,
    /// Against all.
    Root,
}

#[derive(Debug, Clone)]
struct Kept {
    weight: Weight,
    signed: SignedRevocation,
    /// When it was said, by its signer's clock (UTC seconds).
    at: u64,
    /// By whose leave; none where a root signs.
    leave: Option<Leave>,
    /// Its number in the order in which they came.
    came: u64,
}

/// The first link of a signer's grant.
#[derive(Debug, Clone, Copy)]
struct Leave {
    root: PeerId,
    link: GrantId,
    holder: PeerId,
}

impl Kept {
    /// In whose room it is.
    fn first(&self, by: PeerId) -> PeerId {
        self.leave.map_or(by, |leave| leave.holder)
    }
}

/// All that a peer knows to be taken back, and which root may say so.
#[derive(Debug)]
pub(crate) struct Revocations {
    roots: Roots,
    signed: BTreeMap<(Revoked, PeerId), Kept>,
    /// How many have come so far.
    came: u64,
    /// By the holder of the first link of the signer's grant.
    by_signer: BTreeMap<PeerId, usize>,
    /// Of those who are no operators.
    holders: usize,
    digest: [u8; 32],
}

impl Revocations {
    /// Of the swarm that is named after this root.
    pub(crate) fn new(first: PeerId) -> Self {
        let (signed, by_signer) = (BTreeMap::new(), BTreeMap::new());
        Self { roots: Roots::new(first), signed, came: 0, by_signer, holders: 0, digest: [0; 32] }
    }

    /// The swarm's roots.
    pub(crate) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Takes note of one; whether it is new.
    ///
    /// # Errors
    /// `Unreadable` where it is none of this swarm; what is wrong with its signer's grant; `TooMany` where there is no room: the root
    /// has some that nobody else takes.
    pub(crate) fn note(&mut self, signed: SignedRevocation) -> Result<bool, GrantError> {
        let unreadable = |error: RevocationError| GrantError::Unreadable(error.to_string());
        let said = signed.verify(self.roots.first()).map_err(unreadable)?;
        let place = (said.what, said.by);
        match said.what {
            Revoked::Key(_) | Revoked::Link(_) => {}
            Revoked::Root(by) => {
                return match self.roots.follow(said.by, by)? {
                    Heard::Known => Ok(false),
                    Heard::Followed | Heard::Rival => {
                        self.keep(place, Kept { weight: Weight::Root, signed, at: said.at, leave: None, came: 0 });
                        self.forget_superseded();
                        Ok(true)
                    }
                };
            }
            Revoked::Renewed { page, .. } => {
                let renewals = signed.renewals().map_err(unreadable)?;
                let new = self.roots.renew(said.by, page, &renewals)?;
                if new {
                    self.keep(place, Kept { weight: Weight::Root, signed, at: said.at, leave: None, came: 0 });
                    self.forget_superseded();
                }
                return Ok(new);
            }
        }
        let (weight, leave) = self.weight(&said, &signed.beside)?;
        if self.signed.get(&place).is_some_and(|known| known.weight >= weight) {
            return Ok(false);
        }
        let kept = Kept { weight, signed, at: said.at, leave, came: 0 };
        let count = |by: PeerId| self.by_signer.get(&by).copied().unwrap_or(0);
        let full = match weight {
            Weight::Root => count(said.by) >= ROOT_MAX,
            Weight::Operator | Weight::Holder => {
                count(kept.first(said.by)) >= SIGNER_MAX
                    || self.signed.len() - count(self.roots.present()) >= REVOCATIONS_MAX
                    || (weight == Weight::Holder && self.holders >= HOLDERS_MAX)
            }
        };
        if full {
            return Err(GrantError::TooMany);
        }
        self.keep(place, kept);
        Ok(true)
    }

    fn keep(&mut self, place: (Revoked, PeerId), kept: Kept) {
        self.came += 1;
        self.put(place, Kept { came: self.came, ..kept });
    }

    fn put(&mut self, place: (Revoked, PeerId), kept: Kept) {
        self.remove(place);
        *self.by_signer.entry(kept.first(place.1)).or_default() += 1;
        self.holders += usize::from(kept.weight == Weight::Holder);
        self.sum(place, kept.weight);
        self.signed.insert(place, kept);
    }

    fn remove(&mut self, place: (Revoked, PeerId)) {
        let Some(kept) = self.signed.remove(&place) else { return };
        if let Entry::Occupied(mut count) = self.by_signer.entry(kept.first(place.1)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.holders -= usize::from(kept.weight == Weight::Holder);
        self.sum(place, kept.weight);
    }

    /// The same set has the same digest, in whichever order it came. Who may revoke could make two sets alike, and gain nothing.
    fn sum(&mut self, place: (Revoked, PeerId), weight: Weight) {
        // A second successor tells who knows of it from nobody: the first one differs where it matters.
        if matches!(place.0, Revoked::Root(by) if self.roots.rivals().any(|rival| rival == (place.1, by))) {
            return;
        }
        let one = blake3::hash(&[place_bytes(place), vec![weight as u8]].concat());
        self.digest.iter_mut().zip(one.as_bytes()).for_each(|(sum, byte)| *sum ^= byte);
    }

    /// Forgets what earlier roots and those whom the present one does not know have said: what of it stands is on the present root's pages.
    /// Where those have days of grace, what they said counts below them, as what they hand on does.
    fn forget_superseded(&mut self) {
        let (mut over, mut lighter) = (Vec::new(), Vec::new());
        for (place, kept) in &self.signed {
            let leave = kept.leave.filter(|_| !matches!(place.0, Revoked::Root(_)));
            match leave {
                Some(leave) if self.roots.ends(leave.root, leave.link, kept.at) => over.push(*place),
                Some(leave) if kept.weight == Weight::Operator && self.roots.has_grace(leave.root, leave.link) => {
                    lighter.push((*place, Kept { weight: Weight::Holder, ..kept.clone() }));
                }
                None if !matches!(place.0, Revoked::Root(_)) && self.roots.is_over(place.1) => over.push(*place),
                _ => {}
            }
        }
        over.into_iter().for_each(|place| self.remove(place));
        lighter.into_iter().for_each(|(place, kept)| self.put(place, kept));
    }

    /// What it is worth, and by whose leave it was said, where it is not the root's.
    fn weight(&self, said: &Revocation, grant: &[u8]) -> Result<(Weight, Option<Leave>), GrantError> {
        if said.by == self.roots.present() {
            return Ok((Weight::Root, None));
        }
        // Anybody can make keys, and sign with them.
        let chain = Chain::read(grant, self.roots.all())?;
        if chain.holder() != said.by {
            return Err(GrantError::NotAdmitted(said.by));
        }
        // What was said while the grant held stands, also when the grant is over; not when it was taken back.
        let (from, until) = chain.scope.time();
        if !(from..=until).contains(&said.at) {
            return Err(GrantError::Expired { at: until });
        }
        if let Some(what) = self.ends(&chain) {
            return Err(GrantError::Revoked(Taken(what)));
        }
        let (root, first) = (chain.root, &chain.links[0]);
        let leave = Leave { root, link: first.id, holder: first.holder };
        if self.roots.ends(root, first.id, said.at) {
            return Err(GrantError::Superseded);
        }
        // Days of grace let in; they take nothing back but what rests on them.
        let operator = (chain.scope.rights().contains(&Right::Revoke) && !self.roots.has_grace(root, first.id))
            || !Defence::RevokerRights.stands();
        Ok((if operator { Weight::Operator } else { Weight::Holder }, Some(leave)))
    }

    /// What leads to the present root.
    pub(crate) fn successions(&self) -> Vec<SignedRevocation> {
        let rivals: Vec<_> = self.roots.rivals().collect();
        let mut found: Vec<_> = self
            .signed
            .iter()
            .filter(|((what, by), _)| matches!(what, Revoked::Root(to) if !rivals.contains(&(*by, *to))))
            .map(|(_, kept)| (kept.came, kept.signed.clone()))
            .collect();
        found.sort_by_key(|(came, _)| *came);
        found.into_iter().map(|(_, signed)| signed).collect()
    }

    /// What the roots have taken back, which a new one lets stand.
    pub(crate) fn by_roots(&self) -> BTreeSet<Revoked> {
        let said = self.signed.iter().filter(|(_, kept)| kept.weight == Weight::Root).map(|((what, _), _)| *what);
        said.chain(self.roots.all_revoked()).filter(|what| matches!(what, Revoked::Key(_) | Revoked::Link(_))).collect()
    }

    /// Whether that key was taken back by the root or by an operator, whatever it holds.
    pub(crate) fn ends_key(&self, peer: PeerId) -> Option<Revoked> {
        let what = Revoked::Key(peer);
        if self.roots.revoked(what) {
            return Some(what);
        }
        let by_anybody = (what, PeerId::from_bytes([0; 32]))..=(what, PeerId::from_bytes([255; 32]));
        self.signed.range(by_anybody).any(|(_, kept)| kept.weight != Weight::Holder).then_some(what)
    }

    /// Of what and by whom, over all of them.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// All of them, in the order in which they came: what an operator said before it was shut out is heard before that.
    pub(crate) fn all(&self) -> Vec<SignedRevocation> {
        let mut all: Vec<_> = self.signed.values().collect();
        all.sort_by_key(|kept| kept.came);
        all.into_iter().map(|kept| kept.signed.clone()).collect()
    }

    /// Whether something that the chain rests on was taken back by whoever may: the root, an operator, or a key above it in this
    /// chain. A key may give up its own grants.
    pub(crate) fn ends(&self, chain: &Chain) -> Option<Revoked> {
        if self.signed.is_empty() {
            return None;
        }
        let owner = chain.links.first().is_some_and(|link| link.caveats.role == Some(Role::Owner));
        let mut above = BTreeSet::new();
        for link in &chain.links {
            above.insert(link.holder);
            for what in [Revoked::Key(link.holder), Revoked::Link(*link.id.as_bytes())] {
                let by_anybody = (what, PeerId::from_bytes([0; 32]))..=(what, PeerId::from_bytes([255; 32]));
                let counts = |weight: Weight, by: PeerId| match weight {
                    Weight::Root => true,
                    Weight::Operator => !owner || above.contains(&by),
                    Weight::Holder => above.contains(&by),
                };
                let said = || self.signed.range(by_anybody).any(|((_, by), kept)| counts(kept.weight, *by));
                if self.roots.revoked(what) || said() {
                    return Some(what);
                }
            }
        }
        None
    }
}

fn place_bytes((what, by): (Revoked, PeerId)) -> Vec<u8> {
    let what: &[u8] = match &what {
        Revoked::Key(peer) => peer.as_bytes(),
        Revoked::Link(id) => id,
        Revoked::Root(Succession { next, pages, until }) => {
            return [&next.as_bytes()[..], &pages.to_le_bytes(), &until.to_le_bytes(), by.as_bytes()].concat();
        }
        Revoked::Renewed { page, hash } => return [&page.to_le_bytes()[..], hash, by.as_bytes()].concat(),
    };
    [what, by.as_bytes()].concat()
}
