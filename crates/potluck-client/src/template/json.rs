//! JSON as Python writes it: what models were trained to read.

use std::io;

use minijinja::Value;
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::{Bounded, PROMPT_BYTES_MAX};

/// Spaces of an indentation.
const INDENT_MAX: usize = 16;

/// `json.dumps(value, ensure_ascii=False)`, indented by so many spaces where that is asked for.
pub(super) fn to_string(value: &Value, indent: Option<usize>) -> Result<String, serde_json::Error> {
    let mut out = Bounded(Vec::new());
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced))?,
        Some(indent) => {
            let spaces = " ".repeat(indent.min(INDENT_MAX));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
        }
    }
    debug_assert!(out.0.len() <= PROMPT_BYTES_MAX);
    Ok(String::from_utf8_lossy(&out.0).into_owned())
}

/// A space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
