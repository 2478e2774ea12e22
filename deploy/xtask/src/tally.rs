//! Counting what passed, failed and was skipped, from the output of test programs. Pure: lines in, counts out.

use std::fmt;

/// A test that cannot run here writes this to standard error, with the reason behind it, and returns.
pub(crate) const SKIPPED: &str = "skipped: ";

/// Counts of checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Checks that held.
    pub(crate) passed: u64,
    /// Checks that did not.
    pub(crate) failed: u64,
    /// Checks that could not run here, each with its reason.
    pub(crate) skips: Vec<String>,
}

impl Tally {
    /// One check.
    pub(crate) fn one(passed: bool) -> Self {
        Self {
            passed: u64::from(passed),
            failed: u64::from(!passed),
            skips: Vec::new(),
        }
    }

    /// One check that could not run.
    pub(crate) fn skip(reason: String) -> Self {
        Self {
            skips: vec![reason],
            ..Self::default()
        }
    }

    /// Adds another count to this one.
    pub(crate) fn add(&mut self, other: Self) {
        let Self {
            passed,
            failed,
            skips,
        } = other;
        self.passed += passed;
        self.failed += failed;
        self.skips.extend(skips);
    }
}

/// The line at the end of every test run.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skips,
        } = self;
        write!(
            f,
            "{passed} passed, {failed} failed, {} skipped",
            skips.len()
        )
    }
}

/// Reads the output of `cargo test … -- --show-output`.
///
/// What tests say that pass is shown by that option only so that skips can be counted; [`CargoTest::line`] answers
/// whether a person wants to see the line.
#[derive(Debug, Default)]
pub(crate) struct CargoTest {
    tally: Tally,
    /// Test programs that were started and have not given a result.
    open: u64,
    /// The test whose captured output is being read.
    test: String,
    /// Tests of this program that skipped themselves, which the harness will count as passed.
    skipped: u64,
    /// Inside the output of tests that passed.
    passing: bool,
}

/// Whether a line is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    Yes,
    No,
}

impl CargoTest {
    /// Takes the next line.
    pub(crate) fn line(&mut self, line: &str) -> Show {
        let line = line.trim();
        if line.starts_with("Running ") || line.starts_with("Doc-tests ") {
            self.open += 1;
        } else if line == "successes:" {
            self.passing = true;
        } else if line == "failures:" {
            self.passing = false;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.passing = false;
            self.open = self.open.saturating_sub(1);
            let skipped = std::mem::take(&mut self.skipped);
            self.tally.passed += number_before(result, "passed").saturating_sub(skipped);
            self.tally.failed += number_before(result, "failed");
        } else if let Some((test, reason)) = ignored(line) {
            self.tally.skips.push(format!("{test}: {reason}"));
        } else if self.passing {
            self.captured(line);
        }
        if self.passing { Show::No } else { Show::Yes }
    }

    /// A line that a passing test has written.
    fn captured(&mut self, line: &str) {
        if let Some(test) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            test.clone_into(&mut self.test);
        } else if let Some(reason) = line.strip_prefix(SKIPPED) {
            // One test is one skip, however often it says so.
            let test = std::mem::take(&mut self.test);
            if !test.is_empty() {
                self.tally.skips.push(format!("{test}: {reason}"));
                self.skipped += 1;
            }
        }
    }

    /// The counts, when the program has ended.
    pub(crate) fn finish(self, success: bool) -> Tally {
        let Self {
            mut tally, open, ..
        } = self;
        // A test program without a result crashed. No failed test and still no success: the tests did not build.
        if !success {
            tally.failed += open.max(u64::from(tally.failed == 0));
        }
        tally
    }
}

/// `12` in `ok. 12 passed; 0 failed`.
fn number_before(text: &str, word: &str) -> u64 {
    text.split([';', '.'])
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// Name and reason in `test module::name ... ignored, because`.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (test, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let reason = outcome.strip_prefix("ignored")?;
    let reason = reason.strip_prefix(", ").unwrap_or(reason);
    Some((
        test,
        if reason.is_empty() {
            "no reason given"
        } else {
            reason
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, success: bool) -> (Tally, Vec<&str>) {
        let mut reader = CargoTest::default();
        let shown = output
            .lines()
            .filter(|line| reader.line(line) == Show::Yes)
            .collect();
        (reader.finish(success), shown)
    }

    #[test]
    fn results_of_all_programs_are_added() {
        let (tally, _) = read(
            "     Running unittests src/lib.rs (target/debug/deps/a)\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
             \x20  Doc-tests a\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
            false,
        );
        assert_eq!(tally.to_string(), "4 passed, 2 failed, 0 skipped");
    }

    #[test]
    fn a_test_that_says_why_it_was_skipped_is_not_passed() {
        let (tally, shown) = read(
            "Running tests/kernel.rs\n\
             test one ... ok\n\
             test two ... ok\n\
             successes:\n\
             ---- one stdout ----\n\
             skipped: needs root\n\
             ---- two stdout ----\n\
             all is well\n\
             successes:\n\
             one\n\
             test result: ok. 2 passed; 0 failed; 0 ignored\n",
            true,
        );
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.skips, ["one: needs root"]);
        assert_eq!(shown.len(), 4, "{shown:?}");
    }

    #[test]
    fn an_ignored_test_is_skipped_with_its_reason() {
        let (tally, _) = read(
            "test slow::one ... ignored, takes an hour\ntest two ... ignored\n",
            true,
        );
        assert_eq!(
            tally.skips,
            ["slow::one: takes an hour", "two: no reason given"]
        );
    }

    #[test]
    fn a_program_that_crashes_is_a_failure() {
        let (tally, _) = read(
            "Running a\ntest result: FAILED. 0 passed; 1 failed;\nRunning b\nerror: test failed: signal 11\n",
            false,
        );
        assert_eq!(tally.failed, 2);
    }

    #[test]
    fn tests_that_do_not_build_are_a_failure() {
        let (tally, _) = read("error: could not compile `a`\n", false);
        assert_eq!(tally.to_string(), "0 passed, 1 failed, 0 skipped");
    }
}
