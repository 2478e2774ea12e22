//! The state of the world: everything that a step may change, and nothing else.

use std::collections::BTreeMap;

use lb_controller::api::service_table::Watermark;
use lb_controller::model::pins::{Incarnation, Position, Receiver, Writer};
use lb_ebpf::abi::{FirstPod, Flow, HalfOpen};
use lb_ebpf::wire::Be32;

use super::scope::{Events, NodeNo, PodNo, Scope, node_name};

/// Most nodes there are.
pub(crate) const NODES_MAX: usize = 3;
/// Most pods there are.
pub(crate) const PODS_MAX: usize = 3;
/// Packets between nodes at a time; more are not sent until these have arrived.
pub(crate) const WIRE_MAX: usize = 2;

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    /// The last version written, as an index.
    pub(crate) written: usize,
    /// What it says about the handoff.
    pub(crate) watermarks: BTreeMap<String, Watermark>,
    pub(crate) retirement: Option<Retiring>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) wire: Vec<Packet>,
    pub(crate) client: Client,
    /// What may still happen.
    pub(crate) left: Events,
    /// What must never happen.
    pub(crate) fault: Option<Fault>,
}

/// What must never happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Fault {
    /// A packet of an established flow reached a pod that does not own it, while the owner lived.
    Reset,
    /// A SYN that was sent again opened a second flow on the same node.
    Twice,
}

/// A packet between nodes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Packet {
    pub(crate) to: NodeNo,
    pub(crate) bytes: Vec<u8>,
}

/// The client and its connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Client {
    /// Pods whose SYN-ACKs may still arrive.
    pub(crate) offers: u8,
    /// Whose SYN-ACK came first: the owner of the flow.
    pub(crate) owner: Option<PodNo>,
}

/// A retirement, as the manager has it. The machine itself is made from it at each step.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Retiring {
    /// Nodes that were reached when it began.
    pub(crate) reached: u8,
    /// Whether owners' nodes have been asked.
    pub(crate) asked: bool,
    pub(crate) handed_off: [Option<Position>; NODES_MAX],
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Node {
    pub(crate) agent: Option<Agent>,
    /// Starts of its agent so far; 0: the machine is dead.
    pub(crate) starts: u64,
    pub(crate) maps: Maps,
}

/// What an agent knows; lost with it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Agent {
    pub(crate) writer: Writer,
    pub(crate) receiver: Receiver,
    /// It was asked for a handoff, and has not applied the result.
    pub(crate) asked: bool,
    /// Pods that it knows.
    pub(crate) known: u8,
    /// Pods that it sees cannot take new flows.
    pub(crate) shunned: u8,
    /// Nodes that it suspects.
    pub(crate) suspected: u8,
    /// The newest version that a peer has named, as an index.
    pub(crate) heard: usize,
}

/// What a node's maps hold; the agent brings them in line, and they stay when it is gone.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Maps {
    /// The version applied, as an index.
    pub(crate) applied: usize,
    /// Backends that the flow is pinned to, newest first; 0 for none.
    pub(crate) pins: [u32; 2],
    /// Who gets new flows instead of the current occupant.
    pub(crate) deviates: Option<PodNo>,
    pub(crate) substitute: Option<PodNo>,
    pub(crate) suspected: u8,
    /// The streams of all live nodes are past their snapshots.
    pub(crate) streams_up: bool,
    /// The last stamp says that the node is fresh.
    pub(crate) fresh: bool,
    pub(crate) flows: [Option<Flow<Be32>>; PODS_MAX],
    pub(crate) half_open: [Option<HalfOpen<Be32>>; PODS_MAX],
    pub(crate) first: Option<FirstPod<Be32>>,
    pub(crate) held: Option<Held>,
}

/// A packet was held back at a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Held {
    /// The node has been fresh ever since.
    pub(crate) same_period: bool,
}

impl World {
    /// Everything is applied and connected, and nothing has happened.
    pub(crate) fn new(scope: &Scope) -> Self {
        let node = Node {
            agent: Some(Agent {
                writer: Writer::new(Incarnation(1), []),
                receiver: Receiver::default(),
                asked: false,
                known: scope.known,
                shunned: 0,
                suspected: 0,
                heard: 0,
            }),
            starts: 1,
            maps: Maps::default(),
        };
        let mut world = Self {
            written: 0,
            watermarks: BTreeMap::new(),
            retirement: None,
            nodes: vec![node; scope.nodes],
            wire: Vec::new(),
            client: Client::default(),
            left: scope.events,
            fault: None,
        };
        for from in 0..scope.nodes {
            for to in 0..scope.nodes {
                world.stream(scope, from, to);
                world.acknowledge(from, to);
            }
        }
        world.settle(scope);
        world
    }

    pub(crate) fn machine_lives(&self, node: NodeNo) -> bool {
        self.nodes[node].starts > 0
    }

    /// Nodes whose machines live.
    pub(crate) fn machines(&self) -> impl Iterator<Item = NodeNo> + '_ {
        (0..self.nodes.len()).filter(|node| self.machine_lives(*node))
    }

    /// Nodes whose agents live.
    pub(crate) fn agents(&self) -> impl Iterator<Item = NodeNo> + '_ {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].agent.is_some())
    }

    /// Sends a packet to another node, unless that is dead.
    pub(crate) fn send(&mut self, packet: Packet) {
        if self.machine_lives(packet.to) && !self.wire.contains(&packet) {
            self.wire.push(packet);
            self.wire.sort();
        }
    }
}

/// Names of nodes by number.
pub(crate) fn number_of(name: &str) -> NodeNo {
    (0..NODES_MAX)
        .find(|node| **node_name(*node) == *name)
        .expect("nodes have these names")
}
