//! llama.cpp's RPC: a server at each peer's machine, and `llama-server` at the client's, which spreads the layers over
//! them.

use std::{path::Path, process::Stdio, time::Duration};

use potluck_engine::EngineSettings;
use tokio::process::{Child, Command};

use super::{
    net::Net,
    process::ClientProcess,
    words::{Answered, AskServer},
};
use crate::Outcome;

/// What `llama-server` listens on, within the client's machine.
const ADDRESS: &str = "127.0.0.1:8099";

/// Which of a peer's services it is.
const SERVICE: u16 = 90;

/// What `setpriv` is told: the servers know no standard input to end with, and a bench that is killed leaves none of them.
const ENDS_WITH_US: [&str; 2] = ["--pdeathsig", "KILL"];

/// How long the weights may take to get to the servers, over lines that are still fast.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// The servers, which end with this.
#[derive(Debug)]
pub(crate) struct Rpc {
    _children: Vec<Child>,
}

impl Rpc {
    /// Starts them on lines that are still fast: weights travel to the servers once, and are not what is measured.
    pub(crate) async fn start(
        net: &Net,
        peers: usize,
        folder: &Path,
        model: &Path,
        settings: &EngineSettings,
        client: &mut ClientProcess,
    ) -> Outcome<Self> {
        let threads = settings.threads.to_string();
        let quiet = |mut command: Command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn()
        };
        let (mut children, mut endpoints) = (Vec::new(), Vec::new());
        for peer in 0..peers {
            let address = net.address(peer, SERVICE);
            let mut command = Command::from(net.peer(peer).command("setpriv"));
            command.args(ENDS_WITH_US).arg(folder.join("ggml-rpc-server"));
            command.args(["-H", &address.ip().to_string(), "-p", &address.port().to_string(), "-t", &threads]);
            children.push(quiet(command)?);
            endpoints.push(address.to_string());
        }
        wait(LOAD_TIMEOUT, async || {
            let listening =
                |peer| net.client().inside(|| std::net::TcpStream::connect(net.address(peer, SERVICE)).is_ok());
            (0..peers).all(listening)
        })
        .await?;
        let (context, slots) = (settings.context * u32::from(settings.caches), settings.caches.to_string());
        let split = vec!["1"; peers].join(",");
        let (host, port) = ADDRESS.split_once(':').unwrap_or((ADDRESS, ""));
        let mut command = Command::from(net.client().command("setpriv"));
        command.args(ENDS_WITH_US).arg(folder.join("llama-server")).arg("-m").arg(model).args([
            "--host",
            host,
            "--port",
            port,
            "--rpc",
            &endpoints.join(","),
        ]);
        command.args(["-ngl", "99", "-ts", &split, "-t", &threads, "-tb", &threads, "-c", &context.to_string()]);
        command.args(["-np", &slots, "-b", "512", "-ub", "512", "-fa", "on", "--no-webui"]);
        children.push(quiet(command)?);
        let ask = |max_tokens| AskServer {
            address: ADDRESS.into(),
            prompts: vec![vec![1, 2, 3]],
            max_tokens,
            ignore_eos: true,
        };
        let deadline = tokio::time::Instant::now() + LOAD_TIMEOUT;
        loop {
            match client.server(ask(2)).await {
                Ok(_) => return Ok(Self { _children: children }),
                Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
            }
        }
    }

    /// Asks it, from the client's machine.
    pub(crate) async fn answer(
        client: &mut ClientProcess,
        prompts: Vec<Vec<u32>>,
        max_tokens: u32,
        ignore_eos: bool,
    ) -> Outcome<Vec<Answered>> {
        client.server(AskServer { address: ADDRESS.into(), prompts, max_tokens, ignore_eos }).await
    }
}

async fn wait(limit: Duration, mut until: impl AsyncFnMut() -> bool) -> Outcome<()> {
    let deadline = tokio::time::Instant::now() + limit;
    while !until().await {
        if tokio::time::Instant::now() > deadline {
            return Err("no RPC server listens".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
