//! `cargo xtask clean`: what crashed labs and tests left behind, found by names that carry the process that made them.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::{lab, process};

/// Namespaces and pin directories of tests are called `bowline-test-<pid>-<anything>`.
const PREFIX: &str = "bowline-test-";

/// The task.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let mut lbctl = lab::lbctl()?;
    if Path::new(lbctl.get_program()).exists() {
        process::run(lbctl.args(["lab", "down"]))?;
    }
    for name in left_behind(Path::new("/run/netns")) {
        println!("removing namespace {name}");
        process::run(Command::new("ip").args(["netns", "delete", &name]))?;
    }
    for name in left_behind(Path::new("/sys/fs/bpf")) {
        println!("removing pins {name}");
        let path = Path::new("/sys/fs/bpf").join(name);
        std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Names in a directory whose makers are gone.
fn left_behind(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        // Nothing was ever made there.
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| maker(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
        .collect()
}

/// The process that made a thing of this name; none if it is none of ours.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_tests_have_a_maker() {
        assert_eq!(maker("bowline-test-4711-client"), Some(4711));
        assert_eq!(maker("bowline-lab-4711"), None);
        assert_eq!(maker("bowline-test-mine"), None);
    }

    #[test]
    fn what_a_living_process_made_is_not_left_behind() {
        let directory = std::env::temp_dir().join(format!("xtask-clean-{}", std::process::id()));
        let mine = format!("{PREFIX}{}-a", std::process::id());
        // Above the largest process id that Linux gives.
        let dead = format!("{PREFIX}99999999-a");
        for name in [mine.as_str(), dead.as_str(), "something-else"] {
            std::fs::create_dir_all(directory.join(name)).unwrap();
        }
        let found = left_behind(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(found, [dead]);
    }
}
