//! What a manager hears and says, and what a node that joins is given.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::lab::{Lab, PATIENCE, times, until, writer};
use crate::admin;
use crate::api::node_drain::Phase;
use crate::api::service_table::ServiceTableSpec;
use crate::handoff::HANDOFF_PORT;
use crate::handoff::counts::{Cause, Tally};
use crate::handoff::dial::Dialler;
use crate::handoff::joiner::{COPIED_MAX, CopyClient, CopyError};
use crate::handoff::manager::{ControlClient, HEARD_MAX, Heard, News};
use crate::handoff::message::{Drained, Instruction, Report};
use crate::handoff::peer::Stranger;
use crate::handoff::reload::Tls;
use crate::model::pins::{Incarnation, Position, Receiver, Seq};

fn position(seq: u64) -> Position {
    Position {
        incarnation: Incarnation(7),
        seq: Seq(seq),
    }
}

fn greeting(node: &str) -> Report {
    Report::Hello {
        node: node.into(),
        incarnation: Incarnation(7),
        role: admin::Role::Both,
        ready: true,
    }
}

fn manager(tls: Tls) -> (ControlClient, mpsc::Receiver<Heard>) {
    let (core, heard) = mpsc::channel(HEARD_MAX);
    let client = ControlClient {
        dialler: Dialler {
            from: None,
            port: HANDOFF_PORT,
            tls: watch::channel(tls).1,
            times: times(),
        },
        core,
        tally: Tally::default(),
    };
    (client, heard)
}

async fn hear(heard: &mut mpsc::Receiver<Heard>) -> News {
    let heard = tokio::time::timeout(PATIENCE, heard.recv());
    heard.await.expect("something is heard").unwrap().news
}

async fn hear_report(heard: &mut mpsc::Receiver<Heard>) -> Report {
    match hear(heard).await {
        News::Report(report) => report,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn reports_and_instructions_arrive_as_they_were_said() {
    let lab = Lab::new(&["b"]);
    let mut b = lab.balancer("b");
    let applied = |version| Report::Applied {
        service_uid: "uid".into(),
        version,
        digest: "4f".into(),
    };
    // More than a queue holds.
    let first: Vec<_> = std::iter::once(greeting("b"))
        .chain((0..5000).map(applied))
        .collect();
    b.look(|kept| kept.first.clone_from(&first));
    let (client, mut heard) = manager(lab.manager());
    let (_agents, told) = watch::channel(lab.others(&["b"]));
    let stop = CancellationToken::new();
    let running = tokio::spawn(client.run(told, stop.clone()));

    let News::Up { instructions } = hear(&mut heard).await else {
        panic!("not up");
    };
    for expected in &first {
        assert_eq!(&hear_report(&mut heard).await, expected);
    }
    let later = [
        Report::RetireReady {
            id: 3,
            position: position(9),
        },
        Report::RetireRefused {
            id: 4,
            why: "no room".to_owned(),
        },
        Report::Drain(Drained {
            uid: "drain".into(),
            phase: Some(Phase::HandOff),
            handed_off: Some((position(9), 7)),
            fault: Some("no room".to_owned()),
            open: 8,
            quiet_for: Duration::from_millis(1500),
        }),
        Report::Pins {
            written: position(12),
            acknowledged: vec![("c".into(), position(11))],
        },
    ];
    for report in &later {
        b.look(|kept| {
            let manager = kept.managers.values().next().unwrap();
            manager.try_send(report.clone()).unwrap();
        });
        assert_eq!(&hear_report(&mut heard).await, report);
    }
    let table = ServiceTableSpec {
        service_uid: "uid".to_owned(),
        version: 5,
        ..table()
    };
    let said = [
        Instruction::Retire {
            id: 3,
            service_uid: "uid".into(),
            base_version: 4,
            table: Box::new(table),
        },
        Instruction::Cancel { id: 3 },
    ];
    for instruction in &said {
        instructions.try_send(instruction.clone()).unwrap();
    }
    until("instructions arrive", || {
        b.look(|kept| kept.instructions == said)
    })
    .await;

    // Another stream begins with everything again, and the queue of the former one has ended.
    b.cut().await;
    b.resume();
    assert!(matches!(hear(&mut heard).await, News::Down));
    assert!(matches!(hear(&mut heard).await, News::Up { .. }));
    assert_eq!(hear_report(&mut heard).await, greeting("b"));
    assert!(instructions.is_closed());
    stop.cancel();
    drop(heard);
    running.await.unwrap();
    b.end().await;
}

fn table() -> ServiceTableSpec {
    serde_json::from_str(r#"{"serviceUid": "", "version": 0, "vips": ["203.0.113.1"]}"#).unwrap()
}

#[tokio::test]
async fn a_core_that_can_not_report_lets_the_stream_go() {
    let lab = Lab::new(&["b"]);
    let b = lab.balancer("b");
    b.look(|kept| kept.first = vec![greeting("b")]);
    let (client, mut heard) = manager(lab.manager());
    let (_agents, told) = watch::channel(lab.others(&["b"]));
    let stop = CancellationToken::new();
    let running = tokio::spawn(client.run(told, stop.clone()));
    assert!(matches!(hear(&mut heard).await, News::Up { .. }));
    assert_eq!(hear_report(&mut heard).await, greeting("b"));
    b.look(|kept| kept.managers.clear());
    assert!(matches!(hear(&mut heard).await, News::Down));
    assert!(matches!(hear(&mut heard).await, News::Up { .. }));
    stop.cancel();
    running.await.unwrap();
    b.end().await;
}

#[tokio::test]
async fn only_a_manager_may_instruct() {
    let lab = Lab::new(&["a", "b"]);
    let b = lab.balancer("b");
    let (client, heard) = manager(lab.agent());
    let (_agents, told) = watch::channel(lab.others(&["b"]));
    let stop = CancellationToken::new();
    let running = tokio::spawn(client.run(told, stop.clone()));
    until("an agent is refused", || {
        b.refused(Cause::Stranger(Stranger::NoManager)) > 1
    })
    .await;
    assert!(heard.is_empty());
    stop.cancel();
    running.await.unwrap();
    b.end().await;
}

#[tokio::test]
async fn a_node_that_joins_gets_the_pins_of_all_writers() {
    let lab = Lab::new(&["a", "b", "c", "j"]);
    let b = lab.balancer("b");
    let owners = [
        lab.owner("a", writer(7), &["b"]),
        lab.owner("c", writer(9), &["b"]),
    ];
    owners[0].pin(0..2500);
    owners[1].pin(2000..2010);
    for owner in &owners {
        owner.settled(&["b"]).await;
    }
    let joiner = CopyClient {
        node: "j".into(),
        dialler: lab.dialler("j", watch::channel(lab.agent()).1),
    };
    let mut receiver = Receiver::default();
    let (core, mut told) = mpsc::channel(COPIED_MAX);
    let take = async {
        while let Some((writer, message)) = told.recv().await {
            assert_eq!(receiver.take(&writer, message).refused, None);
        }
    };
    let addresses = lab.net.addresses("b");
    let (writers, ()) = tokio::join!(joiner.run("b", addresses, core), take);
    assert_eq!(writers.unwrap(), 2);
    for (name, owner) in ["a", "c"].into_iter().zip(&owners) {
        assert_eq!(receiver.pins_of(name), owner.pins());
        let position = b.look(|kept| kept.receiver.position(name));
        assert_eq!(receiver.position(name), position);
    }

    b.look(|kept| kept.is_ready = false);
    let (core, _told) = mpsc::channel(COPIED_MAX);
    let refused = joiner.run("b", addresses, core).await.unwrap_err();
    assert!(matches!(refused, CopyError::Call(_)));
    assert_eq!(
        refused.to_string(),
        "the copy has ended early: this balancer is not ready itself"
    );
    for owner in owners {
        owner.end().await;
    }
    b.end().await;
}

#[tokio::test]
async fn a_node_that_is_not_known_gets_no_copy() {
    let lab = Lab::new(&["b"]);
    let b = lab.balancer("b");
    let joiner = CopyClient {
        node: "j".into(),
        dialler: lab.dialler("j", watch::channel(lab.agent()).1),
    };
    let (core, _told) = mpsc::channel(COPIED_MAX);
    let copy = async || {
        loop {
            // Its server may not listen yet.
            match joiner.run("b", lab.net.addresses("b"), core.clone()).await {
                Err(CopyError::Dial(_)) => tokio::time::sleep(Duration::from_millis(2)).await,
                other => return other,
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, copy()).await.unwrap();
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the copy has ended early: there is no node of that name"
    );
    assert_eq!(b.refused(Cause::Stranger(Stranger::UnknownNode)), 1);
    b.end().await;
}
