//! Models that others run whole and lend: listed beside the gateway's own, and asked for as they are.
//!
//! What answers is behind [`Lent`]. A request that its lender reads as it is passes unread but for the model that it names, and its
//! answer comes back piece by piece; one of another API is asked in OpenAI's words, and the answer read. Who may ask, whose turn it is and how large a request may be is decided here, as for the gateway's own model.

mod ask;
mod pass;
mod question;
mod refusal;
mod reply;
mod turns;

use std::{fmt, time::SystemTime};

use axum::body::Bytes;
use n0_future::boxed::{BoxFuture, BoxStream};
use potluck_core::Endpoint;

use crate::{Problem, Whose};

pub(crate) use pass::pass;
pub(crate) use question::Question;
pub(crate) use turns::Turns;

/// A model that somebody lends whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LentModel {
    /// What it is called, by its lenders and by requests.
    pub name: String,
    /// Positions of a conversation, where its lender says so.
    pub context: Option<u32>,
}

/// Models that others run whole, and lend.
pub trait Lent: fmt::Debug + Send + Sync + 'static {
    /// Those that can be asked for now, each name once.
    fn models(&self) -> Vec<LentModel>;

    /// True if there was one of that name, whoever lends it now: asked for, there is nobody, rather than no such model.
    fn knew(&self, name: &str) -> bool;

    /// Requests for that model which this gateway may have under way. Others wait their turn here, where callers take turns.
    fn places(&self, model: &str) -> usize;

    /// Asks one of them. What is returned first is how the answer begins; dropped, either stops whoever answers.
    fn ask(&self, model: String, endpoint: Endpoint, body: Bytes) -> BoxFuture<Result<LentAnswer, Problem>>;
}

/// An answer as it comes.
pub struct LentAnswer {
    /// HTTP's.
    pub status: u16,
    /// HTTP's, as its lender says: anything.
    pub content_type: String,
    /// Seconds after which it may go better.
    pub retry_after: Option<u32>,
    /// The rest.
    pub body: BoxStream<Result<Bytes, Problem>>,
}

impl fmt::Debug for LentAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentAnswer").field("status", &self.status).finish_non_exhaustive()
    }
}

/// What the handlers know of them.
#[derive(Debug)]
pub(crate) struct Lending {
    pub(crate) lent: Box<dyn Lent>,
    pub(crate) turns: Turns,
    /// UTC since when.
    pub(crate) since: SystemTime,
}

impl Lending {
    /// The model that a request names.
    pub(crate) fn find(&self, name: &str) -> Option<LentModel> {
        let models = self.lent.models();
        let exact = models.iter().find(|model| model.name == name);
        exact.or_else(|| models.iter().find(|model| plain(&model.name) == plain(name))).cloned()
    }

    /// The same, and those that were lent before.
    pub(crate) fn find_or_knew(&self, name: &str) -> Option<LentModel> {
        let known = || self.lent.knew(name).then(|| LentModel { name: name.to_owned(), context: None });
        self.find(name).or_else(known)
    }
}

/// Ollama's clients say `name:latest` where they mean the only one, and leave it out where a list has it.
fn plain(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

/// What whoever asks for something that only its lender knows is told.
pub(crate) fn elsewhere(model: &LentModel) -> Problem {
    let message = format!("`{}` is lent whole by another server: what its tokens are is not known here.", model.name);
    Problem { param: Some("model".into()), ..Problem::new(Whose::Request, "unsupported_endpoint", message) }
}
