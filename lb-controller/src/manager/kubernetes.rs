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
mod drains;
mod elect;
mod events;
mod known;
pub mod lease;
mod pools;
mod secret;
mod statuses;
mod step;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::desk::Desk;
use self::drains::Drains;
use self::events::Notes;
use self::known::{status_of, version};
use self::statuses::Statuses;
use super::agents::{self, Agents, hear};
use super::answers::{Found, Shared};
use super::core::{Core, Requests, Settings};
use super::{SLEEP_MAX, draining, tell};
use crate::admin::Problem;
use crate::handoff::Others;
use crate::handoff::manager::Heard;
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
    agents: Option<Agents>,
    drains: draining::DrainOptions,
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
        core: Core::new(Settings {
            requests: Requests::FromPools,
            when_full: agents::at_first(agents.as_ref()),
        }),
        agents,
        balancers_changed: false,
        desk: Desk::new(client.clone(), notes.clone()),
        statuses: Statuses::new(client.clone()),
        drains: Drains::new(client.clone(), &drains),
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
    /// None where connections are not handed off. Only a leader names any.
    agents: Option<Agents>,
    /// Other nodes have an agent than was said to `agents`, or at other addresses.
    balancers_changed: bool,
    desk: Desk,
    statuses: Statuses,
    drains: Drains,
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
        let (mut batch, mut heard) = (Vec::new(), Vec::new());
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
                self.drains.leave(&mut self.core, now);
                for write in self.core.work(now, wall) {
                    if let Some(agents) = &mut self.agents {
                        agents.written(&write, now);
                    }
                    self.desk.touch(write.named().clone());
                }
                self.retire(&mut heard, now, wall);
                self.drains
                    .work(&self.core, self.agents.as_mut(), &self.notes, wall);
                self.drains.heed(&self.core);
                self.desk.pump(&self.core, now);
                self.statuses.work(&self.core, now, wall);
            }
            // Of a time when we led.
            heard.clear();
            // All Services are looked through for it, so not after each event.
            if now >= self.tell_at {
                self.tell(shared, now, wall);
                self.tell_at = now + TELL_PERIOD;
                self.untold = false;
            }
            if more {
                continue;
            }
            let wake = self.wake(now, wall);
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => {
                        batch.push(event);
                        self.untold = true;
                    }
                    None => break,
                },
                Some(done) = self.desk.ended() => {
                    self.ended(done);
                    self.untold = true;
                }
                () = hear(&mut self.agents, &mut heard) => self.untold = true,
                _ = self.until.changed() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
                () = stop.cancelled() => break,
            }
        }
        if let Some(agents) = self.agents {
            agents.end().await;
        }
    }

    /// When to look again though nothing happens.
    fn wake(&self, now: Instant, wall: Timestamp) -> Instant {
        let agents = self.agents.as_ref();
        // What is to be retired is due at once, and comes after what was due in this round.
        let at_once = [
            self.core.next_wake(now, wall),
            agents.and_then(|agents| agents.next_wake(now)),
        ];
        let at_once = at_once.into_iter().flatten().filter(|_| self.leading);
        let statuses = self.statuses.next_wake().filter(|_| self.leading);
        let drains = self.drains.next_wake(now).filter(|_| self.leading);
        let later = [
            statuses,
            drains,
            self.desk.next_wake(),
            *self.until.borrow(),
        ];
        let later = later.into_iter().flatten().filter(|wake| *wake > now);
        let next = at_once.chain(later);
        let next = next.chain(self.untold.then_some(self.tell_at)).min();
        next.map_or(now + SLEEP_MAX, |next| next.min(now + SLEEP_MAX))
    }

    /// Takes in what agents have said, and does what is due.
    fn retire(&mut self, heard: &mut Vec<Heard>, now: Instant, wall: Timestamp) {
        let Some(agents) = &mut self.agents else {
            return;
        };
        if std::mem::take(&mut self.balancers_changed) {
            let mut named = Others::new();
            for node in self.core.index().balancers() {
                let name: Arc<str> = node.metadata.name.as_deref().unwrap_or_default().into();
                agents.role(&name, node.spec.role.into());
                named.insert(name, node.spec.addresses.iter().copied().collect());
            }
            agents.name(named);
        }
        agents.take(heard, now);
        agents.work(&mut self.core, now, wall);
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
                            if let Some(agents) = &mut self.agents {
                                agents.contested(&named, &table.spec, now);
                            }
                            self.core.index_mut().touch(named);
                        }
                    }
                }
                Event::Delete(key) => self.touch(key),
                Event::Refused(key, sentence) => {
                    tracing::warn!(object = %key, "{sentence}");
                }
                Event::Reset { kind, objects, .. } => {
                    self.balancers_changed |= *kind == Kind::LoadBalancerNode;
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
        self.balancers_changed |= key.kind == Kind::LoadBalancerNode;
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
            if let Some(agents) = &mut self.agents {
                agents.follow();
            }
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
        if let Some(agents) = &mut self.agents {
            agents.lead(&self.core, now);
            self.balancers_changed = true;
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

    fn tell(&mut self, shared: &Shared, now: Instant, wall: Timestamp) {
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
        problems.extend(self.agents.iter().flat_map(|agents| agents.problems(now)));
        let handoff = self.agents.as_ref().map(|agents| agents.told(now));
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
            handoff: handoff.unwrap_or_default(),
            not_ready_because: reasons,
        });
    }
}

fn named(key: &ObjectKey) -> Named {
    Named {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}
