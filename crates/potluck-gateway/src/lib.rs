//! The HTTP APIs that people already use (OpenAI's, Anthropic's, Ollama's), in front of one model that a chain runs.
//!
//! A [`Gateway`] is made of what the model is ([`Model`]), who may ask ([`Access`]) and an [`Opener`], which opens a session
//! whenever a slot needs one; and perhaps a [`Keeper`], which fetches and removes models. Its slots live on one thread ([`serve`] must
//! run in a [`tokio::task::LocalSet`]); handlers speak to them over channels. Beside its model, or instead, there may be models that
//! others run whole and lend ([`Lent`]).
//!
//! **Invariants.** A client that reads slowly holds up nobody else; one that is gone has its answer cancelled within a step, in
//! the queue and in prefill too. Whoever asks is served in turn with the others who do, however many requests it has waiting.
//! No prompt and no answer is in a log or a metric.
//!
//! Not here: peers, engines and their start (`potluck`), the making of an answer (`potluck-client`).

mod access;
mod answer;
mod anthropic;
mod document;
mod granted;
mod http;
mod keeper;
mod lent;
mod logprobs;
mod metrics;
mod model;
mod ollama;
mod ollama_embed;
mod ollama_models;
mod openai;
mod overflow;
mod problem;
mod prompt;
mod queue;
mod slots;
mod stream;
mod tools;

pub use access::{Access, KEY_BYTES_MIN};
pub use granted::Granted;
pub use http::{BODY_BYTES_MAX, Gateway, Own, serve};
pub use keeper::{Keeper, Step};
pub use lent::{Lent, LentAnswer, LentModel};
pub use metrics::{Paths, PeerPath};
pub use model::Model;
pub use overflow::Overflow;
pub use problem::{Problem, Whose};
pub use queue::QUEUE_MAX;
pub use slots::Opener;
