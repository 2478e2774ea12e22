//! A core, agents that are values, and what is asked of them. The clock is an argument. One file: every test tells the same
//! scene's story a little further.

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::*;
use crate::admin::Problem;
use crate::handoff::counts::{StreamCounts, Streams};
use crate::handoff::message::Report;
use crate::manager::core::{Core, Requests, Settings, Write};
use crate::model::pins::{Incarnation, Position, Seq};
use crate::model::slot::WhenFull;
use crate::source::index::Event;
use crate::source::parse::{Kind, Object, ObjectKey};

/// The wall clock at the beginning.
const WALL_MS: i64 = 1_000_000;

/// Services with one slot each, pod `n` on node `n % 3`.
struct World {
    core: Core,
    retiring: Retiring,
    start: Instant,
    wall_ms: i64,
    tables: BTreeMap<String, ServiceTableSpec>,
}

fn apply(kind: Kind, name: &str, object: impl Into<Object>) -> Event {
    let namespace = if kind.is_namespaced() { "x" } else { "" };
    let key = ObjectKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    Event::Apply(key, object.into())
}

fn node(n: usize) -> String {
    format!("n{}", n % 3)
}

fn slice(service: &str, pod: usize) -> Event {
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": { "name": service, "namespace": "x", "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": [{ "port": 8080 }],
        "endpoints": [{
            "addresses": [format!("10.0.0.{pod}")],
            "nodeName": node(pod),
            "targetRef": { "kind": "Pod", "name": format!("p{pod}"), "uid": format!("u{pod}") },
        }],
    }))
    .unwrap();
    apply(Kind::EndpointSlice, service, slice)
}

fn service(n: usize) -> Event {
    let name = format!("s{n}");
    let service: Service = serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": "x", "uid": format!("uid-{name}"),
            "annotations": { "bowline.dev/addresses": format!("192.0.2.{}", n + 1) },
        },
        "spec": { "type": "LoadBalancer", "loadBalancerClass": "bowline.dev/xdp", "ports": [{ "port": 80 }] },
    }))
    .unwrap();
    apply(Kind::Service, &name, service)
}

impl World {
    fn new(services: usize) -> Self {
        let start = Instant::now();
        let mut core = Core::new(Settings {
            requests: Requests::Free,
            when_full: WhenFull::Waits,
        });
        let mut events = Vec::new();
        for n in 0..3 {
            let name = node(n);
            let object: Node =
                serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
            events.push(apply(Kind::Node, &name, object));
        }
        for n in 0..8 {
            let name = format!("p{n}");
            let meta = json!({ "name": name, "namespace": "x", "uid": format!("u{n}") });
            let object: Pod = serde_json::from_value(json!({ "metadata": meta })).unwrap();
            events.push(apply(Kind::Pod, &name, object));
        }
        for n in 0..services {
            events.extend([slice(&format!("s{n}"), 0), service(n)]);
        }
        core.take(events, start);
        let mut world = Self {
            core,
            retiring: Retiring::default(),
            start,
            wall_ms: WALL_MS,
            tables: BTreeMap::new(),
        };
        assert_eq!(world.work(0), []);
        world
    }

    fn time(&self, at_ms: u64) -> Instant {
        self.start + Duration::from_millis(at_ms)
    }

    /// Does what is due, `at_ms` after the start, as the manager's loop does.
    fn work(&mut self, at_ms: u64) -> Vec<Todo> {
        let now = self.time(at_ms);
        let wall = Timestamp::from_millisecond(self.wall_ms + at_ms.cast_signed()).unwrap();
        for write in self.core.work(now, wall) {
            if let Write::Table { named, table } = write {
                self.retiring.written(&named, table.as_deref(), now);
                match table {
                    Some(table) => _ = self.tables.insert(named.name, *table),
                    None => _ = self.tables.remove(&named.name),
                }
            }
        }
        self.retiring.want(self.core.retirements(), now, wall);
        let todo = self.retiring.work(now);
        for todo in &todo {
            if let Todo::Retire(named, retired) = todo {
                self.core.retire(named, retired.clone(), now);
            }
        }
        todo
    }

    /// Makes this pod the only one of a Service.
    fn replace(&mut self, service: &str, pod: usize, at_ms: u64) -> Vec<Todo> {
        let now = self.time(at_ms);
        self.core.take([slice(service, pod)], now);
        self.work(at_ms)
    }

    /// Replaces the pod of a Service four times, once more than its slot remembers, within five seconds.
    fn fill(&mut self, service: &str) -> Vec<Todo> {
        for pod in 1..4 {
            assert_eq!(self.replace(service, pod, 1000 * pod as u64), []);
        }
        self.replace(service, 4, 4000)
    }

    fn up(&mut self, nodes: &[&str]) {
        for node in nodes {
            self.retiring.up(&Arc::from(*node));
        }
    }

    /// These have applied all tables as they are.
    fn applied(&mut self, nodes: &[&str]) {
        for node in nodes {
            for table in self.tables.values() {
                let report = Report::Applied {
                    service_uid: table.service_uid.as_str().into(),
                    version: table.version,
                    digest: String::new(),
                };
                self.retiring.report(&Arc::from(*node), report, self.start);
            }
        }
    }

    fn ready(&mut self, node: &str, id: u64, seq: u64) {
        let position = position(seq);
        let report = Report::RetireReady { id, position };
        self.retiring.report(&Arc::from(node), report, self.start);
    }

    fn pods(&self, service: &str) -> Vec<&str> {
        let pods = self.tables[service].pods.iter();
        pods.map(|pod| pod.uid.as_str()).collect()
    }

    fn shown(&self, at_ms: u64) -> Vec<(String, String, Vec<String>, u64)> {
        let shown = self.retiring.shown(self.time(at_ms)).into_iter();
        shown
            .map(|one| (one.because, one.phase, one.waits_for, one.for_seconds))
            .collect()
    }

    fn problems(&self, at_ms: u64) -> Vec<Problem> {
        self.retiring.problems(&Streams::new(), self.time(at_ms))
    }
}

fn position(seq: u64) -> Position {
    Position {
        incarnation: Incarnation(1),
        seq: Seq(seq),
    }
}

/// What is said to whom: `n0 retire 7 uid-s0`, `n0 cancel 7`; and what is published.
fn told(todo: &[Todo]) -> Vec<String> {
    let told = todo.iter().map(|todo| match todo {
        Todo::Send { node, instruction } => match instruction {
            Instruction::Retire {
                id, service_uid, ..
            } => format!("{node} retire {id} {service_uid}"),
            Instruction::Cancel { id } => format!("{node} cancel {id}"),
        },
        Todo::Retire(named, _) => format!("publish {}", named.name),
    });
    told.collect()
}

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

const ALL: [&str; 3] = ["n0", "n1", "n2"];

#[test]
fn a_full_history_is_handed_off_and_lets_the_change_in() {
    let mut world = World::new(1);
    world.up(&ALL);
    world.applied(&ALL);
    assert_eq!(world.fill("s0"), [], "the last version has not spread");
    assert_eq!(world.pods("s0"), ["u0", "u1", "u2", "u3"]);
    let shown = |phase: &str, waits_for: &[&str], seconds| {
        let full = "history-full".to_owned();
        vec![(full, phase.to_owned(), strings(waits_for), seconds)]
    };
    assert_eq!(world.shown(4000), shown("spreading", &ALL, 0));
    world.applied(&ALL);
    let asked = world.work(4100);
    assert_eq!(
        told(&asked),
        [
            "n0 retire 1004000 uid-s0",
            "n1 retire 1004000 uid-s0",
            "n2 retire 1004000 uid-s0"
        ]
    );
    let Todo::Send { instruction, .. } = &asked[0] else {
        panic!("{asked:?}");
    };
    let Instruction::Retire {
        base_version,
        table,
        ..
    } = instruction
    else {
        panic!("{asked:?}");
    };
    assert_eq!(*base_version, world.tables["s0"].version);
    let left: Vec<_> = table.pods.iter().map(|pod| pod.uid.as_str()).collect();
    assert_eq!(left, ["u3"], "the table as it would be");
    world.ready("n0", 1_004_000, 10);
    world.ready("n2", 1_004_000, 12);
    world.ready("n1", 999, 99);
    assert_eq!(world.work(6000), []);
    assert_eq!(world.shown(6000), shown("handing-off", &["n1"], 2));
    world.ready("n1", 1_004_000, 11);
    assert_eq!(told(&world.work(6100)), ["publish s0"]);
    assert_eq!(world.work(6200), [], "written, and not applied yet");
    let table = &world.tables["s0"];
    assert_eq!(world.pods("s0"), ["u3", "u4"], "who has waited is in");
    let watermarks = [("n0", 10), ("n1", 11), ("n2", 12)];
    let watermarks = watermarks.map(|(node, seq)| (node.to_owned(), position(seq).into()));
    assert_eq!(table.watermarks, watermarks.into());
    world.applied(&ALL);
    let cancelled = [
        "n0 cancel 1004000",
        "n1 cancel 1004000",
        "n2 cancel 1004000",
    ];
    assert_eq!(told(&world.work(6300)), cancelled);
    let counts = Counts {
        under_way: 0,
        completed: 1,
        abandoned: 0,
    };
    assert_eq!(world.retiring.counts(), counts);
    assert_eq!(world.work(6400), []);
    assert_eq!(world.shown(6400), []);
    assert_eq!(world.retiring.deadline(world.time(6400)), None);
}

#[test]
fn without_agents_the_history_stays_and_after_a_minute_it_is_said_who_is_waited_for() {
    let mut world = World::new(1);
    assert_eq!(world.fill("s0"), []);
    let waits = |waits_for: &[&str], seconds| {
        let full = "history-full".to_owned();
        vec![(full, "waiting".to_owned(), strings(waits_for), seconds)]
    };
    assert_eq!(world.shown(4000), waits(&ALL, 0));
    assert_eq!(
        world.retiring.deadline(world.time(4000)),
        Some(world.time(4000) + LOOK_PERIOD)
    );
    for at in (5..64).map(|second| 1000 * second) {
        assert_eq!(world.work(at), []);
    }
    assert_eq!(world.problems(63_999), []);
    assert_eq!(world.shown(64_000), waits(&ALL, 60));
    let fault = Some("10.0.0.9:6084 does not answer".to_owned());
    let stream = StreamCounts {
        fault,
        ..StreamCounts::default()
    };
    let streams = Streams::from([("n1".into(), stream)]);
    let problem = Problem {
        object: "Service x/s0".to_owned(),
        sentence: "the history of its table is full, so pods that have left keep their slots until the agents of these nodes \
                   have handed their connections off: n0, n1 (10.0.0.9:6084 does not answer), n2; see that these agents run \
                   and can be reached, or remove the Node objects of nodes that are gone"
            .to_owned(),
    };
    assert_eq!(
        world.retiring.problems(&streams, world.time(64_000)),
        [problem]
    );
    assert_eq!(world.pods("s0"), ["u0", "u1", "u2", "u3"]);
}

#[test]
fn an_owner_that_is_away_keeps_its_history_and_is_not_waited_for_by_others() {
    let mut world = World::new(1);
    world.up(&["n1", "n2"]);
    world.applied(&["n1", "n2"]);
    assert_eq!(world.fill("s0"), []);
    world.applied(&["n1"]);
    assert_eq!(world.work(4100), [], "n2 is there and has not applied it");
    world.applied(&["n2"]);
    let asked = told(&world.work(4200));
    assert_eq!(
        asked,
        ["n1 retire 1004000 uid-s0", "n2 retire 1004000 uid-s0"]
    );
    world.ready("n1", 1_004_000, 1);
    world.ready("n2", 1_004_000, 1);
    assert_eq!(told(&world.work(4300)), ["publish s0"]);
    world.work(5000);
    assert_eq!(world.pods("s0"), ["u0", "u3", "u4"]);
}

#[test]
fn a_stream_that_comes_up_again_is_asked_again_and_its_answer_is_void() {
    let mut world = World::new(1);
    world.up(&ALL);
    world.fill("s0");
    world.applied(&ALL);
    assert_eq!(world.work(4100).len(), 3);
    world.ready("n0", 1_004_000, 10);
    // Both before anything else is done.
    world.retiring.down("n0");
    world.up(&["n0"]);
    world.ready("n0", 1_004_000, 10);
    world.ready("n1", 1_004_000, 11);
    world.ready("n2", 1_004_000, 12);
    assert_eq!(told(&world.work(4200)), ["n0 retire 1004000 uid-s0"]);
    world.ready("n0", 1_004_000, 20);
    assert_eq!(told(&world.work(4300)), ["publish s0"]);
    // What stands, stands until the version is applied.
    world.retiring.down("n1");
    assert_eq!(world.work(4400), []);
    world.up(&["n1"]);
    assert_eq!(told(&world.work(4500)), ["n1 retire 1004000 uid-s0"]);
    assert_eq!(world.work(5000), []);
    assert_eq!(world.tables["s0"].watermarks["n0"], position(20).into());
    world.applied(&ALL);
    assert_eq!(world.work(5100).len(), 3, "cancelled");
}

#[test]
fn an_owner_that_goes_away_ends_the_attempt_and_the_next_is_without_it() {
    let mut world = World::new(1);
    world.up(&ALL);
    world.fill("s0");
    world.applied(&ALL);
    assert_eq!(world.work(4100).len(), 3);
    world.retiring.down("n0");
    let cancelled = ["n1 cancel 1004000", "n2 cancel 1004000"];
    assert_eq!(told(&world.work(4200)), cancelled);
    let again = 4200 + retire::PAUSE.as_millis() as u64;
    let at = world.retiring.deadline(world.time(4200));
    assert_eq!(at, Some(world.time(again)));
    assert_eq!(world.work(again - 1), []);
    let asked = told(&world.work(again));
    assert_eq!(
        asked,
        ["n1 retire 1014200 uid-s0", "n2 retire 1014200 uid-s0"]
    );
    assert_eq!(world.retiring.counts().abandoned, 1);
}

#[test]
fn an_agent_that_refuses_or_says_nothing_is_left_out_for_a_while() {
    let mut world = World::new(1);
    world.up(&ALL);
    world.fill("s0");
    world.applied(&ALL);
    world.work(4100);
    let why = "there is no more room for pins".to_owned();
    let id = 1_004_000;
    let refused = Report::RetireRefused { id, why };
    world
        .retiring
        .report(&"n0".into(), refused, world.time(4200));
    assert_eq!(world.work(4200).len(), 3, "cancelled");
    assert_eq!(world.shown(4200)[0].2, ["n0"]);
    let asked = told(&world.work(14_200));
    assert_eq!(
        asked,
        ["n1 retire 1014200 uid-s0", "n2 retire 1014200 uid-s0"]
    );
    world.ready("n1", 1_014_200, 1);
    // n2 says nothing.
    let late = 14_200 + retire::ROUND_MAX.as_millis() as u64;
    assert_eq!(world.work(late - 1), []);
    let cancelled = ["n1 cancel 1014200", "n2 cancel 1014200"];
    assert_eq!(told(&world.work(late)), cancelled);
    let asked = told(&world.work(late + 10_000));
    assert_eq!(asked, ["n1 retire 1084200 uid-s0"]);
    world.ready("n1", 1_084_200, 1);
    assert_eq!(told(&world.work(late + 10_100)), ["publish s0"]);
    assert_eq!(world.retiring.counts().abandoned, 2);
}

#[test]
fn rounds_grow_though_the_clock_is_set_back() {
    let mut world = World::new(2);
    world.up(&ALL);
    world.fill("s0");
    world.wall_ms = 0;
    for pod in 1..5 {
        world.replace("s1", pod, 4000 + 1000 * pod as u64);
    }
    world.applied(&ALL);
    let asked = told(&world.work(8100));
    assert_eq!(asked[0], "n0 retire 1004000 uid-s0");
    assert_eq!(asked[1], "n0 retire 1004001 uid-s1");
    assert_eq!(asked.len(), 6);
    world.retiring.reset();
    let left = Retiring {
        last_round: 1_004_001,
        abandoned: 2,
        ..Retiring::default()
    };
    assert_eq!(world.retiring, left);
}

#[test]
fn what_an_agent_has_no_room_for_is_sent_again_a_moment_later() {
    let mut world = World::new(1);
    world.up(&["n0"]);
    world.fill("s0");
    world.applied(&["n0"]);
    let asked = world.work(4100);
    let [Todo::Send { node, instruction }] = &asked[..] else {
        panic!("{asked:?}");
    };
    let now = world.time(4100);
    world.retiring.unsent(node, instruction, now);
    assert_eq!(world.work(4150), []);
    assert_eq!(world.retiring.deadline(now), Some(world.time(4200)));
    assert_eq!(world.work(4200), asked);
    let late = Instruction::Cancel { id: 1_004_000 };
    world.retiring.cancel(&named("s0"));
    assert_eq!(
        told(&world.retiring.work(world.time(4300))),
        ["n0 cancel 1004000"]
    );
    world.retiring.unsent("n0", &late, world.time(4300));
    assert_eq!(
        told(&world.retiring.work(world.time(4400))),
        ["n0 cancel 1004000"]
    );
    assert_eq!(world.retiring.work(world.time(4500)), []);
}

fn named(service: &str) -> Named {
    Named {
        namespace: "x".to_owned(),
        name: service.to_owned(),
    }
}

#[test]
fn a_service_that_goes_leaves_nothing_behind() {
    let mut world = World::new(1);
    world.up(&ALL);
    world.fill("s0");
    world.applied(&ALL);
    assert_eq!(world.work(4100).len(), 3);
    let key = ObjectKey {
        kind: Kind::Service,
        namespace: "x".to_owned(),
        name: "s0".to_owned(),
    };
    let gone = world.time(5000);
    world.core.take([Event::Delete(key)], gone);
    let cancelled = [
        "n0 cancel 1004000",
        "n1 cancel 1004000",
        "n2 cancel 1004000",
    ];
    assert_eq!(told(&world.work(5000)), cancelled);
    // A report that was under way.
    let late = Report::Applied {
        service_uid: "uid-s0".into(),
        version: 9,
        digest: String::new(),
    };
    world.retiring.report(&"n0".into(), late, gone);
    let mut left = Retiring {
        last_round: 1_004_000,
        abandoned: 1,
        ..Retiring::default()
    };
    for node in ALL {
        left.up(&node.into());
    }
    assert_eq!(world.retiring, left);
}

#[test]
fn a_few_are_under_way_at_once_and_those_that_are_waited_for_come_first() {
    let mut world = World::new(UNDER_WAY_MAX + 8);
    world.up(&ALL);
    let names: Vec<_> = (0..UNDER_WAY_MAX + 8).map(|n| format!("s{n}")).collect();
    for name in &names {
        world.core.take([slice(name, 1)], world.time(1000));
    }
    assert_eq!(world.work(1000), []);
    world.applied(&ALL);
    let quiet = 1000 + 1000 * crate::model::assign::QUIET.as_secs().cast_unsigned();
    assert_eq!(world.work(quiet - 1), [], "it is never urgent");
    // The last one by name is full meanwhile.
    for pod in 2..5 {
        let at = quiet - 4000 + 1000 * pod as u64;
        world.core.take([slice("s9", pod)], world.time(at));
        let writes = world.core.work(world.time(at), Timestamp::UNIX_EPOCH);
        for write in writes {
            if let Write::Table { named, table } = write {
                world
                    .retiring
                    .written(&named, table.as_deref(), world.time(at));
                world.tables.insert(named.name, *table.unwrap());
            }
        }
    }
    world.applied(&ALL);
    let asked = told(&world.work(quiet));
    let of_services: BTreeSet<_> = asked
        .iter()
        .filter_map(|told| told.split(' ').nth(3))
        .collect();
    assert_eq!(of_services.len(), UNDER_WAY_MAX);
    assert!(of_services.contains("uid-s9"), "{of_services:?}");
    assert_eq!(world.retiring.counts().under_way, UNDER_WAY_MAX);
    // There is nothing to do for the others until one of these has ended.
    let at = world.retiring.deadline(world.time(quiet));
    assert_eq!(at, Some(world.time(quiet) + retire::ROUND_MAX));
}
