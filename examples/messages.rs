//! Two peers talk: a message that is answered, and a stream, by public keys alone.
//!
//! ```text
//! cargo run --example messages -p potluck -- "$(potluck swarm invite)" "$(potluck swarm invite)"
//! ```
//! Both are in this process, each with a key of its own and nothing on the disk; in life they are two programs.

use std::error::Error;

use potluck::{Client, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let lines: Vec<_> = std::env::args().skip(1).collect();
    let [first, second] = lines.as_slice() else { return Err("give two lines of `potluck swarm invite`".into()) };
    let settings = Settings::default().without_mdns();
    let alice = Client::join(first, &settings).await?;
    let bob = Client::join(second, &settings).await?;

    let to = bob.id();
    let mut messages = bob.listen("greetings").await?;
    let mut streams = bob.accept("files").await?;
    let listening = tokio::spawn(async move {
        if let Some(message) = messages.next().await {
            let reply = format!("hello from {}, who heard {:?}", bob.id(), String::from_utf8_lossy(message.body()));
            message.reply(reply)?;
        }
        if let Some(mut stream) = streams.next().await {
            let mut file = Vec::new();
            stream.read_to_end(&mut file).await?;
            stream.write_all(format!("a stream of {} bytes", file.len()).as_bytes()).await?;
            stream.finish().await?;
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(bob)
    });

    // Where that key is, a member that both know can say.
    let reply = alice.request(to, "greetings", "how do you do").await?;
    println!("{}", String::from_utf8_lossy(&reply.unwrap_or_default()));
    let mut stream = alice.dial(to, "files").await?;
    stream.write_all(b"12345").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    println!("{answer}");

    listening.await?.map_err(|error| error.to_string())?.close().await;
    alice.close().await;
    Ok(())
}
