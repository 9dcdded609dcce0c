//! One peer's process.

use std::{process::ExitStatus, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::order::{ORDER_BYTES_MAX, Order, Ready};
use crate::failure::{Failure, OrFail};

/// How long a peer may take to load and listen. Beyond it the command fails with `deadline`.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a peer may take to end by itself. Beyond it it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// A peer's process; killed when dropped.
#[derive(Debug)]
pub(crate) struct PeerProcess {
    child: Child,
    /// The peer lives while this is open.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl PeerProcess {
    /// Starts a peer and hands it its order.
    pub(crate) async fn start(order: &Order) -> Result<Self, Failure> {
        let failed = |error| Failure::io("starting a peer", &error);
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.args(["serve", "--embedded", "--json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        // Ctrl-C on the terminal is for the command: it ends its peers in order.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        let gone = || Failure::new("internal", "a peer's pipe is missing", "report this");
        let mut stdin = child.stdin.take().ok_or_else(gone)?;
        let stdout = BufReader::new(child.stdout.take().ok_or_else(gone)?);
        let line = serde_json::to_string(order).or_fail("internal", "report this")? + "\n";
        stdin.write_all(line.as_bytes()).await.map_err(failed)?;
        stdin.flush().await.map_err(failed)?;
        Ok(Self { child, stdin: Some(stdin), stdout })
    }

    /// Waits until the peer says that it serves, or why it does not.
    pub(crate) async fn ready(&mut self) -> Result<Ready, Failure> {
        let mut line = String::new();
        let mut bounded = (&mut self.stdout).take(ORDER_BYTES_MAX);
        let read = timeout(READY_TIMEOUT, bounded.read_line(&mut line)).await;
        match read {
            Err(_) => {
                let message = format!("a peer was not ready within {} s", READY_TIMEOUT.as_secs());
                Err(Failure::new("deadline", message, "run it again with RUST_LOG=info to see what it waits for"))
            }
            Ok(Err(error)) => Err(Failure::io("reading from a peer", &error)),
            Ok(Ok(0)) => {
                let status = self.ended().await;
                Err(Failure::new(
                    "peer_lost",
                    format!("a peer ended before it was ready: {status}"),
                    "run it again with RUST_LOG=info",
                ))
            }
            Ok(Ok(_)) => parse_ready(&line),
        }
    }

    /// Asks the peer to end.
    pub(crate) fn dismiss(&mut self) {
        self.stdin = None;
    }

    /// Waits until the peer has ended; it is killed where it takes too long.
    pub(crate) async fn reap(mut self) {
        self.dismiss();
        if timeout(END_TIMEOUT, self.child.wait()).await.is_err() {
            tracing::warn!(pid = self.child.id(), "a peer did not end by itself");
            // It may end at this very moment: then there is nothing to kill.
            let _ = self.child.kill().await;
        }
    }

    /// Waits for the peer's end, whatever the reason.
    pub(crate) async fn ended(&mut self) -> String {
        self.child.wait().await.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string())
    }
}

fn parse_ready(line: &str) -> Result<Ready, Failure> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Line {
        Ready(Ready),
        Failed { error: Told },
    }
    #[derive(serde::Deserialize)]
    struct Told {
        code: String,
        message: String,
        hint: String,
    }
    match serde_json::from_str(line) {
        Ok(Line::Ready(ready)) => Ok(ready),
        Ok(Line::Failed { error }) => Err(Failure::new(error.code, error.message, error.hint)),
        Err(_) => Err(Failure::new("internal", "a peer said something else than that it is ready", "report this")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_is_passed_on() {
        let ready = Ready { id: "ab".into(), addresses: vec![], layers: [0, 10], pid: 7, swarm: "cd".into() };
        assert_eq!(parse_ready(&serde_json::to_string(&ready).unwrap()), Ok(ready));
        let told = r#"{"error":{"code":"engine_error","message":"no memory","hint":"less context"}}"#;
        assert_eq!(parse_ready(told), Err(Failure::new("engine_error", "no memory", "less context")));
        assert_eq!(parse_ready("{}").unwrap_err().code, "internal");
    }
}
