//! What to write next for one Service, from what is wanted and what is there. Pure, and one step at a time, so that
//! whatever interrupts, or undoes, a step is seen by the next look.
//!
//! ```text
//! ours:      finalizer ─▶ table ─▶ status
//! no more:   table gone ─▶ addresses cleared ─▶ finalizer gone ─▶ conditions gone
//! ```

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use crate::api::file::{ConditionStatus, ServiceStatus, condition};
use crate::api::service_table::{ServiceTable, ServiceTableSpec};
use crate::manager::core::Wanted;
use crate::model::service::CLASS;

/// Keeps a Service until its load balancer is gone.
pub(super) const SERVICE_FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Keeps a table until its Service is.
pub(super) const TABLE_FINALIZER: &str = "bowline.dev/table";

/// The next write.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Step {
    /// Adds our finalizer to the Service.
    AddFinalizer(Value),
    /// Makes the table.
    CreateTable(Box<ServiceTable>),
    /// Replaces the table.
    ReplaceTable(Box<ServiceTable>),
    /// Deletes the table.
    DeleteTable,
    /// Lets a deleted table go.
    ReleaseTable(Box<ServiceTable>),
    /// Writes the status of the Service.
    Status { patch: Value, told: Told },
    /// Takes our finalizer from the Service.
    RemoveFinalizer(Value),
}

/// What a status tells that was not told before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Told {
    /// Its first address.
    Ensured(String),
    /// Other addresses.
    Updated(String),
    /// Why it does not work.
    Failed(String),
    /// It is being taken down.
    Deleting,
    /// Nothing that an Event is worth.
    Nothing,
}

/// The next step; none if all is as wanted, or if something has to come by watch first.
pub(super) fn next(
    wanted: Wanted<'_>,
    service: Option<&k8s::Service>,
    table: Option<&ServiceTable>,
) -> Option<Step> {
    match wanted {
        Wanted::Undecided => None,
        Wanted::This {
            table: spec,
            status,
        } => keep(spec, status, service?, table),
        Wanted::Nothing => {
            if let Some(table) = table {
                return remove(table);
            }
            give_up(service?)
        }
    }
}

fn remove(table: &ServiceTable) -> Option<Step> {
    if table.metadata.deletion_timestamp.is_none() {
        return Some(Step::DeleteTable);
    }
    let finalizers = table.metadata.finalizers.clone().unwrap_or_default();
    let rest: Vec<_> = finalizers
        .iter()
        .filter(|f| *f != TABLE_FINALIZER)
        .cloned()
        .collect();
    if rest.len() == finalizers.len() {
        return None;
    }
    let mut table = table.clone();
    table.metadata.finalizers = Some(rest);
    Some(Step::ReleaseTable(Box::new(table)))
}

fn keep(
    wanted: Option<&ServiceTableSpec>,
    status: &ServiceStatus,
    service: &k8s::Service,
    table: Option<&ServiceTable>,
) -> Option<Step> {
    if !has_finalizer(service) {
        let mut finalizers = service.metadata.finalizers.clone().unwrap_or_default();
        finalizers.push(SERVICE_FINALIZER.to_owned());
        return Some(Step::AddFinalizer(finalizers_patch(service, &finalizers)));
    }
    match (wanted, table) {
        (Some(spec), Some(table)) => {
            let held = table
                .metadata
                .finalizers
                .iter()
                .flatten()
                .any(|f| f == TABLE_FINALIZER);
            // An object that is being deleted takes no new finalizers.
            let holdable = table.metadata.deletion_timestamp.is_none();
            if table.spec != *spec || (!held && holdable) {
                let mut table = table.clone();
                table.spec = spec.clone();
                if !held && holdable {
                    table
                        .metadata
                        .finalizers
                        .get_or_insert_default()
                        .push(TABLE_FINALIZER.to_owned());
                }
                return Some(Step::ReplaceTable(Box::new(table)));
            }
        }
        (Some(spec), None) => {
            let meta = &service.metadata;
            let mut table =
                ServiceTable::new(meta.name.as_deref().unwrap_or_default(), spec.clone());
            table.metadata.namespace.clone_from(&meta.namespace);
            table.metadata.finalizers = Some(vec![TABLE_FINALIZER.to_owned()]);
            return Some(Step::CreateTable(Box::new(table)));
        }
        (None, Some(table)) => {
            if let Some(step) = remove(table) {
                return Some(step);
            }
        }
        (None, None) => {}
    }
    tell(status, service)
}

fn tell(wanted: &ServiceStatus, service: &k8s::Service) -> Option<Step> {
    let before = service.status.clone().unwrap_or_default();
    let ingress: Vec<_> = wanted
        .vips
        .iter()
        .map(|vip| k8s::LoadBalancerIngress {
            ip: Some(vip.to_string()),
            ip_mode: Some("VIP".to_owned()),
            ..k8s::LoadBalancerIngress::default()
        })
        .collect();
    let had = addresses(service);
    let old = before.conditions.clone().unwrap_or_default();
    let mut conditions: Vec<_> = old.iter().filter(|c| !is_ours(c)).cloned().collect();
    let ours = wanted.conditions.iter().map(|wanted| Condition {
        type_: wanted.kind.clone(),
        status: match wanted.status {
            ConditionStatus::True => "True".to_owned(),
            ConditionStatus::False => "False".to_owned(),
        },
        reason: wanted.reason.clone(),
        message: wanted.message.clone(),
        last_transition_time: Time(wanted.last_transition_time),
        observed_generation: None,
    });
    let ours: Vec<_> = ours.collect();
    let same = |a: &Condition, b: &Condition| {
        (&a.type_, &a.status, &a.reason, &a.message) == (&b.type_, &b.status, &b.reason, &b.message)
    };
    let held: Vec<_> = old.iter().filter(|c| is_ours(c)).collect();
    let conditions_hold =
        held.len() == ours.len() && ours.iter().all(|new| held.iter().any(|old| same(old, new)));
    if had == ingress && conditions_hold {
        return None;
    }
    let list = wanted
        .vips
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let failing = ours
        .iter()
        .find(|new| new.status == "False" && !held.iter().any(|old| same(old, new)));
    let told = match failing {
        Some(failing) => Told::Failed(failing.message.clone()),
        None if had.is_empty() && !ingress.is_empty() => Told::Ensured(list),
        None if had != ingress => Told::Updated(list),
        None => Told::Nothing,
    };
    conditions.extend(ours);
    Some(Step::Status {
        patch: status_patch(service, &ingress, &conditions),
        told,
    })
}

/// Takes away what we left at a Service that is not ours any more. One of another class is not touched.
fn give_up(service: &k8s::Service) -> Option<Step> {
    let spec = service.spec.clone().unwrap_or_default();
    let ours = spec.load_balancer_class.as_deref() == Some(CLASS);
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    if balanced && !ours {
        return None;
    }
    let status = service.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let marked = conditions.iter().any(is_ours);
    if !(ours || marked) {
        return None;
    }
    if !addresses(service).is_empty()
        || conditions.iter().any(|c| is_ours(c) && c.status != "False")
    {
        // The conditions stay for a moment, so that whoever goes on after us knows whose finalizer it is.
        let mut left = conditions;
        for c in left.iter_mut().filter(|c| is_ours(c)) {
            "False".clone_into(&mut c.status);
            "Removed".clone_into(&mut c.reason);
            "the Service is not balanced any more".clone_into(&mut c.message);
        }
        return Some(Step::Status {
            patch: status_patch(service, &[], &left),
            told: Told::Deleting,
        });
    }
    if has_finalizer(service) {
        let finalizers = service.metadata.finalizers.clone().unwrap_or_default();
        let rest: Vec<_> = finalizers
            .into_iter()
            .filter(|f| f != SERVICE_FINALIZER)
            .collect();
        return Some(Step::RemoveFinalizer(finalizers_patch(service, &rest)));
    }
    if marked && service.metadata.deletion_timestamp.is_none() {
        let left: Vec<_> = conditions.into_iter().filter(|c| !is_ours(c)).collect();
        return Some(Step::Status {
            patch: status_patch(service, &[], &left),
            told: Told::Nothing,
        });
    }
    None
}

fn has_finalizer(service: &k8s::Service) -> bool {
    let mut finalizers = service.metadata.finalizers.iter().flatten();
    finalizers.any(|finalizer| finalizer == SERVICE_FINALIZER)
}

fn is_ours(c: &Condition) -> bool {
    c.type_ == condition::ADDRESS_ALLOCATED || c.type_ == condition::PROGRAMMED
}

/// What `status.loadBalancer` says.
pub(super) fn addresses(service: &k8s::Service) -> Vec<k8s::LoadBalancerIngress> {
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.clone());
    balancer
        .and_then(|balancer| balancer.ingress)
        .unwrap_or_default()
}

/// Refused by the server if the object has changed meanwhile, or is another one of the same name.
fn precondition(service: &k8s::Service) -> Value {
    json!({ "uid": service.metadata.uid, "resourceVersion": service.metadata.resource_version })
}

fn finalizers_patch(service: &k8s::Service, finalizers: &[String]) -> Value {
    let mut meta = precondition(service);
    meta["finalizers"] = json!(finalizers);
    json!({ "metadata": meta })
}

fn status_patch(
    service: &k8s::Service,
    ingress: &[k8s::LoadBalancerIngress],
    conditions: &[Condition],
) -> Value {
    let ingress = if ingress.is_empty() {
        Value::Null
    } else {
        json!(ingress)
    };
    json!({
        "metadata": precondition(service),
        "status": { "loadBalancer": { "ingress": ingress }, "conditions": conditions },
    })
}

#[cfg(test)]
mod tests;
