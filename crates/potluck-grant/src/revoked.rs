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

/// The same of roots: what they have taken back has room on the pages of the next one, whoever may have its key.
const ROOT_MAX: usize = REVOCATIONS_MAX / 2;

/// All of them, and the successions and the pages of new roots.
pub const STATEMENTS_MAX: usize = REVOCATIONS_MAX + ROOT_MAX + GRACE_MAX + PAGES_MAX as usize + 2 * SUCCESSIONS_MAX;

/// The same of those who are no operators: they leave room to those who are.
const HOLDERS_MAX: usize = REVOCATIONS_MAX / 2;

/// The same of those whose grants hold by days of grace alone: they have room of their own, and leave the others theirs.
const GRACE_MAX: usize = 1_024;

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
    /// Its signer's grant holds by days of grace alone.
    graced: bool,
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
    /// What leads to a root.
    fn for_root(signed: SignedRevocation, at: u64) -> Self {
        Self { weight: Weight::Root, signed, at, leave: None, graced: false, came: 0 }
    }
}

/// How many are kept, by whose room they take.
#[derive(Debug, Default)]
struct Counts {
    /// By the holder of the first link of the signer's grant.
    by_signer: BTreeMap<PeerId, usize>,
    roots: usize,
    operators: usize,
    holders: usize,
    graced: usize,
}

impl Counts {
    /// Where one of that kind is counted; none for what leads to a root, which is bounded otherwise.
    fn of(&mut self, what: Revoked, kept: &Kept) -> Option<&mut usize> {
        match (what, kept.weight) {
            (Revoked::Root(_) | Revoked::Renewed { .. }, _) => None,
            _ if kept.graced => Some(&mut self.graced),
            (_, Weight::Root) => Some(&mut self.roots),
            (_, Weight::Operator) => Some(&mut self.operators),
            (_, Weight::Holder) => Some(&mut self.holders),
        }
    }

    fn is_full(&self, kept: &Kept) -> bool {
        let Some(leave) = kept.leave else { return self.roots >= ROOT_MAX };
        let of_signer = self.by_signer.get(&leave.holder).copied().unwrap_or(0);
        of_signer >= SIGNER_MAX
            || if kept.graced {
                self.graced >= GRACE_MAX
            } else {
                self.operators + self.holders >= REVOCATIONS_MAX
                    || (kept.weight == Weight::Holder && self.holders >= HOLDERS_MAX)
            }
    }
}

/// All that a peer knows to be taken back, and which root may say so.
#[derive(Debug)]
pub(crate) struct Revocations {
    roots: Roots,
    signed: BTreeMap<(Revoked, PeerId), Kept>,
    /// How many have come so far.
    came: u64,
    counts: Counts,
    digest: [u8; 32],
}

impl Revocations {
    /// Of the swarm that is named after this root.
    pub(crate) fn new(first: PeerId) -> Self {
        Self { roots: Roots::new(first), signed: BTreeMap::new(), came: 0, counts: Counts::default(), digest: [0; 32] }
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
                        self.keep(place, Kept::for_root(signed, said.at));
                        self.forget_superseded();
                        Ok(true)
                    }
                };
            }
            Revoked::Renewed { page, .. } => {
                let renewals = signed.renewals().map_err(unreadable)?;
                let new = self.roots.renew(said.by, page, &renewals)?;
                if new {
                    self.keep(place, Kept::for_root(signed, said.at));
                    self.forget_superseded();
                }
                return Ok(new);
            }
        }
        let (weight, leave) = self.weight(&said, &signed.beside)?;
        if self.signed.get(&place).is_some_and(|known| known.weight >= weight) {
            return Ok(false);
        }
        let graced = leave.is_some_and(|leave| self.roots.has_grace(leave.root, leave.link));
        let kept = Kept { weight, signed, at: said.at, leave, graced, came: 0 };
        // Of those with grace the same ones are kept in whichever order they come: or who compares digests would ask again and again.
        let last = (kept.graced && self.counts.graced >= GRACE_MAX)
            .then(|| self.signed.iter().rev().find(|(_, kept)| kept.graced).map(|(place, _)| *place))
            .flatten()
            .filter(|last| place < *last);
        let way_made = last.and_then(|last| Some((last, self.remove(last)?)));
        if self.counts.is_full(&kept) {
            way_made.into_iter().for_each(|(last, kept)| self.put(last, kept));
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
        if let Some(leave) = kept.leave {
            *self.counts.by_signer.entry(leave.holder).or_default() += 1;
        }
        self.counts.of(place.0, &kept).into_iter().for_each(|count| *count += 1);
        self.sum(place, &kept);
        self.signed.insert(place, kept);
    }

    fn remove(&mut self, place: (Revoked, PeerId)) -> Option<Kept> {
        let kept = self.signed.remove(&place)?;
        if let Some(leave) = kept.leave
            && let Entry::Occupied(mut count) = self.counts.by_signer.entry(leave.holder)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.counts.of(place.0, &kept).into_iter().for_each(|count| *count -= 1);
        self.sum(place, &kept);
        Some(kept)
    }

    /// The same set has the same digest, in whichever order it came. Who may revoke could make two sets alike, and gain nothing.
    fn sum(&mut self, place: (Revoked, PeerId), kept: &Kept) {
        // A second successor tells who knows of it from nobody: the first one differs where it matters.
        if matches!(place.0, Revoked::Root(by) if self.roots.rivals().any(|rival| rival == (place.1, by))) {
            return;
        }
        let one = blake3::hash(&[place_bytes(place), vec![kept.weight as u8]].concat());
        self.digest.iter_mut().zip(one.as_bytes()).for_each(|(sum, byte)| *sum ^= byte);
    }

    /// Forgets what earlier roots and those whom the present one does not know have said: what of it stands is on the present root's pages.
    /// Where those have days of grace, what they said counts below them, as what they hand on does.
    fn forget_superseded(&mut self) {
        let (mut over, mut graced, mut adopted) = (Vec::new(), Vec::new(), Vec::new());
        for (place, kept) in &self.signed {
            match (kept.leave, place.0) {
                (_, Revoked::Root(_)) => {}
                (Some(leave), _) if self.roots.ends(leave.root, leave.link, kept.at) => over.push(*place),
                (Some(leave), _) if !kept.graced && self.roots.has_grace(leave.root, leave.link) => {
                    graced.push((*place, Kept { weight: Weight::Holder, graced: true, ..kept.clone() }));
                }
                (Some(leave), _) if kept.graced && !self.roots.has_grace(leave.root, leave.link) => {
                    adopted.push(*place)
                }
                (None, _) if self.roots.is_over(place.1) => over.push(*place),
                _ => {}
            }
        }
        over.into_iter().for_each(|place| drop(self.remove(place)));
        for (place, kept) in graced {
            self.remove(place);
            if !self.counts.is_full(&kept) {
                self.put(place, kept);
            }
        }
        // What a later root has adopted after all counts as it did before.
        for place in adopted {
            if let Some(kept) = self.remove(place) {
                let _ = self.note(kept.signed);
            }
        }
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
