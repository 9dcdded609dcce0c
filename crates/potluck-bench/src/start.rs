//! From the start of the command to the first token, as a person waits for it.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{io::AsyncReadExt, process::Command, time::timeout};

use crate::{Outcome, row::Row};

/// Rounds, after one that is not measured.
const ROUNDS: usize = 5;

/// How long one command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

const PROMPT: &str = "The capital of France is";

/// `potluck run` over one engine, one peer and three, taking turns.
pub(crate) async fn first_token(potluck: &Path, home: &Path, model: &Path) -> Outcome<Vec<Row>> {
    let ways = [("local", vec!["--local"]), ("one_peer", vec!["--peers", "1"]), ("three_peers", vec!["--peers", "3"])];
    let mut times = vec![Vec::new(); ways.len()];
    for round in 0..=ROUNDS {
        for ((_, args), times) in ways.iter().zip(&mut times) {
            let seconds = run(potluck, home, model, args).await?;
            if round > 0 {
                times.push(seconds);
            }
        }
    }
    let row = |(at, (name, _)): (usize, &(&str, _))| {
        let ratios: Vec<f64> = times[0].iter().zip(&times[at]).map(|(local, own)| local / own).collect();
        Row::of(&format!("first_token_{name}"), &ratios, &times[at], "s").setting(format!(
            "start of `potluck run` to the first byte of the answer, files in the page cache, {} tokens of prompt; \
             ratio: --local ÷ this",
            PROMPT.split(' ').count()
        ))
    };
    Ok(ways.iter().enumerate().map(row).collect())
}

/// Seconds from the start of the process to the first byte that it prints.
async fn run(potluck: &Path, home: &Path, model: &Path, args: &[&str]) -> Outcome<f64> {
    let mut command = Command::new(potluck);
    command.stderr(Stdio::null());
    command.arg("run").arg("--home").arg(home).arg("--model").arg(model).args(args);
    command.args(["--raw", "--temperature", "0", "--ignore-eos", "--max-tokens", "2", PROMPT]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let start = Instant::now();
    let mut child = command.spawn()?;
    let Some(mut stdout) = child.stdout.take() else { return Err("the command has no output".into()) };
    let mut byte = [0; 1];
    let read = timeout(COMMAND_TIMEOUT, stdout.read(&mut byte)).await??;
    let seconds = start.elapsed().as_secs_f64();
    let mut rest = Vec::new();
    timeout(COMMAND_TIMEOUT, stdout.read_to_end(&mut rest)).await??;
    let status = timeout(COMMAND_TIMEOUT, child.wait()).await??;
    match status.success() && read == 1 {
        true => Ok(seconds),
        false => Err(format!("potluck run {}: {status}", args.join(" ")).into()),
    }
}
