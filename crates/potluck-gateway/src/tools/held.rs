//! An answer that may yet become a call: what of it may be shown while it comes.

use super::{OPEN, Said, Tools};
use crate::answer::Ended;

/// What an answer has said, where calls may come.
#[derive(Debug, Default)]
pub(crate) struct Held {
    text: String,
    /// Bytes of it that were shown.
    shown: usize,
}

impl Held {
    /// Takes more of the answer; what may be shown now. Without tools all of it.
    pub(crate) fn hold(&mut self, tools: Option<&Tools>, text: &str) -> String {
        let Some(tools) = tools else { return text.to_owned() };
        self.text += text;
        if !tools.is_auto() {
            return String::new();
        }
        let from = self.shown;
        self.shown = may_show(&self.text, from);
        self.text[from..self.shown].to_owned()
    }

    /// What is left to say at the end, and what it calls.
    pub(crate) fn rest(&mut self, tools: Option<&Tools>, ended: &Ended) -> Said {
        let Self { text, shown } = std::mem::take(self);
        if let Some(told) = &ended.told {
            return Said { text: String::new(), calls: told.calls.clone() };
        }
        match tools {
            Some(tools) => {
                let Said { text, calls } = tools.read(&text);
                // What was shown is the beginning of what is said.
                Said { text: text.get(shown.min(text.len())..).unwrap_or_default().to_owned(), calls }
            }
            None => Said { text: String::new(), calls: Vec::new() },
        }
    }
}

/// Bytes of a text that cannot belong to a call: none where it begins like JSON, else all before a tag or the beginning of one.
/// `shown`: so many were found before, and are not looked at again.
fn may_show(text: &str, shown: usize) -> usize {
    if shown == 0 && text.trim_start().starts_with('{') {
        return 0;
    }
    let rest = &text[shown..];
    let begins = |&at: &usize| OPEN.starts_with(&rest[at..]);
    let begun = || rest.char_indices().map(|(at, _)| at).find(begins);
    let end = rest.find(OPEN).or_else(begun).unwrap_or(rest.len());
    // Space before a call is not said.
    shown + rest[..end].trim_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_that_may_become_a_call() {
        let shown = |text: &str| text[..may_show(text, 0)].to_owned();
        assert_eq!(shown("Hello"), "Hello");
        assert_eq!(shown("Hello "), "Hello");
        assert_eq!(shown("a < b"), "a < b");
        assert_eq!(shown("Well <tool"), "Well");
        assert_eq!(shown("Well\n<tool_call>{"), "Well");
        assert_eq!(shown(" {\"name\""), "");
        assert_eq!(shown("<"), "");
        assert_eq!(shown("x<tool_cash>"), "x<tool_cash>");
        // Wherever the tokens end.
        let text = "Well, a < b {\"x\"} é <tool_cash> and\n <tool_call>{";
        for size in 1..text.len() {
            let (mut said, mut at) = (0, 0);
            while at < text.len() {
                at =
                    (at + size..).find(|&end| end >= text.len() || text.is_char_boundary(end)).unwrap().min(text.len());
                let now = may_show(&text[..at], said);
                assert!(now >= said, "what was shown stays");
                assert_eq!(now, may_show(&text[..at], 0), "as if looked at anew: {:?}", &text[..at]);
                said = now;
            }
            assert_eq!(&text[..said], "Well, a < b {\"x\"} é <tool_cash> and");
        }
    }
}
