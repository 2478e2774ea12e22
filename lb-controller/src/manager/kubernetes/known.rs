//! What objects say of themselves: how new they are, and what a Service remembers. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

use super::step;
use crate::api::file::{API_VERSION, Condition, ConditionStatus, Metadata, ServiceStatus};
use crate::source::parse::Object;

/// UID and version of what we write; versions of one object are numbers that grow (Kubernetes 1.35, KEP-5504).
pub(super) fn version(object: &Object) -> Option<(Option<String>, u64)> {
    let table = object.service_table().map(|table| &table.metadata);
    let meta = object
        .service()
        .map(|service| &service.metadata)
        .or(table)?;
    Some((
        meta.uid.clone(),
        meta.resource_version.as_ref()?.parse().ok()?,
    ))
}

/// What a Service's own status remembers.
pub(super) fn status_of(service: &Service) -> ServiceStatus {
    let meta = &service.metadata;
    let ips = step::addresses(service)
        .into_iter()
        .filter_map(|ingress| ingress.ip?.parse::<IpAddr>().ok());
    let conditions = service
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    ServiceStatus {
        api_version: API_VERSION.to_owned(),
        kind: ServiceStatus::KIND.to_owned(),
        metadata: Metadata {
            namespace: meta.namespace.clone(),
            name: meta.name.clone().unwrap_or_default(),
        },
        vips: ips.collect(),
        conditions: conditions
            .map(|c| Condition {
                kind: c.type_.clone(),
                status: if c.status == "True" {
                    ConditionStatus::True
                } else {
                    ConditionStatus::False
                },
                reason: c.reason.clone(),
                message: c.message.clone(),
                last_transition_time: c.last_transition_time.0,
            })
            .collect(),
        problems: Vec::new(),
    }
}
