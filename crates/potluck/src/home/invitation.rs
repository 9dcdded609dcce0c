//! The line that brings a machine into a swarm: an invitation, or the grants themselves.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use potluck_core::{PeerId, SignedRevocation};
use potluck_grant::{RelayPass, SwarmId};
use potluck_net::RelayInvitation;
use potluck_wire::PeerAddress;
use serde::{Deserialize, Serialize};

use super::SwarmRoot;
use crate::failure::Failure;

/// How a line begins: its kind and version.
const PREFIX: &str = "ptl1";

/// Characters of a line. A longer one is refused unread.
const CHARS_MAX: usize = 64 << 10;

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Line {
    /// Ask there, and be let in.
    Invited(Invitation),
    /// Already let in.
    Granted(Admission),
}

/// Not a right yet: whoever shows it first to the inviter, with a key of its own, gets one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Invitation {
    /// The swarm: the public key of its root, in hexadecimal.
    pub(crate) swarm: String,
    /// Whom to show it to.
    pub(crate) inviter: PeerAddress,
    /// What the inviter knows it by.
    pub(crate) secret: [u8; 16],
    /// UTC seconds until which it may be used, by the inviter's clock.
    pub(crate) expires: u64,
    /// The swarm's relays.
    pub(crate) relays: Vec<String>,
    /// The root's signature that they may help whoever has this, until it expires.
    pass: serde_bytes::ByteArray<64>,
}

/// Grants for the keys of one machine, and whom to ask first. Of no use to anyone else, so it may travel in the open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Admission {
    /// The swarm: the public key of its root, in hexadecimal.
    pub(crate) swarm: String,
    /// A grant for each of the machine's keys.
    pub(crate) grants: Vec<(PeerId, Vec<u8>)>,
    /// Members to ask for offers.
    pub(crate) contacts: Vec<PeerAddress>,
    /// The swarm's relays.
    pub(crate) relays: Vec<String>,
    /// What leads from the root that the swarm is named after to the one that has signed the grants.
    pub(crate) successions: Vec<SignedRevocation>,
}

impl Invitation {
    /// One to that peer, known by that secret.
    pub(crate) fn new(
        root: &SwarmRoot,
        inviter: PeerAddress,
        secret: [u8; 16],
        expires: u64,
        relays: Vec<String>,
    ) -> Self {
        let pass = root.relay_pass(&secret, expires).signature.into();
        Self { swarm: root.swarm().to_string(), inviter, secret, expires, relays, pass }
    }

    /// What the swarm's relays are shown by whoever has it.
    pub(crate) fn relay_pass(&self) -> RelayInvitation {
        let pass = RelayPass { until: self.expires, signature: self.pass.into_array() };
        RelayInvitation { pass, secret: self.secret }
    }

    /// Six digits that both sides see once it has been used by that key: where they differ, somebody else came in.
    pub(crate) fn code(&self, newcomer: PeerId) -> String {
        code(&self.swarm, &self.secret, newcomer)
    }
}

/// See [`Invitation::code`].
pub(super) fn code(swarm: &str, secret: &[u8; 16], newcomer: PeerId) -> String {
    let mut hash = blake3::Hasher::new_derive_key("potluck 2026-11 code of an invitation's use");
    hash.update(swarm.as_bytes()).update(secret).update(newcomer.as_bytes());
    let mut number = [0; 8];
    hash.finalize_xof().fill(&mut number);
    let number = u64::from_le_bytes(number) % 1_000_000;
    format!("{:03} {:03}", number / 1_000, number % 1_000)
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Line {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let bad = |why: &str| {
            let hint = "paste all of the line that `potluck swarm invite` or `potluck swarm grant` printed";
            Failure::usage(format!("this is no invitation: {why}"), hint)
        };
        let text = text.trim();
        if text.len() > CHARS_MAX {
            return Err(bad("too long"));
        }
        let body = text.strip_prefix(PREFIX).ok_or_else(|| bad("it does not begin with `ptl1`"))?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| bad("characters are missing or changed"))?;
        let (line, rest) = postcard::take_from_bytes::<Self>(&bytes).map_err(|_| bad("a part is missing"))?;
        let (Self::Invited(Invitation { swarm, .. }) | Self::Granted(Admission { swarm, .. })) = &line;
        if !rest.is_empty() || swarm.parse::<SwarmId>().is_err() {
            return Err(bad("characters are changed"));
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::SecretKey;
    use potluck_grant::Root;

    use super::*;

    fn peer(n: u8) -> PeerAddress {
        let peer = SecretKey::from_bytes(&[n; 32]).peer_id();
        PeerAddress { peer, addresses: vec!["127.0.0.1:4000".into()], relay: None }
    }

    fn lines() -> [Line; 2] {
        let swarm = Root::from_bytes(&[7; 32]).public().to_string();
        let (secret, expires, relays) = ([9; 16], 1_800_000_000, vec!["https://relay.example/".to_owned()]);
        let root = SwarmRoot::ephemeral().unwrap();
        let invitation = Invitation::new(&root, peer(1), secret, expires, relays.clone());
        let grants = vec![(peer(2).peer, vec![1, 2, 3])];
        let admission = Admission { swarm, grants, contacts: vec![peer(1)], relays, successions: Vec::new() };
        [Line::Invited(invitation), Line::Granted(admission)]
    }

    #[test]
    fn a_line_reads_what_it_prints_and_refuses_the_rest() {
        for line in lines() {
            let text = line.to_string();
            assert_eq!(format!(" {text}\n").parse(), Ok(line));
            for cut in [0, 3, 4, 20, text.len() - 1] {
                assert_eq!(text[..cut].parse::<Line>().unwrap_err().code, "usage", "{cut}");
            }
            assert!(format!("{text}AAAA").parse::<Line>().is_err(), "more than one line");
        }
        assert!("ptl1".repeat(CHARS_MAX).parse::<Line>().unwrap_err().message.ends_with("too long"));
    }

    #[test]
    fn the_code_tells_newcomers_apart() {
        let [Line::Invited(invitation), _] = lines() else { unreachable!() };
        let code = invitation.code(peer(2).peer);
        assert!(code.len() == 7 && code.replace(' ', "").chars().all(|digit| digit.is_ascii_digit()), "{code}");
        assert_ne!(code, invitation.code(peer(3).peer));
        assert_ne!(code, Invitation { secret: [8; 16], ..invitation }.code(peer(2).peer));
    }
}
