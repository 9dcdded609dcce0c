//! Models that members lend by upstreams: which there are now, and who is asked next.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use n0_future::{boxed::BoxFuture, stream::unfold};
use potluck_core::{Endpoint, PeerId};
use potluck_gateway::{BODY_BYTES_MAX, Lent, LentAnswer, LentModel, Problem, Whose};
use potluck_net::{LentAnswer as NetAnswer, LentBody, NetError, Node};
use potluck_wire::{ASK_BYTES_MAX, FailureCode, PeerAddress};
use tokio::time::sleep;

use super::lenders::{Chosen, Table};
use crate::{
    args::Privacy,
    failure::Failure,
    home::{Home, Membership, trusted},
    placement::members,
    serving::{Heard, hear_lenders, offers_of},
};

/// How often members are asked what they lend.
const ASK_EVERY: Duration = Duration::from_secs(3);

/// How often members are looked for.
const FIND_EVERY: Duration = Duration::from_secs(30);

/// Seconds after which it may go better where all lenders are busy, and where none is well.
const RETRY_BUSY_SECONDS: u32 = 2;
const RETRY_LENDERS_SECONDS: u32 = 5;

const _: () = assert!(BODY_BYTES_MAX <= ASK_BYTES_MAX as usize, "what a gateway takes, a lender takes");

/// The lenders of this machine's swarm, watched for as long as there is a clone of this.
#[derive(Debug, Clone)]
pub(crate) struct Lenders(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: Node,
    home: Home,
    /// Whether only those may be asked that the user trusts.
    only_trusted: bool,
    /// Whether conversations come in pieces of a few sizes.
    pad: bool,
    /// Whom to ask.
    members: Mutex<Vec<PeerAddress>>,
    table: Mutex<Table>,
}

/// What kept a lender from answering.
enum Declined {
    /// Its upstream answers, but that another may do better.
    Answer(Box<NetAnswer>, Chosen),
    Problem(Problem),
}

impl Lenders {
    /// Asks the members once, and then again and again.
    /// Sends requests to those alone that may see them.
    pub(crate) async fn watch(home: &Home, node: Node, membership: &Membership, privacy: &Privacy) -> Self {
        let (only_trusted, pad) = (privacy.trusted_layers > 0, privacy.pad);
        let members = Mutex::new(membership.contacts.clone());
        let lenders =
            Self(Arc::new(Inner { node, home: home.clone(), only_trusted, pad, members, table: Mutex::default() }));
        lenders.0.ask_all().await;
        tokio::spawn(again(Arc::downgrade(&lenders.0), FIND_EVERY, async |inner: &Inner| inner.find_members().await));
        tokio::spawn(again(Arc::downgrade(&lenders.0), ASK_EVERY, async |inner: &Inner| inner.ask_all().await));
        lenders
    }

    /// Names of the models that are lent now.
    pub(crate) fn names(&self) -> Vec<String> {
        self.models().into_iter().map(|model| model.name).collect()
    }

    async fn answer(self, model: String, endpoint: Endpoint, body: Bytes) -> Result<LentAnswer, Problem> {
        let mut tried = BTreeSet::new();
        let mut declined = None;
        loop {
            let chosen = self.0.table().choose(&model, &tried);
            let Some(chosen) = chosen else { break };
            tried.insert(chosen.address.peer);
            if !self.0.may_see(&chosen.address.peer) {
                continue;
            }
            match self.0.node.ask_upstream(&chosen.address, endpoint, &body, self.0.pad).await {
                Ok(answer) if is_final(answer.head.status) => return Ok(passed(answer, chosen)),
                Ok(answer) => declined = Some(refused(answer, chosen)),
                Err(error) => {
                    let peer = chosen.address.peer;
                    tracing::info!(peer = %peer.short(), %error, "a lender did not answer");
                    if !is_busy(&error) {
                        self.0.table().lost(peer);
                    }
                    // Whoever has waited for so long does not wait for as long again.
                    let over =
                        matches!(&error, NetError::Failed { failure, .. } if failure.code == FailureCode::Deadline);
                    declined = Some(Declined::Problem(problem(error)));
                    if over {
                        break;
                    }
                }
            }
        }
        match declined {
            Some(Declined::Answer(answer, chosen)) => Ok(passed(*answer, chosen)),
            Some(Declined::Problem(problem)) => Err(problem),
            None => {
                let message = format!("nobody lends `{model}` now");
                Err(Problem::new(Whose::Lenders(RETRY_LENDERS_SECONDS), "not_lent", message))
            }
        }
    }
}

impl Lent for Lenders {
    fn models(&self) -> Vec<LentModel> {
        self.0.table().models()
    }

    fn knew(&self, name: &str) -> bool {
        self.0.table().knew(name)
    }

    fn places(&self, model: &str) -> usize {
        self.0.table().places(model)
    }

    fn ask(&self, model: String, endpoint: Endpoint, body: Bytes) -> BoxFuture<Result<LentAnswer, Problem>> {
        Box::pin(self.clone().answer(model, endpoint, body))
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that one may be sent conversations, by the list as it is now: one that cannot be read trusts nobody.
    fn may_see(&self, peer: &PeerId) -> bool {
        !self.only_trusted || trusted(&self.home).is_ok_and(|list| list.contains(peer))
    }

    async fn ask_all(&self) {
        let mut asked = self.members.lock().unwrap_or_else(PoisonError::into_inner).clone();
        asked.extend(self.table().ask());
        hear_lenders(&self.node, asked, |heard| match &heard {
            Heard::Lends(lender) if !self.may_see(&lender.address.peer) => self.table().lost(lender.address.peer),
            _ => self.table().hear(heard),
        })
        .await;
    }

    async fn find_members(&self) {
        let found: Result<_, Failure> = async {
            let contacts = Membership::open(&self.home)?.contacts;
            let (offers, _) = offers_of(&self.node, &contacts).await;
            Ok(members(&offers, &contacts))
        }
        .await;
        match found {
            Ok(found) => *self.members.lock().unwrap_or_else(PoisonError::into_inner) = found,
            Err(failure) => tracing::info!(code = %failure.code, "the members that were known are asked on"),
        }
    }
}

/// Does something every so often, for as long as it is there.
async fn again(inner: Weak<Inner>, every: Duration, work: impl AsyncFn(&Inner)) {
    while let Some(inner) = inner.upgrade() {
        work(&inner).await;
        drop(inner);
        sleep(every).await;
    }
}

/// What another lender would answer, too.
fn is_final(status: u16) -> bool {
    !matches!(status, 0..=199 | 300..=399 | 401 | 403 | 407 | 429 | 502 | 503 | 504 | 600..)
}

/// Whose fault an answer is that is not passed on at once.
fn refused(answer: NetAnswer, chosen: Chosen) -> Declined {
    let status = answer.head.status;
    if matches!(status, 429 | 502..=504) {
        return Declined::Answer(Box::new(answer), chosen);
    }
    // It is the lender's key that was refused, not the caller's.
    let message = format!("the upstream of peer {} refuses its lender: {status}", chosen.address.peer.short());
    Declined::Problem(Problem::new(Whose::Lenders(RETRY_LENDERS_SECONDS), "upstream_refused", message))
}

fn is_busy(error: &NetError) -> bool {
    matches!(error, NetError::Failed { failure, .. } if failure.code == FailureCode::Busy)
}

fn problem(error: NetError) -> Problem {
    let whose = if is_busy(&error) { Whose::Busy(RETRY_BUSY_SECONDS) } else { Whose::Lenders(RETRY_LENDERS_SECONDS) };
    let code = match &error {
        NetError::Failed { failure, .. } if matches!(failure.code, FailureCode::EngineLost | FailureCode::Deadline) => {
            "upstream_lost"
        }
        _ => error.code(),
    };
    Problem::new(whose, code, error)
}

/// The answer, with all that its end is to free.
fn passed(answer: NetAnswer, chosen: Chosen) -> LentAnswer {
    let NetAnswer { head, body } = answer;
    let body = unfold(Some((body, chosen)), async |state: Option<(LentBody, Chosen)>| {
        let (mut body, chosen) = state?;
        match body.next().await {
            Ok(piece) => Some((Ok(piece?), Some((body, chosen)))),
            Err(error) => Some((Err(problem(error)), None)),
        }
    });
    let potluck_wire::Head { status, content_type, retry_after } = head;
    LentAnswer { status, content_type, retry_after, body: Box::pin(body) }
}
