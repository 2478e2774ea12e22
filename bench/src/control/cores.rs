//! A manager's and an agent's core with real maps, and no API server between them: what our own code takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use lb_controller::api::service_table::{ServiceTable, ServiceTableSpec};
use lb_controller::manager::core::{Core as Manager, Requests, Wanted, Write};
use lb_controller::source::index::{Event, Named};
use lb_controller::source::parse::{Kind, Object, ObjectKey};

use super::lists::{Who, agent_lists, decoded, manager_lists, pod};
use super::node::Node;
use super::objects::{self, First, NAMESPACE, PodNumber, Scale};
use crate::pin_dir::PinDir;
use crate::rounds::processor_time;

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
