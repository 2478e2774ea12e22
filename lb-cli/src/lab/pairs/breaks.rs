//! Which flows are broken, and what happened just before. Pure.
//!
//! A break is a reset, or silence beyond what is promised, while the flow's pod lived; a balancer can be reached at any time,
//! as no meeting takes all of them away. Flows of a pod whose machine has lost power may die.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::flows::{Ended, Failure, Kind};
use crate::lab::load::Way;
use crate::lab::sessions::{End, Report};

/// What is told of the time before a break.
const BEFORE: Duration = Duration::from_secs(1);
/// Breaks of a run that are kept; all are counted.
const BREAKS_MAX: usize = 20;

/// A broken flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Break {
    /// `busy TCP`, `quiet TCP`, `UDP`, `short TCP`.
    pub(crate) kind: String,
    /// The client's address and port.
    pub(crate) from: SocketAddr,
    /// VIP and port.
    pub(crate) to: SocketAddr,
    /// Name of its pod; none if it never got one.
    pub(crate) pod: Option<String>,
    /// How it broke.
    pub(crate) how: String,
    /// When it asked what was not answered, in milliseconds from the start of the run.
    pub(crate) asked_ms: u64,
    /// When it broke.
    pub(crate) broke_ms: u64,
    /// What happened in the second before it broke; if it was silent, in the second before it asked and the one after.
    pub(crate) before: Vec<String>,
}

/// What was done, and when.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    start: Instant,
    entries: Vec<(Instant, String)>,
    /// A machine with pods lost power.
    pub(super) crash: Option<Instant>,
}

impl Journal {
    /// Nothing was done yet.
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            entries: Vec::new(),
            crash: None,
        }
    }

    /// Notes what is done now.
    pub(super) fn note(&mut self, now: Instant, what: String) {
        self.entries.push((now, what));
    }

    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis() as u64
    }

    fn between(&self, from: Instant, to: Instant) -> Vec<String> {
        let entries = self.entries.iter();
        let entries = entries.filter(|(at, _)| (from..=to).contains(at));
        entries
            .map(|(at, what)| format!("{} ms: {what}", self.ms(*at)))
            .collect()
    }

    /// What happened before a flow broke that had asked at `asked`.
    fn before(&self, asked: Instant, broke: Instant) -> Vec<String> {
        let second_before = |at: Instant| at.checked_sub(BEFORE).unwrap_or(self.start);
        // A reset answers what was sent last; silence begins with the question.
        if broke.saturating_duration_since(asked) <= BEFORE {
            self.between(second_before(broke), broke)
        } else {
            self.between(second_before(asked), asked + BEFORE)
        }
    }
}

/// How many flows broke, and the first of them. `name_of` knows pods by their UIDs.
pub(super) fn of(
    ended: &Ended,
    journal: &Journal,
    name_of: impl Fn(&str) -> String,
) -> (u64, Vec<Break>) {
    let make = |kind: Kind, way: Way, pod: Option<String>, how: &str, asked, broke| Break {
        kind: kind.name().to_owned(),
        from: way.from,
        to: way.to,
        pod,
        how: how.to_owned(),
        asked_ms: journal.ms(asked),
        broke_ms: journal.ms(broke),
        before: journal.before(asked, broke),
    };
    let mut breaks = Vec::new();
    for (kind, report) in &ended.long {
        let Report {
            way,
            pod,
            asked,
            ended,
            end,
            ..
        } = report;
        match end {
            End::Broken(how) => {
                breaks.push(make(*kind, *way, Some(name_of(pod)), how, *asked, *ended));
            }
            End::Alive | End::PodDied => {}
        }
    }
    let kept = ended.short.failures.len() as u64;
    for failure in &ended.short.failures {
        if !may_fail(failure, journal.crash) {
            let Failure {
                way,
                begun,
                ended,
                how,
                ..
            } = failure;
            breaks.push(make(Kind::Short, *way, None, how, *begun, *ended));
        }
    }
    let count = breaks.len() as u64 + (ended.short.failed - kept);
    breaks.sort_by_key(|found| found.broke_ms);
    breaks.truncate(BREAKS_MAX);
    (count, breaks)
}

/// Was open when a machine lost power, so that its pod, which has not said its name, may have died.
fn may_fail(failure: &Failure, crash: Option<Instant>) -> bool {
    match (failure.open, crash) {
        (Some(open), Some(crash)) => open <= crash && crash <= failure.ended,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::flows::Short;
    use super::*;
    use crate::lab::load::Protocol;

    fn way() -> Way {
        Way {
            protocol: Protocol::Tcp,
            from: "10.50.1.10:1024".parse().unwrap(),
            to: "203.0.113.10:80".parse().unwrap(),
        }
    }

    fn report(start: Instant, asked_ms: u64, ended_ms: u64, end: End) -> Report {
        Report {
            way: way(),
            pod: "u-1".to_owned(),
            pod_name: String::new(),
            answers: 1,
            lost: 0,
            longest_wait: Duration::ZERO,
            asked: start + Duration::from_millis(asked_ms),
            ended: start + Duration::from_millis(ended_ms),
            end,
        }
    }

    fn found(journal: &Journal, reports: Vec<Report>) -> (u64, Vec<Break>) {
        let ended = Ended {
            long: reports.into_iter().map(|it| (Kind::Quiet, it)).collect(),
            short: Short::default(),
        };
        of(&ended, journal, |uid| format!("pod of {uid}"))
    }

    fn journal(start: Instant, entries: &[(u64, &str)]) -> Journal {
        let mut journal = Journal::new(start);
        for (at_ms, what) in entries {
            journal.note(start + Duration::from_millis(*at_ms), (*what).to_owned());
        }
        journal
    }

    #[test]
    fn a_reset_is_told_with_the_second_before_it() {
        let start = Instant::now();
        let journal = journal(
            start,
            &[(500, "a"), (1_900, "b"), (2_600, "c"), (2_800, "d")],
        );
        let broken = report(start, 2_690, 2_700, End::Broken("reset".to_owned()));
        let expected = Break {
            kind: "quiet TCP".to_owned(),
            from: way().from,
            to: way().to,
            pod: Some("pod of u-1".to_owned()),
            how: "reset".to_owned(),
            asked_ms: 2_690,
            broke_ms: 2_700,
            before: vec!["1900 ms: b".to_owned(), "2600 ms: c".to_owned()],
        };
        assert_eq!(found(&journal, vec![broken]), (1, vec![expected]));
    }

    #[test]
    fn silence_is_told_with_what_happened_around_the_question() {
        let start = Instant::now();
        let journal = journal(
            start,
            &[(500, "a"), (1_500, "b"), (2_600, "c"), (31_900, "d")],
        );
        let broken = report(start, 2_000, 32_000, End::Broken("silent".to_owned()));
        let (_, breaks) = found(&journal, vec![broken]);
        assert_eq!(breaks[0].before, ["1500 ms: b", "2600 ms: c"]);
    }

    #[test]
    fn flows_of_dead_pods_and_living_flows_are_no_breaks() {
        let start = Instant::now();
        let reports = vec![
            report(start, 0, 10, End::Alive),
            report(start, 0, 10, End::PodDied),
        ];
        assert_eq!(found(&Journal::new(start), reports), (0, vec![]));
    }

    #[test]
    fn a_short_flow_may_fail_only_if_its_pod_may_have_died() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let failure = |open: Option<u64>| Failure {
            way: way(),
            begun: at(90),
            open: open.map(at),
            ended: at(30_090),
            how: "silent".to_owned(),
        };
        let crash = Some(at(100));
        assert!(may_fail(&failure(Some(95)), crash));
        assert!(
            !may_fail(&failure(Some(1_100)), crash),
            "a living pod had it"
        );
        assert!(!may_fail(&failure(None), crash), "no pod got it in 30 s");
        assert!(!may_fail(&failure(Some(95)), None));
    }

    #[test]
    fn failures_that_were_not_kept_count() {
        let start = Instant::now();
        let ended = Ended {
            long: Vec::new(),
            short: Short {
                begun: 9,
                failed: 3,
                failures: Vec::new(),
            },
        };
        let (count, breaks) = of(&ended, &Journal::new(start), str::to_owned);
        assert_eq!((count, breaks.len()), (3, 0));
    }
}
