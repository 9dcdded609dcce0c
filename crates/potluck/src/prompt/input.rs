//! Where turns come from: an edited line with history on a terminal, plain lines elsewhere.

use std::io::{BufRead, stdin};

use rustyline::{DefaultEditor, error::ReadlineError};

use crate::{apart::apart, failure::Failure, screen::Screen};

/// Bytes of one turn. A longer one is refused.
const TURN_BYTES_MAX: usize = 1 << 20;

/// What the user did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Something to answer.
    Said(String),
    /// A line that begins with `/`.
    Command(String),
    /// An empty line, or Ctrl-C on one.
    Nothing,
    /// The end of the input.
    Over,
}

/// Reads turns.
#[derive(Debug)]
pub(super) struct Input {
    /// None while a line is being read on another thread.
    editor: Option<DefaultEditor>,
}

/// One line, as the terminal or the pipe gave it.
enum Line {
    Text(String),
    Interrupted,
    End,
}

impl Input {
    /// On a terminal with a history of this conversation: it is in memory only, as no prompt is written to a disk.
    pub(super) fn open(screen: Screen) -> Result<Self, Failure> {
        let editor = || DefaultEditor::new().map_err(|error| Failure::new("io", error, ""));
        Ok(Self { editor: screen.interactive().then(editor).transpose()? })
    }

    /// The next turn: lines that end with `\` go on, and so do those between `"""`.
    pub(super) async fn turn(&mut self) -> Result<Turn, Failure> {
        let mut turn = Joined::default();
        loop {
            match self.line(if turn.is_empty() { "> " } else { ". " }).await? {
                Line::Text(line) => {
                    turn.push(&line);
                    if turn.text.len() > TURN_BYTES_MAX {
                        let message = format!("a turn of more than {TURN_BYTES_MAX} bytes");
                        return Err(Failure::new("bad_request", message, "send less at once"));
                    }
                    if turn.complete() {
                        return self.finish(turn.text);
                    }
                }
                Line::Interrupted => return Ok(Turn::Nothing),
                Line::End if turn.is_empty() => return Ok(Turn::Over),
                Line::End => return self.finish(turn.text),
            }
        }
    }

    fn finish(&mut self, text: String) -> Result<Turn, Failure> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok(Turn::Nothing);
        }
        if let Some(editor) = &mut self.editor {
            let _ = editor.add_history_entry(&text);
        }
        Ok(if trimmed.starts_with('/') && !trimmed.contains('\n') {
            Turn::Command(trimmed.to_owned())
        } else {
            Turn::Said(text)
        })
    }

    /// Reads on a thread of its own: the session's peers are served meanwhile.
    async fn line(&mut self, prompt: &'static str) -> Result<Line, Failure> {
        let editor = self.editor.take();
        let (editor, line) = apart(move || match editor {
            Some(mut editor) => {
                let line = editor.readline(prompt);
                (Some(editor), line)
            }
            None => (None, plain_line()),
        })
        .await?;
        self.editor = editor;
        match line {
            Ok(text) => Ok(Line::Text(text)),
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(Failure::new("io", format!("reading the next line: {error}"), "")),
        }
    }
}

fn plain_line() -> Result<String, ReadlineError> {
    let mut line = String::new();
    match stdin().lock().read_line(&mut line) {
        Ok(0) => Err(ReadlineError::Eof),
        Ok(_) => Ok(line.trim_end_matches(['\n', '\r']).to_owned()),
        Err(error) => Err(ReadlineError::Io(error)),
    }
}

/// Lines that belong together.
#[derive(Debug, Default)]
struct Joined {
    text: String,
    lines: usize,
    quoted: bool,
    goes_on: bool,
}

const QUOTE: &str = "\"\"\"";

impl Joined {
    fn push(&mut self, line: &str) {
        let mut line = line;
        if self.lines == 0
            && let Some(rest) = line.strip_prefix(QUOTE)
        {
            (self.quoted, line) = (true, rest);
        }
        if self.quoted
            && let Some(rest) = line.strip_suffix(QUOTE)
        {
            (self.quoted, line) = (false, rest);
            self.goes_on = false;
        } else {
            self.goes_on = !self.quoted && line.ends_with('\\');
            line = if self.goes_on { &line[..line.len() - 1] } else { line };
        }
        // A quote on a line of its own begins the text on the next.
        if self.lines > 0 && !(self.text.is_empty() && self.lines == 1) {
            self.text.push('\n');
        }
        self.text.push_str(line);
        self.lines += 1;
    }

    fn complete(&self) -> bool {
        !self.quoted && !self.goes_on
    }

    fn is_empty(&self) -> bool {
        self.lines == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(lines: &[&str]) -> (String, bool) {
        let mut joined = Joined::default();
        for (i, line) in lines.iter().enumerate() {
            assert!(i == 0 || !joined.complete(), "complete before {line:?}");
            joined.push(line);
        }
        (joined.text.clone(), joined.complete())
    }

    #[test]
    fn a_line_is_a_turn_unless_it_goes_on() {
        assert_eq!(join(&["hello"]), ("hello".into(), true));
        assert_eq!(join(&["one\\", "two"]), ("one\ntwo".into(), true));
        assert_eq!(join(&["one\\"]), ("one".into(), false));
    }

    #[test]
    fn quotes_hold_many_lines() {
        assert_eq!(join(&["\"\"\"one", "two\\", "three\"\"\""]), ("one\ntwo\\\nthree".into(), true));
        assert_eq!(join(&["\"\"\"", "one", "", "two", "\"\"\""]), ("one\n\ntwo\n".into(), true));
        assert_eq!(join(&["\"\"\"one line\"\"\""]), ("one line".into(), true));
        assert_eq!(join(&["\"\"\"open"]), ("open".into(), false));
    }
}
