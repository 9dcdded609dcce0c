//! Orders that a serving peer takes: from its swarm's root, and from whoever that lets give them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use potluck_core::{Action, Order, OrderError, PeerId};
use potluck_grant::Gate;
use potluck_net::Orders;
use potluck_wire::{Failure, FailureCode};
use tokio::sync::mpsc;

use crate::commands::swarm::utc_now;

/// Orders that may wait while a peer carries one out. A further one is refused.
const WAITING_MAX: usize = 4;

/// Keys whose last order is remembered. A further key's is refused until this peer starts again.
const GIVERS_MAX: usize = 256;

/// What takes the orders of the swarm's root and of operators for `peer`, and where they come out.
pub(crate) fn orders(gate: Gate, peer: PeerId) -> (Orders, mpsc::Receiver<Action>) {
    let (send, receive) = mpsc::channel(WAITING_MAX);
    let last = Mutex::new(BTreeMap::<PeerId, u64>::new());
    let taken = Orders::new(move |signed, giver| {
        let root = gate.root();
        let refused = |error| Failure::new(FailureCode::NotAdmitted, error);
        let (by, verified) = match signed.verify(root, peer, utc_now()) {
            Err(OrderError::Signature) => {
                let operator = giver.operator()?;
                (operator, signed.verify(operator, peer, utc_now()))
            }
            verified => (root, verified),
        };
        let Order { sequence, action, .. } = verified.map_err(refused)?;
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(&by).is_some_and(|&before| sequence <= before) {
            return Err(Failure::new(FailureCode::NotAdmitted, "a later order was given already"));
        }
        if last.len() >= GIVERS_MAX && !last.contains_key(&by) {
            return Err(Failure::new(FailureCode::Busy, "too many have given orders here"));
        }
        send.try_send(action).map_err(|_| Failure::new(FailureCode::Busy, "an earlier order is under way"))?;
        last.insert(by, sequence);
        Ok(match action {
            Action::Load { layers, .. } => format!("layers {layers} once its open sessions have ended"),
            Action::Unload => "nothing once its open sessions have ended".into(),
        })
    });
    (taken, receive)
}
