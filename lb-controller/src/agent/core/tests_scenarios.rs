//! From YAML to a dump of the maps, as in a cluster: the manager's core and the agent of node `n1` between objects, over maps
//! in memory, maps that fail now and then, and the kernel's. Each scenario ends with everything deleted and empty maps. One file:
//! the table of scenarios is what is to be read, and the rest plays it.

use std::fmt::Write as _;

use lb_ebpf::abi::{self, hash_fields, service_flag};

use super::tests::Shared;
use super::*;
use crate::api::load_balancer_node::{
    LoadBalancerNode, LoadBalancerNodeSpec, NodeInterface, NodeRole, XdpMode,
};
use crate::api::service_table::ServiceTable;
use crate::dataplane::attach::Interface;
use crate::dataplane::fake::FakeDataplane;
use crate::dataplane::faulty::{Fault, FaultyDataplane};
use crate::dataplane::flows::TCP;
use crate::dataplane::links::{self, Link, LinkRole, XdpProgram};
use crate::dataplane::testing::{BpfDir, SIZES, is_root};
use crate::dataplane::{Contents, bpf};
use crate::liveness::{Condition, Liveness, Peer, State};
use crate::manager::core::{Core as Manager, Requests, Write};
use crate::model::op::{BackendId, ServiceKey, SetId, SlotIndex};
use crate::model::plan::{address_of, port_of};
use crate::model::secret::identity;
use crate::source::index::Event;
use crate::source::parse::{Kind, Object, parse};

/// What every scenario starts from; its steps replace words in it.
const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 10.0.0.2}]}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  uid: web
  annotations: {bowline.dev/addresses: '192.0.2.1'}
spec:
  type: LoadBalancer
  loadBalancerClass: bowline.dev/xdp
  ports: [{port: 80}]
  externalTrafficPolicy: Cluster
  sessionAffinity: None
  loadBalancerSourceRanges: []
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.1.0.1], nodeName: n1, conditions: {ready: true}, targetRef: {kind: Pod, name: p1, uid: u1}}
- {addresses: [10.1.0.2], nodeName: n2, conditions: {ready: true}, targetRef: {kind: Pod, name: p2, uid: u2}}
---
apiVersion: v1
kind: Pod
metadata: {name: p1, uid: u1}
---
apiVersion: v1
kind: Pod
metadata: {name: p2, uid: u2}
---
apiVersion: bowline.dev/v1alpha1
kind: L2Advertisement
metadata: {name: nowhere}
spec: {interfaces: [eth9]}
";

/// What the maps hold then.
const START: &str = "192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p1, p2 | p1 is here | peer 10.0.0.2";

/// Index, name and MAC of the interface.
const UPLINK: (IfIndex, &str, [u8; 6]) = (2, "eth0", [2, 0, 0, 0, 0, 1]);

fn is_up(ifindex: IfIndex, name: &str, mac: [u8; 6], on_link: &[&str]) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        mac: Some(mac),
        mtu: 1500,
        running: true,
        role: LinkRole::Own,
        xdp: None,
        default_route: true,
        subnet: true,
        on_link: on_link.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

/// The manager, and the agent of `n1`; `n2` is told to have an agent, too.
struct Scene<D> {
    manager: Manager,
    agent: Core,
    maps: Shared<D>,
    objects: BTreeMap<ObjectKey, Object>,
    now: Instant,
    wall: jiff::Timestamp,
    /// How often the agent's own object was written.
    node_writes: u32,
    node_object: Option<LoadBalancerNodeSpec>,
}

impl<D: Dataplane + 'static> Scene<D> {
    fn new(maps: D) -> Self {
        let maps = Shared::over(maps);
        let settings = Settings {
            hands_off: false,
            node: "n1".to_owned(),
            role: Role::Both,
            addresses: Vec::new(),
            relay: true,
            pin_dir: "/pins".into(),
            flows: 1024,
            pins: 1 << 16,
            route_table: None,
            bird: false,
            origin: Origin::Cluster,
        };
        let (wanted, _) = watch::channel(BTreeSet::new());
        let mut scene = Self {
            manager: Manager::new(Requests::Free),
            agent: Core::start(settings, Box::new(maps.clone()), Fresh::default(), wanted).unwrap(),
            maps,
            objects: BTreeMap::new(),
            now: Instant::now(),
            wall: jiff::Timestamp::UNIX_EPOCH,
            node_writes: 0,
            node_object: None,
        };
        let secrets = ClusterSecrets {
            hash: [1; 32],
            encap: [2; 8],
            encap_previous: None,
            gossip: [3; 32],
        };
        scene.agent.take_secret(Ok(secrets), scene.now);
        scene.uplink(UPLINK.2, &["10.0.0.0/24"]);
        scene.other_agent(&["10.0.0.0/24", "192.0.2.0/24"]);
        scene.hear(State::Alive);
        scene.agent.listed(scene.now);
        scene
    }

    /// This node's interface is so.
    fn uplink(&mut self, mac: [u8; 6], on_link: &[&str]) {
        let (ifindex, name, _) = UPLINK;
        let links: Links = [is_up(ifindex, name, mac, on_link)].into_iter().collect();
        let interface = Interface {
            name: name.to_owned(),
            ifindex,
            xdp: Some(XdpProgram {
                id: 7,
                mode: links::XdpMode::Native,
            }),
            egress: None,
            problem: None,
        };
        self.agent
            .interfaces(&[interface], vec![ifindex], &Arc::new(links));
    }

    /// What the agent of `n2` says of its interface.
    fn other_agent(&mut self, on_link: &[&str]) {
        let spec = LoadBalancerNodeSpec {
            role: NodeRole::Both,
            version: "1".to_owned(),
            addresses: vec![[10, 0, 0, 2].into()],
            interfaces: vec![NodeInterface {
                name: "eth0".to_owned(),
                xdp: XdpMode::Native,
                mac: Some("02:00:00:00:00:02".to_owned()),
                subnets: on_link.iter().map(|net| net.parse().unwrap()).collect(),
            }],
        };
        self.balancer("n2", spec);
    }

    fn balancer(&mut self, name: &str, spec: LoadBalancerNodeSpec) {
        let key = key(Kind::LoadBalancerNode, "", name);
        let object = Object::LoadBalancerNode(Box::new(LoadBalancerNode::new(name, spec)));
        self.agent
            .take_objects(vec![Event::Apply(key, object)], self.now);
    }

    /// What the other agent is heard to be.
    fn hear(&mut self, state: State) {
        let peer = Peer {
            state,
            since: self.now,
            condition: Condition {
                tables: 0,
                is_fresh: true,
                is_ready: true,
            },
        };
        let liveness = Liveness {
            peers: [("n2".into(), peer)].into(),
            settled: true,
            ..Liveness::default()
        };
        self.agent.take_liveness(Arc::new(liveness), self.now);
    }

    /// Makes these all objects of users that there are.
    fn put(&mut self, yaml: &str) {
        let parsed = parse(yaml).unwrap();
        assert_eq!(parsed.faults, []);
        let objects: BTreeMap<_, _> = parsed.objects.into_iter().collect();
        let gone = self.objects.keys().filter(|key| !objects.contains_key(key));
        let mut events: Vec<_> = gone.cloned().map(Event::Delete).collect();
        for (key, object) in &objects {
            if self.objects.get(key) != Some(object) {
                events.push(Event::Apply(key.clone(), object.clone()));
            }
        }
        self.objects = objects;
        self.manager.take(events.clone(), self.now);
        self.agent.take_objects(events, self.now);
    }

    /// Lets time pass, with whatever becomes due.
    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.now += Duration::from_millis(250);
            self.wall += jiff::SignedDuration::from_millis(250);
            let writes = self.manager.work(self.now, self.wall);
            let events = writes.into_iter().filter_map(event).collect();
            self.agent.take_objects(events, self.now);
            self.agent.work(self.now);
            let object = self.agent.node_object();
            if self.node_object != object {
                self.node_object.clone_from(&object);
                self.node_writes += 1;
                self.balancer("n1", object.unwrap());
            }
        }
    }

    fn contents(&self) -> Contents {
        self.maps.with(|maps| maps.inner_mut().read().unwrap())
    }

    fn dump(&self) -> String {
        dump(&self.contents())
    }
}

fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// What an API server tells the agent of what the manager writes.
fn event(write: Write) -> Option<Event> {
    let Write::Table { named, table } = write else {
        return None;
    };
    let key = key(Kind::ServiceTable, &named.namespace, &named.name);
    Some(match table {
        Some(spec) => {
            let object = ServiceTable::new(&named.name, *spec);
            Event::Apply(key, Object::ServiceTable(Box::new(object)))
        }
        None => Event::Delete(key),
    })
}

/// What the maps hold, in words: ids are left out, pods have their names.
fn dump(contents: &Contents) -> String {
    let mut lines = Vec::new();
    for (key, value) in &contents.announced {
        lines.push(format!(
            "{} announced on {} as {}",
            address_of(key.addr),
            key.ifindex,
            view::mac_text(value.mac.to_bytes())
        ));
    }
    for (key, entry) in &contents.services {
        let (port, protocol) = port_of(*key);
        let protocol = if protocol == TCP { "TCP" } else { "UDP" };
        let vip = match key {
            ServiceKey::V4(key) => IpAddr::from(key.addr.to_bytes()),
            ServiceKey::V6(key) => IpAddr::from(key.addr.to_bytes()),
        };
        lines.push(if entry.flags & service_flag::VIP != 0 {
            format!("{vip} is a VIP")
        } else {
            format!("{vip}:{port}/{protocol}{}", service(contents, entry))
        });
    }
    for address in contents.peers.keys() {
        lines.push(format!("peer {}", address_of(*address)));
    }
    for pod in contents.locals.values() {
        lines.push(format!("{} is here", pod_of(pod.identity)));
    }
    let named: usize = contents
        .services
        .values()
        .filter(|e| e.slot_count > 0)
        .map(|e| e.slot_count as usize)
        .sum();
    assert!(contents.slots.len() <= named, "slots of nobody");
    lines.sort();
    lines.join(" | ")
}

/// A Service's entry: how it treats packets, and the occupants of its slots.
fn service(contents: &Contents, entry: &abi::ServiceEntry) -> String {
    let mut text = String::new();
    if entry.flags & service_flag::LOCAL_POLICY != 0 {
        text += " local";
    }
    if entry.current.size > 0 && entry.current.fields == hash_fields::ADDRESSES {
        text += " by address";
    }
    if entry.flags & service_flag::SOURCE_RANGES != 0 {
        let ranges = contents.source_ranges.iter();
        let own = ranges.filter(|range| range.service() == entry.id);
        for range in own {
            let address = address_of(range.key.addr);
            let mapped = if address.is_ipv4() { 96 } else { 0 };
            let bits = range.prefix_len - 32 - mapped;
            write!(text, " from {address}/{bits}").unwrap();
        }
    }
    let previous = entry.previous.iter().filter(|table| table.size > 0).count();
    if previous > 0 {
        write!(text, " +{previous} previous").unwrap();
    }
    let slots = (0..entry.slot_count).map(|slot| {
        let slot = contents.slots.get(&SlotIndex(entry.slots + slot));
        let slot = slot.copied().unwrap_or_default();
        let mut text = name(contents, slot.first);
        let set = contents.sets.get(&SetId(slot.set & !abi::SLOT_DEVIATES));
        let before = set
            .iter()
            .flat_map(|set| [set.current].into_iter().chain(set.older));
        for backend in before.filter(|backend| *backend != 0) {
            text += " after ";
            text += &name(contents, backend);
        }
        text
    });
    let slots: Vec<_> = slots.collect();
    text + ": " + &slots.join(", ")
}

fn name(contents: &Contents, backend: u32) -> String {
    match contents.backends.get(&BackendId(backend)) {
        _ if backend == 0 => "nobody".to_owned(),
        Some(backend) => pod_of(backend.identity),
        None => panic!("backend {backend} is named and not there"),
    }
}

fn pod_of(wanted: u32) -> String {
    let pods = (1..=9).flat_map(|n| [(n, 8080), (n, 8081)]);
    let mut found = pods.filter(|(n, port)| identity(&format!("u{n}"), *port) == wanted);
    let (n, port) = found.next().unwrap();
    match port {
        8080 => format!("p{n}"),
        port => format!("p{n}:{port}"),
    }
}

/// What happens in a step.
enum Act {
    /// Words of the objects change.
    Words(&'static [(&'static str, &'static str)]),
    /// The other agent is so.
    Hear(State),
    /// The interface has a MAC that ends so, and reaches these networks.
    Uplink(u8, &'static [&'static str]),
}

/// A scenario: each step, and what the maps hold after it.
type Scenario = (&'static str, &'static [(Act, &'static str)]);

const SCENARIOS: &[Scenario] = &[
    (
        "source ranges come, change and go",
        &[
            (
                Act::Words(&[(
                    "SourceRanges: []",
                    "SourceRanges: [203.0.113.0/24, 198.51.100.7/32]",
                )]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP from 203.0.113.0/24 from 198.51.100.7/32: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Words(&[("203.0.113.0/24, ", "")]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP from 198.51.100.7/32: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Words(&[("[198.51.100.7/32]", "[]")]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
        ],
    ),
    (
        "policy Local has pods of this node alone, an ending one while it serves; then strays are dropped",
        &[
            (
                Act::Words(&[("Policy: Cluster", "Policy: Local")]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP local: p1 after p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Words(&[(
                    "nodeName: n1, conditions: {ready: true}",
                    "nodeName: n1, conditions: {ready: false, serving: true, terminating: true}",
                )]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP local: p1 after p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Words(&[("serving: true", "serving: false")]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP local: nobody after p1 after p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Words(&[(
                    "{name: p1, uid: u1}\n",
                    "{name: p1, uid: u1}\nstatus: {phase: Failed}\n",
                )]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP local:  | peer 10.0.0.2",
            ),
            (
                Act::Words(&[("Policy: Local", "Policy: Cluster")]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p2, p2 | peer 10.0.0.2",
            ),
        ],
    ),
    (
        "affinity is another table, and the one before may still own flows",
        &[
            (
                Act::Words(&[("sessionAffinity: None", "sessionAffinity: ClientIP")]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP by address +1 previous: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Words(&[("sessionAffinity: ClientIP", "sessionAffinity: None")]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP +1 previous: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
        ],
    ),
    (
        "without a usable endpoint nobody gets new flows, and old ones find their pods",
        &[
            (
                Act::Words(&[("conditions: {ready: true}", "conditions: {ready: false}")]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP: nobody after p1, nobody after p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Words(&[(
                    "nodeName: n2, conditions: {ready: false}",
                    "nodeName: n2, conditions: {ready: true}",
                )]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p2 after p1, p2 | p1 is here | peer 10.0.0.2",
            ),
        ],
    ),
    (
        "a VIP is announced by a node on its link, else by one that lives, with the MAC of the interface",
        &[
            (
                Act::Words(&[("interfaces: [eth9]", "interfaces: []")]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Uplink(1, &["10.0.0.0/24", "192.0.2.0/24"]),
                "192.0.2.1 announced on 2 as 02:00:00:00:00:01 | 192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Uplink(9, &["192.0.2.0/24"]),
                "192.0.2.1 announced on 2 as 02:00:00:00:00:09 | 192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Uplink(1, &["10.0.0.0/24"]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Hear(State::Down),
                "192.0.2.1 announced on 2 as 02:00:00:00:00:01 | 192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p1, p1 after p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Hear(State::Alive),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP: p1, p2 | p1 is here | peer 10.0.0.2",
            ),
        ],
    ),
    (
        "under policy Local a VIP leaves with the pod that ends",
        &[
            (
                Act::Words(&[
                    ("interfaces: [eth9]", "interfaces: []"),
                    ("Policy: Cluster", "Policy: Local"),
                ]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP local: p1 after p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Words(&[(
                    "nodeName: n2, conditions: {ready: true}",
                    "nodeName: n2, conditions: {ready: false, serving: true, terminating: true}",
                )]),
                "192.0.2.1 announced on 2 as 02:00:00:00:00:01 | 192.0.2.1 is a VIP | 192.0.2.1:80/TCP local: p1 after p2 | p1 is here | peer 10.0.0.2",
            ),
            (
                Act::Words(&[
                    (
                        "nodeName: n1, conditions: {ready: true}",
                        "nodeName: n1, conditions: {ready: false, serving: true, terminating: true}",
                    ),
                    (
                        "nodeName: n2, conditions: {ready: false, serving: true, terminating: true}",
                        "nodeName: n2, conditions: {ready: true}",
                    ),
                ]),
                "192.0.2.1 is a VIP | 192.0.2.1:80/TCP local: p1 after p2 | p1 is here | peer 10.0.0.2",
            ),
        ],
    ),
];

/// Plays a scenario; with faults, one operation in four fails during each step.
fn play<D: Dataplane + 'static>(maps: D, faults: Option<u64>, (name, steps): &Scenario) {
    let mut scene = Scene::new(maps);
    let mut yaml = CLUSTER.to_owned();
    scene.put(&yaml);
    scene.run(4);
    assert_eq!(scene.dump(), START, "{name}: start");
    let mut wrong = Vec::new();
    for (number, (act, expected)) in steps.iter().enumerate() {
        if let Some(seed) = faults {
            scene.maps.with(|maps| {
                maps.set_plan(move |n, _| {
                    let random = n.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    (random >> 62 == 0).then_some(Fault::NoMemory)
                });
            });
        }
        match act {
            Act::Words(words) => {
                for (old, new) in *words {
                    assert!(yaml.contains(old), "{name}: {old}");
                    yaml = yaml.replace(old, new);
                }
                scene.put(&yaml);
            }
            Act::Hear(state) => scene.hear(*state),
            Act::Uplink(mac, on_link) => scene.uplink([2, 0, 0, 0, 0, *mac], on_link),
        }
        scene.run(4);
        if faults.is_some() {
            scene.maps.with(FaultyDataplane::heal);
            scene.run(7);
        }
        if scene.dump() != *expected {
            wrong.push((number, scene.dump(), *expected));
        }
        assert_eq!(
            scene.agent.drift(&scene.contents()),
            0,
            "{name}: step {number}"
        );
        assert_eq!(scene.agent.problems(), [], "{name}: step {number}");
    }
    assert_eq!(wrong, [], "{name}: step, found, expected");
    // Endpoints, policies and announcements are none of the node's object.
    let uplinks = steps
        .iter()
        .filter(|(act, _)| matches!(act, Act::Uplink(..)));
    assert_eq!(scene.node_writes, 1 + uplinks.count() as u32, "{name}");
    scene.put("");
    scene.run(8);
    let Contents { config, .. } = scene.contents();
    let empty = Contents {
        config,
        ..Contents::default()
    };
    assert_eq!(scene.contents(), empty, "{name}: end");
}

#[test]
fn scenarios_on_maps_in_memory() {
    for scenario in SCENARIOS {
        play(FakeDataplane::new(SIZES.capacity), None, scenario);
    }
}

#[test]
fn scenarios_on_maps_that_fail_now_and_then() {
    for scenario in SCENARIOS {
        for seed in 0..4 {
            play(FakeDataplane::new(SIZES.capacity), Some(seed), scenario);
        }
    }
}

#[test]
fn scenarios_on_the_kernels_maps() {
    if !is_root("scenarios_on_the_kernels_maps") {
        return;
    }
    for (number, scenario) in SCENARIOS.iter().enumerate() {
        let dir = BpfDir::new();
        let (maps, _programs) = bpf::open(&dir.path().join("bowline"), &SIZES).unwrap();
        // Every other one with failures.
        play(maps, (number % 2 == 1).then_some(7), scenario);
    }
}
