//! `cargo xtask verifier`: asks this kernel's verifier about every program and prints what it counted.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::bail;

use crate::{lab, process};

/// Loading takes a second; a verifier that runs into its own limit of a million instructions takes several.
const LIMIT: Duration = Duration::from_mins(2);

/// The task.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    lab::build()?;
    report()?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the report of the programs that are built.
pub(crate) fn report() -> anyhow::Result<()> {
    let mut command = Command::new(lab::built("lb-controller")?);
    let ended = process::lines(command.arg("verify"), LIMIT, |line| println!("{line}"))?;
    if !ended.success() {
        bail!("`lb-controller verify`: {ended}");
    }
    Ok(())
}
