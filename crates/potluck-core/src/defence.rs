//! The defences that scripted attacks are tried against, each of which such a test may switch off.
//!
//! An attack that is stopped proves little: perhaps it would never have worked. One that gets through as soon as a single
//! defence is switched off, and not before, shows what stops it. No program can switch anything off: without the feature
//! `undefended`, which only tests and a bench ask for, [`Defence::stands`] is a constant.

/// One check, at one place in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Defence {
    /// A grant is signed by the swarm's root.
    GrantSignature,
    /// A grant names the key that shows it.
    GrantHolder,
    /// A grant's time has come and is not over.
    GrantTime,
    /// A grant holds in its hours of the day alone.
    GrantHours,
    /// A link is signed by the holder of the one before.
    LinkSigner,
    /// A grant has so many links.
    LinksMax,
    /// A link holds so many facts.
    FactsMax,
    /// A grant is handed on as often as it says.
    HandOn,
    /// A link takes away, and adds nothing.
    Narrowing,
    /// A role may do what it may.
    Rights,
    /// A grant holds with its models alone.
    GrantModels,
    /// A grant holds at its peers alone.
    GrantPeers,
    /// Positions of a day are counted.
    TokensPerDay,
    /// What was taken back does not come in.
    Revoked,
    /// What a root that was followed by another has signed counts where the next one lets it stand.
    Succession,
    /// What was taken back is put out.
    PutOut,
    /// A revocation is signed by whoever it names.
    RevocationSignature,
    /// Who may take back what.
    RevokerRights,
    /// A relay helps whoever belongs to the swarm.
    RelayAccess,
    /// A relay's pass is worth nothing with another key.
    PassHolder,
    /// One key has so many connections at a relay.
    RelayPlaces,
    /// Whoever is dialled is a member.
    WelcomeGrant,
    /// A greeting has a deadline.
    GreetDeadline,
    /// So many have not greeted, of one address.
    UngreetedPlaces,
    /// So many connections a second, of one address.
    AddressRate,
    /// So many connections a second, of one key.
    KeyRate,
    /// One member has so many connections.
    MemberConnections,
    /// A frame has so many bytes.
    FrameBytes,
    /// A stage takes steps from the neighbour that its client named.
    PreviousPeer,
    /// A stage dials members alone.
    NextPeer,
    /// A step that came already is not run again.
    StepSequence,
    /// Steps come by credit.
    StepCredit,
    /// Tokens are in the vocabulary.
    TokenBounds,
    /// A session is opened again with a newer epoch alone.
    SessionEpoch,
    /// One client has so many sessions.
    ClientSessions,
    /// One peer has so many hops waiting for their session.
    ParkedHops,
    /// An offer is signed by its peer.
    OfferSignature,
    /// Answers have the shape that was asked for.
    AnswerShape,
    /// A grant reaches its ports and networks alone.
    TunnelGrant,
    /// A tunnel leads to what is exposed.
    TunnelExposed,
    /// Credit comes for what was sent.
    CreditDue,
    /// Packets are encrypted.
    Encryption,
    /// An engine runs in its sandbox.
    Sandbox,
}

impl Defence {
    /// Whether it stands: always, in every program.
    #[cfg(not(feature = "undefended"))]
    #[inline(always)]
    #[must_use]
    pub const fn stands(self) -> bool {
        true
    }

    /// Whether it stands: unless a test has switched it off.
    #[cfg(feature = "undefended")]
    #[must_use]
    pub fn stands(self) -> bool {
        OFF.load(std::sync::atomic::Ordering::Relaxed) & self.bit() == 0
    }

    #[cfg(feature = "undefended")]
    const fn bit(self) -> u64 {
        1 << self as u8
    }
}

const _: () = assert!((Defence::Sandbox as u8) < 64, "each has a bit");

/// Those that are switched off, in this whole process.
#[cfg(feature = "undefended")]
static OFF: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// A defence that is switched off for as long as this is kept.
#[cfg(feature = "undefended")]
#[derive(Debug)]
pub struct SwitchedOff(Defence);

#[cfg(feature = "undefended")]
impl SwitchedOff {
    /// Switches it off, in this whole process: whoever tries several at once does not know which one it was.
    #[must_use]
    pub fn new(defence: Defence) -> Self {
        OFF.fetch_or(defence.bit(), std::sync::atomic::Ordering::Relaxed);
        Self(defence)
    }
}

#[cfg(feature = "undefended")]
impl Drop for SwitchedOff {
    fn drop(&mut self) {
        OFF.fetch_and(!self.0.bit(), std::sync::atomic::Ordering::Relaxed);
    }
}
