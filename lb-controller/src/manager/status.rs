//! What is told to people and machines about one Service. Pure.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::api::file::{
    API_VERSION, Condition, ConditionStatus, Metadata, ServiceStatus, condition,
};
use crate::model::assign::Assigned;
use crate::model::problem::{Fault, Problem};
use crate::model::service::Service;
use crate::source::index::Named;

fn list(vips: &[IpAddr]) -> String {
    let vips: Vec<_> = vips.iter().map(ToString::to_string).collect();
    vips.join(" and ")
}

/// The status of a Service, from what was assigned and what is wrong. Conditions keep their times while they hold.
pub(super) fn of(
    Named { namespace, name }: &Named,
    service: &Service,
    assigned: &Assigned,
    before: Option<&ServiceStatus>,
    now: Timestamp,
) -> ServiceStatus {
    // A full history is none while it is being handed off; see `retiring`, which knows since when and who is waited for.
    let is_told = |problem: &&Problem| !matches!(problem.fault, Fault::HistoryFull(_));
    let problems: Vec<_> = assigned
        .problems
        .iter()
        .filter(is_told)
        .map(|problem| problem.fault.to_string())
        .collect();
    let pending = service
        .fatal()
        .map(|problem| (problem.reason(), problem.fault.to_string()));
    let (reason, why) = pending.unwrap_or((
        "Pending",
        "no reason is known; see the manager's log".to_owned(),
    ));
    let allocated = if service.vips.is_empty() {
        (ConditionStatus::False, reason, why.clone())
    } else {
        (
            ConditionStatus::True,
            "Allocated",
            format!("its addresses are {}", list(&service.vips)),
        )
    };
    let programmed = match &assigned.table {
        // Without its version: a change of endpoints is one write, of the table.
        Some(_) => (
            ConditionStatus::True,
            "TableWritten",
            "its table is written for all nodes".to_owned(),
        ),
        None => (ConditionStatus::False, reason, why),
    };
    let conditions = [
        (condition::ADDRESS_ALLOCATED, allocated),
        (condition::PROGRAMMED, programmed),
    ];
    ServiceStatus {
        api_version: API_VERSION.to_owned(),
        kind: ServiceStatus::KIND.to_owned(),
        metadata: Metadata {
            namespace: Some(namespace.clone()),
            name: name.clone(),
        },
        vips: service.vips.clone(),
        conditions: conditions
            .map(|(kind, (status, reason, message))| {
                let held = before.into_iter().flat_map(|before| &before.conditions);
                let since = held
                    .filter(|old| old.kind == kind && old.status == status)
                    .map(|old| old.last_transition_time)
                    .next();
                Condition {
                    kind: kind.to_owned(),
                    status,
                    reason: reason.to_owned(),
                    message,
                    last_transition_time: since.unwrap_or(now),
                }
            })
            .into(),
        problems,
    }
}
