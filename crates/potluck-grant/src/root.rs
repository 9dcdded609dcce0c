//! The root of a swarm's authority, and the grants that it signs.

use std::{fmt, str::FromStr};

use biscuit_auth::{Algorithm, Biscuit, KeyPair, PrivateKey, PublicKey};
use data_encoding::HEXLOWER_PERMISSIVE;
use potluck_core::{Offer, PeerId, SecretKey};
use zeroize::Zeroize as _;

use crate::{
    Caveats, Chain, GrantError, Role,
    chain::{public_key, write_block},
};

/// A swarm: its root's public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwarmId([u8; 32]);

/// The secret that a swarm's authority rests on. Whoever has it may admit anybody: keep it in a file of mode 600.
#[derive(Clone)]
pub struct Root([u8; 32]);

/// A grant, as bytes: a biscuit. It may be shown to anybody; only its holder can use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant(Vec<u8>);

impl Root {
    /// A new swarm's root, from the operating system's random source.
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        let pair = KeyPair::new_with_algorithm(Algorithm::Ed25519);
        bytes.copy_from_slice(&pair.private().to_bytes());
        Self(bytes)
    }

    /// From 32 secret bytes, fresh from the operating system's random source or from a key file.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(*bytes)
    }

    /// The secret bytes, for a key file.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The swarm that this root is the root of.
    pub fn public(&self) -> SwarmId {
        let mut id = [0; 32];
        if let Ok(pair) = self.pair() {
            id.copy_from_slice(&pair.public().to_bytes());
        }
        SwarmId(id)
    }

    /// Admits `holder` as a member until `expires`, in UTC seconds.
    ///
    /// # Errors
    /// `Unsigned` where the token library fails, which it has no reason to.
    pub fn grant(&self, holder: PeerId, expires: u64) -> Result<Grant, GrantError> {
        self.grant_as(holder, &Caveats { role: Some(Role::Member), until: Some(expires), ..Caveats::default() })
    }

    /// Admits `holder` as the caveats say, which name a role and an end.
    ///
    /// # Errors
    /// `Unreadable` where they do not, or are too many; `TooLarge`; `Unsigned`.
    pub fn grant_as(&self, holder: PeerId, caveats: &Caveats) -> Result<Grant, GrantError> {
        let block = write_block(holder, caveats)?;
        let token = Biscuit::builder().merge(block).build(&self.pair()?).map_err(unsigned)?;
        Grant::of(&token, self.key().peer_id())
    }

    /// The same key, to sign what is no grant: an order to a peer.
    pub fn key(&self) -> SecretKey {
        SecretKey::from_bytes(&self.0)
    }

    fn pair(&self) -> Result<KeyPair, GrantError> {
        key_pair(&self.0)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root(of {:?})", self.public())
    }
}

impl SwarmId {
    pub(crate) fn key(self) -> Option<PublicKey> {
        public_key(self.root())
    }

    /// From the bytes of a root's public key.
    ///
    /// # Errors
    /// `NoSwarm` where they are no public key.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, GrantError> {
        Some(Self(bytes)).filter(|id| id.key().is_some()).ok_or(GrantError::NoSwarm)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The root, as a signer.
    pub fn root(self) -> PeerId {
        PeerId::from_bytes(self.0)
    }
}

impl fmt::Display for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

impl fmt::Debug for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmId({:.10})", self.to_string())
    }
}

impl FromStr for SwarmId {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or(GrantError::NoSwarm).and_then(Self::from_bytes)
    }
}

impl Grant {
    /// A token that this version itself reads: what is too long or says nothing is not given out.
    fn of(token: &Biscuit, root: PeerId) -> Result<Self, GrantError> {
        Chain::of(token, root)?;
        let bytes = token.to_vec().map_err(unsigned)?;
        // What travels beside an offer has less room than what greets.
        if bytes.len() > Offer::GRANT_BYTES_MAX {
            return Err(GrantError::TooLarge { len: bytes.len() });
        }
        Ok(Self(bytes))
    }

    /// Hands a grant on to another key, or narrows it for the same one: signed by its holder, with nobody's help. `caveats` take
    /// away; they cannot add. `root`: the one that has signed the grant ([`Chain::root`]).
    ///
    /// # Errors
    /// As [`Gate::read`](crate::Gate::read); `NotAdmitted` where `holder` is not the grant's; `HandedOn`, `TooLong` or `TooLarge`
    /// where it has no room for one more link.
    pub fn hand_on(
        grant: &[u8],
        root: PeerId,
        holder: &SecretKey,
        to: PeerId,
        caveats: &Caveats,
    ) -> Result<Self, GrantError> {
        let chain = Chain::read(grant, [root].into_iter())?;
        if chain.holder() != holder.peer_id() {
            return Err(GrantError::NotAdmitted(holder.peer_id()));
        }
        let key = public_key(root).ok_or(GrantError::NoSwarm)?;
        let token = Biscuit::from(grant, key).map_err(|error| GrantError::NotOurs(error.to_string()))?;
        let pair = key_pair(&holder.to_bytes())?;
        let request = token.third_party_request().map_err(unsigned)?;
        let block = request.create_block(&pair.private(), write_block(to, caveats)?).map_err(unsigned)?;
        Self::of(&token.append_third_party(pair.public(), block).map_err(unsigned)?, root)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

fn unsigned(error: biscuit_auth::error::Token) -> GrantError {
    GrantError::Unsigned(error.to_string())
}

fn key_pair(secret: &[u8; 32]) -> Result<KeyPair, GrantError> {
    let key = PrivateKey::from_bytes(secret, Algorithm::Ed25519);
    key.map(|key| KeyPair::from(&key)).map_err(|error| GrantError::Unsigned(error.to_string()))
}
