//! Standbys: peers that compute what a peer of the route computes, and are ready when it is lost.
//!
//! Whoever comes before that peer, which may be this client, sends its steps to the standby as well. The stream to a standby is that of
//! no stage of the route: its `hop` is the stage's, and the route's length more.

use std::time::{Duration, Instant};

use potluck_core::PeerId;
use potluck_wire::{Failure, FailureCode, Frame, Mirror, NextHop, Reroute};

use super::{ClientSession, Effect, Hop, RemoteStage};
use crate::{Credit, Level, SessionError};

/// Whoever stands by for a peer that is about to go has so long to be as far: a long prompt takes its time. Who is not makes room for
/// another.
const LEVEL_WITHIN: Duration = Duration::from_secs(60);

/// Who stands by for one stage.
#[derive(Debug)]
pub(super) struct Standby {
    stage: RemoteStage,
    epoch: u32,
    is_ready: bool,
    since: Instant,
    /// Where this client comes before it.
    credit: Credit,
    level: Level,
    /// It was as far as the peer that it stands by for: by what this client sees, or by what it is told.
    has_caught_up: bool,
}

impl ClientSession {
    /// A peer is to stand by for that stage: it is opened, and sent all steps of the session so far, and all that follow. Where the
    /// stage's peer is lost, it takes its place at once. One for each stage.
    ///
    /// # Errors
    /// `BadStep` where the session is not to outlive its peers, or has positions of another; where the stage is the client's own or
    /// lost, or has a standby; where the peer is on the route, or its stage another. `Closed` after the end.
    pub fn stand_by(&mut self, now: Instant, hop: usize, stage: RemoteStage) -> Result<(), SessionError> {
        if self.over {
            return Err(SessionError::Closed);
        }
        let bad = |text: &str| Err(SessionError::BadStep(text.into()));
        let peer = stage.address.peer;
        if !self.ready || self.config.deadlines.grace.is_none() || self.config.prefix.is_some() {
            return bad("nobody can stand by for a peer of this session");
        }
        if self.repair.is_under_way() {
            return bad("a peer is lost: its place comes first");
        }
        if self.saving.is_some() {
            return bad("what the stages hold is being kept, or comes back");
        }
        if self.remote(hop).is_none_or(|present| present.spec != stage.spec) || self.standbys[hop].is_some() {
            return bad("it stands by for a stage of the route that has no standby, and is no other");
        }
        let others = self.standbys.iter().flatten().map(|standby| standby.stage.address.peer);
        if self.config.route.iter().filter_map(Hop::peer).chain(others).any(|other| other == peer) {
            return bad("a peer of the route stands by for nobody");
        }
        let (spec, epoch) = (stage.spec, self.repair.next_epoch());
        let (is_ready, has_caught_up, since) = (false, false, now);
        let (credit, level) = Default::default();
        self.standbys[hop] = Some(Standby { stage, epoch, is_ready, since, credit, level, has_caught_up });
        let at = self.config.route.len() + hop;
        self.effects.push_back(Effect::Reopen { hop: at });
        self.open_peer(at, (hop, spec), epoch, NextHop::Nobody, (None, 0));
        self.tell_previous(hop);
        Ok(())
    }

    /// Who is at that stream: a peer of the route, or a standby.
    pub fn peer_at(&self, hop: usize) -> Option<&RemoteStage> {
        match hop.checked_sub(self.config.route.len()) {
            None => self.remote(hop),
            Some(hop) => self.standbys.get(hop)?.as_ref().map(|standby| &standby.stage),
        }
    }

    /// Who stands by for that stage, and is ready.
    pub fn standby(&self, hop: usize) -> Option<&RemoteStage> {
        let standby = self.standbys.get(hop)?.as_ref().filter(|standby| standby.is_ready)?;
        Some(&standby.stage)
    }

    /// Tells whoever comes before that stage whom it is to send its steps to as well.
    fn tell_previous(&mut self, hop: usize) {
        let Some(previous) = hop.checked_sub(1).filter(|previous| self.remote(*previous).is_some()) else { return };
        let (answered, merges) = self.answered_so_far();
        let (epoch, standby) = match &self.standbys[hop] {
            Some(standby) => {
                let RemoteStage { address, grant, .. } = &standby.stage;
                (standby.epoch, Some(NextHop::Peer { address: address.clone(), grant: grant.clone() }))
            }
            None => (self.repair.next_epoch(), None),
        };
        self.send(previous, Frame::Mirror(Box::new(Mirror { epoch, standby, answered, merges })));
    }

    /// Whether the steps for that stage come from this client.
    fn sends_to(&self, hop: usize) -> bool {
        self.config.route.iter().position(|hop| hop.peer().is_some()) == Some(hop)
    }

    /// A standby said something.
    pub(super) fn standby_said(&mut self, now: Instant, hop: usize, frame: Frame) {
        let sends = self.sends_to(hop);
        let Some(standby) = self.standbys.get_mut(hop).and_then(Option::as_mut) else { return };
        match frame {
            Frame::Ready if !standby.is_ready => {
                standby.is_ready = true;
                if sends && !self.journal.mirror(self.settled()) {
                    return self.drop_standby(hop, Failure::new(FailureCode::Forgotten, "too long a session"), true);
                }
                self.effects.push_back(Effect::StandsBy { hop });
                self.flush_standby(hop);
                self.hand_over(now, hop);
            }
            Frame::Credit { frames } if sends && frames > 0 && standby.credit.grant(frames) => {
                self.flush_standby(hop);
                self.hand_over(now, hop);
            }
            Frame::Leaving => {
                let failure = Failure::new(FailureCode::Leaving, "it is about to go");
                self.drop_standby(hop, failure, true);
            }
            Frame::Failed(failure) => self.standby_gone(hop, failure),
            // Its previous peer is this session's business, which will say so itself.
            Frame::NeighbourLost(lost) => self.drop_standby(hop, lost.failure, true),
            other => {
                let detail = format!("a {} frame does not belong to a standby", other.kind());
                self.drop_standby(hop, Failure::new(FailureCode::Protocol, detail), true);
            }
        }
    }

    /// A standby has ended, whatever it says of it: `Done` is this client's own word for one that it let go of.
    pub(super) fn standby_gone(&mut self, hop: usize, failure: Failure) {
        let code = if failure.code == FailureCode::Done { FailureCode::PeerLost } else { failure.code };
        self.drop_standby(hop, Failure { code, ..failure }, true);
    }

    /// The standby of the first peer is sent what it has credit for.
    pub(super) fn flush_standby(&mut self, hop: usize) {
        let at = self.config.route.len() + hop;
        // What others send is not this client's to send.
        let sends = self.sends_to(hop);
        let standby = self.standbys.get_mut(hop).and_then(Option::as_mut);
        let Some(standby) = standby.filter(|standby| sends && standby.is_ready) else { return };
        if !self.journal.is_mirrored() {
            return self.drop_standby(hop, Failure::new(FailureCode::Forgotten, "it was too far behind"), true);
        }
        while self.journal.mirror_waits() && standby.credit.take() {
            let Some(outgoing) = self.journal.send_mirror(standby.epoch) else { return };
            self.effects.push_back(Effect::Send { hop: at, frame: outgoing.frame() });
        }
        standby.has_caught_up |= standby.level.look(&standby.credit, self.journal.mirror_waits());
    }

    /// A peer is about to go.
    ///
    /// # Errors
    /// `Protocol` where it never stops saying so.
    pub(super) fn peer_leaves(&mut self, now: Instant, hop: usize) -> Result<(), SessionError> {
        if self.config.deadlines.grace.is_none() || self.leaving[hop].is_some() {
            return self.stale_came(hop);
        }
        self.leaving[hop] = Some(now);
        self.effects.push_back(Effect::Leaving { hop });
        self.hand_over(now, hop);
        Ok(())
    }

    /// A peer says that whoever stands by for the next one has had all that it passed on.
    ///
    /// # Errors
    /// `Protocol` where it never stops saying so.
    pub(super) fn next_caught_up(&mut self, now: Instant, hop: usize, epoch: u32) -> Result<(), SessionError> {
        let next = self.standbys.get_mut(hop + 1).and_then(Option::as_mut);
        match next.filter(|standby| standby.epoch == epoch && !standby.has_caught_up) {
            Some(standby) => standby.has_caught_up = true,
            None => return self.stale_came(hop),
        }
        self.hand_over(now, hop + 1);
        Ok(())
    }

    /// Until when those who stand by for peers that are about to go have to be as far.
    pub(super) fn levels_due(&self) -> impl Iterator<Item = (Instant, usize)> {
        let due = |(hop, standby): (usize, &Option<Standby>)| {
            let since = standby.as_ref().filter(|standby| !standby.has_caught_up)?.since;
            Some((since.max(self.leaving[hop]?) + LEVEL_WITHIN, hop))
        };
        self.standbys.iter().enumerate().filter_map(due).filter(|_| !self.over && !self.repair.is_under_way())
    }

    /// Lets go of those who were not.
    pub(super) fn drop_late_standbys(&mut self, now: Instant) {
        let late: Vec<_> = self.levels_due().filter(|(at, _)| *at <= now).map(|(_, hop)| hop).collect();
        for hop in late {
            let detail = format!("it was not as far after {} s", LEVEL_WITHIN.as_secs());
            self.drop_standby(hop, Failure::new(FailureCode::Deadline, detail), true);
        }
    }

    /// Whoever stands by for a peer that is about to go takes its place as soon as it is as far.
    pub(super) fn hand_over(&mut self, now: Instant, hop: usize) {
        let standby = self.standbys.get(hop).and_then(Option::as_ref);
        let is_level = standby.is_some_and(|standby| standby.is_ready && standby.has_caught_up);
        let Some(stage) = self.remote(hop).filter(|_| is_level && self.is_leaving(hop)) else { return };
        if !self.ready || self.repair.is_under_way() {
            return;
        }
        let (peer, layers) = (stage.address.peer, stage.spec.layers.to_string());
        let failure = Failure::new(FailureCode::Leaving, "it had said that it would go");
        let error = SessionError::Peer { peer, layers, failure };
        // Whoever takes its place was not asked to keep anything.
        if !self.give_up_saving(error.clone()) && self.promote(now, hop, &error) {
            self.owed[hop] = false;
        }
    }

    /// Whether the peer of that stage is about to go.
    pub fn is_leaving(&self, hop: usize) -> bool {
        self.leaving.get(hop).is_some_and(Option::is_some)
    }

    /// A standby is of no use any more. `tells`: whoever sends to it is told.
    pub(super) fn drop_standby(&mut self, hop: usize, failure: Failure, tells: bool) {
        let Some(Standby { stage, .. }) = self.standbys.get_mut(hop).and_then(Option::take) else { return };
        let at = self.config.route.len() + hop;
        let done = Failure::new(FailureCode::Done, "");
        self.effects.push_back(Effect::Close { hop: at, failure: done });
        if self.sends_to(hop) {
            self.journal.end_mirror();
        } else if tells {
            self.tell_previous(hop);
        }
        let (peer, layers) = (stage.address.peer, stage.spec.layers.to_string());
        self.effects.push_back(Effect::StandbyLost { hop, error: SessionError::Peer { peer, layers, failure } });
    }

    /// Whether it is a standby that a peer says it lost; then that is all.
    pub(super) fn lost_standby(&mut self, hop: usize, epoch: u32, failure: &Failure) -> bool {
        let next = self.standbys.get(hop + 1).and_then(Option::as_ref);
        let Some(standby) = next.filter(|standby| Some(standby.stage.address.peer) == failure.peer) else {
            return false;
        };
        if standby.epoch == epoch {
            self.drop_standby(hop + 1, failure.clone(), false);
        }
        true
    }

    /// The standby of a stage takes the place of its peer, which is lost. False where nobody is ready for that.
    pub(super) fn promote(&mut self, now: Instant, hop: usize, error: &SessionError) -> bool {
        let Some(standby) = self.standbys[hop].take_if(|standby| standby.is_ready) else { return false };
        // Whoever comes before it is lost as well: what it has is not all.
        let is_fed = self.sends_to(hop) || !self.repair.is_away(hop - 1);
        if !is_fed || self.sends_to(hop) && self.journal.promote().is_none() {
            self.standbys[hop] = Some(standby);
            self.drop_standby(hop, Failure::new(FailureCode::Forgotten, "its previous peer is lost, too"), false);
            return false;
        }
        let Standby { stage, epoch: fed, credit, .. } = standby;
        if self.sends_to(hop) {
            self.credit = credit;
        }
        self.config.route[hop] = Hop::Remote(stage);
        self.leaving[hop] = None;
        self.doubts.forget(hop);
        let epoch = self.repair.promoted(now, hop, fed, error.clone());
        self.waiting_for[hop] = true;
        self.effects.push_back(Effect::Promoted { hop });
        if self.last_remote() == Some(hop) {
            (self.receipts, self.credited_from) = (Default::default(), self.returned);
        }
        let (answered, merges) = self.answered_so_far();
        let next = Some(self.next(hop));
        let reroute = Reroute { epoch, previous: None, next, answered, merges };
        self.send(hop, Frame::Reroute(Box::new(reroute)));
        if let Some(previous) = hop.checked_sub(1).filter(|previous| self.remote(*previous).is_some()) {
            self.reroute(previous, None, Some(self.next(previous)));
        }
        if self.remote(hop + 1).is_some() {
            self.reroute(hop + 1, Some(self.previous(hop + 1)), None);
        }
        // Who stands by for the next stage was fed by the lost peer.
        self.drop_standby_after(hop);
        true
    }

    /// Peers of the route change at that place: who stands by for it, or behind it, is not fed any more.
    pub(super) fn drop_standbys_at(&mut self, hop: usize) {
        // Whoever comes before it must not take its stream for that of an opening to come.
        self.drop_standby(hop, Failure::new(FailureCode::Done, "another peer has the place"), true);
        self.drop_standby_after(hop);
    }

    /// Peers that come to the route stand by for nobody.
    pub(super) fn drop_standbys_of(&mut self, peers: &[PeerId]) {
        for hop in 0..self.standbys.len() {
            let is_one = |standby: &Standby| peers.contains(&standby.stage.address.peer);
            if self.standbys[hop].as_ref().is_some_and(is_one) {
                self.drop_standby(hop, Failure::new(FailureCode::Done, "it comes to the route"), true);
            }
        }
    }

    fn drop_standby_after(&mut self, hop: usize) {
        self.drop_standby(hop + 1, Failure::new(FailureCode::Done, "what it was fed by is lost"), false);
    }
}
