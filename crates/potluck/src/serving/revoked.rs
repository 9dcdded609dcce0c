//! How whoever runs for long hears of what is taken back.

use std::time::Duration;

use potluck_grant::Gate;
use potluck_net::Node;
use potluck_wire::PeerAddress;
use tokio::{task::JoinSet, time::interval};

use crate::{
    failure::Failure,
    home::{Home, keep_revocations, kept_revocations, tell},
};

/// How often it asks.
const ASK_EVERY: Duration = Duration::from_secs(3);

/// Members that are asked each time.
const ASKED: usize = 3;

/// Asks some members what was taken back, and reads what other commands of this machine took back; what is new is acted on and kept.
pub(crate) async fn hear_revocations(home: &Home, node: &Node, contacts: &[PeerAddress]) -> Result<(), Failure> {
    for contact in contacts.iter().filter(|contact| contact.peer != node.id()).take(ASKED) {
        if let Err(error) = node.pull_revocations(contact).await {
            tracing::debug!(peer = %contact.peer.short(), %error, "not asked what was taken back");
        }
    }
    let gate = &node.identity().gate;
    node.note_revocations(kept_revocations(home, gate)?);
    keep_revocations(home, gate)
}

/// The same again and again, and for another gate of this process, until what is returned is dropped. `node`: none, where only this machine's
/// commands are heard.
pub(crate) fn keep_hearing(home: &Home, node: Option<(Node, Vec<PeerAddress>)>, gate: Option<Gate>) -> JoinSet<()> {
    let home = home.clone();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut ticks = interval(ASK_EVERY);
        loop {
            ticks.tick().await;
            let heard = match &node {
                Some((node, contacts)) => hear_revocations(&home, node, contacts).await,
                None => Ok(()),
            };
            let told = heard.and_then(|()| gate.as_ref().map_or(Ok(()), |gate| tell(&home, gate)));
            if let Err(failure) = told {
                tracing::error!(code = %failure.code, "what was taken back was not heard: {}", failure.message);
            }
        }
    });
    task
}
