//! llama.cpp's own tools: `llama-bench`, its RPC servers, and `llama-server`.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use potluck_engine::EngineSettings;
use serde_json::Value;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    Outcome,
    http::{complete, complete_all},
    work::{Contestant, DECODE, PREFILL, Timed, Work, stream_prompts},
};

/// Servers of llama.cpp's RPC: as many as we have peers.
const SERVERS: usize = 3;

/// How long `llama-bench` may take for one round.
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a server may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(20);

/// `llama-bench` on the model, alone or over RPC servers.
#[derive(Debug)]
pub(crate) struct LlamaBench {
    program: PathBuf,
    model: PathBuf,
    threads: u16,
    endpoints: Option<String>,
    servers: Vec<Child>,
}

impl LlamaBench {
    /// Alone, in one process.
    pub(crate) fn alone(folder: &Path, model: &Path, threads: u16) -> Self {
        let program = folder.join("llama-bench");
        Self { program, model: model.to_owned(), threads, endpoints: None, servers: Vec::new() }
    }

    /// Over three servers on loopback, started here, that end with this.
    pub(crate) async fn over_rpc(folder: &Path, model: &Path, threads: u16) -> Outcome<Self> {
        let mut servers = Vec::new();
        let mut endpoints = Vec::new();
        for _ in 0..SERVERS {
            let address = free_port()?;
            let mut command = Command::new(folder.join("ggml-rpc-server"));
            command.args(["-H", "127.0.0.1", "-p", &address.port().to_string(), "-t", &threads.to_string()]);
            let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            servers.push(quiet.kill_on_drop(true).spawn()?);
            wait_for(address).await?;
            endpoints.push(address.to_string());
        }
        let alone = Self::alone(folder, model, threads);
        Ok(Self { endpoints: Some(endpoints.join(",")), servers, ..alone })
    }

    /// The servers' processes.
    pub(crate) fn servers(&self) -> impl Iterator<Item = u32> {
        self.servers.iter().filter_map(Child::id)
    }
}

impl Contestant for LlamaBench {
    fn name(&self, _: Work) -> String {
        match self.servers.len() {
            0 => "llama-bench".into(),
            servers => format!("llama.cpp RPC with {servers} servers"),
        }
    }

    async fn run(&mut self, work: Work) -> Outcome<Timed> {
        let (prompt, generated) = match work {
            Work::Prefill => (PREFILL, 0),
            Work::Decode => (0, DECODE),
            Work::Streams(_) => return Err("llama-bench answers one at a time".into()),
        };
        let mut command = Command::new(&self.program);
        command.arg("-m").arg(&self.model);
        command.args(["-t", &self.threads.to_string(), "-p", &prompt.to_string(), "-n", &generated.to_string()]);
        command.args(["-b", "512", "-ub", "512", "-fa", "1", "-r", "1", "-o", "json"]);
        if let Some(endpoints) = &self.endpoints {
            command.args(["--rpc", endpoints, "-ngl", "99"]);
        }
        command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let output = timeout(ROUND_TIMEOUT, command.output()).await??;
        if !output.status.success() {
            return Err(format!("llama-bench: {}", output.status).into());
        }
        let runs: Value = serde_json::from_slice(&output.stdout)?;
        let rate = runs[0]["avg_ts"].as_f64().ok_or("llama-bench gave no rate")?;
        Ok(Timed { rate, steps: Vec::new() })
    }
}

/// `llama-server` on the model, with a slot for each stream.
#[derive(Debug)]
pub(crate) struct LlamaServer {
    _child: Child,
    address: String,
    rounds: u32,
}

impl LlamaServer {
    /// With as many slots as the settings have caches, and the settings' context for each.
    pub(crate) async fn start(folder: &Path, model: &Path, settings: &EngineSettings) -> Outcome<Self> {
        let EngineSettings { threads, context, caches, .. } = settings;
        let address = free_port()?;
        let all = u32::from(*caches) * context;
        let [threads, all, slots] = [threads.to_string(), all.to_string(), caches.to_string()];
        let mut command = Command::new(folder.join("llama-server"));
        command.arg("-m").arg(model).args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
        command
            .args(["-t", &threads, "-tb", &threads, "-c", &all, "-np", &slots, "-b", "512", "-ub", "512", "-fa", "on"]);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = quiet.kill_on_drop(true).spawn()?;
        wait_for(address).await?;
        let mut server = Self { _child: child, address: address.to_string(), rounds: 0 };
        server.wait_until_loaded().await?;
        Ok(server)
    }

    /// It listens before the model is loaded, and refuses until then.
    async fn wait_until_loaded(&mut self) -> Outcome<()> {
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        loop {
            match complete(&self.address, "", vec![1], 1).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

impl Contestant for LlamaServer {
    fn name(&self, _: Work) -> String {
        "llama-server".into()
    }

    async fn run(&mut self, work: Work) -> Outcome<Timed> {
        let Work::Streams(streams) = work else { return Err("llama-server is measured with streams".into()) };
        self.rounds += 1;
        let rate = complete_all(&self.address, "", stream_prompts(streams, self.rounds), DECODE).await?;
        Ok(Timed { rate, steps: Vec::new() })
    }
}

/// An address that nobody listened on a moment ago.
fn free_port() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

async fn wait_for(address: SocketAddr) -> Outcome<()> {
    let deadline = Instant::now() + LISTEN_TIMEOUT;
    while Instant::now() < deadline {
        if TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err(format!("nobody listens at {address}").into())
}
