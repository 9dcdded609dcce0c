//! What can go wrong with an upstream, and whose turn it is.

/// What can go wrong with an upstream. Its address is in none but the first: the others are told to members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// The lender: this is no address of a server.
    #[error("`{address}` is no address of an upstream: {what}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// We: the system refuses a client.
    #[error("no HTTP client could be made: {0}")]
    Client(String),
    /// The lender: it was not reached. Hint: start it.
    #[error("the upstream does not answer: {0}")]
    Silent(String),
    /// The lender: it wants a key, or another one.
    #[error("the upstream refuses the key that its lender has for it, or wants one ({0})")]
    Key(u16),
    /// The lender: what answers there does not list models.
    #[error("the upstream lists no models: {0}")]
    NoList(String),
}

impl UpstreamError {
    /// A short code for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Address { .. } => "usage",
            Self::Client(_) => "internal",
            Self::Silent(_) => "upstream_silent",
            Self::Key(_) => "upstream_key",
            Self::NoList(_) => "upstream_no_list",
        }
    }

    /// What the lender can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Address { .. } => "for example --upstream http://127.0.0.1:11434, which is where Ollama listens",
            Self::Client(_) => "report this",
            Self::Silent(_) => "start it, or compare the address with the one that it says it listens at",
            Self::Key(_) => "put its key into a file: --upstream-key-file FILE",
            Self::NoList(_) => "it must answer GET /v1/models as OpenAI does: Ollama, llama-server and vLLM do",
        }
    }

    /// Without the address, which is nobody else's business.
    pub(crate) fn silent(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self::Silent(text)
    }
}
