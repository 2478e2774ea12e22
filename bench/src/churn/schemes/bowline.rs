//! Ours: packets go through the real programs of every node.

use std::collections::BTreeMap;

use anyhow::Context as _;
use lb_controller::api::service_table::ServiceTableSpec;

use super::{Life, Outcome, Scheme};
use crate::churn::api::Api;
use crate::churn::node::agent::{Agent, Relay};
use crate::churn::node::kernel::{Counts, Kernel, Verdict};
use crate::churn::queue::Nanos;
use crate::churn::segment::{Segment, ServiceId};
use crate::churn::wire::{self, Frame, NodeId, Place};

/// One node.
struct Node {
    agent: Agent,
    /// Whether the agent runs.
    runs: bool,
    /// Since when the node is fresh, if it is.
    fresh_since: Option<Nanos>,
}

/// Programs, maps and agents of all nodes.
pub(crate) struct Bowline<'a> {
    kernels: &'a mut [Kernel],
    nodes: BTreeMap<NodeId, Node>,
    relay: Relay,
    /// Counters of nodes that are gone.
    gone: Counts,
}

impl<'a> Bowline<'a> {
    /// A cluster without nodes, on kernels that are empty.
    pub(crate) fn new(kernels: &'a mut [Kernel], relay: Relay) -> Self {
        Self {
            kernels,
            nodes: BTreeMap::new(),
            relay,
            gone: Counts::default(),
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
        if verdict == Verdict::Drop {
            return Ok(Outcome::Nothing);
        }
        let to = wire::destination(packet).context("a packet without destination came out")?;
        if verdict == Verdict::Transmit
            && let Some(node) = NodeId::at(to)
        {
            return Ok(Outcome::Node(node, packet.into()));
        }
        let parsed = wire::parse(packet).context("what came out of the XDP program")?;
        if verdict == Verdict::Transmit {
            let flow = wire::flow(parsed.to).context("a packet to nobody came out")?;
            return Ok(Outcome::Client(parsed.segment(flow, ServiceId(0))));
        }
        // What passes without being a client's is the encapsulation of a node that is no peer (yet).
        Ok(match wire::flow(parsed.from) {
            Some(flow) => Outcome::Pod(parsed.to, parsed.segment(flow, ServiceId(0))),
            None => Outcome::Nothing,
        })
    }

    fn remove(&mut self, node: NodeId) -> anyhow::Result<()> {
        let Some(mut removed) = self.nodes.remove(&node) else {
            return Ok(());
        };
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
    fn begin(&mut self, node: NodeId) -> anyhow::Result<()> {
        let kernel = self.kernels.get_mut(node.index());
        let kernel = kernel.context("more nodes than kernels")?;
        kernel.empty()?;
        let node_state = Node {
            agent: Agent::start(node, self.relay, kernel)?,
            runs: true,
            fresh_since: None,
        };
        self.nodes.insert(node, node_state);
        Ok(())
    }

    fn live(&mut self, node: NodeId, life: Life) -> anyhow::Result<()> {
        if life == Life::Gone {
            return self.remove(node);
        }
        let Some(state) = self.nodes.get_mut(&node) else {
            return Ok(());
        };
        match life {
            Life::AgentStops => state.runs = false,
            Life::AgentStarts => {
                let kernel = &mut self.kernels[node.index()];
                state.agent = Agent::start(node, self.relay, kernel)?;
                state.runs = true;
                state.fresh_since = None;
            }
            Life::Deaf => state.fresh_since = None,
            // Suspicion moves new flows at most, and no node acts on it yet.
            Life::Suspected | Life::Trusted | Life::Gone => {}
        }
        Ok(())
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
        let kernel = &mut self.kernels[node.index()];
        state.agent.apply(kernel, tables, api)?;
        state.fresh_since.get_or_insert(now);
        Ok(())
    }

    fn tidy(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<()> {
        let Some(state) = self.nodes.get_mut(&node).filter(|node| node.runs) else {
            return Ok(());
        };
        let kernel = &mut self.kernels[node.index()];
        state.agent.tidy(kernel)?;
        Agent::sweep(kernel, now)
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
        Ok((parsed.from == vip).then_some(segment))
    }

    fn entries(&mut self) -> anyhow::Result<u64> {
        let nodes = self.nodes.keys();
        nodes.map(|node| self.kernels[node.index()].pins()).sum()
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
