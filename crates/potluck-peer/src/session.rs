//! One session as one peer of its route sees it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use potluck_chain::{Credit, Journal, Receipts};
use potluck_core::{CacheId, Defence, Input, Output, Rows, SessionKey, Tree, bounds};
use potluck_grant::Member;
use potluck_wire::{
    AnswerFrame, Codec, Failure, FailureCode, HOP_FRAMES_MAX, NeighbourLost, NextHop, OpenSession, PreviousHop,
    StepFrame, answer_rows_max,
};

use crate::{StageSlot, StreamId, account::Tally, saving::Moving, standby::Standby};

/// Frames of one session that may come twice or late. Streams are reliable and in order: more is malice, and ends it.
const STALE_FRAMES_MAX: u32 = 1_024;

/// Steps of one session that may wait for its next peer, those included that run, and their bytes: as many as a few previous peers one
/// after the other have credit for. Beyond it the session ends with `OverBudget`.
const UNSENT_STEPS_MAX: usize = 4 * HOP_FRAMES_MAX as usize;
const UNSENT_BYTES_MAX: usize = 512 << 20;

/// Values of the largest output whose room is kept for a later input: a prompt's steps are long and few, and allocate.
const SPARE_VALUES_MAX: usize = 64 << 10;

/// Where a session's streams are, and what has passed on them.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: SessionKey,
    /// Never used twice, unlike the key and the epoch: what the engine still owes to an earlier session of the same name
    /// is told apart by it.
    pub(crate) serial: u64,
    pub(crate) open: OpenSession,
    /// Whose it is.
    pub(crate) member: Member,
    pub(crate) slot: StageSlot,
    pub(crate) cache: CacheId,
    pub(crate) width: u32,
    pub(crate) vocabulary: u32,
    /// The stream on which the client opened the session, or came back to it.
    pub(crate) client: StreamId,
    /// Since when the connection to the client is lost, and when it came back last.
    pub(crate) away_since: Option<Instant>,
    pub(crate) returned_at: Option<Instant>,
    /// What the client was told of neighbours that are lost, as long as no others are named: whoever comes back is told again.
    pub(crate) lost: [Option<NeighbourLost>; 2],
    /// The stream that the previous peer opened, if there is one.
    pub(crate) hop_in: Option<StreamId>,
    /// The stream that we opened to the next peer, if there is one.
    pub(crate) hop_out: Option<StreamId>,
    pub(crate) cache_open: bool,
    pub(crate) next_confirmed: bool,
    pub(crate) ready_sent: bool,
    /// Number of the next step that arrives.
    pub(crate) expected: u32,
    /// Positions that the cache will hold once every step that has arrived has run.
    pub(crate) held: u32,
    /// Positions of those that nothing skipped is among: what starts beyond them rests on nothing.
    pub(crate) solid: u32,
    pub(crate) receipts: Receipts,
    pub(crate) credit: Credit,
    /// Epochs of the streams that steps arrive on and leave on.
    pub(crate) epochs: Epochs,
    /// How long it waits for another neighbour where one is lost; none: it ends then.
    pub(crate) grace: Option<Duration>,
    /// Steps that came again before the client's word that the session is to be kept, and their streams: whoever sends them was told
    /// of this peer at the same time.
    pub(crate) early: Vec<(StreamId, StepFrame, u32)>,
    /// Since when a neighbour is missing.
    pub(crate) missing_since: Option<Instant>,
    /// The step from which on the next peer takes them, where it has said so.
    pub(crate) next_expects: u32,
    /// The last step that arrived was sent again: a later one may still write over what it wrote.
    pub(crate) replays: bool,
    /// Steps before this one may be merged where the next peer has to be sent them again.
    pub(crate) settled: u32,
    /// Who stands by for the next peer.
    pub(crate) standby: Option<Standby>,
    /// What goes to the next hop, and what has gone.
    pub(crate) journal: Journal,
    /// At the tail: what goes to the client.
    pub(crate) answers: VecDeque<Answering>,
    /// At the tail: what went to the client last, which it may not have had; and its bytes.
    pub(crate) sent: VecDeque<AnswerFrame>,
    pub(crate) sent_bytes: usize,
    /// At the tail: answers to steps before this one may have been let go of.
    pub(crate) answers_lost: u32,
    /// At the tail: the client has the answers to the steps before this one.
    pub(crate) told: u32,
    /// At the tail: the step whose rows the stage still holds.
    pub(crate) answered: Option<(u32, u16)>,
    pub(crate) row_wanted: Option<(u32, u16)>,
    /// A row of a step that is computed once more, and has not been yet.
    pub(crate) row_to_come: Option<(u32, u16)>,
    /// What its cache holds is on its way out or back.
    pub(crate) moving: Option<Moving>,
    /// When its client asked last that it be kept, and it was not refused.
    pub(crate) saved_at: Option<Instant>,
    /// Frames dropped as twins or as late.
    pub(crate) stale: u32,
    /// Steps that have arrived and whose output has not left.
    pub(crate) in_flight: InFlight,
    /// What was done for it here.
    pub(crate) tally: Tally,
    pub(crate) last_step: Instant,
    pub(crate) opened: Instant,
}

/// Epochs of a session's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epochs {
    pub(crate) previous: u32,
    pub(crate) next: u32,
}

/// A step that the tail has run. The client may have its answer from a peer that was here before.
#[derive(Debug)]
pub(crate) struct Answering {
    pub(crate) answer: Option<AnswerFrame>,
    /// Whoever sent the step waits for credit for it.
    pub(crate) owed: bool,
}

/// What is kept of a step while it runs, to label its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepHead {
    pub(crate) sequence: u32,
    pub(crate) start: u32,
    pub(crate) count: u16,
    pub(crate) rows: potluck_core::Rows,
    pub(crate) top: u16,
    pub(crate) pad: bool,
    pub(crate) tree: Tree,
    pub(crate) fence: bool,
    /// It was sent again.
    pub(crate) again: bool,
    /// Whoever sent it waits for credit for it.
    pub(crate) owed: bool,
}

/// Steps that have arrived and whose output has not left; and room for the values of the next one.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    heads: VecDeque<StepHead>,
    /// Of an output that has left. It holds nothing but zeros.
    spare: Vec<f32>,
}

impl InFlight {
    /// True where every output has left.
    pub(crate) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The oldest one, if it is this one.
    fn pop(&mut self, sequence: u32) -> Option<StepHead> {
        self.heads.pop_front().filter(|head| head.sequence == sequence)
    }

    /// Whoever sent them is gone.
    fn forgive(&mut self) {
        self.heads.iter_mut().for_each(|head| head.owed = false);
    }

    fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether this one is among them.
    pub(crate) fn has(&self, sequence: u32) -> bool {
        self.heads.iter().any(|head| head.sequence == sequence)
    }

    /// The values were passed on: a later step's take their place.
    fn keep(&mut self, mut values: Vec<f32>) {
        if values.capacity() <= SPARE_VALUES_MAX {
            values.fill(0.0);
            self.spare = values;
        }
    }
}

/// What became of a step that arrived.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Run it.
    Run(Input),
    /// It was skipped before it came here.
    Skip,
    /// A late twin, or a frame of an older epoch: nothing to do.
    Stale,
}

impl Session {
    /// The stream that steps arrive on.
    pub(crate) fn step_stream(&self) -> Option<StreamId> {
        match self.open.previous {
            PreviousHop::Client => self.client_stream(),
            PreviousHop::Peer(_) => self.hop_in,
        }
    }

    /// The newest epoch that its client has named.
    pub(crate) fn newest_epoch(&self) -> u32 {
        let standby = self.standby.as_ref().map_or(0, |standby| standby.epoch);
        self.epochs.previous.max(self.epochs.next).max(standby)
    }

    /// Whether a step that comes again may have overtaken the client's word: as many may as are sent without credit.
    pub(crate) fn waits_for_keep(&self) -> bool {
        self.grace.is_none() && self.expected == 0 && self.early.len() < HOP_FRAMES_MAX as usize
    }

    /// Whoever had sent what is under way here waits for nothing any more.
    pub(crate) fn forgive(&mut self) {
        self.in_flight.forgive();
        self.journal.forgive();
        self.answers.iter_mut().for_each(|answering| answering.owed = false);
    }

    /// The stream that hidden states leave on.
    pub(crate) fn output_stream(&self) -> Option<StreamId> {
        match self.open.next {
            NextHop::Client => self.client_stream(),
            NextHop::Peer { .. } => self.hop_out,
            NextHop::Nobody => None,
        }
    }

    /// Checks a step that arrived, and takes note of it. `due`: it was sent to somebody before, and numbers from this one on may be
    /// left out before it.
    ///
    /// # Errors
    /// What the sender did wrong. The session ends with it.
    pub(crate) fn arrive(&mut self, now: Instant, frame: &StepFrame, due: Option<u32>) -> Result<Arrival, Failure> {
        let again = due.is_some();
        let fail = |code, detail: String| Err(Failure::new(code, detail));
        let epoch = self.epochs.previous;
        let twin = frame.epoch == epoch && frame.sequence < self.expected;
        if (frame.epoch < epoch || twin) && Defence::StepSequence.stands() {
            self.stale += 1;
            if self.stale > STALE_FRAMES_MAX {
                return fail(FailureCode::Protocol, format!("{} frames came twice or late", self.stale));
            }
            return Ok(Arrival::Stale);
        }
        if frame.epoch > epoch {
            return fail(FailureCode::Epoch, format!("epoch {}; the session is at {epoch}", frame.epoch));
        }
        if again && self.grace.is_none() {
            return fail(FailureCode::Protocol, "a step came again, and the session was not opened for that".into());
        }
        // Numbers that are left out before what is sent again are told from such as were lost.
        if frame.sequence >= self.expected && due.unwrap_or(frame.sequence) != self.expected {
            return fail(FailureCode::Gap, format!("step {} came, {} was due", frame.sequence, self.expected));
        }
        let Some(next) = frame.sequence.checked_add(1) else {
            return fail(FailureCode::Protocol, "no step has that number".into());
        };
        // Whoever changes neighbours while nothing leaves must not fill this peer.
        let (steps, bytes) = self.journal.waiting();
        if steps + self.in_flight.len() >= UNSENT_STEPS_MAX || bytes > UNSENT_BYTES_MAX {
            return fail(FailureCode::OverBudget, format!("{steps} steps, {bytes} bytes, wait for the next peer"));
        }
        // Whoever takes another's place is sent steps while its own next peer is still dialled.
        if !self.ready_sent && self.grace.is_none() {
            return fail(FailureCode::Protocol, "a step came before the session was ready".into());
        }
        if !self.receipts.received() && Defence::StepCredit.stands() {
            return fail(FailureCode::OverBudget, "a step came without credit".into());
        }
        if frame.start > self.held {
            let detail = format!("a step starts at position {}; the cache holds {}", frame.start, self.held);
            return fail(FailureCode::Protocol, detail);
        }
        if !frame.skipped && !frame.tree.fits(frame.count.into()) {
            let detail = format!("a tree of {} rows for {}", frame.tree.parents().len(), frame.count);
            return fail(FailureCode::Protocol, detail);
        }
        let end = frame.start.saturating_add(frame.tree.positions(frame.count.into()));
        // What is skipped does not tell its tree, and takes no room.
        if end > self.open.positions && !frame.skipped {
            let detail = format!("position {end}; the session was opened for {}", self.open.positions);
            return fail(FailureCode::ContextFull, detail);
        }
        // Behind what a lost peer had skipped, whoever took its place may have computed more.
        let arrival = match frame.skipped || frame.start > self.solid {
            true => Arrival::Skip,
            false => {
                self.check_rows(frame)?;
                Arrival::Run(self.decode(frame)?)
            }
        };
        self.expected = next;
        self.replays = again;
        // A later step that starts here or before follows one that was skipped: what is held counts up to it at least.
        self.held = (frame.start + frame.tree.trunk(frame.count.into()) as u32).min(self.open.positions);
        self.solid = if matches!(arrival, Arrival::Run(_)) { self.held } else { self.solid.min(frame.start) };
        self.last_step = now;
        self.answered = None;
        let StepFrame { sequence, start, count, rows, top, pad, fence, .. } = *frame;
        let (tree, owed) = (frame.tree.clone(), true);
        let head = StepHead { sequence, start, count, rows, top, pad, tree, fence, again, owed };
        self.in_flight.heads.push_back(head);
        Ok(arrival)
    }

    /// Refuses at the tail what could not be answered in one frame.
    fn check_rows(&self, frame: &StepFrame) -> Result<(), Failure> {
        if usize::from(frame.top) > bounds::TOP_LOGITS_MAX {
            return Err(Failure::new(FailureCode::Protocol, format!("{} largest logits asked for", frame.top)));
        }
        let rows = match frame.rows {
            Rows::None => 0,
            Rows::Last | Rows::Mean => 1,
            Rows::All => usize::from(frame.count),
        };
        if frame.rows == Rows::Mean && usize::from(frame.count) > bounds::MEAN_POSITIONS_MAX {
            let detail = format!("the mean of {} positions was asked for", frame.count);
            return Err(Failure::new(FailureCode::OverBudget, detail));
        }
        // A mean is as long as a hidden state: that fits.
        let max = answer_rows_max(self.width, self.vocabulary, frame.top);
        if self.open.stage.tail && frame.rows != Rows::Mean && rows > max {
            let detail = format!("{rows} rows of {} logits asked for; an answer holds {max}", frame.top);
            return Err(Failure::new(FailureCode::OverBudget, detail));
        }
        Ok(())
    }

    fn decode(&mut self, frame: &StepFrame) -> Result<Input, Failure> {
        if frame.codec != self.open.codec_in {
            let detail = format!("codec {}; the session agreed on {}", frame.codec, self.open.codec_in);
            return Err(Failure::new(FailureCode::Protocol, detail));
        }
        let protocol = |error| Failure::new(FailureCode::Protocol, error);
        let positions = frame.count.into();
        if frame.codec != Codec::Tokens {
            let (width, mut hidden) = (self.width as usize, std::mem::take(&mut self.in_flight.spare));
            frame.codec.decode_over(&frame.payload, positions, width, &mut hidden).map_err(protocol)?;
            return Ok(Input::Hidden(potluck_core::Hidden(hidden)));
        }
        let tokens = Codec::decode_tokens(&frame.payload, positions).map_err(protocol)?;
        match tokens.iter().find(|token| **token >= self.vocabulary) {
            Some(token) if Defence::TokenBounds.stands() => {
                Err(Failure::new(FailureCode::Protocol, format!("token {token} is not in the vocabulary")))
            }
            _ => Ok(Input::Tokens(tokens)),
        }
    }

    /// Has the next be told of the oldest step in flight that it was skipped; nothing where it is another.
    pub(crate) fn skip(&mut self, sequence: u32) {
        let Some(StepHead { start, count, pad, again, owed, .. }) = self.in_flight.pop(sequence) else { return };
        let epoch = self.epochs.next;
        match self.open.stage.tail {
            true => {
                let (rows, skipped) = (Vec::new(), true);
                self.answer(AnswerFrame { sequence, epoch, start, count, rows, pad, skipped }, owed);
            }
            false => self.pass_on(StepFrame::skipped(sequence, epoch, start, count), again, owed),
        }
    }

    fn answer(&mut self, answer: AnswerFrame, owed: bool) {
        let answer = Some(answer).filter(|answer| answer.sequence >= self.told);
        self.tally.bytes_out += answer.as_ref().map_or(0, AnswerFrame::bytes) as u64;
        self.answers.push_back(Answering { answer, owed });
    }

    fn pass_on(&mut self, step: StepFrame, again: bool, owed: bool) {
        self.tally.bytes_out += step.bytes() as u64;
        self.journal.push(step, again, owed);
    }

    /// Turns what the stage gave for the oldest step in flight into the frame that carries it on.
    ///
    /// # Errors
    /// The stage gave what cannot be passed on.
    pub(crate) fn label(&mut self, sequence: u32, output: Output) -> Result<(), Failure> {
        let engine = |detail: String| Failure::new(FailureCode::Engine, detail);
        let head = self.in_flight.pop(sequence);
        let StepHead { sequence, start, count, rows, top, pad, tree, fence, again, owed } =
            head.ok_or_else(|| engine(format!("the stage answered step {sequence} out of order")))?;
        let skipped = false;
        let epoch = self.epochs.next;
        match output {
            Output::Logits(logits) if self.open.stage.tail => {
                self.answered = Some((sequence, count));
                self.answer(AnswerFrame { sequence, epoch, start, count, rows: logits, pad, skipped }, owed);
                Ok(())
            }
            Output::Hidden(hidden) if !self.open.stage.tail => {
                let codec = self.open.codec_out;
                let mut payload = StepFrame::buffer();
                codec.encode(&hidden.0, self.width as usize, &mut payload).map_err(|e| engine(e.to_string()))?;
                if payload.len() != codec.bytes(count.into(), self.width as usize) {
                    return Err(engine(format!("the stage gave {} values for {count} positions", hidden.0.len())));
                }
                self.in_flight.keep(hidden.0);
                let step =
                    StepFrame { sequence, epoch, start, count, rows, top, codec, payload, pad, tree, fence, skipped };
                self.pass_on(step, again, owed);
                Ok(())
            }
            _ => Err(engine("the stage gave the wrong kind of output".into())),
        }
    }
}
