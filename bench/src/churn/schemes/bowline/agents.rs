//! What agents do by themselves: reading the programs' reports, looking through their flows, looking again at what waits,
//! hearing from each other which nodes live and which versions are applied, and answering the manager.

use std::collections::BTreeSet;
use std::sync::Arc;

use lb_controller::dataplane::flows::Stage;
use lb_controller::handoff::message::{Instruction, Report};
use lb_controller::model::freshness::{self, Heard, Stream};
use lb_controller::model::pins::{Message, Position};

use super::{Bowline, Hearing, Left, Node, Said};
use crate::churn::api;
use crate::churn::node::agent::{Agent, Settled};
use crate::churn::queue::{MS, Nanos, SECOND, instant, nanos};
use crate::churn::wire::NodeId;

/// How long a report of a program lies in the ring.
pub(super) const REPORT_LAG: (Nanos, Nanos) = (MS / 10, 3 * MS);
/// How often agents look through their flows.
const SWEEP_PERIOD: Nanos = 12 * SECOND;
/// Looking through the flows takes so long when somebody asks for it.
const LOOK_LAG: (Nanos, Nanos) = (MS, 100 * MS);
/// After so long a dead node is taken for dead, and one that lives again for alive.
const SUSPECT_AFTER: (Nanos, Nanos) = (800 * MS, 1300 * MS);
const SUSPICION_LAG: (Nanos, Nanos) = (MS, 200 * MS);
/// How long the number of a version is under way between agents.
const GOSSIP_LAG: (Nanos, Nanos) = (MS, 200 * MS);
/// When flows have ended that nobody has closed: later than the longest silence.
const EXPIRED_AFTER: Nanos = 25 * 3600 * SECOND;

/// Something that agents do.
#[derive(Debug)]
pub(super) enum Todo {
    /// Reads the programs' reports.
    Read(NodeId),
    /// Looks through the flows, now and then: the agent of this start.
    Sweep(NodeId, u64),
    /// Looks through the flows since the manager has asked.
    Look(NodeId, u64),
    /// Looks again at versions that wait for pins.
    Settle(NodeId, u64),
    /// Gives up waiting for streams.
    Miss(NodeId),
    /// Takes another node for dead, or not any more.
    Suspect(NodeId, NodeId, bool),
    /// Hears which version of a Service's table a peer has applied.
    Hear(NodeId, Arc<str>, u64),
    /// A stream begins: its number says which.
    Greet((NodeId, NodeId), u64),
    /// An owner sends what a balancer lacks.
    Flush((NodeId, NodeId), u64),
    /// It arrives.
    Arrive((NodeId, NodeId), u64, Vec<Message>),
    /// The owner hears how far the balancer is.
    Acknowledge((NodeId, NodeId), u64, Position),
}

impl Bowline<'_> {
    /// Somebody does what is due first.
    pub(super) fn work_next(&mut self) -> anyhow::Result<()> {
        let Some(todo) = self.queue.next() else {
            return Ok(());
        };
        let now = self.queue.now();
        match todo {
            Todo::Read(node) => self.read_reports(node, now),
            Todo::Sweep(node, start) => {
                if !self.is_of(node, start) {
                    return Ok(());
                }
                self.queue.after(SWEEP_PERIOD, Todo::Sweep(node, start));
                Agent::end_flows(&self.kernels[node.index()], now)?;
                self.look_through(node, now)
            }
            Todo::Look(node, start) if self.is_of(node, start) => self.look_through(node, now),
            Todo::Settle(node, start) if self.is_of(node, start) => self.settle(node, now),
            Todo::Look(..) | Todo::Settle(..) => Ok(()),
            Todo::Miss(node) => self.look_for_streams(node, now),
            Todo::Suspect(node, other, is_down) => self.suspect(node, other, is_down, now),
            Todo::Hear(node, uid, version) => {
                if let Some(state) = self.running(node) {
                    state.agent.named(&uid, version);
                    state.refresh(now);
                }
                Ok(())
            }
            Todo::Greet(link, number) => self.greet(link, number, now),
            Todo::Flush(link, number) => {
                self.flush(link, number);
                Ok(())
            }
            Todo::Arrive(link, number, messages) => self.arrived(link, number, messages, now),
            Todo::Acknowledge(link, number, position) => {
                self.acknowledged(link, number, position);
                Ok(())
            }
        }
    }

    pub(super) fn running(&mut self, node: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&node).filter(|node| node.runs)
    }

    fn is_of(&mut self, node: NodeId, start: u64) -> bool {
        self.running(node).is_some_and(|node| node.start == start)
    }

    pub(super) fn later(&mut self, now: Nanos, (low, high): (Nanos, Nanos), todo: Todo) {
        let delay = self.delays.between(low, high);
        self.queue.at(now + delay, todo);
    }

    /// A node's agent starts.
    pub(super) fn start(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<()> {
        let kernel = &mut self.kernels[node.index()];
        let agent = Agent::start(node, self.without, kernel)?;
        self.starts += 1;
        let start = self.starts;
        if let Some(before) = self.nodes.insert(node, Node::new(agent, start)) {
            self.pinned_before += before.agent.has_pinned();
        }
        self.later(now, (0, SWEEP_PERIOD), Todo::Sweep(node, start));
        let down: Vec<NodeId> = self.down.iter().copied().collect();
        for other in down {
            self.later(now, SUSPECT_AFTER, Todo::Suspect(node, other, true));
        }
        Ok(())
    }

    /// Brings a node's maps in line with what its agent knows.
    pub(super) fn settle(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<()> {
        let Some(state) = self.nodes.get_mut(&node).filter(|node| node.runs) else {
            return Ok(());
        };
        let kernel = &mut self.kernels[node.index()];
        let Settled { applied, again } = state.agent.settle(kernel, now)?;
        let new = state.tell(applied);
        state.refresh(now);
        let start = state.start;
        if let Some(again) = again {
            self.queue.at(again, Todo::Settle(node, start));
        }
        self.tell(node, new, now);
        // Flows that its own streams have pinned are told to others.
        self.flush_soon(node, now);
        Ok(())
    }

    /// Others hear which versions a node has applied, and so does the manager.
    fn tell(&mut self, node: NodeId, applied: Vec<(Arc<str>, u64)>, now: Nanos) {
        let others: Vec<NodeId> = self.nodes.keys().copied().collect();
        for (service_uid, version) in applied {
            for other in others.iter().filter(|other| **other != node) {
                let heard = Todo::Hear(*other, Arc::clone(&service_uid), version);
                self.later(now, GOSSIP_LAG, heard);
            }
            if self.nodes[&node].is_told {
                self.said.push((node, Said::applied(service_uid, version)));
            }
        }
    }

    fn read_reports(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<()> {
        let Some(state) = self.nodes.get_mut(&node) else {
            return Ok(());
        };
        state.reads_soon = false;
        if !state.runs {
            return Ok(());
        }
        let kernel = &mut self.kernels[node.index()];
        let events = kernel.reports();
        state.agent.report(kernel, &events)?;
        self.flush_soon(node, now);
        Ok(())
    }

    fn look_through(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<()> {
        let kernel = &mut self.kernels[node.index()];
        let Some(state) = self.nodes.get_mut(&node) else {
            return Ok(());
        };
        state.agent.look_through(kernel, now)?;
        self.flush_soon(node, now);
        self.answer(node);
        Ok(())
    }

    /// The manager says something to a node's agent.
    pub(super) fn instructed(
        &mut self,
        node: NodeId,
        instruction: &Instruction,
        now: Nanos,
    ) -> anyhow::Result<()> {
        let Some(state) = self.running(node).filter(|node| node.is_told) else {
            return Ok(());
        };
        match instruction {
            Instruction::Retire { id, table, .. } => {
                state.agent.propose(*id, table)?;
                let start = state.start;
                self.later(now, LOOK_LAG, Todo::Look(node, start));
            }
            Instruction::Cancel { id } => state.agent.cancel(*id),
        }
        Ok(())
    }

    /// Tells the manager what balancers have acknowledged.
    pub(super) fn answer(&mut self, node: NodeId) {
        let up = self
            .links
            .iter()
            .filter(|((from, _), link)| *from == node && link.is_greeted());
        let reached: Vec<Arc<str>> = up.map(|((_, to), _)| api::name(*to).into()).collect();
        let Some(state) = self.running(node) else {
            return;
        };
        let ready = state.agent.ready(&reached).into_iter();
        let reports = ready.map(|(id, position)| Report::RetireReady { id, position });
        let reports: Vec<_> = reports.map(|report| (node, Said::Report(report))).collect();
        self.said.extend(reports);
    }

    /// All who live take a node for dead some time later, or do not any more.
    pub(super) fn note_down(&mut self, node: NodeId, is_down: bool, now: Nanos) {
        let is_gone = !self.nodes.contains_key(&node);
        if is_down {
            self.down.insert(node);
        } else if !is_gone {
            self.down.remove(&node);
        }
        let lag = if is_gone {
            SUSPECT_AFTER
        } else {
            SUSPICION_LAG
        };
        let others: Vec<NodeId> = self.nodes.keys().copied().collect();
        for other in others.into_iter().filter(|other| *other != node) {
            self.later(now, lag, Todo::Suspect(other, node, is_down));
        }
    }

    fn suspect(
        &mut self,
        node: NodeId,
        other: NodeId,
        is_down: bool,
        now: Nanos,
    ) -> anyhow::Result<()> {
        let is_down = is_down && self.down.contains(&other);
        let Some(state) = self.running(node) else {
            return Ok(());
        };
        if state.agent.suspect(other, is_down) {
            self.look_for_streams(node, now)?;
            self.settle(node, now)?;
        }
        Ok(())
    }

    /// Finds out whose pins are missing at a node; Services with pods there must know.
    pub(super) fn look_for_streams(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<()> {
        let Some(state) = self.nodes.get(&node).filter(|node| node.runs) else {
            return Ok(());
        };
        let others = state.agent.others();
        let names: Vec<Arc<str>> = others
            .iter()
            .map(|other| api::name(*other).into())
            .collect();
        let owners = others.iter().zip(&names).map(|(other, name)| {
            let link = self.links.get(&(*other, node));
            let is_down = state.agent.suspects(name);
            let stream = match link.and_then(|link| link.greeted) {
                Some(written) if state.agent.received(name) >= Some(written) => Stream::Complete,
                _ if is_down => Stream::Down,
                _ => Stream::Awaited(instant(link.map_or(0, |link| link.since))),
            };
            (name, stream)
        });
        let (missing, until) = match freshness::streams(owners, instant(now)) {
            freshness::Streams::Up => (BTreeSet::new(), None),
            freshness::Streams::Missing { nodes, until } => (nodes, Some(nanos(until))),
        };
        if let Some(state) = self.nodes.get_mut(&node)
            && state.agent.miss(missing)
        {
            if let Some(until) = until {
                self.queue.at(until, Todo::Miss(node));
            }
            self.settle(node, now)?;
        }
        Ok(())
    }

    /// All flows end that nobody has closed.
    pub(super) fn expire_all(&mut self, now: Nanos) -> anyhow::Result<()> {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in nodes {
            Agent::end_flows(&self.kernels[node.index()], now + EXPIRED_AFTER)?;
            if let Some(state) = self.running(node) {
                let start = state.start;
                self.queue.at(now, Todo::Look(node, start));
            }
        }
        Ok(())
    }

    /// What agents want pinned and maps have pinned, and known flows.
    pub(super) fn count_left(&mut self) -> anyhow::Result<Left> {
        let mut left = Left::default();
        for (node, state) in &self.nodes {
            let kernel = &self.kernels[node.index()];
            left.pins += kernel.pins()? + state.agent.pinned();
            kernel.dataplane.flows().list_at(0, |record| {
                // Half-open flows are only forgotten when their place is wanted.
                left.flows += u64::from(record.stage != Stage::HalfOpen);
                true
            })?;
        }
        Ok(left)
    }
}

impl Node {
    /// Finds out whether the node is fresh.
    fn refresh(&mut self, now: Nanos) {
        let last = (self.hearing == Hearing::Open).then(|| instant(now));
        let facts = self.agent.facts(Heard::Peers(last));
        if freshness::fresh(&facts, instant(now)).is_ok() {
            self.fresh_since.get_or_insert(now);
        } else {
            self.fresh_since = None;
        }
    }

    /// Which versions are new to others.
    fn tell(&mut self, applied: Vec<(Arc<str>, u64)>) -> Vec<(Arc<str>, u64)> {
        let told = &mut self.told;
        let mut applied = applied;
        applied.retain(|(uid, version)| told.insert(Arc::clone(uid), *version) != Some(*version));
        applied
    }
}

impl Said {
    pub(super) fn applied(service_uid: Arc<str>, version: u64) -> Self {
        Self::Report(Report::Applied {
            service_uid,
            version,
            digest: String::new(),
        })
    }
}
