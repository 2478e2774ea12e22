//! Pins: what reports, sweeps, other nodes and managers make of the maps, and what is answered when.

use lb_ebpf::abi::{Event, service_flag};
use lb_ebpf::wire::{Be16, Ports, protocol};
use tokio::sync::{mpsc, oneshot};

use std::net::SocketAddr;

use super::*;
use crate::agent::core::pins::Swept;
use crate::dataplane::flows::{FlowRecord, Stage};
use crate::handoff::convert::Answer;
use crate::handoff::message::{Hello, Instruction, Reason, Report};
use crate::handoff::server::Arrival;
use crate::model::pins::{Batch, FlowKey, Incarnation, Message, PinnedPod, Position, Seq, Writer};
use crate::model::plan::mapped;
use crate::source::directory::Batch as Files;

mod drains;
mod streams;

const VIP: &str = "192.0.2.1";
const NOBODY: [u32; 0] = [];

/// A client's flow to the VIP.
fn flow(client: u16) -> FlowKey {
    let client = format!("203.0.113.7:{client}").parse().unwrap();
    FlowKey::new(protocol::TCP, client, format!("{VIP}:80").parse().unwrap()).unwrap()
}

/// A pod; even ones are on node n1, whose agent is tested.
fn pod(n: u32) -> PinnedPod {
    PinnedPod {
        uid: format!("u{n}").into(),
        node: format!("n{}", 1 + n % 2).into(),
        address: format!("10.1.{n}.1").parse().unwrap(),
        port: 8080,
    }
}

/// What the programs report of a client's flow with a pod.
fn event(client: u16, pod: &PinnedPod) -> Event {
    Event {
        client: mapped("203.0.113.7".parse().unwrap()),
        vip: mapped(VIP.parse().unwrap()),
        pod: mapped(pod.address),
        ports: Ports {
            src: Be16::new(client),
            dst: Be16::new(80),
        },
        pod_port: Be16::new(pod.port),
        proto: protocol::TCP,
        is_v6: 0,
        identity: pod.identity(),
        flags: 0,
    }
}

/// Pods 1 and 2 serve, and connections are handed off.
fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.agent = agent_that(bench.dir.path(), &bench.maps, true);
    let nodes = bench.dir.path().join("nodes.yaml");
    let nodes = Files::from([(nodes, Content::Text(super::nodes()))]);
    bench.agent.take(&nodes, bench.now);
    bench.put("pods.yaml", &pods(&[1, 2]));
    bench.put("web.yaml", &service("web", VIP, &[1, 2]));
    bench.run(4);
    bench
}

impl Bench {
    /// Identities that a flow is pinned to, newest first.
    fn pinned(&self, flow: &FlowKey) -> Vec<u32> {
        let contents = self.maps.contents();
        let Some(pin) = contents.pins.get(&flow.tuple()) else {
            return Vec::new();
        };
        let backends = pin.backends.iter().filter(|id| **id != 0);
        let backend = |id: &u32| contents.backends[&crate::model::op::BackendId(*id)].identity;
        backends.map(backend).collect()
    }

    fn flags(&self) -> u32 {
        self.service(VIP).unwrap().flags
    }

    fn hello(&mut self, writer: &str, position: Position) -> Option<Answer> {
        let (answer, mut answered) = oneshot::channel();
        let hello = Hello {
            node: writer.into(),
            position,
            acknowledged: None,
        };
        let arrival = Arrival::Hello {
            writer: writer.into(),
            hello,
            answer,
        };
        self.agent.take_arrival(arrival, self.now);
        answered.try_recv().ok()
    }

    fn tell(&mut self, writer: &str, message: Message) -> Option<Answer> {
        let (answer, mut answered) = oneshot::channel();
        let arrival = Arrival::Message {
            writer: writer.into(),
            message,
            answer,
        };
        self.agent.take_arrival(arrival, self.now);
        answered.try_recv().ok()
    }

    /// Tells all that a writer of node n2 has, from where the agent is.
    fn follow(&mut self, writer: &mut Writer) {
        let mut at = self.hello("n2", writer.position()).unwrap().unwrap();
        loop {
            let messages = match writer.read(at, 100) {
                Batch::Nothing => return,
                Batch::Records(message) => vec![message],
                Batch::Snapshot(snapshot) => snapshot.messages(100).collect(),
            };
            for message in messages {
                at = self.tell("n2", message).unwrap().unwrap();
            }
        }
    }
}

fn other(incarnation: u64) -> Writer {
    Writer::new(Incarnation(incarnation), [])
}

#[test]
fn a_reported_flow_is_pinned_here_first_and_its_pin_ends_with_it() {
    let mut bench = bench();
    assert_eq!(bench.flags() & service_flag::PINS, 0);
    bench
        .agent
        .take_events(&[event(1000, &pod(2)), event(1001, &pod(1))]);
    assert_eq!(bench.pinned(&flow(1000)), [pod(2).identity()]);
    assert_eq!(bench.pinned(&flow(1001)), NOBODY, "pod 1 is another node's");
    assert_ne!(bench.flags() & service_flag::PINS, 0, "it is looked up");
    assert_eq!(bench.agent.own_pins().len(), 1);
    let swept = Swept {
        ended: vec![(flow(1000), SocketAddr::new(pod(2).address, pod(2).port))],
        ..Swept::default()
    };
    bench.agent.take_swept(&swept, bench.now);
    assert_eq!(bench.pinned(&flow(1000)), NOBODY);
    bench.run(2);
    assert_eq!(bench.flags() & service_flag::PINS, 0);
    assert_eq!(bench.agent.problems(), []);
}

#[test]
fn pins_of_another_node_are_acknowledged_once_the_maps_have_them() {
    let mut bench = bench();
    let mut writer = other(7);
    let at = writer.pin(flow(1), pod(1)).unwrap();
    bench.follow(&mut writer);
    assert_eq!(bench.pinned(&flow(1)), [pod(1).identity()]);
    let again = bench.hello("n2", writer.position());
    assert_eq!(again, Some(Ok(Some(at))));

    let foreign = Message::Records {
        first: Position {
            seq: at.seq.next(),
            ..at
        },
        changes: vec![crate::model::pins::Change::Pin(flow(2), pod(2))],
    };
    let refused = bench.tell("n2", foreign).unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::Foreign);
    assert_eq!(bench.pinned(&flow(2)), NOBODY);

    writer.unpin(&flow(1));
    bench.follow(&mut writer);
    assert_eq!(bench.pinned(&flow(1)), NOBODY);
}

#[test]
fn nothing_is_acknowledged_that_the_maps_do_not_have() {
    let mut bench = bench();
    let mut writer = other(7);
    bench.follow(&mut writer);
    writer.pin(flow(1), pod(1)).unwrap();
    bench.maps.with(|maps| {
        maps.set_plan(|_, op| matches!(op, Op::Pin { .. }).then_some(Fault::NoMemory));
    });
    let Batch::Records(message) = writer.read(bench_position(&bench), 100) else {
        panic!("one change is new");
    };
    assert_eq!(bench.tell("n2", message), None, "the stream ends");
    assert_eq!(
        bench.hello("n2", writer.position()),
        None,
        "and does not begin"
    );
    bench.maps.with(FaultyDataplane::heal);
    bench.follow(&mut writer);
    assert_eq!(bench.pinned(&flow(1)), [pod(1).identity()]);
}

fn bench_position(bench: &Bench) -> Option<Position> {
    bench.agent.pins.received("n2")
}

#[test]
fn a_service_knows_whether_the_pins_of_its_owners_are_here() {
    let mut bench = bench();
    let is_up = |bench: &Bench| bench.flags() & service_flag::STREAMS_UP != 0;
    assert!(!is_up(&bench), "node n2 is waited for");
    let mut writer = other(7);
    writer.pin(flow(1), pod(1)).unwrap();
    bench.hello("n2", writer.position()).unwrap().unwrap();
    bench.run(1);
    assert!(!is_up(&bench), "its snapshot has not come");
    bench.follow(&mut writer);
    bench.run(1);
    assert!(is_up(&bench));
    let writer = "n2".into();
    bench
        .agent
        .take_arrival(Arrival::Ended { writer }, bench.now);
    bench.run(1);
    assert!(!is_up(&bench), "what it has pinned since is not known");
    bench.run(70);
    assert!(is_up(&bench), "it is not waited for for ever");
}

#[test]
fn after_a_restart_own_flows_stay_pinned_and_others_until_their_writer_says_so() {
    let mut bench = bench();
    let mut writer = other(7);
    writer.pin(flow(1), pod(1)).unwrap();
    bench.follow(&mut writer);
    bench.agent.take_events(&[event(1000, &pod(2))]);

    bench.agent = agent_that(bench.dir.path(), &bench.maps, true);
    let mut batch: Files = bench
        .user
        .iter()
        .map(|(name, text)| (bench.dir.path().join(name), Content::Text(text.clone())))
        .collect();
    bench.outputs.clear();
    batch.extend(bench.written());
    bench.agent.take(&batch, bench.now);
    assert_eq!(
        bench.hello("n2", writer.position()),
        None,
        "not before it knows"
    );
    bench.run(4);
    assert_eq!(bench.pinned(&flow(1000)), [pod(2).identity()]);
    assert_eq!(bench.agent.own_pins().len(), 1);
    assert_eq!(bench.pinned(&flow(1)), [pod(1).identity()]);
    let mut started_again = other(8);
    bench.follow(&mut started_again);
    assert_eq!(
        bench.pinned(&flow(1)),
        NOBODY,
        "it has no such flow any more"
    );
    assert_eq!(bench.pinned(&flow(1000)), [pod(2).identity()]);
}

#[test]
fn a_proposal_is_answered_when_balancers_have_what_it_would_not_find() {
    let mut bench = bench();
    let (reports, mut told) = mpsc::channel(16);
    let (first, mut greeted) = oneshot::channel();
    bench.agent.take_arrival(
        Arrival::Manager {
            stream: 1,
            first,
            reports,
        },
        bench.now,
    );
    let first = greeted.try_recv().unwrap();
    assert!(matches!(
        &first[..],
        [Report::Hello { .. }, Report::Applied { version: 1, .. }]
    ));
    let table = bench.agent.tables.values().next().unwrap().spec.clone();
    let instruction = Instruction::Retire {
        id: 5,
        service_uid: "uid-web".into(),
        base_version: 1,
        table: Box::new(table.unwrap()),
    };
    bench.agent.take_arrival(
        Arrival::Instruction {
            stream: 1,
            instruction,
        },
        bench.now,
    );
    bench.run(1);
    assert!(
        told.try_recv().is_err(),
        "flows were not looked through yet"
    );
    let wanted = bench.agent.sweep_wanted();
    assert_eq!(wanted.proposals.len(), 1);
    let swept = Swept {
        proposals: vec![5],
        ..Swept::default()
    };
    bench.agent.take_swept(&swept, bench.now);
    bench.run(1);
    let position = bench.agent.pins.written().unwrap();
    assert_eq!(told.try_recv(), Ok(Report::RetireReady { id: 5, position }));
    bench
        .agent
        .take_arrival(Arrival::ManagerEnded { stream: 1 }, bench.now);
    assert_eq!(bench.agent.proposals(), 0);
}

#[test]
fn all_flows_of_a_service_are_pinned_if_it_asks_for_it() {
    let mut bench = bench();
    assert_eq!(bench.flags() & service_flag::TRACK_ALL, 0);
    assert!(bench.agent.sweep_wanted().tracked.is_empty());
    let web = service("web", VIP, &[1, 2]);
    let asks = web.replacen(
        "annotations: {",
        "annotations: {bowline.dev/tracking: all, ",
        1,
    );
    bench.put("web.yaml", &asks);
    bench.run(4);
    assert_ne!(bench.flags() & service_flag::TRACK_ALL, 0);
    assert_eq!(
        bench.agent.sweep_wanted().tracked,
        BTreeSet::from([VIP.parse().unwrap()])
    );
}

#[test]
fn the_end_of_a_flow_does_not_unpin_the_next_one_of_the_same_client() {
    let mut bench = bench();
    bench.put("pods.yaml", &pods(&[1, 2, 4]));
    bench.put("web.yaml", &service("web", VIP, &[1, 2, 4]));
    bench.run(4);
    let at = |pod: &PinnedPod| SocketAddr::new(pod.address, pod.port);
    bench.agent.take_events(&[event(1000, &pod(2))]);
    // Meanwhile the client has used its port again, and another pod of this node has the flow.
    let next = FlowRecord {
        protocol: protocol::TCP,
        client: flow(1000).client(),
        vip: flow(1000).vip(),
        pod: at(&pod(4)),
        identity: pod(4).identity(),
        stage: Stage::Known { client: 0, pod: 0 },
        idle_ticks: 0,
        is_reported: true,
    };
    let swept = Swept {
        found: vec![next],
        ended: vec![(flow(1000), at(&pod(2)))],
        ..Swept::default()
    };
    bench.agent.take_swept(&swept, bench.now);
    assert_eq!(bench.pinned(&flow(1000)), [pod(4).identity()]);
}
