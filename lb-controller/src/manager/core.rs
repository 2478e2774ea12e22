//! What the manager knows and wants: objects in, [`Write`]s out. Steps are given the time; nothing here waits, and nothing
//! here knows where objects come from or where writes go.

mod addresses;
mod service;
mod standing;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::addresses::Addresses;
use crate::admin::{Problem, ServiceCounts};
use crate::api::file::ServiceStatus;
use crate::api::service_table::ServiceTableSpec;
use crate::model::assign::Memory;
use crate::model::retire::{self, Retired};
use crate::model::service::Service;
use crate::model::slot::WhenFull;
use crate::source::files::Unknown;
use crate::source::index::{Event, Index, Named};
use crate::source::parse::Kind;

pub use self::addresses::{PoolState, Requests};

/// A Service's table is written at most this often. The first change is written at once.
const TABLE_PERIOD: Duration = Duration::from_secs(1);

/// Something that should be as it says.
#[derive(Clone, PartialEq, Debug)]
pub enum Write {
    /// The table of a Service; none: it should not exist.
    Table {
        /// The Service.
        named: Named,
        /// Its table.
        table: Option<Box<ServiceTableSpec>>,
    },
    /// What is told about a Service; none: it is not ours (any more), or gone.
    Status {
        /// The Service.
        named: Named,
        /// Its status.
        status: Option<Box<ServiceStatus>>,
    },
}

/// What should be there for one Service.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Wanted<'a> {
    /// Nothing: it is gone, or not ours.
    Nothing,
    /// It is not decided yet: leave everything as it is.
    Undecided,
    /// It is ours.
    This {
        /// Its table; none while it is pending.
        table: Option<&'a ServiceTableSpec>,
        /// What is told about it.
        status: &'a ServiceStatus,
    },
}

/// What is known of one Service.
#[derive(Default)]
pub(super) struct State {
    /// As parsed, with the addresses that it may have; none if it is not ours, or gone.
    service: Option<Service>,
    /// Addresses that it had before a restart.
    remembered: Vec<IpAddr>,
    /// Its table, as last wanted.
    table: Option<ServiceTableSpec>,
    /// Its status, as last wanted.
    status: Option<ServiceStatus>,
    memory: Memory,
    /// History that leaves with the next table.
    retired: Retired,
    /// Why history should leave.
    retirement: Option<retire::Wanted>,
    /// When to look at it again because something changed …
    due: Option<Instant>,
    /// … or because time passes.
    deadline: Option<Timestamp>,
    written: Option<Instant>,
    /// Since when its first slices are waited for.
    waits: Option<Instant>,
}

/// How the manager decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What becomes of addresses that no pool has.
    pub requests: Requests,
    /// What becomes of a change that has no room for its history.
    pub when_full: WhenFull,
}

impl From<Requests> for Settings {
    /// Without anybody who could be asked to hand connections off.
    fn from(requests: Requests) -> Self {
        Self {
            requests,
            when_full: WhenFull::OldestLeaves,
        }
    }
}

/// The manager without its source and without its writers.
pub struct Core {
    settings: Settings,
    index: Index,
    /// What may exist though it is not in the index.
    unknown: Unknown,
    addresses: Addresses,
    pub(super) services: BTreeMap<Named, State>,
    /// Services that are due, so that an event costs nothing for all others.
    queue: BTreeSet<(Instant, Named)>,
    deadlines: BTreeSet<(Timestamp, Named)>,
    /// Nodes whose pods are to get no new flows.
    leaving: BTreeSet<String>,
    /// Services whose history should be retired.
    retiring: BTreeSet<Named>,
    /// Services by the pods that their tables name: who must hear of a death.
    pub(super) named_by: BTreeMap<String, BTreeSet<Named>>,
}

impl Write {
    /// The Service.
    pub fn named(&self) -> &Named {
        match self {
            Self::Table { named, .. } | Self::Status { named, .. } => named,
        }
    }
}

impl Core {
    /// Knows nothing yet.
    pub fn new(settings: impl Into<Settings>) -> Self {
        let settings = settings.into();
        Self {
            settings,
            index: Index::default(),
            unknown: Unknown::default(),
            addresses: Addresses::new(settings.requests),
            services: BTreeMap::new(),
            queue: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            leaving: BTreeSet::new(),
            retiring: BTreeSet::new(),
            named_by: BTreeMap::new(),
        }
    }

    /// A table from before the start: history, and memory of addresses.
    pub fn resume_table(&mut self, named: Named, table: ServiceTableSpec) {
        self.name_pods(&named, None, Some(&table));
        let state = self.services.entry(named).or_default();
        state.remembered.clone_from(&table.vips);
        state.table = Some(table);
        // Decided with another table in view.
        state.retired = Retired::default();
    }

    /// A status from before the start: times of conditions, and memory of addresses.
    pub fn resume_status(&mut self, named: Named, status: ServiceStatus) {
        let state = self.services.entry(named).or_default();
        if state.remembered.is_empty() {
            state.remembered.clone_from(&status.vips);
        }
        state.status = Some(status);
    }

    /// Forgets everything but the objects: somebody else decides.
    pub fn forget(&mut self) {
        let index = std::mem::take(&mut self.index);
        *self = Self {
            index,
            ..Self::new(self.settings)
        };
    }

    /// All objects, for a source that fills the index itself; [`Core::settle`] comes after.
    pub fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// All objects.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Takes in events.
    pub fn take(&mut self, events: impl IntoIterator<Item = Event>, now: Instant) {
        for event in events {
            self.index.take(event);
        }
        self.settle(now);
    }

    /// Says what may exist though it is not in the index.
    pub fn know(&mut self, unknown: Unknown, now: Instant) {
        let was_complete = self.unknown.complete();
        let is_complete = unknown.complete();
        self.unknown = unknown;
        // When deaths become certain, all tables may change.
        if was_complete != is_complete {
            self.mark_all(now);
        }
    }

    /// Draws the consequences of what changed in the index.
    pub fn settle(&mut self, now: Instant) {
        let changed = self.index.take_changed();
        let mut touched = changed.services;
        for uid in &changed.pods {
            touched.extend(self.named_by.get(uid).into_iter().flatten().cloned());
        }
        let pools = [Kind::AddressPool, Kind::Namespace];
        let moved = self.addresses.settle(
            &self.index,
            &mut self.services,
            &changed.defined,
            pools.iter().any(|kind| changed.kinds.contains(kind)),
        );
        touched.extend(moved);
        if changed.node_names {
            self.mark_all(now);
        }
        for named in touched {
            self.mark(&named, now);
        }
    }

    /// Looks at everything again: everything was listed once, and what is remembered of Services that do not exist may go.
    pub fn mark_all(&mut self, now: Instant) {
        let all: Vec<_> = self.services.keys().cloned().collect();
        for named in all {
            self.mark(&named, now);
        }
    }

    /// Writes a Service's next table without history that was handed off. Comes straight from the retirement that has seen the
    /// last table written: no other may be written in between.
    pub fn retire(&mut self, named: &Named, retired: Retired, now: Instant) {
        if let Some(state) = self.services.get_mut(named) {
            state.retired = retired;
            self.mark(named, now);
        }
    }

    /// Services whose history should be retired, why, and the last tables written.
    pub fn retirements(&self) -> impl Iterator<Item = (&Named, retire::Wanted, &ServiceTableSpec)> {
        self.retiring.iter().filter_map(|named| {
            let state = self.services.get(named)?;
            Some((named, state.retirement?, state.table.as_ref()?))
        })
    }

    /// All tables, as last wanted.
    pub fn tables(&self) -> impl Iterator<Item = (&Named, &ServiceTableSpec)> {
        self.services
            .iter()
            .filter_map(|(named, state)| Some((named, state.table.as_ref()?)))
    }

    /// What becomes of a change that has no room for its history.
    pub fn when_full(&self) -> WhenFull {
        self.settings.when_full
    }

    /// Says which nodes are being drained, so that their pods get no new flows where others can serve.
    pub fn set_leaving(&mut self, leaving: BTreeSet<String>, now: Instant) {
        if self.leaving != leaving {
            tracing::info!(nodes = ?leaving, "pods of these nodes get no new connections, or get them again");
            self.leaving = leaving;
            self.mark_all(now);
        }
    }

    /// Whether a Service's table was decided with a node's pods getting no new flows.
    pub(super) fn has_left(&self, named: &Named, node: &str) -> bool {
        let is_due = |state: &State| state.due.is_some();
        self.leaving.contains(node) && !self.services.get(named).is_some_and(is_due)
    }

    /// Agents can be asked to hand connections off from here on, or no more.
    pub fn set_when_full(&mut self, when_full: WhenFull) {
        if self.settings.when_full != when_full {
            tracing::info!(
                ?when_full,
                "what becomes of changes without room for history"
            );
            self.settings.when_full = when_full;
        }
    }

    /// Wants a Service looked at, no sooner than its table may be written.
    fn mark(&mut self, named: &Named, now: Instant) {
        if let Some(state) = self.services.get_mut(named) {
            let earliest = state
                .written
                .map_or(now, |written| now.max(written + TABLE_PERIOD));
            if state.due.is_none_or(|due| earliest < due) {
                if let Some(due) = state.due {
                    self.queue.remove(&(due, named.clone()));
                }
                state.due = Some(earliest);
                self.queue.insert((earliest, named.clone()));
            }
        }
    }

    /// Does what is due, and says what should be written.
    pub fn work(&mut self, now: Instant, wall: Timestamp) -> Vec<Write> {
        let mut due = BTreeSet::new();
        while let Some((at, _)) = self.queue.first()
            && *at <= now
        {
            due.extend(self.queue.pop_first().map(|(_, named)| named));
        }
        while let Some((at, _)) = self.deadlines.first()
            && *at <= wall
        {
            due.extend(self.deadlines.pop_first().map(|(_, named)| named));
        }
        let mut writes = Vec::new();
        for named in &due {
            self.reconcile(named, now, wall, &mut writes);
        }
        writes
    }

    /// What should be there for a Service.
    pub fn wanted(&self, named: &Named) -> Wanted<'_> {
        match self.services.get(named) {
            None => Wanted::Nothing,
            Some(State {
                service: Some(_),
                status: Some(status),
                table,
                ..
            }) => Wanted::This {
                table: table.as_ref(),
                status,
            },
            Some(_) => Wanted::Undecided,
        }
    }

    /// When there is something to do next without an event.
    pub fn next_wake(&self, now: Instant, wall: Timestamp) -> Option<Instant> {
        let due = self.queue.first().map(|(at, _)| *at);
        let deadline = self.deadlines.first().map(|(at, _)| {
            // A deadline that has passed is due at once.
            now + Duration::try_from(at.duration_since(wall)).unwrap_or(Duration::ZERO)
        });
        [due, deadline].into_iter().flatten().min()
    }

    /// Everything that is wrong with Services and pools.
    pub fn problems(&self) -> Vec<Problem> {
        let of_services = self.services.iter().flat_map(|(named, state)| {
            let problems = state.status.iter().flat_map(|status| &status.problems);
            problems.map(move |sentence| Problem {
                object: format!("Service {named}"),
                sentence: sentence.clone(),
            })
        });
        of_services.chain(self.addresses.problems()).collect()
    }

    /// How each pool is.
    pub fn pools(&self) -> BTreeMap<String, PoolState> {
        self.addresses.pools(&self.services)
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
}

#[cfg(test)]
mod tests;
