//! The manager of a cluster: objects by watch, writes by request, and one leader by Lease.
//!
//! ```text
//! watches ─▶ index ─▶ core ─▶ what is wanted ─▶ desk: the next step of each Service ─▶ API server ─▶ watches
//!                      lease: only a leader's core and desk work; all others keep their index ready
//! ```
//!
//! This file moves bytes and time.

mod advertisements;
mod conditions;
mod desk;
mod elect;
mod events;
pub mod lease;
mod pools;
mod secret;
mod statuses;
mod step;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::desk::Desk;
use self::events::Notes;
use self::statuses::Statuses;
use super::answers::{Found, Shared};
use super::core::{Core, Requests};
use super::{SLEEP_MAX, tell};
use crate::admin::Problem;
use crate::api::file::{API_VERSION, Condition, ConditionStatus, Metadata, ServiceStatus};
use crate::source::index::{Event, Named};
use crate::source::kubernetes::{EVENTS_MAX, Watches, follow, manager as wanted};
use crate::source::parse::{Kind, Object, ObjectKey};

/// Who we are to the API server.
const FIELD_MANAGER: &str = "bowline-manager";
/// What is told is brought up to date this often at most.
const TELL_PERIOD: Duration = Duration::from_millis(500);
/// Events taken at once before anything else is done.
const BATCH_MAX: usize = 1024;

/// Runs until stopped.
pub(super) async fn run(
    client: Client,
    namespace: String,
    identity: String,
    shared: &Shared,
    stop: &CancellationToken,
) {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let (watches, mut tasks) = follow(&client, wanted(), &sender, stop);
    drop(sender);
    let (leads, until) = watch::channel(None);
    tasks.spawn(elect::elect(
        client.clone(),
        namespace.clone(),
        identity.clone(),
        leads,
        stop.clone(),
    ));
    let notes = Notes::start(client.clone(), identity);
    let shell = Shell {
        core: Core::new(Requests::FromPools),
        desk: Desk::new(client.clone(), notes.clone()),
        statuses: Statuses::new(client.clone()),
        client,
        namespace,
        watches,
        until,
        leading: false,
        notes,
        told: Vec::new(),
        tell_at: Instant::now(),
        untold: false,
    };
    shell.follow(events, shared, stop).await;
    while tasks.join_next().await.is_some() {}
}

struct Shell {
    client: Client,
    namespace: String,
    watches: Arc<Watches>,
    core: Core,
    desk: Desk,
    statuses: Statuses,
    /// Until when we lead.
    until: watch::Receiver<Option<Instant>>,
    /// The core has started as leader.
    leading: bool,
    notes: Notes,
    told: Vec<Problem>,
    tell_at: Instant,
    /// Something happened since it was told.
    untold: bool,
}

impl Shell {
    async fn follow(
        mut self,
        mut events: mpsc::Receiver<Event>,
        shared: &Shared,
        stop: &CancellationToken,
    ) {
        let mut batch = Vec::new();
        loop {
            // Asked before the queue is emptied: then all that was listed is in the index.
            let listed = self.watches.are_listed();
            while batch.len() < BATCH_MAX
                && let Ok(event) = events.try_recv()
            {
                batch.push(event);
            }
            let more = batch.len() == BATCH_MAX;
            let (now, wall) = (Instant::now(), Timestamp::now());
            self.take(&mut batch, now);
            self.lead(listed && !more, now);
            if self.leading {
                for write in self.core.work(now, wall) {
                    self.desk.touch(write.named().clone());
                }
                self.desk.pump(&self.core, now);
                self.statuses.work(&self.core, now, wall);
            }
            // All Services are looked through for it, so not after each event.
            if now >= self.tell_at {
                self.tell(shared, wall);
                self.tell_at = now + TELL_PERIOD;
                self.untold = false;
            }
            if more {
                continue;
            }
            let wake = [
                self.core.next_wake(now, wall).filter(|_| self.leading),
                self.desk.next_wake(),
                self.statuses.next_wake().filter(|_| self.leading),
                *self.until.borrow(),
            ];
            let wake = wake
                .into_iter()
                .flatten()
                .filter(|wake| *wake > now)
                .chain([now + SLEEP_MAX])
                .chain(self.untold.then_some(self.tell_at))
                .min();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => {
                        batch.push(event);
                        self.untold = true;
                    }
                    None => return,
                },
                Some(done) = self.desk.ended() => {
                    self.ended(done);
                    self.untold = true;
                }
                _ = self.until.changed() => {}
                () = tokio::time::sleep_until(wake.unwrap_or(now + SLEEP_MAX).into()) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Takes in events. While another leads, they only keep the index ready.
    fn take(&mut self, batch: &mut Vec<Event>, now: Instant) {
        for event in batch.drain(..) {
            match &event {
                Event::Apply(key, object) => {
                    if self.is_stale(key, object) {
                        continue;
                    }
                    self.touch(key);
                    if let Some(table) = object.service_table() {
                        let named = named(key);
                        if self.leading && self.desk.is_contested(&self.core, &named, table) {
                            tracing::warn!(service = %named, "its table was written by somebody else, who led meanwhile; going on from it");
                            self.core.resume_table(named.clone(), table.spec.clone());
                            self.core.index_mut().touch(named);
                        }
                    }
                }
                Event::Delete(key) => self.touch(key),
                Event::Refused(key, sentence) => {
                    tracing::warn!(object = %key, "{sentence}");
                }
                Event::Reset { kind, objects, .. } => {
                    if matches!(kind, Kind::Service | Kind::ServiceTable) {
                        let gone: Vec<_> = self.core.index().keys(*kind).cloned().collect();
                        for key in objects.keys().chain(&gone) {
                            self.desk.touch(named(key));
                        }
                    }
                }
            }
            self.core.index_mut().take(event);
        }
        if self.leading {
            self.core.settle(now);
        }
    }

    fn touch(&mut self, key: &ObjectKey) {
        if self.leading && matches!(key.kind, Kind::Service | Kind::ServiceTable) {
            self.desk.touch(named(key));
        }
    }

    /// Whether a watch brings what a write of ours has already replaced.
    fn is_stale(&self, key: &ObjectKey, object: &Object) -> bool {
        let known = self.core.index().object(key).and_then(version);
        match (known, version(object)) {
            (Some((known_uid, known)), Some((uid, new))) => known_uid == uid && new < known,
            (_, _) => false,
        }
    }

    /// Whether an object is the one that we know, and not older.
    fn is_known(&self, key: &ObjectKey, object: &Object) -> bool {
        let known = self.core.index().object(key).and_then(version);
        match (known, version(object)) {
            (Some((known_uid, known)), Some((uid, new))) => known_uid == uid && new >= known,
            (_, _) => false,
        }
    }

    /// Starts and stops to work as leader.
    fn lead(&mut self, complete: bool, now: Instant) {
        let leads = self.until.borrow().is_some_and(|until| now < until);
        if self.leading && !leads {
            tracing::warn!("leads no more");
            self.leading = false;
            self.desk.clear();
            self.core.forget();
        }
        if self.leading || !leads || !complete {
            return;
        }
        self.leading = true;
        tracing::info!("leads");
        tokio::spawn(secret::ensure(self.client.clone(), self.namespace.clone()));
        let tables: Vec<_> = self.core.index().tables().cloned().collect();
        let services: Vec<_> = self.core.index().services().cloned().collect();
        for table in tables {
            let meta = &table.metadata;
            let named = Named {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            };
            self.desk.touch(named.clone());
            self.core.resume_table(named, table.spec);
        }
        for service in services {
            let status = status_of(&service);
            let named = Named {
                namespace: status.metadata.namespace.clone().unwrap_or_default(),
                name: status.metadata.name.clone(),
            };
            self.desk.touch(named.clone());
            if crate::model::service::Service::parse(&service).is_some()
                && !status.conditions.is_empty()
            {
                self.core.resume_status(named, status);
            }
        }
        self.core.index_mut().touch_all();
        self.core.settle(now);
        self.core.mark_all(now);
    }

    fn ended(&mut self, done: desk::Done) {
        let seen = self.desk.take(done, Instant::now());
        if let Some(desk::Seen { key, object, made }) = seen {
            match object {
                // Not if it went meanwhile, or if another one has its name now.
                Some(object) if made || self.is_known(&key, &object) => {
                    let event = crate::source::kubernetes::written(key, object);
                    self.core.index_mut().take(event);
                }
                Some(_) => {}
                None => _ = self.core.index_mut().delete(&key),
            }
            if self.leading {
                self.core.settle(Instant::now());
            }
        }
    }

    fn tell(&mut self, shared: &Shared, wall: Timestamp) {
        let watches = self
            .watches
            .errors()
            .into_iter()
            .map(|(wanted, sentence)| Problem {
                object: format!("watch of {}", wanted.resource()),
                sentence,
            });
        let mut problems: Vec<_> = watches.collect();
        let mut reasons: Vec<_> = problems
            .iter()
            .map(|problem| problem.sentence.clone())
            .collect();
        if !self.watches.are_listed() {
            reasons.push("the first lists are not complete yet".to_owned());
        }
        problems.extend(self.core.problems());
        problems.extend(self.desk.problems());
        if self.leading {
            problems.extend(advertisements::problems(self.core.index()));
        }
        tell(&mut self.told, problems.clone());
        shared.set(Found {
            source: format!(
                "API server, {}",
                if self.leading { "leading" } else { "following" }
            ),
            alive: self.watches.are_alive(),
            last_list: wall,
            services: self.core.counts(),
            problems,
            writes: self.desk.writes(),
            writes_failed: self.desk.failed(),
            events_lost: self.notes.lost(),
            leading: self.leading,
            not_ready_because: reasons,
        });
    }
}

/// UID and version of what we write; versions of one object are numbers that grow (Kubernetes 1.35, KEP-5504).
fn version(object: &Object) -> Option<(Option<String>, u64)> {
    let table = object.service_table().map(|table| &table.metadata);
    let meta = object
        .service()
        .map(|service| &service.metadata)
        .or(table)?;
    Some((
        meta.uid.clone(),
        meta.resource_version.as_ref()?.parse().ok()?,
    ))
}

fn named(key: &ObjectKey) -> Named {
    Named {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

/// What a Service's own status remembers.
fn status_of(service: &Service) -> ServiceStatus {
    let meta = &service.metadata;
    let ips = step::addresses(service)
        .into_iter()
        .filter_map(|ingress| ingress.ip?.parse::<IpAddr>().ok());
    let conditions = service
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    ServiceStatus {
        api_version: API_VERSION.to_owned(),
        kind: ServiceStatus::KIND.to_owned(),
        metadata: Metadata {
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
        },
        vips: ips.collect(),
        conditions: conditions
            .map(|c| Condition {
                kind: c.type_.clone(),
                status: if c.status == "True" {
                    ConditionStatus::True
                } else {
                    ConditionStatus::False
                },
                reason: c.reason.clone(),
                message: c.message.clone(),
                last_transition_time: c.last_transition_time.0,
            })
            .collect(),
        problems: Vec::new(),
    }
}
