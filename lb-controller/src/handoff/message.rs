//! What is told besides pins: greetings, refusals, instructions and reports. Values without a wire.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::admin;
use crate::api::node_drain::Phase;
use crate::api::service_table::ServiceTableSpec;
use crate::model::pins::{Incarnation, Position, Refusal};

/// How a writer begins a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The writer's node.
    pub node: Arc<str>,
    /// Where it is: a balancer that holds this much has all that was there before the stream.
    pub position: Position,
    /// What the balancer had acknowledged before; for people who look for what was lost.
    pub acknowledged: Option<Position>,
}

/// Why a balancer does not take what a writer says, as the writer learns it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// Something is missing before it.
    Gap,
    /// A start of the agent that has a successor.
    Stale,
    /// There is no more room for pins.
    Full,
    /// A pod of another node.
    Foreign,
    /// It can not be understood, or not here.
    Malformed,
    /// Not now.
    Unavailable,
}

impl Reason {
    /// As metrics name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Stale => "stale",
            Self::Full => "full",
            Self::Foreign => "foreign",
            Self::Malformed => "malformed",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A refusal and its sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// For people.
    pub sentence: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        let reason = match refusal {
            Refusal::Gap { .. } | Refusal::NoSnapshot => Reason::Gap,
            Refusal::Stale { .. } => Reason::Stale,
            Refusal::Full { .. } => Reason::Full,
            Refusal::Foreign { .. } => Reason::Foreign,
        };
        Self {
            reason,
            sentence: refusal.to_string(),
        }
    }
}

/// What the manager wants of an agent.
#[derive(Clone, PartialEq, Debug)]
pub enum Instruction {
    /// Make all flows findable that this node owns, as if the proposed table were in use.
    Retire {
        /// Names this proposal in reports.
        id: u64,
        /// The Service.
        service_uid: Arc<str>,
        /// The version that the proposal was made from.
        base_version: u64,
        /// The proposal.
        table: Box<ServiceTableSpec>,
    },
    /// That proposal is off.
    Cancel {
        /// Which.
        id: u64,
    },
}

/// How far the drain of a node has come, as its agent knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Drained {
    /// UID of the `NodeDrain`.
    pub uid: Arc<str>,
    /// The phase that is carried out; none before the first.
    pub phase: Option<Phase>,
    /// Up to where all flows of the node are pinned, and how many these were; none while they are not.
    pub handed_off: Option<(Position, u64)>,
    /// Why they can not be.
    pub fault: Option<String>,
    /// Flows that are open.
    pub open: u64,
    /// For how long no more than [`QUIET_RATE`](crate::model::drain::QUIET_RATE) has arrived.
    pub quiet_for: Duration,
}

/// What an agent tells the manager.
#[derive(Clone, PartialEq, Debug)]
pub enum Report {
    /// Comes first.
    Hello {
        /// Its node.
        node: Arc<str>,
        /// Which start of the agent it is.
        incarnation: Incarnation,
        /// What the node does.
        role: admin::Role,
        /// Whether it may announce.
        ready: bool,
    },
    /// A table is in the maps; all of them after the greeting, then what changes.
    Applied {
        /// The Service.
        service_uid: Arc<str>,
        /// Version of its table.
        version: u64,
        /// Digest of its table.
        digest: String,
    },
    /// All flows are findable under the proposal once balancers hold the pins up to here.
    RetireReady {
        /// Which.
        id: u64,
        /// Up to here.
        position: Position,
    },
    /// They can not be made so.
    RetireRefused {
        /// Which.
        id: u64,
        /// Why.
        why: String,
    },
    /// How far the drain of this node has come here.
    Drain(Drained),
    /// How far this node's pins have come.
    Pins {
        /// What is written.
        written: Position,
        /// What each balancer holds.
        acknowledged: Vec<(Arc<str>, Position)>,
    },
}
