//! The client's side of an answer: from messages to a prompt, from a prompt to text, over a chain of peers or one engine.
//!
//! A [`Session`] keeps a chain and what its caches hold; each answer evaluates only what is new:
//! ```no_run
//! # use potluck_client::*;
//! # async fn talk(chain: LocalChain, vocabulary: potluck_engine::VocabularyClient, template: ChatTemplate,
//! #     special: SpecialTokens) -> Result<(), Box<dyn std::error::Error>> {
//! let mut conversation = Conversation::new(template, special);
//! let mut session = Session::new(chain, vocabulary);
//! conversation.user("Why is the sky blue?");
//! let prompt = session.tokenize(&conversation.prompt(&RenderOptions::now())?).await?;
//! let outcome = session.generate(Request::new(prompt), &Cancel::new(), |event| print!("{}", event.text)).await?;
//! conversation.assistant(outcome.text);
//! # Ok(()) }
//! ```
//! **Invariants.** The client chooses every token ([`potluck_chain::sample`]); peers never do, nor do drafts. No prompt and no text is
//! in a log. Each wait has a deadline that a setting names. A template comes from a stranger's file: it runs with bounded
//! fuel and time, and produces bounded text.

mod chain;
mod conversation;
mod decode;
mod draft_model;
mod error;
mod generate;
mod local;
mod outcome;
mod prefill;
mod run;
mod speculate;
mod template;
mod trace;

pub use chain::{Cancel, Chain, ChainShape};
pub use conversation::{Conversation, MESSAGES_MAX};
pub use draft_model::DraftModel;
pub use error::GenerateError;
pub use generate::{LOSSES_MAX, RESUMES_MAX, Request, Session, prompt_tokens};
pub use local::LocalChain;
pub use outcome::{Outcome, RepairTimes, TokenEvent};
pub use speculate::{DraftCounts, Drafting, Drafts};
pub use template::{
    ChatTemplate, Message, PROMPT_BYTES_MAX, RenderOptions, Role, SpecialTokens, TEMPLATE_BYTES_MAX, TEMPLATE_FUEL,
    TEMPLATE_TIMEOUT, TemplateError,
};
pub use trace::{Phase, StageAccount, Trace};
