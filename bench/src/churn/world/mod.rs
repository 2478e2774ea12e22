//! A simulated cluster while a script runs: clients, a router, nodes under one scheme, pods, an API server and who hears of
//! what it says. One queue of events, so the same seed and script give the same run.

mod changes;
mod control;
mod traffic;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::ensure;
use lb_controller::handoff::message::Instruction;

use super::api::{Api, PodId};
use super::client::Client;
use super::dice::{Dice, Purpose};
use super::manager::Manager;
use super::node::kernel::Counts;
use super::oracle::Tally;
use super::pod::{self, Pod};
use super::queue::{Nanos, Queue, SECOND};
use super::router::Router;
use super::schemes::{Left, Said, Scheme};
use super::script::Script;
use super::segment::{FlowId, Segment, ServiceId};
use super::wire::NodeId;
use crate::rounds::Samples;
use changes::Step;

/// Clients begin when all nodes have their tables.
const FIRST_FLOW: Nanos = SECOND;
/// All clients have ended so long after they have begun to close: their last tries take two minutes.
const ENDING: Nanos = 240 * SECOND;
/// How long agents and the manager have until nothing is left: history is retired after five quiet minutes, and an attempt
/// takes a minute at most.
const WINDING_UP: Nanos = 900 * SECOND;
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
    /// Packets that have entered from clients.
    pub(super) packets: u64,
    /// Flows that were pinned.
    pub(super) pinned: u64,
    /// Entries about flows at all balancers, once a second.
    pub(super) entries: Samples,
    /// What was still there after all flows had ended.
    pub(super) left: Leaks,
}

/// What should be gone when all flows have ended, and dead nodes have been deleted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Leaks {
    pub(super) agents: Left,
    /// Older occupants of slots, and previous tables.
    pub(super) history: u64,
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
    /// The manager looks since it has said so.
    LookAgain,
    /// The manager hears an agent.
    Said(NodeId, Said),
    /// An agent hears the manager.
    Instruct(NodeId, Arc<Instruction>),
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
    /// A packet of it was held back.
    is_delayed: bool,
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
    /// When the manager looks again by itself.
    looks_again: Option<Nanos>,
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
    packets: u64,
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
            looks_again: None,
            router: Router::new(script.ecmp, Dice::new(seed, Purpose::Router).word()),
            pods: Vec::new(),
            flows: HashMap::new(),
            up: BTreeSet::new(),
            ears: BTreeMap::new(),
            network: Dice::new(seed, Purpose::Network),
            views: Dice::new(seed, Purpose::Views),
            chance: Dice::new(seed, Purpose::Script),
            tally: Tally::default(),
            packets: 0,
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
        let look = world.manager.look(&world.api, 0)?;
        world.follow_manager(look);
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
        let end = self.case.script.closing + ENDING;
        while self.next_before(end)? {}
        ensure!(
            self.flows.is_empty(),
            "{} flows have no end",
            self.flows.len()
        );
        // What comes after has nothing to do with flows.
        let counts = self.scheme.counts()?;
        let pinned = self.scheme.pinned();
        let left = self.wind_up(end)?;
        Ok(Ran {
            counts,
            packets: self.packets,
            pinned,
            tally: self.tally,
            entries: self.entries,
            left,
        })
    }

    /// All flows end and dead nodes are deleted; what is there when agents and manager have had their time should not be.
    fn wind_up(&mut self, end: Nanos) -> anyhow::Result<Leaks> {
        self.queue.advance(end);
        self.delete_dead_nodes();
        if self.scheme.expire(end)?.is_none() {
            return Ok(Leaks::default());
        }
        while self.next_before(end + WINDING_UP)? {}
        Ok(Leaks {
            agents: self.scheme.left()?,
            history: self.manager.history()?,
        })
    }

    /// Does what comes next: agents by themselves before anything else of the same time.
    fn next_before(&mut self, end: Nanos) -> anyhow::Result<bool> {
        let next = [self.scheme.due(), self.queue.due()];
        if next.into_iter().flatten().min().is_none_or(|at| at >= end) {
            return Ok(false);
        }
        self.next()?;
        Ok(true)
    }

    fn next(&mut self) -> anyhow::Result<()> {
        let due = self.scheme.due();
        if let Some(at) = due
            && self.queue.due().is_none_or(|other| at <= other)
        {
            self.queue.advance(at);
            self.scheme.work()?;
        } else if let Some(event) = self.queue.next() {
            self.happen(event)?;
        }
        self.carry_said();
        Ok(())
    }

    fn happen(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Begin(number) => self.begin(number),
            Event::Reopen(flow) => self.open(flow),
            Event::Wake(flow) => self.wake(flow),
            Event::Enter(node, segment) => self.enter(node, &segment)?,
            Event::Arrive(node, flow, packet) => self.arrive(node, flow, &packet)?,
            Event::Remind(pod, key) => self.remind(pod, key)?,
            Event::Client(segment, pod) => self.receive(&segment, pod),
            Event::Control(control) => self.control(control)?,
        }
        Ok(())
    }

    fn control(&mut self, control: Control) -> anyhow::Result<()> {
        match control {
            Control::Change(at) => {
                let (_, change) = self.case.script.changes[at];
                self.change(change)
            }
            Control::Step(step) => self.step(step),
            Control::Look => self.look(),
            Control::LookAgain => self.look_again(),
            Control::Said(node, said) => self.manager_hears(node, said),
            Control::Instruct(node, instruction) => {
                let now = self.queue.now();
                self.scheme.instruct(node, &instruction, now)
            }
            Control::Hear(node) => self.hear(node),
            Control::Tidy(node) => self.tidy(node),
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
