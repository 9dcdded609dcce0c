//! How a client is made: where it keeps what it is, and how it reaches others.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use potluck_core::{PeerId, SecretKey, SignedRevocation};
use potluck_net::{Bind, Lan, PublicLookup, RELAYS_MAX, RelayAt, RelayUse};
use potluck_wire::PeerAddress;

use super::ClientError;
use crate::{
    args::{Reach, RelayChoice},
    home::{Admission, Line, new_key},
};

/// How long a message, and its reply, may take together, unless the settings say otherwise.
const DEADLINE: Duration = Duration::from_secs(30);

/// How a client reaches others, and where it keeps what it is. Begin with `Settings::default()`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The folder of keys, swarm and models, as `POTLUCK_HOME`. None: nothing is kept, and models do not answer.
    pub home: Option<PathBuf>,
    /// Where to listen. None: every interface, on a free port.
    pub bind: Option<SocketAddr>,
    /// Whether peers are looked up on the local network (mDNS), and this one is found there.
    pub mdns: bool,
    /// Relays, in place of those of the swarm; an empty list: none.
    pub relays: Option<Vec<String>>,
    /// Where peers are looked up whose addresses are known to nobody else, and this one is found: `dht`, or the URL of a pkarr relay.
    /// None: nowhere.
    pub discovery: Option<String>,
    /// How long a message, and its reply, may take together.
    pub deadline: Duration,
    /// The program `potluck`, which runs models. None: beside this program, or on the `PATH`. The first client of a
    /// process says which.
    pub program: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { home: None, bind: None, mdns: true, relays: None, discovery: None, deadline: DEADLINE, program: None }
    }
}

impl Settings {
    /// With that folder.
    #[must_use]
    pub fn home(self, home: impl Into<PathBuf>) -> Self {
        Self { home: Some(home.into()), ..self }
    }

    /// Listening at that address alone. Without mDNS, too, where it is this machine's loopback.
    #[must_use]
    pub fn bind(self, at: SocketAddr) -> Self {
        Self { bind: Some(at), ..self }
    }

    /// Looking nobody up on the local network, and not found there.
    #[must_use]
    pub fn without_mdns(self) -> Self {
        Self { mdns: false, ..self }
    }

    /// With these relays in place of those of the swarm.
    #[must_use]
    pub fn relays(self, relays: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { relays: Some(relays.into_iter().map(Into::into).collect()), ..self }
    }

    /// Looking peers up in public, and found there: `dht`, or the URL of a pkarr relay.
    #[must_use]
    pub fn discovery(self, at: impl Into<String>) -> Self {
        Self { discovery: Some(at.into()), ..self }
    }

    /// With so much time for a message and its reply.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// With that program `potluck`.
    #[must_use]
    pub fn program(self, program: impl Into<PathBuf>) -> Self {
        Self { program: Some(program.into()), ..self }
    }

    pub(super) fn reach(&self) -> Result<Reach, ClientError> {
        let relay = match &self.relays {
            None => Vec::new(),
            Some(relays) if relays.is_empty() => vec![RelayChoice::None],
            Some(relays) => {
                let read = relays.iter().map(|relay| relay.parse::<RelayChoice>());
                read.collect::<Result<_, _>>()?
            }
        };
        let discovery = self.discovery.as_deref().map(str::parse::<PublicLookup>).transpose()?;
        Ok(Reach { no_mdns: !self.mdns, relay, discovery })
    }

    pub(super) fn binding(&self) -> Bind {
        self.bind.map_or(Bind::Any, Bind::Address)
    }

    /// Who can be reached is found on the local network, too.
    pub(super) fn lan(&self, listens: bool) -> Lan {
        match (self.mdns, listens) {
            (false, _) => Lan::Off,
            (true, true) => Lan::Announce,
            (true, false) => Lan::Ask,
        }
    }
}

/// What makes a program a member of a swarm: its key, and what the swarm's owner gave to it. Keep it as you keep a
/// password.
#[derive(Clone)]
#[non_exhaustive]
pub struct Grant {
    /// The key: whoever has it is this member.
    pub key: SecretKey,
    /// The swarm: its root's public key, 64 hexadecimal digits.
    pub swarm: String,
    /// What the root, and whoever handed it on, have signed.
    pub grant: Vec<u8>,
    /// Members to ask first.
    pub contacts: Vec<PeerAddress>,
    /// The swarm's relays.
    pub relays: Vec<String>,
    /// What leads from the root that the swarm is named after to the one that has signed the grant, where its owner has replaced it.
    pub successions: Vec<SignedRevocation>,
}

impl Grant {
    /// From its parts.
    pub fn new(
        key: SecretKey,
        swarm: impl Into<String>,
        grant: impl Into<Vec<u8>>,
        contacts: impl Into<Vec<PeerAddress>>,
    ) -> Self {
        Self {
            key,
            swarm: swarm.into(),
            grant: grant.into(),
            contacts: contacts.into(),
            relays: Vec::new(),
            successions: Vec::new(),
        }
    }

    /// With these relays.
    #[must_use]
    pub fn relays(self, relays: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { relays: relays.into_iter().map(Into::into).collect(), ..self }
    }

    /// From the line that `potluck swarm grant KEY` printed for this key.
    ///
    /// # Errors
    /// `usage`: it is no such line; `not_for_us`: it names other keys.
    pub fn from_line(line: &str, key: SecretKey) -> Result<Self, ClientError> {
        match line.parse()? {
            Line::Granted(admission) => Self::of(admission, key),
            Line::Invited(_) => {
                Err(ClientError::other("usage", "this is an invitation, and no grant yet", "use it: Client::join"))
            }
        }
    }

    pub(super) fn of(admission: Admission, key: SecretKey) -> Result<Self, ClientError> {
        let Admission { swarm, grants, contacts, relays, successions } = admission;
        let own = grants.into_iter().find(|(holder, _)| *holder == key.peer_id());
        let (_, grant) = own.ok_or_else(|| {
            let hint = format!("ask the swarm's owner for: potluck swarm grant {}", key.peer_id());
            ClientError::other("not_for_us", "this line is for another key", hint)
        })?;
        Ok(Self { key, swarm, grant, contacts, relays, successions })
    }

    /// The key's id.
    pub fn id(&self) -> PeerId {
        self.key.peer_id()
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant(of {})", self.id().short())
    }
}

/// A new key, from the system's randomness.
///
/// # Errors
/// `io`: the system gives none.
pub fn generate_key() -> Result<SecretKey, ClientError> {
    Ok(new_key()?)
}

/// As many of these as are relays, and as a node listens at.
pub(super) fn relays_in_memory(urls: &[String]) -> Option<RelayUse> {
    let mut urls: Vec<_> = urls.iter().filter(|url| RelayAt::parse(url).is_ok()).cloned().collect();
    urls.truncate(RELAYS_MAX);
    (!urls.is_empty()).then_some(RelayUse { urls, pass: None, claim: None })
}
