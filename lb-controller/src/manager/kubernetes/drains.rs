//! Drains of a cluster: looks what each comes to and writes that into its status, which agents go by. Level by level: what is
//! decided next is decided from what the API server has, so a write that is lost is made again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiff::Timestamp;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::task::JoinHandle;

use super::desk::REQUEST_TIMEOUT;
use super::events::{Note, Notes};
use super::statuses::{Change, write};
use crate::api::node_drain::{NodeDrain, NodeDrainStatus, Phase, Trigger};
use crate::manager::SLEEP_MAX;
use crate::manager::agents::Agents;
use crate::manager::core::Core;
use crate::manager::draining::triggers::{self, Asked};
use crate::manager::draining::{self, Known};
use crate::source::kubernetes::{causes, refusal};

/// Writes of drains.
pub(super) struct Drains {
    client: Client,
    /// Drains that may be under way at once.
    concurrent: u16,
    /// What Nodes may ask by.
    heeded: BTreeSet<Trigger>,
    known: Known,
    writing: Option<JoinHandle<()>>,
    asking: Option<JoinHandle<()>>,
}

impl Drains {
    pub(super) fn new(client: Client, options: &draining::DrainOptions) -> Self {
        Self {
            client,
            concurrent: options.concurrent,
            heeded: options.heeded(),
            known: Known::new(),
            writing: None,
            asking: None,
        }
    }

    /// Asks for drains as Nodes do, and takes those back whose reason is gone.
    pub(super) fn heed(&mut self, core: &Core) {
        if is_busy(self.asking.as_ref()) {
            return;
        }
        let asked = triggers::asked(core.index(), &self.heeded);
        if !asked.is_empty() {
            self.asking = Some(tokio::spawn(ask(self.client.clone(), asked)));
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
        if self.known.is_empty() || is_busy(self.writing.as_ref()) {
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

fn is_busy(task: Option<&JoinHandle<()>>) -> bool {
    task.is_some_and(|task| !task.is_finished())
}

/// Makes and deletes drains. After a failure it lasts a while, so that it is not tried again at once.
async fn ask(client: Client, asked: Asked) {
    let drains = Api::<NodeDrain>::all(client);
    let mut failed = false;
    for drain in &asked.anew {
        let (node, trigger) = (&drain.metadata.name, drain.spec.trigger);
        let params = PostParams {
            field_manager: Some(super::FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match done("create", drains.create(&params, drain)).await {
            Ok(()) => tracing::info!(node, ?trigger, "a drain is asked for by its Node"),
            Err(why) => {
                tracing::warn!(node, ?trigger, "a drain can not be asked for: {why}");
                failed = true;
            }
        }
    }
    for (node, uid) in &asked.over {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match done("delete", drains.delete(node, &params)).await {
            Ok(()) => tracing::info!(node, "a drain is taken back, since its reason is gone"),
            Err(why) => {
                tracing::warn!(node, "a drain can not be taken back: {why}");
                failed = true;
            }
        }
    }
    if failed {
        tokio::time::sleep(SLEEP_MAX).await;
    }
}

/// What became of a request; one that somebody else has made meanwhile is done.
async fn done<T>(
    verb: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<(), String> {
    match tokio::time::timeout(REQUEST_TIMEOUT, Box::pin(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
        Ok(Err(error)) => {
            let status = match &error {
                kube::Error::Api(status) => Some(&**status),
                _ => None,
            };
            let refused = refusal(verb, "nodedrains.bowline.dev", status);
            Err(refused.unwrap_or_else(|| causes(&error)))
        }
        Err(_) => Err("no answer".to_owned()),
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
