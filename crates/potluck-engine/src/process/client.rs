//! An engine's process as a `Stage` that blocks: for tests, tools, and the client's own ends.

use std::io::{ErrorKind, Write as _};

use potluck_core::{CacheId, Hidden, Output, Stage, StageCommand, StageError, StageReply, StageShape, StatePart, Step};

use super::{
    connect::{Connection, Loaded, UnderWay, connect, into_engine, is_end},
    due::Due,
    frame::{decode, encode, read},
    spawn::EngineProgram,
};
use crate::{EngineError, Load};

/// A stage in a child process, called like one that is here. Once the child is gone every call gives `Lost`, until
/// [`restart`](Self::restart).
pub struct EngineStage {
    program: EngineProgram,
    load: Load,
    connection: Result<Connection, String>,
    shape: StageShape,
    batch: u64,
    out: Vec<u8>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for EngineStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineStage").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl EngineStage {
    /// Starts a child and waits until it has loaded.
    ///
    /// # Errors
    /// See [`EngineError`]: also where the file made llama.cpp end the child.
    pub fn start(program: EngineProgram, load: Load) -> Result<Self, EngineError> {
        let (connection, shape) = Self::connect(&program, &load)?;
        let (out, buffer) = (Vec::new(), Vec::new());
        Ok(Self { program, load, connection: Ok(connection), shape, batch: 0, out, buffer })
    }

    /// Starts the child anew; every cache is gone.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn restart(&mut self) -> Result<(), EngineError> {
        self.connection = Err("it is being restarted".into());
        let (connection, shape) = Self::connect(&self.program, &self.load)?;
        (self.connection, self.shape) = (Ok(connection), shape);
        Ok(())
    }

    /// The child's process id, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.connection.as_ref().ok().map(|connection| connection.child.pid())
    }

    fn connect(program: &EngineProgram, load: &Load) -> Result<(Connection, StageShape), EngineError> {
        let connection = connect(program, load, &UnderWay::default())?;
        let Loaded::Stage(shape) = &connection.loaded else {
            return Err(EngineError::NotAStage("a vocabulary was asked for".into()));
        };
        let shape = shape.clone();
        let timeout = Some(load.settings.step_timeout);
        let set = connection.socket.set_read_timeout(timeout).and(connection.socket.set_write_timeout(timeout));
        set.map_err(|why| EngineError::system("setting a deadline", why))?;
        Ok((connection, shape))
    }

    /// Sends `command` and waits for what it is owed.
    fn call(&mut self, command: &StageCommand) -> Result<Option<StageReply>, StageError> {
        let due = Due::of(command);
        self.out.clear();
        // A command that is too long is the caller's fault, and harms nobody.
        encode(command, &mut self.out).map_err(|error| StageError::BadInput(error.to_string()))?;
        let connection = self.connection.as_mut().map_err(|reason| StageError::Lost(reason.clone()))?;
        let failure = match exchange(connection, &self.out, &mut self.buffer, due) {
            Ok(reply) => return Ok(reply),
            Err(failure) => failure,
        };
        let end = connection.child.end();
        let reason = match failure {
            _ if is_end(&failure) => end,
            _ if matches!(failure.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let seconds = self.load.settings.step_timeout.as_secs();
                EngineError::TimedOut { seconds, doing: "a step".into() }.to_string()
            }
            _ => into_engine(failure).to_string(),
        };
        self.connection = Err(reason.clone());
        Err(StageError::Lost(reason))
    }
}

fn exchange(
    connection: &mut Connection,
    frame: &[u8],
    buffer: &mut Vec<u8>,
    due: Option<Due>,
) -> std::io::Result<Option<StageReply>> {
    connection.socket.write_all(frame)?;
    let Some(due) = due else { return Ok(None) };
    let content = read(&mut connection.socket, buffer)?.ok_or(ErrorKind::UnexpectedEof)?;
    let reply = decode(content).map_err(std::io::Error::other)?;
    match due.is_paid_by(&reply) {
        true => Ok(Some(reply)),
        false => Err(std::io::Error::other(EngineError::Protocol("it answered another question".into()))),
    }
}

impl Stage for EngineStage {
    fn shape(&self) -> &StageShape {
        &self.shape
    }

    fn open(&mut self, cache: CacheId, positions: u32) -> Result<(), StageError> {
        match self.call(&StageCommand::Open { cache, positions })? {
            Some(StageReply::Opened { result, .. }) => result,
            _ => Err(unasked()),
        }
    }

    fn fork(&mut self, from: CacheId, to: CacheId, positions: u32) -> Result<(), StageError> {
        match self.call(&StageCommand::Fork { from, to, positions })? {
            Some(StageReply::Opened { result, .. }) => result,
            _ => Err(unasked()),
        }
    }

    fn close(&mut self, cache: CacheId) {
        // A lost child has closed everything.
        let _ = self.call(&StageCommand::Close { cache });
    }

    fn forward(&mut self, steps: &mut [Step]) -> Vec<Result<Output, StageError>> {
        self.batch += 1;
        match self.call(&StageCommand::Forward { batch: self.batch, steps: steps.to_vec() }) {
            Ok(Some(StageReply::Forwarded { results, .. })) => results,
            Ok(_) => steps.iter().map(|_| Err(unasked())).collect(),
            Err(error) => vec![Err(error); steps.len()],
        }
    }

    fn row(&mut self, cache: CacheId, row: u16) -> Result<Hidden, StageError> {
        match self.call(&StageCommand::Row { cache, row })? {
            Some(StageReply::Row { result, .. }) => result,
            _ => Err(unasked()),
        }
    }

    fn export(&mut self, cache: CacheId, offset: u64) -> Result<StatePart, StageError> {
        match self.call(&StageCommand::Export { cache, offset })? {
            Some(StageReply::Exported { result, .. }) => result,
            _ => Err(unasked()),
        }
    }

    fn import(&mut self, cache: CacheId, part: StatePart) -> Result<(), StageError> {
        match self.call(&StageCommand::Import { cache, part })? {
            Some(StageReply::Imported { result, .. }) => result,
            _ => Err(unasked()),
        }
    }
}

fn unasked() -> StageError {
    StageError::Engine("it answered another question".into())
}
