//! What a Service asks for in addresses. Knows no pools and no other Services (see [`super::ipam`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::service::Service;
use crate::api::service_table::{Family, Protocol};

/// Annotation with the key that Services share an address by.
pub const SHARING_ANNOTATION: &str = "bowline.dev/sharing-key";

/// How many families a Service wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stacks {
    /// Each that it lists, or none at all.
    All,
    /// As many of those that it lists as there are addresses for.
    Some,
    /// The first of those it lists that there is an address for.
    First,
}

/// What a Service asks for in addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Its namespace.
    pub namespace: String,
    /// Namespace and name.
    pub name: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its labels, which pools select by.
    pub labels: BTreeMap<String, String>,
    /// Addresses that it names, at most one per family; empty: any.
    pub asked: Vec<IpAddr>,
    /// Families that it wants, in its order.
    pub families: Vec<Family>,
    /// How many of them.
    pub stacks: Stacks,
    /// Its ports.
    pub ports: Vec<(u16, Protocol)>,
    /// Its sharing key.
    pub key: Option<String>,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
    /// Its selector.
    pub selector: BTreeMap<String, String>,
}

impl Claim {
    /// The claim of a Service, which `service` was read from `object`.
    pub fn of(object: &core::Service, service: &Service) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let listed: Vec<Family> = spec
            .ip_families
            .iter()
            .flatten()
            .filter_map(|family| match family.as_str() {
                "IPv4" => Some(Family::IPv4),
                "IPv6" => Some(Family::IPv6),
                _ => None,
            })
            .collect();
        let stacks = match spec.ip_family_policy.as_deref() {
            Some("RequireDualStack") => Stacks::All,
            Some("PreferDualStack") => Stacks::Some,
            Some(_) | None if listed.is_empty() && service.vips.len() < 2 => Stacks::First,
            Some(_) | None => Stacks::All,
        };
        let families = match (listed.is_empty(), stacks) {
            (false, _) => listed,
            (true, Stacks::First) if service.vips.len() == 1 => {
                vec![Family::of(service.vips[0])]
            }
            (true, _) => vec![Family::IPv4, Family::IPv6],
        };
        let meta = &object.metadata;
        let key = meta
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(SHARING_ANNOTATION));
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: service.name.clone(),
            created: service.created,
            labels: meta.labels.clone().unwrap_or_default(),
            asked: service.vips.clone(),
            families,
            stacks,
            ports: service.ports.iter().map(|p| (p.port, p.protocol)).collect(),
            key: key
                .map(|key| key.trim().to_owned())
                .filter(|key| !key.is_empty()),
            local: spec.external_traffic_policy.as_deref() == Some("Local"),
            selector: spec.selector.unwrap_or_default(),
        }
    }
}
