//! An invitation: one line that brings a machine into a swarm. It holds grants that are bound to that machine's keys, so
//! it is of no use to anyone else, and may travel in the open.

use std::{fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use potluck_core::PeerId;
use potluck_wire::PeerAddress;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// How an invitation begins: its kind and version.
const PREFIX: &str = "ptl1";

/// Characters of an invitation. A longer one is refused unread.
const CHARS_MAX: usize = 64 << 10;

/// Grants for the keys of one machine, and whom to ask first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Invitation {
    /// The swarm: the public key of its root, in hexadecimal.
    pub(crate) swarm: String,
    /// A grant for each of the machine's keys.
    pub(crate) grants: Vec<(PeerId, Vec<u8>)>,
    /// Members to ask for offers.
    pub(crate) contacts: Vec<PeerAddress>,
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Invitation {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let bad = |why: &str| {
            Failure::usage(
                format!("this is no invitation: {why}"),
                "paste all of the line that `potluck swarm grant` printed",
            )
        };
        let text = text.trim();
        if text.len() > CHARS_MAX {
            return Err(bad("too long"));
        }
        let body = text.strip_prefix(PREFIX).ok_or_else(|| bad("it does not begin with `ptl1`"))?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| bad("characters are missing or changed"))?;
        postcard::from_bytes(&bytes).map_err(|_| bad("a part is missing"))
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::SecretKey;

    use super::*;

    #[test]
    fn an_invitation_reads_what_it_prints_and_refuses_the_rest() {
        let peer = SecretKey::from_bytes(&[1; 32]).peer_id();
        let contact = PeerAddress { peer, addresses: vec!["127.0.0.1:4000".into()], relay: None };
        let invitation =
            Invitation { swarm: "07".repeat(32), grants: vec![(peer, vec![1, 2, 3])], contacts: vec![contact] };
        let text = invitation.to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(invitation));
        for cut in [0, 3, 4, 20, text.len() - 1] {
            assert_eq!(text[..cut].parse::<Invitation>().unwrap_err().code, "usage", "{cut}");
        }
        assert!("ptl1".repeat(CHARS_MAX).parse::<Invitation>().unwrap_err().message.ends_with("too long"));
    }
}
