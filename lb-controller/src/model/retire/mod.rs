//! Retirement of a Service's history: older occupants and previous tables leave once nobody needs them to find a flow.
//!
//! ```text
//! Idle ─ want ▶ Spreading     (a) all reachable balancers and the owners' nodes have applied a version in which nobody who is
//!                                 to leave is first: no new flows come to them
//!             ▶ HandingOff    (b) each owner's node has pinned what the proposal would not find, half-open flows included,
//!                                 and the balancers that it reaches have acknowledged that
//!             ▶ Publishing    the manager writes a version without them, with watermarks
//!             ▶ Settling      the owners' nodes have applied it, and may forget the proposal ─▶ Idle
//! ```
//!
//! One machine per Service. It is given what nodes report and the time, and answers what to do; nothing is lost with it but
//! time. The version that forgets may be newer than the one that was asked about: each version passes through
//! [`Retirement::table_changed`], which takes back what is in use again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pins::Position;
use super::table::TableError;
use crate::api::service_table::ServiceTableSpec;

mod proposal;

pub use proposal::{Proposal, Retired, proposal};

/// How long a retirement may take. An owner that does not answer must not hold the history of others up.
pub const ROUND_MAX: Duration = Duration::from_mins(1);
/// How long nothing is tried after a retirement that came to nothing.
pub const PAUSE: Duration = Duration::from_secs(10);

/// Number of an attempt, so that late answers to an earlier one are told apart. Higher than all before, those of former
/// managers included: milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Round(pub u64);

/// Why history should go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wanted {
    /// A slot waits for another occupant.
    HistoryFull,
    /// Another shape waits.
    ShapeWaits,
    /// A node that it names is being drained.
    Drain,
    /// Nothing has changed for a while.
    Quiet,
}

impl Wanted {
    /// As people and machines are told.
    pub fn label(self) -> &'static str {
        match self {
            Self::HistoryFull => "history-full",
            Self::ShapeWaits => "shape-waits",
            Self::Drain => "drain",
            Self::Quiet => "quiet",
        }
    }
}

/// What nodes are known to be.
pub struct Nodes<'a> {
    /// Balancers whose agents the manager reaches, owners' nodes among them.
    pub reachable: &'a BTreeSet<Arc<str>>,
    /// The version of the Service's table that a node has applied.
    pub applied: &'a dyn Fn(&str) -> Option<u64>,
}

/// What to do next.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Ask a node: pin every flow of yours, half-open ones included, that would not be found under the proposal, and those
    /// that come while it stands; answer with your position once the balancers that you reach have acknowledged it.
    Ask {
        /// The node.
        node: Arc<str>,
        /// The attempt.
        round: Round,
        /// The table as it would be.
        proposal: Arc<ServiceTableSpec>,
    },
    /// The proposal stands no more. Pins stay until their flows end.
    Cancel {
        /// The node.
        node: Arc<str>,
        /// The attempt.
        round: Round,
    },
    /// Assign the Service's table anew without these.
    Publish(Retired),
}

/// The retirement of one Service.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Retirement {
    /// Nothing is under way.
    #[default]
    Idle,
    /// The last attempt came to nothing.
    Paused {
        /// Until then.
        until: Instant,
    },
    /// An attempt is under way.
    Asked(Box<Asked>),
}

/// An attempt.
#[derive(Clone, PartialEq, Debug)]
pub struct Asked {
    round: Round,
    proposal: Proposal,
    table: Arc<ServiceTableSpec>,
    until: Instant,
    phase: Phase,
}

#[derive(Clone, PartialEq, Debug)]
enum Phase {
    /// The base version spreads.
    Spreading,
    /// Owners' nodes have been asked; positions of those that have answered.
    HandingOff(BTreeMap<Arc<str>, Position>),
    /// The manager has been told to write the version.
    Publishing,
    /// It is written, and has this number.
    Settling(u64),
}

impl Retirement {
    /// Starts an attempt if there is anything to retire and none is under way. `table` is the last version written.
    pub fn want(
        &mut self,
        table: &ServiceTableSpec,
        round: Round,
        nodes: &Nodes<'_>,
        now: Instant,
    ) -> Result<Vec<Action>, TableError> {
        self.want_without(table, round, nodes, &BTreeSet::new(), now)
    }

    /// The same, but history on `mute` nodes stays: their agents are there, but did not answer lately.
    pub fn want_without(
        &mut self,
        table: &ServiceTableSpec,
        round: Round,
        nodes: &Nodes<'_>,
        mute: &BTreeSet<Arc<str>>,
        now: Instant,
    ) -> Result<Vec<Action>, TableError> {
        match self {
            Self::Idle => {}
            Self::Paused { until } if *until <= now => {}
            Self::Paused { .. } | Self::Asked(_) => return Ok(Vec::new()),
        }
        let answers = |node: &str| nodes.reachable.contains(node) && !mute.contains(node);
        let Some(proposal) = proposal(table, &answers)? else {
            return Ok(Vec::new());
        };
        let table = Arc::new(proposal.table.clone());
        *self = Self::Asked(Box::new(Asked {
            round,
            proposal,
            table,
            until: now + ROUND_MAX,
            phase: Phase::Spreading,
        }));
        Ok(self.step(nodes, now))
    }

    /// Goes on as far as what is known of nodes allows.
    pub fn step(&mut self, nodes: &Nodes<'_>, now: Instant) -> Vec<Action> {
        let Self::Asked(asked) = self else {
            return Vec::new();
        };
        // Written is written: what is left is to tell the owners, when they have applied it.
        let is_written = matches!(asked.phase, Phase::Publishing | Phase::Settling(_));
        let away = asked.owners().any(|node| !nodes.reachable.contains(node));
        if !is_written && (away || now >= asked.until) {
            return self.give_up(now);
        }
        let (actions, done) = asked.step(nodes, now);
        if done {
            *self = Self::Idle;
        }
        actions
    }

    /// A node has pinned what it was asked to, and the balancers that it reaches have acknowledged up to a position.
    pub fn handed_off(&mut self, node: &Arc<str>, round: Round, position: Position) {
        if let Self::Asked(asked) = self
            && asked.round == round
            && asked.owners().any(|owner| owner == node)
            && let Phase::HandingOff(positions) = &mut asked.phase
        {
            positions.insert(node.clone(), position);
        }
    }

    /// A node's agent has come back: what it was asked it does not do any more, and its answer is void until it answers again.
    pub fn asked_anew(&mut self, node: &str) {
        if let Self::Asked(asked) = self
            && let Phase::HandingOff(positions) = &mut asked.phase
        {
            positions.remove(node);
        }
    }

    /// A node can not do what it was asked: the attempt ends, if no version is written yet.
    pub fn refused(&mut self, node: &str, round: Round, now: Instant) -> Vec<Action> {
        match self {
            Self::Asked(asked)
                if asked.round == round
                    && asked.owners().any(|owner| **owner == *node)
                    && matches!(asked.phase, Phase::HandingOff(_)) =>
            {
                self.give_up(now)
            }
            Self::Idle | Self::Paused { .. } | Self::Asked(_) => Vec::new(),
        }
    }

    /// A version was written. What is in use again in it is not retired; if that is all there was, the attempt ends.
    pub fn table_changed(
        &mut self,
        table: &ServiceTableSpec,
        now: Instant,
    ) -> Result<Vec<Action>, TableError> {
        let Self::Asked(asked) = self else {
            return Ok(Vec::new());
        };
        match asked.phase {
            Phase::Publishing => {
                asked.phase = Phase::Settling(table.version);
                asked.until = now + ROUND_MAX;
                Ok(Vec::new())
            }
            Phase::Settling(_) => Ok(Vec::new()),
            Phase::Spreading | Phase::HandingOff(_) => {
                asked.proposal.retired.keep_unused(table)?;
                if asked.proposal.retired.is_empty() {
                    return Ok(self.give_up(now));
                }
                Ok(Vec::new())
            }
        }
    }

    /// The Service is gone, or another manager leads.
    pub fn cancel(&mut self) -> Vec<Action> {
        match std::mem::take(self) {
            Self::Idle | Self::Paused { .. } => Vec::new(),
            Self::Asked(asked) => asked.cancel(),
        }
    }

    /// When to step again though nothing is reported.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Idle => None,
            Self::Paused { until } => Some(*until),
            // The next thing to happen is that the version is written.
            Self::Asked(asked) if asked.phase == Phase::Publishing => None,
            Self::Asked(asked) => Some(asked.until),
        }
    }

    /// The attempt that is under way.
    pub fn round(&self) -> Option<Round> {
        match self {
            Self::Idle | Self::Paused { .. } => None,
            Self::Asked(asked) => Some(asked.round),
        }
    }

    /// Where it stands, as people and machines are told.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Idle => "waiting",
            Self::Paused { .. } => "paused",
            Self::Asked(asked) => match asked.phase {
                Phase::Spreading => "spreading",
                Phase::HandingOff(_) => "handing-off",
                Phase::Publishing => "publishing",
                Phase::Settling(_) => "settling",
            },
        }
    }

    /// Owners' nodes that have been asked and have not answered.
    pub fn silent(&self) -> BTreeSet<Arc<str>> {
        match self {
            Self::Asked(asked) => match &asked.phase {
                Phase::HandingOff(positions) => asked.silent(positions),
                Phase::Spreading | Phase::Publishing | Phase::Settling(_) => BTreeSet::new(),
            },
            Self::Idle | Self::Paused { .. } => BTreeSet::new(),
        }
    }

    /// Nodes whose answer or version is waited for, to be shown.
    pub fn waits_for(&self, nodes: &Nodes<'_>) -> BTreeSet<Arc<str>> {
        match self {
            Self::Idle | Self::Paused { .. } => BTreeSet::new(),
            Self::Asked(asked) => asked.waits_for(nodes),
        }
    }

    fn give_up(&mut self, now: Instant) -> Vec<Action> {
        let actions = self.cancel();
        *self = Self::Paused { until: now + PAUSE };
        actions
    }
}

impl Asked {
    fn owners(&self) -> impl Iterator<Item = &Arc<str>> {
        self.proposal.owners.iter()
    }

    /// What to do, and whether that was all.
    fn step(&mut self, nodes: &Nodes<'_>, now: Instant) -> (Vec<Action>, bool) {
        let waits = !self.waits_for(nodes).is_empty();
        match &mut self.phase {
            Phase::Spreading if !waits => {
                self.phase = Phase::HandingOff(BTreeMap::new());
                let asks = self.owners().map(|node| Action::Ask {
                    node: node.clone(),
                    round: self.round,
                    proposal: self.table.clone(),
                });
                (asks.collect(), false)
            }
            Phase::HandingOff(positions) if !waits => {
                let mut retired = self.proposal.retired.clone();
                retired.watermarks = std::mem::take(positions);
                self.phase = Phase::Publishing;
                (vec![Action::Publish(retired)], false)
            }
            Phase::Settling(_) if !waits || now >= self.until => (self.cancel(), true),
            Phase::Spreading | Phase::HandingOff(_) | Phase::Publishing | Phase::Settling(_) => {
                (Vec::new(), false)
            }
        }
    }

    fn waits_for(&self, nodes: &Nodes<'_>) -> BTreeSet<Arc<str>> {
        let lacks = |version: u64| {
            move |node: &&Arc<str>| (nodes.applied)(node).is_none_or(|applied| applied < version)
        };
        match &self.phase {
            Phase::Spreading => {
                let all = nodes.reachable.iter().chain(self.owners());
                all.filter(lacks(self.proposal.base)).cloned().collect()
            }
            Phase::HandingOff(positions) => self.silent(positions),
            Phase::Publishing => BTreeSet::new(),
            // Who is not there has dropped the proposal already.
            Phase::Settling(version) => {
                let there = self.owners().filter(|node| nodes.reachable.contains(*node));
                there.filter(lacks(*version)).cloned().collect()
            }
        }
    }

    fn silent(&self, positions: &BTreeMap<Arc<str>, Position>) -> BTreeSet<Arc<str>> {
        let silent = self.owners().filter(|node| !positions.contains_key(*node));
        silent.cloned().collect()
    }

    fn cancel(&self) -> Vec<Action> {
        if self.phase == Phase::Spreading {
            return Vec::new();
        }
        let cancel = self.owners().map(|node| Action::Cancel {
            node: node.clone(),
            round: self.round,
        });
        cancel.collect()
    }
}

#[cfg(test)]
mod tests;
