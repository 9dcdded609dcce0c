//! The child's side: receive what to load, close the doors, load, serve.

use std::{
    fs::File,
    io::Write as _,
    os::{
        fd::{AsRawFd as _, FromRawFd as _},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::{Duration, Instant},
};

use potluck_core::{Defence, Stage as _, StageCommand, StageError, StageReply};
use serde::de::DeserializeOwned;
use zeroize::Zeroize as _;

use super::{
    connect::into_engine,
    descriptors,
    due::Due,
    frame::{decode, encode, read, read_content},
    spawn::SOCKET_DESCRIPTOR,
    wire::{Job, Loading, Request, VERSION},
};
use crate::{EngineError, LlamaStage, Load, Part, memory, sandbox, vocabulary::VocabularyService};

/// Percent between two reports of progress.
const PROGRESS_STEP: u8 = 2;

/// What the hidden command `potluck engine` does: serves one load over the socket at descriptor 3, and never returns.
///
/// Call it before any thread is started and before anything else is opened: the sandbox binds the calling thread and
/// those that it starts.
pub fn child_main() -> ! {
    memory::forbid_dumps();
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
    if Defence::Sandbox.stands() {
        sandbox::enter(gpu)?;
    }
    Ok((request, descriptors.into_iter().map(|descriptor| Arc::new(File::from(descriptor))).collect()))
}

fn work(socket: &mut UnixStream, request: Request, files: Vec<Arc<File>>) -> Result<(), EngineError> {
    let part = match request.job {
        Job::TryOut => return reply(socket, &Loading::TriedOut(sandbox::try_out())),
        Job::Load(part) => part,
    };
    memory::keep_freed(request.settings.wipe_within.is_none());
    let load = Load { part, settings: request.settings, files };
    match &load.part {
        Part::Vocabulary { .. } => match VocabularyService::load(&load) {
            Ok(mut service) => {
                reply(socket, &Loading::Vocabulary(service.info()))?;
                answer(socket, &mut service, |service, command, out| encode(&service.answer(command), out), |_| None)
            }
            Err(error) => refuse(socket, error),
        },
        _ => match load_stage(socket, &load) {
            Ok(mut stage) => {
                // The request held the header of the file: the weights are loaded, it is not needed again.
                drop(load);
                reply(socket, &Loading::Stage(stage.shape().clone()))?;
                answer(socket, &mut stage, run, LlamaStage::tend)
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
///
/// `tend` does what is due meanwhile, and says how long it is until more is.
fn answer<S, C: DeserializeOwned>(
    socket: &mut UnixStream,
    service: &mut S,
    run: impl Fn(&mut S, C, &mut Vec<u8>) -> Result<(), EngineError>,
    tend: impl Fn(&mut S) -> Option<Duration>,
) -> Result<(), EngineError> {
    let (mut buffer, mut out) = (Vec::new(), Vec::new());
    loop {
        while let Some(patience) = tend(service) {
            if comes_within(socket, patience).map_err(into_engine)? {
                break;
            }
        }
        let Some(content) = read(socket, &mut buffer).map_err(into_engine)? else { return Ok(()) };
        run(service, decode(content)?, &mut out)?;
        if !out.is_empty() {
            socket.write_all(&out).map_err(into_engine)?;
        }
        // They stay for the next command: what they held does not.
        buffer.as_mut_slice().zeroize();
        out.as_mut_slice().zeroize();
        out.clear();
    }
}

/// Waits for a command, or the peer's end, for so long; whether there is one.
fn comes_within(socket: &UnixStream, patience: Duration) -> std::io::Result<bool> {
    let mut wanted = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    match poll(&mut wanted, patience) {
        -1 => match std::io::Error::last_os_error() {
            error if error.kind() == std::io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        ready => Ok(ready > 0),
    }
}

/// One descriptor, for so long.
#[cfg(target_os = "linux")]
fn poll(wanted: &mut libc::pollfd, patience: Duration) -> i32 {
    // The sandbox knows this call, and not `poll`.
    let patience = libc::timespec { tv_sec: patience.as_secs() as _, tv_nsec: patience.subsec_nanos().into() };
    // SAFETY: one descriptor, which is open; no mask of signals.
    unsafe { libc::ppoll(wanted, 1, &raw const patience, std::ptr::null()) }
}

/// One descriptor, for so long.
#[cfg(not(target_os = "linux"))]
fn poll(wanted: &mut libc::pollfd, patience: Duration) -> i32 {
    // A millisecond more: what is due then is due.
    let milliseconds = patience.as_millis().saturating_add(1).min(i32::MAX as u128) as i32;
    // SAFETY: one descriptor, which is open.
    unsafe { libc::poll(wanted, 1, milliseconds) }
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
