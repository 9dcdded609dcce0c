//! API keys: grants for programs that speak HTTP, and hold nothing but a line of text.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use potluck_core::{ModelId, PeerId, SecretKey};
use potluck_wire::GRANT_BYTES_MAX;

use crate::{Gate, GrantError, Member, Need, Request, Right};

/// A grant together with the secret key of its holder, which exists for this: whoever has the text may what the grant says, at any gateway of
/// the swarm. It is taken back like any other grant.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    secret: [u8; 32],
    grant: Vec<u8>,
}

/// How the text begins: as clients of OpenAI's API expect it.
const PREFIX: &str = "sk-ptl-";

/// Characters of the longest text that is read.
pub const API_KEY_CHARS_MAX: usize = PREFIX.len() + (32 + GRANT_BYTES_MAX).div_ceil(3) * 4;

/// An answer of a gateway, with this model; none: one that has a name, and no id that a grant could name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking(pub Option<ModelId>);

impl Request for Asking {
    fn needs(&self) -> Need {
        Need { right: Right::Use, model: self.0 }
    }
}

/// A change of what is on a gateway's machine: a model fetched or removed, or one that a peer is to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operating;

impl Request for Operating {
    fn needs(&self) -> Need {
        Need { right: Right::Order, model: None }
    }
}

impl ApiKey {
    /// Of a secret key that nobody else has, and the grant that names it.
    pub fn new(secret: &SecretKey, grant: Vec<u8>) -> Self {
        Self { secret: secret.to_bytes(), grant }
    }

    /// Whether the text claims to be one: what does not is not looked at further.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// Reads one, which may come from anybody.
    ///
    /// # Errors
    /// `TooLarge`, `Unreadable`.
    pub fn parse(text: &str) -> Result<Self, GrantError> {
        if text.len() > API_KEY_CHARS_MAX {
            return Err(GrantError::TooLarge { len: text.len() });
        }
        let unreadable = || GrantError::Unreadable("no API key".into());
        let body = text.strip_prefix(PREFIX).ok_or_else(unreadable)?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| unreadable())?;
        let (secret, grant) = bytes.split_first_chunk::<32>().ok_or_else(unreadable)?;
        Ok(Self { secret: *secret, grant: grant.to_vec() })
    }

    /// The key that its grant names.
    pub fn holder(&self) -> PeerId {
        SecretKey::from_bytes(&self.secret).peer_id()
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&[&self.secret[..], &self.grant].concat()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey(of {})", self.holder().short())
    }
}

impl Gate {
    /// Whose key that is, at `now` (UTC seconds). What it may do is asked for each request.
    ///
    /// # Errors
    /// As [`ApiKey::parse`] and [`check`](Self::check).
    pub fn check_api_key(&self, text: &str, now: u64) -> Result<Member, GrantError> {
        let key = ApiKey::parse(text)?;
        self.check(&key.grant, key.holder(), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Caveats, Place, Role, Root};

    const NOW: u64 = 1_900_000_000;

    #[test]
    fn a_key_is_its_grant_and_no_more() {
        let root = Root::from_bytes(&[1; 32]);
        let gate = Gate::new(root.public());
        let secret = SecretKey::from_bytes(&[5; 32]);
        let model = ModelId::from_bytes([9; 32]);
        let caveats = Caveats {
            role: Some(Role::Guest),
            until: Some(NOW),
            models: [model].into_iter().collect(),
            ..Caveats::default()
        };
        let key = ApiKey::new(&secret, root.grant_as(secret.peer_id(), &caveats).unwrap().into_bytes());
        let text = key.to_string();
        assert!(ApiKey::is_one(&text) && ApiKey::parse(&text) == Ok(key.clone()));
        assert!(!format!("{key:?}").contains(&BASE64URL_NOPAD.encode(&[5; 32])[..8]), "it is not shown by accident");
        let member = gate.check_api_key(&text, NOW).unwrap();
        let place = Place { peer: secret.peer_id(), now: NOW };
        assert!(gate.authorize(&member, Asking(Some(model)), place).is_ok());
        assert!(gate.authorize(&member, Asking(Some(ModelId::from_bytes([8; 32]))), place).is_err());
        assert!(gate.authorize(&member, Operating, place).is_err());
        assert!(gate.check_api_key(&text, NOW + 1).is_err());
        // The grant with another secret is another's grant.
        let stolen = ApiKey::new(&SecretKey::from_bytes(&[6; 32]), key.grant.clone());
        assert!(matches!(gate.check_api_key(&stolen.to_string(), NOW), Err(GrantError::NotAdmitted(_))));
        for text in ["sk-ptl-", "sk-ptl-AAAA", "sk-other", &text[..40], &format!("{text}{text}")] {
            assert!(gate.check_api_key(text, NOW).is_err(), "{text}");
        }
    }
}
