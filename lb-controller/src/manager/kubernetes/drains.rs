//! Drains of a cluster: looks what each comes to and writes that into its status, which agents go by. Level by level: what is
//! decided next is decided from what the API server has, so a write that is lost is made again.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use kube::Client;
use tokio::task::JoinHandle;

use super::events::{Note, Notes};
use super::statuses::{Change, write};
use crate::api::node_drain::{NodeDrain, NodeDrainStatus, Phase};
use crate::manager::agents::Agents;
use crate::manager::core::Core;
use crate::manager::draining::{self, Known};

/// Writes of drains.
pub(super) struct Drains {
    client: Client,
    /// Drains that may be under way at once.
    concurrent: u16,
    known: Known,
    writing: Option<JoinHandle<()>>,
}

impl Drains {
    pub(super) fn new(client: Client, concurrent: u16) -> Self {
        Self {
            client,
            concurrent,
            known: Known::new(),
            writing: None,
        }
    }

    /// Has pods of drained nodes get no new flows. Comes before anything that is decided about tables.
    pub(super) fn leave(&mut self, core: &mut Core, now: Instant) {
        let drains = core.index().drains();
        let named = drains.filter_map(|drain| {
            let status = drain.status.clone().unwrap_or_default();
            Some((drain.metadata.name.clone()?, (drain.clone(), status)))
        });
        self.known = named.collect();
        let drains = self.known.iter();
        let drains = drains.map(|(node, (drain, status))| (node.as_str(), drain, status.phase));
        let leaving = draining::leaving(drains);
        core.set_leaving(leaving, now);
    }

    /// Looks at all, and writes what changed.
    pub(super) fn work(
        &mut self,
        core: &Core,
        agents: Option<&mut Agents>,
        notes: &Notes,
        wall: Timestamp,
    ) {
        let is_writing = |writing: &JoinHandle<()>| !writing.is_finished();
        if self.known.is_empty() || self.writing.as_ref().is_some_and(is_writing) {
            return;
        }
        let changed = match agents {
            Some(agents) => agents.advance(&self.known, core, self.concurrent, wall),
            None => draining::refuse(&self.known, wall),
        };
        let writes = self.writes(&changed, notes);
        if writes.is_empty() {
            return;
        }
        let client = self.client.clone();
        self.writing = Some(tokio::spawn(async move {
            write::<NodeDrain>(&client, writes).await;
        }));
    }

    fn writes(&self, changed: &BTreeMap<String, NodeDrainStatus>, notes: &Notes) -> Vec<Change> {
        let mut writes = Vec::new();
        for (node, next) in changed {
            let Some((drain, before)) = self.known.get(node) else {
                continue;
            };
            draining::tell(node, before, next);
            if before.phase != next.phase {
                notes.publish(drain, note(next));
            }
            writes.extend(Change::from(&drain.metadata, drain.status.as_ref(), next));
        }
        writes
    }

    /// When to look again though nothing is heard.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        draining::next_wake(&self.known, now)
    }
}

fn note(status: &NodeDrainStatus) -> Note {
    let said = status.log.last().map(|entry| entry.message.clone());
    let text = said.unwrap_or_default();
    match status.phase {
        Phase::Drained => Note::normal("Drained", text),
        Phase::Failed => Note::warning("DrainFailed", text),
        _ => Note::normal("Draining", text),
    }
}
