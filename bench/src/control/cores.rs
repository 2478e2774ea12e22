//! A manager's and an agent's core with real maps, and no API server between them: what our own code takes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use lb_controller::admin::Role;
use lb_controller::agent::core::{Core as Agent, Origin, Settings};
use lb_controller::agent::stamp::Fresh;
use lb_controller::api::service_table::{ServiceTable, ServiceTableSpec};
use lb_controller::dataplane::attach::Interface;
use lb_controller::dataplane::bpf;
use lb_controller::dataplane::links::{Link, LinkRole, Links, XdpMode, XdpProgram};
use lb_controller::dataplane::load::Sizes;
use lb_controller::dataplane::next_hop::NextHops;
use lb_controller::liveness::{Liveness, Peer, State};
use lb_controller::manager::core::{Core as Manager, Requests, Wanted, Write};
use lb_controller::model::template::NextHop;
use lb_controller::source::index::{Event, Named};
use lb_controller::source::kubernetes;
use lb_controller::source::parse::{Kind, Object, ObjectKey};
use lb_controller::source::secret::ClusterSecrets;
use serde_json::{Value, json};

use super::objects::{
    self, BALANCERS, First, INTERFACE, NAMESPACE, NODES, OWN_NODE, PodNumber, SYSTEM, Scale,
};
use crate::pin_dir::PinDir;
use crate::rounds::processor_time;

/// Longest time until everything is applied.
const LIMIT: Duration = Duration::from_mins(5);
/// Index of the uplink; no packet is sent.
const IFINDEX: u32 = 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Who watches.
#[derive(Clone, Copy)]
pub(super) enum Who {
    Manager,
    Agent,
}

/// An object as a watch tells it, from the bytes of the wire.
pub(super) fn decoded(who: Who, kind: Kind, json: &str) -> anyhow::Result<(ObjectKey, Object)> {
    let wanted = match who {
        Who::Manager => kubernetes::manager(),
        Who::Agent => kubernetes::agent(&objects::node_name(OWN_NODE), SYSTEM),
    };
    let wanted = wanted.iter().find(|wanted| wanted.kind() == kind);
    let wanted = wanted.with_context(|| format!("nobody watches {kind:?}"))?;
    let (key, object) = kubernetes::decode(wanted, json.as_bytes())?;
    Ok((key, object.map_err(anyhow::Error::msg)?))
}

fn with_uid(mut object: Value, uid: &str) -> Value {
    object["metadata"]["uid"] = json!(uid);
    object
}

pub(super) fn pod(number: PodNumber) -> Value {
    with_uid(objects::pod(number), &number.uid())
}

pub(super) fn service(number: u32) -> Value {
    with_uid(
        objects::service(number),
        &format!("{number:08x}-0000-4000-8000-000000000000"),
    )
}

/// The lists that a manager starts with.
fn manager_lists(scale: Scale) -> anyhow::Result<Vec<Event>> {
    let of = |kind: Kind| move |object: Value| (kind, object);
    let all = [(Kind::AddressPool, objects::pool())];
    lists(
        Who::Manager,
        all.into_iter()
            .chain((0..NODES).map(objects::node).map(of(Kind::Node)))
            .chain(scale.pods().map(pod).map(of(Kind::Pod)))
            .chain((0..scale.services).map(service).map(of(Kind::Service)))
            .chain(slices(scale).map(of(Kind::EndpointSlice))),
    )
}

/// What an agent is told, but for tables.
pub(super) fn agent_objects(scale: Scale) -> impl Iterator<Item = (Kind, Value)> {
    let own = objects::node_name(OWN_NODE);
    let own = scale.pods().filter(move |number| number.node() == own);
    let of = |kind: Kind| move |object: Value| (kind, object);
    let single = [
        (Kind::AddressPool, objects::pool()),
        (Kind::L2Advertisement, objects::advertisement()),
    ];
    single
        .into_iter()
        .chain((0..NODES).map(objects::node).map(of(Kind::Node)))
        .chain(
            (0..BALANCERS)
                .map(objects::balancer)
                .map(of(Kind::LoadBalancerNode)),
        )
        .chain(own.map(pod).map(of(Kind::Pod)))
        .chain((0..scale.services).map(service).map(of(Kind::Service)))
        .chain(slices(scale).map(of(Kind::EndpointSlice)))
}

/// The lists that an agent starts with, but for tables.
fn agent_lists(scale: Scale) -> anyhow::Result<Vec<Event>> {
    lists(Who::Agent, agent_objects(scale))
}

/// First lists, one for each kind.
pub(super) fn lists(
    who: Who,
    all: impl IntoIterator<Item = (Kind, Value)>,
) -> anyhow::Result<Vec<Event>> {
    let mut lists: BTreeMap<Kind, BTreeMap<ObjectKey, Object>> = BTreeMap::new();
    for (kind, value) in all {
        let (key, object) = decoded(who, kind, &value.to_string())?;
        lists.entry(kind).or_default().insert(key, object);
    }
    let reset = |(kind, objects)| Event::Reset {
        kind,
        objects,
        refused: BTreeMap::new(),
    };
    Ok(lists.into_iter().map(reset).collect())
}

fn slices(scale: Scale) -> impl Iterator<Item = Value> {
    (0..scale.services).map(move |service| scale.slice(service, First::Original, PodNumber::uid))
}

/// An agent on maps of its own.
pub(super) struct Node {
    pub(super) agent: Agent,
    fresh: Fresh,
}

impl Node {
    /// Opens the maps; those that another one has left are read back.
    pub(super) fn open(dir: &PinDir) -> anyhow::Result<Self> {
        Self::open_at(dir.path())
    }

    pub(super) fn open_at(dir: &Path) -> anyhow::Result<Self> {
        let sizes = Sizes {
            flows: 1024,
            ..Sizes::default()
        };
        let (maps, _programs) = bpf::open(&dir.join("control"), &sizes)?;
        let fresh = Fresh::default();
        let settings = Settings {
            node: objects::node_name(OWN_NODE),
            role: Role::Both,
            addresses: Vec::new(),
            relay: true,
            pin_dir: dir.to_owned(),
            flows: sizes.flows,
            origin: Origin::Cluster,
        };
        let (wanted, _) = tokio::sync::watch::channel(std::collections::BTreeSet::new());
        let mut agent = Agent::start(settings, Box::new(maps), fresh.clone(), wanted)?;
        let xdp = XdpProgram {
            id: 1,
            mode: XdpMode::Native,
        };
        let uplink = Interface {
            name: INTERFACE.to_owned(),
            ifindex: IFINDEX,
            xdp: Some(xdp),
            egress: None,
            problem: None,
        };
        let link = Link {
            ifindex: IFINDEX,
            name: INTERFACE.to_owned(),
            mac: Some(MAC),
            mtu: 1500,
            running: true,
            role: LinkRole::Own,
            xdp: Some(xdp),
            default_route: true,
            subnet: true,
            on_link: std::collections::BTreeSet::new(),
        };
        agent.interfaces(
            &[uplink],
            vec![IFINDEX],
            &Arc::new([link].into_iter().collect::<Links>()),
        );
        let hop = NextHop {
            ifindex: IFINDEX,
            src: MAC,
            dst: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
        };
        let hops: NextHops = (0..NODES)
            .map(|number| (IpAddr::V4(objects::node_address(number)), Ok(hop)))
            .collect();
        agent.next_hops(Arc::new(hops));
        let now = Instant::now();
        let alive = Peer {
            state: State::Alive,
            since: now,
        };
        let peers = (0..BALANCERS).filter(|number| *number != OWN_NODE);
        let liveness = Liveness {
            peers: peers
                .map(|number| (objects::node_name(number).into(), alive))
                .collect(),
            settled: true,
            returns: 0,
        };
        agent.take_liveness(Arc::new(liveness), now);
        agent.take_secret(
            ClusterSecrets::random().map_err(|error| error.to_string()),
            now,
        );
        Ok(Self { agent, fresh })
    }

    /// Works until everything is applied; what the agent's loop does after each event is done too.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            self.agent.work(Instant::now());
            std::hint::black_box((
                self.agent.node_object(),
                self.agent.members(),
                self.agent.telling(),
            ));
            if self.fresh.is() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < LIMIT,
                "the agent is not ready: {:?}",
                self.agent.not_ready_because()
            );
        }
    }

    /// From complete lists to tables in the maps.
    pub(super) fn start(&mut self, lists: Vec<Event>, tables: Event) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let now = Instant::now();
        self.agent.take_objects(lists, now);
        self.agent.take_objects(vec![tables], now);
        self.agent.listed(now);
        self.settle()?;
        Ok(start.elapsed())
    }
}

/// A whole cluster of one node.
pub(super) struct Cluster {
    manager: Manager,
    node: Node,
    scale: Scale,
    /// Time as the manager is told it: a table is written at most once a second, and nobody waits for that here.
    now: Instant,
    wall: Timestamp,
    /// What the last lists took.
    pub(super) manager_start: Duration,
    pub(super) agent_start: Duration,
}

/// What one event took, in processor time: others run on this machine too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    pub(super) manager: Duration,
    pub(super) agent: Duration,
}

impl Cluster {
    pub(super) fn start(scale: Scale, dir: &PinDir) -> anyhow::Result<Self> {
        let lists = manager_lists(scale)?;
        let (now, wall) = (Instant::now(), Timestamp::now());
        let mut manager = Manager::new(Requests::FromPools);
        manager.take(lists, now);
        let writes = manager.work(now, wall);
        let manager_start = now.elapsed();
        let tables = tables(writes);
        ensure!(
            tables.len() == scale.services as usize,
            "{} tables",
            tables.len()
        );
        let tables = Event::Reset {
            kind: Kind::ServiceTable,
            objects: tables,
            refused: BTreeMap::new(),
        };
        let lists = agent_lists(scale)?;
        let mut node = Node::open(dir)?;
        let agent_start = node.start(lists, tables)?;
        Ok(Self {
            manager,
            node,
            scale,
            now,
            wall,
            manager_start,
            agent_start,
        })
    }

    /// A slice changes: from the bytes of its event to the slots of its tables.
    pub(super) fn change(&mut self, service: u32, first: First) -> anyhow::Result<Took> {
        if let First::Replaced = first {
            let new = pod(objects::replacement(service)).to_string();
            let (key, object) = decoded(Who::Manager, Kind::Pod, &new)?;
            self.manager.take([Event::Apply(key, object)], self.now);
            self.manager.work(self.now, self.wall);
        }
        self.now += Duration::from_secs(1);
        let json = self.scale.slice(service, first, PodNumber::uid).to_string();
        let start = processor_time()?;
        let (key, object) = decoded(Who::Manager, Kind::EndpointSlice, &json)?;
        let event = Event::Apply(key, object);
        self.manager.take([event], self.now);
        let writes = self.manager.work(self.now, self.wall);
        let [
            Write::Table {
                named,
                table: Some(table),
            },
        ] = writes.as_slice()
        else {
            anyhow::bail!("one table and nothing else should change, but these did: {writes:?}");
        };
        let table = serde_json::to_string(&object_of(named, table))?;
        let between = processor_time()?;
        let (key, object) = decoded(Who::Agent, Kind::EndpointSlice, &json)?;
        self.agent([Event::Apply(key, object)])?;
        let (key, object) = decoded(Who::Agent, Kind::ServiceTable, &table)?;
        self.agent([Event::Apply(key, object)])?;
        Ok(Took {
            manager: between.saturating_sub(start),
            agent: processor_time()?.saturating_sub(between),
        })
    }

    fn agent<const N: usize>(&mut self, events: [Event; N]) -> anyhow::Result<()> {
        self.node.agent.take_objects(events.into(), Instant::now());
        self.node.settle()
    }

    /// All tables, as they are now.
    pub(super) fn tables(&self) -> anyhow::Result<BTreeMap<ObjectKey, Object>> {
        let mut objects = BTreeMap::new();
        for number in 0..self.scale.services {
            let named = named(number);
            let Wanted::This {
                table: Some(table), ..
            } = self.manager.wanted(&named)
            else {
                anyhow::bail!("{named} has no table");
            };
            insert(&mut objects, &named, table);
        }
        Ok(objects)
    }

    /// The time that the agent takes to be what it was, on maps that are as it left them.
    pub(super) fn restart(self, dir: &PinDir) -> anyhow::Result<Duration> {
        let objects = self.tables()?;
        let lists = agent_lists(self.scale)?;
        drop(self);
        let tables = Event::Reset {
            kind: Kind::ServiceTable,
            objects,
            refused: BTreeMap::new(),
        };
        let start = Instant::now();
        let mut node = Node::open(dir)?;
        node.start(lists, tables)?;
        Ok(start.elapsed())
    }
}

fn named(service: u32) -> Named {
    Named {
        namespace: NAMESPACE.to_owned(),
        name: objects::service_name(service),
    }
}

fn object_of(named: &Named, table: &ServiceTableSpec) -> ServiceTable {
    let mut object = ServiceTable::new(&named.name, table.clone());
    object.metadata.namespace = Some(named.namespace.clone());
    object
}

fn insert(objects: &mut BTreeMap<ObjectKey, Object>, named: &Named, table: &ServiceTableSpec) {
    let key = ObjectKey {
        kind: Kind::ServiceTable,
        namespace: named.namespace.clone(),
        name: named.name.clone(),
    };
    objects.insert(key, object_of(named, table).into());
}

/// The tables among writes.
pub(super) fn tables(writes: Vec<Write>) -> BTreeMap<ObjectKey, Object> {
    let mut objects = BTreeMap::new();
    for write in writes {
        if let Write::Table {
            named,
            table: Some(table),
        } = write
        {
            insert(&mut objects, &named, &table);
        }
    }
    objects
}

/// Resident memory of this process, now and at most, in bytes.
pub(super) fn resident() -> anyhow::Result<(f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let field = |name: &str| -> anyhow::Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kilobytes: f64 = kilobytes.context("no such field")?.trim().parse()?;
        Ok(kilobytes * 1024.0)
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}
