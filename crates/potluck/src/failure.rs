//! How a command fails: a code for machines, a message for people, and what to type next.

use std::{borrow::Cow, fmt::Display};

use potluck_core::with_causes;
use serde::Serialize;

use crate::screen::printable;

/// Why a command failed. With `--json` it is printed as `{"error": {"code", "message", "hint"}}` on stdout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    /// A short word that scripts can rely on.
    pub(crate) code: Cow<'static, str>,
    /// What happened, with its numbers.
    pub(crate) message: String,
    /// What the user can do about it.
    pub(crate) hint: String,
}

impl Failure {
    /// A failure of this kind.
    pub(crate) fn new(code: impl Into<Cow<'static, str>>, message: impl Display, hint: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.to_string(), hint: hint.into() }
    }

    /// The user asked for something that has no meaning: exit code 2.
    pub(crate) fn usage(message: impl Display, hint: impl Into<String>) -> Self {
        Self::new("usage", message, hint)
    }

    /// A file or the system refused.
    pub(crate) fn io(what: impl Display, error: &std::io::Error) -> Self {
        Self::new("io", format!("{what}: {error}"), "check that the path exists and that you may use it")
    }

    /// What was wrong has been told already, in the command's own words.
    pub(crate) fn told() -> Self {
        Self::new("told", "", "")
    }

    /// 2 for what the user can see by reading `--help`, 1 for the rest.
    pub(crate) fn exit_code(&self) -> u8 {
        if self.code == "usage" { 2 } else { 1 }
    }

    /// Prints it where the caller looks: one object on stdout for machines, two lines on stderr for people.
    pub(crate) fn print(&self, json: bool) {
        if self.code == "told" {
            return;
        }
        if json {
            println!("{}", serde_json::json!({ "error": self }));
        } else {
            eprintln!("error: {}", printable(&self.message));
            if !self.hint.is_empty() {
                eprintln!("hint: {}", printable(&self.hint));
            }
        }
    }
}

/// Turns a library's error into a failure with this code and hint.
pub(crate) trait OrFail<T> {
    /// See [`OrFail`].
    fn or_fail(self, code: &'static str, hint: &str) -> Result<T, Failure>;
}

impl<T, E: std::error::Error> OrFail<T> for Result<T, E> {
    fn or_fail(self, code: &'static str, hint: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(code, with_causes(&error), hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_usage_exits_with_2() {
        assert_eq!(Failure::usage("x", "").exit_code(), 2);
        assert_eq!(Failure::new("peer_lost", "x", "").exit_code(), 1);
    }
}
