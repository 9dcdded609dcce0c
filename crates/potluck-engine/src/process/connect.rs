//! From nothing to a child that has loaded: the handshake.

use std::{
    io::{ErrorKind, Write as _},
    net::Shutdown,
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::{Arc, Mutex, PoisonError},
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

/// For whoever starts a child on another thread: as soon as it is dropped, a child that is still loading is ended, and its memory with it.
#[derive(Debug, Default)]
pub(crate) struct Patience(UnderWay);

/// The socket of a child that is loading.
#[derive(Debug, Default, Clone)]
pub(crate) struct UnderWay(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
enum Waiting {
    #[default]
    NotYet,
    For(UnixStream),
    NoMore,
}

impl Patience {
    /// Nobody waits any more.
    pub(crate) fn end(&self) {
        if let Waiting::For(socket) = self.0.end() {
            // Whoever reads finds its end, and ends the child.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// What the other thread loads with.
    pub(crate) fn loading(&self) -> UnderWay {
        self.0.clone()
    }

    /// It has loaded: what becomes of the child now is its owner's business.
    pub(crate) fn over(&self) {
        self.0.end();
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.end();
    }
}

impl UnderWay {
    fn end(&self) -> Waiting {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), Waiting::NoMore)
    }

    /// A child has started. An error where nobody waits for it any more.
    fn begin(&self, socket: &UnixStream) -> std::io::Result<()> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*waiting, Waiting::NoMore) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        *waiting = Waiting::For(socket.try_clone()?);
        Ok(())
    }
}

/// Starts a child and has it load `load`. Blocks until it has, or fails to, or makes no progress in time, or nobody waits for it.
pub(crate) fn connect(program: &EngineProgram, load: &Load, loading: &UnderWay) -> Result<Connection, EngineError> {
    load.settings.check()?;
    let files: Vec<_> = load.files.iter().map(|file| file.as_fd()).collect();
    let request = Request {
        version: VERSION,
        files: files.len() as u16,
        settings: load.settings.clone(),
        job: Job::Load(load.part.clone()),
    };
    shake_hands(program, &request, &files, loading)
}

/// Starts a child that tries, inside the sandbox, what the sandbox is there to forbid. For `doctor` and the tests.
///
/// # Errors
/// As for a load.
pub fn try_out_sandbox(program: &EngineProgram) -> Result<Vec<Attempt>, EngineError> {
    let settings = EngineSettings::default();
    let request = Request { version: VERSION, files: 0, settings, job: Job::TryOut };
    match shake_hands(program, &request, &[], &UnderWay::default())?.loaded {
        Loaded::TriedOut(attempts) => Ok(attempts),
        _ => Err(EngineError::Protocol("the child loaded something instead".into())),
    }
}

fn shake_hands(
    program: &EngineProgram,
    request: &Request,
    files: &[std::os::fd::BorrowedFd<'_>],
    loading: &UnderWay,
) -> Result<Connection, EngineError> {
    let mut frame = Vec::new();
    encode(request, &mut frame)?;
    let (mut child, mut socket) = spawn(program)?;
    let begun = loading.begin(&socket);
    let loaded =
        begun.and_then(|()| send(&mut socket, &frame, files, request)).and_then(|()| wait(&mut socket, request));
    if !matches!(loaded, Ok(Some(_))) {
        // Whatever the child has started holds on to its end as long as there is another: none may be left when it is waited for.
        drop(loading.end());
    }
    match loaded {
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
