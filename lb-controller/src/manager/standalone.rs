//! The manager of a directory of manifests: files in, files out. Knows paths; decides nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::agents::{self, Agents};
use super::answers::Handoff;
use super::core::{Core, Requests, Settings, Write};
use super::draining::{self, Known};
use crate::admin::{Problem, Role};
use crate::api::file::{LoadBalancerNode, ServiceStatus};
use crate::api::node_drain::{NodeDrain, NodeDrainStatus};
use crate::api::service_table::ServiceTable;
use crate::handoff::manager::Heard;
use crate::model::template::NodeAddresses;
use crate::source::files::{Content, Files};
use crate::source::index::Named;
use crate::source::output::{Outputs, Writer};
use crate::source::parse::ObjectKey;

/// A manager between files.
pub struct Standalone {
    pub(super) core: Core,
    /// None where connections are not handed off.
    pub(super) agents: Option<Agents>,
    /// Addresses of agents, as their files have them.
    dialled: BTreeMap<Arc<str>, NodeAddresses>,
    outputs: Outputs,
    files: Files,
    /// Faults of tables that were on disk at the start.
    table_faults: BTreeMap<PathBuf, String>,
    /// Drains and what they have come to, by name of the node.
    drains: Known,
    /// Drains that may be under way at once.
    concurrent: u16,
    writer: Writer,
    writes: u64,
}

impl Standalone {
    /// Starts with the tables and statuses that are on disk, and without agents that could hand connections off.
    pub fn resume(
        outputs: Outputs,
        tables: &BTreeMap<PathBuf, Content>,
        statuses: &BTreeMap<PathBuf, Content>,
    ) -> Self {
        Self::resume_with(None, outputs, tables, statuses)
    }

    /// The same, with agents.
    pub(super) fn resume_with(
        mut agents: Option<Agents>,
        outputs: Outputs,
        tables: &BTreeMap<PathBuf, Content>,
        statuses: &BTreeMap<PathBuf, Content>,
    ) -> Self {
        let mut core = Core::new(Settings {
            requests: Requests::Free,
            when_full: agents::at_first(agents.as_ref()),
        });
        let mut table_faults = BTreeMap::new();
        for (path, content) in tables {
            match read_as::<ServiceTable>(content) {
                Ok(table) => {
                    if let Some(named) = named_of(&table.metadata) {
                        core.resume_table(named, table.spec);
                    }
                }
                Err(sentence) => _ = table_faults.insert(path.clone(), sentence),
            }
        }
        for content in statuses.values() {
            // A status that can not be read is written anew; only times of conditions are lost.
            if let Ok(status) = read_as::<ServiceStatus>(content) {
                let named = Named {
                    namespace: status.metadata.namespace.clone().unwrap_or_default(),
                    name: status.metadata.name.clone(),
                };
                core.resume_status(named, status);
            }
        }
        if let Some(agents) = &mut agents {
            agents.lead(&core, Instant::now());
        }
        Self {
            core,
            agents,
            dialled: BTreeMap::new(),
            outputs,
            files: Files::default(),
            table_faults,
            drains: Known::new(),
            concurrent: draining::DrainOptions::default().concurrent,
            writer: Writer::default(),
            writes: 0,
        }
    }

    /// Takes in new contents of user files, by name.
    pub fn take<'a>(
        &mut self,
        batch: impl IntoIterator<Item = (&'a str, &'a Content)>,
        now: Instant,
    ) {
        for (name, content) in batch {
            self.files.update(name, content, self.core.index_mut());
        }
        self.core.know(self.files.unknown(), now);
        self.core.settle(now);
        self.name_agents();
    }

    /// Takes in what agents have written about their nodes.
    pub(super) fn take_nodes(&mut self, batch: &BTreeMap<PathBuf, Content>) {
        for (path, content) in batch {
            let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
                continue;
            };
            match (content, read_as::<LoadBalancerNode>(content)) {
                (Content::Gone, _) => _ = self.dialled.remove(name),
                (_, Ok(node)) => {
                    let name: Arc<str> = node.metadata.name.as_str().into();
                    let role = Role::from_str(&node.role, false);
                    if let (Ok(role), Some(agents)) = (role, &mut self.agents) {
                        agents.role(&name, role);
                    }
                    self.dialled
                        .insert(name, node.addresses.iter().copied().collect());
                }
                // What an agent writes is complete or not there; what is neither is not from one.
                (Content::Text(_) | Content::Unreadable(_), Err(sentence)) => {
                    tracing::warn!(path = %path.display(), "{sentence}; its agent is not asked");
                }
            }
        }
        self.name_agents();
    }

    /// Has the agents followed whose nodes exist.
    fn name_agents(&mut self) {
        if let Some(agents) = &self.agents {
            let nodes = self.dialled.iter();
            let nodes = nodes.filter(|(node, _)| self.core.index().has_node(node));
            agents.name(nodes.map(|(node, at)| (Arc::clone(node), *at)).collect());
        }
    }

    /// Takes in what agents say.
    pub(super) fn take_heard(&mut self, heard: &mut Vec<Heard>, now: Instant) {
        if let Some(agents) = &mut self.agents {
            agents.take(heard, now);
        }
    }

    /// Everything was listed once.
    pub fn listed(&mut self, now: Instant) {
        self.core.mark_all(now);
    }

    /// Does what is due.
    pub fn work(&mut self, now: Instant, wall: Timestamp) {
        self.drain(now, wall);
        for write in self.core.work(now, wall) {
            if let Some(agents) = &mut self.agents {
                agents.written(&write, now);
            }
            let (path, text) = match write {
                Write::Table { named, table } => {
                    let object = table.map(|spec| {
                        let mut object = ServiceTable::new(&named.name, *spec);
                        object.metadata.namespace = Some(named.namespace.clone());
                        object
                    });
                    (
                        self.outputs.tables().join(file_name(&named)),
                        object.map(|o| serde_saphyr::to_string(&o)),
                    )
                }
                Write::Status { named, status } => (
                    self.outputs.statuses().join(file_name(&named)),
                    status.map(|status| serde_saphyr::to_string(&status)),
                ),
            };
            match text {
                Some(Ok(text)) => self.writer.write(path, text, now),
                None => self.writer.remove(path, now),
                // Our own types always have a YAML form; should one not, its old file stays.
                Some(Err(error)) => {
                    tracing::warn!(path = %path.display(), "can not be written: {error}");
                }
            }
        }
        self.writes += self.writer.flush(now).len() as u64;
        if let Some(agents) = &mut self.agents {
            agents.work(&mut self.core, now, wall);
        }
    }

    /// Goes on with what drains had come to before the start.
    pub(super) fn resume_drains(&mut self, drains: &BTreeMap<PathBuf, Content>, concurrent: u16) {
        self.concurrent = concurrent;
        for (path, content) in drains {
            let Some(node) = path.file_stem().and_then(|name| name.to_str()) else {
                continue;
            };
            match read_as::<NodeDrain>(content) {
                Ok(drain) => {
                    let status = drain.status.clone().unwrap_or_default();
                    self.drains.insert(node.to_owned(), (drain, status));
                }
                // Decided anew, from what was asked for.
                Err(sentence) => tracing::warn!(path = %path.display(), "{sentence}"),
            }
        }
        self.leave(Instant::now());
    }

    /// Looks what drains come to, and writes that.
    fn drain(&mut self, now: Instant, wall: Timestamp) {
        let asked = self.core.index().drains();
        let asked = asked.filter_map(|drain| Some((drain.metadata.name.clone()?, drain.clone())));
        let asked: BTreeMap<String, NodeDrain> = asked.collect();
        // One that a file may ask for which can not be understood stands until that is known.
        let unknown = self.files.unknown();
        let is_gone = |node: &&String| {
            !asked.contains_key(*node) && !unknown.may_exist(&ObjectKey::of_drain(node))
        };
        let gone: Vec<String> = self.drains.keys().filter(is_gone).cloned().collect();
        for node in gone {
            tracing::info!(node, "is put to use again");
            self.drains.remove(&node);
            self.writer.remove(self.drain_file(&node), now);
        }
        for (node, drain) in asked {
            let known = self.drains.get(&node);
            if known.is_none_or(|(known, _)| known.metadata.uid != drain.metadata.uid) {
                self.drains
                    .insert(node, (drain, NodeDrainStatus::default()));
            }
        }
        let changed = match &mut self.agents {
            Some(agents) => agents.advance(&self.drains, &self.core, self.concurrent, wall),
            None => draining::refuse(&self.drains, wall),
        };
        for (node, status) in changed {
            draining::tell(&node, &self.drains[&node].1, &status);
            let path = self.drain_file(&node);
            if let Some((drain, known)) = self.drains.get_mut(&node) {
                *known = status;
                let object = NodeDrain {
                    status: Some(known.clone()),
                    ..drain.clone()
                };
                match serde_saphyr::to_string(&object) {
                    Ok(text) => self.writer.write(path, text, now),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), "can not be written: {error}");
                    }
                }
            }
        }
        self.leave(now);
    }

    /// Has pods of drained nodes get no new flows.
    fn leave(&mut self, now: Instant) {
        let drains = self.drains.iter();
        let leaving = draining::leaving(
            drains.map(|(node, (drain, status))| (node.as_str(), drain, status.phase)),
        );
        self.core.set_leaving(leaving, now);
    }

    fn drain_file(&self, node: &str) -> PathBuf {
        self.outputs.drains().join(format!("{node}.yaml"))
    }

    /// When there is something to do next without an event.
    pub fn next_wake(&self, now: Instant, wall: Timestamp) -> Option<Instant> {
        let wakes = [
            self.core.next_wake(now, wall),
            draining::next_wake(&self.drains, now),
            self.writer.next_due(),
            self.agents
                .as_ref()
                .and_then(|agents| agents.next_wake(now)),
        ];
        wakes.into_iter().flatten().min()
    }

    /// Everything that is wrong.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        let of_tables = self.table_faults.iter().map(|(path, sentence)| Problem {
            object: format!("file {}", path.display()),
            sentence: format!("{sentence}; its history is lost and it was written anew"),
        });
        self.files
            .problems()
            .into_iter()
            .chain(self.core.problems())
            .chain(of_tables)
            .chain(self.writer.problems())
            .chain(self.agents.iter().flat_map(|agents| agents.problems(now)))
            .collect()
    }

    /// What is known of agents and retirements.
    pub(super) fn handoff(&self, now: Instant) -> Handoff {
        let told = self.agents.as_ref().map(|agents| agents.told(now));
        told.unwrap_or_default()
    }

    /// Files written, and files that wait.
    pub fn writes(&self) -> (u64, usize) {
        (self.writes, self.writer.pending())
    }
}

fn file_name(Named { namespace, name }: &Named) -> String {
    format!("{namespace}_{name}.yaml")
}

fn read_as<T: serde::de::DeserializeOwned>(content: &Content) -> Result<T, String> {
    match content {
        Content::Text(text) => serde_saphyr::from_str(text).map_err(|error| {
            error
                .without_snippet()
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()
        }),
        Content::Gone => Err("is gone".to_owned()),
        Content::Unreadable(sentence) => Err(sentence.clone()),
    }
}

fn named_of(metadata: &ObjectMeta) -> Option<Named> {
    Some(Named {
        namespace: metadata.namespace.clone()?,
        name: metadata.name.clone()?,
    })
}

#[cfg(test)]
mod tests;
