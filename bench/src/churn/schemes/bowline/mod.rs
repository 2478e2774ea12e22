//! Ours: packets go through the real programs of every node, and agents tell each other what they must.

mod agents;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context as _;
use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::handoff::message::Instruction;

use self::agents::{REPORT_LAG, Todo};
use self::streams::Link;
use super::{Left, Life, Outcome, Said, Scheme};
use crate::churn::api::Api;
use crate::churn::dice::{Dice, Purpose};
use crate::churn::node::agent::{Agent, Without};
use crate::churn::node::kernel::{Counts, Kernel, Verdict};
use crate::churn::queue::{Nanos, Queue};
use crate::churn::segment::{Segment, ServiceId};
use crate::churn::wire::{self, Frame, NodeId, Place};

/// Whether an agent hears the API server, and the streams of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hearing {
    Open,
    Deaf,
}

/// One node.
struct Node {
    agent: Agent,
    /// Which start of the agent it is.
    start: u64,
    /// Whether the agent runs.
    runs: bool,
    hearing: Hearing,
    /// Whether the manager has heard of it.
    is_told: bool,
    /// Since when the node is fresh, if it is.
    fresh_since: Option<Nanos>,
    /// The agent will read the programs' reports.
    reads_soon: bool,
    /// Versions by Service that others know of.
    told: BTreeMap<Arc<str>, u64>,
}

impl Node {
    fn new(agent: Agent, start: u64) -> Self {
        Self {
            agent,
            start,
            runs: true,
            hearing: Hearing::Open,
            is_told: false,
            fresh_since: None,
            reads_soon: false,
            told: BTreeMap::new(),
        }
    }

    /// Whether its agent speaks to others, and hears them.
    fn speaks(&self) -> bool {
        self.runs && self.hearing == Hearing::Open && self.agent.written().is_some()
    }
}

/// Programs, maps and agents of all nodes.
pub(crate) struct Bowline<'a> {
    kernels: &'a mut [Kernel],
    nodes: BTreeMap<NodeId, Node>,
    without: Without,
    /// Counters of nodes that are gone.
    gone: Counts,
    /// Flows pinned by agents that have ended.
    pinned_before: u64,
    /// What agents do by themselves.
    queue: Queue<Todo>,
    delays: Dice,
    /// Starts of agents so far.
    starts: u64,
    /// From owners to balancers.
    links: BTreeMap<(NodeId, NodeId), Link>,
    /// Streams so far.
    link_numbers: u64,
    /// Nodes that are taken for dead by all who live.
    down: BTreeSet<NodeId>,
    /// What the manager has not heard yet.
    said: Vec<(NodeId, Said)>,
}

impl<'a> Bowline<'a> {
    /// A cluster without nodes, on kernels that are empty.
    pub(crate) fn new(kernels: &'a mut [Kernel], without: Without, seed: u64) -> Self {
        Self {
            kernels,
            nodes: BTreeMap::new(),
            without,
            gone: Counts::default(),
            pinned_before: 0,
            queue: Queue::new(),
            delays: Dice::new(seed, Purpose::Agents),
            starts: 0,
            links: BTreeMap::new(),
            link_numbers: 0,
            down: BTreeSet::new(),
            said: Vec::new(),
        }
    }

    /// A node's kernel at a time, with its agent's last stamp.
    fn kernel(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<&mut Kernel> {
        let kernel = &mut self.kernels[node.index()];
        kernel.set_time(now)?;
        if let Some(node) = self.nodes.get(&node)
            && node.runs
        {
            kernel.stamp(now, node.fresh_since);
        }
        Ok(kernel)
    }

    /// What a packet has become at a node.
    fn outcome(&mut self, node: NodeId, packet: &[u8], now: Nanos) -> anyhow::Result<Outcome> {
        let kernel = self.kernel(node, now)?;
        let (verdict, packet) = kernel.arrive(packet)?;
        let outcome = match verdict {
            Verdict::HeldBack => Ok(Outcome::HeldBack),
            Verdict::Drop => Ok(Outcome::Nothing),
            Verdict::Transmit => Self::transmitted(packet),
            Verdict::Pass => Self::passed(packet),
        };
        self.reported(node, now);
        outcome
    }

    fn transmitted(packet: &[u8]) -> anyhow::Result<Outcome> {
        let to = wire::destination(packet).context("a packet without destination came out")?;
        if let Some(node) = NodeId::at(to) {
            return Ok(Outcome::Node(node, packet.into()));
        }
        let parsed = wire::parse(packet).context("what came out of the XDP program")?;
        let flow = wire::flow(parsed.to).context("a packet to nobody came out")?;
        Ok(Outcome::Client(parsed.segment(flow, ServiceId(0))))
    }

    fn passed(packet: &[u8]) -> anyhow::Result<Outcome> {
        let parsed = wire::parse(packet).context("what came out of the XDP program")?;
        // What passes without being a client's is the encapsulation of a node that is no peer (yet).
        Ok(match wire::flow(parsed.from) {
            Some(flow) => Outcome::Pod(parsed.to, parsed.segment(flow, ServiceId(0))),
            None => Outcome::Nothing,
        })
    }

    /// A program may have reported something.
    fn reported(&mut self, node: NodeId, now: Nanos) {
        if let Some(state) = self.nodes.get_mut(&node)
            && state.runs
            && !state.reads_soon
            && self.kernels[node.index()].has_reports()
        {
            state.reads_soon = true;
            let lag = self.delays.between(REPORT_LAG.0, REPORT_LAG.1);
            self.queue.at(now + lag, Todo::Read(node));
        }
    }

    fn remove(&mut self, node: NodeId) -> anyhow::Result<()> {
        let Some(mut removed) = self.nodes.remove(&node) else {
            return Ok(());
        };
        if removed.is_told {
            self.said.push((node, Said::Down));
        }
        self.pinned_before += removed.agent.has_pinned();
        let kernel = &mut self.kernels[node.index()];
        let counts = kernel.counts()?;
        self.gone.relayed += counts.relayed;
        self.gone.held_back += counts.held_back;
        removed.agent.clear(kernel)?;
        kernel.empty()
    }

    /// Empties all kernels for the next run.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        while let Some(node) = self.nodes.keys().next().copied() {
            self.remove(node)?;
        }
        Ok(())
    }
}

impl Scheme for Bowline<'_> {
    fn begin(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<()> {
        let kernel = self.kernels.get_mut(node.index());
        let kernel = kernel.context("more nodes than kernels")?;
        kernel.empty()?;
        self.start(node, now)
    }

    fn live(&mut self, node: NodeId, life: Life, now: Nanos) -> anyhow::Result<()> {
        match life {
            Life::Gone => {
                self.remove(node)?;
                self.note_down(node, true, now);
            }
            Life::Suspected => self.note_down(node, true, now),
            Life::Trusted => self.note_down(node, false, now),
            Life::AgentStarts => self.start(node, now)?,
            Life::AgentStops => {
                if let Some(state) = self.nodes.get_mut(&node) {
                    state.runs = false;
                }
            }
            Life::Deaf => {
                if let Some(state) = self.nodes.get_mut(&node) {
                    state.hearing = Hearing::Deaf;
                    state.fresh_since = None;
                }
            }
        }
        self.relink(now)
    }

    /// Its tables are applied, and the streams of all owners are past their snapshots, or were waited for in vain.
    fn is_ready(&self, node: NodeId) -> bool {
        let state = self.nodes.get(&node);
        state.is_some_and(|state| state.fresh_since.is_some() && state.agent.misses_nobody())
    }

    fn due(&self) -> Option<Nanos> {
        self.queue.due()
    }

    fn work(&mut self) -> anyhow::Result<()> {
        self.work_next()
    }

    fn said(&mut self) -> Vec<(NodeId, Said)> {
        std::mem::take(&mut self.said)
    }

    fn instruct(
        &mut self,
        node: NodeId,
        instruction: &Instruction,
        now: Nanos,
    ) -> anyhow::Result<()> {
        self.instructed(node, instruction, now)
    }

    fn expire(&mut self, now: Nanos) -> anyhow::Result<Option<Left>> {
        self.expire_all(now)?;
        self.left().map(Some)
    }

    fn left(&mut self) -> anyhow::Result<Left> {
        self.count_left()
    }

    fn hear(
        &mut self,
        node: NodeId,
        tables: &[ServiceTableSpec],
        api: &Api,
        now: Nanos,
    ) -> anyhow::Result<()> {
        let Some(state) = self.nodes.get_mut(&node).filter(|node| node.runs) else {
            return Ok(());
        };
        state.hearing = Hearing::Open;
        state.agent.hear(tables, api);
        self.settle(node, now)?;
        self.relink(now)
    }

    fn tidy(&mut self, node: NodeId, _now: Nanos) -> anyhow::Result<()> {
        let Some(state) = self.nodes.get_mut(&node).filter(|node| node.runs) else {
            return Ok(());
        };
        let kernel = &mut self.kernels[node.index()];
        state.agent.forget_nodes(kernel)?;
        state.agent.tidy(kernel)
    }

    fn enter(
        &mut self,
        node: NodeId,
        segment: &Segment,
        vip: Place,
        now: Nanos,
    ) -> anyhow::Result<Outcome> {
        let frame = Frame::new(segment, wire::client(segment.flow), vip);
        self.outcome(node, frame.bytes(), now)
    }

    fn arrive(&mut self, node: NodeId, packet: &[u8], now: Nanos) -> anyhow::Result<Outcome> {
        self.outcome(node, packet, now)
    }

    fn leave(
        &mut self,
        node: NodeId,
        segment: &Segment,
        from: Place,
        vip: Place,
        now: Nanos,
    ) -> anyhow::Result<Option<Segment>> {
        let frame = Frame::new(segment, from, wire::client(segment.flow));
        let kernel = self.kernel(node, now)?;
        let packet = kernel.leave(frame.bytes())?;
        let parsed = wire::parse(packet).context("what came out of the TC program")?;
        let segment = parsed.segment(segment.flow, segment.service);
        self.reported(node, now);
        Ok((parsed.from == vip).then_some(segment))
    }

    fn entries(&mut self) -> anyhow::Result<u64> {
        let nodes = self.nodes.keys();
        nodes.map(|node| self.kernels[node.index()].pins()).sum()
    }

    fn pinned(&self) -> u64 {
        let agents = self.nodes.values();
        let pinned: u64 = agents.map(|node| node.agent.has_pinned()).sum();
        self.pinned_before + pinned
    }

    fn counts(&mut self) -> anyhow::Result<Counts> {
        let mut sum = self.gone;
        for node in self.nodes.keys() {
            let counts = self.kernels[node.index()].counts()?;
            sum.relayed += counts.relayed;
            sum.held_back += counts.held_back;
        }
        Ok(sum)
    }
}
