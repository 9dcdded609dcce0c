//! Orders of the swarm's root and of its operators: taken by whoever serves.

use std::{fmt, sync::Arc};

use potluck_core::{PeerId, SignedOrder};
use potluck_grant::{Authorized, Operating};
use potluck_wire::{CONTROL_BYTES_MAX, Failure, FailureCode, Frame, FrameReader, PeerAddress};

use crate::{NetError, Node, greet::read_next};

/// Says whether an order is obeyed, and in words what follows. It must not wait.
#[derive(Clone)]
pub struct Orders(Arc<Answer>);

type Answer = dyn Fn(SignedOrder, &Giver<'_>) -> Result<String, Failure> + Send + Sync;

/// Who gives an order, where it is not the root that signed it: whether it may is asked when that matters.
pub struct Giver<'a>(pub(crate) &'a dyn Fn() -> Result<Authorized<Operating>, Failure>);

impl Giver<'_> {
    /// Its key, if its grant lets it give orders.
    ///
    /// # Errors
    /// `NotAllowed`.
    pub fn operator(&self) -> Result<PeerId, Failure> {
        (self.0)().map(|authorized| authorized.by().peer())
    }
}

impl fmt::Debug for Giver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Giver")
    }
}

impl Orders {
    /// Takes orders like this.
    pub fn new(answer: impl Fn(SignedOrder, &Giver<'_>) -> Result<String, Failure> + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }

    /// How a stream with an order ends.
    pub(crate) fn answer(&self, order: SignedOrder, giver: &Giver<'_>) -> Failure {
        match (self.0)(order, giver) {
            Ok(words) => Failure::new(FailureCode::Done, words),
            Err(failure) => failure,
        }
    }
}

impl fmt::Debug for Orders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Orders")
    }
}

impl Node {
    /// Takes orders from now on. The first one to say so counts.
    pub fn take_orders(&self, orders: Orders) {
        let _ = self.orders.set(orders);
    }

    /// Gives a peer an order; what it says to it.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); `Failed` where it does not obey; `Lost` where it does not answer in time.
    pub async fn order(&self, to: &PeerAddress, order: SignedOrder) -> Result<String, NetError> {
        let peer = to.peer;
        let given = async {
            let mut recv = self.ask(to, Frame::Order(order)).await?;
            read_next(peer, &mut recv, &mut FrameReader::new(CONTROL_BYTES_MAX)).await
        };
        match self.in_time(to, given).await? {
            Frame::Failed(Failure { code: FailureCode::Done, detail, .. }) => Ok(detail),
            Frame::Failed(failure) => Err(NetError::Failed { peer, failure }),
            other => Err(NetError::Unexpected { peer, got: other.kind(), expected: "an answer to the order" }),
        }
    }
}
