//! One Service: its endpoints and its last table in, its next table out. What the manager calls; pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::assignment::{self, Input, Outcome, Waiting};
use super::candidate::Candidate;
use super::endpoint::{Cluster, Endpoint, Endpoints, is_alive};
use super::problem::{Fault, Ports, Problem};
use super::retire::{Retired, Wanted};
use super::service::Service;
use super::shape::Weight;
use super::slot::{Slots, WhenFull};
use super::table::{self, Group};
use crate::api::service_table::{Family, Port, ServiceTableSpec, TrafficPolicy, Watermark};

/// How long an endpoint without a pod is remembered after it has left all slices: nobody reports its death.
pub const PODLESS_LINGER: SignedDuration = SignedDuration::from_hours(1);

/// How long a table stays as it is before its history is retired though nothing waits for that.
pub const QUIET: SignedDuration = SignedDuration::from_mins(5);

/// What the manager keeps per Service in its process. Losing it only makes waits start again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// By family and first port of a group.
    waiting: BTreeMap<(Family, Port), Waiting>,
    /// Endpoints without a pod that have left all slices, and since when.
    gone: BTreeMap<Arc<str>, Timestamp>,
    /// When the table has changed last.
    changed: Option<Timestamp>,
}

/// How history leaves, but by death.
#[derive(Clone, PartialEq, Debug)]
pub struct History {
    /// What was handed off and leaves now.
    pub retired: Retired,
    /// What becomes of a change that has no room for its history.
    pub when_full: WhenFull,
}

/// The next table of a Service.
#[derive(Clone, PartialEq, Debug)]
pub struct Assigned {
    /// The table; none while the Service is pending (see `problems`), and then an old one must be removed.
    pub table: Option<ServiceTableSpec>,
    /// Whether it differs from the last one, and so must be written.
    pub changed: bool,
    /// What is wrong with the Service, its slices and its pods.
    pub problems: Vec<Problem>,
    /// When the same objects may give another table: call again then.
    pub deadline: Option<Timestamp>,
    /// Why history should be retired, if it should.
    pub retirement: Option<Wanted>,
}

/// Computes the next table. The version is one more than the last one's if anything else changed. What is retired leaves
/// first, and makes place for what has waited.
pub fn assign(
    last: Option<&ServiceTableSpec>,
    service: &Service,
    slices: &[&EndpointSlice],
    cluster: &dyn Cluster,
    history: &History,
    memory: &mut Memory,
    now: Timestamp,
) -> Assigned {
    let mut problems = service.problems.clone();
    if service.fatal().is_some() {
        let changed = last.is_some();
        return Assigned {
            table: None,
            changed,
            problems,
            deadline: None,
            retirement: None,
        };
    }
    let last = last.filter(|last| last.service_uid == service.uid);
    let groups = last.map(table::decode).transpose().unwrap_or_else(|error| {
        let fault = Fault::TableUnreadable(error.to_string());
        problems.push(Problem::new("Service", &service.name, fault));
        None
    });
    let endpoints = Endpoints::merge(service, slices, cluster);
    problems.extend(endpoints.problems.iter().cloned());
    let mut groups = groups.unwrap_or_default();
    history.retired.take_out(&mut groups);
    let mut groups = regroup(&groups, service, &endpoints);
    let mut next = Next {
        service,
        endpoints: &endpoints,
        cluster,
        when_full: history.when_full,
        now,
        problems,
        deadline: None,
        retirement: None,
    };
    next.remember_gone(&groups, memory);
    memory.waiting.retain(|(family, port), _| {
        groups
            .iter()
            .any(|group| group.family == *family && group.ports.first() == Some(port))
    });
    for group in &mut groups {
        next.assign(group, memory);
    }
    let version = last.map_or(1, |last| last.version);
    let mut table = table::encode(&service.uid, version, &service.vips, &groups);
    table.source_ranges.clone_from(&service.source_ranges);
    table.traffic_policy = service.traffic_policy;
    table.tracking = service.tracking;
    table.watermarks = watermarks(last, &history.retired, cluster);
    let changed = last != Some(&table);
    if changed && last.is_some() {
        table.version += 1;
    }
    next.grow_quiet(&groups, changed, memory);
    let Next {
        problems,
        deadline,
        retirement,
        ..
    } = next;
    Assigned {
        table: Some(table),
        changed,
        problems,
        deadline,
        retirement,
    }
}

/// How far pins must be known: the last version's watermarks and those of what is retired now, as long as a node exists.
fn watermarks(
    last: Option<&ServiceTableSpec>,
    retired: &Retired,
    cluster: &dyn Cluster,
) -> BTreeMap<String, Watermark> {
    let mut watermarks = last.map_or_else(BTreeMap::new, |last| last.watermarks.clone());
    for (node, position) in &retired.watermarks {
        let watermark = Watermark::from(*position);
        let known = watermarks.entry(node.to_string()).or_insert(watermark);
        *known = (*known).max(watermark);
    }
    watermarks.retain(|node, _| !cluster.is_complete() || cluster.has_node(node));
    watermarks
}

/// The groups of the Service's present ports: those of the last table, split where the pods of their ports differ now,
/// and new ones for new ports. Groups are never joined: that would need one history from two.
fn regroup(last: &[Group], service: &Service, endpoints: &Endpoints) -> Vec<Group> {
    let mut groups = Vec::new();
    for vip in &service.vips {
        let family = Family::of(*vip);
        let mut fresh = service.ports.clone();
        for group in last.iter().filter(|group| group.family == family) {
            let kept: Vec<Port> = group
                .ports
                .iter()
                .filter(|port| fresh.contains(port))
                .cloned()
                .collect();
            fresh.retain(|port| !kept.contains(port));
            let parts = partition(kept, family, service, endpoints);
            groups.extend(parts.into_iter().map(|ports| project(group, ports)));
        }
        for ports in partition(fresh, family, service, endpoints) {
            groups.push(Group {
                family,
                ports,
                slots: Slots::none(service.fields),
            });
        }
    }
    groups.sort_by(|a, b| (a.family, &a.ports).cmp(&(b.family, &b.ports)));
    groups
}

/// Ports by the set of pods that they have.
fn partition(
    ports: Vec<Port>,
    family: Family,
    service: &Service,
    endpoints: &Endpoints,
) -> Vec<Vec<Port>> {
    let mut by_pods: BTreeMap<Vec<(Arc<str>, IpAddr)>, Vec<Port>> = BTreeMap::new();
    for port in ports {
        let at = service
            .ports
            .iter()
            .position(|p| *p == port)
            .unwrap_or(usize::MAX);
        let pods = endpoints.usable(family, at).into_values();
        by_pods
            .entry(pods.map(|e| (e.uid.clone(), e.address)).collect())
            .or_default()
            .push(port);
    }
    by_pods.into_values().collect()
}

/// A group with some of its ports: the same history.
fn project(group: &Group, ports: Vec<Port>) -> Group {
    if group.ports == ports {
        return group.clone();
    }
    let place = |port: &Port| group.ports.iter().position(|other| other == port);
    let places: Vec<usize> = ports.iter().filter_map(place).collect();
    let mut slots = group.slots.clone();
    for candidate in &mut slots.candidates {
        candidate.ports = places.iter().map(|at| candidate.ports[*at]).collect();
    }
    slots.join_equal();
    Group {
        family: group.family,
        ports,
        slots,
    }
}

struct Next<'a> {
    service: &'a Service,
    endpoints: &'a Endpoints,
    cluster: &'a dyn Cluster,
    when_full: WhenFull,
    now: Timestamp,
    problems: Vec<Problem>,
    deadline: Option<Timestamp>,
    retirement: Option<Wanted>,
}

impl Next<'_> {
    /// Notes which endpoints without a pod have left all slices.
    fn remember_gone(&mut self, groups: &[Group], memory: &mut Memory) {
        let candidates = groups.iter().flat_map(|group| &group.slots.candidates);
        let gone =
            candidates.filter(|c| c.is_podless() && !self.endpoints.podless.contains(&c.uid));
        let gone = gone.map(|c| {
            let since = memory.gone.get(&c.uid).copied().unwrap_or(self.now);
            (c.uid.clone(), since)
        });
        memory.gone = gone.collect();
        let ends = memory
            .gone
            .values()
            .filter_map(|since| since.checked_add(PODLESS_LINGER).ok());
        self.deadline = ends.filter(|end| *end > self.now).min();
    }

    fn is_dead(&self, candidate: &Candidate, memory: &Memory) -> bool {
        if candidate.is_podless() {
            let since = memory.gone.get(&candidate.uid);
            return since.is_some_and(|since| self.now.duration_since(*since) >= PODLESS_LINGER);
        }
        let pod = self.cluster.pod(&candidate.uid);
        self.cluster.is_complete()
            && !(pod.is_some_and(is_alive) && self.cluster.has_node(&candidate.node))
    }

    fn assign(&mut self, group: &mut Group, memory: &mut Memory) {
        let usable = self.usable(group);
        let Some(first) = group.ports.first().cloned() else {
            return;
        };
        let key = (group.family, first);
        let mut waiting = memory.waiting.remove(&key).unwrap_or_default();
        let Outcome {
            deadline,
            refused,
            history_full,
            shape_waits,
        } = assignment::assign(
            &mut group.slots,
            &mut waiting,
            &Input {
                usable: &usable,
                fields: self.service.fields,
                dead: &|candidate| self.is_dead(candidate, memory),
                when_full: self.when_full,
                now: self.now,
            },
        );
        memory.waiting.insert(key, waiting);
        self.deadline = self.deadline.into_iter().chain(deadline).min();
        if refused > 0 {
            self.report(Fault::TooManyPods(refused));
        }
        if shape_waits {
            self.retirement = self.retirement.or(Some(Wanted::ShapeWaits));
        }
        if !history_full.is_empty() {
            self.retirement = Some(Wanted::HistoryFull);
        }
        if shape_waits || !history_full.is_empty() {
            self.report(Fault::HistoryFull(history_full.len()));
        }
        if usable.is_empty() {
            let ports = group.ports.iter().map(|port| (port.port, port.protocol));
            let (family, ports) = (group.family, Ports(ports.collect()));
            self.report(match self.service.traffic_policy {
                TrafficPolicy::Cluster => Fault::NoEndpoints { family, ports },
                TrafficPolicy::Local => Fault::NoLocalEndpoints { family, ports },
            });
        }
    }

    /// Wants history retired that nobody waits for, after a while without changes.
    fn grow_quiet(&mut self, groups: &[Group], changed: bool, memory: &mut Memory) {
        if self.when_full == WhenFull::OldestLeaves {
            return;
        }
        if changed || memory.changed.is_none() {
            memory.changed = Some(self.now);
        }
        let has_history = |group: &Group| {
            let slots = &group.slots;
            !slots.previous.is_empty() || slots.slots.iter().any(|slot| !slot.older.is_empty())
        };
        let quiet = memory.changed.and_then(|at| at.checked_add(QUIET).ok());
        if self.retirement.is_some() || !groups.iter().any(has_history) {
            return;
        }
        if groups.iter().any(|group| self.remembers_leaving(group)) {
            self.retirement = Some(Wanted::Drain);
        } else if quiet.is_some_and(|quiet| quiet <= self.now) {
            self.retirement = Some(Wanted::Quiet);
        } else {
            self.deadline = self.deadline.into_iter().chain(quiet).min();
        }
    }

    /// Whether a group's history names pods of a node that is being drained.
    fn remembers_leaving(&self, group: &Group) -> bool {
        let slots = &group.slots;
        let previous = slots.previous.iter().flat_map(|one| &one.owners);
        let older = slots.slots.iter().flat_map(|slot| &slot.older);
        let mut history = previous.chain(older);
        history.any(|number| {
            let candidate = &slots.candidates[*number as usize];
            self.cluster.is_leaving(&candidate.node)
        })
    }

    fn report(&mut self, fault: Fault) {
        self.problems
            .push(Problem::new("Service", &self.service.name, fault));
    }

    /// Candidates of a group: pods that all its ports have (the same for each, see [`partition`]).
    fn usable(&self, group: &Group) -> BTreeMap<Candidate, Weight> {
        let place = |port| {
            self.service
                .ports
                .iter()
                .position(|p| p == port)
                .unwrap_or(usize::MAX)
        };
        let by_port: Vec<BTreeMap<Arc<str>, &Endpoint>> = group
            .ports
            .iter()
            .map(|p| self.endpoints.usable(group.family, place(p)))
            .collect();
        let Some(first) = by_port.first() else {
            return BTreeMap::new();
        };
        let candidates = first.iter().filter_map(|(uid, endpoint)| {
            let ports = by_port.iter().map(|pods| Some(pods.get(uid)?.port));
            let candidate = Candidate {
                uid: uid.clone(),
                node: endpoint.node.clone(),
                address: endpoint.address,
                ports: ports.collect::<Option<Vec<u16>>>()?.into(),
            };
            Some((candidate, endpoint.weight))
        });
        candidates.collect()
    }
}

#[cfg(test)]
mod tests;
