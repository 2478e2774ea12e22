//! From a writer to receivers, whatever happens on the way.

use tokio::sync::watch;

use super::certs::Authority;
use super::lab::{Balancer, Lab, Owner, credentials, until, writer};
use crate::handoff::counts::Cause;
use crate::handoff::message::Reason;
use crate::handoff::peer::Role;
use crate::model::pins::{Incarnation, Position, Seq};

#[tokio::test]
async fn pins_reach_every_balancer_and_are_acknowledged() {
    let lab = Lab::new(&["a", "b", "c"]);
    let (b, c) = (lab.balancer("b"), lab.balancer("c"));
    let a = lab.owner("a", writer(7), &["a", "b", "c"]);
    a.pin(0..2500);
    a.settled(&["b", "c"]).await;
    a.unpin(100..1200);
    a.settled(&["b", "c"]).await;
    for balancer in [&b, &c] {
        assert_eq!(balancer.pins("a"), a.pins());
        let position = balancer.look(|kept| kept.receiver.position("a"));
        let expected = Position {
            incarnation: Incarnation(7),
            seq: Seq(3600),
        };
        assert_eq!(position, Some(expected));
    }
    // A node is no balancer of its own by a stream.
    assert!(!a.tally.read().contains_key("a"));
    a.end().await;
    until("the end of the stream is told", || {
        b.look(|kept| kept.ended.iter().any(|writer| &**writer == "a"))
    })
    .await;
    b.end().await;
    c.end().await;
}

#[tokio::test]
async fn a_stream_that_was_cut_goes_on_from_what_was_acknowledged() {
    let lab = Lab::new(&["a", "b"]);
    let mut b = lab.balancer("b");
    let a = lab.owner("a", writer(7), &["b"]);
    a.pin(0..10);
    a.settled(&["b"]).await;
    for cut in 1..=3 {
        b.cut().await;
        a.pin(cut * 10..cut * 10 + 10);
        a.unpin(cut..cut + 1);
        b.resume();
        a.settled(&["b"]).await;
        assert_eq!(b.pins("a"), a.pins());
    }
    let counts = a.counts("b");
    assert_eq!((counts.connects, counts.snapshots), (4, 1));
    let last = b.look(|kept| kept.hellos.last().cloned()).unwrap();
    let acknowledged = last.acknowledged.unwrap();
    assert_eq!(acknowledged.seq, Seq(10 + 2 * 11));
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_balancer_that_is_too_far_behind_gets_a_snapshot() {
    let lab = Lab::new(&["a", "b"]);
    let mut b = lab.balancer("b");
    let a = lab.owner("a", writer(7).with_limits(1 << 16, 8), &["b"]);
    a.pin(0..5);
    a.settled(&["b"]).await;
    b.cut().await;
    let before = a.counts("b").snapshots;
    a.pin(5..3000);
    a.unpin(0..5);
    b.resume();
    a.settled(&["b"]).await;
    assert_eq!(a.counts("b").snapshots, before + 1);
    assert_eq!(b.pins("a"), a.pins());
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_new_start_of_an_agent_replaces_the_pins_of_the_last() {
    let lab = Lab::new(&["a", "b"]);
    let b = lab.balancer("b");
    let first = lab.owner("a", writer(7), &["b"]);
    first.pin(0..20);
    first.settled(&["b"]).await;
    first.end().await;
    let second = lab.owner("a", writer(8), &["b"]);
    second.pin(15..30);
    second.settled(&["b"]).await;
    assert_eq!(b.pins("a"), second.pins());
    second.end().await;
    b.end().await;
}

#[tokio::test]
async fn the_newer_of_two_streams_of_a_node_stays() {
    let lab = Lab::new(&["a", "b"]);
    let b = lab.balancer("b");
    let first = lab.owner("a", writer(7), &["b"]);
    first.pin(0..20);
    first.settled(&["b"]).await;
    // Its predecessor has not ended; it comes again, and is refused from here on.
    let second = lab.owner("a", writer(8), &["b"]);
    second.pin(15..30);
    second.settled(&["b"]).await;
    until("the former start is refused", || {
        b.refused(Cause::Refused(Reason::Stale)) > 1
    })
    .await;
    first.end().await;
    assert_eq!(b.tally.read().replaced, 1);
    assert_eq!(second.counts("b").connects, 1);
    assert_eq!(b.pins("a"), second.pins());
    second.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_full_balancer_says_so_and_takes_the_rest_when_there_is_room() {
    let lab = Lab::new(&["a", "b", "c"]);
    let b = Balancer::start(&lab, "b", watch::channel(lab.agent()).0, 30);
    let (a, c) = (
        lab.owner("a", writer(7), &["b"]),
        lab.owner("c", writer(7), &["b"]),
    );
    a.pin(0..20);
    c.pin(100..110);
    for owner in [&a, &c] {
        owner.settled(&["b"]).await;
    }
    a.pin(20..22);
    until("it is refused", || {
        a.counts("b").fault.as_deref()
            == Some(
                "the balancer refuses pins: 30 flows are pinned here, and there is room for no more",
            )
    })
    .await;
    assert!(b.refused(Cause::Refused(Reason::Full)) > 0);
    assert_eq!(b.pins("a").len(), 20);
    c.unpin(100..105);
    for owner in [&a, &c] {
        owner.settled(&["b"]).await;
    }
    assert_eq!((b.pins("a"), b.pins("c")), (a.pins(), c.pins()));
    a.end().await;
    c.end().await;
    b.end().await;
}

#[tokio::test]
async fn balancers_come_and_go() {
    let lab = Lab::new(&["a", "b", "c"]);
    let (b, c) = (lab.balancer("b"), lab.balancer("c"));
    let a = lab.owner("a", writer(7), &["b"]);
    a.pin(0..5);
    a.settled(&["b"]).await;
    a.balancers.send_replace(lab.others(&["c"]));
    a.settled(&["c"]).await;
    assert_eq!(c.pins("a"), a.pins());
    until("the stream to the other has ended", || {
        !a.tally.read().contains_key("b") && b.tally.read().streams == 0
    })
    .await;
    a.end().await;
    b.end().await;
    c.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_certificates_under_load_lose_no_record_and_no_stream() {
    let lab = Lab::new(&["a", "b", "c"]);
    let b = lab.balancer("b");
    let a = lab.owner("a", writer(7), &["b"]);
    a.pin(0..1000);
    a.settled(&["b"]).await;

    // Both sides believe both authorities, then only the next one.
    let next = Authority::new("next");
    let mut done = 1000;
    for authorities in [vec![&lab.authority, &next], vec![&next]] {
        for side in [&a.tls, &b.tls] {
            a.pin(done..done + 2000);
            done += 2000;
            let pair = next.issue(&["agent.bowline"]);
            side.send_replace(credentials(&authorities, Role::Agent, &pair));
            a.pin(done..done + 2000);
            done += 2000;
        }
    }
    a.settled(&["b"]).await;
    assert_eq!(b.pins("a"), a.pins());
    let counts = a.counts("b");
    assert_eq!(
        (counts.connects, counts.snapshots, counts.ended.len()),
        (1, 1, 0)
    );

    // New streams use what is there now: a former certificate is refused, and a new one is not.
    let former = lab.owner("c", writer(7), &["b"]);
    until("the former certificate is refused", || {
        b.refused(Cause::Handshake) > 0
    })
    .await;
    former.pin(0..3);
    let pair = next.issue(&["agent.bowline"]);
    former
        .tls
        .send_replace(credentials(&[&next], Role::Agent, &pair));
    former.settled(&["b"]).await;
    assert_eq!(b.pins("c"), former.pins());
    former.end().await;
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn keys_that_come_late_are_waited_for() {
    let lab = Lab::new(&["a", "b"]);
    let b = Balancer::start(
        &lab,
        "b",
        watch::channel(crate::handoff::reload::Tls::default()).0,
        100,
    );
    let (tls, _) = watch::channel(crate::handoff::reload::Tls::default());
    let a = Owner::start(&lab, "a", tls, writer(7), &["b"]);
    a.pin(0..3);
    until("there are no keys", || {
        a.counts("b").ended.contains_key(&Cause::NoCredentials)
    })
    .await;
    a.tls.send_replace(lab.agent());
    until("the balancer has none either", || {
        b.refused(Cause::NoCredentials) > 0
    })
    .await;
    b.tls.send_replace(lab.agent());
    a.settled(&["b"]).await;
    a.end().await;
    b.end().await;
}
