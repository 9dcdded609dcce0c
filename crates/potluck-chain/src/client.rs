//! A session as its client sees it: opened at every peer of a route at once, answered by the tail.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use potluck_core::{
    CacheId, Hidden, Input, LayerRange, Logits, Output, PeerId, Rows, SessionKey, StageCommand, StageReply, StageSpec,
    Step, bounds,
};
use potluck_wire::{
    AnswerFrame, CONTROL_BYTES_MAX, Codec, Failure, FailureCode, Frame, NextHop, OpenSession, PeerAddress, Prefix,
    PreviousHop, StepFrame, answer_frame_bytes_max, step_frame_bytes_max,
};

use crate::{Credit, Deadlines, Receipts, SessionError};

/// Steps that a client may have in flight. The next is refused with `BadStep`: await an answer first.
pub const STEPS_IN_FLIGHT_MAX: usize = 64;

/// A stage on the client's own machine: the first of a route, the last, or all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnStage {
    /// Which part of which model.
    pub spec: StageSpec,
    /// The cache to use in it.
    pub cache: CacheId,
}

/// A stage at a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteStage {
    /// Which part of which model.
    pub spec: StageSpec,
    /// Where.
    pub address: PeerAddress,
    /// The peer's own grant, as it showed it: the previous peer checks it before it dials.
    pub grant: Vec<u8>,
}

/// One stage of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// On the client's own machine.
    Own(OwnStage),
    /// At a peer.
    Remote(RemoteStage),
}

/// What a session is opened with.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The client's key and its name for the session.
    pub key: SessionKey,
    /// Counts the attempts at a route, from 0.
    pub epoch: u32,
    /// Positions that the session may grow to.
    pub positions: u32,
    /// Values in one hidden state.
    pub width: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// How hidden states travel.
    pub codec: Codec,
    /// The stages, in order, over all layers.
    pub route: Vec<Hop>,
    /// Start with positions of another session of this client on the same route.
    pub prefix: Option<Prefix>,
    /// How long each wait may last.
    pub deadlines: Deadlines,
}

/// The logits of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The step's number, as [`ClientSession::submit`] gave it.
    pub sequence: u32,
    /// Its first position.
    pub start: u32,
    /// Its positions.
    pub count: u16,
    /// A row for each position that was asked for.
    pub rows: Vec<Logits>,
}

/// Something happened. `hop` counts the route's stages.
#[derive(Debug)]
pub enum Event {
    /// A frame came on the stream to that peer.
    Frame {
        /// Which stage of the route.
        hop: usize,
        /// The frame.
        frame: Frame,
    },
    /// The stream to that peer ended, or could not be opened.
    Closed {
        /// Which stage of the route.
        hop: usize,
        /// How it was noticed.
        failure: Failure,
    },
    /// The own stage answered.
    Own {
        /// Which stage of the route.
        hop: usize,
        /// What.
        reply: StageReply,
    },
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// Something is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Send a frame on the stream to that peer; the first opens the stream.
    Send {
        /// Which stage of the route.
        hop: usize,
        /// The frame.
        frame: Frame,
    },
    /// Frames on the stream from that peer may be so long.
    Limit {
        /// Which stage of the route.
        hop: usize,
        /// Bytes of the longest frame.
        frame_bytes_max: usize,
    },
    /// End the stream to that peer: send the failure unless it is `Done`. No `Closed` follows.
    Close {
        /// Which stage of the route.
        hop: usize,
        /// Why.
        failure: Failure,
    },
    /// Ask the own stage.
    Own {
        /// Which stage of the route.
        hop: usize,
        /// What.
        command: StageCommand,
    },
    /// Tell the caller: steps may be submitted.
    Ready,
    /// Tell the caller: a step's answer, in order.
    Answer(Answer),
    /// Tell the caller: the whole row that it asked for.
    Row {
        /// The step.
        sequence: u32,
        /// The row.
        row: u16,
        /// All logits, in order of token id.
        logits: Hidden,
    },
    /// Tell the caller: the session is over. Nothing follows but `Close` effects.
    Failed(SessionError),
}

/// A step under way.
#[derive(Debug, Clone)]
struct Pending {
    sequence: u32,
    start: u32,
    count: u16,
    rows: Rows,
    top: u16,
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
    outbox: VecDeque<Frame>,
    credit: Credit,
    receipts: Receipts,
    answered: Option<(u32, u16)>,
    row_wanted: Option<(u32, u16)>,
    since: Instant,
    row_since: Instant,
}

impl ClientSession {
    /// Opens the session: drain [`poll`](Self::poll) at once.
    ///
    /// # Errors
    /// `BadStep` where the route does not cover a model from head to tail in order, or an own stage is not at an end.
    pub fn new(now: Instant, config: SessionConfig) -> Result<Self, SessionError> {
        check_route(&config.route)?;
        if config.positions == 0 || config.positions > bounds::SESSION_POSITIONS_MAX {
            return Err(SessionError::BadStep(format!("a session of {} positions", config.positions)));
        }
        let mut session = Self {
            effects: VecDeque::new(),
            waiting_for: vec![true; config.route.len()],
            ready: false,
            over: false,
            sequence: 0,
            held: config.prefix.map_or(0, |prefix| prefix.positions),
            pending: VecDeque::new(),
            returned: 0,
            outbox: VecDeque::new(),
            credit: Credit::default(),
            receipts: Receipts::default(),
            answered: None,
            row_wanted: None,
            since: now,
            row_since: now,
            config,
        };
        (0..session.config.route.len()).for_each(|hop| session.open(hop));
        Ok(session)
    }

    /// Something happened. Drain [`poll`](Self::poll) afterwards.
    pub fn handle(&mut self, now: Instant, event: Event) {
        if self.over {
            return;
        }
        let result = match event {
            Event::Frame { hop, frame } => self.frame(now, hop, frame),
            Event::Closed { hop, failure } => Err(self.peer_failed(hop, failure, true)),
            Event::Own { hop, reply } => self.own(now, hop, reply),
            Event::Timeout => self.check_deadlines(now),
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
        self.deadlines().map(|(at, ..)| at).min()
    }

    /// Sends tokens down the route as positions `start..`, and returns the step's number.
    ///
    /// What the caches hold at or after `start` is dropped first. The tail answers with the `top` largest logits (0: the
    /// whole row) of the positions that `rows` names.
    /// # Errors
    /// `BadStep` where the step is empty, too long, leaves a gap, or too many are in flight; `Closed` after the end.
    pub fn submit(
        &mut self,
        now: Instant,
        start: u32,
        tokens: Vec<u32>,
        rows: Rows,
        top: u16,
    ) -> Result<u32, SessionError> {
        let count = self.check_step(start, &tokens)?;
        let sequence = self.sequence;
        self.sequence += 1;
        self.held = start + u32::from(count);
        if self.pending.is_empty() {
            self.since = now;
        }
        self.answered = None;
        self.pending.push_back(Pending { sequence, start, count, rows, top });
        match self.config.route[0] {
            Hop::Own(_) => self.run_own(0, sequence, start, Input::Tokens(tokens), rows, top),
            Hop::Remote(_) => {
                let (epoch, codec, payload) = (self.config.epoch, Codec::Tokens, Codec::encode_tokens(&tokens));
                self.send_step(StepFrame { sequence, epoch, start, count, rows, top, codec, payload });
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

    fn check_step(&self, start: u32, tokens: &[u32]) -> Result<u16, SessionError> {
        let bad = |text: String| Err(SessionError::BadStep(text));
        if self.over {
            return Err(SessionError::Closed);
        }
        if !self.ready {
            return bad("the route is not ready yet".into());
        }
        if tokens.is_empty() || tokens.len() > bounds::STEP_POSITIONS_MAX {
            return bad(format!("a step of {} positions; 1 to {} fit", tokens.len(), bounds::STEP_POSITIONS_MAX));
        }
        if start > self.held {
            return bad(format!("a step at position {start}; the session holds {}", self.held));
        }
        let end = start as usize + tokens.len();
        if end > self.config.positions as usize {
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

    fn open(&mut self, hop: usize) {
        let positions = self.config.positions;
        let Some(remote) = self.remote(hop) else {
            if let Hop::Own(OwnStage { cache, .. }) = self.config.route[hop] {
                // A prefix on an own stage is the caller's to fork: it knows that session's cache.
                let command = StageCommand::Open { cache, positions };
                self.effects.push_back(Effect::Own { hop, command });
            }
            return;
        };
        let stage = remote.spec;
        let previous = match hop.checked_sub(1).and_then(|hop| self.remote(hop)) {
            Some(previous) => PreviousHop::Peer(previous.address.peer),
            None => PreviousHop::Client,
        };
        let next = match self.remote(hop + 1) {
            Some(next) => NextHop::Peer { address: next.address.clone(), grant: next.grant.clone() },
            None => NextHop::Client,
        };
        let codec_in = if stage.head { Codec::Tokens } else { self.config.codec };
        let idle_ms = u32::try_from(self.config.deadlines.idle.as_millis()).unwrap_or(u32::MAX);
        let open = OpenSession {
            session: self.config.key.id,
            epoch: self.config.epoch,
            stage,
            positions,
            previous,
            next,
            codec_in,
            codec_out: self.config.codec,
            prefix: self.config.prefix,
            idle_ms,
        };
        self.send(hop, Frame::Open(Box::new(open)));
        let (width, vocabulary) = (self.config.width, self.config.vocabulary);
        let frame_bytes_max = match (stage.tail, self.remote(hop + 1)) {
            (true, _) => answer_frame_bytes_max(width, vocabulary),
            (false, None) => step_frame_bytes_max(width),
            (false, Some(_)) => CONTROL_BYTES_MAX,
        };
        self.effects.push_back(Effect::Limit { hop, frame_bytes_max: frame_bytes_max.max(CONTROL_BYTES_MAX) });
    }

    fn frame(&mut self, now: Instant, hop: usize, frame: Frame) -> Result<(), SessionError> {
        let last = self.last_remote() == Some(hop);
        match frame {
            Frame::Ready if self.waiting_for.get(hop) == Some(&true) => {
                self.one_is_ready(hop);
                Ok(())
            }
            Frame::Credit { frames } if hop == 0 || hop == 1 && self.remote(0).is_none() => {
                if !self.credit.grant(frames) {
                    return Err(self.protocol(hop, format!("{frames} frames of credit that were not due")));
                }
                self.flush(hop);
                Ok(())
            }
            Frame::Answer(answer) if last => self.answer_came(now, hop, answer),
            Frame::Step(step) if last => self.step_returned(hop, &step),
            Frame::Row { sequence, row, logits } if last => self.row_came(hop, sequence, row, logits),
            Frame::Failed(failure) => Err(self.peer_failed(hop, failure, false)),
            other => Err(self.protocol(hop, format!("a {} frame does not belong here", other.kind()))),
        }
    }

    fn one_is_ready(&mut self, hop: usize) {
        self.waiting_for[hop] = false;
        if !self.ready && !self.waiting_for.contains(&true) {
            self.ready = true;
            self.effects.push_back(Effect::Ready);
        }
    }

    fn answer_came(&mut self, now: Instant, hop: usize, answer: AnswerFrame) -> Result<(), SessionError> {
        if answer.epoch < self.config.epoch {
            return Ok(());
        }
        let due = self.pending.front().filter(|due| {
            (due.sequence, due.start, due.count) == (answer.sequence, answer.start, answer.count)
                && answer.epoch == self.config.epoch
        });
        let Some(due) = due.cloned() else {
            let text = format!("it answered step {} of epoch {}, which is not due", answer.sequence, answer.epoch);
            return Err(self.protocol(hop, text));
        };
        check_rows(&due, &answer.rows, self.config.vocabulary).map_err(|reason| self.protocol(hop, reason))?;
        self.deliver(now, answer.rows);
        Ok(())
    }

    fn deliver(&mut self, now: Instant, rows: Vec<Logits>) {
        let Some(Pending { sequence, start, count, .. }) = self.pending.pop_front() else { return };
        self.since = now;
        if self.pending.is_empty() {
            self.answered = Some((sequence, count));
        }
        self.effects.push_back(Effect::Answer(Answer { sequence, start, count, rows }));
    }

    /// The last peer's hidden states, for the own tail.
    fn step_returned(&mut self, hop: usize, step: &StepFrame) -> Result<(), SessionError> {
        if step.epoch < self.config.epoch || step.epoch == self.config.epoch && step.sequence < self.returned {
            return Ok(());
        }
        let index = (step.sequence - self.pending.front().map_or(0, |p| p.sequence).min(step.sequence)) as usize;
        let due = self.pending.get(index).filter(|due| {
            step.epoch == self.config.epoch
                && step.sequence == self.returned
                && (due.sequence, due.start, due.count) == (step.sequence, step.start, step.count)
        });
        let Some(Pending { sequence, start, rows, top, .. }) = due.cloned() else {
            return Err(self.protocol(hop, format!("it returned step {}, which is not due", step.sequence)));
        };
        if step.codec != self.config.codec || !self.receipts.received() {
            return Err(self.protocol(hop, "it returned a step in another codec, or without credit".into()));
        }
        let width = self.config.width as usize;
        let hidden = step.codec.decode(&step.payload, step.count.into(), width);
        let hidden = hidden.map_err(|error| self.protocol(hop, error.to_string()))?;
        self.returned += 1;
        self.run_own(hop + 1, sequence, start, Input::Hidden(Hidden(hidden)), rows, top);
        Ok(())
    }

    fn row_came(&mut self, hop: usize, sequence: u32, row: u16, logits: Hidden) -> Result<(), SessionError> {
        if self.row_wanted.take() != Some((sequence, row)) || logits.0.len() != self.config.vocabulary as usize {
            return Err(self.protocol(hop, format!("it sent row {row} of step {sequence}, which was not asked for")));
        }
        self.effects.push_back(Effect::Row { sequence, row, logits });
        Ok(())
    }

    fn own(&mut self, now: Instant, hop: usize, reply: StageReply) -> Result<(), SessionError> {
        let layers = self.layers(hop);
        let own_failed = |error| SessionError::Own { layers: layers.clone(), error };
        match reply {
            StageReply::Opened { result, .. } => {
                result.map_err(own_failed)?;
                if self.waiting_for.get(hop) == Some(&true) {
                    self.one_is_ready(hop);
                }
                Ok(())
            }
            StageReply::Forwarded { batch, results, .. } => {
                let result = results.into_iter().next().unwrap_or(Err(potluck_core::StageError::Engine("no result".into())));
                self.own_ran(now, hop, batch as u32, result.map_err(own_failed)?)
            }
            StageReply::Row { result, .. } => {
                let logits = result.map_err(own_failed)?;
                if let Some((sequence, row)) = self.row_wanted.take() {
                    self.effects.push_back(Effect::Row { sequence, row, logits });
                }
                Ok(())
            }
            StageReply::Lost { reason } => Err(own_failed(potluck_core::StageError::Lost(reason))),
            StageReply::Ready(_) => Ok(()),
        }
    }

    fn own_ran(&mut self, now: Instant, hop: usize, sequence: u32, output: Output) -> Result<(), SessionError> {
        match output {
            Output::Logits(rows) => {
                if hop > 0 {
                    // The frame that carried these hidden states is done with.
                    if let Some(frames) = self.receipts.finished() {
                        self.send(hop - 1, Frame::Credit { frames });
                    }
                }
                self.deliver(now, rows);
                Ok(())
            }
            Output::Hidden(hidden) => self.pass_on(hop, sequence, &hidden),
        }
    }

    /// The own head's hidden states, for the first peer.
    fn pass_on(&mut self, hop: usize, sequence: u32, hidden: &Hidden) -> Result<(), SessionError> {
        let Some(due) = self.pending.iter().find(|due| due.sequence == sequence).cloned() else { return Ok(()) };
        let (codec, epoch) = (self.config.codec, self.config.epoch);
        let mut payload = Vec::new();
        codec.encode(&hidden.0, self.config.width as usize, &mut payload).map_err(|error| SessionError::Own {
            layers: self.layers(hop),
            error: potluck_core::StageError::Engine(error.to_string()),
        })?;
        let Pending { start, count, rows, top, .. } = due;
        self.send_step(StepFrame { sequence, epoch, start, count, rows, top, codec, payload });
        Ok(())
    }

    fn run_own(&mut self, hop: usize, sequence: u32, start: u32, input: Input, rows: Rows, top: u16) {
        let Some(Hop::Own(OwnStage { cache, .. })) = self.config.route.get(hop) else { return };
        let steps = vec![Step { cache: *cache, start, input, rows, top }];
        self.effects.push_back(Effect::Own { hop, command: StageCommand::Forward { batch: sequence.into(), steps } });
    }

    fn send_step(&mut self, step: StepFrame) {
        let Some(first) = self.config.route.iter().position(|hop| matches!(hop, Hop::Remote(_))) else { return };
        self.outbox.push_back(Frame::Step(step));
        self.flush(first);
    }

    fn flush(&mut self, hop: usize) {
        while !self.outbox.is_empty() && self.credit.take() {
            if let Some(frame) = self.outbox.pop_front() {
                self.send(hop, frame);
            }
        }
    }

    fn send(&mut self, hop: usize, frame: Frame) {
        self.effects.push_back(Effect::Send { hop, frame });
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

    fn deadlines(&self) -> impl Iterator<Item = (Instant, String, Duration, &'static str)> {
        let Deadlines { open, step, .. } = self.config.deadlines;
        let opening = (!self.over && !self.ready).then(|| (self.since + open, self.missing(), open, "open_timeout"));
        let stepping = self.pending.front().filter(|_| !self.over).map(|due| {
            (self.since + step, format!("step {} was under way", due.sequence), step, "step_timeout")
        });
        let asking = self.row_wanted.filter(|_| !self.over).map(|(sequence, row)| {
            (self.row_since + step, format!("row {row} of step {sequence} was asked for"), step, "step_timeout")
        });
        [opening, stepping, asking].into_iter().flatten()
    }

    fn missing(&self) -> String {
        let missing: Vec<_> = (0..self.waiting_for.len()).filter(|&hop| self.waiting_for[hop]).collect();
        let names: Vec<_> = missing.into_iter().map(|hop| self.layers(hop)).collect();
        format!("the stages of layers {} were opening", names.join(", "))
    }

    fn check_deadlines(&self, now: Instant) -> Result<(), SessionError> {
        match self.deadlines().find(|(at, ..)| *at <= now) {
            None => Ok(()),
            Some((_, waiting, after, setting)) => {
                Err(SessionError::Deadline { waiting, seconds: after.as_secs(), setting })
            }
        }
    }

    /// What a peer's failure means: it may be about another peer of the route.
    fn peer_failed(&self, hop: usize, failure: Failure, stream_ended: bool) -> SessionError {
        let named = failure.peer.and_then(|peer| {
            (0..self.config.route.len()).find(|&hop| self.remote(hop).is_some_and(|r| r.address.peer == peer))
        });
        let hop = named.unwrap_or(hop);
        let Some(remote) = self.remote(hop) else { return SessionError::Closed };
        let (peer, layers) = (remote.address.peer, remote.spec.layers.to_string());
        let lost = failure.code == FailureCode::PeerLost || stream_ended && failure.code == FailureCode::Done;
        if lost { SessionError::PeerLost { peer, layers, failure } } else { SessionError::Peer { peer, layers, failure } }
    }

    fn protocol(&self, hop: usize, reason: String) -> SessionError {
        match self.remote(hop) {
            Some(remote) => SessionError::Protocol { peer: remote.address.peer, reason },
            None => SessionError::BadStep(reason),
        }
    }

    fn fail(&mut self, error: SessionError) {
        let code = match error {
            SessionError::Protocol { .. } => FailureCode::Protocol,
            SessionError::Deadline { .. } => FailureCode::Deadline,
            _ => FailureCode::Cancelled,
        };
        self.end(Failure::new(code, &error));
        self.effects.push_back(Effect::Failed(error));
    }

    fn end(&mut self, failure: Failure) {
        self.over = true;
        self.pending.clear();
        self.outbox.clear();
        for hop in 0..self.config.route.len() {
            let effect = match self.config.route[hop] {
                Hop::Remote(_) => Effect::Close { hop, failure: failure.clone() },
                Hop::Own(OwnStage { cache, .. }) => Effect::Own { hop, command: StageCommand::Close { cache } },
            };
            self.effects.push_back(effect);
        }
    }
}

impl Hop {
    /// Which part of which model.
    pub fn spec(&self) -> StageSpec {
        match self {
            Self::Own(own) => own.spec,
            Self::Remote(remote) => remote.spec,
        }
    }

    /// Its layers.
    pub fn layers(&self) -> LayerRange {
        self.spec().layers
    }

    /// The peer, unless it is the client's own machine.
    pub fn peer(&self) -> Option<PeerId> {
        match self {
            Self::Own(_) => None,
            Self::Remote(remote) => Some(remote.address.peer),
        }
    }
}

fn check_route(route: &[Hop]) -> Result<(), SessionError> {
    let bad = |text: String| Err(SessionError::BadStep(text));
    let (Some(first), Some(last)) = (route.first(), route.last()) else { return bad("a route without stages".into()) };
    if route.len() > bounds::ROUTE_STAGES_MAX {
        return bad(format!("a route of {} stages; at most {} fit", route.len(), bounds::ROUTE_STAGES_MAX));
    }
    if !first.spec().head || !last.spec().tail || first.layers().start() != 0 {
        return bad("a route starts at the head of the chain and ends at its tail".into());
    }
    for (i, pair) in route.windows(2).enumerate() {
        let (a, b) = (pair[0].spec(), pair[1].spec());
        if a.layers.end() != b.layers.start() || a.model != b.model || a.tail || b.head {
            return bad(format!("stage {} ({}) does not follow {} of the same model", b.layers, i + 1, a.layers));
        }
    }
    let inner = route.iter().skip(1).take(route.len().saturating_sub(2));
    if inner.clone().any(|hop| hop.peer().is_none()) || route.len() == 2 && route.iter().all(|h| h.peer().is_none()) {
        return bad("an own stage can be the first or the last of a route".into());
    }
    let mut peers: Vec<_> = route.iter().filter_map(Hop::peer).collect();
    peers.sort_unstable();
    if peers.windows(2).any(|pair| pair[0] == pair[1]) {
        return bad("a peer appears twice on the route".into());
    }
    Ok(())
}

/// Whether the rows are what the step asked for: a tail is not to be trusted.
fn check_rows(due: &Pending, rows: &[Logits], vocabulary: u32) -> Result<(), String> {
    let expected = match due.rows {
        Rows::None => 0,
        Rows::Last => 1,
        Rows::All => usize::from(due.count),
    };
    if rows.len() != expected {
        return Err(format!("it answered step {} with {} rows; {expected} were asked for", due.sequence, rows.len()));
    }
    let good = |row: &Logits| match row {
        Logits::Whole(hidden) => due.top == 0 && hidden.0.len() == vocabulary as usize,
        Logits::Top { largest, log_sum_exp } => {
            due.top > 0
                && largest.len() == usize::from(due.top).min(vocabulary as usize)
                && largest.iter().all(|(token, logit)| *token < vocabulary && !logit.is_nan())
                && largest.windows(2).all(|pair| (pair[0].1, pair[1].0) >= (pair[1].1, pair[0].0))
                && largest.windows(2).all(|pair| pair[0] != pair[1])
                && !log_sum_exp.is_nan()
        }
    };
    if rows.iter().all(good) { Ok(()) } else { Err(format!("its rows for step {} are malformed", due.sequence)) }
}
