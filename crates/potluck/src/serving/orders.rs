//! Orders that a serving peer takes: its swarm's root is the operator.

use std::sync::Mutex;

use potluck_core::{Action, Order, PeerId};
use potluck_net::Orders;
use potluck_wire::{Failure, FailureCode};
use tokio::sync::mpsc;

use crate::commands::swarm::utc_now;

/// Orders that may wait while a peer carries one out. A further one is refused.
const WAITING_MAX: usize = 4;

/// What takes the orders of `root` (the swarm's public key) for `peer`, and where they come out.
pub(crate) fn orders(root: PeerId, peer: PeerId) -> (Orders, mpsc::Receiver<Action>) {
    let (send, receive) = mpsc::channel(WAITING_MAX);
    let last = Mutex::new(0u64);
    let taken = Orders::new(move |signed| {
        let refused = |error| Failure::new(FailureCode::NotAdmitted, error);
        let Order { sequence, action, .. } = signed.verify(root, peer, utc_now()).map_err(refused)?;
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if sequence <= *last {
            return Err(Failure::new(FailureCode::NotAdmitted, "a later order was given already"));
        }
        send.try_send(action).map_err(|_| Failure::new(FailureCode::Busy, "an earlier order is under way"))?;
        *last = sequence;
        Ok(match action {
            Action::Load { layers, .. } => format!("layers {layers} once its open sessions have ended"),
            Action::Unload => "nothing once its open sessions have ended".into(),
        })
    });
    (taken, receive)
}
