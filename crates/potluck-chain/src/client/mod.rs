//! A session as its client sees it: opened at every peer of a route at once, answered by the tail.

mod accounts;
mod back;
mod doubts;
mod end;
mod open;
mod own;
mod repair;
mod returns;
mod saving;
mod standby;
mod types;

use std::{collections::VecDeque, time::Instant};

use potluck_core::{Input, Rows, StageCommand, Tree, bounds};
use potluck_wire::{Codec, Failure, FailureCode, Frame, StepFrame};

pub use self::types::{
    Answer, Effect, Event, Hop, OwnStage, RemoteStage, STEPS_IN_FLIGHT_MAX, SessionConfig, SharedPrefix, Submission,
};
use self::{accounts::Accounts, doubts::Doubts, repair::Repair, saving::Saving, standby::Standby};
use crate::{Credit, Journal, Receipts, SessionError};

/// Frames of one session that may come twice or late. More are malice, and end it.
const STALE_FRAMES_MAX: u32 = 1_024;

/// A step under way.
#[derive(Debug, Clone)]
struct Pending {
    sequence: u32,
    start: u32,
    count: u16,
    rows: Rows,
    top: u16,
    tree: Tree,
    /// It fences earlier ones off.
    fence: bool,
    /// A later step has fenced it off.
    fenced: bool,
    /// It comes back without rows: answered as soon as it is its turn.
    skipped: bool,
}

/// A session as its client sees it. See the crate's documentation.
#[derive(Debug)]
pub struct ClientSession {
    config: SessionConfig,
    effects: VecDeque<Effect>,
    waiting_for: Vec<bool>,
    ready: bool,
    over: bool,
    sequence: u32,
    held: u32,
    pending: VecDeque<Pending>,
    /// Hidden states that came back from the last peer, by number of the step that is due next.
    returned: u32,
    /// What goes to the first peer, and what has gone.
    journal: Journal,
    repair: Repair,
    doubts: Doubts,
    /// Who stands by for each stage.
    standbys: Vec<Option<Standby>>,
    /// Since when the peers of stages are about to go that are.
    leaving: Vec<Option<Instant>>,
    credit: Credit,
    receipts: Receipts,
    /// Credit for what came back before this step is owed to a peer that is gone.
    credited_from: u32,
    answered: Option<(u32, u16)>,
    row_wanted: Option<(u32, u16)>,
    accounts: Accounts,
    /// What the stages were asked to keep, or to give back.
    saving: Option<Saving>,
    /// Which owe an answer to that which nobody waits for any more.
    owed: Vec<bool>,
    since: Instant,
    row_since: Instant,
    stale: u32,
}

impl ClientSession {
    /// Opens the session: drain [`poll`](Self::poll) at once.
    ///
    /// # Errors
    /// `BadStep` where the route does not cover a model from head to tail in order, or an own stage is not at an end.
    pub fn new(now: Instant, config: SessionConfig) -> Result<Self, SessionError> {
        open::check_route(&config.route)?;
        if config.positions == 0 || config.positions > bounds::SESSION_POSITIONS_MAX {
            return Err(SessionError::BadStep(format!("a session of {} positions", config.positions)));
        }
        let mut session = Self {
            effects: VecDeque::new(),
            waiting_for: vec![true; config.route.len()],
            ready: false,
            over: false,
            sequence: 0,
            held: config.prefix.as_ref().map_or(0, |prefix| prefix.prefix.positions),
            pending: VecDeque::new(),
            returned: 0,
            journal: Journal::default(),
            repair: Repair::new(config.epoch, config.route.len()),
            doubts: Doubts::new(config.route.len()),
            standbys: config.route.iter().map(|_| None).collect(),
            leaving: vec![None; config.route.len()],
            credit: Credit::default(),
            receipts: Receipts::default(),
            credited_from: 0,
            answered: None,
            row_wanted: None,
            accounts: Accounts::new(config.route.len()),
            saving: None,
            owed: vec![false; config.route.len()],
            since: now,
            row_since: now,
            stale: 0,
            config,
        };
        if session.config.deadlines.grace.is_some() {
            session.journal.keep(session.held > 0);
        }
        (0..session.config.route.len()).for_each(|hop| session.open(hop));
        Ok(session)
    }

    /// Something happened. Drain [`poll`](Self::poll) afterwards.
    pub fn handle(&mut self, now: Instant, event: Event) {
        if self.over {
            return;
        }
        let stages = self.config.route.len();
        let result = match event {
            Event::Frame { hop, frame } if hop >= stages => {
                self.standby_said(now, hop - stages, frame);
                Ok(())
            }
            Event::Closed { hop, failure } | Event::Broken { hop, failure } if hop >= stages => {
                self.standby_gone(hop - stages, failure);
                Ok(())
            }
            Event::Frame { hop, frame } => self.frame(now, hop, frame),
            Event::Closed { hop, failure } => self.peer_gone(now, hop, failure),
            Event::Broken { hop, failure } => self.broke_off(now, hop, failure),
            Event::Own { hop, reply } => self.own(now, hop, reply),
            Event::Heard { hop } => self.hears(now, hop),
            Event::Timeout => {
                self.drop_late_standbys(now);
                self.check_saving(now);
                self.lose_the_deaf(now).and_then(|()| self.check_deadlines(now))
            }
        };
        if let Err(error) = result {
            self.fail(error);
        }
    }

    /// What is to be done now; `None` until the next event.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call `handle` with [`Event::Timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let others = self.levels_due().map(|(at, _)| at).chain(self.doubts.until()).chain(self.saving_due());
        self.deadlines().map(|(at, ..)| at).chain(others).min()
    }

    /// Sends tokens down the route, and returns the step's number.
    ///
    /// # Errors
    /// `BadStep` where the step is empty, too long, leaves a gap, or too many are in flight; `Closed` after the end.
    pub fn submit(&mut self, now: Instant, submission: Submission) -> Result<u32, SessionError> {
        let count = self.check_step(&submission)?;
        let Submission { start, tokens, rows, top, tree, fence } = submission;
        if usize::from(top) > bounds::TOP_LOGITS_MAX {
            let max = bounds::TOP_LOGITS_MAX;
            return Err(SessionError::BadStep(format!("{top} largest logits asked for; {max} can be")));
        }
        let sequence = self.sequence;
        self.sequence += 1;
        self.held = start + tree.trunk(count.into()) as u32;
        if self.pending.is_empty() {
            self.since = now;
        }
        self.answered = None;
        if fence {
            self.pending.iter_mut().filter(|earlier| earlier.start >= start).for_each(|earlier| earlier.fenced = true);
        }
        let (fenced, skipped) = (false, false);
        let pending = Pending { sequence, start, count, rows, top, tree, fence, fenced, skipped };
        self.pending.push_back(pending);
        match self.config.route[0] {
            Hop::Own(_) => self.run_own(0, sequence, Input::Tokens(tokens)),
            Hop::Remote(_) => {
                self.send_step(sequence, Codec::Tokens, Codec::encode_tokens(&tokens));
            }
        }
        Ok(sequence)
    }

    /// Asks for a whole row of the step that was answered last; `row` counts its positions.
    ///
    /// # Errors
    /// `BadStep` where no such row is kept: it is, until the next step.
    pub fn request_row(&mut self, now: Instant, sequence: u32, row: u16) -> Result<(), SessionError> {
        let kept = self.answered.is_some_and(|(answered, count)| answered == sequence && row < count);
        if self.over || !kept || self.row_wanted.is_some() {
            return Err(SessionError::BadStep(format!("row {row} of step {sequence} is not kept")));
        }
        self.row_wanted = Some((sequence, row));
        self.row_since = now;
        let tail = self.config.route.len() - 1;
        match self.config.route[tail] {
            Hop::Own(OwnStage { cache, .. }) => {
                self.effects.push_back(Effect::Own { hop: tail, command: StageCommand::Row { cache, row } });
            }
            // Whoever is about to take a lost peer's place is asked then.
            Hop::Remote(_) if self.repair.is_away(tail) => {}
            Hop::Remote(_) => self.send(tail, Frame::RowRequest { sequence, row }),
        }
        Ok(())
    }

    /// Ends the session on every peer. Nothing but `Close` and `Own` effects follow.
    pub fn close(&mut self) {
        if !self.over {
            self.end(Failure::new(FailureCode::Done, ""));
        }
    }

    /// The stages, in order.
    pub fn route(&self) -> &[Hop] {
        &self.config.route
    }

    /// Steps that have not been answered yet.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Positions that the caches hold once every submitted step has run.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// True once the session has ended, well or not.
    pub fn is_over(&self) -> bool {
        self.over
    }

    fn check_step(&self, submission: &Submission) -> Result<u16, SessionError> {
        let Submission { start, tokens, tree, .. } = submission;
        let bad = |text: String| Err(SessionError::BadStep(text));
        if self.over {
            return Err(SessionError::Closed);
        }
        if !self.ready {
            return bad("the route is not ready yet".into());
        }
        if self.saving.is_some() {
            return bad("what the stages hold is being kept, or comes back".into());
        }
        if tokens.is_empty() || tokens.len() > bounds::STEP_POSITIONS_MAX {
            return bad(format!("a step of {} positions; 1 to {} fit", tokens.len(), bounds::STEP_POSITIONS_MAX));
        }
        if !tree.fits(tokens.len()) {
            return bad(format!("a tree of {} rows for {} tokens", tree.parents().len(), tokens.len()));
        }
        if *start > self.held {
            return bad(format!("a step at position {start}; the session holds {}", self.held));
        }
        let end = start.saturating_add(tree.positions(tokens.len()));
        if end > self.config.positions {
            return bad(format!("position {end}; the session was opened for {}", self.config.positions));
        }
        if self.pending.len() >= STEPS_IN_FLIGHT_MAX {
            return bad(format!("{STEPS_IN_FLIGHT_MAX} steps are in flight"));
        }
        if let Some(token) = tokens.iter().find(|token| **token >= self.config.vocabulary) {
            return bad(format!("token {token} is not in the vocabulary of {}", self.config.vocabulary));
        }
        Ok(tokens.len() as u16)
    }

    /// Sends what a step that is pending carries to the first peer.
    fn send_step(&mut self, sequence: u32, codec: Codec, payload: Vec<u8>) {
        let Some(first) = self.config.route.iter().position(|hop| matches!(hop, Hop::Remote(_))) else { return };
        let Some(due) = self.pending.iter().find(|due| due.sequence == sequence).cloned() else { return };
        let Pending { start, count, rows, top, tree, fence, .. } = due;
        let (epoch, pad, skipped) = (self.repair.epoch_into(first), self.config.pad, false);
        let step = StepFrame { sequence, epoch, start, count, rows, top, codec, payload, pad, tree, fence, skipped };
        self.journal.push(step, false, false);
        self.flush(first);
    }

    /// Sends the first peer, and who stands by for it, what they have credit for.
    fn flush(&mut self, hop: usize) {
        while !self.repair.is_away(hop) && self.journal.waits() && self.credit.take() {
            let Some(outgoing) = self.journal.send(self.repair.epoch_into(hop)) else { break };
            self.send(hop, outgoing.frame());
        }
        self.flush_standby(hop);
    }

    /// Sends a frame to a peer, unless it is lost.
    fn send(&mut self, hop: usize, frame: Frame) {
        if !self.repair.is_lost(hop) {
            self.effects.push_back(Effect::Send { hop, frame });
        }
    }

    fn remote(&self, hop: usize) -> Option<&RemoteStage> {
        match self.config.route.get(hop)? {
            Hop::Remote(remote) => Some(remote),
            Hop::Own(_) => None,
        }
    }

    fn last_remote(&self) -> Option<usize> {
        self.config.route.iter().rposition(|hop| matches!(hop, Hop::Remote(_)))
    }

    fn layers(&self, hop: usize) -> String {
        self.config.route.get(hop).map_or(String::new(), |hop| hop.layers().to_string())
    }
}
