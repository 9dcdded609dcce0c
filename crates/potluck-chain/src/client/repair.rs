//! How a session outlives the loss of peers: it tells its caller, is given others, and has its neighbours go on with those.
//!
//! Each peer that is replaced opens the session anew, under a newer epoch; its neighbours are told of it and keep what they hold.
//! What the lost one had been sent is sent to the new one by whoever comes before it on the route, which may be this client.

use std::time::{Duration, Instant};

use potluck_wire::{Failure, FailureCode, Frame, NeighbourLost, NextHop, PreviousHop, Reroute};

use super::{ClientSession, Effect, Hop, RemoteStage, open};
use crate::SessionError;

/// Which peers of a route are lost, and since when the session waits.
#[derive(Debug)]
pub(super) struct Repair {
    /// The newest epoch.
    epoch: u32,
    stages: Vec<Stage>,
    /// The epochs of the streams into each stage, and out of the last one.
    streams: Vec<u32>,
    /// When the first peer was lost of those in whose places nobody is ready yet.
    since: Option<Instant>,
    /// How the session would have ended before the last repair, as long as nothing was answered since: to send everything anew may be
    /// quicker than what it takes to do all of it again.
    last: Option<SessionError>,
}

#[derive(Debug, Default)]
struct Stage {
    /// The epoch at which it was opened.
    epoch: u32,
    /// How the session would have ended when its peer was lost, as long as nobody is ready in its place.
    away: Option<SessionError>,
    /// Another peer was asked to take the place.
    is_opening: bool,
    /// It stood by: what it has had already it is not sent again.
    stood_by: bool,
    /// The connection to its peer was lost, and nobody has said anything else of the peer.
    broke_off: bool,
    /// Its peer was asked to go on with the session.
    is_returning: bool,
}

impl Repair {
    pub(super) fn new(epoch: u32, stages: usize) -> Self {
        let stage = || Stage { epoch, ..Stage::default() };
        let streams = vec![epoch; stages + 1];
        Self { epoch, stages: (0..stages).map(|_| stage()).collect(), streams, since: None, last: None }
    }

    /// The epoch at which a peer was opened.
    pub(super) fn epoch_of(&self, hop: usize) -> u32 {
        self.stages.get(hop).map_or(self.epoch, |stage| stage.epoch)
    }

    /// The epoch of the steps that a stage is sent.
    pub(super) fn epoch_into(&self, hop: usize) -> u32 {
        self.streams.get(hop).copied().unwrap_or(self.epoch)
    }

    /// The epoch of what a stage passes on.
    pub(super) fn epoch_out_of(&self, hop: usize) -> u32 {
        self.epoch_into(hop + 1)
    }

    /// An epoch that has not been.
    pub(super) fn next_epoch(&mut self) -> u32 {
        self.epoch += 1;
        self.epoch
    }

    /// Another peer is asked to take a place, in the newest epoch.
    fn opens(&mut self, now: Instant, hop: usize) {
        self.since.get_or_insert(now);
        let epoch = self.epoch;
        let stage = &mut self.stages[hop];
        (stage.epoch, stage.is_opening, stage.stood_by) = (epoch, true, false);
        (stage.broke_off, stage.is_returning) = (false, false);
        (self.streams[hop], self.streams[hop + 1]) = (epoch, epoch);
    }

    /// Whoever stood by takes a lost peer's place. `fed`: the epoch of the steps that it is sent. Returns that of what it passes on.
    pub(super) fn promoted(&mut self, now: Instant, hop: usize, fed: u32, error: SessionError) -> u32 {
        self.epoch += 1;
        self.opens(now, hop);
        self.streams[hop] = fed;
        let stage = &mut self.stages[hop];
        stage.stood_by = true;
        stage.away.get_or_insert(error);
        self.epoch
    }

    /// Whether the peer is lost, and no other was asked to take its place.
    pub(super) fn is_lost(&self, hop: usize) -> bool {
        self.stages.get(hop).is_some_and(|stage| stage.away.is_some() && !stage.is_opening)
    }

    /// The stages whose peers are lost, where of none is known more than that the connection to it was.
    pub(super) fn broken_off(&self) -> Option<Vec<usize>> {
        let lost: Vec<usize> = (0..self.stages.len()).filter(|hop| self.is_lost(*hop)).collect();
        (!lost.is_empty() && lost.iter().all(|hop| self.stages[*hop].broke_off)).then_some(lost)
    }

    /// The connection to a lost peer was lost, as far as is known.
    pub(super) fn broke_off(&mut self, hop: usize) {
        let is_lost = self.is_lost(hop);
        if let Some(stage) = self.stages.get_mut(hop) {
            stage.broke_off = is_lost;
        }
    }

    /// The peers of these stages are asked to go on.
    pub(super) fn asks_back(&mut self, now: Instant, hops: &[usize]) {
        self.since.get_or_insert(now);
        for &hop in hops {
            let stage = &mut self.stages[hop];
            (stage.is_opening, stage.is_returning) = (true, true);
            (stage.broke_off, stage.stood_by) = (false, false);
        }
    }

    /// Whether a peer was asked to go on, and has not said that it does.
    pub(super) fn is_returning(&self, hop: usize) -> bool {
        self.stages.get(hop).is_some_and(|stage| stage.is_returning)
    }

    /// Whether no peer is at that place and ready.
    pub(super) fn is_away(&self, hop: usize) -> bool {
        self.stages.get(hop).is_some_and(|stage| stage.away.is_some() || stage.is_opening)
    }

    /// How the session would have ended, where a peer is lost and nobody is ready in its place.
    pub(super) fn lost(&self) -> Option<SessionError> {
        self.stages.iter().find_map(|stage| stage.away.clone()).or_else(|| self.last.clone())
    }

    /// A step was answered.
    pub(super) fn answered(&mut self) {
        self.last = None;
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.since.is_some()
    }

    /// Whether all were waited for that had to be, and are there; then nothing is waited for any more.
    pub(super) fn is_complete(&mut self) -> bool {
        self.stages.iter().all(|stage| stage.away.is_none()) && self.since.take().is_some()
    }

    /// Until when it waits.
    pub(super) fn deadline(&self, grace: Option<Duration>) -> Option<Instant> {
        Some(self.since? + grace?)
    }
}

impl ClientSession {
    /// The step that the last peer's answer is due for: what came before, the client has.
    pub(super) fn answered(&self, hop: usize) -> u32 {
        match hop + 1 == self.config.route.len() {
            true => self.pending.front().map_or(self.sequence, |due| due.sequence),
            false => self.returned,
        }
    }

    /// The step before which all were answered by the last stage, and whether these may be merged when they are sent again.
    pub(super) fn answered_so_far(&self) -> (u32, bool) {
        (self.last_remote().map_or(0, |last| self.answered(last)), !self.config.exact)
    }

    /// The step before which all may be merged when they are sent again; 0: none.
    pub(super) fn settled(&self) -> u32 {
        let (answered, merges) = self.answered_so_far();
        if merges { answered } else { 0 }
    }

    /// A peer's stream ended: the session ends with it, or waits for another peer.
    pub(super) fn peer_gone(&mut self, now: Instant, hop: usize, failure: Failure) -> Result<(), SessionError> {
        // Another is looked for already, whatever it says.
        if self.repair.is_lost(hop) {
            return Ok(());
        }
        let was_forgotten = failure.code == FailureCode::Forgotten;
        let error = self.peer_failed(hop, failure);
        // Whoever was to take a place and cannot, for whatever reason, is not the last.
        let may_be_replaced = error.is_loss() || self.repair.stages[hop].is_opening;
        if self.config.deadlines.grace.is_none() || !self.ready || !may_be_replaced || was_forgotten {
            return Err(error);
        }
        self.lose(now, hop, error);
        Ok(())
    }

    /// A peer says that its neighbour is lost.
    pub(super) fn neighbour_lost(&mut self, now: Instant, hop: usize, lost: NeighbourLost) -> Result<(), SessionError> {
        let NeighbourLost { epoch, failure } = lost;
        if epoch > self.repair.epoch {
            return Err(self.protocol(hop, format!("it told of a neighbour of epoch {epoch}, which has not been")));
        }
        if self.lost_standby(hop, epoch, &failure) {
            return Ok(());
        }
        // Whoever is lost itself misses everybody.
        if self.repair.is_lost(hop) {
            return Ok(());
        }
        let named = failure.peer;
        let beside = [hop.checked_sub(1), Some(hop + 1)].into_iter().flatten();
        let place = beside.into_iter().find(|beside| named.is_some() && self.peer(*beside) == named);
        // What it says of a peer that is on the route no more, or was opened anew since, is old.
        let Some(place) = place.filter(|place| epoch >= self.repair.epoch_into(hop.max(*place))) else { return Ok(()) };
        // That it cannot be heard may be its own doing. Whatever else it says of a neighbour it has from there.
        let may_be_deaf = failure.code == FailureCode::PeerLost && !self.repair.is_lost(place);
        if may_be_deaf && self.ready && self.config.deadlines.grace.is_some() {
            self.doubt(now, hop, place, failure);
            return Ok(());
        }
        self.neighbour_gone(now, place, failure)
    }

    /// A peer is lost, by the word of a neighbour: it is not this client alone that has lost it.
    pub(super) fn neighbour_gone(&mut self, now: Instant, place: usize, failure: Failure) -> Result<(), SessionError> {
        self.repair.stages[place].broke_off = false;
        self.peer_gone(now, place, failure)
    }

    fn peer(&self, hop: usize) -> Option<potluck_core::PeerId> {
        self.config.route.get(hop).and_then(Hop::peer)
    }

    fn lose(&mut self, now: Instant, hop: usize, error: SessionError) {
        self.doubts.forget(hop);
        // What it was asked to keep it does not say any more.
        if self.give_up_saving(error.clone()) {
            return;
        }
        self.owed[hop] = false;
        if self.repair.is_lost(hop) || self.promote(now, hop, &error) {
            return;
        }
        self.drop_standbys_at(hop);
        self.leaving[hop] = None;
        let stage = &mut self.repair.stages[hop];
        stage.away.get_or_insert_with(|| error.clone());
        (stage.is_opening, stage.is_returning) = (false, false);
        self.repair.since.get_or_insert(now);
        self.waiting_for[hop] = true;
        self.effects.push_back(Effect::Lost { hop, error });
    }

    /// Other peers take the places of those that are lost, or the same ones once more. Every lost stage has to be among them.
    ///
    /// # Errors
    /// `BadStep` where one is missing, or the route is none then: it stays as it was. `Closed` after the end.
    pub fn replace(&mut self, now: Instant, others: Vec<(usize, RemoteStage)>) -> Result<(), SessionError> {
        if self.over {
            return Err(SessionError::Closed);
        }
        let is_given = |hop: usize| others.iter().any(|(given, _)| *given == hop);
        let missing = (0..self.config.route.len()).find(|hop| self.repair.is_lost(*hop) && !is_given(*hop));
        if let Some(hop) = missing {
            return Err(SessionError::BadStep(format!("nobody takes the place of layers {}", self.layers(hop))));
        }
        let mut route = self.config.route.clone();
        for (hop, other) in others.iter().cloned() {
            let place = route.get_mut(hop).filter(|place| place.spec() == other.spec && place.peer().is_some());
            let Some(place) = place else {
                return Err(SessionError::BadStep(format!(
                    "stage {hop} of the route is another's, or the client's own"
                )));
            };
            *place = Hop::Remote(other);
        }
        open::check_route(&route)?;
        let replaced: Vec<usize> = (0..route.len()).filter(|hop| is_given(*hop)).collect();
        self.drop_standbys_of(&others.iter().map(|(_, other)| other.address.peer).collect::<Vec<_>>());
        self.config.route = route;
        self.repair.epoch += 1;
        for &hop in &replaced {
            self.drop_standbys_at(hop);
            self.leaving[hop] = None;
            self.doubts.forget(hop);
            self.owed[hop] = false;
            self.repair.opens(now, hop);
            self.waiting_for[hop] = true;
            self.effects.push_back(Effect::Reopen { hop });
        }
        for hop in 0..self.config.route.len() {
            if replaced.contains(&hop) {
                if self.last_remote() == Some(hop) {
                    (self.receipts, self.credited_from) = (Default::default(), self.returned);
                }
                self.open(hop);
            } else if self.remote(hop).is_some() {
                let beside = |other: Option<usize>| other.is_some_and(|other| replaced.contains(&other));
                let previous = Some(self.previous(hop)).filter(|_| beside(hop.checked_sub(1)));
                let next = Some(self.next(hop)).filter(|_| beside(Some(hop + 1)));
                self.reroute(hop, previous, next);
            }
        }
        Ok(())
    }

    /// Tells a peer that is still there of its new neighbours, if it has any.
    pub(super) fn reroute(&mut self, hop: usize, previous: Option<PreviousHop>, next: Option<NextHop>) {
        if previous.is_some() || next.is_some() {
            let epoch = self.repair.epoch;
            let (answered, merges) = self.answered_so_far();
            self.waiting_for[hop] = true;
            self.send(hop, Frame::Reroute(Box::new(Reroute { epoch, previous, next, answered, merges })));
        }
    }

    /// A peer is ready. Where it has taken another's place, it is told what the other was told; `expected`: where it was there before, the
    /// step that it goes on with.
    pub(super) fn is_back(&mut self, hop: usize, expected: Option<u32>) -> Result<(), SessionError> {
        let stage = &mut self.repair.stages[hop];
        if !std::mem::take(&mut stage.is_opening) {
            return Ok(());
        }
        let (lost, stood_by) = (stage.away.take(), std::mem::take(&mut stage.stood_by));
        stage.is_returning = false;
        self.repair.last = lost.or(self.repair.last.take());
        if self.config.route.iter().position(|hop| hop.peer().is_some()) == Some(hop) {
            if !stood_by {
                self.credit = Default::default();
            }
            // One that was there before is sent what it has not had.
            let is_whole = match expected {
                Some(expected) => self.journal.go_on(expected, self.settled()),
                None => stood_by || self.journal.resume(0, self.settled()),
            };
            let _ = self.journal.pass_over();
            if !is_whole {
                let detail = "what another peer would have to be sent was let go of";
                return Err(self.peer_failed(hop, Failure::new(FailureCode::Forgotten, detail)));
            }
            self.flush(hop);
        }
        self.ask_account_again(hop);
        if let Some((sequence, row)) = self.row_wanted.filter(|_| hop + 1 == self.config.route.len()) {
            self.send(hop, Frame::RowRequest { sequence, row });
        }
        Ok(())
    }
}
