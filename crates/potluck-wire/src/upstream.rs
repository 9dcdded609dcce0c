//! The bodies about models that a peer lends whole, by an upstream: what there is, who has it, a request and its answer's head.

use potluck_core::Endpoint;
use serde::{Deserialize, Serialize};

use crate::{
    ADDRESSES_MAX, ASK_BYTES_MAX, LENDER_ADDRESS_BYTES_MAX, LENDER_GRANT_BYTES_MAX, LENDER_RELAY_BYTES_MAX,
    LENDERS_MAX, NAME_BYTES_MAX, PeerAddress, TEXT_BYTES_MAX, UPSTREAM_MODELS_MAX, WireError,
    message::{Bounded, at_most},
};

/// What a peer lends by its upstream, and who else lends by one, as far as it was told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Upstreams {
    /// Its own; none where it lends by none.
    pub own: Option<Upstream>,
    /// A page of others, at most [`LENDERS_MAX`]; a full one is followed by another.
    pub others: Vec<Lender>,
}

/// What a peer lends by its upstream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Upstream {
    /// The models that it has, at most [`UPSTREAM_MODELS_MAX`]; none while it is not well.
    pub models: Vec<UpstreamModel>,
    /// Requests under way, of all members.
    pub running: u16,
    /// Requests that may be under way.
    pub places: u16,
    /// What is wrong with it, in words; none where it is well.
    pub trouble: Option<String>,
}

/// A model that an upstream has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamModel {
    /// What the upstream calls it, at most [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Positions of a conversation, where the upstream says so.
    pub context: Option<u32>,
}

/// A member that lends by an upstream: where it is, and the grant that makes it a member. Who hears of it from a third checks
/// that grant before it dials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lender {
    /// Who, and where.
    pub address: PeerAddress,
    /// Its grant.
    #[serde(with = "serde_bytes")]
    pub grant: Vec<u8>,
}

/// A request to an upstream; its body follows in [`Part`](crate::Frame::Part) frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// What is asked: never a path.
    pub endpoint: Endpoint,
    /// Bytes of the body, at most [`ASK_BYTES_MAX`].
    pub bytes: u32,
}

/// How an upstream's answer begins; its body follows in [`Part`](crate::Frame::Part) frames, until the stream ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// HTTP's.
    pub status: u16,
    /// HTTP's, at most [`NAME_BYTES_MAX`] bytes.
    pub content_type: String,
    /// Seconds after which it may go better, where the upstream says so.
    pub retry_after: Option<u32>,
}

impl Upstream {
    /// Requests that one member may have under way: each leaves a quarter of the places to the others.
    pub const fn share(places: u16) -> u16 {
        let share = places - places / 4;
        if share == 0 { 1 } else { share }
    }
}

impl UpstreamModel {
    /// True if others may be told of a model of this name: it is not empty, within its bound, and every character shows.
    pub fn is_fit(name: &str) -> bool {
        (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(|c| c.is_control() || c.is_whitespace())
    }
}

impl Bounded for Upstreams {
    fn check(&self) -> Result<(), WireError> {
        if let Some(own) = &self.own {
            at_most("models", own.models.len(), UPSTREAM_MODELS_MAX)?;
            own.models.iter().try_for_each(|model| at_most("name", model.name.len(), NAME_BYTES_MAX))?;
            at_most("trouble", own.trouble.as_ref().map_or(0, String::len), TEXT_BYTES_MAX)?;
        }
        at_most("lenders", self.others.len(), LENDERS_MAX)?;
        self.others.iter().try_for_each(Bounded::check)
    }
}

impl Bounded for Lender {
    fn check(&self) -> Result<(), WireError> {
        let PeerAddress { addresses, relay, .. } = &self.address;
        at_most("addresses", addresses.len(), ADDRESSES_MAX)?;
        addresses.iter().try_for_each(|text| at_most("address", text.len(), LENDER_ADDRESS_BYTES_MAX))?;
        at_most("relay", relay.as_ref().map_or(0, String::len), LENDER_RELAY_BYTES_MAX)?;
        at_most("grant", self.grant.len(), LENDER_GRANT_BYTES_MAX)
    }
}

impl Bounded for Ask {
    fn check(&self) -> Result<(), WireError> {
        at_most("ask", self.bytes as usize, ASK_BYTES_MAX as usize)
    }
}

impl Bounded for Head {
    fn check(&self) -> Result<(), WireError> {
        at_most("content type", self.content_type.len(), NAME_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use potluck_core::PeerId;

    use super::*;
    use crate::{CONTROL_BYTES_MAX, Frame};

    /// As much of everything as there may be.
    fn fullest() -> Upstreams {
        let model = || UpstreamModel { name: "m".repeat(NAME_BYTES_MAX), context: Some(u32::MAX) };
        let address = PeerAddress {
            peer: PeerId::from_bytes([1; 32]),
            addresses: vec!["a".repeat(LENDER_ADDRESS_BYTES_MAX); ADDRESSES_MAX],
            relay: Some("r".repeat(LENDER_RELAY_BYTES_MAX)),
        };
        let own = Upstream {
            models: (0..UPSTREAM_MODELS_MAX).map(|_| model()).collect(),
            running: u16::MAX,
            places: u16::MAX,
            trouble: Some("t".repeat(TEXT_BYTES_MAX)),
        };
        let lender = Lender { address, grant: vec![7; LENDER_GRANT_BYTES_MAX] };
        Upstreams { own: Some(own), others: vec![lender; LENDERS_MAX] }
    }

    fn decoded(frame: &Frame) -> Result<Frame, WireError> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        Frame::decode(&bytes[4..])
    }

    #[test]
    fn the_fullest_answer_is_a_control_frame_and_nothing_more_decodes() {
        let full = fullest();
        let mut bytes = Vec::new();
        Frame::Upstreams(full.clone()).encode(&mut bytes);
        assert!(bytes.len() <= CONTROL_BYTES_MAX, "{} bytes", bytes.len());
        assert_eq!(decoded(&Frame::Upstreams(full.clone())), Ok(Frame::Upstreams(full.clone())));
        let own = |change: fn(&mut Upstream)| {
            let mut all = full.clone();
            change(all.own.as_mut().unwrap());
            Frame::Upstreams(all)
        };
        let other = |change: fn(&mut Lender)| {
            let mut lender = full.others[0].clone();
            change(&mut lender);
            Frame::Lend(lender)
        };
        let head = Head { status: 200, content_type: "c".repeat(NAME_BYTES_MAX + 1), retry_after: None };
        for (what, frame) in [
            ("models", own(|own| own.models.push(own.models[0].clone()))),
            ("name", own(|own| own.models[0].name.push('m'))),
            ("trouble", own(|own| own.trouble = Some("t".repeat(TEXT_BYTES_MAX + 1)))),
            (
                "lenders",
                Frame::Upstreams(Upstreams { own: None, others: vec![full.others[0].clone(); LENDERS_MAX + 1] }),
            ),
            ("addresses", other(|lender| lender.address.addresses.push(String::new()))),
            ("address", other(|lender| lender.address.addresses[0].push('a'))),
            ("relay", other(|lender| lender.address.relay = Some("r".repeat(LENDER_RELAY_BYTES_MAX + 1)))),
            ("grant", other(|lender| lender.grant.push(7))),
            ("ask", Frame::Ask(Ask { endpoint: Endpoint::Completions, bytes: ASK_BYTES_MAX + 1 })),
            ("content type", Frame::Head(head)),
        ] {
            let refused = decoded(&frame);
            assert!(
                matches!(refused, Err(WireError::Bound { what: found, .. }) if found == what),
                "{what}: {refused:?}"
            );
        }
    }

    #[test]
    fn an_ask_names_one_of_the_endpoints_and_no_other() {
        for (number, endpoint) in Endpoint::ALL.into_iter().enumerate() {
            let mut bytes = Vec::new();
            Frame::Ask(Ask { endpoint, bytes: 5 }).encode(&mut bytes);
            assert_eq!(bytes[4..], [29, number as u8, 5], "{endpoint:?}");
        }
        assert!(matches!(Frame::decode(&[29, 3, 5]), Err(WireError::Malformed { kind: "ask", .. })));
    }

    #[test]
    fn names_that_would_not_show_are_told_to_nobody() {
        for name in ["llama3.2:1b", "org/model-7B", "ü"] {
            assert!(UpstreamModel::is_fit(name), "{name}");
        }
        for name in ["", "a b", "a\u{1b}[2J", "\n", &"m".repeat(NAME_BYTES_MAX + 1)] {
            assert!(!UpstreamModel::is_fit(name), "{name:?}");
        }
    }
}
