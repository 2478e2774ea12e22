//! Endpoints of a Service: its slices merged, checked and seen port by port.
//!
//! Slices are merged whatever wrote them. The same address, port and protocol in two slices is one endpoint, and the more
//! serving copy counts. Ports are matched by name, since named target ports may differ between slices. Only the first
//! address of an endpoint counts. IPv4 and IPv6 stay apart, FQDN is ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1 as discovery;

use super::candidate::ENDPOINT_UID_PREFIX;
use super::problem::{Fault, Problem, WEIGHT_ANNOTATION};
use super::service::{Service, is_unicast, protocol};
use super::shape::Weight;
use crate::api::service_table::{Family, Protocol, TrafficPolicy};

/// What is known of pods and nodes.
pub trait Cluster {
    /// The Pod of a UID; none if there is none.
    fn pod(&self, uid: &str) -> Option<&Pod>;
    /// Whether a Node of this name exists.
    fn has_node(&self, name: &str) -> bool;
    /// Whether pods of a Node are to get no new flows where others can serve: it is being drained.
    fn is_leaving(&self, node: &str) -> bool;
    /// Whether all Pods and Nodes are known. Until then nobody is dead.
    fn is_complete(&self) -> bool;
}

/// Whether a Pod object is alive: not Failed and not Succeeded.
pub fn is_alive(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Failed" | "Succeeded"))
}

/// The weight that a Pod asks for.
pub fn weight(pod: &Pod) -> Result<Weight, Fault> {
    let asked = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(WEIGHT_ANNOTATION));
    match asked {
        None => Ok(Weight::ONE),
        Some(text) => {
            let number = text.trim().parse::<u32>().ok();
            let weight = number.and_then(|number| Weight::try_from(number).ok());
            weight.ok_or_else(|| Fault::Weight(text.clone()))
        }
    }
}

/// How far an endpoint may get new flows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Serving {
    /// Not at all.
    No,
    /// Only when nobody is ready: serving, but terminating.
    Terminating,
    /// Yes.
    Ready,
}

impl Serving {
    /// Unset conditions: ready, serving as ready, not terminating.
    fn of(conditions: Option<&discovery::EndpointConditions>, publish_not_ready: bool) -> Self {
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
        match (ready, serving, terminating) {
            (true, _, _) if publish_not_ready => Self::Ready,
            (true, true, false) => Self::Ready,
            (_, true, true) => Self::Terminating,
            (_, _, _) => Self::No,
        }
    }
}

/// An endpoint of one port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    /// UID of its pod, or what stands for it.
    pub uid: Arc<str>,
    /// Its address.
    pub address: IpAddr,
    /// Its target port.
    pub port: u16,
    /// Its node.
    pub node: Arc<str>,
    /// Its weight.
    pub weight: Weight,
    /// Whether it may get new flows.
    pub serving: Serving,
}

/// The endpoints of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Endpoints {
    /// By family and index of the Service's port; those that may be used, by UID.
    pub by_port: BTreeMap<(Family, usize), BTreeMap<Arc<str>, Endpoint>>,
    /// UIDs that stand for endpoints without a pod and are in some slice.
    pub podless: BTreeSet<Arc<str>>,
    /// What is wrong.
    pub problems: BTreeSet<Problem>,
    policy: TrafficPolicy,
}

impl Endpoints {
    /// Merges the slices of a Service.
    pub fn merge(
        service: &Service,
        slices: &[&discovery::EndpointSlice],
        cluster: &dyn Cluster,
    ) -> Self {
        let mut merge = Merge {
            service,
            cluster,
            seen: BTreeMap::new(),
            out: Self {
                policy: service.traffic_policy,
                ..Self::default()
            },
        };
        for slice in slices {
            merge.slice(slice);
        }
        merge.finish()
    }

    /// Those of a port that get new flows now: the ready ones; if there is none, those that still serve while
    /// terminating. Under policy Local that is said of each node by itself, since packets can go to no other (KEP-1669).
    pub fn usable(&self, family: Family, port: usize) -> BTreeMap<Arc<str>, &Endpoint> {
        let all = || self.by_port.get(&(family, port)).into_iter().flatten();
        let where_ready: BTreeSet<&str> = all()
            .filter(|(_, e)| e.serving == Serving::Ready)
            .map(|(_, e)| &*e.node)
            .collect();
        let is_usable = |endpoint: &Endpoint| match (endpoint.serving, self.policy) {
            (Serving::Ready, _) => true,
            (Serving::Terminating, TrafficPolicy::Cluster) => where_ready.is_empty(),
            (Serving::Terminating, TrafficPolicy::Local) => !where_ready.contains(&*endpoint.node),
            (Serving::No, _) => false,
        };
        all()
            .filter(|(_, endpoint)| is_usable(endpoint))
            .map(|(uid, endpoint)| (uid.clone(), endpoint))
            .collect()
    }
}

/// Address, index of the Service's port, target port: what makes two copies one endpoint.
type Key = (IpAddr, usize, u16);

struct Merge<'a> {
    service: &'a Service,
    cluster: &'a dyn Cluster,
    /// Copies of endpoints by pod; several pods only when two claim one address.
    seen: BTreeMap<Key, BTreeMap<Arc<str>, Endpoint>>,
    out: Endpoints,
}

impl Merge<'_> {
    fn slice(&mut self, slice: &discovery::EndpointSlice) {
        let meta = &slice.metadata;
        let name = format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or("default"),
            meta.name.as_deref().unwrap_or_default()
        );
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::IPv4,
            "IPv6" => Family::IPv6,
            "FQDN" => return,
            other => return self.report(&name, Fault::AddressType(other.into())),
        };
        let (ports, other): (Vec<_>, Vec<_>) = self
            .target_ports(slice)
            .into_iter()
            .partition(|(at, target)| self.can_reach(*at, *target));
        for (at, target) in other {
            let port = self.service.ports[at].port;
            self.report(&name, Fault::SctpPort { port, target });
        }
        for (number, endpoint) in slice.endpoints.iter().flatten().enumerate() {
            match self.endpoint(family, number, endpoint) {
                Ok(checked) => self.add(&checked, &ports),
                Err(fault) => self.report(&name, fault),
            }
        }
    }

    fn report(&mut self, slice: &str, fault: Fault) {
        self.out
            .problems
            .insert(Problem::new("EndpointSlice", slice, fault));
    }

    /// Indices of the Service's ports that the slice has, with the target port.
    fn target_ports(&self, slice: &discovery::EndpointSlice) -> Vec<(usize, u16)> {
        let named = |name: &str, wanted: Protocol| {
            slice.ports.iter().flatten().find_map(|port| {
                let same = port.name.as_deref().unwrap_or_default() == name
                    && protocol(port.protocol.as_deref()) == Ok(wanted);
                u16::try_from(port.port?)
                    .ok()
                    .filter(|port| same && *port != 0)
            })
        };
        let ports = self.service.ports.iter().enumerate();
        ports
            .filter_map(|(at, port)| Some((at, named(&port.name, port.protocol)?)))
            .collect()
    }

    /// Whether packets to a port of the Service can be turned to a target port.
    fn can_reach(&self, at: usize, target: u16) -> bool {
        let port = &self.service.ports[at];
        match port.protocol {
            Protocol::Tcp | Protocol::Udp => true,
            Protocol::Sctp => port.port == target,
        }
    }

    /// An endpoint with everything but its port, which is 0.
    fn endpoint(
        &mut self,
        family: Family,
        number: usize,
        endpoint: &discovery::Endpoint,
    ) -> Result<Endpoint, Fault> {
        let text = endpoint
            .addresses
            .first()
            .ok_or(Fault::EndpointEmpty(number))?;
        let wrong = || Fault::EndpointFamily {
            address: text.clone(),
            family,
        };
        let address: IpAddr = text.parse().map_err(|_| wrong())?;
        if Family::of(address) != family {
            return Err(wrong());
        }
        if !is_unicast(address) {
            return Err(Fault::EndpointUnusable(address));
        }
        let uid = self.uid(address, endpoint)?;
        let node = endpoint
            .node_name
            .as_deref()
            .filter(|node| !node.is_empty());
        let node = node.ok_or(Fault::NodeMissing(address))?;
        if !self.cluster.has_node(node) {
            return Err(Fault::NodeUnknown {
                address,
                node: node.into(),
            });
        }
        let mut serving = Serving::of(endpoint.conditions.as_ref(), self.service.publish_not_ready);
        if self.cluster.is_leaving(node) {
            serving = serving.min(Serving::Terminating);
        }
        Ok(Endpoint {
            weight: self.weight(&uid),
            uid,
            address,
            port: 0,
            node: node.into(),
            serving,
        })
    }

    /// Who it is. A pod that is dead, or not known yet, gets nothing.
    fn uid(&mut self, address: IpAddr, endpoint: &discovery::Endpoint) -> Result<Arc<str>, Fault> {
        let Some(target) = &endpoint.target_ref else {
            let uid: Arc<str> = format!("{ENDPOINT_UID_PREFIX}{address}").into();
            self.out.podless.insert(uid.clone());
            return Ok(uid);
        };
        let uid = target.uid.as_deref().filter(|uid| !uid.is_empty());
        let uid = uid.ok_or(Fault::UidMissing(address))?;
        match self.cluster.pod(uid) {
            Some(pod) if is_alive(pod) => Ok(uid.into()),
            Some(_) | None => Err(Fault::PodUnknown {
                address,
                uid: uid.into(),
            }),
        }
    }

    fn weight(&mut self, uid: &str) -> Weight {
        let Some(pod) = self.cluster.pod(uid) else {
            return Weight::ONE;
        };
        weight(pod).unwrap_or_else(|fault| {
            let meta = &pod.metadata;
            let name = meta.name.as_deref().unwrap_or_default();
            let name = format!("{}/{name}", meta.namespace.as_deref().unwrap_or("default"));
            self.out.problems.insert(Problem::new("Pod", &name, fault));
            Weight::ONE
        })
    }

    fn add(&mut self, endpoint: &Endpoint, ports: &[(usize, u16)]) {
        for (at, port) in ports {
            let copies = self.seen.entry((endpoint.address, *at, *port)).or_default();
            let copy = copies
                .entry(endpoint.uid.clone())
                .or_insert_with(|| Endpoint {
                    port: *port,
                    ..endpoint.clone()
                });
            copy.serving = copy.serving.max(endpoint.serving);
        }
    }

    /// One endpoint per address and port, one port per pod: the more serving one, then the smaller UID or port.
    fn finish(mut self) -> Endpoints {
        for ((address, at, _), copies) in self.seen {
            let best = copies
                .values()
                .map(|e| (std::cmp::Reverse(e.serving), e))
                .min();
            let Some((_, best)) = best.filter(|(_, e)| e.serving != Serving::No) else {
                continue;
            };
            if copies.len() > 1 {
                let fault = Fault::AddressShared(address);
                self.out
                    .problems
                    .insert(Problem::new("Service", &self.service.name, fault));
            }
            let pods = self
                .out
                .by_port
                .entry((Family::of(address), at))
                .or_default();
            let chosen = pods.entry(best.uid.clone()).or_insert_with(|| best.clone());
            if best.serving > chosen.serving {
                *chosen = best.clone();
            }
        }
        self.out
    }
}

#[cfg(test)]
pub(super) mod tests;
