//! The manager's retirement, step by step. The machine is made anew each time, from what it has done so far: its state has
//! times in it.

use std::collections::BTreeSet;
use std::sync::Arc;

use lb_controller::api::service_table::Watermark;
use lb_controller::model::pins::Position;
use lb_controller::model::retire::{Action, Nodes, Retirement, Round};

use super::control::START;
use super::scope::{NodeNo, Scope, Without, node_name};
use super::world::{NODES_MAX, Retiring, World, number_of};

impl World {
    fn names(mask: u8) -> BTreeSet<Arc<str>> {
        let nodes = (0..NODES_MAX).filter(|node| mask & 1 << node != 0);
        nodes.map(|node| node_name(node).clone()).collect()
    }

    fn reached(&self) -> u8 {
        self.agents().fold(0, |mask, node| mask | 1 << node)
    }

    /// The version before the retired one is written, and nothing is under way.
    pub(crate) fn may_retire(&self, scope: &Scope) -> bool {
        self.retirement.is_none()
            && scope.proposal.is_some()
            && self.written + 2 == scope.versions.len()
            && self.left.retirement
    }

    pub(crate) fn begin_retirement(&mut self) {
        self.left.retirement = false;
        self.retirement = Some(Retiring {
            reached: self.reached(),
            asked: false,
            handed_off: [None; NODES_MAX],
        });
    }

    /// What the machine does next.
    fn retirement_actions(&self, scope: &Scope) -> Vec<Action> {
        let Some(retiring) = &self.retirement else {
            return Vec::new();
        };
        let applied = |name: &str| {
            let applied = self.nodes[number_of(name)].maps.applied as u64 + 1;
            let any = retiring.asked || scope.lacks(Without::BaseVersionEverywhere);
            Some(if any { u64::MAX } else { applied })
        };
        let began = Self::names(retiring.reached);
        let before = Nodes {
            reachable: &began,
            applied: &|name| applied(name).filter(|_| retiring.asked),
        };
        let table = &scope.versions[self.written].table;
        let mut machine = Retirement::default();
        machine
            .want(table, Round(1), &before, *START)
            .expect("it was encoded");
        for (node, position) in retiring.handed_off.iter().enumerate() {
            if let Some(position) = position {
                machine.handed_off(node_name(node), Round(1), *position);
            }
        }
        let reachable = Self::names(self.reached());
        let nodes = Nodes {
            reachable: &reachable,
            applied: &applied,
        };
        machine.step(&nodes, *START)
    }

    pub(crate) fn has_retirement_step(&self, scope: &Scope) -> bool {
        let Some(proposal) = scope
            .proposal
            .as_ref()
            .filter(|_| self.retirement.is_some())
        else {
            return false;
        };
        // A machine that gives up before it has asked says nothing.
        let is_away = |owner: &Arc<str>| self.nodes[number_of(owner)].agent.is_none();
        proposal.owners.iter().any(is_away) || !self.retirement_actions(scope).is_empty()
    }

    pub(crate) fn step_retirement(&mut self, scope: &Scope) {
        let actions = self.retirement_actions(scope);
        let Some(retiring) = &mut self.retirement else {
            return;
        };
        if actions.is_empty() {
            self.retirement = None;
            return;
        }
        for action in actions {
            match action {
                Action::Ask { node, .. } => {
                    retiring.asked = true;
                    if let Some(agent) = &mut self.nodes[number_of(&node)].agent {
                        agent.asked = true;
                    }
                }
                Action::Cancel { node, .. } => {
                    if let Some(agent) = &mut self.nodes[number_of(&node)].agent {
                        agent.asked = false;
                    }
                    self.retirement = None;
                    return;
                }
                Action::Publish(retired) => {
                    for (node, position) in retired.watermarks {
                        let watermark = Watermark::from(position);
                        self.watermarks.insert(node.to_string(), watermark);
                    }
                    self.written += 1;
                    self.retirement = None;
                    return;
                }
            }
        }
    }

    /// Whether a node can answer that its flows are handed off, and the position that it answers.
    pub(crate) fn hand_off(&self, scope: &Scope, node: NodeNo) -> Option<Position> {
        let retiring = self.retirement.as_ref()?;
        let agent = self.nodes[node].agent.as_ref()?;
        if !agent.asked || retiring.handed_off[node].is_some() || self.has_to_sweep(scope, node) {
            return None;
        }
        let position = agent.writer.position();
        let settled = agent.writer.settled(position, self.agents().map(node_name));
        (settled || scope.lacks(Without::AcknowledgementAndWatermark)).then_some(position)
    }

    pub(crate) fn handed_off(&mut self, node: NodeNo, position: Position) {
        if let Some(retiring) = &mut self.retirement {
            retiring.handed_off[node] = Some(position);
        }
    }
}
