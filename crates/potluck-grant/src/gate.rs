//! The check that every connection passes before any work is done for it, and every request once more.

use core::net::IpAddr;
use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use potluck_core::{Defence, ModelId, PeerId, Revoked, SignedRevocation, Succession};
use potluck_wire::{GRANT_BYTES_MAX, Service};

use crate::{
    Chain, GrantId, Hours, Lending, Need, Place, Reach, Right, SwarmId, chain::LINKS_MAX, revoked::Revocations,
};

/// A member of the swarm, as its connection's key and a valid grant have proven. Only [`Gate::check`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    peer: PeerId,
    chain: Arc<Chain>,
}

impl Member {
    /// Its key.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The grant that it has shown.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// What is asked of a peer, as far as grants say something about it.
pub trait Request {
    /// What it takes.
    fn needs(&self) -> Need;

    /// What it reaches, where it is about a service.
    fn reaches(&self) -> Option<Reach> {
        None
    }
}

/// A request that its sender may make, there and then. Only [`Gate::authorize`] makes one: who serves takes this, so that
/// forgetting the check does not compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorized<R> {
    request: R,
    by: Member,
}

impl<R> Authorized<R> {
    /// Who asks.
    pub fn by(&self) -> &Member {
        &self.by
    }

    /// What is asked.
    pub fn request(&self) -> &R {
        &self.request
    }

    /// Both.
    pub fn into_parts(self) -> (R, Member) {
        (self.request, self.by)
    }
}

/// Whom a swarm lets in. Clones share what they know of revocations.
#[derive(Clone)]
pub struct Gate {
    swarm: SwarmId,
    revoked: Arc<RwLock<Revocations>>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate(of {:?})", self.swarm)
    }
}

/// Why a grant does not let its bearer in, or not do what it asks. The stranger learns no more than that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    /// The bearer: larger than any grant.
    #[error("a grant of {len} bytes; the limit is {max}", max = GRANT_BYTES_MAX)]
    TooLarge {
        /// Its length.
        len: usize,
    },
    /// The bearer: handed on more often than a grant may be.
    #[error("a grant of {0} links; the limit is {LINKS_MAX}")]
    TooLong(usize),
    /// The bearer: not a token, or not signed by this swarm's root.
    #[error("no grant of this swarm: {0}")]
    NotOurs(String),
    /// The bearer: it says what this version does not understand, so that nothing of it counts.
    #[error("the grant cannot be read: {0}")]
    Unreadable(String),
    /// The bearer: somebody has added to the grant who did not hold it.
    #[error("link {0} of the grant is not signed by the holder of the one before")]
    NotHandedOn(usize),
    /// The bearer: the grant may not be handed on so often.
    #[error("the grant was handed on more often than it allows")]
    HandedOn,
    /// The bearer: another key's grant. Hint: ask for one of this key (`potluck swarm grant`).
    #[error("the grant does not admit {}: it names another key", .0.short())]
    NotAdmitted(PeerId),
    /// The bearer: the grant's time is over. Hint: ask for a new one (`potluck swarm grant`).
    #[error("the grant has expired (at {at}, UTC seconds)")]
    Expired {
        /// UTC seconds until which it held.
        at: u64,
    },
    /// The bearer: the grant's time has not come.
    #[error("the grant holds from {from} on (UTC seconds)")]
    NotYet {
        /// UTC seconds.
        from: u64,
    },
    /// The bearer: not at this time of the day.
    #[error("the grant holds during {0} UTC only")]
    OutOfHours(Hours),
    /// The bearer: not at this peer.
    #[error("the grant does not hold at {}", .0.short())]
    NotHere(PeerId),
    /// The bearer: its role does not allow it.
    #[error("the grant does not allow to {}", .0.name())]
    NoRight(Right),
    /// The bearer: not with this model.
    #[error("the grant does not allow model {}", .0.short())]
    NotThisModel(ModelId),
    /// The bearer: not this service.
    #[error("the grant does not allow to reach {}", service_name(*.0))]
    NotThisPort(Service),
    /// The bearer: not there.
    #[error("the grant does not allow to reach {0}")]
    NotThisHost(IpAddr),
    /// The bearer: taken back.
    #[error("revoked: {0}")]
    Revoked(Taken),
    /// The bearer: signed by a root that another has followed, which does not let it stand. Hint: ask for a new one (`potluck swarm grant`).
    #[error("the grant is of an earlier root of the swarm, and the present one does not know it")]
    Superseded,
    /// The bearer: what the grant allows in a day is used up here. Hint: tomorrow (UTC), or at another peer.
    #[error("the {tokens_per_day} tokens a day of grant {link} are used up here")]
    Spent {
        /// Which link of the grant says so.
        link: GrantId,
        /// Positions in a UTC day.
        tokens_per_day: u64,
    },
    /// The bearer: what the grant allows in a day is used up here. Hint: tomorrow (UTC), or at another peer.
    #[error("the {bytes_per_day} bytes a day of grant {link} are used up here")]
    BytesSpent {
        /// Which link of the grant says so.
        link: GrantId,
        /// Bytes in a UTC day.
        bytes_per_day: u64,
    },
    /// Whoever made them: so many revocations of one signer, or limits to count, are not kept.
    #[error("more than is kept of that kind")]
    TooMany,
    /// The operator of the peer: what the grant limits cannot be kept on its disk.
    #[error("what is used of a grant could not be kept: {0}")]
    Uncounted(String),
    /// We: the grant could not be signed.
    #[error("the grant could not be signed: {0}")]
    Unsigned(String),
    /// The user: this is no swarm's id.
    #[error("not a swarm's id: expected 64 hexadecimal digits")]
    NoSwarm,
}

fn service_name(service: Service) -> String {
    match service {
        Service::Tcp(port) => format!("TCP port {port}"),
        Service::Udp(port) => format!("UDP port {port}"),
        Service::Echo => "hosts".into(),
    }
}

/// What of a grant was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken(pub Revoked);

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Revoked::Key(peer) => write!(f, "the key {}", peer.short()),
            Revoked::Link(id) => write!(f, "the grant {}", GrantId::from_bytes(id)),
            Revoked::Root(Succession { next, .. }) => write!(f, "the root, which {} follows", next.short()),
            Revoked::Renewed { .. } => f.write_str("nothing"),
        }
    }
}

impl Gate {
    /// The gate of the swarm that trusts this root.
    pub fn new(swarm: SwarmId) -> Self {
        Self { swarm, revoked: Arc::new(RwLock::new(Revocations::new(swarm.root()))) }
    }

    /// The swarm.
    pub fn swarm(&self) -> SwarmId {
        self.swarm
    }

    /// The root that signs for it now, as far as is known here: the one that the swarm is named after, or the last that followed it.
    pub fn root(&self) -> PeerId {
        self.known().roots().present()
    }

    /// Whether it signs for the swarm, or has signed for it.
    pub fn was_root(&self, root: PeerId) -> bool {
        self.known().roots().all().any(|known| known == root)
    }

    /// What leads from the root that the swarm is named after to the present one: whoever hears of it takes both roots' word.
    pub fn successions(&self) -> Vec<SignedRevocation> {
        self.known().successions()
    }

    /// Roots that named a second successor, and which: whoever has that root's key wants to lead members elsewhere. Whoever has heard of
    /// that one first follows it.
    pub fn rivals(&self) -> Vec<(PeerId, Succession)> {
        self.known().roots().rivals().collect()
    }

    /// All that leads to the present root, and what it lets stand: a gate that is told it, in this order, follows the same one.
    pub fn lineage(&self) -> Vec<SignedRevocation> {
        let swarm = self.swarm.root();
        let of_roots = |signed: &SignedRevocation| {
            signed.verify(swarm).is_ok_and(|said| matches!(said.what, Revoked::Root(_) | Revoked::Renewed { .. }))
        };
        self.revocations().into_iter().filter(of_roots).collect()
    }

    /// The first links of the grants that the present root lets stand, where it follows another.
    pub fn adopted(&self) -> BTreeSet<GrantId> {
        self.known().roots().adopted().map(GrantId::from_bytes).collect()
    }

    /// Whether all is known of what the present root lets stand: from then on what the roots before it sign counts no longer.
    pub fn is_whole(&self) -> bool {
        let known = self.known();
        known.roots().number_of_present() == known.roots().counting()
    }

    /// What roots have taken back, as far as it counts.
    pub fn revoked_by_roots(&self) -> BTreeSet<Revoked> {
        self.known().by_roots()
    }

    fn known(&self) -> RwLockReadGuard<'_, Revocations> {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `grant` admits the peer whose connection has proven the key `holder`, at `now` (UTC seconds). What it may do is
    /// asked for each request ([`authorize`](Self::authorize)).
    ///
    /// # Errors
    /// As [`GrantError`] says; the bytes may come from anybody.
    pub fn check(&self, grant: &[u8], holder: PeerId, now: u64) -> Result<Member, GrantError> {
        let chain = self.read(grant)?;
        if chain.holder() != holder && Defence::GrantHolder.stands() {
            return Err(GrantError::NotAdmitted(holder));
        }
        let member = Member { peer: holder, chain: Arc::new(chain) };
        self.still(&member, now)?;
        Ok(member)
    }

    /// A grant whose signatures are good, whoever shows it and whether or not it holds: to be looked at, not to be let in by.
    ///
    /// # Errors
    /// As [`GrantError`] says.
    pub fn read(&self, grant: &[u8]) -> Result<Chain, GrantError> {
        let roots: Vec<_> = self.known().roots().all().collect();
        Chain::read(grant, roots.into_iter())
    }

    /// Whether a member is one still: its time is not over, and nothing was taken back. Costs no signature.
    ///
    /// # Errors
    /// `Expired`, `NotYet`, `OutOfHours`, `Revoked`, `Superseded`.
    pub fn still(&self, member: &Member, now: u64) -> Result<(), GrantError> {
        let known = self.known();
        if let Some(what) = known.ends(&member.chain).filter(|_| Defence::Revoked.stands()) {
            return Err(GrantError::Revoked(Taken(what)));
        }
        if known.roots().ends(member.chain.root, member.chain.links[0].id, now) {
            return Err(GrantError::Superseded);
        }
        drop(known);
        member.chain.scope.in_time(now)
    }

    /// Whether a key that holds no grant yet was not taken back.
    pub(crate) fn still_a_key(&self, peer: PeerId) -> Result<(), GrantError> {
        self.known().ends_key(peer).map_or(Ok(()), |what| Err(GrantError::Revoked(Taken(what))))
    }

    /// Whether a member may ask that, there and then.
    ///
    /// # Errors
    /// As [`still`](Self::still); `NoRight`, `NotThisModel`, `NotHere`, `NotThisPort`, `NotThisHost`.
    pub fn authorize<R: Request>(&self, by: &Member, request: R, place: Place) -> Result<Authorized<R>, GrantError> {
        self.still(by, place.now)?;
        by.chain.scope.allows(request.needs(), place)?;
        request.reaches().map_or(Ok(()), |reach| by.chain.scope.reaches(reach))?;
        Ok(Authorized { request, by: by.clone() })
    }

    /// Whether `grant` lets the holder of that key serve others.
    ///
    /// # Errors
    /// As [`check`](Self::check) and [`authorize`](Self::authorize).
    pub fn check_lender(&self, grant: &[u8], holder: PeerId, now: u64) -> Result<Authorized<Lending>, GrantError> {
        let member = self.check(grant, holder, now)?;
        self.authorize(&member, Lending, Place { peer: holder, now })
    }

    /// Takes note of a revocation, which may come from anybody; whether it is new.
    ///
    /// # Errors
    /// `Unreadable`, `TooMany`, or what is wrong with its signer's grant.
    pub fn revoke(&self, revocation: SignedRevocation) -> Result<bool, GrantError> {
        self.revoked.write().unwrap_or_else(PoisonError::into_inner).note(revocation)
    }

    /// What tells apart two peers that know different ones.
    pub fn revocations_digest(&self) -> [u8; 32] {
        self.known().digest()
    }

    /// All revocations that it knows, in the order in which they came: a gate that hears them so knows the same.
    pub fn revocations(&self) -> Vec<SignedRevocation> {
        self.known().all()
    }
}
