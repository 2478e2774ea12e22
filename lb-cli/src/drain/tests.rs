use lb_controller::api::node_drain::{Connections, Finding, Receiver};

use super::*;

#[test]
fn durations_are_read_as_people_write_them() {
    assert_eq!(duration("90s"), Ok(90));
    assert_eq!(duration("10m"), Ok(600));
    assert_eq!(duration("2h"), Ok(7200));
    assert!(duration("soon").unwrap_err().contains("write 90s"));
    assert!(duration("-5s").is_err());
}

#[test]
fn what_is_shown_while_a_drain_lasts() {
    let receiver = |behind| Receiver {
        node: "lb-2".to_owned(),
        behind,
        heard: true,
    };
    let status = NodeDrainStatus {
        phase: Phase::HandOff,
        connections: Connections {
            handed_off: 1204,
            open: 311,
        },
        balancers: vec![receiver(Some(0)), receiver(Some(3)), receiver(None)],
        waits_for: vec!["lb-2 to acknowledge its connections".to_owned()],
        ..NodeDrainStatus::default()
    };
    assert_eq!(
        said::line(&status),
        "HandOff: 1204 connections handed off, acknowledged by 1 of 3, 311 open; waits for lb-2 to acknowledge its connections"
    );
}

#[test]
fn a_drain_that_was_given_up_and_a_dry_run_with_something_in_the_way_are_not_well() {
    let spec = NodeDrainSpec::default();
    let of = |phase, blocks| NodeDrainStatus {
        phase,
        findings: vec![Finding {
            blocks,
            message: String::new(),
        }],
        ..NodeDrainStatus::default()
    };
    assert_eq!(outcome(&spec, &of(Phase::Drained, true)), Outcome::Well);
    assert_eq!(outcome(&spec, &of(Phase::Failed, false)), Outcome::Unwell);
    let dry = NodeDrainSpec {
        dry_run: true,
        ..NodeDrainSpec::default()
    };
    assert_eq!(outcome(&dry, &of(Phase::Preflight, false)), Outcome::Well);
    assert_eq!(outcome(&dry, &of(Phase::Preflight, true)), Outcome::Unwell);
}

/// A directory in which the test plays the manager.
#[test]
fn a_directory_takes_wishes_tells_statuses_and_gives_them_back() {
    let root = std::env::temp_dir().join(format!("lbctl-drain-{}", std::process::id()));
    let outputs = lb_controller::source::output::Outputs::below(&root);
    assert!(Place::open(Some(&root), &Cluster::default()).is_err());
    outputs.create().unwrap();
    std::fs::write(outputs.nodes().join("node-1.yaml"), "").unwrap();
    let place = Place::open(Some(&root), &Cluster::default()).unwrap();
    assert_eq!(place.nodes().unwrap(), ["node-1".to_owned()].into());
    let spec = NodeDrainSpec::default();
    let asked = ask(&place, "node-1", &spec).unwrap();
    assert_eq!(
        ask(&place, "node-1", &spec).unwrap().metadata.uid,
        asked.metadata.uid
    );
    let other = NodeDrainSpec {
        force: true,
        ..spec.clone()
    };
    let error = ask(&place, "node-1", &other).unwrap_err().to_string();
    assert!(error.contains("lbctl undrain node-1"), "{error}");
    let told = |phase| {
        let mut drain = asked.clone();
        drain.status = Some(NodeDrainStatus {
            phase,
            ..NodeDrainStatus::default()
        });
        let text = serde_saphyr::to_string(&drain).unwrap();
        std::fs::write(outputs.drains().join("node-1.yaml"), text).unwrap();
    };
    told(Phase::Drained);
    assert_eq!(
        place.get("node-1").unwrap().unwrap().status.unwrap().phase,
        Phase::Drained
    );
    told(Phase::Failed);
    let anew = ask(&place, "node-1", &other).unwrap();
    assert_ne!(anew.metadata.uid, asked.metadata.uid);
    assert_eq!(place.get("node-1").unwrap().unwrap().status, None);
    place.delete("node-1").unwrap();
    assert_eq!(place.get("node-1").unwrap(), None);
    assert!(place.is_out("node-1").unwrap());
    std::fs::remove_dir_all(&root).unwrap();
}
