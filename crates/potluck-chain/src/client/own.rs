//! The client's own stages, at the ends of the route.

use std::time::Instant;

use potluck_core::{Hidden, Input, Output, StageCommand, StageError, StageReply, Step};
use potluck_wire::{Frame, StepFrame};

use super::{ClientSession, Effect, Hop, OwnStage, Pending};
use crate::SessionError;

impl ClientSession {
    pub(super) fn own(&mut self, now: Instant, hop: usize, reply: StageReply) -> Result<(), SessionError> {
        let layers = self.layers(hop);
        let own_failed = |error| SessionError::Own { layers: layers.clone(), error };
        match reply {
            StageReply::Opened { result, .. } => {
                result.map_err(own_failed)?;
                if self.waiting_for.get(hop) == Some(&true) {
                    return self.one_is_ready(now, hop, None);
                }
                Ok(())
            }
            StageReply::Forwarded { batch, results, compute_us } => {
                if let Some(due) = self.pending.iter().find(|due| u64::from(due.sequence) == batch) {
                    self.accounts.own_ran(hop, due.count, compute_us);
                }
                let result = results.into_iter().next().unwrap_or(Err(StageError::Engine("no result".into())));
                self.own_ran(now, hop, batch as u32, result.map_err(own_failed)?)
            }
            StageReply::Row { result, .. } => {
                let logits = result.map_err(own_failed)?;
                if let Some((sequence, row)) = self.row_wanted.take() {
                    self.effects.push_back(Effect::Row { sequence, row, logits });
                }
                Ok(())
            }
            StageReply::Saved { result, .. } => self.own_saved(hop, result),
            StageReply::Restored { result, .. } => self.own_restored(hop, result),
            // The stage's driver asks for them itself.
            StageReply::Exported { .. } | StageReply::Imported { .. } => Ok(()),
            StageReply::Lost { reason } => Err(own_failed(StageError::Lost(reason))),
            StageReply::Ready(_) => Ok(()),
        }
    }

    pub(super) fn own_ran(
        &mut self,
        now: Instant,
        hop: usize,
        sequence: u32,
        output: Output,
    ) -> Result<(), SessionError> {
        match output {
            Output::Logits(rows) => {
                if hop > 0 && sequence >= self.credited_from {
                    self.frame_done(hop - 1);
                }
                self.deliver(now, rows, false);
                Ok(())
            }
            Output::Hidden(hidden) => self.pass_on(hop, sequence, &hidden),
        }
    }

    /// A frame of that peer's is done with.
    pub(super) fn frame_done(&mut self, hop: usize) {
        if let Some(frames) = self.receipts.finished() {
            self.send(hop, Frame::Credit { frames });
        }
    }

    /// The own head's hidden states, for the first peer.
    pub(super) fn pass_on(&mut self, hop: usize, sequence: u32, hidden: &Hidden) -> Result<(), SessionError> {
        let codec = self.config.codec;
        let mut payload = StepFrame::buffer();
        codec.encode(&hidden.0, self.config.width as usize, &mut payload).map_err(|error| SessionError::Own {
            layers: self.layers(hop),
            error: StageError::Engine(error.to_string()),
        })?;
        self.send_step(sequence, codec, payload);
        Ok(())
    }

    /// Runs a step that is pending in an own stage.
    pub(super) fn run_own(&mut self, hop: usize, sequence: u32, input: Input) {
        let Some(&Hop::Own(OwnStage { cache, .. })) = self.config.route.get(hop) else { return };
        let Some(due) = self.pending.iter().find(|due| due.sequence == sequence) else { return };
        let Pending { start, rows, top, ref tree, .. } = *due;
        let steps = vec![Step { cache, start, input, rows, top, tree: tree.clone() }];
        self.effects.push_back(Effect::Own { hop, command: StageCommand::Forward { batch: sequence.into(), steps } });
    }
}
