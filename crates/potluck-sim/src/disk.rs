//! A simulated disk: what was put aside, as whoever keeps it has it.

use std::collections::BTreeMap;

use potluck_core::{CacheId, SessionKey, Stage, StageCommand, StageError, StageReply, StageSpec, StateKey, StatePart};

use crate::toy::ToyStage;

/// What somebody keeps of sessions that were put aside. It outlives whoever wrote it.
#[derive(Debug, Default)]
pub(crate) struct Disk(BTreeMap<(SessionKey, StageSpec), (StateKey, Vec<StatePart>)>);

impl Disk {
    /// Does what a stage cannot do by itself, where the command is that. `fails`: the disk is full, or what is asked for is gone.
    pub(crate) fn carry_out(
        &mut self,
        stage: &mut ToyStage,
        command: &StageCommand,
        fails: bool,
    ) -> Option<StageReply> {
        match *command {
            StageCommand::Save { cache, session, key, .. } => {
                let result = if fails { Err(failed("it is full")) } else { self.save(stage, cache, session, key) };
                Some(StageReply::Saved { cache, result })
            }
            StageCommand::Restore { cache, session, key } => {
                let result = if fails { Err(failed("it is gone")) } else { self.restore(stage, cache, session, key) };
                Some(StageReply::Restored { cache, result })
            }
            _ => None,
        }
    }

    fn save(
        &mut self,
        stage: &mut ToyStage,
        cache: CacheId,
        session: SessionKey,
        key: StateKey,
    ) -> Result<u64, StageError> {
        let mut parts = vec![stage.export(cache, 0)?];
        while let Some(last) = parts.last().filter(|last| !last.is_last()) {
            let offset = last.offset + last.bytes.len() as u64;
            parts.push(stage.export(cache, offset)?);
        }
        let total = parts[0].total;
        self.0.insert((session, stage.shape().spec), (key, parts));
        Ok(total)
    }

    fn restore(
        &mut self,
        stage: &mut ToyStage,
        cache: CacheId,
        session: SessionKey,
        key: StateKey,
    ) -> Result<u32, StageError> {
        let kept = self.0.get(&(session, stage.shape().spec)).filter(|(kept, _)| *kept == key);
        let (_, parts) = kept.ok_or_else(|| failed("there is no such state"))?;
        for part in parts {
            stage.import(cache, part.clone())?;
        }
        Ok(parts[0].positions)
    }
}

fn failed(why: &str) -> StageError {
    StageError::Engine(why.into())
}
