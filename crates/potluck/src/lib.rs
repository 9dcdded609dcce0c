//! Potluck from a program of your own: a [`Client`] joins a swarm, talks with peers by their public keys, and asks their models.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod apart;
mod args;
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
mod talk;
mod telemetry;

pub use client::{
    Answer, Chat, Client, ClientError, Conversation, Finished, Forward, Grant, Message, Messages, PathKind, Peer,
    PeerStream, Receipt, Settings, Standing, Streams, generate_key,
};
pub use potluck_core::{PeerId, SecretKey};
pub use potluck_wire::{MESSAGE_BYTES_MAX, PeerAddress, TOPIC_BYTES_MAX};

/// The command: what its arguments say, done. For the program `potluck` alone.
#[doc(hidden)]
pub fn run_command_line() -> std::process::ExitCode {
    command_line::run_command_line()
}
