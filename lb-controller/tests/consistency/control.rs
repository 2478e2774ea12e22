//! What agents and the manager do: each step is one of the real pure functions, with the state around it.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lb_controller::model::freshness::{self, Facts, Heard, Stream, Streams};
use lb_controller::model::gate::{Gate, Known, gate};
use lb_controller::model::op::BackendId;
use lb_controller::model::pins::{
    Batch, Incarnation, PinOp, Pinned, Position, Receiver, Taken, Writer,
};
use lb_ebpf::abi::{HalfOpen, flow_flag, mark};
use lb_ebpf::wire::Be32;

use super::node::backend_id;
use super::scope::{NodeNo, PodNo, Scope, Without, flow, node_name};
use super::world::{Agent, Maps, Node, World, number_of};

/// The time of all steps: nothing here is about time.
pub(crate) static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// Records in a message.
const RECORDS_MAX: usize = 8;

/// Pods of a node whose flow, or half-open flow, must be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entries {
    Known,
    HalfOpenToo,
}

impl World {
    /// The agents that live bring their maps in line with what they know. A fresh period ends where a node is not fresh.
    pub(crate) fn settle(&mut self, scope: &Scope) {
        let agents: Vec<NodeNo> = self.agents().collect();
        for node in agents {
            let streams_up = self.streams_up(node);
            let fresh = self.is_fresh(node);
            let Some(agent) = &self.nodes[node].agent else {
                continue;
            };
            let (before, version) = scope.until(self.nodes[node].maps.applied);
            let is_out = |pod: PodNo| {
                agent.shunned & 1 << pod != 0 || agent.suspected & 1 << scope.homes[pod] != 0
            };
            let serves = |pod: &PodNo| {
                agent.known & 1 << pod != 0
                    && *pod != version.current
                    && before.iter().all(|before| before.current != *pod)
                    && !is_out(*pod)
            };
            let substitute = (0..scope.homes.len()).rev().find(serves);
            let suspected = agent.suspected;
            // Packets in the middle of a flow ask who is not suspected first wherever a slot deviates, so one whose occupant
            // is suspected does, even if nobody else serves.
            let itself =
                (suspected & 1 << scope.homes[version.current] != 0).then_some(version.current);
            let deviates = substitute.filter(|_| is_out(version.current)).or(itself);
            self.nodes[node].maps = Maps {
                deviates,
                substitute,
                suspected,
                streams_up,
                fresh,
                ..self.nodes[node].maps.clone()
            };
        }
        for node in &mut self.nodes {
            let fresh = node.maps.fresh;
            if let Some(held) = &mut node.maps.held {
                held.same_period &= fresh;
            }
        }
    }

    fn is_fresh(&self, node: NodeNo) -> bool {
        let now = *START;
        let heard = if self.agents().any(|peer| peer != node) {
            Heard::Peers(Some(now))
        } else {
            Heard::Source(Some(now))
        };
        let named = self.nodes[node]
            .agent
            .as_ref()
            .map_or(0, |agent| agent.heard);
        let facts = Facts {
            applied: true,
            heard,
            behind: named > self.nodes[node].maps.applied,
        };
        freshness::fresh(&facts, now).is_ok()
    }

    /// The newest version of a node's peers, if the node should know of it and does not.
    pub(crate) fn unheard(&self, node: NodeNo) -> Option<usize> {
        let agent = self.nodes[node].agent.as_ref()?;
        let peers = self.agents().filter(|peer| *peer != node);
        let newest = peers.map(|peer| self.nodes[peer].maps.applied).max()?;
        (newest > agent.heard.max(self.nodes[node].maps.applied)).then_some(newest)
    }

    pub(crate) fn hear(&mut self, node: NodeNo) {
        let newest = self.unheard(node);
        if let (Some(newest), Some(agent)) = (newest, &mut self.nodes[node].agent) {
            agent.heard = newest;
        }
    }

    fn streams_up(&self, node: NodeNo) -> bool {
        let stream = |owner: NodeNo| match (&self.nodes[owner].agent, &self.nodes[node].agent) {
            _ if !self.machine_lives(owner) => Stream::Down,
            (Some(_), Some(_)) if owner == node => Stream::Complete,
            (Some(theirs), Some(ours)) => {
                let at = ours.receiver.position(node_name(owner));
                let incarnation = theirs.writer.position().incarnation;
                if at.is_some_and(|at| at.incarnation == incarnation) {
                    Stream::Complete
                } else {
                    Stream::Awaited(*START)
                }
            }
            (_, _) => Stream::Awaited(*START),
        };
        let owners = (0..self.nodes.len()).map(|owner| (node_name(owner), stream(owner)));
        freshness::streams(owners, *START + Duration::from_secs(1)) == Streams::Up
    }

    /// What a node's agent has not read from another's stream is read, all of it.
    pub(crate) fn stream(&mut self, scope: &Scope, from: NodeNo, to: NodeNo) {
        let name = node_name(from);
        let Some(ours) = self.nodes[to].agent.as_ref() else {
            return;
        };
        let at = ours.receiver.position(name);
        let Some(theirs) = &mut self.nodes[from].agent else {
            return;
        };
        let messages = match theirs.writer.read(at, RECORDS_MAX) {
            Batch::Nothing => return,
            Batch::Records(message) => vec![message],
            Batch::Snapshot(snapshot) => snapshot.messages(RECORDS_MAX).collect(),
        };
        for message in messages {
            let Some(ours) = &mut self.nodes[to].agent else {
                return;
            };
            let Taken { ops, refused } = ours.receiver.take(name, message);
            assert_eq!(refused, None, "the stream is in order");
            self.nodes[to].maps.pin(scope, &ops);
        }
        // Only a retirement waits for acknowledgements.
        if !scope.events.retirement {
            self.acknowledge(from, to);
        }
    }

    /// Whether there is anything to read.
    pub(crate) fn has_to_read(&self, from: NodeNo, to: NodeNo) -> bool {
        let agents = (&self.nodes[from].agent, &self.nodes[to].agent);
        let (Some(theirs), Some(ours)) = agents else {
            return false;
        };
        ours.receiver.position(node_name(from)) != Some(theirs.writer.position())
    }

    /// A balancer's acknowledgement reaches the owner.
    pub(crate) fn acknowledge(&mut self, from: NodeNo, balancer: NodeNo) {
        let at = self.position(balancer, from);
        if let (Some(at), Some(agent)) = (at, &mut self.nodes[from].agent) {
            agent.writer.acknowledged(node_name(balancer), at);
        }
    }

    pub(crate) fn has_to_acknowledge(&self, from: NodeNo, balancer: NodeNo) -> bool {
        let Some(agent) = &self.nodes[from].agent else {
            return false;
        };
        let at = self.position(balancer, from);
        let own = |at: &Position| at.incarnation == agent.writer.position().incarnation;
        at.filter(own) > agent.writer.balancer(node_name(balancer))
    }

    /// How far a balancer's agent has a writer's pins.
    fn position(&self, balancer: NodeNo, writer: NodeNo) -> Option<Position> {
        let agent = self.nodes[balancer].agent.as_ref()?;
        agent.receiver.position(node_name(writer))
    }

    /// Pods of a node that have answered a deviation, which is not pinned.
    fn deviations(&self, scope: &Scope, node: NodeNo) -> Vec<PodNo> {
        let maps = &self.nodes[node].maps;
        let is_open = |pod: &PodNo| {
            maps.is_deviation(*pod)
                && maps.flows[*pod].is_none_or(|flow| flow.flags & flow_flag::PINNED == 0)
                && maps.half_open[*pod].is_none_or(|one| one.mark & mark::PINNED == 0)
        };
        scope.pods_of(node).filter(is_open).collect()
    }

    /// Whether the program has reported a deviation that the agent has not read.
    pub(crate) fn has_report(&self, scope: &Scope, node: NodeNo) -> bool {
        self.nodes[node].agent.is_some() && !self.deviations(scope, node).is_empty()
    }

    /// The agent reads what the program has reported.
    pub(crate) fn read_report(&mut self, scope: &Scope, node: NodeNo) {
        for pod in self.deviations(scope, node) {
            self.pin(scope, node, pod);
        }
    }

    /// Whether the pin of a deviation or the name of a newer version is on its way to a node, by agents that live: that takes
    /// less than the shortest time between two sights of a packet.
    pub(crate) fn is_news_under_way(&self, scope: &Scope, to: NodeNo) -> bool {
        let mut owners = self.agents();
        self.unheard(to).is_some()
            || owners.any(|owner| {
                let maps = &self.nodes[owner].maps;
                scope.pods_of(owner).any(|pod| maps.is_deviation(pod))
                    && (self.has_report(scope, owner) || self.has_to_read(owner, to))
            })
    }

    /// Pods of a node whose flow is there, and is not pinned, but not found under what the agent must look at.
    fn unfindable(&self, scope: &Scope, node: NodeNo, entries: Entries) -> Vec<PodNo> {
        let Some(agent) = &self.nodes[node].agent else {
            return Vec::new();
        };
        let maps = &self.nodes[node].maps;
        let proposed = scope.versions.last().filter(|_| agent.asked);
        let mut finders = [Some(&scope.versions[maps.applied]), proposed]
            .into_iter()
            .flatten();
        let needs = |pod: &PodNo| {
            let is_open = |pinned: bool| !pinned;
            let known = maps.flows[*pod].map(|flow| flow.flags & flow_flag::PINNED != 0);
            let half_open = maps.half_open[*pod].map(|one| one.mark & mark::PINNED != 0);
            known.is_some_and(is_open)
                || entries == Entries::HalfOpenToo && half_open.is_some_and(is_open)
        };
        let is_lost = |pod: &PodNo| {
            let pod = scope.pod(*pod);
            finders.any(|version| !version.finder.is_findable(&flow(), pod))
        };
        scope.pods_of(node).filter(needs).filter(is_lost).collect()
    }

    fn entries(scope: &Scope) -> Entries {
        if scope.lacks(Without::HalfOpenInRetirement) {
            Entries::Known
        } else {
            Entries::HalfOpenToo
        }
    }

    pub(crate) fn has_to_sweep(&self, scope: &Scope, node: NodeNo) -> bool {
        let open = self.unfindable(scope, node, Self::entries(scope));
        !open.is_empty()
    }

    /// The agent looks at all flows of its node.
    pub(crate) fn sweep(&mut self, scope: &Scope, node: NodeNo) {
        for pod in self.unfindable(scope, node, Self::entries(scope)) {
            self.pin(scope, node, pod);
        }
    }

    /// Pins the flow to a pod: noted in the maps, told to all balancers, this node the first.
    fn pin(&mut self, scope: &Scope, node: NodeNo, pod: PodNo) {
        let Node { agent, maps, .. } = &mut self.nodes[node];
        let Some(agent) = agent else { return };
        if let Some(flow) = &mut maps.flows[pod] {
            flow.flags |= flow_flag::PINNED;
        }
        if let Some(half_open) = &mut maps.half_open[pod] {
            half_open.mark |= mark::PINNED;
        }
        agent
            .writer
            .pin(flow(), scope.pod(pod).clone())
            .expect("one flow is not too many");
        self.stream(scope, node, node);
        self.acknowledge(node, node);
    }

    /// Whether a version is there that the node has not applied and may apply.
    pub(crate) fn may_apply(&self, scope: &Scope, node: NodeNo) -> bool {
        let Some(agent) = &self.nodes[node].agent else {
            return false;
        };
        if self.nodes[node].maps.applied >= self.written {
            return false;
        }
        let known = Known {
            received: &|writer| agent.receiver.position(writer),
            reachable: &|writer| self.nodes[number_of(writer)].agent.is_some(),
            dead: &|_| false,
        };
        scope.lacks(Without::AcknowledgementAndWatermark)
            || gate(&self.watermarks, &known) == Gate::Open
    }

    pub(crate) fn apply(&mut self, scope: &Scope, node: NodeNo) {
        self.nodes[node].maps.applied = self.written;
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.heard = 0;
        }
        let retired = scope.proposal.is_some() && self.written + 1 == scope.versions.len();
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.asked &= !retired;
        }
    }

    /// An agent ends, killed.
    pub(crate) fn kill_agent(&mut self, node: NodeNo) {
        self.nodes[node].agent = None;
    }

    /// It starts again: what it knew is read from the maps and from others.
    pub(crate) fn start_agent(&mut self, scope: &Scope, node: NodeNo) {
        let Node {
            agent,
            starts,
            maps,
        } = &mut self.nodes[node];
        *starts += 1;
        let is_pinned = |pod: &PodNo| {
            maps.flows[*pod].is_some_and(|flow| flow.flags & flow_flag::PINNED != 0)
                || maps.half_open[*pod].is_some_and(|one| one.mark & mark::PINNED != 0)
        };
        let pinned = scope.pods_of(node).filter(is_pinned);
        let pins = pinned.map(|pod| (flow(), scope.pod(pod).clone()));
        let writer = Writer::new(Incarnation(*starts), pins);
        let mut receiver = Receiver::default();
        let home = |id: &u32| {
            (
                node_name(scope.homes[*id as usize - 1]).clone(),
                BackendId(*id),
            )
        };
        let inherited = maps.pins.iter().filter(|id| **id != 0).map(home);
        receiver.inherit(flow(), inherited);
        *agent = Some(Agent {
            writer,
            receiver,
            asked: false,
            known: (1 << scope.homes.len()) - 1,
            shunned: 0,
            suspected: 0,
            heard: 0,
        });
        self.stream(scope, node, node);
        self.acknowledge(node, node);
    }
}

impl Maps {
    /// Whether a pod has answered a first packet that was not meant for it by the version that its node has applied.
    fn is_deviation(&self, pod: PodNo) -> bool {
        let answered = |one: &HalfOpen<Be32>| one.answers > 0 && one.mark & mark::DEVIATION != 0;
        self.flows[pod].is_some_and(|flow| flow.flags & flow_flag::DEVIATION != 0)
            || self.half_open[pod].is_some_and(|one| answered(&one))
    }

    /// Does what the receiver has answered.
    fn pin(&mut self, scope: &Scope, ops: &[PinOp]) {
        let id = |pinned: &Pinned| match pinned {
            Pinned::Inherited(BackendId(id)) => *id,
            Pinned::Pod(pod) => {
                let same = |number: &PodNo| scope.pod(*number) == pod;
                let found = (0..scope.homes.len()).find(same);
                backend_id(found.expect("pins name our pods"))
            }
        };
        for PinOp { pods, .. } in ops {
            self.pins = std::array::from_fn(|at| pods[at].as_ref().map_or(0, id));
        }
    }
}
