//! The root of a swarm's authority, and the grants that it signs.

use std::{fmt, str::FromStr};

use biscuit_auth::{Algorithm, Biscuit, KeyPair, PrivateKey, PublicKey, macros::biscuit};
use data_encoding::HEXLOWER_PERMISSIVE;
use potluck_core::{PeerId, SecretKey};

use crate::GrantError;

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
        let unsigned = |error: biscuit_auth::error::Token| GrantError::Unsigned(error.to_string());
        let holder = holder.as_bytes().to_vec();
        let expires = i64::try_from(expires).unwrap_or(i64::MAX);
        let token: Biscuit = biscuit!(
            r#"
            role({holder}, "member");
            check if now($now), $now <= {expires};
            "#
        )
        .build(&self.pair()?)
        .map_err(unsigned)?;
        token.to_vec().map(Grant).map_err(unsigned)
    }

    /// The same key, to sign what is no grant: an order to a peer.
    pub fn key(&self) -> SecretKey {
        SecretKey::from_bytes(&self.0)
    }

    fn pair(&self) -> Result<KeyPair, GrantError> {
        let key = PrivateKey::from_bytes(&self.0, Algorithm::Ed25519);
        key.map(|key| KeyPair::from(&key)).map_err(|error| GrantError::Unsigned(error.to_string()))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root(of {:?})", self.public())
    }
}

impl SwarmId {
    pub(crate) fn key(self) -> Option<PublicKey> {
        PublicKey::from_bytes(&self.0, Algorithm::Ed25519).ok()
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
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
