//! Events that meet in the lab, two or three at the same instant: as many meetings as fit into some minutes, others for each
//! commit, each counted as a test.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use crate::lab;
use crate::process;
use crate::tally::Tally;

/// Minutes that all of them may take.
const MINUTES: u64 = 4;
/// `lbctl` ends in time by itself; a meeting that breaks something ends up to half a minute later, one that leaves something
/// three quarters of one, and one that does not settle a minute.
const LIMIT: Duration = Duration::from_mins(MINUTES + 3);
/// Its own lab, so that it does not meet one that somebody keeps.
const LAB_NAME: &str = "test-pairs";

/// What the file of those that are done says of each that matters here.
#[derive(Debug, Deserialize)]
struct Finished {
    pair: String,
    broken: u64,
    #[serde(default)]
    left: Vec<String>,
    error: Option<String>,
}

/// Plays the meetings of this commit.
pub(crate) fn test() -> anyhow::Result<Tally> {
    let mut git = Command::new("git");
    git.current_dir(process::workspace())
        .args(["rev-parse", "HEAD"]);
    let commit = process::output(&mut git);
    let seed = match &commit {
        Ok(commit) => seed(commit)?,
        // Sources from an archive have no commit, and no turns to take.
        Err(_) => 1,
    };
    println!("`cargo lab pairs --minutes {MINUTES} --seed {seed}` repeats these pairs");
    let file = process::target_dir()?.join("pairs.jsonl");
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", file.display()));
        }
        _ => {}
    }
    let mut lbctl = lab::lbctl()?;
    lbctl.args(["lab", "pairs", "--name", LAB_NAME]);
    lbctl.args(["--minutes", &MINUTES.to_string()]);
    lbctl.args(["--seed", &seed.to_string()]);
    lbctl.arg("--state").arg(&file);
    println!("$ {}", process::show(&lbctl));
    let ended = process::lines(&mut lbctl, LIMIT, |line| println!("{line}"))?;
    if !ended.success() {
        println!("failed: {ended}");
    }
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    count(&text, ended.success())
}

/// The first four bytes of a commit's name: any two commits are far apart.
fn seed(commit: &str) -> anyhow::Result<u64> {
    let digits = commit.get(..8).context("a commit's name is too short")?;
    let seed = u64::from_str_radix(digits, 16);
    seed.with_context(|| format!("{digits} is no beginning of a commit's name"))
}

/// A test for each that is done. A command that did not succeed though all of them did, or that finished none, has failed.
fn count(text: &str, success: bool) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    for line in text.lines() {
        let Finished {
            pair,
            broken,
            left,
            error,
        } = serde_json::from_str(line).with_context(|| format!("read {line}"))?;
        let held = broken == 0 && left.is_empty() && error.is_none();
        if !held {
            println!("failed: pair {pair}");
        }
        tally.add(Tally::one(held));
    }
    if tally.failed == 0 && (!success || tally.passed == 0) {
        tally.add(Tally::one(false));
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_a_test() {
        let text = concat!(
            r#"{"pair":"rollout,join","seed":7,"broken":0,"error":null}"#,
            "\n",
            r#"{"pair":"rollout,rehash","seed":7,"broken":2,"error":null}"#,
            "\n",
            r#"{"pair":"join,rehash","seed":7,"broken":0,"error":"no kernel"}"#,
            "\n",
            r#"{"pair":"rollout,join,rehash","broken":0,"left":["run 1: a pin"],"error":null}"#,
            "\n",
        );
        let tally = count(text, false).unwrap();
        assert_eq!(tally.to_string(), "1 passed, 3 failed, 0 skipped");
    }

    #[test]
    fn a_command_that_plays_nothing_or_crashes_has_failed() {
        assert_eq!(count("", true).unwrap(), Tally::one(false));
        let held = r#"{"pair":"rollout,join","broken":0,"error":null}"#;
        assert_eq!(count(held, true).unwrap(), Tally::one(true));
        assert_eq!(count(held, false).unwrap().failed, 1);
    }

    #[test]
    fn a_commit_names_a_seed() {
        assert_eq!(seed("0000002a9c\n").unwrap(), 42);
        assert!(seed("HEAD").is_err());
        assert!(seed("unknown-").is_err());
    }
}
