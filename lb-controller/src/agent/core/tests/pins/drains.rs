//! Drains: what an agent does for that of its own node and for those of others, and what it tells.

use super::*;
use crate::api::node_drain::Phase;
use crate::handoff::message::Drained;

impl Bench {
    /// The manager has written that the drain of a node stands there.
    fn drains(&mut self, node: &str, phase: Phase) {
        let text = format!(
            "apiVersion: bowline.dev/v1alpha1\nkind: NodeDrain\nmetadata: {{name: {node}, uid: drain of {node}}}\n\
             spec: {{}}\nstatus: {{phase: {phase:?}}}\n"
        );
        let path = self.dir.path().join(format!(".bowline/drains/{node}.yaml"));
        let batch = Files::from([(path, Content::Text(text))]);
        self.agent.take(&batch, self.now);
        self.run(1);
    }

    /// A manager hears.
    fn manager(&mut self) -> mpsc::Receiver<Report> {
        let (reports, told) = mpsc::channel(64);
        let (first, _greeted) = oneshot::channel();
        let arrival = Arrival::Manager {
            stream: 1,
            first,
            reports,
        };
        self.agent.take_arrival(arrival, self.now);
        told
    }

    /// Its flows are looked through: one, which is open.
    fn looked_through(&mut self) {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let drain = self.agent.sweep_wanted().drain;
        let found = FlowRecord {
            protocol: protocol::TCP,
            client: end("203.0.113.7:1000"),
            vip: end(&format!("{VIP}:80")),
            pod: end("10.1.2.1:8080"),
            identity: pod(2).identity(),
            stage: Stage::Known { client: 0, pod: 0 },
            idle_ticks: 0,
            is_reported: false,
        };
        let swept = Swept {
            found: drain.is_some().then_some(found).into_iter().collect(),
            drain,
            open: Some(1),
            ..Swept::default()
        };
        self.agent.take_swept(&swept, self.now);
        self.run(1);
    }
}

fn last(told: &mut mpsc::Receiver<Report>) -> (Option<Drained>, bool) {
    let (mut drained, mut pins) = (None, false);
    while let Ok(report) = told.try_recv() {
        match report {
            Report::Drain(report) => drained = Some(report),
            Report::Pins { .. } => pins = true,
            _ => {}
        }
    }
    (drained, pins)
}

#[test]
fn all_flows_of_a_node_that_is_drained_are_pinned_and_managers_are_told() {
    let mut bench = bench();
    let mut told = bench.manager();
    bench.drains("n1", Phase::Exclude);
    assert_eq!(bench.agent.sweep_wanted().drain, None);
    bench.looked_through();
    let (drained, pins) = last(&mut told);
    let drained = drained.unwrap();
    assert_eq!(
        (drained.phase, drained.handed_off, drained.open),
        (Some(Phase::Exclude), None, 1)
    );
    assert!(!pins, "nothing is handed off yet");

    bench.drains("n1", Phase::HandOff);
    assert_eq!(
        bench.agent.sweep_wanted().drain.as_deref(),
        Some("drain of n1")
    );
    bench.looked_through();
    assert_eq!(bench.pinned(&flow(1000)), [pod(2).identity()]);
    let (drained, pins) = last(&mut told);
    let drained = drained.unwrap();
    let written = bench.agent.pins.written().unwrap();
    assert_eq!(drained.handed_off, Some((written, 1)));
    assert_eq!(&*drained.uid, "drain of n1");
    assert!(pins);
    // Another manager knows nothing of it.
    let mut told = bench.manager();
    bench.run(1);
    assert!(last(&mut told).0.is_some());
}

#[test]
fn a_drain_that_was_given_up_and_one_of_another_node_pin_nothing() {
    let mut bench = bench();
    let mut told = bench.manager();
    bench.drains("n1", Phase::Failed);
    bench.drains("n2", Phase::HandOff);
    assert_eq!(bench.agent.sweep_wanted().drain, None);
    bench.looked_through();
    let (drained, pins) = last(&mut told);
    assert_eq!(drained, None);
    assert!(pins, "how far pins are is everybody's business");
    bench.drains("n2", Phase::Drained);
    last(&mut told);
    bench.run(2);
    assert_eq!(last(&mut told), (None, false));
}

#[test]
fn a_wish_of_a_user_is_nothing_that_an_agent_goes_by() {
    let mut bench = bench();
    let wish = "apiVersion: bowline.dev/v1alpha1\nkind: NodeDrain\nmetadata: {name: n1, uid: wish}\nspec: {}\nstatus: {phase: HandOff}\n";
    let path = bench.dir.path().join("drain.yaml");
    let batch = Files::from([(path, Content::Text(wish.to_owned()))]);
    bench.agent.take(&batch, bench.now);
    bench.run(1);
    assert_eq!(bench.agent.sweep_wanted().drain, None);
}

#[test]
fn a_node_without_room_for_pins_says_so() {
    let mut bench = bench();
    let mut told = bench.manager();
    bench.drains("n1", Phase::HandOff);
    let outbox = bench.agent.pins.outbox.clone().unwrap();
    outbox.with(|writer| *writer = writer.clone().with_limits(0, 16));
    bench.looked_through();
    let drained = last(&mut told).0.unwrap();
    assert_eq!(drained.handed_off, None);
    assert!(drained.fault.is_some());
}
