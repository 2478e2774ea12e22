//! `cargo lab`: builds the programs in release mode and becomes `lbctl lab`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::process::{self, cargo};

/// The task.
pub(crate) fn run(args: &[OsString]) -> anyhow::Result<ExitCode> {
    build()?;
    // Becoming the lab, instead of starting it, leaves signals and the exit code alone.
    let error = lbctl()?.arg("lab").args(args).exec();
    Err(error).context("starting lbctl")
}

/// Builds `lb-controller` and `lbctl` in release mode.
pub(crate) fn build() -> anyhow::Result<()> {
    process::run(cargo().args(["build", "--release", "-p", "lb-controller", "-p", "lb-cli"]))
}

/// A program that [`build`] has built.
pub(crate) fn built(program: &str) -> anyhow::Result<PathBuf> {
    Ok(process::target_dir()?.join("release").join(program))
}

/// `lbctl`, started where the examples are.
pub(crate) fn lbctl() -> anyhow::Result<Command> {
    let mut command = Command::new(built("lbctl")?);
    command.current_dir(process::workspace());
    Ok(command)
}
