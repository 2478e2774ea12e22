//! Which other nodes live: SWIM among the agents, and a question to the programs of a node whose agent is silent.
//!
//! ```text
//! LoadBalancerNodes ─▶ membership (pure: foca, verdicts) ─▶ Liveness ─▶ announce
//! socket, clock ◀────▶ shell
//! ```
//!
//! Suspicion is never death of a pod: it decides who announces, nothing else. Knows no VIPs, no tables and no objects; once
//! the members are known it needs no API server.

mod envelope;
mod identity;
mod membership;
mod shell;
mod verdict;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

pub use envelope::{Condition, Envelope, Key, Opened, Refused};
pub use identity::Identity;
pub use membership::{Counts, Membership, Outgoing};
pub use shell::{Gossip, Members, spawn};
pub use verdict::State;

use crate::model::template::NodeAddresses;

/// UDP port on the nodes' addresses that the agents talk to each other on.
pub const GOSSIP_PORT: u16 = 6083;
/// Members that are followed. The design plans for 64 load-balancer nodes; eight times that still takes no more than a few
/// milliseconds of work per second. More are left out, which is said as a problem.
pub const MEMBERS_MAX: usize = 512;

/// What is known of the other nodes that have an agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Liveness {
    /// By name of the node; this node is not among them.
    pub peers: BTreeMap<Arc<str>, Peer>,
    /// Every member that objects name has been heard of or given up: from here on absence means something.
    pub settled: bool,
    /// Members that no object names, as far as this node was told: nodes that have come since it was cut off.
    pub unnamed: BTreeMap<Arc<str>, NodeAddresses>,
    /// The newest tables that a peer has said it knows, see [`Condition::tables`]; none if no peer was heard for
    /// [`crate::model::freshness::SILENCE_MAX`].
    pub tables: Option<u64>,
    /// How often this node learned that others had taken it for dead: what it announced must be announced again.
    pub returns: u64,
}

/// One other node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// How it is.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// What it has said of itself when it was heard last.
    pub condition: Condition,
}

impl Peer {
    /// Whether it may announce: not known to be down, and it was heard to say that it is ready.
    pub fn may_announce(&self) -> bool {
        self.state.forwards() && self.condition.is_ready
    }
}

impl Liveness {
    /// Whether a node may announce.
    pub fn may_announce(&self, node: &str) -> bool {
        self.peers.get(node).is_some_and(Peer::may_announce)
    }
}
