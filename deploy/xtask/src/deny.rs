//! `cargo xtask deny`: licences, sources and known vulnerabilities of all dependencies, by the rules in `deny.toml`.
//!
//! Not a part of `cargo xtask test`: building cargo-deny takes as long as building Bowline, and the list of
//! vulnerabilities comes from the network and changes without a change here.

use std::process::{Command, ExitCode};

use crate::process::{self, cargo};

/// The version that is installed.
const VERSION: &str = "0.20.2";

/// The task.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let root = process::target_dir()?.join("tools");
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        println!("installing cargo-deny {VERSION} below {}", root.display());
        process::run(
            cargo()
                .args(["install", "--locked", "cargo-deny", "--version", VERSION])
                .arg("--root")
                .arg(&root),
        )?;
    }
    process::run(
        Command::new(program)
            .current_dir(process::workspace())
            .args(["--workspace", "check"]),
    )?;
    Ok(ExitCode::SUCCESS)
}
