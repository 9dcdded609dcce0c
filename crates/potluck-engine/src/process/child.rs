//! The child's side: receive what to load, close the doors, load, serve.

use std::{
    fs::File,
    io::Write as _,
    os::{fd::FromRawFd as _, unix::net::UnixStream},
    sync::Arc,
    time::Instant,
};

use potluck_core::{Stage as _, StageCommand, StageError, StageReply};
use serde::de::DeserializeOwned;

use super::{
    connect::into_engine,
    descriptors,
    due::Due,
    frame::{decode, encode, read, read_content},
    spawn::SOCKET_DESCRIPTOR,
    wire::{Job, Loading, Request, VERSION},
};
use crate::{EngineError, LlamaStage, Load, Part, sandbox, vocabulary::VocabularyService};

/// Percent between two reports of progress.
const PROGRESS_STEP: u8 = 2;

/// What the hidden command `potluck engine` does: serves one load over the socket at descriptor 3, and never returns.
///
/// Call it before any thread is started and before anything else is opened: the sandbox binds the calling thread and
/// those that it starts.
pub fn child_main() -> ! {
    let code = match serve() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    };
    // SAFETY: ends the process at once: the threads of the pool need no farewell.
    unsafe { libc::_exit(code) }
}

fn serve() -> Result<(), EngineError> {
    // SAFETY: asks whether the descriptor is a socket; where it is none, this program was not started by a peer.
    let is_socket = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(SOCKET_DESCRIPTOR, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
    };
    if !is_socket {
        return Err(EngineError::Settings("this command is for `potluck` itself: it is started by a peer".into()));
    }
    // SAFETY: the descriptor is open, and nobody else in this process knows it.
    let mut socket = unsafe { UnixStream::from_raw_fd(SOCKET_DESCRIPTOR) };
    match prepare(&mut socket) {
        Ok((request, files)) => work(&mut socket, request, files),
        Err(error) => refuse(&mut socket, error),
    }
}

/// Receives the request and closes the doors behind it.
fn prepare(socket: &mut UnixStream) -> Result<(Request, Vec<Arc<File>>), EngineError> {
    let (length, descriptors) = descriptors::receive(socket).map_err(into_engine)?;
    let mut buffer = Vec::new();
    let request: Request = decode(read_content(socket, length, &mut buffer).map_err(into_engine)?)?;
    if request.version != VERSION || usize::from(request.files) != descriptors.len() {
        let why = format!("version {}, {} files of {}", request.version, descriptors.len(), request.files);
        return Err(EngineError::Protocol(why));
    }
    let gpu = request.settings.gpu_layers > 0 && crate::GPU;
    sandbox::enter(gpu)?;
    Ok((request, descriptors.into_iter().map(|descriptor| Arc::new(File::from(descriptor))).collect()))
}

fn work(socket: &mut UnixStream, request: Request, files: Vec<Arc<File>>) -> Result<(), EngineError> {
    let part = match request.job {
        Job::TryOut => return reply(socket, &Loading::TriedOut(sandbox::try_out())),
        Job::Load(part) => part,
    };
    let load = Load { part, settings: request.settings, files };
    match &load.part {
        Part::Vocabulary { .. } => match VocabularyService::load(&load) {
            Ok(mut service) => {
                reply(socket, &Loading::Vocabulary(service.info()))?;
                answer(socket, |command, out| encode(&service.answer(command), out))
            }
            Err(error) => refuse(socket, error),
        },
        _ => match load_stage(socket, &load) {
            Ok(mut stage) => {
                // The request held the header of the file: the weights are loaded, it is not needed again.
                drop(load);
                reply(socket, &Loading::Stage(stage.shape().clone()))?;
                answer(socket, |command, out| run(&mut stage, command, out))
            }
            Err(error) => refuse(socket, error),
        },
    }
}

fn load_stage(socket: &mut UnixStream, load: &Load) -> Result<LlamaStage, EngineError> {
    let mut reported = 0;
    LlamaStage::load(load, |progress| {
        let percent = (progress * 100.0) as u8;
        if percent >= reported + PROGRESS_STEP {
            reported = percent;
            // A peer that is gone is noticed at the next frame.
            let _ = reply(socket, &Loading::Progress(percent));
        }
    })
}

/// Carries `command` out and appends its reply to `out`; one that is too long for a frame becomes an error.
fn run(stage: &mut LlamaStage, command: StageCommand, out: &mut Vec<u8>) -> Result<(), EngineError> {
    let due = Due::of(&command);
    let start = Instant::now();
    let mut reply = command.apply(stage);
    if let Some(StageReply::Forwarded { compute_us, .. }) = &mut reply {
        *compute_us = start.elapsed().as_micros() as u64;
    }
    let (Some(due), Some(reply)) = (due, reply) else { return Ok(()) };
    encode(&reply, out).or_else(|error| encode(&due.failed(StageError::BadInput(error.to_string())), out))
}

/// Answers commands, one after the other, until the peer closes its end.
fn answer<C: DeserializeOwned>(
    socket: &mut UnixStream,
    mut run: impl FnMut(C, &mut Vec<u8>) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let (mut buffer, mut out) = (Vec::new(), Vec::new());
    while let Some(content) = read(socket, &mut buffer).map_err(into_engine)? {
        out.clear();
        run(decode(content)?, &mut out)?;
        if !out.is_empty() {
            socket.write_all(&out).map_err(into_engine)?;
        }
    }
    Ok(())
}

fn reply(socket: &mut UnixStream, message: &Loading) -> Result<(), EngineError> {
    let mut out = Vec::new();
    encode(message, &mut out)?;
    socket.write_all(&out).map_err(into_engine)
}

/// Tells the peer why there will be no engine.
fn refuse(socket: &mut UnixStream, error: EngineError) -> Result<(), EngineError> {
    reply(socket, &Loading::Refused(error.clone()))?;
    Err(error)
}
