//! What a grant allows: a role's rights, narrowed by each link of its chain, never widened.

use std::{collections::BTreeSet, fmt, str::FromStr};

use potluck_core::{Defence, ModelId, PeerId};

use crate::{ByteBudget, GrantError, GrantId, Net, Ports, Reach, reach::ReachScope};

/// One thing that a member may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// Ask what there is: offers, models' headers, who lends.
    Look,
    /// Have work done: open a session, ask an upstream.
    Use,
    /// Fetch models' weights.
    Fetch,
    /// Serve others: make offers, be a peer of a route.
    Lend,
    /// Reach the services that a peer exposes.
    Reach,
    /// Say what others serve.
    Order,
    /// Take back others' grants.
    Revoke,
    /// See who is a member, and what is counted.
    Audit,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Look, Self::Use, Self::Fetch, Self::Lend, Self::Reach, Self::Order, Self::Revoke, Self::Audit];

    /// As it is written, and in a sentence: who may ...
    pub fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Use => "use",
            Self::Fetch => "fetch",
            Self::Lend => "lend",
            Self::Reach => "reach",
            Self::Order => "order",
            Self::Revoke => "revoke",
            Self::Audit => "audit",
        }
    }
}

/// Named sets of rights. A role that is handed on is what both links allow: a member's auditor may look and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything.
    Owner,
    /// Everything as well; an owner is told apart by what only the root can do.
    Operator,
    /// Uses, fetches, lends, and reaches what is exposed.
    Member,
    /// Uses, and no more.
    Guest,
    /// Looks, and sees what is counted.
    Auditor,
}

impl Role {
    /// All of them, the widest first.
    pub const ALL: [Self; 5] = [Self::Owner, Self::Operator, Self::Member, Self::Guest, Self::Auditor];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Operator => "operator",
            Self::Member => "member",
            Self::Guest => "guest",
            Self::Auditor => "auditor",
        }
    }

    /// What it may do.
    pub fn rights(self) -> BTreeSet<Right> {
        let rights: &[Right] = match self {
            Self::Owner | Self::Operator => &Right::ALL,
            Self::Member => &[Right::Look, Right::Use, Right::Fetch, Right::Lend, Right::Reach],
            Self::Guest => &[Right::Look, Right::Use],
            Self::Auditor => &[Right::Look, Right::Audit],
        };
        rights.iter().copied().collect()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let role = Self::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| {
            GrantError::Unreadable(format!("`{}` is no role", text.chars().take(32).collect::<String>()))
        })
    }
}

/// Minutes of the day, UTC, half open; one that ends before it begins goes over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// The first minute.
    pub from: u16,
    /// The first minute after it.
    pub to: u16,
}

/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;

impl Hours {
    /// From one minute of the day to another; none where they are no minutes of a day, or the same.
    pub fn new(from: u16, to: u16) -> Option<Self> {
        (from < DAY_MINUTES && to <= DAY_MINUTES && from != to).then_some(Self { from, to })
    }

    /// Whether that UTC second is within.
    pub fn hold(self, utc: u64) -> bool {
        let minute = (utc / 60 % u64::from(DAY_MINUTES)) as u16;
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from, self.to);
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl FromStr for Hours {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let minute = |text: &str| {
            let (hour, minute) = text.split_once(':')?;
            let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
            (hour <= 24 && minute < 60).then_some(hour * 60 + minute)
        };
        let hours = text.split_once('-').and_then(|(from, to)| Self::new(minute(from)?, minute(to)?));
        hours.ok_or_else(|| GrantError::Unreadable("hours are written as 18:00-23:30, in UTC".into()))
    }
}

/// What one link of a grant's chain says: each may only narrow what the links before it allow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caveats {
    /// No more than this role may.
    pub role: Option<Role>,
    /// UTC seconds before which it is worth nothing.
    pub from: Option<u64>,
    /// UTC seconds after which it is worth nothing.
    pub until: Option<u64>,
    /// Only in these minutes of each day.
    pub hours: Option<Hours>,
    /// Only these models; empty: no further limit.
    pub models: BTreeSet<ModelId>,
    /// Only at these peers; empty: no further limit.
    pub peers: BTreeSet<PeerId>,
    /// Positions that each peer computes under it in a UTC day, all that it was handed on to together.
    pub tokens_per_day: Option<u64>,
    /// How often it may be handed on from here.
    pub hand_on: Option<u8>,
    /// Only these ports of services; empty: no further limit. With a role that reaches nothing by itself, what lets it reach
    /// these, and no others.
    pub ports: BTreeSet<Ports>,
    /// Only services in these networks; empty: no further limit, or, with such a role, the peer's own loopback.
    pub nets: BTreeSet<Net>,
    /// Bytes a UTC day to and from services of each peer, all that it was handed on to together.
    pub bytes_per_day: Option<u64>,
    /// Work under it waits for others' where both wait for the same.
    pub yields: bool,
}

impl Caveats {
    /// What a role allows here. One that reaches nothing by itself reaches the services that are named beside it: of those
    /// that the links before it allow.
    fn rights(&self, role: Role) -> BTreeSet<Right> {
        let mut rights = role.rights();
        if !self.ports.is_empty() || !self.nets.is_empty() {
            rights.insert(Right::Reach);
        }
        rights
    }

    /// Whether its role reaches nothing by itself.
    fn reaches_by_name(&self) -> bool {
        self.role.is_some_and(|role| !role.rights().contains(&Right::Reach))
    }
}

/// What a chain of links allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub(crate) rights: BTreeSet<Right>,
    pub(crate) from: u64,
    pub(crate) until: u64,
    pub(crate) hours: Vec<Hours>,
    pub(crate) models: Option<BTreeSet<ModelId>>,
    pub(crate) peers: Option<BTreeSet<PeerId>>,
    pub(crate) budgets: Vec<Budget>,
    pub(crate) hand_on: Option<u8>,
    pub(crate) reach: ReachScope,
    pub(crate) yields: bool,
}

/// A limit that is counted: of this link, whoever holds what it was handed on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The link that set it.
    pub link: GrantId,
    /// Positions in a UTC day.
    pub tokens_per_day: u64,
}

/// What is asked for, as far as a grant says something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// What kind of thing.
    pub right: Right,
    /// With which model, where it is one model's matter.
    pub model: Option<ModelId>,
}

/// Where and when something is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The peer that is asked.
    pub peer: PeerId,
    /// UTC seconds there.
    pub now: u64,
}

impl Scope {
    /// What the root's own link allows: nothing that it does not name a role and an end for.
    pub(crate) fn of_root(caveats: &Caveats, link: GrantId) -> Result<Self, GrantError> {
        let missing = |what: &str| GrantError::Unreadable(format!("the root's link names no {what}"));
        let role = caveats.role.ok_or_else(|| missing("role"))?;
        let until = caveats.until.ok_or_else(|| missing("end"))?;
        let mut scope = Self {
            rights: caveats.rights(role),
            from: 0,
            until,
            hours: Vec::new(),
            models: None,
            peers: None,
            budgets: Vec::new(),
            hand_on: None,
            reach: ReachScope::default(),
            yields: false,
        };
        scope.narrow(caveats, link);
        scope.reach.link_local = caveats.nets.iter().filter(|net| net.is_link_local()).copied().collect();
        Ok(scope)
    }

    /// Takes away what the next link takes away. Nothing that is written in a link adds anything.
    pub(crate) fn narrow(&mut self, caveats: &Caveats, link: GrantId) {
        if let Some(role) = caveats.role {
            let allowed = caveats.rights(role);
            match Defence::Narrowing.stands() {
                true => self.rights.retain(|right| allowed.contains(right)),
                false => self.rights = allowed,
            }
        }
        self.from = self.from.max(caveats.from.unwrap_or(0));
        self.until = self.until.min(caveats.until.unwrap_or(u64::MAX));
        self.hours.extend(caveats.hours);
        narrow_to(&mut self.models, &caveats.models);
        narrow_to(&mut self.peers, &caveats.peers);
        self.budgets.extend(caveats.tokens_per_day.map(|tokens_per_day| Budget { link, tokens_per_day }));
        self.hand_on = match (self.hand_on, caveats.hand_on) {
            (Some(left), Some(now)) => Some(left.min(now)),
            (left, now) => left.or(now),
        };
        self.yields |= caveats.yields;
        self.reach.narrow(&caveats.ports, &caveats.nets, caveats.reaches_by_name());
        self.reach.budgets.extend(caveats.bytes_per_day.map(|bytes_per_day| ByteBudget { link, bytes_per_day }));
    }

    /// One link further, if the links before it allow one.
    pub(crate) fn hand_on(&mut self) -> Result<(), GrantError> {
        self.hand_on = match self.hand_on {
            Some(0) if Defence::HandOn.stands() => return Err(GrantError::HandedOn),
            left => left.map(|left| left.saturating_sub(1)),
        };
        Ok(())
    }

    /// What may be done at all.
    pub fn rights(&self) -> &BTreeSet<Right> {
        &self.rights
    }

    /// UTC seconds from which, and until which it holds.
    pub fn time(&self) -> (u64, u64) {
        (self.from, self.until)
    }

    /// The minutes of the day in which it holds: all of these at once.
    pub fn hours(&self) -> &[Hours] {
        &self.hours
    }

    /// With which models; `None`: with any.
    pub fn models(&self) -> Option<&BTreeSet<ModelId>> {
        self.models.as_ref()
    }

    /// At which peers; `None`: at any.
    pub fn peers(&self) -> Option<&BTreeSet<PeerId>> {
        self.peers.as_ref()
    }

    /// What is counted.
    pub fn budgets(&self) -> &[Budget] {
        &self.budgets
    }

    /// Which ports of services it reaches: all of these sets at once.
    pub fn ports(&self) -> &[BTreeSet<Ports>] {
        &self.reach.ports
    }

    /// In which networks: all of these sets at once.
    pub fn nets(&self) -> &[BTreeSet<Net>] {
        &self.reach.nets
    }

    /// What is counted of the bytes to and from services.
    pub fn byte_budgets(&self) -> &[ByteBudget] {
        &self.reach.budgets
    }

    /// How often it may be handed on; `None`: as often as a grant has room for.
    pub fn hand_ons(&self) -> Option<u8> {
        self.hand_on
    }

    /// Whether work under it waits for others' where both wait for the same.
    pub fn yields(&self) -> bool {
        self.yields
    }

    /// Whether it holds then.
    pub(crate) fn in_time(&self, now: u64) -> Result<(), GrantError> {
        if now > self.until && Defence::GrantTime.stands() {
            return Err(GrantError::Expired { at: self.until });
        }
        if now < self.from && Defence::GrantTime.stands() {
            return Err(GrantError::NotYet { from: self.from });
        }
        match self.hours.iter().find(|hours| !hours.hold(now)) {
            Some(hours) if Defence::GrantHours.stands() => Err(GrantError::OutOfHours(*hours)),
            _ => Ok(()),
        }
    }

    /// Whether it allows that, there and then.
    pub(crate) fn allows(&self, need: Need, place: Place) -> Result<(), GrantError> {
        self.in_time(place.now)?;
        if self.peers.as_ref().is_some_and(|peers| !peers.contains(&place.peer)) && Defence::GrantPeers.stands() {
            return Err(GrantError::NotHere(place.peer));
        }
        if !self.rights.contains(&need.right) && Defence::Rights.stands() {
            return Err(GrantError::NoRight(need.right));
        }
        match (&self.models, need.model) {
            (Some(models), Some(model)) if !models.contains(&model) && Defence::GrantModels.stands() => {
                Err(GrantError::NotThisModel(model))
            }
            _ => Ok(()),
        }
    }

    /// Whether it allows to reach that.
    pub(crate) fn reaches(&self, reach: Reach) -> Result<(), GrantError> {
        if Defence::TunnelGrant.stands() { self.reach.allows(reach) } else { Ok(()) }
    }
}

fn narrow_to<T: Ord + Copy>(allowed: &mut Option<BTreeSet<T>>, named: &BTreeSet<T>) {
    if named.is_empty() {
        return;
    }
    *allowed = Some(match allowed.take() {
        Some(allowed) => allowed.intersection(named).copied().collect(),
        None => named.clone(),
    });
}
