//! A machine of its own for a test: a home, the small model, and the processes that were started on it.

pub(crate) mod http;
#[cfg(target_os = "linux")]
pub(crate) mod netns;
pub(crate) mod odd;
pub(crate) mod peers;
pub(crate) mod web;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything in a test may take. Beyond it the test fails: nothing may hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// Largest margin, in natural logarithms, at which another token of the small model is a near-tie: the shape of a batch
/// alone moves a logit by so much, and no token that fell otherwise, in company or not, was further from the first
/// (`docs/benchmarks.md`).
pub(crate) const NEAR_TIE: f64 = 0.4;

/// A home directory, by which the processes of a test are told from others.
pub(crate) struct Machine {
    dir: TempDir,
    /// The network namespace that its commands run in; none: this machine's own.
    namespace: Option<String>,
    /// What runs there.
    program: PathBuf,
    /// What processes that are left running log, to a file of its own.
    logs: Option<&'static str>,
}

/// A `potluck` that runs, killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdout: BufReader<std::process::ChildStdout>,
}

/// The small model of the tests.
pub(crate) fn model() -> String {
    let path = std::env::var_os("POTLUCK_TEST_MODEL")
        .map(PathBuf::from)
        .unwrap_or_else(|| std::env::home_dir().unwrap().join(".cache/potluck/models/SmolLM2-135M-Instruct.Q4_1.gguf"));
    assert!(path.is_file(), "{} is missing: make model", path.display());
    path.display().to_string()
}

/// A server on this machine, until the test ends: a thread for each connection. Its address.
pub(crate) fn listen(answer: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            // A client may hang up whenever it likes.
            thread::spawn(move || drop(answer(stream)));
        }
    });
    url
}

/// A service that sends back what it gets, until the test ends; its port.
pub(crate) fn echo() -> u16 {
    let url = listen(|mut socket| {
        let mut back = socket.try_clone()?;
        std::io::copy(&mut socket, &mut back)?;
        back.shutdown(std::net::Shutdown::Write)
    });
    url.rsplit(':').next().unwrap().parse().unwrap()
}

impl Machine {
    /// With nothing on it.
    pub(crate) fn new() -> Self {
        Self::with(env!("CARGO_BIN_EXE_potluck").into())
    }

    /// With nothing on it but that program.
    pub(crate) fn with(program: PathBuf) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), namespace: None, program, logs: None }
    }

    /// What is on it stays, and is this version's from now on.
    pub(crate) fn becomes_this_version(&mut self) {
        self.program = env!("CARGO_BIN_EXE_potluck").into();
    }

    /// With nothing on it, in a network namespace of that name.
    pub(crate) fn inside(namespace: String) -> Self {
        Self { namespace: Some(namespace), ..Self::new() }
    }

    /// The same, which logs that.
    pub(crate) fn logging(self, filter: &'static str) -> Self {
        Self { logs: Some(filter), ..self }
    }

    /// What was logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A path below its home.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command, with these arguments.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.program);
                command
            }
            None => {
                let mut command = Command::new(&self.program);
                // Tests on one machine keep off the network that it is on.
                command.env("POTLUCK_NO_MDNS", "1");
                command
            }
        };
        command.args(args).env("POTLUCK_HOME", self.path("home")).env_remove("RUST_LOG").stdin(Stdio::null());
        // What a test fetches lies in no store of whoever runs it.
        command.env("OLLAMA_MODELS", self.path("ollama")).env("HF_HUB_CACHE", self.path("hub"));
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it with `--json`; what it printed, and its exit code.
    pub(crate) fn json(&self, args: &[&str]) -> (Value, i32) {
        let output = self.run(&[args, &["--json"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "one object on stdout: {text}{}", String::from_utf8_lossy(&output.stderr));
        (serde_json::from_str(&text).unwrap(), output.status.code().unwrap())
    }

    /// Answers a prompt, greedily, on the small model. One thread an engine: tests run beside each other, and threads that wait
    /// for one another on a busy core make no progress.
    pub(crate) fn answer(&self, prompt: &str, max_tokens: u32, more: &[&str]) -> Value {
        let (model, max_tokens) = (model(), max_tokens.to_string());
        let fixed =
            ["run", "--model", &model, "--temperature", "0", "--max-tokens", &max_tokens, "--threads", "1", prompt];
        let (answer, code) = self.json(&[&fixed, more].concat());
        assert_eq!(code, 0, "{answer}");
        answer
    }

    /// Answers a prompt as the arguments say, in 24 tokens.
    pub(crate) fn run_prompt(&self, prompt: &str, more: &[&str]) -> Value {
        let model = model();
        let (answer, code) =
            self.json(&[&["run", "--model", &model, "--max-tokens", "24", "--threads", "1", prompt], more].concat());
        assert_eq!(code, 0, "{answer}");
        answer
    }

    /// Starts it and leaves it running.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        self.start_with(args, Stdio::null())
    }

    /// Starts it with this for stdin.
    pub(crate) fn start_with(&self, args: &[&str], stdin: Stdio) -> Running {
        let mut command = self.command(args);
        if let Some(filter) = self.logs {
            let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
            command.env("RUST_LOG", filter).env("POTLUCK_LOG", "json").stderr(log);
        }
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdout }
    }

    /// Starts it with one variable more.
    pub(crate) fn start_where(&self, (name, value): (&str, &Path), args: &[&str]) -> Running {
        let mut child = self.command(args).env(name, value).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdout }
    }

    /// Processes of this machine: those that have its home in their environment or arguments, and their children.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let home = self.dir.path().display().to_string();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids: Vec<u32> = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let mut ours: Vec<u32> = pids.iter().copied().filter(|&pid| mentions(pid, &home)).collect();
        // An engine's environment is swept clean: it is found by its parent.
        let children: Vec<u32> =
            pids.into_iter().filter(|&pid| parent(pid).is_some_and(|p| ours.contains(&p))).collect();
        ours.extend(children);
        ours.sort_unstable();
        ours.dedup();
        ours
    }

    /// Waits until none of its processes is left.
    pub(crate) fn wait_until_empty(&self, watched: &[u32]) {
        wait_until("all processes are gone", || {
            self.processes().is_empty() && watched.iter().all(|&pid| !is_alive(pid))
        });
    }
}

impl Running {
    /// The next line of its stdout.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// The next line of its stdout, which is JSON.
    pub(crate) fn object(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        kill(self.child.id(), signal);
    }

    /// Waits for its end; its exit code, and how long that took.
    pub(crate) fn end(mut self) -> (Option<i32>, Duration) {
        let started = Instant::now();
        let status = self.child.wait().unwrap();
        (status.code(), started.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process.
pub(crate) fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&child| parent(child) == Some(pid)).collect()
}

/// Waits for something that another process does; there is no event to wait for.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// True while a process runs: neither gone nor a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X') | None)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.next()?.parse().ok()
}

fn mentions(pid: u32, home: &str) -> bool {
    let holds = |file: &str| {
        fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(home))
    };
    is_alive(pid) && pid != std::process::id() && holds("environ")
}

/// Processor time that a process has used in its own code, in ticks of a hundredth of a second.
pub(crate) fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    fields.get(11).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}
