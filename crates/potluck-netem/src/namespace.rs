//! One network namespace: a machine, as far as the network is concerned.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    net::UdpSocket,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::NetemError;

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// What `ip netns exec` lays over `/etc`, a folder for each namespace.
const ETC: &str = "/etc/netns";

/// A network namespace of its own, gone when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one. IPv6 is off unless asked for: addresses that a kernel gives itself are candidates too.
    pub(crate) fn new(name: String, ipv6: bool) -> Result<Self, NetemError> {
        run("ip", &name, Command::new("ip").args(["netns", "add", &name]), "")?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        namespace.set("ipv6/conf/default/disable_ipv6", u32::from(!ipv6))?;
        // Addresses are ours to keep apart: nobody waits a second for others who might have them.
        namespace.set("ipv6/conf/default/accept_dad", 0)?;
        namespace.set("ipv6/conf/all/accept_dad", 0)?;
        namespace.set("ipv6/conf/default/accept_ra", 0)?;
        Ok(namespace)
    }

    /// Its name, for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// That program, inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Starts a program that [`command`](Self::command) described; it ends with the value that is returned.
    ///
    /// # Errors
    /// `Io`.
    pub fn start(command: &mut Command) -> Result<Running, NetemError> {
        command.spawn().map(Running).map_err(NetemError::io("starting a program in a namespace"))
    }

    /// Runs code inside, on a thread of its own. Sockets that it opens stay there, wherever they are used from.
    pub fn inside<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        let path = Path::new(NAMES).join(&self.name);
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let namespace = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                code()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A UDP socket inside, on a free port of that address.
    ///
    /// # Errors
    /// `Io`.
    pub fn udp(&self, address: &str) -> Result<UdpSocket, NetemError> {
        let bound = self.inside(|| UdpSocket::bind((address, 0)));
        bound.map_err(NetemError::io(format!("a socket on {address} in {}", self.name)))
    }

    /// Runs `ip` inside, a line for each command.
    pub(crate) fn ip(&self, lines: &str) -> Result<(), NetemError> {
        run("ip", &self.name, Command::new("ip").args(["-n", &self.name, "-batch", "-"]), lines)
    }

    /// Loads rules of nftables.
    pub(crate) fn nft(&self, rules: &str) -> Result<(), NetemError> {
        run("nft", &self.name, self.command("nft").args(["-f", "-"]), rules)
    }

    /// Forgets all connections that its router knows.
    pub(crate) fn forget_connections(&self) -> Result<(), NetemError> {
        run("conntrack", &self.name, self.command("conntrack").arg("-F"), "")
    }

    /// Sets what is at `/proc/sys/net/`.
    pub(crate) fn set(&self, what: &str, value: u32) -> Result<(), NetemError> {
        let path = Path::new("/proc/sys/net").join(what);
        // It need not be there: a kernel may be without IPv6.
        if what.starts_with("ipv6") && !Path::new("/proc/sys/net/ipv6").exists() {
            return Ok(());
        }
        let written = self.inside(|| fs::write(&path, value.to_string()));
        written.map_err(NetemError::io(format!("{} in {}", path.display(), self.name)))
    }

    /// What its programs read in `/etc` under that name.
    pub(crate) fn etc(&self, file: &str, text: &str) -> Result<(), NetemError> {
        let folder = self.own_etc();
        let written = fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(file), text));
        written.map_err(NetemError::io(folder.display().to_string()))
    }

    fn own_etc(&self) -> PathBuf {
        Path::new(ETC).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes what namespaces of that prefix were left by a process that is gone: it was killed, and could not.
pub(crate) fn sweep(prefix: &str) {
    let Ok(names) = fs::read_dir(NAMES) else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let process = name.strip_prefix(prefix).and_then(|rest| rest.split('x').next());
        if process.is_some_and(|id| id.parse::<u32>().is_ok() && !Path::new("/proc").join(id).exists()) {
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    // Nobody could do anything about it; the next world sweeps.
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
    let _ = fs::remove_dir_all(Path::new(ETC).join(name));
    // Gone with the last of them, and with nobody else's.
    let _ = fs::remove_dir(ETC);
}

fn run(program: &'static str, namespace: &str, command: &mut Command, input: &str) -> Result<(), NetemError> {
    let refused = |reason: String| NetemError::Refused { program, namespace: namespace.into(), reason };
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| NetemError::Unavailable(format!("`{program}`: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that reads nothing has closed it, which its status tells.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(NetemError::io(program))?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// A program in a namespace, which ends with this.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
