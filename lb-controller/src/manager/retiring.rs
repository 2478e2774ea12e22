//! Retirement of the histories of all Services: one [`Retirement`] for each that wants one, fed with what agents report and
//! with each table that is written, and what comes of it. Pure: time is an argument, streams are somebody else's.
//!
//! ```text
//! core: what should be retired, tables written ─▶ Retiring ─▶ Todo::Retire ─▶ core
//! agents: up, down, reports ───────────────────▶          ─▶ Todo::Send   ─▶ agents
//! ```

mod reached;
mod reports;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::reached::{Ask, Reached};
use crate::api::service_table::ServiceTableSpec;
use crate::handoff::message::Instruction;
use crate::model::retire::{self, Action, Retired, Retirement, Round, Wanted};
use crate::source::index::Named;

/// Retirements under way at once: an agent may be told to begin and to end all of them before it reads anything, which its
/// queue of instructions has room for. More wait; those that somebody waits for come first.
const UNDER_WAY_MAX: usize = 32;
/// How often a Service is looked at of which nothing can be retired: nobody who could be asked is there.
const LOOK_PERIOD: Duration = retire::PAUSE;

/// What somebody else carries out.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Todo {
    /// Tell an agent. Without room there, [`Retiring::unsent`].
    Send {
        /// Its node.
        node: Arc<str>,
        /// What.
        instruction: Instruction,
    },
    /// Have a Service's next table written without this, and no other before it.
    Retire(Named, Retired),
}

/// What became of retirements.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts {
    /// At the moment.
    pub(super) under_way: usize,
    /// History has left, and all who were asked know.
    pub(super) completed: u64,
    /// Nothing came of them.
    pub(super) abandoned: u64,
}

/// See the head of the file.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Retiring {
    reached: Reached,
    services: BTreeMap<Named, Retiree>,
    /// UIDs of Services with a table, and back.
    uids: BTreeMap<Named, Arc<str>>,
    named: BTreeMap<Arc<str>, Named>,
    last_round: u64,
    completed: u64,
    abandoned: u64,
}

/// A Service whose history should leave, or is leaving.
#[derive(Clone, PartialEq, Debug)]
struct Retiree {
    uid: Arc<str>,
    why: Wanted,
    /// Since when it is wanted for this reason and nothing has left.
    since: Instant,
    is_wanted: bool,
    machine: Retirement,
    /// Something has happened that its machine does not know of.
    is_due: bool,
    /// Not to be begun before.
    look_at: Option<Instant>,
    /// Nodes whose history stays for now: their agents are not there, or do not answer.
    stay: BTreeSet<Arc<str>>,
}

impl Retiree {
    fn new(uid: Arc<str>, why: Wanted, now: Instant) -> Self {
        Self {
            uid,
            why,
            since: now,
            is_wanted: true,
            machine: Retirement::Idle,
            is_due: false,
            look_at: None,
            stay: BTreeSet::new(),
        }
    }

    fn is_under_way(&self) -> bool {
        self.machine.round().is_some()
    }

    /// When it may begin; none if it is not to.
    fn begins(&self, now: Instant) -> Option<Instant> {
        if !self.is_wanted || self.is_under_way() {
            return None;
        }
        let earliest = self.machine.deadline().into_iter().chain(self.look_at);
        Some(earliest.max().unwrap_or(now))
    }
}

impl Retiring {
    /// What agents report is about the Services that have these tables.
    pub(super) fn resume<'a>(
        &mut self,
        tables: impl IntoIterator<Item = (&'a Named, &'a ServiceTableSpec)>,
        now: Instant,
    ) {
        for (named, table) in tables {
            self.written(named, Some(table), now);
        }
    }

    /// A table was written; none: it is gone. Each has to pass here, and before [`Retiring::work`].
    pub(super) fn written(
        &mut self,
        named: &Named,
        table: Option<&ServiceTableSpec>,
        now: Instant,
    ) {
        let uid = table.map(|table| table.service_uid.as_str());
        if self.uids.get(named).map(AsRef::as_ref) != uid {
            self.forget(named);
            if let Some(uid) = uid {
                let uid: Arc<str> = uid.into();
                self.named.insert(Arc::clone(&uid), named.clone());
                self.uids.insert(named.clone(), uid);
            }
        }
        let (Some(table), Some(retiree)) = (table, self.services.get_mut(named)) else {
            return;
        };
        retiree.look_at = None;
        if !retiree.is_under_way() {
            return;
        }
        retiree.is_due = true;
        match retiree.machine.table_changed(table, now) {
            Ok(actions) => {
                self.abandoned += u64::from(!retiree.is_under_way());
                self.carry(named, actions);
            }
            Err(error) => {
                tracing::warn!(service = %named, "its table can not be read back: {error}");
                self.cancel(named);
            }
        }
    }

    /// A table was found that somebody else wrote: what was asked is about another one.
    pub(super) fn contested(&mut self, named: &Named, table: &ServiceTableSpec, now: Instant) {
        self.cancel(named);
        self.written(named, Some(table), now);
    }

    fn forget(&mut self, named: &Named) {
        self.cancel(named);
        if let Some(uid) = self.uids.remove(named) {
            self.named.remove(&uid);
            self.reached.forget(&uid);
        }
    }

    fn cancel(&mut self, named: &Named) {
        if let Some(mut retiree) = self.services.remove(named) {
            self.abandoned += u64::from(retiree.is_under_way());
            let actions = retiree.machine.cancel();
            self.services.insert(named.clone(), retiree);
            self.carry(named, actions);
            self.services.remove(named);
        }
    }

    /// Everything that should be retired, why, and the tables last written. Begins what may begin.
    pub(super) fn want<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = (&'a Named, Wanted, &'a ServiceTableSpec)>,
        now: Instant,
        wall: Timestamp,
    ) {
        for retiree in self.services.values_mut() {
            retiree.is_wanted = false;
        }
        let mut begin = Vec::new();
        for (named, why, table) in wanted {
            if !self.services.contains_key(named) {
                let Some(uid) = self.uids.get(named) else {
                    continue;
                };
                let retiree = Retiree::new(Arc::clone(uid), why, now);
                self.services.insert(named.clone(), retiree);
            }
            let Some(retiree) = self.services.get_mut(named) else {
                continue;
            };
            retiree.is_wanted = true;
            if retiree.why != why {
                (retiree.why, retiree.since) = (why, now);
            }
            if retiree.begins(now).is_some_and(|at| at <= now) {
                begin.push((why, named, table));
            }
        }
        self.drop_idle();
        let room = UNDER_WAY_MAX.saturating_sub(self.counts().under_way);
        begin.sort_by_key(|(why, named, _)| (*why, *named));
        for (_, named, table) in begin.into_iter().take(room) {
            self.begin(named, table, now, wall);
        }
    }

    fn begin(&mut self, named: &Named, table: &ServiceTableSpec, now: Instant, wall: Timestamp) {
        let Some(retiree) = self.services.get_mut(named) else {
            return;
        };
        let wall = u64::try_from(wall.as_millisecond()).unwrap_or_default();
        self.last_round = wall.max(self.last_round + 1);
        let round = Round(self.last_round);
        let mute = self.reached.muted(now);
        let owners = retire::proposal(table, &|_| true);
        let owners = owners.ok().flatten().map(|all| all.owners);
        let is_away = |node: &Arc<str>| !self.reached.names().contains(node) || mute.contains(node);
        retiree.stay = owners.into_iter().flatten().filter(is_away).collect();
        let begun = self.reached.with(&retiree.uid, |nodes| {
            let machine = &mut retiree.machine;
            machine.want_without(table, round, nodes, &mute, now)
        });
        let actions = begun.unwrap_or_else(|error| {
            tracing::warn!(service = %named, "its table can not be read back: {error}");
            Vec::new()
        });
        retiree.look_at = (!retiree.is_under_way()).then_some(now + LOOK_PERIOD);
        self.carry(named, actions);
    }

    /// Goes on as far as what was heard allows, and says what is to be done. After [`Retiring::want`].
    pub(super) fn work(&mut self, now: Instant) -> Vec<Todo> {
        let is_due = |retiree: &Retiree| {
            retiree.is_due || retiree.machine.deadline().is_some_and(|at| at <= now)
        };
        let due = self.services.iter();
        let due = due.filter(|(_, retiree)| retiree.is_under_way() && is_due(retiree));
        let due: Vec<_> = due.map(|(named, _)| named.clone()).collect();
        let mut todo = Vec::new();
        for named in due {
            todo.extend(self.step(&named, now));
        }
        self.drop_idle();
        let said = self.reached.instruct(now).into_iter();
        todo.extend(said.map(|(node, instruction)| Todo::Send { node, instruction }));
        todo
    }

    fn drop_idle(&mut self) {
        self.services
            .retain(|_, retiree| retiree.is_wanted || retiree.is_under_way());
    }

    fn step(&mut self, named: &Named, now: Instant) -> Option<Todo> {
        let retiree = self.services.get_mut(named)?;
        retiree.is_due = false;
        let is_late = retiree.machine.deadline().is_some_and(|at| at <= now);
        let silent = retiree.machine.silent();
        let (waited, actions) = self.reached.with(&retiree.uid, |nodes| {
            let waited = retiree.machine.waits_for(nodes);
            (waited, retiree.machine.step(nodes, now))
        });
        match &retiree.machine {
            Retirement::Idle => self.completed += 1,
            Retirement::Paused { .. } => {
                self.abandoned += 1;
                retiree.stay = waited;
                if is_late {
                    for node in &silent {
                        self.reached.mute(node, now);
                    }
                }
            }
            Retirement::Asked(_) => {}
        }
        self.carry(named, actions).map(|retired| {
            if let Some(retiree) = self.services.get_mut(named) {
                retiree.since = now;
            }
            Todo::Retire(named.clone(), retired)
        })
    }

    /// Notes what agents are to be told. Gives what is to be published.
    fn carry(&mut self, named: &Named, actions: Vec<Action>) -> Option<Retired> {
        let uid = Arc::clone(&self.services.get(named)?.uid);
        let mut publish = None;
        for action in actions {
            match action {
                Action::Ask {
                    node,
                    round,
                    proposal,
                } => {
                    let ask = Ask {
                        service_uid: Arc::clone(&uid),
                        base_version: proposal.version,
                        proposal,
                    };
                    self.reached.ask(node, round, ask);
                }
                Action::Cancel { node, round } => self.reached.cancel(&node, round),
                Action::Publish(retired) => publish = Some(retired),
            }
        }
        publish
    }

    /// An agent had no room for an instruction.
    pub(super) fn unsent(&mut self, node: &str, instruction: &Instruction, now: Instant) {
        self.reached.unsent(node, instruction, now);
    }

    /// Forgets what is under way, as another manager leads: streams end, and with them what agents were asked.
    pub(super) fn reset(&mut self) {
        *self = Self {
            last_round: self.last_round,
            completed: self.completed,
            abandoned: self.abandoned + self.counts().under_way as u64,
            ..Self::default()
        };
    }

    /// Agents that are there and have not applied one of these versions, by UID of the Service.
    pub(super) fn behind<'a>(
        &self,
        versions: impl IntoIterator<Item = (&'a String, &'a u64)>,
    ) -> BTreeSet<String> {
        // A Service that is gone is in nobody's maps.
        let there = versions
            .into_iter()
            .filter(|(uid, _)| self.named.contains_key(uid.as_str()));
        let lacking = there.flat_map(|(uid, version)| self.reached.lacking(uid, *version));
        lacking.map(ToString::to_string).collect()
    }

    /// When to work again though nothing is heard.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let has_room = self.counts().under_way < UNDER_WAY_MAX;
        let of_services = self.services.values().filter_map(|retiree| {
            if retiree.is_under_way() {
                return retiree.machine.deadline();
            }
            retiree.begins(now).filter(|_| has_room)
        });
        of_services.chain(self.reached.deadline()).min()
    }

    /// What became of retirements.
    pub(super) fn counts(&self) -> Counts {
        let under_way = self
            .services
            .values()
            .filter(|retiree| retiree.is_under_way());
        Counts {
            under_way: under_way.count(),
            completed: self.completed,
            abandoned: self.abandoned,
        }
    }

    fn under_way(&mut self) -> impl Iterator<Item = &mut Retiree> {
        let all = self.services.values_mut();
        all.filter(|retiree| retiree.is_under_way())
    }
}

#[cfg(test)]
mod tests;
