//! An answer over HTTP from a gateway, streamed, in Rust and without a client library:
//!
//! ```text
//! cargo run --example chat -p potluck -- "Why is the sky blue?"
//! ```
//! `POTLUCK_URL` names another gateway than the one on this machine, `POTLUCK_API_KEY` its key.

use std::{
    env,
    error::Error,
    io::{Write, stdout},
};

use reqwest::{Client, Response};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Whoever speaks TLS with it chooses the cryptography; a gateway on this machine needs none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = env::var("POTLUCK_URL").unwrap_or_else(|_| "http://127.0.0.1:7575".into());
    let key = env::var("POTLUCK_API_KEY").unwrap_or_else(|_| "none".into());
    let question = env::args().nth(1).unwrap_or_else(|| "Why is the sky blue?".into());
    let client = Client::new();

    let models = client.get(format!("{url}/v1/models")).bearer_auth(&key).send().await?.error_for_status()?;
    let models: Value = serde_json::from_str(&models.text().await?)?;
    let body = json!({
        "model": models["data"][0]["id"],
        "messages": [{ "role": "user", "content": question }],
        "max_tokens": 120,
        "temperature": 0,
        "stream": true,
    });
    let request = client.post(format!("{url}/v1/chat/completions")).bearer_auth(&key);
    let answer = request.header("content-type", "application/json").body(body.to_string()).send().await?;
    show(answer.error_for_status()?).await
}

/// Prints the pieces of an answer as they come: one event a line, `data: ` before each.
async fn show(mut answer: Response) -> Result<(), Box<dyn Error>> {
    let mut waiting = Vec::new();
    while let Some(bytes) = answer.chunk().await? {
        waiting.extend_from_slice(&bytes);
        while let Some(end) = waiting.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data: ") else { continue };
            // The last line is `[DONE]`, which is no JSON.
            let Ok(chunk) = serde_json::from_slice::<Value>(data) else { continue };
            if let Some(message) = chunk["error"]["message"].as_str() {
                return Err(message.into());
            }
            print!("{}", chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
            stdout().flush()?;
        }
    }
    println!();
    Ok(())
}
