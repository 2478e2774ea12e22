//! The manager without its shell: the model's assignment, written at most once a second per Service, and the retirement of
//! history that it asks agents about.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::handoff::message::Instruction;
use lb_controller::model::assign::{self, Assigned, History, Memory};
use lb_controller::model::retire::{Retired, Wanted};
use lb_controller::model::slot::WhenFull;
use lb_controller::model::table;

use super::api::Api;
use super::queue::{Nanos, SECOND};
use super::retiring::Retiring;
use super::schemes::Said;
use super::wire::NodeId;

/// A Service's table is written no more often.
const WRITE_EVERY: Nanos = SECOND;
/// When a run begins, by the calendar.
const EPOCH: i64 = 1_800_000_000;

#[derive(Default)]
struct Service {
    memory: Memory,
    written: Option<Nanos>,
    /// What was handed off and leaves with the next table.
    retired: Retired,
    /// Why history should be retired, if it should.
    wanted: Option<Wanted>,
}

/// What the manager keeps, and the tables that it has written.
#[derive(Default)]
pub(super) struct Manager {
    services: Vec<Service>,
    pub(super) tables: Vec<ServiceTableSpec>,
    retiring: Retiring,
}

/// What a look has come to.
#[derive(Clone, PartialEq, Default, Debug)]
pub(super) struct Look {
    /// Some table was written.
    pub(super) wrote: bool,
    /// Look again at this time.
    pub(super) again: Option<Nanos>,
    /// What agents are told.
    pub(super) instructions: Vec<(NodeId, Arc<Instruction>)>,
}

impl Manager {
    /// Looks at what the API server says now, and writes the tables that have changed.
    pub(super) fn look(&mut self, api: &Api, now: Nanos) -> anyhow::Result<Look> {
        let mut look = Look::default();
        self.services
            .resize_with(api.services.len(), Service::default);
        for at in 0..api.services.len() {
            self.look_at(at, api, now, &mut look)?;
        }
        look.then(self.retire(now)?);
        Ok(look)
    }

    fn look_at(&mut self, at: usize, api: &Api, now: Nanos, look: &mut Look) -> anyhow::Result<()> {
        let (service, state) = (&api.services[at], &mut self.services[at]);
        let slice: EndpointSlice = api.slice(service);
        let Assigned {
            table,
            changed,
            deadline,
            problems: _,
            retirement,
        } = assign::assign(
            self.tables.get(at),
            &service.checked,
            &[&slice],
            api,
            &History {
                retired: state.retired.clone(),
                when_full: WhenFull::Waits,
            },
            &mut state.memory,
            timestamp(now),
        );
        state.wanted = retirement;
        look.again_at(deadline.map(nanos));
        let Some(table) = table.filter(|_| changed) else {
            return Ok(());
        };
        let allowed = state.written.map_or(0, |written| written + WRITE_EVERY);
        if allowed > now {
            look.again_at(Some(allowed));
            return Ok(());
        }
        state.written = Some(now);
        state.retired = Retired::default();
        look.wrote = true;
        self.retiring.written(at, &table, now)?;
        match self.tables.get_mut(at) {
            Some(old) => *old = table,
            None => self.tables.push(table),
        }
        Ok(())
    }

    /// An agent says something.
    pub(super) fn hear(&mut self, node: NodeId, said: Said) {
        self.retiring.hear(node, said);
    }

    /// Goes on with retirement as far as what was heard allows.
    pub(super) fn retire(&mut self, now: Nanos) -> anyhow::Result<Look> {
        let mut look = Look::default();
        for (at, (state, table)) in self.services.iter_mut().zip(&self.tables).enumerate() {
            if let Some(retired) = self.retiring.step(at, state.wanted, table, now)? {
                state.retired = retired;
                // Whatever is written next is without it.
                look.again_at(Some(now));
            }
        }
        look.again_at(self.retiring.deadline().filter(|at| *at > now));
        look.instructions = self.retiring.instruct();
        Ok(look)
    }

    /// How much history there is: older occupants of slots, and previous tables.
    pub(super) fn history(&self) -> anyhow::Result<u64> {
        let mut history = 0;
        for table in &self.tables {
            for group in table::decode(table)? {
                history += group.slots.previous.len() as u64;
                let older = group.slots.slots.iter().map(|slot| slot.older.len() as u64);
                history += older.sum::<u64>();
            }
        }
        Ok(history)
    }
}

impl Look {
    fn again_at(&mut self, at: Option<Nanos>) {
        self.again = self.again.into_iter().chain(at).min();
    }

    fn then(&mut self, next: Self) {
        self.wrote |= next.wrote;
        self.again_at(next.again);
        self.instructions.extend(next.instructions);
    }
}

fn timestamp(now: Nanos) -> Timestamp {
    let nanos = i128::from(EPOCH) * i128::from(SECOND) + i128::from(now);
    Timestamp::from_nanosecond(nanos)
        .expect("runs last for minutes, and the calendar for centuries")
}

/// The time of a timestamp; never before the start of the run.
fn nanos(at: Timestamp) -> Nanos {
    let nanos = at.as_nanosecond() - i128::from(EPOCH) * i128::from(SECOND);
    Nanos::try_from(nanos).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::api::Object;
    use super::super::segment::Transport;
    use super::super::wire::NodeId;
    use super::*;

    #[test]
    fn times_go_there_and_back() {
        for now in [0, 1, 17 * SECOND + 5] {
            assert_eq!(nanos(timestamp(now)), now);
        }
    }

    #[test]
    fn a_table_is_written_when_it_changes_and_once_a_second_at_most() {
        let mut api = Api::default();
        api.add_node(NodeId(0));
        let web = api.add_service("web", Transport::Tcp);
        let first = api.start_pod(web, NodeId(0));
        let mut manager = Manager::default();
        assert!(manager.look(&api, 0).unwrap().wrote);
        assert!(!manager.look(&api, SECOND / 2).unwrap().wrote);
        api.pod_mut(first).object = Object::Terminating;
        api.start_pod(web, NodeId(0));
        let early = manager.look(&api, SECOND / 2).unwrap();
        assert_eq!((early.wrote, early.again), (false, Some(SECOND)));
        assert!(manager.look(&api, SECOND).unwrap().wrote);
        assert_eq!(manager.tables[0].version, 2);
    }
}
