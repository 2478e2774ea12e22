//! What the manager knows and wants: objects in, files wanted out. Steps are given the time; nothing here waits.

mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use self::view::View;
use super::status;
use crate::admin::{Problem, ServiceCounts};
use crate::api::file::ServiceStatus;
use crate::api::service_table::{ServiceTable, ServiceTableSpec};
use crate::model::assign::{self, Memory};
use crate::model::ipam;
use crate::model::service::Service;
use crate::source::files::{Content, Files};
use crate::source::index::{Index, Named};
use crate::source::output::{Outputs, Writer};
use crate::source::parse::{Kind, ObjectKey};

/// A Service's table is written at most this often. The first change is written at once.
const TABLE_PERIOD: Duration = Duration::from_secs(1);

/// What is known of one Service.
#[derive(Default)]
struct State {
    /// As parsed, with the addresses that it may have; none if it is not ours, or gone.
    service: Option<Service>,
    /// Its table, as last wanted on disk.
    table: Option<ServiceTableSpec>,
    /// Its status, as last wanted on disk.
    status: Option<ServiceStatus>,
    memory: Memory,
    /// When to look at it again because something changed …
    due: Option<Instant>,
    /// … or because time passes.
    deadline: Option<Timestamp>,
    written: Option<Instant>,
}

/// The manager without its directory.
pub struct Core {
    outputs: Outputs,
    files: Files,
    index: Index,
    services: BTreeMap<Named, State>,
    /// Services by the pods that their tables name: who must hear of a death.
    named_by: BTreeMap<String, BTreeSet<Named>>,
    /// Faults of tables that were on disk at the start.
    table_faults: BTreeMap<PathBuf, String>,
    writer: Writer,
    writes: u64,
}

impl Core {
    /// Starts with the tables and statuses that are on disk.
    pub fn resume(
        outputs: Outputs,
        tables: &BTreeMap<PathBuf, Content>,
        statuses: &BTreeMap<PathBuf, Content>,
    ) -> Self {
        let mut core = Self {
            outputs,
            files: Files::default(),
            index: Index::default(),
            services: BTreeMap::new(),
            named_by: BTreeMap::new(),
            table_faults: BTreeMap::new(),
            writer: Writer::default(),
            writes: 0,
        };
        for (path, content) in tables {
            match read_as::<ServiceTable>(content) {
                Ok(table) => {
                    let Some(named) = named_of(&table.metadata) else {
                        continue;
                    };
                    core.name_pods(&named, None, Some(&table.spec));
                    core.services.entry(named).or_default().table = Some(table.spec);
                }
                Err(sentence) => _ = core.table_faults.insert(path.clone(), sentence),
            }
        }
        for content in statuses.values() {
            // A status that can not be read is written anew; only times of conditions are lost.
            if let Ok(status) = read_as::<ServiceStatus>(content) {
                let named = Named {
                    namespace: status.metadata.namespace.clone().unwrap_or_default(),
                    name: status.metadata.name.clone(),
                };
                core.services.entry(named).or_default().status = Some(status);
            }
        }
        core
    }

    /// Takes in new contents of user files, by name.
    pub fn take<'a>(
        &mut self,
        batch: impl IntoIterator<Item = (&'a str, &'a Content)>,
        now: Instant,
    ) {
        let was_complete = self.files.complete();
        for (name, content) in batch {
            self.files.update(name, content, &mut self.index);
        }
        let changed = self.index.take_changed();
        let mut touched = changed.services.clone();
        for uid in &changed.pods {
            touched.extend(self.named_by.get(uid).into_iter().flatten().cloned());
        }
        // When deaths become certain, all tables may change.
        if changed.nodes || was_complete != self.files.complete() {
            touched.extend(self.services.keys().cloned());
        }
        if changed.definitions {
            touched.extend(self.parse());
        }
        for named in touched {
            self.mark(&named, now);
        }
    }

    /// Everything was listed once: what is on disk for Services that do not exist may go.
    pub fn listed(&mut self, now: Instant) {
        let all: Vec<_> = self.services.keys().cloned().collect();
        for named in all {
            self.mark(&named, now);
        }
    }

    /// Reads all Services again, since one of them changed and addresses are settled between all. Says who has changed.
    fn parse(&mut self) -> Vec<Named> {
        let ours = self.index.services().filter_map(|object| {
            let meta = &object.metadata;
            let named = Named {
                namespace: meta.namespace.clone()?,
                name: meta.name.clone()?,
            };
            Some((named, Service::parse(object)?))
        });
        let (names, mut services): (Vec<_>, Vec<_>) = ours.unzip();
        ipam::settle(&mut services);
        let mut parsed: BTreeMap<_, _> = names.into_iter().zip(services).collect();
        let mut changed = Vec::new();
        for (named, state) in &mut self.services {
            let service = parsed.remove(named);
            if state.service != service {
                state.service = service;
                changed.push(named.clone());
            }
        }
        for (named, service) in parsed {
            changed.push(named.clone());
            self.services.insert(
                named,
                State {
                    service: Some(service),
                    ..State::default()
                },
            );
        }
        changed
    }

    /// Wants a Service looked at, no sooner than its table may be written.
    fn mark(&mut self, named: &Named, now: Instant) {
        if let Some(state) = self.services.get_mut(named) {
            let earliest = state
                .written
                .map_or(now, |written| now.max(written + TABLE_PERIOD));
            state.due = Some(state.due.map_or(earliest, |due| due.min(earliest)));
        }
    }

    /// Does what is due. Says which Services were looked at.
    pub fn work(&mut self, now: Instant, wall: Timestamp) -> usize {
        let due: Vec<_> = self
            .services
            .iter()
            .filter(|(_, state)| {
                state.due.is_some_and(|due| due <= now)
                    || state.deadline.is_some_and(|deadline| deadline <= wall)
            })
            .map(|(named, _)| named.clone())
            .collect();
        for named in &due {
            self.reconcile(named, now, wall);
        }
        self.writes += self.writer.flush(now).len() as u64;
        due.len()
    }

    /// When there is something to do next without an event.
    pub fn next_wake(&self, now: Instant, wall: Timestamp) -> Option<Instant> {
        let deadline = |state: &State| {
            let until = state.deadline?.duration_since(wall);
            // A deadline that has passed is due at once.
            Some(now + Duration::try_from(until).unwrap_or(Duration::ZERO))
        };
        let services = self
            .services
            .values()
            .flat_map(|state| [state.due, deadline(state)])
            .flatten()
            .min();
        [services, self.writer.next_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Brings the files of one Service in line.
    fn reconcile(&mut self, named: &Named, now: Instant, wall: Timestamp) {
        let Some(mut state) = self.services.remove(named) else {
            return;
        };
        state.due = None;
        state.deadline = None;
        let before = state.table.take();
        let Some(service) = &state.service else {
            let key = ObjectKey {
                kind: Kind::Service,
                namespace: named.namespace.clone(),
                name: named.name.clone(),
            };
            if self.index.service(named).is_none() && self.files.may_exist(&key) {
                // It may be in a file that can not be understood: its last good table stays.
                state.table = before;
                self.services.insert(named.clone(), state);
                return;
            }
            // The Service is gone, or not ours any more: so are its files. Its state is forgotten with it.
            self.name_pods(named, before.as_ref(), None);
            self.writer.remove(self.table_path(named), now);
            self.writer.remove(self.status_path(named), now);
            return;
        };
        let slices: Vec<_> = self.index.slices(named).collect();
        let view = View {
            index: &self.index,
            complete: self.files.complete(),
        };
        let assigned = assign::assign(
            before.as_ref(),
            service,
            &slices,
            &view,
            &mut state.memory,
            wall,
        );
        state.deadline = assigned.deadline;
        let status = status::of(named, service, &assigned, state.status.as_ref(), wall);
        if state.status.as_ref() != Some(&status)
            && let Ok(text) = serde_saphyr::to_string(&status)
        {
            self.writer.write(self.status_path(named), text, now);
            state.status = Some(status);
        }
        self.want_table(named, &mut state, before.as_ref(), assigned.table, now);
        self.services.insert(named.clone(), state);
    }

    fn want_table(
        &mut self,
        named: &Named,
        state: &mut State,
        before: Option<&ServiceTableSpec>,
        after: Option<ServiceTableSpec>,
        now: Instant,
    ) {
        if before != after.as_ref() {
            match &after {
                Some(spec) => {
                    let mut table = ServiceTable::new(&named.name, spec.clone());
                    table.metadata.namespace = Some(named.namespace.clone());
                    if let Ok(text) = serde_saphyr::to_string(&table) {
                        self.writer.write(self.table_path(named), text, now);
                        tracing::info!(service = %named, version = spec.version, "table changes");
                    }
                }
                None => self.writer.remove(self.table_path(named), now),
            }
            state.written = Some(now);
            self.name_pods(named, before, after.as_ref());
        }
        state.table = after;
    }

    /// Keeps `named_by` in line with a table that changes.
    fn name_pods(
        &mut self,
        named: &Named,
        before: Option<&ServiceTableSpec>,
        after: Option<&ServiceTableSpec>,
    ) {
        for pod in before.into_iter().flat_map(|table| &table.pods) {
            if let Some(names) = self.named_by.get_mut(&pod.uid) {
                names.remove(named);
                if names.is_empty() {
                    self.named_by.remove(&pod.uid);
                }
            }
        }
        for pod in after.into_iter().flat_map(|table| &table.pods) {
            self.named_by
                .entry(pod.uid.clone())
                .or_default()
                .insert(named.clone());
        }
    }

    fn table_path(&self, Named { namespace, name }: &Named) -> PathBuf {
        self.outputs
            .tables()
            .join(format!("{namespace}_{name}.yaml"))
    }

    fn status_path(&self, Named { namespace, name }: &Named) -> PathBuf {
        self.outputs
            .statuses()
            .join(format!("{namespace}_{name}.yaml"))
    }

    /// Everything that is wrong.
    pub fn problems(&self) -> Vec<Problem> {
        let of_services = self.services.iter().flat_map(|(named, state)| {
            let problems = state.status.iter().flat_map(|status| &status.problems);
            problems.map(move |sentence| Problem {
                object: format!("Service {named}"),
                sentence: sentence.clone(),
            })
        });
        let of_tables = self.table_faults.iter().map(|(path, sentence)| Problem {
            object: format!("file {}", path.display()),
            sentence: format!("{sentence}; its history is lost and it was written anew"),
        });
        self.files
            .problems()
            .into_iter()
            .chain(of_services)
            .chain(of_tables)
            .chain(self.writer.problems())
            .collect()
    }

    /// Services by state.
    pub fn counts(&self) -> ServiceCounts {
        let ours = || {
            self.services
                .values()
                .filter(|state| state.service.is_some())
        };
        let programmed = ours().filter(|state| state.table.is_some()).count();
        ServiceCounts {
            total: ours().count(),
            programmed,
            pending: ours().count() - programmed,
            failed: 0,
        }
    }

    /// Files written, and files that wait.
    pub fn writes(&self) -> (u64, usize) {
        (self.writes, self.writer.pending())
    }
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
