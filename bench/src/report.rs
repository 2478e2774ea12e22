//! What a suite answers: rows, the table for people, JSON for machines.
//!
//! Knows nothing of how a row was measured.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::rounds::Samples;

/// One case of a suite.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Its stable name: baselines, reports and people refer to it.
    pub(crate) case: String,
    /// `ns`, `us`, `ms`, `MB`, `rows`.
    pub(crate) unit: String,
    /// How many rounds the figures are over.
    pub(crate) rounds: usize,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
    /// `min` by the `min` of the case `ratio_to` of the same run.
    pub(crate) ratio: Option<f64>,
    pub(crate) ratio_to: Option<String>,
}

impl Row {
    /// A row without a ratio.
    pub(crate) fn new(case: &str, unit: &str, samples: &Samples) -> Self {
        let (min, median, max) = samples.spread();
        Self {
            case: case.to_owned(),
            unit: unit.to_owned(),
            rounds: samples.len(),
            min,
            median,
            max,
            ratio: None,
            ratio_to: None,
        }
    }

    /// The same with its ratio to another row.
    pub(crate) fn beside(mut self, other: &Row) -> Self {
        self.ratio = (other.min > 0.0).then(|| self.min / other.min);
        self.ratio_to = Some(other.case.clone());
        self
    }
}

/// What was promised for a case: its `min` is at most `limit`.
pub(crate) struct Aim {
    pub(crate) case: &'static str,
    pub(crate) limit: f64,
}

/// Where a run was made: enough to judge its figures, nothing that names the machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    processor: String,
    processors: usize,
    kernel: String,
    jit: bool,
}

impl Machine {
    fn this() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let processor = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, name)| name);
        Self {
            processor: processor.to_owned(),
            processors: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            jit: read("/proc/sys/net/core/bpf_jit_enable").trim() == "1",
        }
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) commit: String,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    /// A report of this machine and source tree.
    pub(crate) fn new(rows: Vec<Row>) -> Self {
        Self {
            machine: Machine::this(),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
            rows,
        }
    }

    /// Reads a report that [`Report::write`] wrote.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a report of this program", path.display()))
    }

    /// Writes it as JSON.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// The aligned table, and below it what became of the aims.
    pub(crate) fn table(&self, aims: &[Aim]) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([
            "case", "unit", "min", "median", "max", "ratio", "ratio to", "aim",
        ]);
        for row in &self.rows {
            let aim = aims.iter().find(|aim| aim.case == row.case);
            let ratio = row
                .ratio
                .map_or(String::new(), |ratio| format!("{ratio:.2}"));
            table.add_row([
                row.case.clone(),
                row.unit.clone(),
                figure(row.min),
                figure(row.median),
                figure(row.max),
                ratio,
                row.ratio_to.clone().unwrap_or_default(),
                aim.map_or(String::new(), |aim| verdict(row.min, aim.limit)),
            ]);
        }
        for column in 2..=5 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut text = String::new();
        let Machine {
            processor,
            processors,
            kernel,
            jit,
        } = &self.machine;
        let jit = if *jit { "" } else { ", JIT OFF" };
        let build = if cfg!(debug_assertions) {
            " (NOT OPTIMISED: build with --release)"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "{processors} × {processor}, kernel {kernel}{jit}, commit {}{build}\n\n{}",
            self.commit,
            table.trim_fmt()
        );
        text
    }
}

/// Three digits that count, whatever the unit.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 1.0 => 1,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn verdict(value: f64, limit: f64) -> String {
    let met = if value <= limit { "met" } else { "MISSED" };
    format!("≤ {} {met}", figure(limit))
}

fn commit() -> Option<String> {
    let out = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    (out.status.success()).then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_compares_minima_of_the_same_run() {
        let base = Row::new("base", "ns", &Samples::from([10.0, 20.0, 30.0]));
        let row = Row::new("row", "ns", &Samples::from([25.0, 90.0])).beside(&base);
        assert_eq!(row.ratio, Some(2.5));
        assert_eq!(row.ratio_to.as_deref(), Some("base"));
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(
            [0.0123, 3.456, 45.67, 1234.5].map(figure),
            ["0.012", "3.5", "45.7", "1234"]
        );
    }
}
