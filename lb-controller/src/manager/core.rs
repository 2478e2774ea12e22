//! What the manager knows and wants: objects in, [`Write`]s out. Steps are given the time; nothing here waits, and nothing
//! here knows where objects come from or where writes go.

mod addresses;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::addresses::Addresses;
use self::view::View;
use super::status;
use crate::admin::{Problem, ServiceCounts};
use crate::api::file::ServiceStatus;
use crate::api::service_table::ServiceTableSpec;
use crate::model::assign::{self, Memory};
use crate::model::retire::{self, Retired};
use crate::model::service::Service;
use crate::source::files::Unknown;
use crate::source::index::{Event, Index, Named};
use crate::source::parse::{Kind, ObjectKey};

pub use self::addresses::{PoolState, Requests};

/// A Service's table is written at most this often. The first change is written at once.
const TABLE_PERIOD: Duration = Duration::from_secs(1);

/// The slices of a new Service are written by another controller, some 50 ms after the Service: without them its table
/// would refuse connections until the next one, [`TABLE_PERIOD`] later. So long are they waited for at most.
const SLICES_WAIT: Duration = Duration::from_millis(500);

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

/// The manager without its source and without its writers.
pub struct Core {
    index: Index,
    /// What may exist though it is not in the index.
    unknown: Unknown,
    addresses: Addresses,
    pub(super) services: BTreeMap<Named, State>,
    /// Services that are due, so that an event costs nothing for all others.
    queue: BTreeSet<(Instant, Named)>,
    deadlines: BTreeSet<(Timestamp, Named)>,
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
    /// Knows nothing yet. `requests` says what becomes of addresses that no pool has.
    pub fn new(requests: Requests) -> Self {
        Self {
            index: Index::default(),
            unknown: Unknown::default(),
            addresses: Addresses::new(requests),
            services: BTreeMap::new(),
            queue: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            named_by: BTreeMap::new(),
        }
    }

    /// A table from before the start: history, and memory of addresses.
    pub fn resume_table(&mut self, named: Named, table: ServiceTableSpec) {
        self.name_pods(&named, None, Some(&table));
        let state = self.services.entry(named).or_default();
        state.remembered.clone_from(&table.vips);
        state.table = Some(table);
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
        let requests = self.addresses.requests();
        *self = Self {
            index,
            ..Self::new(requests)
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
        self.services
            .iter()
            .filter_map(|(named, state)| Some((named, state.retirement?, state.table.as_ref()?)))
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

    /// Brings what is wanted for one Service in line.
    fn reconcile(&mut self, named: &Named, now: Instant, wall: Timestamp, out: &mut Vec<Write>) {
        let Some(mut state) = self.services.remove(named) else {
            return;
        };
        if let Some(due) = state.due.take() {
            self.queue.remove(&(due, named.clone()));
        }
        if let Some(deadline) = state.deadline.take() {
            self.deadlines.remove(&(deadline, named.clone()));
        }
        let before = state.table.take();
        let Some(service) = &state.service else {
            let key = ObjectKey {
                kind: Kind::Service,
                namespace: named.namespace.clone(),
                name: named.name.clone(),
            };
            if self.index.service(named).is_none() && self.unknown.may_exist(&key) {
                // It may be in a file that can not be understood: its last good table stays.
                state.table = before;
                self.services.insert(named.clone(), state);
                return;
            }
            // The Service is gone, or not ours any more: so is what was written. Its state is forgotten with it.
            self.name_pods(named, before.as_ref(), None);
            let named = named.clone();
            out.push(Write::Table {
                named: named.clone(),
                table: None,
            });
            out.push(Write::Status {
                named,
                status: None,
            });
            return;
        };
        if before.is_none() {
            let until = *state.waits.get_or_insert(now) + SLICES_WAIT;
            if now < until && self.lacks_slices(named, service) {
                state.due = Some(until);
                self.queue.insert((until, named.clone()));
                self.services.insert(named.clone(), state);
                return;
            }
        }
        let slices: Vec<_> = self.index.slices(named).collect();
        let view = View {
            index: &self.index,
            complete: self.unknown.complete(),
        };
        let assigned = assign::assign(
            before.as_ref(),
            service,
            &slices,
            &view,
            &std::mem::take(&mut state.retired),
            &mut state.memory,
            wall,
        );
        state.retirement = assigned.retirement;
        state.deadline = assigned.deadline;
        if let Some(deadline) = state.deadline {
            self.deadlines.insert((deadline, named.clone()));
        }
        let status = status::of(named, service, &assigned, state.status.as_ref(), wall);
        if before != assigned.table {
            if let Some(table) = &assigned.table {
                tracing::info!(service = %named, version = table.version, "table changes");
            }
            out.push(Write::Table {
                named: named.clone(),
                table: assigned.table.clone().map(Box::new),
            });
            // One that serves nobody yet is followed by the next at once: slices come after their Service.
            let serves = assigned.table.as_ref().is_some_and(serves_somebody);
            state.written = serves.then_some(now);
            self.name_pods(named, before.as_ref(), assigned.table.as_ref());
        }
        // The table goes first: what the status promises is there.
        if state.status.as_ref() != Some(&status) {
            out.push(Write::Status {
                named: named.clone(),
                status: Some(Box::new(status.clone())),
            });
            state.status = Some(status);
        }
        state.table = assigned.table;
        self.services.insert(named.clone(), state);
    }

    /// It selects pods, and some family of its addresses has no slice, not even an empty one.
    fn lacks_slices(&self, named: &Named, service: &Service) -> bool {
        let spec = self
            .index
            .service(named)
            .and_then(|object| object.spec.as_ref());
        let selector = spec.and_then(|spec| spec.selector.as_ref());
        let has = |family: &str| {
            let mut slices = self.index.slices(named);
            slices.any(|slice| slice.address_type == family)
        };
        let mut families = service
            .vips
            .iter()
            .map(|vip| if vip.is_ipv4() { "IPv4" } else { "IPv6" });
        selector.is_some_and(|selector| !selector.is_empty()) && !families.all(has)
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

/// Whether some port has a pod for new flows.
fn serves_somebody(table: &ServiceTableSpec) -> bool {
    let mut slots = table.groups.iter().flat_map(|group| &group.current);
    slots.any(Option::is_some)
}

#[cfg(test)]
mod tests;
