//! The manager's streams to agents: bytes and time around [`Retiring`].
//!
//! ```text
//! directory with certificates ─▶ reload ─▶ ControlClient ─▶ Heard ─▶ Retiring ─▶ core: tables without history
//! names of nodes with an agent ───────────▶     ◀───────── instructions ◀┘
//! ```
//!
//! While no names are given nobody is dialled.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answers::Handoff;
use super::core::{Core, Write};
use super::draining::{Draining, Known, Look};
use super::retiring::{Retiring, Todo};
use crate::admin::{Problem, Role};
use crate::api::node_drain::NodeDrainStatus;
use crate::api::service_table::ServiceTableSpec;
use crate::handoff::counts::{Streams, Tally};
use crate::handoff::dial::Dialler;
use crate::handoff::manager::{ControlClient, HEARD_MAX, Heard, News};
use crate::handoff::message::Instruction;
use crate::handoff::peer;
use crate::handoff::reload::{self, Place, Tls};
use crate::handoff::{HANDOFF_PORT, Others, Times};
use crate::model::slot::WhenFull;
use crate::source::index::Named;

/// What is heard at once before anything else is done.
const BATCH_MAX: usize = 1024;

/// Agents, as the manager's loop uses them.
pub(super) struct Agents {
    retiring: Retiring,
    draining: Draining,
    instructions: BTreeMap<Arc<str>, mpsc::Sender<Instruction>>,
    heard: mpsc::Receiver<Heard>,
    others: watch::Sender<Others>,
    tls: watch::Receiver<Tls>,
    tally: Tally<Streams>,
    /// Where keys and certificates are.
    directory: String,
    tasks: JoinSet<()>,
}

impl Agents {
    /// Follows the certificates in a directory, and agents as soon as some are named; until `stop`.
    pub(super) fn start(directory: &Path, times: Times, stop: &CancellationToken) -> Self {
        let (told, tls) = watch::channel(Tls::default());
        let (core, heard) = mpsc::channel(HEARD_MAX);
        let (others, named) = watch::channel(Others::default());
        let tally = Tally::default();
        let place = Place {
            directory: directory.to_owned(),
            role: peer::Role::Manager,
            node: "".into(),
        };
        let client = ControlClient {
            dialler: Dialler {
                from: None,
                port: HANDOFF_PORT,
                tls: tls.clone(),
                times,
            },
            core,
            tally: tally.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(reload::follow(place, told, stop.clone()));
        tasks.spawn(client.run(named, stop.clone()));
        Self {
            retiring: Retiring::default(),
            draining: Draining::default(),
            instructions: BTreeMap::new(),
            heard,
            others,
            tls,
            tally,
            directory: directory.display().to_string(),
            tasks,
        }
    }

    /// Begins with the tables that the core has; nobody was dialled before.
    pub(super) fn lead(&mut self, core: &Core, now: Instant) {
        self.retiring.resume(core.tables(), now);
    }

    /// Somebody else leads: nobody is dialled, and what was heard is forgotten.
    pub(super) fn follow(&mut self) {
        self.name(Others::default());
        self.retiring.reset();
        self.draining.reset();
        self.instructions.clear();
        while self.heard.try_recv().is_ok() {}
    }

    /// Says which nodes have an agent, and where.
    pub(super) fn name(&self, others: Others) {
        self.others.send_if_modified(|named| {
            let is_new = *named != others;
            *named = others;
            is_new
        });
    }

    /// Says what a node does.
    pub(super) fn role(&mut self, node: &Arc<str>, role: Role) {
        self.draining.role(node, role);
    }

    /// Waits until something is heard. Cancel safe.
    pub(super) async fn next(&mut self, batch: &mut Vec<Heard>) {
        if self.heard.recv_many(batch, BATCH_MAX).await == 0 {
            // The client has ended, as we are about to.
            std::future::pending::<()>().await;
        }
    }

    /// Takes in what was heard.
    pub(super) fn take(&mut self, batch: &mut Vec<Heard>, now: Instant) {
        for Heard { node, news } in batch.drain(..) {
            match news {
                News::Up { instructions } => {
                    self.retiring.up(&node);
                    self.draining.up(&node);
                    self.instructions.insert(node, instructions);
                }
                News::Report(report) => {
                    self.draining.report(&node, &report);
                    self.retiring.report(&node, report, now);
                }
                News::Down => {
                    self.retiring.down(&node);
                    self.draining.down(&node);
                    self.instructions.remove(&node);
                }
            }
        }
    }

    /// Takes in what the core has written; all of it, in its order.
    pub(super) fn written(&mut self, write: &Write, now: Instant) {
        match write {
            Write::Table { named, table } => self.retiring.written(named, table.as_deref(), now),
            Write::Status { .. } => {}
        }
    }

    /// A table was found that somebody else has written, who led meanwhile.
    pub(super) fn contested(&mut self, named: &Named, table: &ServiceTableSpec, now: Instant) {
        self.retiring.contested(named, table, now);
    }

    /// Does what is due. Comes after all that the core has written was taken in.
    pub(super) fn work(&mut self, core: &mut Core, now: Instant, wall: Timestamp) {
        core.set_when_full(self.when_full());
        self.retiring.want(core.retirements(), now, wall);
        for todo in self.retiring.work(now) {
            match todo {
                Todo::Retire(named, retired) => {
                    tracing::info!(service = %named, "connections are handed off, history leaves");
                    core.retire(&named, retired, now);
                }
                Todo::Send { node, instruction } => self.send(&node, instruction, now),
            }
        }
    }

    /// With keys and certificates agents can be asked to hand connections off, and a change waits until they have. If there are
    /// none nobody can, and a change that waited would wait for ever. Before they were looked for nothing is forgotten.
    fn when_full(&self) -> WhenFull {
        let Tls {
            credentials, fault, ..
        } = &*self.tls.borrow();
        match (credentials, fault) {
            (None, Some(_)) => WhenFull::OldestLeaves,
            (Some(_), _) | (None, None) => WhenFull::Waits,
        }
    }

    /// What each drain comes to, where that is something else than what is known; by name of the node.
    pub(super) fn advance(
        &mut self,
        known: &Known,
        core: &Core,
        concurrent: u16,
        now: Timestamp,
    ) -> BTreeMap<String, NodeDrainStatus> {
        let others = self.others.borrow().clone();
        let look = Look {
            core,
            retiring: &self.retiring,
            others: &others,
            concurrent,
            now,
        };
        self.draining.advance(known, &look)
    }

    fn send(&mut self, node: &Arc<str>, instruction: Instruction, now: Instant) {
        let unsent = match self.instructions.get(node) {
            Some(queue) => queue
                .try_send(instruction)
                .err()
                .map(TrySendError::into_inner),
            None => Some(instruction),
        };
        if let Some(instruction) = unsent {
            self.retiring.unsent(node, &instruction, now);
        }
    }

    /// When to work again though nothing is heard.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        self.retiring.deadline(now)
    }

    /// What is told.
    pub(super) fn told(&self, now: Instant) -> Handoff {
        let streams = self.tally.read();
        let up = streams.values().filter(|stream| stream.is_up).count();
        Handoff {
            agents: [self.others.borrow().len(), up],
            retirements: self.retiring.shown(now),
            counts: self.retiring.counts(),
        }
    }

    /// What is wrong.
    pub(super) fn problems(&self, now: Instant) -> Vec<Problem> {
        let fault = self.tls.borrow().fault.clone();
        let of_files = fault.map(|fault| Problem {
            object: format!("directory {}", self.directory),
            sentence: fault.to_string(),
        });
        let mut problems = self.retiring.problems(&self.tally.read(), now);
        problems.extend(of_files);
        problems
    }

    /// Waits until everything has ended, after `stop`.
    pub(super) async fn end(mut self) {
        // Nobody hears any more, so nobody waits to be heard.
        self.heard.close();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// What becomes of changes without room before anything is known of keys and certificates.
pub(super) fn at_first(agents: Option<&Agents>) -> WhenFull {
    agents.map_or(WhenFull::OldestLeaves, Agents::when_full)
}

/// Waits until agents are heard; for ever where there are none.
pub(super) async fn hear(agents: &mut Option<Agents>, batch: &mut Vec<Heard>) {
    match agents {
        Some(agents) => agents.next(batch).await,
        None => std::future::pending().await,
    }
}
