//! Where answers go: aligned tables for people, JSON for machines, colours only on a terminal. Knows no command.

use std::io::{IsTerminal, Write};

use anyhow::Context;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

/// What `--output` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    Table,
    /// One JSON value for machines; its fields are stable.
    Json,
}

/// The writer of answers (standard output) that every command gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
    colours: bool,
}

impl Output {
    /// Colours are on if standard output is a terminal and `NO_COLOR` is not set.
    pub(crate) fn new(format: Format) -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { format, colours }
    }

    /// Prints `value` as JSON, or what `people` makes of it for people.
    pub(crate) fn emit<T: Serialize>(
        self,
        value: &T,
        people: impl FnOnce(&T, Paint) -> String,
    ) -> anyhow::Result<()> {
        let mut text = match self.format {
            Format::Table => people(value, Paint(self.colours)),
            Format::Json => serde_json::to_string_pretty(value).context("write JSON")?,
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        match std::io::stdout().write_all(text.as_bytes()) {
            // `lbctl … | head` is no error.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("write to standard output"),
        }
    }
}

/// A table without lines, columns two spaces apart, as `kubectl` prints them.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// A table as text, without spaces at the ends of lines; nothing for a table without rows.
pub(crate) fn lines(table: &Table) -> String {
    if table.is_empty() {
        return String::new();
    }
    let lines = table.lines();
    lines
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// Names and values, the values below each other.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = facts.iter().filter(|(_, value)| !value.is_empty());
    let lines = lines.map(|(name, value)| format!("{name:width$}  {value}\n"));
    lines.collect::<Vec<_>>().concat()
}

/// Parts of an answer, an empty line between them; empty parts are left out.
pub(crate) fn parts(parts: impl IntoIterator<Item = String>) -> String {
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}

/// Colours text, or leaves it alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    /// All is well.
    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// Something is wrong.
    pub(crate) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    /// Worth a look.
    pub(crate) fn warn(self, text: &str) -> String {
        self.with("33", text)
    }

    /// A heading.
    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_text_is_left_alone() {
        assert_eq!(Paint(false).bad("broken"), "broken");
        assert_eq!(Paint(true).bad("broken"), "\u{1b}[31mbroken\u{1b}[0m");
    }

    #[test]
    fn tables_are_aligned_without_lines() {
        let mut pods = table(["POD", "FLOWS"]);
        pods.add_row(["web-1", "12"]).add_row(["web-longer", "3"]);
        assert_eq!(
            lines(&pods),
            "POD         FLOWS\nweb-1       12\nweb-longer  3\n"
        );
        assert_eq!(lines(&table(["POD"])), "");
    }

    #[test]
    fn facts_without_a_value_are_left_out() {
        let shown = facts(&[
            ("node", "a".into()),
            ("problem", String::new()),
            ("up", "3 s".into()),
        ]);
        assert_eq!(shown, "node     a\nup       3 s\n");
    }
}
