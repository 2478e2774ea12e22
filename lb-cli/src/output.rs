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

    /// What was asked for.
    pub(crate) fn format(self) -> Format {
        self.format
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
        let lines: Vec<String> = pods
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        assert_eq!(
            lines,
            ["POD         FLOWS", "web-1       12", "web-longer  3"]
        );
    }
}
