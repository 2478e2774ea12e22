//! Agents whose streams are up: what each has applied, and what each was told on the stream that it has now. Pure.
//!
//! What stands with an agent is compared with what it was told: a stream that comes up again is told everything again, and
//! what could not be sent is sent later, without anybody who remembers either.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::service_table::ServiceTableSpec;
use crate::handoff::message::Instruction;
use crate::model::retire::{Nodes, Round};

/// How long an agent that is there but did not answer in time is not asked again, so that it does not hold up what others
/// have: it costs them at most a minute in six.
const MUTE: Duration = Duration::from_mins(5);
/// When what an agent had no room for is sent again.
const RESEND: Duration = Duration::from_millis(100);

/// A question that stands.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Ask {
    pub(super) service_uid: Arc<str>,
    pub(super) base_version: u64,
    pub(super) proposal: Arc<ServiceTableSpec>,
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Agent {
    /// Versions by Service UID.
    applied: BTreeMap<Arc<str>, u64>,
    /// Questions that it knows of.
    told: BTreeSet<Round>,
    mute_until: Option<Instant>,
}

/// See the head of the file.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Reached {
    agents: BTreeMap<Arc<str>, Agent>,
    /// Their names. Whatever its role, an agent that is there is waited for before anybody is asked: a node that only has
    /// pods decides some first packets by its own tables too.
    names: BTreeSet<Arc<str>>,
    standing: BTreeMap<Arc<str>, BTreeMap<Round, Ask>>,
    resend_at: Option<Instant>,
}

impl Reached {
    /// A stream begins: nothing was told or heard on it yet.
    pub(super) fn up(&mut self, node: &Arc<str>) {
        self.agents.insert(Arc::clone(node), Agent::default());
        self.names.insert(Arc::clone(node));
    }

    pub(super) fn down(&mut self, node: &str) {
        self.agents.remove(node);
        self.names.remove(node);
    }

    pub(super) fn names(&self) -> &BTreeSet<Arc<str>> {
        &self.names
    }

    pub(super) fn applied(&mut self, node: &str, service_uid: &Arc<str>, version: u64) {
        if let Some(agent) = self.agents.get_mut(node) {
            agent.applied.insert(Arc::clone(service_uid), version);
        }
    }

    /// Forgets a Service that is gone.
    pub(super) fn forget(&mut self, service_uid: &str) {
        for agent in self.agents.values_mut() {
            agent.applied.remove(service_uid);
        }
    }

    /// Looks at the agents as a retirement of one Service does.
    pub(super) fn with<T>(&self, service_uid: &str, look: impl FnOnce(&Nodes<'_>) -> T) -> T {
        look(&Nodes {
            reachable: &self.names,
            applied: &|node| self.agents.get(node)?.applied.get(service_uid).copied(),
        })
    }

    /// Agents that have not applied a version of a table.
    pub(super) fn lacking<'a>(
        &'a self,
        service_uid: &'a str,
        version: u64,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        let agents = self.agents.iter();
        let lacking = agents.filter(move |(_, agent)| {
            agent
                .applied
                .get(service_uid)
                .is_none_or(|applied| *applied < version)
        });
        lacking.map(|(node, _)| node)
    }

    /// It did not answer, or can not do what it was asked.
    pub(super) fn mute(&mut self, node: &str, now: Instant) {
        if let Some(agent) = self.agents.get_mut(node) {
            agent.mute_until = Some(now + MUTE);
        }
    }

    /// It answers.
    pub(super) fn speaks(&mut self, node: &str) {
        if let Some(agent) = self.agents.get_mut(node) {
            agent.mute_until = None;
        }
    }

    /// Agents that are there and are not asked.
    pub(super) fn muted(&self, now: Instant) -> BTreeSet<Arc<str>> {
        let is_mute = |agent: &Agent| agent.mute_until.is_some_and(|until| now < until);
        let muted = self.agents.iter().filter(|(_, agent)| is_mute(agent));
        muted.map(|(node, _)| Arc::clone(node)).collect()
    }

    /// Whether an agent was asked this on its present stream. An answer to anything else is none.
    pub(super) fn was_told(&self, node: &str, round: Round) -> bool {
        let agent = self.agents.get(node);
        agent.is_some_and(|agent| agent.told.contains(&round))
    }

    pub(super) fn ask(&mut self, node: Arc<str>, round: Round, ask: Ask) {
        self.standing.entry(node).or_default().insert(round, ask);
    }

    pub(super) fn cancel(&mut self, node: &str, round: Round) {
        if let Some(asks) = self.standing.get_mut(node) {
            asks.remove(&round);
            if asks.is_empty() {
                self.standing.remove(node);
            }
        }
    }

    /// What agents are to be told now; it counts as told unless [`Reached::unsent`] says otherwise.
    pub(super) fn instruct(&mut self, now: Instant) -> Vec<(Arc<str>, Instruction)> {
        if self.resend_at.is_some_and(|at| now < at) {
            return Vec::new();
        }
        self.resend_at = None;
        let mut said = Vec::new();
        let nothing = BTreeMap::new();
        for (node, agent) in &mut self.agents {
            let standing = self.standing.get(node).unwrap_or(&nothing);
            // Cancelled first: there is less to keep at any time.
            agent.told.retain(|round| {
                let stands = standing.contains_key(round);
                if !stands {
                    said.push((Arc::clone(node), Instruction::Cancel { id: round.0 }));
                }
                stands
            });
            for (round, ask) in standing {
                if agent.told.insert(*round) {
                    let instruction = Instruction::Retire {
                        id: round.0,
                        service_uid: Arc::clone(&ask.service_uid),
                        base_version: ask.base_version,
                        table: Box::new((*ask.proposal).clone()),
                    };
                    said.push((Arc::clone(node), instruction));
                }
            }
        }
        said
    }

    /// An agent had no room for it.
    pub(super) fn unsent(&mut self, node: &str, instruction: &Instruction, now: Instant) {
        self.resend_at = Some(now + RESEND);
        if let Some(agent) = self.agents.get_mut(node) {
            match instruction {
                Instruction::Retire { id, .. } => _ = agent.told.remove(&Round(*id)),
                Instruction::Cancel { id } => _ = agent.told.insert(Round(*id)),
            }
        }
    }

    /// When to look again though nothing is heard.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.resend_at
    }
}
