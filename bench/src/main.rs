//! The benchmark harness: `cargo run --release -p bench -- packet|table|control|churn|handoff`.
//!
//! A suite answers rows; this file prints them, writes them down and compares them with a committed run.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what the program answers")]

mod baseline;
mod churn;
mod control;
mod handoff;
mod packet;
mod pin_dir;
mod report;
mod rounds;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::report::{Aim, Report, Row};

/// Measures Bowline.
///
/// Exit codes: 0 done; 1 a case could not be measured, or something else failed; 2 wrong arguments; 3 a ratio is worse
/// than the baseline allows.
#[derive(Parser)]
#[command(name = "bench")]
struct Args {
    /// What to measure.
    suite: Suite,
    /// Fewer and shorter rounds: tells a broken case from a sound one, and little more.
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this, and those that they are compared with.
    #[arg(long, default_value = "")]
    only: String,
    /// Write machine, commit and rows to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare ratios with those of this file.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Put this suite's rows into this file, in place of those that it has.
    #[arg(long, value_name = "FILE")]
    write_baseline: Option<PathBuf>,
    #[command(flatten)]
    churn: churn::Options,
}

#[derive(Clone, Copy, ValueEnum)]
enum Suite {
    /// Nanoseconds per packet, in the kernel (needs root).
    Packet,
    /// Building and changing tables, and their memory.
    Table,
    /// From an object to the tables in the maps: latency, start, memory, API writes (needs root).
    Control,
    /// Flows broken under scripts of changes, in a simulated cluster of real nodes (needs root).
    Churn,
    /// Pins from an owner to balancers, over the real streams into real maps (needs root).
    Handoff,
    /// An agent whose memory is measured: what `control` starts.
    #[value(hide = true)]
    ControlAgent,
}

/// How long to measure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    Quick,
    Full,
}

/// Rows, and one sentence for each case that could not be measured.
#[derive(Default)]
struct Outcome {
    rows: Vec<Row>,
    errors: Vec<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let length = if args.quick {
        Length::Quick
    } else {
        Length::Full
    };
    if let Suite::ControlAgent = args.suite {
        control::agent()?;
        return Ok(ExitCode::SUCCESS);
    }
    let (name, aims, outcome): (_, &[Aim], _) = match args.suite {
        Suite::Packet => ("packet/", packet::AIMS, packet::run(length, &args.only)?),
        Suite::Table => ("table/", table::AIMS, table::run(length, &args.only)?),
        Suite::Control | Suite::ControlAgent => {
            ("control/", control::AIMS, control::run(length, &args.only))
        }
        Suite::Churn => ("churn/", &[], churn::run(length, &args.only, &args.churn)?),
        Suite::Handoff => ("handoff/", handoff::AIMS, handoff::run(length, &args.only)?),
    };
    let report = Report::new(outcome.rows);
    println!("{}", report.table(aims));
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    if let Some(path) = &args.write_baseline {
        baseline::replace(path, &report, name)?;
    }
    for error in &outcome.errors {
        println!("not measured: {error}");
    }
    if !outcome.errors.is_empty() {
        return Ok(ExitCode::from(1));
    }
    let Some(path) = &args.baseline else {
        return Ok(ExitCode::SUCCESS);
    };
    let only = |row: &Row| row.case.contains(&args.only);
    let before: Vec<Row> = Report::read(path)?.rows.into_iter().filter(only).collect();
    let worse = baseline::regressions(&report.rows, &before, name);
    for line in &worse {
        println!("regression: {line}");
    }
    Ok(if worse.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}
