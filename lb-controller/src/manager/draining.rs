//! Drains of nodes: what is known of each, gathered from objects, tables and agents, and what it comes to. What that is is decided
//! in [`crate::model::drain`]; statuses are written by somebody else. Pure: time is an argument.

mod findings;
mod options;
pub(super) mod triggers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub use self::options::{DrainOn, DrainOptions};
use super::core::Core;
use super::retiring::Retiring;
use crate::admin::Role;
use crate::api::node_drain::{Entry, Finding, NodeDrain, NodeDrainStatus, Phase, Receiver};
use crate::handoff::Others;
use crate::handoff::message::{Drained, Report};
use crate::model::drain::{self, Agent, Facts};
use crate::model::pins::Position;

/// How often drains that are under way are looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// What agents have said that drains go by.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Draining {
    agents: BTreeMap<Arc<str>, Said>,
    /// Roles of nodes with an agent, as their objects have them.
    roles: BTreeMap<Arc<str>, Role>,
    /// By UID of a drain: where the pins of each other owner were when the hand-off began.
    marks: BTreeMap<String, BTreeMap<Arc<str>, Position>>,
    /// By UID of a drain: for each Service, by UID, the first version that gives the node's pods no new flows. Later ones do
    /// neither, and a Service that changes all the time is not waited for again and again.
    excluded: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What an agent has said on its present stream.
#[derive(Clone, PartialEq, Debug, Default)]
struct Said {
    drain: Option<Drained>,
    pins: Option<Pins>,
}

#[derive(Clone, PartialEq, Debug)]
struct Pins {
    written: Position,
    acknowledged: BTreeMap<Arc<str>, Position>,
}

/// What drains are looked at with.
pub(super) struct Look<'a> {
    /// Objects and tables.
    pub(super) core: &'a Core,
    /// Versions that agents have applied.
    pub(super) retiring: &'a Retiring,
    /// Nodes with an agent.
    pub(super) others: &'a Others,
    /// Drains that may be under way at once.
    pub(super) concurrent: u16,
    /// Now.
    pub(super) now: Timestamp,
}

/// A drain as somebody asked for it, and how far it is known to be.
pub(super) type Known = BTreeMap<String, (NodeDrain, NodeDrainStatus)>;

impl Draining {
    /// What a node does, heard or not.
    pub(super) fn role(&mut self, node: &Arc<str>, role: Role) {
        self.roles.insert(Arc::clone(node), role);
    }

    /// A stream begins.
    pub(super) fn up(&mut self, node: &Arc<str>) {
        self.agents.insert(Arc::clone(node), Said::default());
    }

    /// A stream has ended.
    pub(super) fn down(&mut self, node: &str) {
        self.agents.remove(node);
    }

    /// An agent says something.
    pub(super) fn report(&mut self, node: &Arc<str>, report: &Report) {
        let Some(said) = self.agents.get_mut(node) else {
            return;
        };
        match report {
            Report::Drain(drained) => said.drain = Some(drained.clone()),
            Report::Pins {
                written,
                acknowledged,
            } => {
                said.pins = Some(Pins {
                    written: *written,
                    acknowledged: acknowledged.iter().cloned().collect(),
                });
            }
            Report::Hello { .. }
            | Report::Applied { .. }
            | Report::RetireReady { .. }
            | Report::RetireRefused { .. } => {}
        }
    }

    /// Forgets what was heard: another manager leads.
    pub(super) fn reset(&mut self) {
        self.agents.clear();
        self.marks.clear();
        self.excluded.clear();
    }

    /// What each drain comes to, where that is something else than what is known; by name of the node.
    pub(super) fn advance(
        &mut self,
        known: &Known,
        look: &Look<'_>,
    ) -> BTreeMap<String, NodeDrainStatus> {
        let uids = known
            .values()
            .map(|(drain, _)| drain.metadata.uid.as_deref());
        let uids: BTreeSet<&str> = uids.flatten().collect();
        self.marks.retain(|uid, _| uids.contains(uid.as_str()));
        self.excluded.retain(|uid, _| uids.contains(uid.as_str()));
        let mut phases: BTreeMap<String, Phase> = known
            .iter()
            .map(|(node, (_, status))| (node.clone(), status.phase))
            .collect();
        let hands_off = |phase: &Phase| phase.has_reached(Phase::HandOff) && !phase.is_final();
        if !phases.values().any(hands_off) {
            // Positions of a former drain say nothing about the next.
            for said in self.agents.values_mut() {
                said.pins = None;
            }
        }
        let mut changed = BTreeMap::new();
        for (node, (drain, status)) in known {
            let facts = self.facts(node, drain, status, &phases, look);
            let next = drain::advance(&drain.spec, status, &facts, look.now);
            // The next one of those that have not begun sees that this one has.
            phases.insert(node.clone(), next.phase);
            if next != *status {
                changed.insert(node.clone(), next);
            }
        }
        changed
    }

    fn facts(
        &mut self,
        node: &str,
        drain: &NodeDrain,
        status: &NodeDrainStatus,
        phases: &BTreeMap<String, Phase>,
        look: &Look<'_>,
    ) -> Facts {
        let uid = drain.metadata.uid.as_deref().unwrap_or_default();
        let agent = self.agent(node, uid);
        let receivers = self.receivers(node, uid, phases, look);
        // Facts of later phases are not known before these have begun: until then nobody is done.
        let unsettled = match status.phase {
            Phase::Preflight | Phase::Exclude => {
                self.owners(node).map(ToString::to_string).collect()
            }
            Phase::HandOff => self.unsettled(node, uid, &receivers),
            _ => BTreeSet::new(),
        };
        let mut standing = look.core.standing(node);
        let behind = match status.phase {
            Phase::Preflight | Phase::Exclude => self.behind(node, uid, &mut standing.chosen, look),
            _ => BTreeSet::new(),
        };
        let findings = match status.phase {
            Phase::Preflight => findings::all(node, &receivers, agent.is_some(), phases, look),
            _ => Vec::new(),
        };
        Facts {
            others_first: others_first(node, phases, look.concurrent),
            findings,
            chosen: standing.chosen,
            behind,
            agent,
            receivers,
            unsettled,
            named_in: standing.named_in,
        }
    }

    /// Agents that are heard and have not applied versions in which others get the new flows. Services of which that is not
    /// decided yet are added to those that choose the node's pods.
    fn behind(
        &mut self,
        node: &str,
        uid: &str,
        chosen: &mut BTreeSet<String>,
        look: &Look<'_>,
    ) -> BTreeSet<String> {
        let excluded = self.excluded.entry(uid.to_owned()).or_default();
        for (named, table) in look.core.tables_naming(node) {
            if chosen.contains(&named.to_string()) {
                excluded.remove(&table.service_uid);
            } else if look.core.has_left(named, node) {
                let mark = excluded.entry(table.service_uid.clone());
                mark.or_insert(table.version);
            } else if !excluded.contains_key(&table.service_uid) {
                chosen.insert(named.to_string());
            }
        }
        look.retiring.behind(excluded.iter())
    }

    /// What the agent of the node says; none while it is not heard. One that does not know of the drain yet has done nothing.
    fn agent(&self, node: &str, uid: &str) -> Option<Agent> {
        let said = self.agents.get(node)?;
        let Some(drained) = said.drain.as_ref().filter(|drained| *drained.uid == *uid) else {
            return Some(Agent::default());
        };
        Some(Agent {
            applied: drained.phase,
            handed_off: drained.handed_off.map(|(_, pinned)| pinned),
            fault: drained.fault.clone(),
            open: drained.open,
            quiet_for: drained.quiet_for,
        })
    }

    /// Where packets may still enter without the node.
    fn receivers(
        &self,
        node: &str,
        uid: &str,
        phases: &BTreeMap<String, Phase>,
        look: &Look<'_>,
    ) -> Vec<Receiver> {
        let is_out = |name: &str| {
            phases
                .get(name)
                .is_some_and(|phase| phase.has_reached(Phase::Withdraw))
        };
        let is_receiver = |name: &Arc<str>| {
            **name != *node && self.roles.get(name) != Some(&Role::Owner) && !is_out(name)
        };
        let said = self.agents.get(node);
        let handed_off = said.and_then(|said| said.drain.as_ref());
        let handed_off = handed_off.filter(|drained| *drained.uid == *uid);
        let handed_off = handed_off.and_then(|drained| drained.handed_off);
        let pins = said.and_then(|said| said.pins.as_ref());
        let receivers = look.others.keys().filter(|name| is_receiver(name));
        receivers
            .map(|name| Receiver {
                node: name.to_string(),
                behind: handed_off.zip(pins).map(|((position, _), pins)| {
                    behind(position, pins.acknowledged.get(name).copied())
                }),
                heard: self.agents.contains_key(name),
            })
            .collect()
    }

    /// Other nodes with flows of their own that are heard.
    fn owners(&self, node: &str) -> impl Iterator<Item = &Arc<str>> {
        let heard = self.agents.keys();
        heard.filter(move |name| is_other_owner(&self.roles, name, node))
    }

    /// Other owners of whose pins, as they were when the hand-off began, some receiver lacks some.
    fn unsettled(&mut self, node: &str, uid: &str, receivers: &[Receiver]) -> BTreeSet<String> {
        let marks = self.marks.entry(uid.to_owned()).or_default();
        let heard: Vec<&str> = receivers
            .iter()
            .filter(|one| one.heard)
            .map(|one| one.node.as_str())
            .collect();
        let owners = self.agents.iter();
        let owners = owners.filter(|(name, _)| is_other_owner(&self.roles, name, node));
        let mut unsettled = BTreeSet::new();
        for (owner, said) in owners {
            let is_settled = said.pins.as_ref().is_some_and(|pins| {
                let mark = *marks.entry(Arc::clone(owner)).or_insert(pins.written);
                let mut others = heard.iter().filter(|name| **name != &**owner);
                others.all(|name| pins.acknowledged.get(*name).is_some_and(|at| *at >= mark))
            });
            if !is_settled {
                unsettled.insert(owner.to_string());
            }
        }
        unsettled
    }
}

fn is_other_owner(roles: &BTreeMap<Arc<str>, Role>, name: &Arc<str>, node: &str) -> bool {
    **name != *node && roles.get(name) != Some(&Role::Balancer)
}

/// Changes that are still to be acknowledged.
fn behind(position: Position, acknowledged: Option<Position>) -> u64 {
    match acknowledged {
        Some(at) if at >= position => 0,
        Some(at) if at.incarnation == position.incarnation => position.seq.0 - at.seq.0,
        // Nothing of this start of the agent: at least its snapshot.
        Some(_) | None => position.seq.0.max(1),
    }
}

/// Nodes whose drains a drain that has not begun waits for; none if there is room.
fn others_first(node: &str, phases: &BTreeMap<String, Phase>, concurrent: u16) -> BTreeSet<String> {
    let under_way = phases
        .iter()
        .filter(|(other, phase)| **other != *node && !phase.is_in_use() && !phase.is_final());
    let under_way: BTreeSet<String> = under_way.map(|(other, _)| other.clone()).collect();
    if under_way.len() < usize::from(concurrent) {
        return BTreeSet::new();
    }
    under_way
}

/// Nodes whose pods are to get no new flows.
pub(super) fn leaving<'a>(
    drains: impl IntoIterator<Item = (&'a str, &'a NodeDrain, Phase)>,
) -> BTreeSet<String> {
    let drains = drains.into_iter();
    let leaving = drains
        .filter(|(_, drain, phase)| phase.has_reached(Phase::Exclude) && !drain.spec.balancer_only);
    leaving.map(|(node, _, _)| node.to_owned()).collect()
}

/// What becomes of drains where connections can not be handed off.
pub(super) fn refuse(known: &Known, now: Timestamp) -> BTreeMap<String, NodeDrainStatus> {
    let facts = Facts {
        findings: vec![Finding {
            blocks: true,
            message: "connections are not handed off here: start manager and agents with --handoff-certificates".to_owned(),
        }],
        ..Facts::default()
    };
    let next = known.iter().map(|(node, (drain, status))| {
        let next = drain::advance(&drain.spec, status, &facts, now);
        (node, status, next)
    });
    next.filter(|(_, status, next)| *status != next)
        .map(|(node, _, next)| (node.clone(), next))
        .collect()
}

/// Says in the log what has happened.
pub(super) fn tell(node: &str, before: &NodeDrainStatus, after: &NodeDrainStatus) {
    let at = |status: &NodeDrainStatus| status.log.last().map(|entry| entry.at);
    let is_new = |entry: &&Entry| !before.log.contains(entry) && Some(entry.at) >= at(before);
    for entry in after.log.iter().filter(is_new) {
        tracing::info!(node, phase = ?after.phase, "drain: {}", entry.message);
    }
}

/// When to look at drains again though nothing is heard: time alone may move them.
pub(super) fn next_wake(known: &Known, now: Instant) -> Option<Instant> {
    let mut phases = known.values().map(|(_, status)| status.phase);
    phases
        .any(|phase| !phase.is_final())
        .then_some(now + LOOK_PERIOD)
}

#[cfg(test)]
mod tests;
