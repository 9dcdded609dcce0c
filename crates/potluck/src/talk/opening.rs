//! A session is opened, and where that fails for a reason that may pass, or that is one peer's, it is tried again over a route that is
//! planned anew.

use std::time::{Duration, Instant};

use potluck_chain::SessionError;
use potluck_core::PeerId;
use potluck_wire::FailureCode;
use tokio::time::{sleep, timeout_at};

use super::{
    AnyChain, own_peers,
    start::{Opened, Wanted, local},
    swarm,
};
use crate::{args::RouteArgs, embedded::Embedded, failure::Failure};

/// How long a lost session's peers may take to be ready again: between two answers, and in the midst of one.
pub(super) const REOPEN_WITHIN: Duration = Duration::from_secs(10);
pub(super) const RESUME_WITHIN: Duration = Duration::from_secs(30);

/// How often they are asked.
pub(super) const REOPEN_EVERY: Duration = Duration::from_millis(200);

/// How long is waited for a peer that is loading what is missing for a route.
pub(super) const LOADED_WITHIN: Duration = Duration::from_secs(300);

/// How often it is looked whether it is there.
pub(super) const LOADED_EVERY: Duration = Duration::from_secs(2);

/// Nobody has the layers that are missing for a route, and somebody is loading them.
pub(super) const LOADING: &str = "loading";

/// Why there is no session.
pub(super) enum Unopened {
    /// There was a route, and no session over it.
    Session(SessionError),
    /// Anything else.
    Failed(Failure),
}

impl From<SessionError> for Unopened {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl From<Failure> for Unopened {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Unopened> for Failure {
    fn from(unopened: Unopened) -> Self {
        match unopened {
            Unopened::Session(error) => error.into(),
            Unopened::Failed(failure) => failure,
        }
    }
}

/// Peers over which a session could not be opened: the next is planned over others, where there are others.
///
/// What a peer offers says how it was up to fifteen seconds ago: it may be full by now, or stuck.
#[derive(Debug, Default)]
pub(super) struct PassedOver {
    peers: Vec<PeerId>,
    /// Those to whom it has happened once that may be there again in a moment.
    once: Vec<PeerId>,
}

impl PassedOver {
    pub(super) fn peers(&self) -> &[PeerId] {
        &self.peers
    }

    /// The same for a session that is to come back: another peer may cost more than to wait for an engine that starts again, or for
    /// a cache that is about to be free. Who is stuck or gone is passed over at once, and others the second time.
    pub(super) fn note_again(&mut self, error: &SessionError) {
        let (SessionError::Peer { peer, failure, .. } | SessionError::PeerLost { peer, failure, .. }) = error else {
            return;
        };
        let is_gone = matches!(failure.code, FailureCode::PeerLost | FailureCode::Deadline);
        if is_gone || self.once.contains(peer) {
            self.note(error);
        } else {
            self.once.push(*peer);
        }
    }

    /// True where another peer may do what this one did not, and it was not passed over before.
    pub(super) fn note(&mut self, error: &SessionError) -> bool {
        let (SessionError::Peer { peer, failure, .. } | SessionError::PeerLost { peer, failure, .. }) = error else {
            return false;
        };
        let is_its_own = matches!(
            failure.code,
            FailureCode::Busy | FailureCode::OverBudget | FailureCode::Deadline | FailureCode::Engine
        );
        // Whom it names beside that is none of the route's: anybody could be made up.
        let is_new = (is_its_own || error.is_loss()) && !self.peers.contains(peer);
        if is_new {
            self.peers.push(*peer);
        }
        is_new
    }
}

/// A session; where a peer is loading what is missing for one, that is waited for. Where one is lost while the session opens, the route is
/// planned again: the next may not lead over it, or it may be back. So it is where one has no room, or is stuck, and was not asked twice.
pub(super) async fn open_when_loaded(wanted: &Wanted<'_>, route: &RouteArgs) -> Result<Opened, Failure> {
    let (begun, mut bar, mut passed) = (Instant::now(), None, PassedOver::default());
    // Why it was planned again, and until when that may pass.
    let mut last = None::<(Failure, Instant)>;
    loop {
        let failure = match open(wanted, route, &passed).await {
            Ok(opened) => return Ok(opened),
            Err(Unopened::Session(error))
                if begun.elapsed() < RESUME_WITHIN && (passed.note(&error) || error.is_loss()) =>
            {
                let patience = if error.is_loss() { REOPEN_WITHIN } else { Duration::ZERO };
                let again = Failure::from(error);
                let is_told = last.is_some_and(|(told, _)| told == again);
                if let Some(screen) = wanted.screen.filter(|_| !is_told) {
                    screen.aside(format!("{}: the route is planned again", again.message));
                }
                last = Some((again, Instant::now() + patience));
                sleep(REOPEN_EVERY).await;
                continue;
            }
            Err(unopened) => Failure::from(unopened),
        };
        if failure.code == LOADING && begun.elapsed() < LOADED_WITHIN {
            bar = bar.or_else(|| Some(wanted.screen?.wait(failure.message)));
            sleep(LOADED_EVERY).await;
            continue;
        }
        match &last {
            Some((_, until)) if comes_back(&failure) && Instant::now() < *until => sleep(REOPEN_EVERY).await,
            // That nobody else can says less than who is gone.
            Some((lost, _)) if failure.code == "no_route" => return Err(lost.clone()),
            _ => return Err(failure),
        }
    }
}

/// Another session in the midst of an answer that has lost its own, and why it is what it is where that may have changed.
pub(super) async fn open_again(
    wanted: &Wanted<'_>,
    route: &RouteArgs,
    embedded: Option<&Embedded>,
    lost: &SessionError,
) -> Result<(AnyChain, Option<String>), Failure> {
    // An engine comes back; a peer that this command started does not.
    if embedded.is_some() && lost.code() != "engine_lost" {
        return Err(lost.clone().into());
    }
    open_within(wanted, route, embedded, RESUME_WITHIN).await
}

/// Another session after one was lost: over the same peers where this command started them.
///
/// What comes back by itself is waited for, for `patience` at most: an engine that starts again, a peer that is about to be at
/// another relay.
pub(super) async fn open_within(
    wanted: &Wanted<'_>,
    route: &RouteArgs,
    embedded: Option<&Embedded>,
    patience: Duration,
) -> Result<(AnyChain, Option<String>), Failure> {
    let (begun, seconds) = (Instant::now(), patience.as_secs());
    let mut last = Failure::new("deadline", format!("no other route within {seconds} s"), "run it again");
    let (mut until, mut passed) = (begun + patience, PassedOver::default());
    loop {
        let opened = async {
            if let Some(embedded) = embedded {
                return Ok((own_peers::open_again(wanted, embedded, route.ends()).await?, None));
            }
            let opened = open(wanted, route, &passed).await?;
            Ok((opened.chain, Some(opened.verdict)))
        };
        let unopened = match timeout_at(until.into(), opened).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(unopened)) => unopened,
            Err(_) => return Err(last),
        };
        if let Unopened::Session(error) = &unopened {
            passed.note_again(error);
        }
        last = Failure::from(unopened);
        if last.code == LOADING {
            // What is loaded may take longer to be there.
            until = until.max((Instant::now() + patience).min(begun + LOADED_WITHIN));
            sleep(LOADED_EVERY).await;
        } else if !comes_back(&last) {
            return Err(last);
        }
        sleep(REOPEN_EVERY).await;
    }
}

/// True for what a peer says while its engine starts again, and for what is said of one that is not there for a while.
fn comes_back(failure: &Failure) -> bool {
    let codes = ["engine_lost", "not_served", "busy", "peer_lost", "peer_failed", "deadline", "no_route", LOADING];
    codes.contains(&failure.code.as_ref())
}

async fn open(wanted: &Wanted<'_>, route: &RouteArgs, passed: &PassedOver) -> Result<Opened, Unopened> {
    match route.peers {
        // Peers that this command starts have no others beside them.
        Some(peers) => Ok(own_peers::open(wanted, peers.into(), route.ends()).await?),
        None if route.local => Ok(local(wanted, String::new()).await?),
        None => swarm::open(wanted, route.prefer, passed.peers()).await,
    }
}
