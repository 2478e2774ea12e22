//! Ways to balance that are put through the same scripts: ours, and as controls that must break those of others, and ours
//! without relays or without pins.

pub(super) mod bowline;
pub(super) mod plain;

use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::handoff::message::{Instruction, Report};

use super::api::Api;
use super::node::kernel::Counts;
use super::queue::Nanos;
use super::segment::Segment;
use super::wire::{NodeId, Place};

/// A scheme by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub(crate) enum SchemeName {
    /// Ours.
    Bowline,
    /// Plain Maglev over pods, no history.
    Stateless,
    /// The same behind a connection table on every node.
    PerNode,
    /// Ours, but nobody is asked about packets of unknown flows.
    NoRelay,
    /// Ours, but no pin reaches the maps.
    NoPins,
}

impl SchemeName {
    pub(crate) const ALL: [Self; 5] = [
        Self::Bowline,
        Self::Stateless,
        Self::PerNode,
        Self::NoRelay,
        Self::NoPins,
    ];

    /// As it stands in the names of cases.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Bowline => "bowline",
            Self::Stateless => "stateless",
            Self::PerNode => "per-node",
            Self::NoRelay => "no-relay",
            Self::NoPins => "no-pins",
        }
    }
}

/// What a node does with a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// To another node, encapsulated.
    Node(NodeId, Box<[u8]>),
    /// To a pod of this node, by address and port; the segment's Service is the pod's.
    Pod(Place, Segment),
    /// To a pod of any node, without a program of ours there.
    Direct(Place, Segment),
    /// Back to the client.
    Client(Segment),
    /// Dropped until nobody else can claim it.
    HeldBack,
    /// Dropped.
    Nothing,
}

/// What becomes of a node's agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// The agent ends; programs and maps stay.
    AgentStops,
    /// It starts again, and knows what the maps hold.
    AgentStarts,
    /// It does not hear the API server any more.
    Deaf,
    /// The others take the node for dead.
    Suspected,
    /// They do not any more.
    Trusted,
    /// The node is gone, maps and all.
    Gone,
}

/// What the manager hears of a node's agent.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Said {
    /// Its stream is up: what was said on an earlier one is void.
    Up,
    /// Its stream has ended.
    Down,
    /// It reports.
    Report(Report),
}

/// What is still there when all flows have ended.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Left {
    /// Flows that some agent wants pinned, or has pinned in its maps.
    pub(super) pins: u64,
    /// Known flows.
    pub(super) flows: u64,
}

/// A way to balance, on all nodes.
pub(super) trait Scheme {
    /// A node begins, with empty tables.
    fn begin(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<()>;
    /// Something becomes of a node's agent.
    fn live(&mut self, node: NodeId, life: Life, now: Nanos) -> anyhow::Result<()>;
    /// Whether a new node may take packets.
    fn is_ready(&self, _node: NodeId) -> bool {
        true
    }
    /// When agents do something that nobody has told them, if they do.
    fn due(&self) -> Option<Nanos> {
        None
    }
    /// They do what is due first.
    fn work(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
    /// What agents have said to the manager since the last time.
    fn said(&mut self) -> Vec<(NodeId, Said)> {
        Vec::new()
    }
    /// The manager says something to an agent.
    fn instruct(
        &mut self,
        _node: NodeId,
        _instruction: &Instruction,
        _now: Nanos,
    ) -> anyhow::Result<()> {
        Ok(())
    }
    /// All flows end by their silence; none if there is nobody who looks after them.
    fn expire(&mut self, _now: Nanos) -> anyhow::Result<Option<Left>> {
        Ok(None)
    }
    /// What there is.
    fn left(&mut self) -> anyhow::Result<Left> {
        Ok(Left::default())
    }
    /// A node's agent hears what the API server says now.
    fn hear(
        &mut self,
        node: NodeId,
        tables: &[ServiceTableSpec],
        api: &Api,
        now: Nanos,
    ) -> anyhow::Result<()>;
    /// What is due now and then.
    fn tidy(&mut self, node: NodeId, now: Nanos) -> anyhow::Result<()>;
    /// A client's segment to a VIP enters at a node.
    fn enter(
        &mut self,
        node: NodeId,
        segment: &Segment,
        vip: Place,
        now: Nanos,
    ) -> anyhow::Result<Outcome>;
    /// A packet from another node arrives.
    fn arrive(&mut self, node: NodeId, packet: &[u8], now: Nanos) -> anyhow::Result<Outcome>;
    /// A pod's segment leaves its node; none if it does not come from the VIP then.
    fn leave(
        &mut self,
        node: NodeId,
        segment: &Segment,
        from: Place,
        vip: Place,
        now: Nanos,
    ) -> anyhow::Result<Option<Segment>>;
    /// Entries about flows at all balancers.
    fn entries(&mut self) -> anyhow::Result<u64>;
    /// Flows that were pinned so far, each once for each pod that owned it.
    fn pinned(&self) -> u64 {
        0
    }
    /// Counters of all nodes.
    fn counts(&mut self) -> anyhow::Result<Counts>;
}
