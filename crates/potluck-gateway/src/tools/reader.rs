//! An answer that may call tools, read as it comes: what of it is said, and what is called.
//!
//! Calls are written as `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (the Hermes form, which most models were
//! trained on), or as that object and nothing else. A call has begun once its name is one of a tool and its arguments
//! open; from then on they are passed on as they are written, as the reference does.

use std::{ops::Range, sync::Arc};

use super::{CLOSE, Call, OPEN, Said, Tools};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// More of what it says.
    Text(String),
    /// It calls: its arguments follow. An earlier call is over.
    Call(Call),
    /// More of the last call's arguments.
    Arguments(String),
}

impl Piece {
    /// What it says.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

/// Where the reader is in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Before anything but space.
    #[default]
    Start,
    /// In what is said.
    Text,
    /// In what looks like a call, and has not said of what. `tagged`: it is between tags.
    Name { tagged: bool },
    /// In a call's arguments.
    Arguments { tagged: bool, scan: Scan },
    /// After a call's arguments; with a scan, in other fields of it.
    Fields { tagged: bool, scan: Option<Scan> },
    /// After a call.
    After { tagged: bool },
}

/// Where one is in a piece of JSON: how deep, and whether in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Scan {
    depth: u32,
    quoted: bool,
    escaped: bool,
}

impl Scan {
    /// Reads on; where it ends: after the bracket that closes all of it, before a tag, or, with the scan to go on with, at the end of
    /// the text.
    fn to_end(mut self, json: &str) -> (usize, Option<Self>) {
        for (at, byte) in json.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.quoted => self.escaped = true,
                b'"' => self.quoted = !self.quoted,
                _ if self.quoted => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth <= 1 => return (at + 1, None),
                b'}' | b']' => self.depth -= 1,
                // JSON has none of these here: a tag comes before the bracket.
                b'<' => return (at, None),
                _ => {}
            }
        }
        (json.len(), Some(self))
    }
}

/// Reads one answer.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// Without tools all is said as it comes.
    tools: Option<Arc<Tools>>,
    state: State,
    /// All of the answer so far, and how far it is read.
    text: String,
    at: usize,
    /// Space that is said only if something is said after it: around calls it is not.
    space: String,
    /// Where what looks like a call begins.
    begins: usize,
    calls: Vec<Found>,
}

/// A call, and how it was written.
#[derive(Debug)]
struct Found {
    call: Call,
    written: Range<usize>,
}

impl Reader {
    pub(crate) fn new(tools: Option<Arc<Tools>>) -> Self {
        Self { tools, ..Self::default() }
    }

    /// Takes more of the answer; what is known now.
    pub(crate) fn read(&mut self, text: &str) -> Vec<Piece> {
        let Some(tools) = self.tools.clone() else {
            return if text.is_empty() { Vec::new() } else { vec![Piece::Text(text.to_owned())] };
        };
        self.text += text;
        let mut pieces = Vec::new();
        while self.step(&tools, &mut pieces) {}
        pieces
    }

    /// The answer is over: what was held back.
    pub(crate) fn end(&mut self) -> Vec<Piece> {
        let Some(tools) = self.tools.clone() else { return Vec::new() };
        let mut pieces = Vec::new();
        if self.state == (State::Name { tagged: false }) {
            match tools.call(&self.text) {
                Some(call) => {
                    self.called(call, &mut pieces);
                    self.state = State::After { tagged: false };
                }
                // It only began like one.
                None => {
                    (self.state, self.at) = (State::Text, 0);
                    while self.step(&tools, &mut pieces) {}
                }
            }
        }
        match self.state {
            State::Start | State::Text => self.say(self.at..self.text.len(), &mut pieces),
            // Cut off before its last tag, it may be whole all the same.
            State::Name { .. } => match tools.call(&self.text[self.at..]) {
                Some(call) => self.called(call, &mut pieces),
                None => self.say(self.begins..self.text.len(), &mut pieces),
            },
            State::Arguments { .. } | State::Fields { .. } | State::After { .. } => self.written(self.text.len()),
        }
        self.at = self.text.len();
        if self.calls.is_empty() && !self.space.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut self.space)));
        }
        pieces
    }

    /// The answer is over, and its lender says what it calls.
    pub(crate) fn told(&mut self, calls: &[Call]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.begins = self.text.len();
        calls.iter().for_each(|call| self.called(call.clone(), &mut pieces));
        pieces
    }

    /// What it calls, once it has ended: a call whose arguments were not finished is one, as the reference has it.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.iter().map(|found| found.call.clone()).collect()
    }

    /// True if it calls, and what it calls can be called: all arguments are whole.
    pub(crate) fn has_called(&self) -> bool {
        !self.calls.is_empty() && self.calls.iter().all(|found| found.call.is_whole())
    }

    /// What these pieces say, the last ones, and all that is called, where arguments are objects: a call that was not finished
    /// is said, after all else, as it was written.
    pub(crate) fn said(&self, pieces: &[Piece]) -> Said {
        let mut said = Said { text: pieces.iter().filter_map(Piece::text).collect(), calls: Vec::new() };
        for Found { call, written } in &self.calls {
            match call.is_whole() {
                true => said.calls.push(call.clone()),
                false => said.text += &self.text[written.clone()],
            }
        }
        said
    }

    /// One step further; false where that needs more text.
    fn step(&mut self, tools: &Tools, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Text => self.text(pieces),
            State::Name { tagged } => self.name(tools, tagged, pieces),
            State::Arguments { tagged, scan } => self.arguments(scan, tagged, pieces),
            State::Fields { tagged, scan } => self.fields(scan, tagged),
            State::After { tagged } => self.after(tagged),
        }
    }

    fn start(&mut self) -> bool {
        match self.text.trim_start() {
            "" => return false,
            said if said.starts_with('{') => {
                (self.begins, self.state) = (0, State::Name { tagged: false });
                self.at = self.text.len() - said.len();
            }
            _ => self.state = State::Text,
        }
        true
    }

    /// Says all before a tag, or before what may become one.
    fn text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let rest = &self.text[self.at..];
        let may_open = || rest.char_indices().map(|(at, _)| at).find(|&at| OPEN.starts_with(&rest[at..]));
        let tag = rest.find(OPEN);
        let end = self.at + tag.or_else(may_open).unwrap_or(rest.len());
        self.say(self.at..end, pieces);
        self.at = end;
        if tag.is_some() {
            (self.begins, self.at, self.state) = (end, end + OPEN.len(), State::Name { tagged: true });
        }
        tag.is_some()
    }

    /// Whom it calls, as soon as that is known; at its end at the latest.
    fn name(&mut self, tools: &Tools, tagged: bool, pieces: &mut Vec<Piece>) -> bool {
        let rest = &self.text[self.at..];
        // Without tags, only what has to be a call is known to be one before it is over.
        let may_begin = tagged || !tools.is_auto();
        if may_begin
            && let Some((name, skipped)) = head(rest)
            && tools.find(&name).is_some()
        {
            let call = Call { id: Call::new_id(), name, arguments: String::new() };
            self.called(call, pieces);
            self.at += skipped;
            self.state = State::Arguments { tagged, scan: Scan::default() };
            return true;
        }
        let Some(end) = tagged.then(|| end_of_call(rest)).flatten() else { return false };
        let call = tools.call(&rest[..end]);
        self.at += end;
        if self.text[self.at..].starts_with(CLOSE) {
            self.at += CLOSE.len();
        }
        self.state = State::Text;
        match call {
            Some(call) => {
                self.called(call, pieces);
                self.written(self.at);
            }
            None => self.say(self.begins..self.at, pieces),
        }
        true
    }

    /// Arguments, to the bracket that closes them.
    fn arguments(&mut self, scan: Scan, tagged: bool, pieces: &mut Vec<Piece>) -> bool {
        let rest = &self.text[self.at..];
        let (end, scan) = scan.to_end(rest);
        let more = rest[..end].to_owned();
        self.at += end;
        self.state = match scan {
            Some(scan) => State::Arguments { tagged, scan },
            None => State::Fields { tagged, scan: None },
        };
        if !more.is_empty() {
            if let Some(last) = self.calls.last_mut() {
                last.call.arguments += &more;
            }
            pieces.push(Piece::Arguments(more));
        }
        scan.is_none()
    }

    /// Other fields of a call are nobody's: they end with its bracket.
    fn fields(&mut self, scan: Option<Scan>, tagged: bool) -> bool {
        let rest = &self.text[self.at..];
        let within = match scan {
            Some(scan) => scan,
            None => {
                let next = rest.trim_start();
                match next.as_bytes().first() {
                    None => return false,
                    Some(b'}' | b',') => Scan { depth: 1, ..Scan::default() },
                    // It was not closed.
                    Some(_) => {
                        self.state = State::After { tagged };
                        return true;
                    }
                }
            }
        };
        let (end, scan) = within.to_end(rest);
        self.at += end;
        self.state = match scan {
            Some(scan) => State::Fields { tagged, scan: Some(scan) },
            None => State::After { tagged },
        };
        scan.is_none()
    }

    /// Between a call and what follows it: its last tag, or, where the model forgot that, another call or more to say.
    fn after(&mut self, tagged: bool) -> bool {
        let rest = &self.text[self.at..];
        let is_nothing = |c: char| c.is_whitespace() || "}];,\"`".contains(c);
        let next = rest.trim_start_matches(is_nothing);
        let (before, next) = rest.split_at(rest.len() - next.len());
        let may_become = |tag: &str| next.len() < tag.len() && tag.starts_with(next);
        if !tagged || may_become(OPEN) || may_become(CLOSE) {
            return false;
        }
        if next.starts_with(CLOSE) {
            self.at += before.len() + CLOSE.len();
            self.state = State::Text;
        } else if next.starts_with('{') {
            self.at += before.len();
            self.state = State::Name { tagged };
        } else {
            // Another tag, or something that is said, with the space and the quotes before it.
            self.at += before.rfind(['}', ']', ';', ',']).map_or(0, |at| at + 1);
            self.state = State::Text;
        }
        self.written(self.at);
        self.begins = self.at;
        true
    }

    /// Adds a call; with arguments where it is whole.
    fn called(&mut self, mut call: Call, pieces: &mut Vec<Piece>) {
        let arguments = std::mem::take(&mut call.arguments);
        pieces.push(Piece::Call(call.clone()));
        if !arguments.is_empty() {
            pieces.push(Piece::Arguments(arguments.clone()));
        }
        call.arguments = arguments;
        self.calls.push(Found { call, written: self.begins..self.text.len() });
    }

    /// The last call was written as far as this.
    fn written(&mut self, end: usize) {
        if let Some(last) = self.calls.last_mut() {
            last.written.end = end;
        }
    }

    /// Says this, with the space before it.
    fn say(&mut self, range: Range<usize>, pieces: &mut Vec<Piece>) {
        let text = &self.text[range];
        let said = text.trim_end();
        if !said.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut self.space) + said));
        }
        self.space += &text[said.len()..];
    }
}

/// Where a call is over: before its last tag, or the next call's first. A tag in one of its texts is none.
fn end_of_call(call: &str) -> Option<usize> {
    let is_json = call.trim_start().starts_with('{');
    let (mut quoted, mut escaped) = (false, false);
    call.bytes().enumerate().find_map(|(at, byte)| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = is_json && !quoted,
            b'<' if !quoted => return [CLOSE, OPEN].iter().any(|tag| call[at..].starts_with(tag)).then_some(at),
            _ => {}
        }
        None
    })
}

/// The name of a call, and how many bytes come before its arguments; none where that is not known yet, or not in this order.
fn head(call: &str) -> Option<(String, usize)> {
    let mut rest = call;
    for token in ["{", "\"name\"", ":"] {
        rest = rest.trim_start().strip_prefix(token)?;
    }
    let mut names = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    let name = names.next()?.ok()?;
    rest = rest[names.byte_offset()..].trim_start().strip_prefix(',')?.trim_start();
    rest = rest.strip_prefix("\"arguments\"").or_else(|| rest.strip_prefix("\"parameters\""))?;
    rest = rest.trim_start().strip_prefix(':')?.trim_start();
    rest.starts_with('{').then(|| (name, call.len() - rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tools(choice: &str) -> Arc<Tools> {
        let list = ["weather", "time"].map(|name| json!({ "type": "function", "function": { "name": name } }));
        Arc::new(Tools::of(Some(&list), Some(&choice.into())).unwrap().unwrap())
    }

    /// What an answer says and calls, read in pieces of so many characters; and each call's arguments in their pieces.
    fn read(choice: &str, text: &str, size: usize) -> (String, Vec<(String, String)>, Reader) {
        let mut reader = Reader::new(Some(tools(choice)));
        let characters: Vec<char> = text.chars().collect();
        let mut pieces: Vec<Piece> =
            characters.chunks(size).flat_map(|part| reader.read(&String::from_iter(part))).collect();
        pieces.extend(reader.end());
        let (mut said, mut calls) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Text(text) => said += &text,
                Piece::Call(call) => calls.push((call.name, call.arguments)),
                Piece::Arguments(more) => calls.last_mut().unwrap().1 += &more,
            }
        }
        let known: Vec<_> = reader.calls().into_iter().map(|call| (call.name, call.arguments)).collect();
        assert_eq!(known, calls, "what it passed on is what it knows: {text}");
        (said, calls, reader)
    }

    /// The same wherever the tokens end.
    fn reads(choice: &str, text: &str, said: &str, calls: &[(&str, &str)]) {
        for size in 1..=text.chars().count() {
            let (text_said, found, _) = read(choice, text, size);
            let found: Vec<_> = found.iter().map(|(name, arguments)| (&**name, &**arguments)).collect();
            assert_eq!((&*text_said, &found[..]), (said, calls), "in pieces of {size}: {text}");
        }
    }

    #[test]
    fn calls_are_found_in_the_forms_that_models_write() {
        let tagged = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>\n\
                      <tool_call>{\"name\":\"time\",\"arguments\":{}}</tool_call>";
        let weather = ("weather", r#"{"city": "Rome"}"#);
        reads("auto", tagged, "Let me see.", &[weather, ("time", "{}")]);
        reads("auto", &format!("{tagged} So\n"), "Let me see.\n\n So", &[weather, ("time", "{}")]);
        reads("auto", r#" {"name": "time", "parameters": {}} "#, "", &[("time", "{}")]);
        // Another order, other fields, arguments as a text.
        reads(
            "auto",
            r#"<tool_call>{"arguments": {"a": [1]}, "name": "time"}</tool_call>"#,
            "",
            &[("time", r#"{"a":[1]}"#)],
        );
        reads("auto", r#"<tool_call>{"name": "time", "arguments": {}, "id": 7}</tool_call>"#, "", &[("time", "{}")]);
        reads(
            "auto",
            r#"<tool_call>{"name": "time", "arguments": "{\"a\": 1}"}</tool_call>"#,
            "",
            &[("time", r#"{"a": 1}"#)],
        );
        // What looks like an end is none within a text.
        let odd = r#"{"a": "}</tool_call>\"{", "b": {"c": ["é]"]}}"#;
        reads(
            "auto",
            &format!("<tool_call>{{\"name\": \"time\", \"arguments\": {odd}}}</tool_call>"),
            "",
            &[("time", odd)],
        );
        reads("required", &format!("{{\"name\": \"time\", \"arguments\": {odd}}}"), "", &[("time", odd)]);
        // Arguments that are none.
        reads("auto", r#"<tool_call>{"name": "time", "arguments": ""}</tool_call>"#, "", &[("time", "{}")]);
        // Tags that were forgotten, and two calls between two tags.
        let (first, second) =
            (r#"{"name": "weather", "arguments": {"city": "Rome"}}"#, r#"{"name": "time", "arguments": {}}"#);
        let both = [weather, ("time", "{}")];
        reads("auto", &format!("<tool_call>{first}\n<tool_call>{second}</tool_call>"), "", &both);
        reads("auto", &format!("<tool_call>{first}\n{second}</tool_call>"), "", &both);
        reads("auto", &format!("<tool_call>{first}\nIt is noon."), "\nIt is noon.", &[weather]);
        reads("auto", &format!("<tool_call>{first}, {second}</tool_call> So"), " So", &both);
        reads("auto", &format!("<tool_call>{first}, as you asked."), " as you asked.", &[weather]);
        reads("auto", &format!("<tool_call>{first}\n\"Noon\", it says."), "\n\"Noon\", it says.", &[weather]);
        reads("auto", &format!("<tool_call>{first}\n]</tool_call> Done."), " Done.", &[weather]);
        reads("auto", &format!("<tool_call>{first}\n```\n</tool_call> Done."), " Done.", &[weather]);
        let named = r#"{"name": "weather", "arguments": {"city": "Rome"}, "id": "}</tool_call>", "x": {"y": 7}}"#;
        reads("auto", &format!("<tool_call>{named}\nIt is noon."), "\nIt is noon.", &[weather]);
        reads("auto", &format!("<tool_call>{named}\n{second}</tool_call>"), "", &both);
        let quoting = r#"{"arguments": {"a": "<tool_call> \"x"}, "name": "time"}"#;
        let quoted = ("time", r#"{"a":"<tool_call> \"x"}"#);
        reads("auto", &format!("<tool_call>{quoting}</tool_call> ok"), " ok", &[quoted]);
        let turned = r#"{"arguments": {"a": [1]}, "name": "time"}"#;
        reads(
            "auto",
            &format!("<tool_call>{turned}<tool_call>{second}"),
            "",
            &[("time", r#"{"a":[1]}"#), ("time", "{}")],
        );
        // The last tag may be missing.
        reads("auto", r#"<tool_call>{"arguments": {}, "name": "time"}"#, "", &[("time", "{}")]);
    }

    #[test]
    fn what_calls_nothing_is_said_as_it_is() {
        for plain in [
            "It is warm. ",
            "\n Well, a < b {\"x\"} é <tool_cash> and\n <tool_cal",
            r#"{"name": "absent", "arguments": {}}"#,
            r#"{"name": "time", "arguments": {}} is what I would call"#,
            "<tool_call>nonsense</tool_call>",
            r#"<tool_call>{"name": "absent", "arguments": {}}</tool_call> "#,
            "<tool_call>{\"name\": \"ti",
            "{",
            "  ",
            "",
        ] {
            reads("auto", plain, plain, &[]);
        }
        let after = r#"{"x": 1} <tool_call>{"name": "time", "arguments": {}}</tool_call>"#;
        reads("auto", after, r#"{"x": 1}"#, &[("time", "{}")]);
        assert_eq!(Reader::default().read("<tool_call>"), [Piece::Text("<tool_call>".into())], "without tools");
    }

    #[test]
    fn arguments_come_as_they_are_written_and_what_is_cut_off_is_a_call_for_whoever_takes_texts() {
        let mut reader = Reader::new(Some(tools("auto")));
        assert_eq!(reader.read("Well \n<tool_call>{\"name\": \"time\", \"argu"), [Piece::Text("Well".into())]);
        let pieces = reader.read("ments\": {\"a\": ");
        assert!(
            matches!(&pieces[..], [Piece::Call(call), Piece::Arguments(more)] if call.name == "time" && more == "{\"a\": ")
        );
        assert_eq!(reader.read("1"), [Piece::Arguments("1".into())]);
        assert_eq!(reader.end(), []);
        assert_eq!(reader.calls()[0].arguments, "{\"a\": 1");
        let Said { text, calls } = reader.said(&[]);
        assert_eq!((&*text, calls), ("<tool_call>{\"name\": \"time\", \"arguments\": {\"a\": 1", vec![]));
        // A bracket that the model forgot.
        let forgot = r#"<tool_call>{"name": "time", "arguments": {"a": 1</tool_call> So"#;
        reads("auto", forgot, " So", &[("time", r#"{"a": 1"#)]);
        let (.., reader) = read("auto", forgot, 3);
        assert!(!reader.has_called(), "nobody can make it");
        let (.., beside) =
            read("auto", &format!("<tool_call>{}</tool_call>{forgot}", r#"{"name": "time", "arguments": {}}"#), 3);
        assert_eq!((beside.calls().len(), beside.has_called()), (2, false), "nor both of them");
        assert_eq!(reader.said(&[]).text, r#"<tool_call>{"name": "time", "arguments": {"a": 1</tool_call>"#);
        let (.., reader) = read("required", r#"{"name": "time", "arguments": {"a": 1}}"#, 3);
        assert!(reader.has_called());
        let Said { text, calls } = reader.said(&[]);
        assert_eq!((&*text, calls.len()), ("", 1));
    }
}
