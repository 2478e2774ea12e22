//! Which meetings were played, and what was found: kept in a file, so that the long form goes on where it was interrupted. One
//! line of JSON for each that is done.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::breaks::Break;
use super::meeting::Meeting;
use super::play::Played;

/// A meeting that was played.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finished {
    /// Which.
    #[serde(rename = "pair")]
    pub(crate) meeting: Meeting,
    /// The seed of the command that played it.
    pub(crate) seed: u64,
    /// How often it was run.
    pub(crate) runs: u32,
    /// Flows that had to outlive it, over all runs.
    pub(crate) flows: u64,
    /// Flows whose pods died.
    pub(crate) died: u64,
    /// Flows that broke.
    pub(crate) broken: u64,
    /// The longest wait for an answer of a long flow that did not break.
    pub(crate) longest_wait_ms: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// The first breaks of each run.
    pub(crate) breaks: Vec<Found>,
    /// The longest time from the end of the last flow until nothing was remembered that none needs.
    #[serde(default)]
    pub(crate) floor_ms: u64,
    /// What was left, and where, though every flow had ended, with the number of the run in front.
    #[serde(default)]
    pub(crate) left: Vec<String>,
    /// Why it could not be played.
    pub(crate) error: Option<String>,
}

/// A break, and in which run, from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// The run.
    pub(crate) run: u32,
    /// The break.
    #[serde(flatten)]
    pub(crate) found: Break,
}

impl Finished {
    /// A meeting before its first run.
    pub(super) fn none(meeting: Meeting, seed: u64) -> Self {
        Self {
            meeting,
            seed,
            runs: 0,
            flows: 0,
            died: 0,
            broken: 0,
            longest_wait_ms: 0,
            seconds: 0.0,
            breaks: Vec::new(),
            floor_ms: 0,
            left: Vec::new(),
            error: None,
        }
    }

    /// A promise does not hold.
    pub(super) fn has_failed(&self) -> bool {
        self.broken > 0 || !self.left.is_empty()
    }

    /// Adds a run.
    pub(super) fn add(&mut self, run: u32, played: Played) {
        let Played {
            flows,
            died,
            broken,
            breaks,
            longest_wait_ms,
            floor_ms,
            left,
        } = played;
        self.runs += 1;
        self.flows += flows;
        self.died += died;
        self.broken += broken;
        self.longest_wait_ms = self.longest_wait_ms.max(longest_wait_ms);
        let found = breaks.into_iter().map(|found| Found { run, found });
        self.breaks.extend(found);
        self.floor_ms = self.floor_ms.max(floor_ms);
        let left = left.into_iter();
        self.left
            .extend(left.map(|what| format!("run {}: {what}", run + 1)));
    }
}

/// What was finished so far.
#[derive(Debug, Default)]
pub(super) struct State {
    path: Option<PathBuf>,
    finished: Vec<Finished>,
}

impl State {
    /// Reads what an earlier command has finished, if there is a file.
    pub(super) fn open(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let mut finished = Vec::new();
        if let Some(path) = &path {
            match std::fs::read_to_string(path) {
                Ok(text) => {
                    finished = read(&text).with_context(|| format!("read {}", path.display()))?;
                    rewrite(path, &finished)?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", path.display()));
                }
            }
        }
        Ok(Self { path, finished })
    }

    /// The seed of the command that is to be gone on with.
    pub(super) fn seed(&self) -> Option<u64> {
        self.finished.last().map(|finished| finished.seed)
    }

    /// It was played at least so often with this seed, and could be.
    pub(super) fn has(&self, meeting: Meeting, seed: u64, runs: u32) -> bool {
        self.finished.iter().any(|finished| {
            finished.meeting == meeting
                && finished.seed == seed
                && finished.runs >= runs
                && finished.error.is_none()
        })
    }

    /// Adds a result, which replaces an earlier one of the same meeting.
    pub(super) fn add(&mut self, new: Finished) -> anyhow::Result<()> {
        if let Some(path) = &self.path {
            let file = File::options().create(true).append(true).open(path);
            let mut file = file.with_context(|| format!("open {}", path.display()))?;
            let written = file.write_all(line(&new)?.as_bytes());
            written.with_context(|| format!("write {}", path.display()))?;
        }
        insert(&mut self.finished, new);
        Ok(())
    }

    /// Results with this seed, in the order of their ends.
    pub(super) fn of_seed(self, seed: u64) -> Vec<Finished> {
        let finished = self.finished.into_iter();
        finished.filter(|finished| finished.seed == seed).collect()
    }
}

fn line(finished: &Finished) -> anyhow::Result<String> {
    let mut line = serde_json::to_string(finished).context("write JSON")?;
    line.push('\n');
    Ok(line)
}

fn insert(finished: &mut Vec<Finished>, new: Finished) {
    finished.retain(|old| (old.meeting, old.seed) != (new.meeting, new.seed));
    finished.push(new);
}

/// Reads lines. The last one may have been cut off when the machine went away, and is left out then.
fn read(text: &str) -> anyhow::Result<Vec<Finished>> {
    let mut finished = Vec::new();
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        if line.ends_with('\n') {
            let read = serde_json::from_str(line).with_context(|| format!("line {number}"))?;
            insert(&mut finished, read);
        }
    }
    Ok(finished)
}

/// Writes the file anew, without a half line at its end.
fn rewrite(path: &Path, finished: &[Finished]) -> anyhow::Result<()> {
    let lines: String = finished.iter().map(line).collect::<Result<_, _>>()?;
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, lines).with_context(|| format!("write {}", fresh.display()))?;
    std::fs::rename(&fresh, path).with_context(|| format!("rename to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(pair: &str, seed: u64, runs: u32) -> Finished {
        Finished {
            runs,
            flows: 500,
            seconds: 20.5,
            ..Finished::none(pair.parse().unwrap(), seed)
        }
    }

    fn pair(text: &str) -> Meeting {
        text.parse().unwrap()
    }

    #[test]
    fn an_interrupted_command_goes_on_where_it_was() {
        let path = std::env::temp_dir().join(format!("pairs-{}.json", std::process::id()));
        let mut state = State::open(Some(path.clone())).unwrap();
        assert_eq!(state.seed(), None);
        state.add(finished("rollout,join", 7, 2)).unwrap();
        state.add(finished("rollout,rehash", 7, 2)).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"pair\":\"join,reha").unwrap();

        let mut state = State::open(Some(path.clone())).unwrap();
        assert_eq!(state.seed(), Some(7));
        assert!(state.has(pair("rollout,join"), 7, 2));
        assert!(!state.has(pair("rollout,join"), 7, 3), "more runs");
        assert!(!state.has(pair("rollout,join"), 8, 1), "another seed");
        assert!(!state.has(pair("join,rehash"), 7, 1));
        state.add(finished("join,rehash", 7, 2)).unwrap();
        let all = State::open(Some(path.clone())).unwrap().of_seed(7);
        std::fs::remove_file(path).unwrap();
        let pairs: Vec<String> = all
            .iter()
            .map(|finished| finished.meeting.to_string())
            .collect();
        assert_eq!(pairs, ["rollout,join", "rollout,rehash", "join,rehash"]);
    }

    #[test]
    fn a_pair_that_could_not_be_run_is_run_again_and_its_result_replaced() {
        let mut failed = finished("rollout,join", 7, 1);
        failed.error = Some("no kernel".to_owned());
        let mut state = State::default();
        state.add(failed).unwrap();
        assert!(!state.has(pair("rollout,join"), 7, 1));
        state.add(finished("rollout,join", 7, 1)).unwrap();
        assert_eq!(state.of_seed(7), [finished("rollout,join", 7, 1)]);
    }

    #[test]
    fn a_line_of_an_earlier_build_is_read() {
        let line = concat!(
            r#"{"pair":"rollout,join","seed":7,"runs":2,"flows":500,"died":0,"broken":0,"longest_wait_ms":0,"#,
            r#""seconds":20.5,"breaks":[],"error":null}"#,
            "\n"
        );
        assert_eq!(read(line).unwrap(), [finished("rollout,join", 7, 2)]);
    }

    #[test]
    fn a_line_that_is_not_ours_is_named() {
        let error = read("{}\n").unwrap_err();
        assert_eq!(error.to_string(), "line 1");
    }
}
