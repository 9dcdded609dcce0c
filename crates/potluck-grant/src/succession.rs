//! Which root signs for the swarm: the first one, and those that followed it.
//!
//! A root names the next one (a succession), and the next one says on pages what stands of what was before. A succession counts for
//! grants of the new root at once, and against those of the earlier ones as soon as all of its pages are known: until then, whoever
//! has heard half of it goes on as before.

use std::collections::{BTreeMap, BTreeSet};

use potluck_core::{Defence, PeerId, Renewal, Revoked, Succession};
use potluck_wire::SUCCESSIONS_MAX;

use crate::{GrantError, GrantId, chain::public_key};

/// Pages on which a new root says what stands. A succession that names more is refused.
pub(crate) const PAGES_MAX: u16 = 512;

/// A root that was followed by another.
#[derive(Debug, Clone, Copy)]
struct Followed {
    root: PeerId,
    by: Succession,
}

/// What a new root lets stand.
#[derive(Debug, Default)]
struct Standing {
    pages: BTreeSet<u16>,
    adopted: BTreeSet<[u8; 16]>,
    revoked: BTreeSet<Revoked>,
}

/// The roots of a swarm, the first one's successors in their order.
#[derive(Debug)]
pub(crate) struct Roots {
    first: PeerId,
    followed: Vec<Followed>,
    /// What the present root lets stand, as far as it is known.
    coming: Standing,
    /// The same, once all of it is known: of the root with that number, the first one being 0.
    counts: (usize, Standing),
    /// Roots that named another successor later.
    rivals: BTreeMap<PeerId, Succession>,
}

/// What a succession is to whoever hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The next root's.
    Followed,
    /// Known already.
    Known,
    /// Another one of a root that has a successor: it replaces nothing.
    Rival,
}

impl Roots {
    pub(crate) fn new(first: PeerId) -> Self {
        let (followed, rivals) = (Vec::new(), BTreeMap::new());
        Self { first, followed, coming: Standing::default(), counts: (0, Standing::default()), rivals }
    }

    /// All of them, the present one first.
    pub(crate) fn all(&self) -> impl Iterator<Item = PeerId> {
        self.followed.iter().rev().map(|followed| followed.by.next).chain([self.first])
    }

    /// The one that the swarm is named after.
    pub(crate) fn first(&self) -> PeerId {
        self.first
    }

    /// The one that signs now.
    pub(crate) fn present(&self) -> PeerId {
        self.followed.last().map_or(self.first, |followed| followed.by.next)
    }

    /// Its number, the first one being 0.
    fn number(&self, root: PeerId) -> Option<usize> {
        let followed = self.followed.iter().position(|followed| followed.root == root);
        followed.or_else(|| (root == self.present()).then_some(self.followed.len()))
    }

    /// Roots that named a second successor, and which.
    pub(crate) fn rivals(&self) -> impl Iterator<Item = (PeerId, Succession)> {
        self.rivals.iter().map(|(root, rival)| (*root, *rival))
    }

    /// Notes who signs in that root's place, as the root itself has signed.
    ///
    /// # Errors
    /// `NotOurs` for a root that is none of this swarm; `Unreadable` where the next one cannot be it; `TooMany`.
    pub(crate) fn follow(&mut self, root: PeerId, by: Succession) -> Result<Heard, GrantError> {
        if let Some(known) = self.followed.iter().find(|followed| followed.root == root) {
            if known.by == by || self.rivals.contains_key(&root) {
                return Ok(Heard::Known);
            }
            self.rivals.insert(root, by);
            return Ok(Heard::Rival);
        }
        if root != self.present() {
            return Err(GrantError::NotOurs("a succession of no root of it".into()));
        }
        if self.followed.len() >= SUCCESSIONS_MAX {
            return Err(GrantError::TooMany);
        }
        if by.pages > PAGES_MAX || self.number(by.next).is_some() || public_key(by.next).is_none() {
            return Err(GrantError::Unreadable("a succession that leads nowhere".into()));
        }
        self.followed.push(Followed { root, by });
        self.coming = Standing::default();
        self.count();
        Ok(Heard::Followed)
    }

    /// Notes a page of what the present root lets stand; whether it is new.
    ///
    /// # Errors
    /// `NotOurs` for a page of another root; `Unreadable` for one that the succession does not name.
    pub(crate) fn renew(&mut self, root: PeerId, page: u16, renewals: &[Renewal]) -> Result<bool, GrantError> {
        let Some(last) = self.followed.last().filter(|last| last.by.next == root) else {
            return Err(GrantError::NotOurs("a page of what another root lets stand".into()));
        };
        if page >= last.by.pages {
            return Err(GrantError::Unreadable("a page that the succession does not name".into()));
        }
        if !self.coming.pages.insert(page) {
            return Ok(false);
        }
        for renewal in renewals {
            match *renewal {
                Renewal::Adopted(id) => drop(self.coming.adopted.insert(id)),
                Renewal::Key(key) => drop(self.coming.revoked.insert(Revoked::Key(key))),
                Renewal::Link(id) => drop(self.coming.revoked.insert(Revoked::Link(id))),
            }
        }
        self.count();
        Ok(true)
    }

    /// Lets the present root's succession count, where all of it is known.
    fn count(&mut self) {
        let number = self.followed.len();
        let all = self.followed.last().is_some_and(|last| self.coming.pages.len() == usize::from(last.by.pages));
        if all && self.counts.0 < number {
            self.counts = (number, std::mem::take(&mut self.coming));
            // A page that comes again is no new one.
            self.coming.pages.clone_from(&self.counts.1.pages);
        }
    }

    /// The number of the one that signs now.
    pub(crate) fn number_of_present(&self) -> usize {
        self.followed.len()
    }

    /// What the present root has adopted.
    pub(crate) fn adopted(&self) -> impl Iterator<Item = [u8; 16]> {
        self.counts.1.adopted.iter().copied()
    }

    /// The number of the root whose word counts against those before it: it grows as successions are known in full.
    pub(crate) fn counting(&self) -> usize {
        self.counts.0
    }

    /// Whether that root was followed by one whose succession counts.
    pub(crate) fn is_over(&self, root: PeerId) -> bool {
        self.number(root).is_none_or(|number| number < self.counts.0)
    }

    /// Whether the root that signed that first link of a grant signs no longer, and none after it lets it stand at `now` (UTC seconds).
    pub(crate) fn ends(&self, root: PeerId, link: GrantId, now: u64) -> bool {
        let Some(number) = self.number(root) else { return true };
        let followed = self.followed.get(number..self.counts.0).unwrap_or_default();
        let Some(until) = followed.iter().map(|followed| followed.by.until).min() else { return false };
        // Without days of grace it is over at whatever time something claims to have been said.
        (until == 0 || until < now) && !self.counts.1.adopted.contains(link.as_bytes()) && Defence::Succession.stands()
    }

    /// Whether it holds by days of grace alone, for as long as it does.
    pub(crate) fn has_grace(&self, root: PeerId, link: GrantId) -> bool {
        self.ends(root, link, u64::MAX)
    }

    /// Whether a root before the present one had taken that back, and the present one says so.
    pub(crate) fn revoked(&self, what: Revoked) -> bool {
        self.counts.1.revoked.contains(&what)
    }

    /// All of that.
    pub(crate) fn all_revoked(&self) -> impl Iterator<Item = Revoked> {
        self.counts.1.revoked.iter().copied()
    }
}
