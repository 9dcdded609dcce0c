//! What an upstream can be asked: a closed list, so that nobody who asks names a path.

use serde::{Deserialize, Serialize};

/// Whom a gateway's list says that a model belongs to which it only passes on. A lender whose upstream is that gateway does not lend it
/// a second time: it would come back, and go in a circle when its true lender has left.
pub const PASSED_ON: &str = "potluck-swarm";

/// An address of OpenAI's API that a model which is lent whole answers at. Numbers are on the wire and never change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Endpoint {
    /// A chat.
    ChatCompletions,
    /// A text that goes on.
    Completions,
    /// Embeddings of texts.
    Embeddings,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ChatCompletions, Self::Completions, Self::Embeddings];

    /// Its path, at an upstream as at a gateway.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// The endpoint at that path; none where a model that is lent answers nothing.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_path_is_an_endpoint() {
        assert_eq!(Endpoint::ALL.map(|endpoint| Endpoint::of_path(endpoint.path())), Endpoint::ALL.map(Some));
        for path in ["/v1/models", "/v1/chat/completions/", "/api/delete", "/v1/../api/pull", ""] {
            assert_eq!(Endpoint::of_path(path), None, "{path}");
        }
    }
}
