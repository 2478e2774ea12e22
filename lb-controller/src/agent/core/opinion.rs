//! Whom this node asks about packets of flows that nobody here knows, while it is not fresh itself. Chosen while all is
//! well: an agent that has died chooses nobody.

use std::sync::Arc;
use std::time::Instant;

use super::{Core, chain};
use crate::agent::attempt::Attempt;
use crate::api::load_balancer_node::NodeRole;
use crate::liveness::State;

/// The choice, and carrying it out.
#[derive(Default)]
pub(super) struct Opinion {
    pub(super) node: Option<Arc<str>>,
    pub(super) attempt: Attempt,
}

impl Core {
    /// Chooses anew, after something was heard of the others.
    pub(super) fn choose_opinion(&mut self, now: Instant) {
        let chosen = self.best_opinion();
        if chosen != self.opinion.node {
            tracing::debug!(?chosen, "another node is asked for opinions");
            self.opinion.node = chosen;
            self.opinion.attempt.want(now);
        }
    }

    /// The ways to nodes have changed: that to the chosen one may have been unknown. What an earlier start of the agent chose stays
    /// until this one chooses.
    pub(super) fn opinion_again(&mut self, now: Instant) {
        if self.opinion.node.is_some() {
            self.opinion.attempt.want(now);
        }
    }

    /// A balancer that says that it is fresh: the present one if it does, else the next by name after this node, so that
    /// nodes do not all ask the same.
    fn best_opinion(&self) -> Option<Arc<str>> {
        let peers = &self.announcing.liveness.peers;
        let will_do = |node: &Arc<str>| {
            let is_fresh = peers.get(node).is_some_and(|peer| {
                let condition = peer.condition;
                peer.state == State::Alive && condition.is_fresh && condition.is_ready
            });
            is_fresh && self.agents.contains_key(node) && !self.is_owner_only(node)
        };
        if let Some(present) = self.opinion.node.as_ref().filter(|node| will_do(node)) {
            return Some(Arc::clone(present));
        }
        let own = self.settings.node.as_str();
        let (before, after): (Vec<_>, Vec<_>) = peers.keys().partition(|node| ***node < *own);
        let mut ring = after.into_iter().chain(before);
        ring.find(|node| will_do(node)).cloned()
    }

    /// Whether a node forwards nothing for others, and is told no pins.
    pub(super) fn is_owner_only(&self, node: &str) -> bool {
        let mut balancers = self.index.balancers();
        let object = balancers.find(|object| object.metadata.name.as_deref() == Some(node));
        object.is_some_and(|object| object.spec.role == NodeRole::Owner)
    }

    /// Writes the choice into the maps.
    pub(super) fn apply_opinion(&mut self, now: Instant) {
        if !self.opinion.attempt.is_due(now) {
            return;
        }
        let node = self.opinion.node.clone();
        let outcome = match self.installed.plan_opinion(node.as_ref()) {
            Ok(ops) => self.apply(&ops).map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        };
        self.opinion.attempt.record(outcome, now);
    }
}
