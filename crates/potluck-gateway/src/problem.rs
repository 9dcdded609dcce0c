//! Why a request is not answered, before it takes the shape of one API or another.

use std::{borrow::Cow, fmt::Display};

use potluck_client::GenerateError;

use crate::prompt::TOO_LONG;

/// Whose turn it is: the status follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The caller: the request has no meaning. 400.
    Request,
    /// The caller: no key, or a wrong one. 401.
    Key,
    /// The caller: it may not ask from there. 403.
    Origin,
    /// The caller: there is no such thing. 404.
    Missing,
    /// The caller: not while it is as it is. 409.
    Conflict,
    /// The caller: too large. 413.
    Size,
    /// Nobody: all places are taken; again after so many seconds. 429.
    Busy(u32),
    /// The lenders: nobody serves the model now; again after so many seconds. 503.
    Lenders(u32),
    /// We. 500.
    Ours,
}

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Who must act.
    pub whose: Whose,
    /// A short word for machines.
    pub code: Cow<'static, str>,
    /// What happened, with its numbers.
    pub message: String,
    /// Which parameter, where it is one's fault.
    pub param: Option<Cow<'static, str>>,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(whose: Whose, code: impl Into<Cow<'static, str>>, message: impl Display) -> Self {
        Self { whose, code: code.into(), message: message.to_string(), param: None }
    }

    /// The request's, for this parameter.
    pub(crate) fn of(param: impl Into<Cow<'static, str>>, code: &'static str, message: impl Display) -> Self {
        Self { param: Some(param.into()), ..Self::new(Whose::Request, code, message) }
    }

    /// A parameter that is known, and cannot be honoured.
    pub(crate) fn unsupported(param: impl Into<Cow<'static, str>>, message: impl Display) -> Self {
        Self::of(param, "unsupported_parameter", message)
    }

    /// A parameter whose value has no meaning.
    pub(crate) fn value(param: impl Into<Cow<'static, str>>, message: impl Display) -> Self {
        Self::of(param, "invalid_value", message)
    }

    /// The prompt fills the context.
    pub(crate) fn context(tokens: usize, positions: u32) -> Self {
        let message = format!(
            "This model's maximum context length is {positions} tokens. However, your messages resulted in {tokens} tokens."
        );
        Self::of("messages", TOO_LONG, message)
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> u16 {
        match self.whose {
            Whose::Request => 400,
            Whose::Key => 401,
            Whose::Origin => 403,
            Whose::Missing => 404,
            Whose::Conflict => 409,
            Whose::Size => 413,
            Whose::Busy(_) => 429,
            Whose::Lenders(_) => 503,
            Whose::Ours => 500,
        }
    }

    /// OpenAI's and Anthropic's word for this status.
    pub(crate) fn kind(&self) -> &'static str {
        match self.whose {
            Whose::Request | Whose::Conflict | Whose::Size => "invalid_request_error",
            Whose::Key => "authentication_error",
            Whose::Origin => "permission_error",
            Whose::Missing => "not_found_error",
            Whose::Busy(_) => "rate_limit_error",
            Whose::Lenders(_) => "overloaded_error",
            Whose::Ours => "api_error",
        }
    }

    /// Seconds after which it may go better.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        match self.whose {
            Whose::Busy(seconds) | Whose::Lenders(seconds) => Some(seconds),
            _ => None,
        }
    }
}

/// How long a caller should wait for a peer that was lost to be replaced, in seconds.
const RETRY_LENDERS_SECONDS: u32 = 5;

impl From<GenerateError> for Problem {
    fn from(error: GenerateError) -> Self {
        if let GenerateError::PromptTooLong { tokens, positions } = error {
            return Self::context(tokens, positions);
        }
        let whose = match (&error, error.code()) {
            (_, "context_full") => return Self::of("messages", "context_length_exceeded", error),
            (GenerateError::Session(_), _) => Whose::Lenders(RETRY_LENDERS_SECONDS),
            (_, "bad_request" | "nothing_to_sample" | "bad_grammar") => Whose::Request,
            _ => Whose::Ours,
        };
        let code = error.code();
        Self::new(whose, code, format!("{error}; {}", error.hint()))
    }
}
