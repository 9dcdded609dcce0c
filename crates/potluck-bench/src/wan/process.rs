//! The client's process, as the bench speaks to it.

use std::{process::Stdio, time::Duration};

use data_encoding::HEXLOWER;
use potluck_engine::EngineSettings;
use potluck_netem::Namespace;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::words::{Answered, Ask, AskServer, ClientOrder, Generate, Told};
use crate::{
    Outcome,
    peers::{Swarm, new_key},
};

/// How long one request may take: a prompt of 2,048 tokens over a slow line, with room.
const ASK_TIMEOUT: Duration = Duration::from_secs(900);

/// A client in its namespace, which ends when its standard input does.
#[derive(Debug)]
pub(crate) struct ClientProcess {
    _child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl ClientProcess {
    /// Starts it for a model of the swarm's catalogue, and waits until it has loaded the vocabulary.
    pub(crate) async fn start(at: &Namespace, swarm: &Swarm, model: &str, settings: &EngineSettings) -> Outcome<Self> {
        let key = new_key()?;
        let order = ClientOrder {
            grant: HEXLOWER.encode(&swarm.grant(&key)?),
            key: HEXLOWER.encode(&key.to_bytes()),
            swarm: swarm.id(),
            models: swarm.models(),
            model: model.to_owned(),
            settings: settings.clone(),
        };
        let mut command = Command::from(at.command(std::env::current_exe()?));
        command.arg("wan-client").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a client has no pipes".into());
        };
        let mut client = Self { _child: child, stdin, stdout: BufReader::new(stdout) };
        match client.say(&serde_json::to_string(&order)?).await? {
            Told::Ready => Ok(client),
            other => Err(format!("the client said {other:?}").into()),
        }
    }

    async fn say(&mut self, line: &str) -> Outcome<Told> {
        self.stdin.write_all(line.as_bytes()).await?;
        self.stdin.write_all(b"\n").await?;
        self.stdin.flush().await?;
        let mut told = String::new();
        timeout(ASK_TIMEOUT, self.stdout.read_line(&mut told)).await??;
        match serde_json::from_str(&told) {
            Ok(Told::Failed(reason)) => Err(format!("the client: {reason}").into()),
            Ok(told) => Ok(told),
            Err(_) => Err("the client's process ended".into()),
        }
    }

    /// Asks it for something.
    pub(crate) async fn ask(&mut self, ask: &Ask) -> Outcome<Told> {
        self.say(&serde_json::to_string(ask)?).await
    }

    /// Has it answer prompts over a chain.
    pub(crate) async fn generate(&mut self, generate: Generate) -> Outcome<Vec<Answered>> {
        self.answers(&Ask::Generate(generate)).await
    }

    /// Has it ask a server.
    pub(crate) async fn server(&mut self, server: AskServer) -> Outcome<Vec<Answered>> {
        self.answers(&Ask::Server(server)).await
    }

    async fn answers(&mut self, ask: &Ask) -> Outcome<Vec<Answered>> {
        match self.ask(ask).await? {
            Told::Answers(answers) => Ok(answers),
            other => Err(format!("the client said {other:?} instead of answers").into()),
        }
    }
}
