//! Closing the doors behind an engine: no file, no network, no other program.
//!
//! On Linux: landlock forbids every access to the file system and to TCP, and seccomp leaves the system calls that
//! computing needs. Descriptors that are open stay so: the model files and the socket to the peer. An engine on a GPU
//! keeps what drivers need (device nodes, `/proc`, `/sys`, caches to read, `ioctl`), and still has no network and starts
//! no program. On other systems there is no sandbox: a child is then a fence against crashes only.

#[cfg(target_os = "linux")]
mod calls;

use serde::{Deserialize, Serialize};

use crate::EngineError;

/// Something that an engine must not be able to do, and what became of trying.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What was tried.
    pub what: String,
    /// The system's error number; none: it worked, and the sandbox has a hole.
    pub refused: Option<i32>,
}

/// What a GPU's driver may read and write: its device nodes.
#[cfg(target_os = "linux")]
const GPU_WRITE: [&str; 4] = ["/dev", "/tmp", "/var/tmp", "/dev/shm"];

/// What a GPU's driver may read: itself, its tables, what the kernel says about devices.
#[cfg(target_os = "linux")]
const GPU_READ: [&str; 7] = ["/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/opt"];

/// Closes the doors for this thread and for all that it starts. There must be no other yet.
///
/// # Errors
/// `System` where the kernel does not have what is needed: the engine then does not load.
#[cfg(target_os = "linux")]
pub(crate) fn enter(gpu: bool) -> Result<(), EngineError> {
    forbid_files(gpu).map_err(|why| EngineError::system("forbidding files (landlock)", why))?;
    calls::forbid(gpu).map_err(|why| EngineError::system("forbidding system calls (seccomp)", why))
}

/// Elsewhere there is no sandbox.
#[cfg(not(target_os = "linux"))]
pub(crate) fn enter(_gpu: bool) -> Result<(), EngineError> {
    Ok(())
}

/// An engine within its sandbox cannot ask the kernel for AMX, the tiles of some processors; outside it, as in tests and the
/// bench, it does not get them either, for it is to compute the same bits. Virtual machines also announce them, grant them, and then end
/// whoever uses them.
pub(crate) fn without_amx() {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        thread_local!(static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
        if !DONE.replace(true) {
            // Within the sandbox it is refused already, and so is this.
            let _ = calls::forbid_amx();
        }
    }
}

#[cfg(target_os = "linux")]
fn forbid_files(gpu: bool) -> Result<(), landlock::RulesetError> {
    use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _};
    let abi = ABI::V5;
    let ruleset = Ruleset::default().handle_access(AccessFs::from_all(abi))?.handle_access(AccessNet::from_all(abi))?;
    let mut ruleset = ruleset.create()?;
    if gpu {
        ruleset = ruleset
            .add_rules(landlock::path_beneath_rules(GPU_READ, AccessFs::from_read(abi)))?
            .add_rules(landlock::path_beneath_rules(GPU_WRITE, AccessFs::from_all(abi)))?;
    }
    let status = ruleset.restrict_self()?;
    if status.ruleset == landlock::RulesetStatus::NotEnforced {
        // An old kernel: seccomp alone forbids `open`, and does so completely where there is no GPU.
        eprintln!("this kernel has no landlock; seccomp alone keeps the engine from files");
    }
    Ok(())
}

/// Tries what the sandbox forbids, each with the system's answer.
pub(crate) fn try_out() -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut attempt = |what: &str, result: std::io::Result<()>| {
        let refused = result.err().map(|error| error.raw_os_error().unwrap_or(-1));
        attempts.push(Attempt { what: what.into(), refused });
    };
    attempt("read a file", std::fs::read("/etc/passwd").map(drop));
    attempt("read its own memory map", std::fs::read("/proc/self/maps").map(drop));
    attempt("list a directory", std::fs::read_dir("/").map(drop));
    attempt("write a file", std::fs::write("/tmp/potluck-sandbox-hole", b"").map(drop));
    attempt("remove a file", std::fs::remove_file("/tmp/potluck-sandbox-hole"));
    attempt("open a TCP socket", std::net::TcpListener::bind("127.0.0.1:0").map(drop));
    attempt("open a UDP socket", std::net::UdpSocket::bind("127.0.0.1:0").map(drop));
    attempt("open a socket pair", std::os::unix::net::UnixStream::pair().map(drop));
    attempt("start a program", std::process::Command::new("/bin/true").spawn().map(drop));
    for (what, call) in forbidden_calls() {
        attempt(what, if call() < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    }
    attempts
}

/// A system call that gives a negative number where it is refused.
type Call = fn() -> i32;

/// System calls that no part of the standard library makes.
fn forbidden_calls() -> [(&'static str, Call); 4] {
    // SAFETY: plain system calls; should a fork succeed, the new process ends at once.
    unsafe {
        [
            ("fork", || match libc::fork() {
                0 => libc::_exit(0),
                pid => pid,
            }),
            ("signal the peer", || libc::kill(libc::getppid(), 0)),
            ("make memory executable", || {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                if libc::mmap(std::ptr::null_mut(), 4_096, access, flags, -1, 0) == libc::MAP_FAILED { -1 } else { 0 }
            }),
            ("change its user", || libc::setuid(0)),
        ]
    }
}
