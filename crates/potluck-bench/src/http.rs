//! Text completions over HTTP, as any client asks for them: streamed.

use std::time::Instant;

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
};

use crate::Outcome;

/// Bytes of an answer that is read: far more than one has.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// An answer that came.
#[derive(Debug, Default)]
pub(crate) struct Streamed {
    /// Seconds from the request's first byte to the answer's last.
    pub(crate) seconds: f64,
    /// When its pieces came, in seconds from the request's first byte.
    pub(crate) pieces: Vec<f64>,
}

/// Asks the server at `address` for `count` tokens after `prompt`.
pub(crate) async fn complete(address: &str, model: &str, prompt: Vec<u32>, count: u32) -> Outcome<Streamed> {
    // `cache_prompt` is llama.cpp's word; each prompt here is another one anyway.
    let body = json!({
        "model": model, "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": true, "stream": true,
        "stream_options": { "include_usage": true }, "cache_prompt": false,
    })
    .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let start = Instant::now();
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all((head + &body).as_bytes()).await?;
    let mut lines = BufReader::new(stream.take(ANSWER_BYTES_MAX)).lines();
    let (mut streamed, mut last, mut done) = (Streamed::default(), String::new(), false);
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("data: {") {
            streamed.pieces.push(start.elapsed().as_secs_f64());
            last = line;
        } else if line == "data: [DONE]" {
            done = true;
        } else if last.is_empty() && !line.is_empty() {
            // What a server says instead of an answer.
            last = line;
        }
    }
    streamed.seconds = start.elapsed().as_secs_f64();
    let whole = done && last.contains(&format!("\"completion_tokens\":{count},"));
    if whole { Ok(streamed) } else { Err(format!("the server at {address} said {last}").into()) }
}

/// Asks for as many answers at once as there are prompts; tokens of all of them together per second, until the last is there.
pub(crate) async fn complete_all(address: &str, model: &str, prompts: Vec<Vec<u32>>, count: u32) -> Outcome<f64> {
    let (start, tokens) = (Instant::now(), prompts.len() as u32 * count);
    let mut streams = JoinSet::new();
    for prompt in prompts {
        let (address, model) = (address.to_owned(), model.to_owned());
        streams
            .spawn(async move { complete(&address, &model, prompt, count).await.map_err(|error| error.to_string()) });
    }
    while let Some(answered) = streams.join_next().await {
        answered??;
    }
    Ok(f64::from(tokens) / start.elapsed().as_secs_f64())
}
