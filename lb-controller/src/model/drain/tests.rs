//! Drains, step by step.

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn receiver(node: &str, behind: Option<u64>, heard: bool) -> Receiver {
    Receiver {
        node: node.to_owned(),
        behind,
        heard,
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A node of which nothing is left to do in any phase.
fn done() -> Facts {
    Facts {
        agent: Some(Agent {
            applied: Some(Phase::Quiesce),
            handed_off: Some(7),
            fault: None,
            open: 0,
            quiet_for: Duration::from_hours(1),
        }),
        receivers: vec![receiver("lb-2", Some(0), true)],
        ..Facts::default()
    }
}

fn agent(change: impl FnOnce(&mut Agent)) -> Facts {
    let mut facts = done();
    change(facts.agent.as_mut().unwrap());
    facts
}

fn spec() -> NodeDrainSpec {
    NodeDrainSpec {
        requested_by: Some("ann".to_owned()),
        ..NodeDrainSpec::default()
    }
}

fn in_phase(phase: Phase, second: i64) -> NodeDrainStatus {
    NodeDrainStatus {
        phase,
        since: Some(at(second)),
        started_at: Some(at(0)),
        ..NodeDrainStatus::default()
    }
}

fn is_true(status: &NodeDrainStatus, kind: &str) -> bool {
    let mut all = status.conditions.iter();
    all.any(|one| one.type_ == kind && one.status == "True")
}

#[test]
fn a_drain_without_anything_to_wait_for_lasts_as_long_as_routers_take() {
    let spec = spec();
    let status = advance(&spec, &NodeDrainStatus::default(), &done(), at(0));
    assert_eq!(status.phase, Phase::Deprefer);
    assert_eq!(
        advance(&spec, &status, &done(), at(4)).phase,
        Phase::Deprefer
    );
    let status = advance(&spec, &status, &done(), at(5));
    assert_eq!(status.phase, Phase::Drained);
    assert!(is_true(&status, condition::SAFE_TO_REBOOT));
    assert!(is_true(&status, condition::BALANCER_DRAINED));
    let said: Vec<_> = status
        .log
        .iter()
        .map(|entry| entry.message.as_str())
        .collect();
    assert_eq!(
        said,
        [
            "asked for by ann",
            "Exclude",
            "HandOff",
            "7 connections are handed off to lb-2",
            "Deprefer",
            "Withdraw",
            "Quiesce",
            "Drained"
        ]
    );
}

#[test]
fn nothing_changes_when_nothing_happens() {
    let (spec, facts) = (spec(), agent(|agent| agent.open = 3));
    let status = advance(&spec, &in_phase(Phase::Quiesce, 0), &facts, at(9));
    assert_eq!(status.waits_for, ["its connections to end, or their pods"]);
    assert_eq!(advance(&spec, &status, &facts, at(99)), status);
}

#[test]
fn every_phase_waits_for_what_it_has_asked_for_and_says_so() {
    let with = |change: &dyn Fn(&mut Facts)| {
        let mut facts = done();
        change(&mut facts);
        facts
    };
    let cases: [(Phase, Facts, &str); 12] = [
        (
            Phase::Preflight,
            with(&|facts| facts.others_first = names(&["node-2"])),
            "node-2: as many nodes are being drained as may be at once",
        ),
        (
            Phase::Exclude,
            with(&|facts| facts.chosen = names(&["default/web"])),
            "other pods to take new connections of default/web",
        ),
        (
            Phase::Exclude,
            with(&|facts| facts.behind = names(&["lb-2"])),
            "lb-2 to apply the tables in which they do",
        ),
        (
            Phase::HandOff,
            with(&|facts| facts.agent = None),
            "its agent to be heard",
        ),
        (
            Phase::HandOff,
            agent(|agent| agent.handed_off = None),
            "its agent to have pinned all its connections",
        ),
        (
            Phase::HandOff,
            agent(|agent| agent.fault = Some("no room".to_owned())),
            "room to pin its connections: no room",
        ),
        (
            Phase::HandOff,
            with(&|facts| facts.receivers[0].behind = Some(2)),
            "lb-2 to acknowledge its connections",
        ),
        (
            Phase::HandOff,
            with(&|facts| facts.receivers[0] = receiver("lb-2", None, false)),
            "lb-2 to be heard again, which may know nothing of its connections",
        ),
        (
            Phase::HandOff,
            with(&|facts| facts.unsettled = names(&["node-3"])),
            "connections that node-3 handed off to be known everywhere",
        ),
        (
            Phase::Withdraw,
            agent(|agent| agent.applied = Some(Phase::Deprefer)),
            "its agent to carry Withdraw out",
        ),
        (
            Phase::Quiesce,
            agent(|agent| agent.quiet_for = Duration::from_secs(9)),
            "no packets of clients to arrive for 10 s",
        ),
        (
            Phase::Quiesce,
            with(&|facts| facts.named_in = names(&["default/web"])),
            "tables of default/web to name its pods no more",
        ),
    ];
    for (phase, facts, waits) in cases {
        let status = advance(&spec(), &in_phase(phase, 0), &facts, at(1));
        assert_eq!(
            (status.phase, status.waits_for),
            (phase, vec![waits.to_owned()])
        );
    }
}

#[test]
fn what_blocks_refuses_a_command_and_keeps_a_trigger_waiting() {
    let facts = Facts {
        findings: vec![Finding {
            blocks: true,
            message: "198.51.100.1 would have no announcer".to_owned(),
        }],
        ..done()
    };
    let none = NodeDrainStatus::default();
    let refused = advance(&spec(), &none, &facts, at(0));
    assert_eq!(refused.phase, Phase::Failed);
    assert!(
        refused.log[1]
            .message
            .starts_with("refused, and nothing was done: 198.51.100.1")
    );
    let triggered = NodeDrainSpec {
        trigger: Trigger::ExcludeLabel,
        ..spec()
    };
    assert_eq!(
        advance(&triggered, &none, &facts, at(0)).phase,
        Phase::Preflight
    );
    let forced = NodeDrainSpec {
        force: true,
        ..spec()
    };
    assert_eq!(
        advance(&forced, &none, &facts, at(0)).phase,
        Phase::Deprefer
    );
}

#[test]
fn a_dry_run_only_looks_even_if_forced() {
    let spec = NodeDrainSpec {
        dry_run: true,
        force: true,
        ..spec()
    };
    let status = advance(&spec, &NodeDrainStatus::default(), &done(), at(0));
    assert_eq!(
        (status.phase, status.since),
        (Phase::Preflight, Some(at(0)))
    );
}

#[test]
fn a_balancer_alone_hands_nothing_off_and_is_never_safe_to_reboot() {
    let spec = NodeDrainSpec {
        balancer_only: true,
        ..spec()
    };
    let facts = Facts {
        chosen: names(&["default/web"]),
        named_in: names(&["default/web"]),
        receivers: vec![receiver("lb-2", Some(5), true)],
        ..agent(|agent| {
            agent.handed_off = None;
            agent.open = 9;
        })
    };
    let status = advance(&spec, &NodeDrainStatus::default(), &facts, at(0));
    let status = advance(&spec, &status, &facts, at(5));
    assert_eq!(status.phase, Phase::Drained);
    assert!(is_true(&status, condition::BALANCER_DRAINED));
    assert!(
        status
            .conditions
            .iter()
            .all(|one| one.type_ != condition::SAFE_TO_REBOOT)
    );
}

#[test]
fn a_timeout_gives_the_node_back_and_says_what_was_waited_for() {
    let spec = NodeDrainSpec {
        timeout_seconds: Some(30),
        ..spec()
    };
    let facts = agent(|agent| agent.open = 1);
    let before = advance(&spec, &in_phase(Phase::Quiesce, 10), &facts, at(29));
    assert_eq!(before.phase, Phase::Quiesce);
    let after = advance(&spec, &before, &facts, at(30));
    assert_eq!(after.phase, Phase::Failed);
    assert!(after.phase.is_in_use());
    assert_eq!(
        after.log.last().unwrap().message,
        "given up after 30 s, in Quiesce, and put to use again; it waited for its connections to end, or their pods"
    );
    assert_eq!(advance(&spec, &after, &done(), at(31)), after);
    // One that has nothing left to wait for is done, however late.
    assert_eq!(
        advance(&spec, &before, &done(), at(30)).phase,
        Phase::Drained
    );
}

#[test]
fn force_passes_over_others_and_never_over_the_node_itself() {
    let spec = NodeDrainSpec {
        force: true,
        ..spec()
    };
    let facts = Facts {
        chosen: names(&["default/web"]),
        receivers: vec![receiver("lb-2", None, false)],
        ..agent(|agent| agent.open = 1)
    };
    let status = advance(&spec, &in_phase(Phase::Exclude, 0), &facts, at(1));
    assert_eq!(status.phase, Phase::Deprefer);
    let forced: Vec<_> = status
        .log
        .iter()
        .filter(|entry| entry.message.contains("forced"))
        .collect();
    assert_eq!(forced.len(), 2);
    let status = advance(&spec, &status, &facts, at(6));
    assert_eq!(status.phase, Phase::Quiesce);
    assert_eq!(
        advance(&spec, &status, &facts, at(600)).phase,
        Phase::Quiesce
    );
    // Without its agent nobody says what the node does: time has to do.
    let silent = Facts {
        agent: None,
        ..done()
    };
    let status = advance(&spec, &in_phase(Phase::HandOff, 0), &silent, at(1));
    assert_eq!(status.phase, Phase::Deprefer);
    assert_eq!(
        advance(&spec, &status, &silent, at(3)).phase,
        Phase::Deprefer
    );
    assert_eq!(
        advance(&spec, &status, &silent, at(6)).phase,
        Phase::Withdraw
    );
}

#[test]
fn the_time_of_a_condition_is_that_of_its_last_turn_and_the_log_is_short() {
    let facts = agent(|agent| agent.open = 1);
    let first = advance(&spec(), &in_phase(Phase::Quiesce, 0), &facts, at(1));
    let later = advance(&spec(), &first, &agent(|agent| agent.open = 2), at(9));
    assert_eq!(later.conditions[0].last_transition_time, Time(at(1)));
    let mut status = in_phase(Phase::Quiesce, 0);
    for second in 0..100 {
        log(&mut status, at(second), second.to_string());
    }
    assert_eq!(status.log.len(), LOG_MAX);
    assert_eq!(status.log.last().unwrap().message, "99");
}
