//! Potluck from a program of your own: a [`Client`] joins a swarm, talks with peers by their public keys, and asks their models.
//!
//! ```no_run
//! use potluck::{Client, Settings};
//!
//! # async fn example(line: &str, peer: potluck::PeerId) -> Result<(), Box<dyn std::error::Error>> {
//! // The line that `potluck swarm invite` printed. Without a folder, all is in memory.
//! let client = Client::join(line, &Settings::default().home("/var/lib/my-program")).await?;
//!
//! // A message, to the program there that listens for the topic.
//! let reply = client.request(peer, "orders", "two coffees").await?;
//! println!("{:?}", reply);
//!
//! // A stream: `AsyncRead` and `AsyncWrite`.
//! let mut stream = client.dial(peer, "files").await?;
//! tokio::io::AsyncWriteExt::write_all(&mut stream, b"bytes").await?;
//! stream.finish().await?;
//!
//! // A model, over this machine and the swarm.
//! let answer = client.chat("smollm2").user("Why is the sky blue?").answer().await?;
//! println!("{}", answer.text);
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//! On the other side:
//! ```no_run
//! # async fn example(client: potluck::Client) -> Result<(), potluck::ClientError> {
//! let mut messages = client.listen("orders").await?;
//! while let Some(message) = messages.next().await {
//!     println!("{} says {:?}", message.from(), message.body());
//!     message.reply("done")?;
//! }
//! # Ok(())
//! # }
//! ```
//! What it promises: a message is confirmed when the program there has taken it, and taken once; a stream that was cut short is reset, and never
//! looks as if it had ended; whoever sends is known by the key that the connection has proven; every wait has a deadline, but those for what others send
//! (`next`). The guide `docs/guides/sdk.md` has the bounds.
//!
//! A client's connections live on a thread of its own: it may be used in a runtime of one thread or of several. Its futures need no runtime at all,
//! but for [`PeerStream::finish`], which needs one with a clock (`enable_time`).
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod apart;
mod args;
mod bench;
mod client;
mod command_line;
mod commands;
mod embedded;
mod engines;
mod failure;
mod home;
mod models;
mod placement;
mod prompt;
#[cfg(test)]
mod reference;
mod screen;
mod serving;
mod signals;
mod speeds;
mod states;
mod stragglers;
mod talk;
mod telemetry;

pub use bytes::Bytes;
pub use client::{
    Answer, Chat, Client, ClientError, Conversation, Finished, Forward, Grant, Message, Messages, PathKind, Peer,
    PeerStream, Receipt, Settings, Standing, Streams, generate_key,
};
pub use potluck_core::{PeerId, SecretKey, SignedRevocation};
pub use potluck_wire::{MESSAGE_BYTES_MAX, PeerAddress, TOPIC_BYTES_MAX};

/// The command: what its arguments say, done. For the program `potluck` alone.
#[doc(hidden)]
pub fn run_command_line() -> std::process::ExitCode {
    command_line::run_command_line()
}
