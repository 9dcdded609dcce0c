//! From nothing to a child that has loaded: the handshake.

use std::{
    io::{ErrorKind, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
};

use potluck_core::StageShape;

use super::{
    descriptors,
    frame::{decode, encode, read},
    spawn::{Child, EngineProgram, spawn},
    wire::{Job, Loading, Request, VERSION},
};
use crate::{EngineError, EngineSettings, Load, sandbox::Attempt, vocabulary::VocabularyInfo};

/// A child that has loaded what it was asked to.
pub(crate) struct Connection {
    pub(crate) child: Child,
    pub(crate) socket: UnixStream,
    pub(crate) loaded: Loaded,
}

/// What a child is.
pub(crate) enum Loaded {
    Stage(StageShape),
    Vocabulary(VocabularyInfo),
    TriedOut(Vec<Attempt>),
}

/// Starts a child and has it load `load`. Blocks until it has, or fails to, or makes no progress in time.
pub(crate) fn connect(program: &EngineProgram, load: &Load) -> Result<Connection, EngineError> {
    load.settings.check()?;
    let files: Vec<_> = load.files.iter().map(|file| file.as_fd()).collect();
    let request = Request {
        version: VERSION,
        files: files.len() as u16,
        settings: load.settings.clone(),
        job: Job::Load(load.part.clone()),
    };
    shake_hands(program, &request, &files)
}

/// Starts a child that tries, inside the sandbox, what the sandbox is there to forbid. For `doctor` and the tests.
///
/// # Errors
/// As for a load.
pub fn try_out_sandbox(program: &EngineProgram) -> Result<Vec<Attempt>, EngineError> {
    let settings = EngineSettings::default();
    let request = Request { version: VERSION, files: 0, settings, job: Job::TryOut };
    match shake_hands(program, &request, &[])?.loaded {
        Loaded::TriedOut(attempts) => Ok(attempts),
        _ => Err(EngineError::Protocol("the child loaded something instead".into())),
    }
}

fn shake_hands(
    program: &EngineProgram,
    request: &Request,
    files: &[std::os::fd::BorrowedFd<'_>],
) -> Result<Connection, EngineError> {
    let mut frame = Vec::new();
    encode(request, &mut frame)?;
    let (mut child, mut socket) = spawn(program)?;
    match send(&mut socket, &frame, files, request).and_then(|()| wait(&mut socket, request)) {
        Ok(Some(loaded)) => Ok(Connection { child, socket, loaded }),
        Ok(None) => Err(EngineError::Ended(child.end())),
        Err(error) if is_end(&error) => Err(EngineError::Ended(child.end())),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err(EngineError::TimedOut { seconds: request.settings.load_timeout.as_secs(), doing: "loading".into() })
        }
        Err(error) => Err(into_engine(error)),
    }
}

fn send(
    socket: &mut UnixStream,
    frame: &[u8],
    files: &[std::os::fd::BorrowedFd<'_>],
    request: &Request,
) -> std::io::Result<()> {
    socket.set_read_timeout(Some(request.settings.load_timeout))?;
    socket.set_write_timeout(Some(request.settings.load_timeout))?;
    let (length, content) = frame.split_first_chunk().ok_or(ErrorKind::InvalidInput)?;
    descriptors::send(socket, length, files)?;
    socket.write_all(content)
}

/// Waits for the end of the loading; none where the child closed its end.
fn wait(socket: &mut UnixStream, request: &Request) -> std::io::Result<Option<Loaded>> {
    let mut buffer = Vec::new();
    while let Some(content) = read(socket, &mut buffer)? {
        let loaded = match decode(content).map_err(std::io::Error::other)? {
            Loading::Progress(_) => continue,
            Loading::Refused(error) => return Err(std::io::Error::other(error)),
            Loading::Stage(shape) => Loaded::Stage(checked(shape, request)?),
            Loading::Vocabulary(info) => Loaded::Vocabulary(info),
            Loading::TriedOut(attempts) => Loaded::TriedOut(attempts),
        };
        return Ok(Some(loaded));
    }
    Ok(None)
}

/// A child's account of itself, as far as it can be checked: it loaded a stranger's file and may have been taken over.
fn checked(shape: StageShape, request: &Request) -> std::io::Result<StageShape> {
    let spec = match &request.job {
        Job::Load(crate::Part::Stage { spec, source, .. }) => {
            if (source.width, source.vocabulary) != (shape.width, shape.vocabulary) {
                return Err(std::io::Error::other(EngineError::Protocol("the stage has another shape".into())));
            }
            Some(*spec)
        }
        Job::Load(crate::Part::Whole { spec, .. }) => Some(*spec),
        _ => None,
    };
    match spec == Some(shape.spec) && shape.caches == request.settings.caches {
        true => Ok(shape),
        false => Err(std::io::Error::other(EngineError::Protocol("the stage is not the one asked for".into()))),
    }
}

/// True if the other end is gone.
pub(super) fn is_end(error: &std::io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// An engine's own error out of the wrapping, or what the system said.
pub(super) fn into_engine(error: std::io::Error) -> EngineError {
    match error.downcast::<EngineError>() {
        Ok(error) => error,
        Err(error) if error.kind() == ErrorKind::InvalidData => EngineError::Protocol(error.to_string()),
        Err(error) => EngineError::system("talking to the engine", error),
    }
}
