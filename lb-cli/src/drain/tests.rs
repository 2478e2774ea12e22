use lb_controller::api::node_drain::{
    Connections, Finding, NodeDrainStatus, Phase, Receiver, condition,
};
use lb_controller::source::output::Outputs;

use super::*;
use crate::output::Paint;

fn status(phase: Phase) -> NodeDrainStatus {
    NodeDrainStatus {
        phase,
        since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        ..NodeDrainStatus::default()
    }
}

fn condition(kind: &str, status: &str) -> serde_json::Value {
    serde_json::json!({
        "type": kind, "status": status, "reason": "Drained", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn with_conditions(phase: Phase, conditions: &[(&str, &str)]) -> NodeDrainStatus {
    let conditions = conditions.iter().map(|(kind, is)| condition(kind, is));
    NodeDrainStatus {
        conditions: serde_json::from_value(conditions.collect()).unwrap(),
        ..status(phase)
    }
}

fn drain(spec: NodeDrainSpec, status: Option<NodeDrainStatus>) -> NodeDrain {
    let mut drain = NodeDrain::new("node-1", spec);
    drain.status = status;
    drain
}

#[test]
fn durations_are_read_as_people_write_them_within_what_the_schema_allows() {
    assert_eq!(wish::timeout("90s"), Ok(90));
    assert_eq!(wish::timeout("10m"), Ok(600));
    assert_eq!(wish::timeout("2h"), Ok(7200));
    assert_eq!(wish::convergence("0s"), Ok(0));
    for wrong in ["soon", "-5s", "0s", "500ms", "8d", "2000h"] {
        assert!(wish::timeout(wrong).is_err(), "{wrong}");
    }
    assert_eq!(
        wish::convergence("61m").unwrap_err(),
        "it must be from 0s to an hour"
    );
}

#[test]
fn a_name_that_would_leave_the_directory_is_no_node() {
    assert_eq!(
        wish::node("node-1.example"),
        Ok("node-1.example".to_owned())
    );
    for wrong in ["", "../etc", "a/b", ".hidden", "Node", "a-"] {
        assert!(wish::node(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn the_same_wish_is_found_again_and_another_one_is_refused_with_what_to_do() {
    let wish = NodeDrainSpec {
        requested_by: Some("me".to_owned()),
        ..NodeDrainSpec::default()
    };
    let step = |there: &NodeDrain, wish: &NodeDrainSpec| wish::step("node-1", wish, Some(there));
    assert_eq!(wish::step("node-1", &wish, None), Step::Create);
    let others = NodeDrainSpec {
        requested_by: Some("you".to_owned()),
        ..NodeDrainSpec::default()
    };
    let there = drain(others.clone(), Some(status(Phase::HandOff)));
    assert_eq!(step(&there, &wish), Step::Attach);
    assert_eq!(step(&drain(others.clone(), None), &wish), Step::Attach);
    let labelled = NodeDrainSpec {
        trigger: Trigger::ExcludeLabel,
        ..others.clone()
    };
    let labelled = drain(labelled, Some(status(Phase::Exclude)));
    assert_eq!(step(&labelled, &wish), Step::Attach);
    let forced = NodeDrainSpec {
        force: true,
        timeout_seconds: Some(60),
        ..wish.clone()
    };
    assert_eq!(
        step(&there, &forced),
        Step::Refuse(
            "node-1 is being drained with other options (none; HandOff, asked for by you); wait for it with those, or first `lbctl \
             undrain node-1`"
                .to_owned()
        )
    );
    let Step::Refuse(sentence) = step(&drain(forced, Some(status(Phase::Drained))), &wish) else {
        panic!("other options");
    };
    assert!(
        sentence.contains("(--force --timeout 60s; Drained"),
        "{sentence}"
    );
    let dry = NodeDrainSpec {
        dry_run: true,
        ..wish.clone()
    };
    let Step::Refuse(sentence) = step(&labelled, &dry) else {
        panic!("it is being drained");
    };
    assert!(
        sentence.contains("already") && sentence.contains("`kubectl label node node-1 node."),
        "{sentence}"
    );
    for over in [
        drain(others, Some(status(Phase::Failed))),
        drain(dry.clone(), Some(status(Phase::Preflight))),
    ] {
        assert_eq!(step(&over, &wish), Step::Replace);
        assert_eq!(step(&over, &dry), Step::Replace);
    }
}

#[test]
fn what_a_trigger_asks_for_is_taken_back_there() {
    assert_eq!(wish::kept("n", Trigger::Command), None);
    let label = wish::kept("n", Trigger::ExcludeLabel).unwrap();
    assert!(
        label.ends_with(
            "`kubectl label node n node.kubernetes.io/exclude-from-external-load-balancers-`"
        ),
        "{label}"
    );
    let taint = wish::kept("n", Trigger::AutoscalerTaint).unwrap();
    assert!(
        taint.ends_with("`kubectl taint node n ToBeDeletedByClusterAutoscaler-`"),
        "{taint}"
    );
    assert!(wish::kept("n", Trigger::Shutdown).is_some());
}

#[test]
fn what_is_shown_while_a_drain_lasts() {
    let receiver = |behind| Receiver {
        node: "lb-2".to_owned(),
        behind,
        heard: true,
    };
    let status = NodeDrainStatus {
        connections: Connections {
            handed_off: 1204,
            open: 311,
        },
        balancers: vec![receiver(Some(0)), receiver(Some(3)), receiver(None)],
        waits_for: vec!["lb-2 to acknowledge its connections".to_owned()],
        ..status(Phase::HandOff)
    };
    assert_eq!(
        said::line(&status),
        "HandOff: 1204 connections handed off, acknowledged by 1 of 3 (lb-2 lacks 3), 311 open; waits for lb-2 to acknowledge its connections"
    );
    assert_eq!(said::line(&self::status(Phase::Exclude)), "Exclude");
    let many = (1..=5).map(|behind| Receiver {
        node: format!("lb-{behind}"),
        ..receiver(Some(behind))
    });
    let many = NodeDrainStatus {
        balancers: many.collect(),
        ..self::status(Phase::HandOff)
    };
    assert!(
        said::line(&many).contains("of 5 (lb-5 lacks 5, lb-4 lacks 4, lb-3 lacks 3, 2 more), 0"),
        "{}",
        said::line(&many)
    );
}

#[test]
fn only_what_was_waited_for_and_is_true_is_well() {
    let safe = with_conditions(Phase::Drained, &[(condition::SAFE_TO_REBOOT, "True")]);
    let unsafe_ = with_conditions(Phase::Drained, &[(condition::SAFE_TO_REBOOT, "False")]);
    let left = with_conditions(Phase::Drained, &[(condition::BALANCER_DRAINED, "True")]);
    let whole = NodeDrainSpec::default();
    let balancer = NodeDrainSpec {
        balancer_only: true,
        ..whole.clone()
    };
    let dry = NodeDrainSpec {
        dry_run: true,
        ..whole.clone()
    };
    let blocked = |blocks| NodeDrainStatus {
        findings: vec![Finding {
            blocks,
            message: String::new(),
        }],
        ..status(Phase::Preflight)
    };
    let failed = status(Phase::Failed);
    for (spec, status, until, outcome) in [
        (&whole, &safe, Until::Done, Outcome::Well),
        (&whole, &unsafe_, Until::Done, Outcome::Unwell),
        (&whole, &left, Until::Done, Outcome::Unwell),
        (&balancer, &left, Until::Done, Outcome::Well),
        (&balancer, &unsafe_, Until::Done, Outcome::Unwell),
        (&whole, &failed, Until::Done, Outcome::Unwell),
        (&whole, &failed, Until::Answered, Outcome::Unwell),
        (&whole, &blocked(true), Until::Answered, Outcome::Well),
        (&dry, &blocked(false), Until::Answered, Outcome::Well),
        (&dry, &blocked(true), Until::Answered, Outcome::Unwell),
    ] {
        assert_eq!(wish::outcome(spec, status, until), outcome, "{status:?}");
    }
}

#[test]
fn machines_read_names_that_stay() {
    let spec = NodeDrainSpec::default();
    let mut status = with_conditions(Phase::Drained, &[(condition::SAFE_TO_REBOOT, "True")]);
    status.connections.handed_off = 7;
    let summary = Summary::of("node-1", &spec, &status, Duration::from_millis(61_500));
    assert_eq!(
        serde_json::to_value(&summary).unwrap(),
        serde_json::json!({
            "node": "node-1", "phase": "Drained", "dry_run": false, "safe_to_reboot": true, "balancer_drained": false,
            "connections": {"handed_off": 7, "open": 0}, "balancers": [], "findings": [], "waits_for": [], "log": [],
            "duration_ms": 61_500,
        })
    );
    assert_eq!(
        said::text(&summary, Paint(false)),
        "node-1 is safe to reboot, after 1 m 1 s"
    );
}

/// A directory in which the test plays the manager.
#[tokio::test]
async fn a_directory_takes_wishes_tells_statuses_and_gives_them_back() {
    let root = tempfile::tempdir().unwrap();
    let outputs = Outputs::below(root.path());
    let nowhere = Cluster::default();
    let open = || Place::open(Some(root.path()), &nowhere);
    assert!(open().await.is_err(), "no manager has run there");
    outputs.create().unwrap();
    std::fs::write(outputs.nodes().join("node-1.yaml"), "").unwrap();
    let place = open().await.unwrap();
    let spec = NodeDrainSpec::default();
    let error = ask(&place, "node-7", &spec).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no node node-7 with an agent; there are: node-1"
    );
    let asked = ask(&place, "node-1", &spec).await.unwrap();
    let again = ask(&place, "node-1", &spec).await.unwrap();
    assert_eq!(again.metadata.uid, asked.metadata.uid);
    let told = |phase| {
        let told = NodeDrain {
            status: Some(status(phase)),
            ..asked.clone()
        };
        let text = serde_saphyr::to_string(&told).unwrap();
        std::fs::write(outputs.drains().join("node-1.yaml"), text).unwrap();
    };
    told(Phase::Drained);
    let there = place.get("node-1").await.unwrap().unwrap();
    assert_eq!(there.status, Some(status(Phase::Drained)));
    told(Phase::Failed);
    let anew = ask(&place, "node-1", &spec).await.unwrap();
    assert_ne!(anew.metadata.uid, asked.metadata.uid);
    let there = place.get("node-1").await.unwrap().unwrap();
    assert_eq!(there.status, None, "that was another drain");
    assert!(!place.delete(&asked).await.unwrap(), "it is gone already");
    assert!(place.delete(&anew).await.unwrap());
    assert_eq!(place.get("node-1").await.unwrap(), None);
    assert!(place.told("node-1").await.unwrap().is_some());
    let error = take_back(&place, "node-1").await.unwrap_err().to_string();
    assert!(error.contains("remove that"), "{error}");
}

#[tokio::test]
async fn a_file_that_somebody_else_wrote_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let outputs = Outputs::below(root.path());
    outputs.create().unwrap();
    std::fs::write(outputs.nodes().join("node-1.yaml"), "").unwrap();
    let foreign = root.path().join("nodedrain-node-1.yaml");
    let text = "kind: NodeDrain\n";
    std::fs::write(&foreign, text).unwrap();
    let place = Place::open(Some(root.path()), &Cluster::default()).await;
    let place = place.unwrap();
    let spec = NodeDrainSpec::default();
    let errors = [
        ask(&place, "node-1", &spec).await.unwrap_err(),
        place.create("node-1", &spec).await.unwrap_err(),
        take_back(&place, "node-1").await.unwrap_err(),
        place.delete(&drain(spec, None)).await.unwrap_err(),
    ];
    assert!(
        errors[0].to_string().contains("was not written by lbctl"),
        "{}",
        errors[0]
    );
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), text);
    let names = std::fs::read_dir(root.path()).unwrap();
    let mut names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".bowline", "nodedrain-node-1.yaml"]);
}
