//! Starting an engine's process and ending it.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{BufRead as _, BufReader, Read as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream, unix::process::CommandExt as _},
    path::PathBuf,
    process::{ChildStderr, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread::JoinHandle,
};

use crate::EngineError;

/// The descriptor at which a child finds its end of the socket pair.
pub(crate) const SOCKET_DESCRIPTOR: i32 = 3;

/// Last lines of a child's standard error that are kept for the reason of its end.
const LAST_LINES_MAX: usize = 8;

/// Bytes of one such line.
const LINE_BYTES_MAX: u64 = 1_000;

/// Variables that reach a child; all others (keys and tokens among them) do not. A `*` stands for any ending.
const VARIABLES: [&str; 11] = [
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "HOME",
    "LANG",
    "POTLUCK_ENGINE_LOG",
    "CUDA_*",
    "GGML_*",
    "HIP_*",
    "ROCR_*",
    "VK_*",
    "SYSTEMROOT",
];

/// How to start an engine's process: a program that calls [`child_main`](crate::child_main).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineProgram {
    /// The program.
    pub program: PathBuf,
    /// What makes it an engine.
    pub args: Vec<OsString>,
}

impl EngineProgram {
    /// This very program, with `args`.
    ///
    /// # Errors
    /// `System` where the system does not say which program this is.
    pub fn current(args: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Self, EngineError> {
        let program = std::env::current_exe().map_err(|why| EngineError::system("finding this program", why))?;
        Ok(Self { program, args: args.into_iter().map(Into::into).collect() })
    }
}

/// A running child; killed and reaped when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    errors: Option<JoinHandle<VecDeque<String>>>,
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends the process and waits for it; why it ended, for a log.
    pub(crate) fn end(&mut self) -> String {
        // It may have ended by itself: then this does nothing, and the status says how.
        let _ = self.process.kill();
        let status = self.process.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        let lines = self.errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        match lines.is_empty() {
            true => status,
            false => format!("{status}: {}", lines.into_iter().collect::<Vec<_>>().join(" | ")),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.errors.is_some() {
            self.end();
        }
    }
}

type Spawned = Result<(std::process::Child, UnixStream), EngineError>;

/// What to start, and where to answer.
type Order = (EngineProgram, mpsc::SyncSender<Spawned>);

/// Starts `program` with one end of a socket pair; the other end.
pub(crate) fn spawn(program: &EngineProgram) -> Result<(Child, UnixStream), EngineError> {
    let (answer, wait) = mpsc::sync_channel(1);
    let gone = || EngineError::system("starting the engine", "the thread that starts processes is gone");
    warden()?.send((program.clone(), answer)).map_err(|_| gone())?;
    let (mut process, socket) = wait.recv().map_err(|_| gone())??;
    let errors = process.stderr.take().map(follow).transpose()?;
    Ok((Child { process, errors }, socket))
}

/// The thread that starts every child. On Linux a child dies with the *thread* that started it: this one stays.
fn warden() -> Result<&'static mpsc::Sender<Order>, EngineError> {
    static WARDEN: OnceLock<Option<mpsc::Sender<Order>>> = OnceLock::new();
    let start = || {
        let (sender, jobs) = mpsc::channel::<Order>();
        let work = move || {
            for (program, answer) in jobs {
                let _ = answer.send(start(&program));
            }
        };
        std::thread::Builder::new().name("engine-warden".into()).spawn(work).ok().map(|_| sender)
    };
    WARDEN.get_or_init(start).as_ref().ok_or_else(|| EngineError::system("starting the engine", "no thread to be had"))
}

fn start(program: &EngineProgram) -> Spawned {
    let failed = |why: std::io::Error| EngineError::system(format!("starting {}", program.program.display()), why);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut command = Command::new(&program.program);
    command.args(&program.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| passes(&name.to_string_lossy())));
    // Ctrl-C on a terminal is for the program that we belong to: it ends us, or only stops an answer.
    command.process_group(0);
    // ggml would start a debugger when it aborts.
    command.env("GGML_NO_BACKTRACE", "1");
    // Weights that are read, not mapped, are private memory: in pages of 4 KiB each token waits for the TLB, and decoding
    // takes a quarter longer (`docs/benchmarks.md`). glibc asks for huge ones where the kernel gives them on request.
    command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    let (descriptor, peer) = (theirs.as_raw_fd(), std::process::id());
    // SAFETY: between fork and exec only system calls that are safe there are made; nothing is allocated.
    unsafe { command.pre_exec(move || prepare(descriptor, peer)) };
    let process = command.spawn().map_err(failed)?;
    Ok((process, ours))
}

/// In the new process, before its program starts.
fn prepare(descriptor: i32, peer: u32) -> std::io::Result<()> {
    let check = |result: i32| if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a plain system call.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        // SAFETY: a plain system call.
        let parent = unsafe { libc::getppid() };
        if parent as u32 != peer {
            // The peer died before the first call: nobody would end us.
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
    }
    let _ = peer;
    if descriptor == SOCKET_DESCRIPTOR {
        // SAFETY: a plain system call: the descriptor survives the exec.
        return check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) });
    }
    // SAFETY: a plain system call; the copy survives the exec.
    check(unsafe { libc::dup2(descriptor, SOCKET_DESCRIPTOR) })
}

fn passes(name: &str) -> bool {
    VARIABLES.iter().any(|variable| match variable.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *variable,
    })
}

/// Passes a child's standard error on to the log, and keeps its last lines.
fn follow(stderr: ChildStderr) -> Result<JoinHandle<VecDeque<String>>, EngineError> {
    let work = move || {
        let mut reader = BufReader::new(stderr);
        let (mut last, mut line) = (VecDeque::new(), Vec::new());
        while reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            if text.is_empty() {
                continue;
            }
            tracing::debug!(target: "potluck_engine::child", "{text}");
            if last.len() == LAST_LINES_MAX {
                last.pop_front();
            }
            last.push_back(text);
        }
        last
    };
    let thread = std::thread::Builder::new().name("engine-stderr".into()).spawn(work);
    thread.map_err(|why| EngineError::system("reading the engine's log", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_the_environment_do_not_reach_a_child() {
        assert!(passes("CUDA_VISIBLE_DEVICES") && passes("HOME"));
        assert!(!passes("POTLUCK_SECRET_KEY") && !passes("AWS_SECRET_ACCESS_KEY") && !passes("HOMEX"));
    }

    #[test]
    fn a_program_that_is_no_engine_is_ended_and_its_words_are_kept() {
        let program = EngineProgram { program: "/bin/sh".into(), args: vec!["-c".into(), "echo no >&2".into()] };
        let (mut child, mut socket) = spawn(&program).unwrap();
        assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0, "the child closed its end");
        let reason = child.end();
        assert!(reason.contains("no"), "{reason}");
        let missing = EngineProgram { program: "/nonexistent/engine".into(), args: Vec::new() };
        assert!(matches!(spawn(&missing), Err(EngineError::System { .. })));
    }
}
