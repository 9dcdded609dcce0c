//! An answer that may yet become a call: what of it may be shown while it comes.

use super::{OPEN, Said, Tools};

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
        let shown = if tools.is_auto() { may_show(&self.text) } else { 0 };
        let from = self.shown.min(shown);
        self.shown = shown.max(self.shown);
        self.text[from..self.shown].to_owned()
    }

    /// What is left to say at the end, and what it calls.
    pub(crate) fn rest(&mut self, tools: Option<&Tools>) -> Said {
        let Self { text, shown } = std::mem::take(self);
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
fn may_show(text: &str) -> usize {
    if text.trim_start().starts_with('{') {
        return 0;
    }
    if let Some(at) = text.find(OPEN) {
        return text[..at].trim_end().len();
    }
    let begins = |at: usize| OPEN.starts_with(&text[at..]);
    let end = text.char_indices().map(|(at, _)| at).find(|&at| begins(at)).unwrap_or(text.len());
    // Space before a call is not said.
    text[..end].trim_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_that_may_become_a_call() {
        let shown = |text: &str| text[..may_show(text)].to_owned();
        assert_eq!(shown("Hello"), "Hello");
        assert_eq!(shown("Hello "), "Hello");
        assert_eq!(shown("a < b"), "a < b");
        assert_eq!(shown("Well <tool"), "Well");
        assert_eq!(shown("Well\n<tool_call>{"), "Well");
        assert_eq!(shown(" {\"name\""), "");
        assert_eq!(shown("<"), "");
        assert_eq!(shown("x<tool_cash>"), "x<tool_cash>");
    }
}
