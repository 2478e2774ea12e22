//! From YAML to maps and back to none: a manager and an agent on one directory, over maps in memory. One
//! file: every test drives the same bench, and those about other nodes and about pins have files of their own.

use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::dataplane::Contents;
use crate::dataplane::fake::FakeDataplane;
use crate::dataplane::faulty::{Fault, FaultyDataplane};
use crate::dataplane::{Capacity, Counters};
use crate::manager::standalone::Standalone as Manager;
use crate::model::op::Op;
use crate::source::directory::Batch;
use crate::source::files::Content;

mod peers;
mod pins;

/// Maps that the test can look into while the agent has them.
pub(super) struct Shared<D = FakeDataplane>(Arc<Mutex<FaultyDataplane<D>>>);

impl<D> Clone for Shared<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl Shared {
    fn new(capacity: Capacity) -> Self {
        Self::over(FakeDataplane::new(capacity))
    }

    fn contents(&self) -> Contents {
        self.with(|maps| maps.inner().contents().clone())
    }
}

impl<D: Dataplane> Shared<D> {
    pub(super) fn over(maps: D) -> Self {
        Self(Arc::new(Mutex::new(FaultyDataplane::new(maps, |_, _| {
            None
        }))))
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut FaultyDataplane<D>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<D: Dataplane> Dataplane for Shared<D> {
    fn capacity(&self) -> Capacity {
        self.with(|maps| maps.capacity())
    }

    fn read(&mut self) -> Result<Contents, ApplyError> {
        self.with(Dataplane::read)
    }

    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.with(|maps| maps.apply(op))
    }

    fn counters(&mut self) -> Result<Counters, ApplyError> {
        self.with(Dataplane::counters)
    }
}

/// One directory with its manager, and the agent of node `n1`.
struct Bench {
    dir: tempfile::TempDir,
    manager: Manager,
    agent: Core,
    maps: Shared,
    user: BTreeMap<String, String>,
    outputs: BTreeMap<PathBuf, String>,
    now: Instant,
    wall: jiff::Timestamp,
}

impl Bench {
    fn new() -> Self {
        Self::sized(Capacity::default())
    }

    fn sized(capacity: Capacity) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::below(dir.path());
        outputs.create().unwrap();
        let secrets = ClusterSecrets {
            hash: [1; 32],
            encap: [2; 8],
            encap_previous: None,
            gossip: [3; 32],
        };
        std::fs::write(outputs.secret(), secrets.to_yaml().unwrap()).unwrap();
        let maps = Shared::new(capacity);
        let mut bench = Self {
            manager: Manager::resume(outputs, &BTreeMap::new(), &BTreeMap::new()),
            agent: agent(dir.path(), &maps),
            dir,
            maps,
            user: BTreeMap::new(),
            outputs: BTreeMap::new(),
            now: Instant::now(),
            wall: jiff::Timestamp::UNIX_EPOCH,
        };
        bench.put("nodes.yaml", &nodes());
        bench
    }

    fn put(&mut self, name: &str, text: &str) {
        self.user.insert(name.to_owned(), text.to_owned());
        self.changed(name, Content::Text(text.to_owned()));
    }

    fn remove(&mut self, name: &str) {
        self.user.remove(name);
        self.changed(name, Content::Gone);
    }

    fn changed(&mut self, name: &str, content: Content) {
        self.manager.take([(name, &content)], self.now);
        self.agent.take(
            &Batch::from([(self.dir.path().join(name), content)]),
            self.now,
        );
    }

    /// Lets time pass until everything that is due within it is done.
    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.now += Duration::from_millis(500);
            self.wall += jiff::SignedDuration::from_millis(500);
            self.manager.work(self.now, self.wall);
            let batch = self.written();
            self.agent.take(&batch, self.now);
            self.agent.work(self.now);
        }
    }

    /// What the manager has written since the last call.
    fn written(&mut self) -> Batch {
        let outputs = Outputs::below(self.dir.path());
        let mut present = BTreeMap::new();
        for directory in [outputs.tables(), outputs.statuses()] {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                present.insert(path.clone(), std::fs::read_to_string(path).unwrap());
            }
        }
        present.insert(
            outputs.secret(),
            std::fs::read_to_string(outputs.secret()).unwrap(),
        );
        let mut batch = Batch::new();
        for path in self
            .outputs
            .keys()
            .filter(|path| !present.contains_key(*path))
        {
            batch.insert(path.clone(), Content::Gone);
        }
        for (path, text) in &present {
            if self.outputs.get(path) != Some(text) {
                batch.insert(path.clone(), Content::Text(text.clone()));
            }
        }
        self.outputs = present;
        batch
    }

    /// Kills the agent and starts another one on the same maps, which has read everything.
    fn restart_agent(&mut self) {
        self.agent = agent(self.dir.path(), &self.maps);
        let files = self
            .user
            .iter()
            .map(|(name, text)| (self.dir.path().join(name), Content::Text(text.clone())));
        let mut batch: Batch = files.collect();
        self.outputs.clear();
        batch.extend(self.written());
        self.agent.take(&batch, self.now);
        self.agent.listed(self.now);
    }

    fn service(&self, address: &str) -> Option<lb_ebpf::abi::ServiceEntry> {
        let key = plan::service_key(address.parse().unwrap(), 80, lb_ebpf::wire::protocol::TCP);
        self.maps.contents().services.get(&key).copied()
    }

    /// Identities that get first packets of a service.
    fn current(&self, address: &str) -> BTreeSet<u32> {
        let contents = self.maps.contents();
        let Some(entry) = self.service(address) else {
            return BTreeSet::new();
        };
        (entry.slots..entry.slots + entry.slot_count)
            .filter_map(|slot| contents.slots.get(&crate::model::op::SlotIndex(slot)))
            .filter_map(|slot| {
                contents
                    .backends
                    .get(&crate::model::op::BackendId(slot.first))
            })
            .map(|backend| backend.identity)
            .collect()
    }
}

fn agent(manifests: &Path, maps: &Shared) -> Core {
    agent_that(manifests, maps, false)
}

/// An agent that hands connections off, or does not.
fn agent_that(manifests: &Path, maps: &Shared, hands_off: bool) -> Core {
    let settings = Settings {
        hands_off,
        node: "n1".to_owned(),
        role: Role::Both,
        addresses: Vec::new(),
        relay: true,
        pin_dir: "/pins".into(),
        flows: 1024,
        pins: 1 << 16,
        route_table: None,
        bird: false,
        origin: Origin::Directory {
            manifests: manifests.to_owned(),
            outputs: Outputs::below(manifests),
        },
    };
    let (wanted, _) = watch::channel(BTreeSet::new());
    let mut core = Core::start(settings, Box::new(maps.clone()), Fresh::default(), wanted).unwrap();
    core.listed(Instant::now());
    core
}

fn nodes() -> String {
    let node = |name: &str, address: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{{type: InternalIP, address: \
             {address}}}]}}\n---\n"
        )
    };
    node("n1", "10.0.0.1") + &node("n2", "10.0.0.2")
}

/// A Service with its slice and pods, on both nodes in turn.
fn service(name: &str, address: &str, pods: &[u32]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, uid: uid-{name}, annotations: {{bowline.dev/addresses: \
         {address}}}}}\nspec: {{type: LoadBalancer, loadBalancerClass: bowline.dev/xdp, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, labels: \
         {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n"
    );
    for n in pods {
        writeln!(
            text,
            "- {{addresses: [10.1.{n}.1], nodeName: n{}, targetRef: {{kind: Pod, name: p{n}, uid: u{n}}}}}",
            1 + n % 2
        )
        .unwrap();
    }
    text
}

fn pods(names: &[u32]) -> String {
    let pod =
        |n: &u32| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, uid: u{n}}}\n---\n");
    names.iter().map(pod).collect::<Vec<_>>().concat()
}

fn identities(pods: &[u32]) -> BTreeSet<u32> {
    pods.iter()
        .map(|n| crate::model::secret::identity(&format!("u{n}"), 8080))
        .collect()
}

#[test]
fn a_service_comes_changes_and_goes_and_leaves_nothing() {
    let mut bench = Bench::new();
    bench.put("pods.yaml", &pods(&[1, 2, 3, 4]));
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 2]));
    bench.run(4);
    assert_eq!(bench.current("192.0.2.1"), identities(&[1, 2]));
    assert!(bench.agent.is_fresh());
    assert_eq!(bench.agent.problems(), []);
    assert_eq!(bench.maps.contents().peers.len(), 1);
    // Pods 2 and 4 are on this node (`n1`).
    assert_eq!(bench.maps.contents().locals.len(), 1);

    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 3]));
    bench.run(4);
    assert_eq!(bench.current("192.0.2.1"), identities(&[1, 3]));
    let remembered = |bench: &Bench| {
        let sets = bench.maps.contents().sets;
        sets.values().filter(|set| set.older != [0; 3]).count()
    };
    assert_eq!(remembered(&bench), 1, "pod 2 is remembered");

    bench.put("pods.yaml", &pods(&[1, 3, 4]));
    bench.run(4);
    assert_eq!(remembered(&bench), 0, "pod 2 is dead");
    assert_eq!(
        bench.maps.with(|maps| maps.inner().purged().to_vec()),
        identities(&[2]).into_iter().collect::<Vec<_>>()
    );

    bench.remove("web.yaml");
    bench.remove("pods.yaml");
    bench.remove("nodes.yaml");
    bench.run(4);
    let Contents { config, .. } = bench.maps.contents();
    assert_eq!(
        bench.maps.contents(),
        Contents {
            config,
            ..Contents::default()
        }
    );
}

#[test]
fn pods_that_outlive_their_service_leave_nothing_when_they_die() {
    let mut bench = Bench::new();
    bench.put("pods.yaml", &pods(&[1, 2]));
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 2]));
    bench.run(4);
    bench.remove("web.yaml");
    bench.run(4);
    assert_eq!(bench.maps.contents().locals.len(), 1, "pod 2 lives here");
    bench.remove("pods.yaml");
    bench.run(4);
    assert_eq!(bench.maps.contents().locals.len(), 0);
    assert_eq!(bench.maps.contents().backends.len(), 0);
}

#[test]
fn a_restarted_agent_changes_nothing() {
    let mut bench = Bench::new();
    bench.put("pods.yaml", &pods(&[1, 2, 3]));
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 2]));
    bench.put("api.yaml", &service("api", "192.0.2.2", &[2, 3]));
    bench.run(4);
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 3]));
    bench.run(4);
    let before = bench.maps.contents();
    let operations = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&operations);
    bench.maps.with(|maps| {
        maps.set_plan(move |_, op| {
            seen.lock().unwrap().push(op.clone());
            None
        });
    });
    bench.restart_agent();
    bench.run(4);
    assert_eq!(bench.maps.contents(), before);
    assert_eq!(*operations.lock().unwrap(), []);
    assert!(bench.agent.is_fresh());
    assert_eq!(bench.agent.drift(&before), 0);
}

#[test]
fn services_that_went_while_no_agent_ran_are_removed() {
    let mut bench = Bench::new();
    bench.put("pods.yaml", &pods(&[1, 2]));
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1]));
    bench.put("api.yaml", &service("api", "192.0.2.2", &[2]));
    bench.run(4);
    bench.user.remove("api.yaml");
    bench
        .manager
        .take([("api.yaml", &Content::Gone)], bench.now);
    bench
        .manager
        .work(bench.now + Duration::from_secs(2), bench.wall);
    bench.restart_agent();
    bench.run(4);
    assert!(bench.service("192.0.2.1").is_some());
    assert_eq!(bench.service("192.0.2.2"), None);
}

#[test]
fn the_stamp_waits_for_lists_and_secrets() {
    let mut bench = Bench::new();
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1]));
    bench.agent = agent(bench.dir.path(), &bench.maps);
    bench.agent.work(bench.now);
    assert!(!bench.agent.is_fresh());
    assert!(
        bench
            .agent
            .not_ready_because()
            .iter()
            .any(|reason| reason.contains("start the manager"))
    );
    bench.run(4);
    assert!(bench.agent.is_fresh());
}

#[test]
fn a_substitute_is_nobody_that_slots_remember() {
    let mut bench = Bench::new();
    bench.put("pods.yaml", &pods(&[1, 2, 3]));
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 2]));
    bench.run(4);
    let uses = |bench: &mut Bench| {
        let backends = bench.agent.backends().unwrap().backends;
        let uses = backends.iter();
        let uses = uses.map(|backend| {
            (
                backend.pod_uid.clone(),
                backend.current_in,
                backend.older_in,
            )
        });
        uses.collect::<BTreeSet<_>>()
    };
    let uid = |n: u32| Some(format!("u{n}"));
    assert_eq!(uses(&mut bench), [(uid(1), 1, 0), (uid(2), 1, 0)].into());
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 3]));
    bench.run(4);
    assert_eq!(
        uses(&mut bench),
        [(uid(1), 1, 0), (uid(2), 0, 1), (uid(3), 1, 0)].into()
    );
}

#[test]
fn one_failing_service_stops_no_other_and_recovers() {
    let mut bench = Bench::new();
    bench.put("pods.yaml", &pods(&[1, 2, 3]));
    bench.run(1);
    let bad = plan::service_key(
        "192.0.2.1".parse().unwrap(),
        80,
        lb_ebpf::wire::protocol::TCP,
    );
    bench.maps.with(|maps| {
        maps.set_plan(move |_, op| {
            matches!(op, Op::Service { key, .. } if *key == bad).then_some(Fault::Full)
        });
    });
    bench.put("bad.yaml", &service("bad", "192.0.2.1", &[1]));
    bench.put("web.yaml", &service("web", "192.0.2.2", &[2, 3]));
    bench.run(4);
    assert_eq!(bench.service("192.0.2.1"), None);
    assert_eq!(bench.current("192.0.2.2"), identities(&[2, 3]));
    let problems = bench.agent.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].object, "Service default/bad");
    assert!(
        problems[0].sentence.contains("is full"),
        "{}",
        problems[0].sentence
    );
    assert!(
        bench
            .agent
            .not_ready_because()
            .iter()
            .any(|reason| reason.starts_with("Service default/bad: "))
    );
    bench.maps.with(FaultyDataplane::heal);
    bench.run(10);
    assert_eq!(bench.current("192.0.2.1"), identities(&[1]));
    assert_eq!(bench.agent.problems(), []);
}

/// At every operation of a whole life in turn: whatever is in the maps is usable, and after the fault is over all is as it
/// would have been.
#[test]
fn a_fault_at_any_operation_leaves_no_half_programmed_service() {
    let life = |bench: &mut Bench| {
        bench.put("pods.yaml", &pods(&[1, 2, 3, 4]));
        bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 2]));
        bench.run(3);
        bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 3, 4]));
        bench.run(3);
        bench.put("pods.yaml", &pods(&[1, 3, 4]));
        bench.run(3);
    };
    for at in 0..60 {
        let mut bench = Bench::new();
        bench.maps.with(|maps| {
            maps.set_plan(move |n, _| (n >= at && n < at + 3).then_some(Fault::Full));
        });
        life(&mut bench);
        usable(&bench);
        bench.run(10);
        usable(&bench);
        assert_eq!(
            bench.current("192.0.2.1"),
            identities(&[1, 3, 4]),
            "fault at {at}"
        );
        assert_eq!(bench.agent.problems(), [], "fault at {at}");
        bench.remove("web.yaml");
        bench.remove("pods.yaml");
        bench.remove("nodes.yaml");
        bench.run(6);
        let Contents { config, .. } = bench.maps.contents();
        assert_eq!(
            bench.maps.contents(),
            Contents {
                config,
                ..Contents::default()
            },
            "fault at {at}"
        );
    }
}

/// Every row of every service names a slot with a backend that is there.
fn usable(bench: &Bench) {
    let contents = bench.maps.contents();
    for (key, entry) in &contents.services {
        if entry.flags & lb_ebpf::abi::service_flag::VIP != 0 {
            continue;
        }
        let (_, rows) = contents
            .regions
            .values()
            .find(|(region, _)| {
                region.rows == entry.current.rows && region.size == entry.current.size
            })
            .unwrap_or_else(|| panic!("{key:?} names no region"));
        for row in rows {
            assert!(u32::from(*row) < entry.slot_count, "{key:?}");
            let slot = contents.slots[&crate::model::op::SlotIndex(entry.slots + u32::from(*row))];
            assert!(
                contents
                    .backends
                    .contains_key(&crate::model::op::BackendId(slot.first)),
                "{key:?} {slot:?}"
            );
        }
    }
}

#[test]
fn a_table_that_is_no_good_leaves_the_last_good_one_in_the_maps() {
    let mut bench = Bench::new();
    bench.put("pods.yaml", &pods(&[1, 2]));
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 2]));
    bench.run(4);
    let before = bench.maps.contents();
    let path = Outputs::below(bench.dir.path())
        .tables()
        .join("default_web.yaml");
    let broken = Batch::from([(path.clone(), Content::Text("spec: [".to_owned()))]);
    bench.agent.take(&broken, bench.now);
    bench.agent.work(bench.now);
    assert_eq!(bench.maps.contents(), before);
    assert_eq!(bench.agent.problems()[0].object, "ServiceTable default/web");
    // Not even a restart takes it for a Service that is gone.
    bench.restart_agent();
    bench.agent.take(&broken, bench.now);
    bench.agent.work(bench.now + Duration::from_secs(3));
    assert_eq!(bench.maps.contents().services, before.services);
}

#[test]
fn the_answers_name_services_backends_and_what_is_wrong() {
    let mut bench = Bench::new();
    bench.put("pods.yaml", &pods(&[1, 2]));
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 2]));
    bench.put("bad.yaml", &service("bad", "nonsense", &[1]));
    bench.run(4);
    let services = bench.agent.services().unwrap().services;
    assert_eq!(
        services.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        ["bad", "web"]
    );
    assert_eq!(services[0].version, None);
    assert!(
        services[0].problem.as_ref().unwrap().contains("nonsense"),
        "{services:?}"
    );
    let web = &services[1];
    assert_eq!(
        (
            web.version,
            web.problem.clone(),
            web.ports[0].slots,
            web.ports[0].backends
        ),
        (Some(1), None, 2, 2)
    );
    let backends = bench.agent.backends().unwrap().backends;
    let shown: Vec<_> = backends
        .iter()
        .map(|b| {
            (
                b.pod.clone().unwrap(),
                b.node.clone().unwrap(),
                b.local,
                b.current_in,
                b.services.clone(),
            )
        })
        .collect();
    let web = vec!["default/web".to_owned()];
    assert_eq!(
        shown,
        [
            (
                "default/p1".to_owned(),
                "n2".to_owned(),
                false,
                1,
                web.clone()
            ),
            ("default/p2".to_owned(), "n1".to_owned(), true, 1, web)
        ]
    );
    let ask = |client: &str, vip: &str, protocol: &str| crate::admin::ExplainRequest {
        client: client.parse().unwrap(),
        vip: vip.parse().unwrap(),
        protocol: protocol.to_owned(),
    };
    let way = bench
        .agent
        .explain(&ask("203.0.113.9:51312", "192.0.2.1:80", "TCP"))
        .unwrap();
    assert_eq!(
        (way.service.as_deref(), way.version),
        (Some("default/web"), Some(1))
    );
    assert_eq!(way.candidates[0].because, "current");
    assert_eq!(
        way.first_packet,
        format!("goes to {}", way.candidates[0].pod)
    );
    let refused = |bench: &mut Bench, request| bench.agent.explain(&request).unwrap_err();
    assert!(matches!(
        refused(&mut bench, ask("203.0.113.9:1", "192.0.2.1:81", "TCP")),
        crate::serve::AskError::NotFound(_)
    ));
    assert!(matches!(
        refused(&mut bench, ask("203.0.113.9:1", "192.0.2.1:80", "QUIC")),
        crate::serve::AskError::Bad(_)
    ));
    let status = bench.agent.status().unwrap();
    assert_eq!(
        (
            status.services.total,
            status.services.programmed,
            status.services.pending
        ),
        (2, 1, 1)
    );
    assert!(!status.ready, "no interface carries XDP here");
    let metrics = crate::metrics::render(bench.agent.scrape().unwrap()).unwrap();
    for line in [
        "bowline_services{state=\"programmed\"} 1",
        "bowline_node_fresh 1",
        "bowline_service_packets_total{service=\"default/web\",port=\"80\",protocol=\"TCP\"} 0",
        "bowline_service_table_version{service=\"default/web\"} 1",
        "bowline_applies_total{outcome=\"done\"}",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[test]
fn a_map_that_is_too_small_fails_the_service_that_does_not_fit_only() {
    let capacity = Capacity {
        backends: 4,
        ..Capacity::default()
    };
    let mut bench = Bench::sized(capacity);
    bench.put("pods.yaml", &pods(&[1, 2, 3, 4, 5]));
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1, 2]));
    bench.run(4);
    bench.put("zig.yaml", &service("zig", "192.0.2.2", &[3, 4]));
    bench.run(4);
    assert_eq!(bench.current("192.0.2.1"), identities(&[1, 2]));
    assert_eq!(bench.service("192.0.2.2"), None);
    assert!(
        bench.agent.problems()[0].sentence.contains("backends"),
        "{:?}",
        bench.agent.problems()
    );
    bench.remove("web.yaml");
    bench.remove("pods.yaml");
    bench.put("pods.yaml", &pods(&[3, 4]));
    bench.run(10);
    assert_eq!(bench.agent.problems(), []);
    assert_eq!(bench.current("192.0.2.2"), identities(&[3, 4]));
}
