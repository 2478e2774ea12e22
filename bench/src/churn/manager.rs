//! The manager without its shell: the model's assignment, written at most once a second per Service.

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::model::assign::{self, Assigned, History, Memory};
use lb_controller::model::retire::Retired;
use lb_controller::model::slot::WhenFull;

use super::api::Api;
use super::queue::{Nanos, SECOND};

/// A Service's table is written no more often.
const WRITE_EVERY: Nanos = SECOND;
/// When a run begins, by the calendar.
const EPOCH: i64 = 1_800_000_000;

#[derive(Default)]
struct Service {
    memory: Memory,
    written: Option<Nanos>,
}

/// What the manager keeps, and the tables that it has written.
#[derive(Default)]
pub(super) struct Manager {
    services: Vec<Service>,
    pub(super) tables: Vec<ServiceTableSpec>,
}

/// What a look has come to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Look {
    /// Some table was written.
    pub(super) wrote: bool,
    /// Look again at this time.
    pub(super) again: Option<Nanos>,
}

impl Manager {
    /// Looks at what the API server says now, and writes the tables that have changed.
    pub(super) fn look(&mut self, api: &Api, now: Nanos) -> Look {
        let mut look = Look::default();
        self.services
            .resize_with(api.services.len(), Service::default);
        for (at, (service, state)) in api.services.iter().zip(&mut self.services).enumerate() {
            let slice: EndpointSlice = api.slice(service);
            let Assigned {
                table,
                changed,
                deadline,
                problems: _,
                retirement: _,
            } = assign::assign(
                self.tables.get(at),
                &service.checked,
                &[&slice],
                api,
                &History {
                    retired: Retired::default(),
                    when_full: WhenFull::OldestLeaves,
                },
                &mut state.memory,
                timestamp(now),
            );
            let mut again = deadline.map(nanos);
            if let Some(table) = table.filter(|_| changed) {
                let allowed = state.written.map_or(0, |written| written + WRITE_EVERY);
                if allowed > now {
                    again = Some(again.map_or(allowed, |again| again.min(allowed)));
                } else {
                    state.written = Some(now);
                    look.wrote = true;
                    match self.tables.get_mut(at) {
                        Some(old) => *old = table,
                        None => self.tables.push(table),
                    }
                }
            }
            look.again = look.again.into_iter().chain(again).min();
        }
        look
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
        assert!(manager.look(&api, 0).wrote);
        assert_eq!(manager.look(&api, SECOND / 2), Look::default());
        api.pod_mut(first).object = Object::Terminating;
        api.start_pod(web, NodeId(0));
        let early = manager.look(&api, SECOND / 2);
        assert_eq!((early.wrote, early.again), (false, Some(SECOND)));
        assert!(manager.look(&api, SECOND).wrote);
        assert_eq!(manager.tables[0].version, 2);
    }
}
