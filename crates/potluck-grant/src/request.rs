//! What each message of the wire takes, where it asks a peer for something.

use core::net::{IpAddr, Ipv4Addr};

use potluck_core::SignedOffer;
use potluck_wire::{Ask, Call, Dial, Fetch, HopOpen, Host, Lender, OpenSession, Part, Service};

use crate::{Need, Reach, Request, Right};

/// A question for what there is: offers, models, lenders, revocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looking;

/// To be a peer that others open sessions at and pass their steps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lending;

fn any_model(right: Right) -> Need {
    Need { right, model: None }
}

impl Request for Looking {
    fn needs(&self) -> Need {
        any_model(Right::Look)
    }
}

impl Request for Lending {
    fn needs(&self) -> Need {
        any_model(Right::Lend)
    }
}

impl Request for OpenSession {
    fn needs(&self) -> Need {
        Need { right: Right::Use, model: Some(self.stage.model) }
    }
}

/// Whoever passes on another's steps is a peer of its route.
impl Request for HopOpen {
    fn needs(&self) -> Need {
        any_model(Right::Lend)
    }
}

/// The header is what whoever asks needs to know; weights are another right.
impl Request for Fetch {
    fn needs(&self) -> Need {
        let right = match self.part {
            Part::Held | Part::Manifest(_) => Right::Look,
            Part::Hashes(..) | Part::Piece(..) => Right::Fetch,
        };
        Need { right, model: Some(self.model) }
    }
}

/// An upstream's models have names, and no id that a grant could name.
impl Request for Ask {
    fn needs(&self) -> Need {
        any_model(Right::Use)
    }
}

impl Request for SignedOffer {
    fn needs(&self) -> Need {
        any_model(Right::Lend)
    }
}

impl Request for Lender {
    fn needs(&self) -> Need {
        any_model(Right::Lend)
    }
}

/// A service, of a host that may not be resolved yet: what is resolved is asked for again.
impl Request for Dial {
    fn needs(&self) -> Need {
        any_model(Right::Reach)
    }

    fn reaches(&self) -> Option<Reach> {
        let own = matches!(self.host, Host::Own).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Some(Reach { service: self.service, address: own.or(self.host.address()) })
    }
}

/// An application of the peer. It has no port of its own: grants that name ports mean it by TCP port 0 of the peer
/// itself.
impl Request for Call {
    fn needs(&self) -> Need {
        any_model(Right::Reach)
    }

    fn reaches(&self) -> Option<Reach> {
        Some(Reach { service: Service::Tcp(0), address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)) })
    }
}

/// A service at an address.
impl Request for Reach {
    fn needs(&self) -> Need {
        any_model(Right::Reach)
    }

    fn reaches(&self) -> Option<Reach> {
        Some(*self)
    }
}
