//! Writes to the API server: for each Service one step at a time, several Services at once, again with growing pauses
//! until all is as wanted. What must happen next is decided in [`super::step`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::events::{Note, Notes};
use super::step::{self, Step, Told};
use crate::admin::Problem;
use crate::api::service_table::ServiceTable;
use crate::manager::core::{Core, Wanted};
use crate::source::index::Named;
use crate::source::kubernetes::{causes, refusal};
use crate::source::parse::{Kind, Object, ObjectKey};

/// Requests under way at once: enough to hide the server's latency, few enough for its fair queues.
const REQUESTS_MAX: usize = 16;
/// A request that is not answered by then is tried again.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause after a failure …
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// … doubled after each up to this, with jitter.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A write that failed.
struct Failure {
    pauses: backon::ExponentialBackoff,
    until: Instant,
    sentence: String,
}

/// What came of a step.
pub(super) struct Done {
    named: Named,
    step: Step,
    outcome: Result<Option<Object>, kube::Error>,
}

/// What the shell does with it.
pub(super) struct Seen {
    pub(super) key: ObjectKey,
    /// None: it is gone.
    pub(super) object: Option<Object>,
    /// It is new.
    pub(super) made: bool,
}

/// All writes.
pub(super) struct Desk {
    client: Client,
    notes: Notes,
    dirty: BTreeSet<Named>,
    busy: BTreeSet<Named>,
    failures: BTreeMap<Named, Failure>,
    /// Services whose table somebody else has written meanwhile.
    contested: BTreeSet<Named>,
    tasks: JoinSet<()>,
    done: (mpsc::Sender<Done>, mpsc::Receiver<Done>),
    written: u64,
    failed: u64,
}

impl Desk {
    pub(super) fn new(client: Client, notes: Notes) -> Self {
        Self {
            client,
            notes,
            dirty: BTreeSet::new(),
            busy: BTreeSet::new(),
            failures: BTreeMap::new(),
            contested: BTreeSet::new(),
            tasks: JoinSet::new(),
            done: mpsc::channel(REQUESTS_MAX),
            written: 0,
            failed: 0,
        }
    }

    /// Wants nothing any more: somebody else leads. Requests under way end by themselves.
    pub(super) fn clear(&mut self) {
        self.dirty.clear();
        self.failures.clear();
        self.contested.clear();
    }

    /// Something changed in what is there or in what is wanted.
    pub(super) fn touch(&mut self, named: Named) {
        self.dirty.insert(named);
    }

    /// Whether a table that a write of ours has met is newer than what is wanted: somebody else has led meanwhile.
    pub(super) fn is_contested(
        &mut self,
        core: &Core,
        named: &Named,
        found: &ServiceTable,
    ) -> bool {
        let newer = match core.wanted(named) {
            Wanted::This {
                table: Some(table), ..
            } => {
                table.service_uid == found.spec.service_uid
                    && found.spec.version >= table.version
                    && *table != found.spec
            }
            Wanted::This { table: None, .. } | Wanted::Nothing | Wanted::Undecided => false,
        };
        newer && self.contested.remove(named)
    }

    /// Starts what may be started.
    pub(super) fn pump(&mut self, core: &Core, now: Instant) {
        while self.tasks.try_join_next().is_some() {}
        loop {
            let ready = self.dirty.iter().filter(|named| {
                let waits = self.failures.get(*named);
                !self.busy.contains(*named) && waits.is_none_or(|failure| failure.until <= now)
            });
            // Never more than can be started: at a start all Services wait here.
            let room = REQUESTS_MAX.saturating_sub(self.busy.len());
            let ready: Vec<_> = ready.take(room).cloned().collect();
            if ready.is_empty() {
                return;
            }
            for named in ready {
                self.dirty.remove(&named);
                let index = core.index();
                let table = index
                    .object(&table_key(&named))
                    .and_then(Object::service_table);
                match step::next(core.wanted(&named), index.service(&named), table) {
                    Some(step) => self.start(named, step),
                    None => _ = self.failures.remove(&named),
                }
            }
        }
    }

    fn start(&mut self, named: Named, step: Step) {
        self.busy.insert(named.clone());
        let (client, done) = (self.client.clone(), self.done.0.clone());
        self.tasks.spawn(async move {
            let work = Box::pin(carry_out(&client, &named, &step));
            let outcome = match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
                Ok(outcome) => outcome,
                Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
            };
            let done_with = Done {
                named,
                step,
                outcome,
            };
            // The loop takes all of them, or has ended.
            _ = done.send(done_with).await;
        });
    }

    /// When something is to be tried again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let waiting = self.failures.iter();
        let waiting = waiting.filter(|(named, _)| self.dirty.contains(*named));
        waiting.map(|(_, failure)| failure.until).min()
    }

    /// Waits for the next request to end.
    pub(super) async fn ended(&mut self) -> Option<Done> {
        self.done.1.recv().await
    }

    /// Takes in how a request ended. Gives what is known of the object now.
    pub(super) fn take(&mut self, done: Done, now: Instant) -> Option<Seen> {
        let Done {
            named,
            step,
            outcome,
        } = done;
        self.busy.remove(&named);
        self.dirty.insert(named.clone());
        let is_table = matches!(
            step,
            Step::CreateTable(_)
                | Step::ReplaceTable(_)
                | Step::DeleteTable
                | Step::ReleaseTable(_)
        );
        let key = if is_table {
            table_key(&named)
        } else {
            service_key(&named)
        };
        match outcome {
            Ok(object) => {
                self.written += 1;
                self.failures.remove(&named);
                if let Some(service) = object.as_ref().and_then(Object::service) {
                    self.note(service, &step);
                }
                let made = matches!(step, Step::CreateTable(_));
                Some(Seen { key, object, made })
            }
            Err(error) => {
                if is_table && matches!(&error, kube::Error::Api(status) if status.code == 409) {
                    self.contested.insert(named.clone());
                }
                self.fail(named, &step, &error, now);
                None
            }
        }
    }

    fn fail(&mut self, named: Named, step: &Step, error: &kube::Error, now: Instant) {
        self.failed += 1;
        let (verb, resource) = verb(step);
        let status = match error {
            kube::Error::Api(status) => Some(&**status),
            _ => None,
        };
        let sentence = refusal(verb, resource, status).unwrap_or_else(|| {
            format!(
                "{verb} of {resource} failed: {}; it is tried again",
                causes(error)
            )
        });
        let failure = self.failures.entry(named).or_insert_with(|| Failure {
            pauses: backon::ExponentialBuilder::default()
                .with_min_delay(RETRY_FIRST)
                .with_max_delay(RETRY_MAX)
                .with_jitter()
                .without_max_times()
                .build(),
            until: now,
            sentence: String::new(),
        });
        let asked = match error {
            // The server says how long to stay away.
            kube::Error::Api(status) => status
                .details
                .as_ref()
                .map_or(0, |details| details.retry_after_seconds),
            _ => 0,
        };
        let pause = failure.pauses.next().unwrap_or(RETRY_MAX);
        failure.until = now + pause.max(Duration::from_secs(u64::from(asked)));
        failure.sentence = sentence;
    }

    fn note(&self, service: &Service, step: &Step) {
        let note = match step {
            Step::AddFinalizer(_) => {
                Note::normal("EnsuringLoadBalancer", "ensuring load balancer".to_owned())
            }
            Step::RemoveFinalizer(_) => {
                Note::normal("DeletedLoadBalancer", "deleted load balancer".to_owned())
            }
            Step::Status { told, .. } => match told {
                Told::Ensured(vips) => Note::normal(
                    "EnsuredLoadBalancer",
                    format!("ensured load balancer: {vips}"),
                ),
                Told::Updated(vips) => Note::normal(
                    "UpdatedLoadBalancer",
                    format!("updated load balancer: {vips}"),
                ),
                Told::Deleting => {
                    Note::normal("DeletingLoadBalancer", "deleting load balancer".to_owned())
                }
                Told::Failed(why) => Note::warning("SyncLoadBalancerFailed", why.clone()),
                Told::Nothing => return,
            },
            Step::CreateTable(_)
            | Step::ReplaceTable(_)
            | Step::DeleteTable
            | Step::ReleaseTable(_) => return,
        };
        self.notes.publish(service, note);
    }

    /// What could not be written, and why.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let problems = self.failures.iter().map(|(named, failure)| Problem {
            object: format!("Service {named}"),
            sentence: failure.sentence.clone(),
        });
        problems.collect()
    }

    /// Requests that failed; each is tried again.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// Requests that succeeded, and Services that wait.
    pub(super) fn writes(&self) -> (u64, usize) {
        (self.written, self.dirty.union(&self.busy).count())
    }
}

pub(super) fn table_key(named: &Named) -> ObjectKey {
    ObjectKey {
        kind: Kind::ServiceTable,
        ..service_key(named)
    }
}

pub(super) fn service_key(named: &Named) -> ObjectKey {
    ObjectKey {
        kind: Kind::Service,
        namespace: named.namespace.clone(),
        name: named.name.clone(),
    }
}

fn verb(step: &Step) -> (&'static str, &'static str) {
    const TABLES: &str = "servicetables.bowline.dev";
    match step {
        Step::AddFinalizer(_) | Step::RemoveFinalizer(_) => ("patch", "services"),
        Step::Status { .. } => ("patch", "services/status"),
        Step::CreateTable(_) => ("create", TABLES),
        Step::ReplaceTable(_) | Step::ReleaseTable(_) => ("update", TABLES),
        Step::DeleteTable => ("delete", TABLES),
    }
}

/// Carries out one step. Gives the object as it is then; none if it is gone.
async fn carry_out(
    client: &Client,
    named: &Named,
    step: &Step,
) -> Result<Option<Object>, kube::Error> {
    let Named { namespace, name } = named;
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let tables = Api::<ServiceTable>::namespaced(client.clone(), namespace);
    let by_us = PatchParams {
        field_manager: Some(super::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let post = PostParams {
        field_manager: by_us.field_manager.clone(),
        ..PostParams::default()
    };
    let object = match step {
        Step::AddFinalizer(patch) | Step::RemoveFinalizer(patch) => services
            .patch(name, &by_us, &Patch::Merge(patch))
            .await?
            .into(),
        Step::Status { patch, .. } => services
            .patch_status(name, &by_us, &Patch::Merge(patch))
            .await?
            .into(),
        Step::CreateTable(table) => tables.create(&post, table).await?.into(),
        Step::ReplaceTable(table) => tables.replace(name, &post, table).await?.into(),
        Step::ReleaseTable(table) => {
            let released = tables.replace(name, &post, table).await?;
            if released
                .metadata
                .finalizers
                .as_ref()
                .is_none_or(Vec::is_empty)
            {
                return Ok(None);
            }
            released.into()
        }
        Step::DeleteTable => {
            let deleted = tables.delete(name, &DeleteParams::default()).await?;
            let Some(table) = deleted.left() else {
                return Ok(None);
            };
            table.into()
        }
    };
    Ok(Some(object))
}
