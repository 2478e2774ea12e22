//! What meetings have shown, for people and machines. Pure.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::breaks::Break;
use super::meeting::Meeting;
use super::state::{Finished, Found};
use crate::lab::Relay;
use crate::output::{Paint, lines, table};

/// The object that `-o json` prints. Fields are added, never renamed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    /// Repeats all of it.
    pub(super) seed: u64,
    /// Packets of unknown flows were passed on.
    pub(super) relay: bool,
    /// How long it took, without what was finished before.
    pub(super) seconds: f64,
    /// Meetings that were played, also before with the same file.
    pub(super) pairs: Vec<Finished>,
    /// Those that there was no time for.
    pub(super) left: usize,
    /// Promises that do not hold; empty: all is well.
    pub(super) not_held: Vec<String>,
}

impl Summary {
    /// Sums up.
    pub(super) fn of(
        seed: u64,
        relay: Relay,
        pairs: Vec<Finished>,
        left: usize,
        took: Duration,
    ) -> Self {
        let not_held = pairs.iter().flat_map(|finished| {
            let meeting = finished.meeting;
            let broken = match (&finished.error, relay, finished.broken) {
                (Some(error), _, _) => Some(format!("{meeting} can not be played: {error}")),
                (None, Relay::On, 0) => None,
                (None, Relay::On, broken) => Some(format!("{meeting}: {broken} connections broke")),
                (None, Relay::Off, 0) => Some(format!(
                    "{meeting}: without relays nothing broke: the run does not see what it should"
                )),
                (None, Relay::Off, _) => None,
            };
            let left = finished.left.iter();
            broken
                .into_iter()
                .chain(left.map(move |what| format!("{meeting}: {what}")))
        });
        Self {
            seed,
            relay: relay == Relay::On,
            seconds: took.as_secs_f64(),
            not_held: not_held.collect(),
            pairs,
            left,
        }
    }
}

/// The summary as a table, what broke after it.
pub(super) fn text(summary: &Summary, paint: Paint) -> String {
    let Summary {
        seed,
        relay,
        seconds,
        pairs,
        left,
        not_held,
    } = summary;
    let mut text = paint.bold(&format!("pairs with seed {seed} ({seconds:.0} s)"));
    let mut rows = table([
        "EVENTS",
        "RUNS",
        "FLOWS",
        "PODS DIED",
        "BROKEN",
        "LONGEST WAIT",
        "FORGOTTEN IN",
        "TOOK",
    ]);
    for finished in pairs {
        rows.add_row([
            finished.meeting.to_string(),
            finished.runs.to_string(),
            finished.flows.to_string(),
            finished.died.to_string(),
            finished.broken.to_string(),
            format!("{} ms", finished.longest_wait_ms),
            format!("{} ms", finished.floor_ms),
            format!("{:.0} s", finished.seconds),
        ]);
    }
    let _ = write!(text, "\n{}", lines(&rows).trim_end());
    if *left > 0 {
        let _ = write!(text, "\n{left} were left out for want of time");
    }
    // The control breaks hundreds, as it should.
    for finished in pairs.iter().filter(|_| *relay) {
        for Found { run, found } in &finished.breaks {
            let sentence = sentence(finished.meeting, *seed, *run, found);
            let _ = write!(text, "\n{}", paint.warn(&sentence));
        }
    }
    for sentence in not_held {
        let _ = write!(text, "\n{}", paint.bad(&format!("not held: {sentence}")));
    }
    if not_held.is_empty() {
        let well = if *relay {
            "every promise held"
        } else {
            "as it should be: without relays connections break"
        };
        let _ = write!(text, "\n{}", paint.good(well));
    }
    text
}

/// All there is to say about a break, and how to see it again.
pub(super) fn sentence(meeting: Meeting, seed: u64, run: u32, found: &Break) -> String {
    let Break {
        kind,
        from,
        to,
        pod,
        how,
        asked_ms,
        broke_ms,
        before,
    } = found;
    let pod = pod.as_deref().unwrap_or("no pod yet");
    let before = if before.is_empty() {
        "nothing".to_owned()
    } else {
        before.join("; ")
    };
    format!(
        "{meeting} (seed {seed}, run {}): {kind} flow {from} → {to} of {pod} broke at {broke_ms} ms, asked at {asked_ms} ms: \
         {how}; before: {before}",
        run + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken() -> Break {
        Break {
            kind: "UDP".to_owned(),
            from: "10.50.1.10:1024".parse().unwrap(),
            to: "203.0.113.10:53".parse().unwrap(),
            pod: Some("pod-1".to_owned()),
            how: "silent for 30 s".to_owned(),
            asked_ms: 2_000,
            broke_ms: 32_000,
            before: vec!["1990 ms: lb-1 loses power".to_owned()],
        }
    }

    #[test]
    fn a_break_is_told_in_full() {
        let pair = "rollout,balancer-kill".parse().unwrap();
        assert_eq!(
            sentence(pair, 7, 0, &broken()),
            "rollout,balancer-kill (seed 7, run 1): UDP flow 10.50.1.10:1024 → 203.0.113.10:53 of pod-1 broke at 32000 ms, \
             asked at 2000 ms: silent for 30 s; before: 1990 ms: lb-1 loses power"
        );
    }

    #[test]
    fn what_broke_or_could_not_be_played_is_not_held() {
        let finished = |pair: &str| Finished::none(pair.parse().unwrap(), 7);
        let mut bad = finished("rollout,join");
        bad.broken = 2;
        let mut unplayed = finished("join,rehash");
        unplayed.error = Some("no kernel".to_owned());
        let mut leaking = finished("rollout,readiness,rehash");
        leaking.left = vec!["run 1: lb-1 holds 3 pins".to_owned()];
        let pairs = vec![finished("rollout,rehash"), bad, unplayed, leaking];
        let summary = Summary::of(7, Relay::On, pairs, 0, Duration::from_mins(1));
        assert_eq!(
            summary.not_held,
            [
                "rollout,join: 2 connections broke",
                "join,rehash can not be played: no kernel",
                "rollout,readiness,rehash: run 1: lb-1 holds 3 pins"
            ]
        );
        let text = text(&summary, Paint(false));
        assert!(!text.contains("every promise held"), "{text}");
    }

    #[test]
    fn the_control_must_break_something_in_every_pair() {
        let finished = |pair: &str, broken| Finished {
            broken,
            ..Finished::none(pair.parse().unwrap(), 7)
        };
        let pairs = vec![finished("rollout,rehash", 3), finished("join,rehash", 0)];
        let summary = Summary::of(7, Relay::Off, pairs, 0, Duration::from_mins(1));
        assert_eq!(
            summary.not_held,
            ["join,rehash: without relays nothing broke: the run does not see what it should"]
        );
    }
}
