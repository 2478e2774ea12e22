//! Drains of a manager that hears three agents, as a directory has them.

use super::*;
use crate::api::node_drain::NodeDrainSpec;
use crate::manager::core::Requests;
use crate::model::pins::{Incarnation, Seq};
use crate::source::files::{Content, Files};

const WORLD: &str = "
apiVersion: v1
kind: Node
metadata: {name: a}
---
apiVersion: v1
kind: Node
metadata: {name: b}
---
apiVersion: v1
kind: Node
metadata: {name: c}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, uid: p}
---
apiVersion: v1
kind: Pod
metadata: {name: q, namespace: shop, uid: q}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, uid: s, annotations: {bowline.dev/addresses: 198.51.100.1}}
spec: {type: LoadBalancer, loadBalancerClass: bowline.dev/xdp, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
  - {addresses: [10.0.0.1], nodeName: a, targetRef: {kind: Pod, uid: p}}
  - {addresses: [10.0.1.1], nodeName: b, targetRef: {kind: Pod, uid: q}}
";

/// The manager's parts, and the objects of drains.
struct World {
    core: Core,
    retiring: Retiring,
    draining: Draining,
    others: Others,
    known: Known,
    now: Instant,
    wall: Timestamp,
}

fn position(seq: u64) -> Position {
    Position {
        incarnation: Incarnation(1),
        seq: Seq(seq),
    }
}

impl World {
    fn new() -> Self {
        let mut core = Core::new(Requests::Free);
        let now = Instant::now();
        let mut files = Files::default();
        files.update("world", &Content::Text(WORLD.to_owned()), core.index_mut());
        core.know(files.unknown(), now);
        core.settle(now);
        core.mark_all(now);
        let mut world = Self {
            core,
            retiring: Retiring::default(),
            draining: Draining::default(),
            others: ["a", "b", "c"]
                .map(|name| (name.into(), [].into_iter().collect()))
                .into(),
            known: Known::new(),
            now,
            wall: Timestamp::from_second(1_000_000).unwrap(),
        };
        for node in ["a", "b", "c"] {
            world.up(node);
        }
        world.work();
        world
    }

    fn up(&mut self, node: &str) {
        let node: Arc<str> = node.into();
        self.retiring.up(&node);
        self.draining.role(&node, Role::Both);
        self.draining.up(&node);
    }

    fn down(&mut self, node: &str) {
        self.retiring.down(node);
        self.draining.down(node);
    }

    fn ask(&mut self, node: &str) {
        let mut drain = NodeDrain::new(node, NodeDrainSpec::default());
        drain.metadata.uid = Some(format!("drain of {node}"));
        self.known
            .insert(node.to_owned(), (drain, NodeDrainStatus::default()));
    }

    /// Tables are written, drains go on. Time passes.
    fn work(&mut self) {
        self.now += Duration::from_secs(2);
        self.wall += Duration::from_secs(2);
        for write in self.core.work(self.now, self.wall) {
            if let crate::manager::core::Write::Table { named, table } = write {
                self.retiring.written(&named, table.as_deref(), self.now);
            }
        }
        let look = Look {
            core: &self.core,
            retiring: &self.retiring,
            others: &self.others,
            concurrent: DrainOptions::default().concurrent,
            now: self.wall,
        };
        let changed = self.draining.advance(&self.known, &look);
        for (node, status) in changed {
            self.known.get_mut(&node).unwrap().1 = status;
        }
        let drains = self.known.iter();
        let drains = drains.map(|(node, (drain, status))| (node.as_str(), drain, status.phase));
        let leaving = leaving(drains);
        self.core.set_leaving(leaving, self.now);
    }

    fn applied(&mut self, node: &str) {
        let versions: Vec<(String, u64)> = self
            .core
            .tables()
            .map(|(_, table)| (table.service_uid.clone(), table.version))
            .collect();
        for (uid, version) in versions {
            let report = Report::Applied {
                service_uid: uid.as_str().into(),
                version,
                digest: String::new(),
            };
            self.retiring.report(&node.into(), report, self.now);
        }
    }

    fn says(&mut self, node: &str, drain: &str, change: impl FnOnce(&mut Drained)) {
        let mut drained = Drained {
            uid: format!("drain of {drain}").as_str().into(),
            phase: Some(Phase::Quiesce),
            handed_off: Some((position(5), 5)),
            quiet_for: Duration::from_mins(1),
            ..Drained::default()
        };
        change(&mut drained);
        self.draining.report(&node.into(), &Report::Drain(drained));
    }

    fn pins(&mut self, node: &str, written: u64, acknowledged: &[(&str, u64)]) {
        let acknowledged = acknowledged.iter();
        let report = Report::Pins {
            written: position(written),
            acknowledged: acknowledged
                .map(|(node, seq)| ((*node).into(), position(*seq)))
                .collect(),
        };
        self.draining.report(&node.into(), &report);
    }

    fn status(&self, node: &str) -> &NodeDrainStatus {
        &self.known[node].1
    }

    fn waits(&self, node: &str) -> (Phase, Vec<&str>) {
        let status = self.status(node);
        let waits = status.waits_for.iter();
        (status.phase, waits.map(String::as_str).collect())
    }
}

#[test]
fn a_drain_goes_through_all_its_phases_as_agents_say() {
    let mut world = World::new();
    world.ask("a");
    world.work();
    let chosen = vec!["other pods to take new connections of shop/web"];
    assert_eq!(world.waits("a"), (Phase::Exclude, chosen));
    world.work();
    assert_eq!(
        world.waits("a"),
        (
            Phase::Exclude,
            vec!["a, b, c to apply the tables in which they do"]
        )
    );
    for node in ["a", "b", "c"] {
        world.applied(node);
    }
    world.work();
    assert_eq!(
        world.waits("a"),
        (
            Phase::HandOff,
            vec![
                "its agent to have pinned all its connections",
                "b, c to acknowledge its connections",
                "connections that b, c handed off to be known everywhere"
            ]
        )
    );
    world.says("a", "a", |_| {});
    world.pins("a", 9, &[("b", 9), ("c", 3)]);
    world.pins("b", 0, &[("a", 0), ("c", 0)]);
    world.pins("c", 4, &[("a", 4), ("b", 2)]);
    world.work();
    assert_eq!(
        world.waits("a"),
        (
            Phase::HandOff,
            vec![
                "c to acknowledge its connections",
                "connections that c handed off to be known everywhere"
            ]
        )
    );
    assert_eq!(world.status("a").balancers[1].behind, Some(2));
    world.pins("a", 9, &[("b", 9), ("c", 5)]);
    // What c has pinned since need not be known.
    world.pins("c", 9, &[("a", 4), ("b", 4)]);
    world.work();
    assert_eq!(world.status("a").phase, Phase::Deprefer);
    world.work();
    world.work();
    world.work();
    let named = vec!["tables of shop/web to name its pods no more"];
    assert_eq!(world.waits("a"), (Phase::Quiesce, named));
    let (_, table) = world.core.tables().next().unwrap();
    assert!(
        table.nodes.contains(&"a".to_owned()),
        "its history is not retired yet"
    );
}

#[test]
fn a_service_that_changes_all_the_time_is_not_waited_for_again() {
    let mut world = World::new();
    world.ask("a");
    world.work();
    world.work();
    for node in ["a", "b", "c"] {
        world.applied(node);
    }
    // Another version, which nobody has applied.
    let more = "
apiVersion: v1
kind: Pod
metadata: {name: r, namespace: shop, uid: r}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
  - {addresses: [10.0.2.1], nodeName: c, targetRef: {kind: Pod, uid: r}}
";
    let mut files = Files::default();
    files.update(
        "more",
        &Content::Text(more.to_owned()),
        world.core.index_mut(),
    );
    world.core.settle(world.now);
    world.work();
    assert_eq!(world.status("a").phase, Phase::HandOff);
}

#[test]
fn one_node_is_drained_at_a_time() {
    let mut world = World::new();
    world.ask("a");
    world.ask("b");
    world.work();
    assert_eq!(world.status("a").phase, Phase::Exclude);
    assert_eq!(
        world.waits("b"),
        (
            Phase::Preflight,
            vec!["a: as many nodes are being drained as may be at once"]
        )
    );
    world.known.remove("a");
    world.work();
    assert_eq!(world.status("b").phase, Phase::Exclude);
}

#[test]
fn a_node_without_an_agent_is_refused_and_one_that_is_not_heard_is_named() {
    let mut world = World::new();
    world.ask("z");
    world.work();
    assert_eq!(world.status("z").phase, Phase::Failed);
    let why = &world.status("z").log.last().unwrap().message;
    assert!(
        why.contains("z has no agent; nodes with one are a, b, c"),
        "{why}"
    );
    world.known.clear();
    world.down("c");
    world.ask("a");
    world.work();
    let findings = &world.status("a").findings;
    assert!(
        findings
            .iter()
            .any(|one| !one.blocks && one.message.starts_with("c: not heard"))
    );
    world.known.clear();
    world.down("a");
    world.ask("a");
    world.work();
    let why = &world.status("a").log.last().unwrap().message;
    assert!(why.contains("the agent of a is not heard"), "{why}");
}

#[test]
fn without_handing_off_a_drain_is_refused() {
    let mut known = Known::new();
    known.insert(
        "a".to_owned(),
        (
            NodeDrain::new("a", NodeDrainSpec::default()),
            NodeDrainStatus::default(),
        ),
    );
    let next = refuse(&known, Timestamp::from_second(5).unwrap());
    assert_eq!(next["a"].phase, Phase::Failed);
    let why = &next["a"].log.last().unwrap().message;
    assert!(why.contains("--handoff-certificates"), "{why}");
}
