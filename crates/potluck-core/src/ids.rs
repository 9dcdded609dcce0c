//! Identifiers: one type each, so that none is taken for another.

use std::{fmt, str::FromStr};

use data_encoding::{BASE32_NOPAD_NOCASE, HEXLOWER_PERMISSIVE};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// The user or the peer: a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: expected {expected}")]
pub struct IdError {
    /// What was read, cut to 80 characters.
    pub text: String,
    /// What it should have been.
    pub what: &'static str,
    /// Its form.
    pub expected: &'static str,
}

impl IdError {
    fn new(text: &str, what: &'static str, expected: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), what, expected }
    }
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Wraps the bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The first ten characters: enough to tell peers of a swarm apart on a screen.
            pub fn short(&self) -> String {
                self.to_string().chars().take(10).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }
    };
}

macro_rules! parse_hex {
    ($name:ident, $len:literal, $what:literal, $expected:literal) => {
        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                HEXLOWER_PERMISSIVE
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(Self)
                    .ok_or_else(|| IdError::new(text, $what, $expected))
            }
        }
    };
}

bytes_id!(
    /// A peer: its Ed25519 public key. Shown and read as 64 hexadecimal digits, like iroh's `EndpointId`.
    PeerId, 32, "a peer id"
);

bytes_id!(
    /// A model: the BLAKE3 hash of its canonical [`Manifest`](crate::Manifest).
    ModelId, 32, "a model id"
);
parse_hex!(ModelId, 32, "a model id", "64 hexadecimal digits");

bytes_id!(
    /// A session's own name, chosen at random by its client. Unique only together with the client's key.
    SessionId, 16, "a session id"
);
parse_hex!(SessionId, 16, "a session id", "32 hexadecimal digits");

impl FromStr for PeerId {
    type Err = IdError;

    /// Reads hexadecimal, or the base32 form that iroh also prints.
    fn from_str(text: &str) -> Result<Self, IdError> {
        HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .or_else(|_| BASE32_NOPAD_NOCASE.decode(text.as_bytes()))
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| IdError::new(text, "a peer id", "64 hexadecimal digits"))
    }
}

impl PeerId {
    /// True if `signature` over `message` was made by this peer.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }
}

/// A session: who opened it, and what that client calls it. A stranger who learns the id cannot touch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionKey {
    /// The client's key, as proven by its connection.
    pub client: PeerId,
    /// The client's name for the session.
    pub id: SessionId,
}

/// A session's cache within one stage; a small number that the peer reuses after `close`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CacheId(pub u16);

/// A peer's secret key. Never printed, never serialised by derive.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// From the 32 secret bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(bytes))
    }

    /// The 32 secret bytes, for a key file of mode 600.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The id that goes with this key.
    pub fn peer_id(&self) -> PeerId {
        PeerId(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.peer_id().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_reads_what_it_prints_and_refuses_the_rest() {
        let id = SecretKey::from_bytes(&[7; 32]).peer_id();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(BASE32_NOPAD_NOCASE.encode(id.as_bytes()).parse(), Ok(id));
        for text in ["", "00", "zz", &"0".repeat(65), "é"] {
            assert!(text.parse::<PeerId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_signature_binds_key_and_message() {
        let key = SecretKey::from_bytes(&[1; 32]);
        let signature = key.sign(b"offer");
        assert!(key.peer_id().verify(b"offer", &signature));
        assert!(!key.peer_id().verify(b"other", &signature));
        assert!(!SecretKey::from_bytes(&[2; 32]).peer_id().verify(b"offer", &signature));
        assert!(!PeerId::from_bytes([255; 32]).verify(b"offer", &signature), "no point on the curve");
    }

    #[test]
    fn a_secret_key_does_not_print_itself() {
        let key = SecretKey::from_bytes(&[9; 32]);
        assert!(!format!("{key:?}").contains("0909"));
    }
}
