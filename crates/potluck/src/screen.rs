//! What the user sees: data on stdout, the rest on stderr; bars on a terminal, plain lines elsewhere.

use std::{
    cell::Cell,
    io::{IsTerminal, Write, stderr, stdin, stdout},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// Where a command shows what it does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    /// Data is JSON, and stderr is quiet but for progress lines.
    pub(crate) json: bool,
    bars: bool,
}

impl Screen {
    /// For this process's own streams.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, bars: stderr().is_terminal() && !json }
    }

    /// True where a person types and reads.
    pub(crate) fn interactive(self) -> bool {
        !self.json && stdin().is_terminal() && stdout().is_terminal()
    }

    /// Data for machines: one line.
    pub(crate) fn object(self, data: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(data).map_err(|e| Failure::new("internal", e, "report this"))?;
        self.text(&format!("{text}\n"))
    }

    /// Data for people, as it comes. A reader that has gone away is told by the error.
    pub(crate) fn text(self, text: &str) -> Result<(), Failure> {
        let mut out = stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| Failure::new("output", format!("writing to stdout: {error}"), ""))
    }

    /// A remark beside the data. Not with `--json`.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        if !self.json {
            // Whoever closed stderr does not want to know.
            let _ = writeln!(stderr(), "{}", printable(text.as_ref()));
        }
    }

    /// A remark in the midst of a text that comes. Not with `--json`.
    pub(crate) fn aside(self, text: impl AsRef<str>) {
        // On a terminal the text's line is not at its end.
        let line = if stdout().is_terminal() && stderr().is_terminal() { "\n" } else { "" };
        self.note(format!("{line}[{}]", text.as_ref()));
    }

    /// Work whose end is not known.
    pub(crate) fn wait(self, what: impl Into<String>) -> Progress {
        let what = what.into();
        if !self.bars {
            self.note(format!("{what} ..."));
            return Progress { bar: None, what, told: Cell::new(0), quiet: self.json };
        }
        let bar = ProgressBar::new_spinner().with_message(what.clone());
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress { bar: Some(bar), what, told: Cell::new(0), quiet: false }
    }

    /// Work that is measured in bytes.
    pub(crate) fn bytes(self, what: impl Into<String>) -> Progress {
        self.measured(what, "{msg} {wide_bar} {bytes}/{total_bytes} {eta}")
    }

    /// Work that is counted.
    pub(crate) fn count(self, what: impl Into<String>) -> Progress {
        self.measured(what, "{msg} {wide_bar} {pos}/{len} {eta}")
    }

    fn measured(self, what: impl Into<String>, template: &str) -> Progress {
        let progress = self.wait(what);
        if let Some(bar) = &progress.bar
            && let Ok(style) = ProgressStyle::with_template(template)
        {
            bar.disable_steady_tick();
            bar.set_style(style);
        }
        progress
    }
}

/// Work under way. Its bar goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    told: Cell<u64>,
    quiet: bool,
}

/// A plain line is printed at each of these shares, in percent.
const TELL_EVERY_PERCENT: u64 = 25;

impl Progress {
    /// So much of it is done.
    pub(crate) fn at(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            return;
        }
        let percent = (done.saturating_mul(100)).checked_div(total).unwrap_or(100).min(100);
        let step = percent / TELL_EVERY_PERCENT * TELL_EVERY_PERCENT;
        if step > self.told.replace(step.max(self.told.get())) && !self.quiet {
            eprintln!("{} {step} %", self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A text that may have come from a stranger, as a terminal may show it: without what moves its cursor or turns its writing.
pub(crate) fn printable(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|&c| c == '\n' || !c.is_control() && !turns(c)).collect()
}

/// A size as people read it: `98.4 MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let unit = (bytes.checked_ilog10().unwrap_or(0) as usize / 3).min(UNITS.len() - 1);
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{:.1} {}", bytes as f64 / 1000f64.powi(unit as i32), UNITS[unit]),
    }
}

/// Rows as padded columns without borders, the first row a heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_or_so() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(98_362_432), "98.4 MB");
        assert_eq!(size(u64::MAX), "18446744.1 TB");
    }

    #[test]
    fn a_stranger_s_text_moves_no_cursor() {
        assert_eq!(printable("a\x1b]52;c;x\x07b\u{202e}c\nd\r"), "a]52;c;xbc\nd");
    }

    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let rows = [vec!["NAME".to_owned(), "SIZE".to_owned()], vec!["a-long-name".to_owned(), "1 B".to_owned()]];
        assert_eq!(table(&rows), "NAME         SIZE\na-long-name  1 B\n");
    }
}
