//! Errors in one line.

use core::error::Error;

/// An error with its causes, in one line; a cause that the error already quotes is left out.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let detail = error.to_string();
        if !text.contains(&detail) {
            text = format!("{text}: {detail}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the outer one")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_told_once() {
        let inner = || std::io::Error::other("disk on fire");
        assert_eq!(with_causes(&Outer(inner())), "the outer one: disk on fire");
        #[derive(Debug, thiserror::Error)]
        #[error("it says {0}")]
        struct Quotes(#[source] std::io::Error);
        assert_eq!(with_causes(&Quotes(inner())), "it says disk on fire");
    }
}
