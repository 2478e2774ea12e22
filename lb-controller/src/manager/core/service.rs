//! One Service: from its objects and from what was decided before to its table and its status.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::view::View;
use super::{Core, State, Write};
use crate::api::service_table::ServiceTableSpec;
use crate::manager::status;
use crate::model::assign::{self, History};
use crate::model::retire::Wanted;
use crate::model::service::Service;
use crate::source::index::Named;
use crate::source::parse::{Kind, ObjectKey};

/// The slices of a new Service are written by another controller, some 50 ms after the Service: without them its table
/// would refuse connections until the next one, [`super::TABLE_PERIOD`] later. So long are they waited for at most.
const SLICES_WAIT: Duration = Duration::from_millis(500);

impl Core {
    /// Brings what is wanted for one Service in line.
    pub(super) fn reconcile(
        &mut self,
        named: &Named,
        now: Instant,
        wall: Timestamp,
        out: &mut Vec<Write>,
    ) {
        let Some(mut state) = self.services.remove(named) else {
            return;
        };
        self.unqueue(named, &mut state);
        let before = state.table.take();
        let Some(service) = &state.service else {
            self.let_go(named, state, before, out);
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
            leaving: &self.leaving,
        };
        let assigned = assign::assign(
            before.as_ref(),
            service,
            &slices,
            &view,
            &History {
                retired: std::mem::take(&mut state.retired),
                when_full: self.settings.when_full,
            },
            &mut state.memory,
            wall,
        );
        state.retirement = assigned.retirement;
        self.note_retirement(named, assigned.retirement);
        state.deadline = assigned.deadline;
        if let Some(deadline) = state.deadline {
            self.deadlines.insert((deadline, named.clone()));
        }
        let status = status::of(named, service, &assigned, state.status.as_ref(), wall);
        if before != assigned.table {
            let serves = self.change_table(named, before.as_ref(), assigned.table.as_ref(), out);
            // One that serves nobody yet is followed by the next at once: slices come after their Service.
            state.written = serves.then_some(now);
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

    fn note_retirement(&mut self, named: &Named, wanted: Option<Wanted>) {
        if wanted.is_some() {
            self.retiring.insert(named.clone());
        } else {
            self.retiring.remove(named);
        }
    }

    /// It is being looked at: whatever was due is done.
    fn unqueue(&mut self, named: &Named, state: &mut State) {
        if let Some(due) = state.due.take() {
            self.queue.remove(&(due, named.clone()));
        }
        if let Some(deadline) = state.deadline.take() {
            self.deadlines.remove(&(deadline, named.clone()));
        }
    }

    /// Forgets a Service that is gone, or not ours any more: so is what was written.
    fn let_go(
        &mut self,
        named: &Named,
        mut state: State,
        before: Option<ServiceTableSpec>,
        out: &mut Vec<Write>,
    ) {
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
        self.name_pods(named, before.as_ref(), None);
        self.retiring.remove(named);
        let named = named.clone();
        out.push(Write::Table {
            named: named.clone(),
            table: None,
        });
        out.push(Write::Status {
            named,
            status: None,
        });
    }

    /// Has a table written. Says whether it serves somebody.
    fn change_table(
        &mut self,
        named: &Named,
        before: Option<&ServiceTableSpec>,
        after: Option<&ServiceTableSpec>,
        out: &mut Vec<Write>,
    ) -> bool {
        if let Some(table) = after {
            tracing::info!(service = %named, version = table.version, "table changes");
        }
        out.push(Write::Table {
            named: named.clone(),
            table: after.cloned().map(Box::new),
        });
        self.name_pods(named, before, after);
        after.is_some_and(serves_somebody)
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
    pub(super) fn name_pods(
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
}

/// Whether some port has a pod for new flows.
fn serves_somebody(table: &ServiceTableSpec) -> bool {
    let mut slots = table.groups.iter().flat_map(|group| &group.current);
    slots.any(Option::is_some)
}
