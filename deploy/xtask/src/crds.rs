//! `cargo xtask crds`: the definitions of our objects as files. A test of `lb-controller` fails when they are stale.

use std::process::ExitCode;

use crate::process::{self, cargo};

/// The task.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let lb_controller = [
        "run",
        "--quiet",
        "-p",
        "lb-controller",
        "--bin",
        "lb-controller",
        "--",
    ];
    process::run(
        cargo()
            .args(lb_controller)
            .args(["crds", "--directory", "deploy/crds"]),
    )?;
    Ok(ExitCode::SUCCESS)
}
