//! A simulated cluster while a script runs: clients, a router, nodes under one scheme, pods, an API server and who hears of
//! what it says. One queue of events, so the same seed and script give the same run.

mod changes;
mod control;
mod traffic;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::api::{Api, PodId};
use super::client::Client;
use super::dice::{Dice, Purpose};
use super::manager::Manager;
use super::node::kernel::Counts;
use super::oracle::Tally;
use super::pod::{self, Pod};
use super::queue::{Nanos, Queue, SECOND};
use super::router::Router;
use super::schemes::Scheme;
use super::script::Script;
use super::segment::{FlowId, Segment, ServiceId};
use super::wire::NodeId;
use crate::rounds::Samples;
use changes::Step;

/// Clients begin when all nodes have their tables.
const FIRST_FLOW: Nanos = SECOND;
/// How often entries at balancers are counted.
const SAMPLE_EVERY: Nanos = SECOND;

/// What to run.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) script: &'a Script,
    pub(super) seed: u64,
    /// Only these flows; all if there is none.
    pub(super) only: &'a [FlowId],
}

/// What came of a run.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    pub(super) tally: Tally,
    pub(super) counts: Counts,
    /// Entries about flows at all balancers, once a second.
    pub(super) entries: Samples,
}

#[derive(Debug)]
enum Event {
    /// The flow with this number begins.
    Begin(u32),
    /// Another flow with the addresses and ports of one that has closed.
    Reopen(FlowId),
    /// A client's time has come.
    Wake(FlowId),
    /// A client's segment reaches a node.
    Enter(NodeId, Segment),
    /// A node's packet about a flow reaches another.
    Arrive(NodeId, FlowId, Box<[u8]>),
    /// A pod's time has come.
    Remind(PodId, pod::Key),
    /// A segment reaches its client, from a pod.
    Client(Segment, Option<PodId>),
    Control(Control),
}

#[derive(Debug)]
enum Control {
    /// What the script says at this place.
    Change(usize),
    Step(Step),
    /// The manager looks.
    Look,
    /// A node's agent hears.
    Hear(NodeId),
    /// A node's agent tidies up.
    Tidy(NodeId),
    Sample,
}

/// A flow that lives.
struct Flow {
    client: Client,
    /// Chance of its packets.
    dice: Dice,
    /// From the client to the router.
    way: Nanos,
    /// The event that wakes the client.
    timer: Nanos,
}

/// What is under way to a node's agent.
#[derive(Clone, Copy, Default)]
struct Ear {
    hears_soon: bool,
    tidies_soon: bool,
    is_deaf: bool,
}

/// The cluster.
pub(super) struct World<'a> {
    case: Case<'a>,
    scheme: &'a mut dyn Scheme,
    queue: Queue<Event>,
    api: Api,
    manager: Manager,
    manager_looks_soon: bool,
    router: Router,
    /// The pods' TCP, by their number.
    pods: Vec<Pod>,
    flows: HashMap<FlowId, Flow>,
    /// Nodes with power.
    up: BTreeSet<NodeId>,
    ears: BTreeMap<NodeId, Ear>,
    /// Chance of what belongs to no flow.
    network: Dice,
    views: Dice,
    chance: Dice,
    tally: Tally,
    entries: Samples,
}

impl<'a> World<'a> {
    /// The cluster of a script: nodes with their tables, pods, the router's paths.
    pub(super) fn new(case: Case<'a>, scheme: &'a mut dyn Scheme) -> anyhow::Result<Self> {
        let Case { script, seed, .. } = case;
        let mut world = Self {
            case,
            scheme,
            queue: Queue::new(),
            api: Api::default(),
            manager: Manager::default(),
            manager_looks_soon: false,
            router: Router::new(script.ecmp, Dice::new(seed, Purpose::Router).word()),
            pods: Vec::new(),
            flows: HashMap::new(),
            up: BTreeSet::new(),
            ears: BTreeMap::new(),
            network: Dice::new(seed, Purpose::Network),
            views: Dice::new(seed, Purpose::Views),
            chance: Dice::new(seed, Purpose::Script),
            tally: Tally::default(),
            entries: Samples::default(),
        };
        for node in (0..script.nodes).map(NodeId) {
            world.add_node(node)?;
            world.router.add(node);
        }
        for pool in &script.pools {
            let service = world.api.add_service(pool.name, pool.transport);
            for _ in 0..pool.pods {
                world.start_pod(service);
            }
        }
        let look = world.manager.look(&world.api, 0);
        world.look_again(look.again);
        for node in world.up.clone() {
            world.hear(node)?;
        }
        for (at, (time, _)) in script.changes.iter().enumerate() {
            let event = Event::Control(Control::Change(at));
            world.queue.at(*time, event);
        }
        world.queue.at(FIRST_FLOW, Event::Begin(0));
        world.queue.at(FIRST_FLOW, Event::Control(Control::Sample));
        Ok(world)
    }

    /// Runs the script to its end.
    pub(super) fn run(mut self) -> anyhow::Result<Ran> {
        while let Some(event) = self.queue.next() {
            match event {
                Event::Begin(number) => self.begin(number),
                Event::Reopen(flow) => self.open(flow),
                Event::Wake(flow) => self.wake(flow),
                Event::Enter(node, segment) => self.enter(node, &segment)?,
                Event::Arrive(node, flow, packet) => self.arrive(node, flow, &packet)?,
                Event::Remind(pod, key) => self.remind(pod, key)?,
                Event::Client(segment, pod) => self.receive(&segment, pod),
                Event::Control(control) => self.control(&control)?,
            }
        }
        Ok(Ran {
            counts: self.scheme.counts()?,
            tally: self.tally,
            entries: self.entries,
        })
    }

    fn control(&mut self, control: &Control) -> anyhow::Result<()> {
        match control {
            Control::Change(at) => {
                let (_, change) = self.case.script.changes[*at];
                self.change(change)
            }
            Control::Step(step) => self.step(*step),
            Control::Look => {
                self.look();
                Ok(())
            }
            Control::Hear(node) => self.hear(*node),
            Control::Tidy(node) => self.tidy(*node),
            Control::Sample => {
                self.entries.push(self.scheme.entries()? as f64);
                if self.queue.now() < self.case.script.closing {
                    self.queue
                        .after(SAMPLE_EVERY, Event::Control(Control::Sample));
                }
                Ok(())
            }
        }
    }

    /// Starts a pod somewhere.
    fn start_pod(&mut self, service: ServiceId) -> PodId {
        let owners = self.owners();
        let at = self.chance.below(owners.len() as u64) as usize;
        let node = owners.get(at).copied().unwrap_or(NodeId(0));
        let id = self.api.start_pod(service, node);
        self.pods.push(Pod::new(self.case.seed, u64::from(id)));
        id
    }

    /// Nodes that pods are put on: three of four of the first ones.
    fn owners(&self) -> Vec<NodeId> {
        let first_without = self.case.script.nodes - self.case.script.nodes / 4;
        let up = self.up.iter().copied();
        up.filter(|node| node.0 < first_without).collect()
    }
}
