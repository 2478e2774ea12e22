//! `cargo xtask clean`: removes labs that were kept or that crashed. Tests need nothing like it: their namespaces have no
//! names and end with the process.

use std::path::Path;
use std::process::ExitCode;

use anyhow::ensure;

use crate::{lab, process};

/// Where every lab keeps its ledger: `/run/bowline-<name>`.
const LEDGERS: &str = "/run";
/// What the names of their directories start with.
const PREFIX: &str = "bowline-";

/// The task.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let labs = labs(Path::new(LEDGERS));
    if labs.is_empty() {
        println!("there are no labs on this machine");
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        lab::built("lbctl")?.exists(),
        "labs are removed by lbctl, which is not built: run `cargo build --release`"
    );
    for name in labs {
        // Refused, with a sentence, while another lbctl is at work in it.
        process::run(lab::lbctl()?.args(["lab", "down", "--name", &name]))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Names of labs that have something written in their ledgers.
fn labs(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        // Nothing was ever made there.
        return Vec::new();
    };
    let mut labs: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("made.json").is_file())
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            Some(name.strip_prefix(PREFIX)?.to_owned())
        })
        .collect();
    labs.sort();
    labs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labs_are_directories_with_a_ledger() {
        let directory = std::env::temp_dir().join(format!("xtask-clean-{}", std::process::id()));
        for name in ["bowline-lab", "bowline-empty", "else"] {
            std::fs::create_dir_all(directory.join(name)).unwrap();
        }
        for name in ["bowline-lab", "else"] {
            std::fs::write(directory.join(name).join("made.json"), "{}").unwrap();
        }
        let found = labs(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(found, ["lab"]);
    }

    #[test]
    fn without_ledgers_there_are_no_labs() {
        assert!(labs(Path::new("/nowhere")).is_empty());
    }
}
