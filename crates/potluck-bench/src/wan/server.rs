//! llama.cpp's server, asked over HTTP on the client's loopback: its tokens, and when each came.

use std::time::Instant;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
};

use super::words::{Answered, AskServer};
use crate::Outcome;

/// Bytes of an answer that is read: far more than one has.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Asks for all of them at once.
pub(crate) async fn ask(ask: &AskServer) -> Outcome<Vec<Answered>> {
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for (at, prompt) in ask.prompts.iter().cloned().enumerate() {
        let ask = ask.clone();
        running.spawn(async move { (at, complete(&ask, prompt, begun).await.map_err(|error| error.to_string())) });
    }
    let mut answers = vec![Answered::default(); ask.prompts.len()];
    while let Some(answered) = running.join_next().await {
        let (at, answered) = answered?;
        answers[at] = answered?;
    }
    Ok(answers)
}

async fn complete(ask: &AskServer, prompt: Vec<u32>, begun: Instant) -> Outcome<Answered> {
    let AskServer { address, max_tokens, ignore_eos, .. } = ask;
    let body = json!({
        "prompt": prompt, "n_predict": max_tokens, "temperature": 0, "top_k": 1, "ignore_eos": ignore_eos, "stream": true,
        "return_tokens": true, "cache_prompt": false,
    })
    .to_string();
    let head = format!(
        "POST /completion HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address.as_str()).await?;
    stream.set_nodelay(true)?;
    stream.write_all((head + &body).as_bytes()).await?;
    let mut lines = BufReader::new(stream.take(ANSWER_BYTES_MAX)).lines();
    let (mut answered, mut done, mut last) = (Answered::default(), false, String::new());
    while let Some(line) = lines.next_line().await? {
        let Some(event) = line.strip_prefix("data: ") else {
            if !line.is_empty() {
                last = line;
            }
            continue;
        };
        let event: Value = serde_json::from_str(event)?;
        done |= event["stop"].as_bool().unwrap_or(false);
        answered.text += event["content"].as_str().unwrap_or_default();
        let tokens = event["tokens"].as_array().map_or(&[][..], Vec::as_slice);
        for token in tokens.iter().filter_map(Value::as_u64) {
            answered.tokens.push(token as u32);
            answered.at_s.push(begun.elapsed().as_secs_f64());
        }
    }
    answered.decode_steps = answered.tokens.len().saturating_sub(1) as u64;
    answered.decode_rows = answered.decode_steps;
    if done { Ok(answered) } else { Err(format!("the server at {address} said {last:?}").into()) }
}
