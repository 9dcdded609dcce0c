//! How whoever runs for long hears of what is taken back.

use std::time::Duration;

use potluck_grant::Gate;
use potluck_net::Node;
use tokio::{task::JoinSet, time::interval};

use crate::{
    failure::Failure,
    home::{Home, Membership, Revoked, keep_revocations, kept_revocations, revoked_as_of, tell},
    talk::client_node,
};

/// How often it asks.
const ASK_EVERY: Duration = Duration::from_secs(3);

/// Hears of it again and again, until what is returned is dropped: asks the members that this machine knows, and reads what other commands of
/// it took back; what is new is acted on, told to `gate` as well, and kept. `node`: none, where only this machine's commands are heard.
pub(crate) fn keep_hearing(home: &Home, node: Option<Node>, gate: Option<Gate>) -> JoinSet<()> {
    let mut hearing = Hearing { home: home.clone(), node, gate, read: None, told: None };
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut ticks = interval(ASK_EVERY);
        loop {
            ticks.tick().await;
            if let Err(failure) = hearing.look().await {
                tracing::error!(code = %failure.code, "what was taken back was not heard: {}", failure.message);
            }
        }
    });
    task
}

/// Each revocation costs a signature, so that what has not changed is not read again.
struct Hearing {
    home: Home,
    node: Option<Node>,
    gate: Option<Gate>,
    /// The file that was read last.
    read: Option<Revoked>,
    /// What the node knew when the gate was told last.
    told: Option<[u8; 32]>,
}

impl Hearing {
    async fn look(&mut self) -> Result<(), Failure> {
        // This machine's own word first: it waits for nobody.
        let file = revoked_as_of(&self.home);
        if file != self.read {
            if let Some(node) = &self.node {
                node.note_revocations(kept_revocations(&self.home, &node.identity().gate)?);
            }
            if let Some(gate) = &self.gate {
                tell(&self.home, gate)?;
            }
            self.read = file;
        }
        let Some(node) = &self.node else { return Ok(()) };
        let mut asked = JoinSet::new();
        for contact in Membership::open(&self.home)?.contacts.into_iter().filter(|contact| contact.peer != node.id()) {
            let node = node.clone();
            asked.spawn(async move {
                if let Err(error) = node.pull_revocations(&contact).await {
                    tracing::debug!(peer = %contact.peer.short(), %error, "not asked what was taken back");
                }
            });
        }
        while asked.join_next().await.is_some() {}
        let known = &node.identity().gate;
        let digest = known.revocations_digest();
        if self.told != Some(digest) {
            for (gate, signed) in
                self.gate.iter().flat_map(|gate| known.revocations().into_iter().map(move |one| (gate, one)))
            {
                if let Err(error) = gate.revoke(signed) {
                    tracing::debug!(%error, "a revocation counts no longer");
                }
            }
            keep_revocations(&self.home, known)?;
            self.told = Some(digest);
        }
        Ok(())
    }
}

/// This machine as a member that only hears, where it is one.
pub(crate) async fn hearing_node(home: &Home) -> Result<Option<Node>, Failure> {
    match Membership::find(home)? {
        Some(membership) => client_node(home, &membership).await.map(Some),
        None => Ok(None),
    }
}

/// Keeps on the disk what is taken back while this machine serves; ends with what it returns.
pub(super) fn keep_what_is_taken_back(home: &Home, node: &Node) -> JoinSet<()> {
    let (home, node) = (home.clone(), node.clone());
    let mut changed = node.revocations_changed();
    let mut task = JoinSet::new();
    task.spawn(async move {
        while changed.changed().await.is_ok() {
            if let Err(failure) = keep_revocations(&home, &node.identity().gate) {
                tracing::error!(code = %failure.code, "what was taken back was not kept: {}", failure.message);
            }
        }
    });
    task
}
