//! Slots → `ServiceTable`, canonically: candidates that nothing names are left out, dictionaries are in the order of names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Group;
use crate::api::service_table as api;
use crate::model::candidate::Candidate;
use crate::model::shape::{HashFields, Shape};
use crate::model::slot::{Slots, Vacant};

/// Writes groups: candidates that nothing names are left out, dictionaries are in the order of names.
pub fn encode(
    service_uid: &str,
    version: u64,
    vips: &[IpAddr],
    groups: &[Group],
) -> api::ServiceTableSpec {
    let named: Vec<Vec<bool>> = groups.iter().map(|group| named(&group.slots)).collect();
    let mut pods = Pods::default();
    for (group, named) in groups.iter().zip(&named) {
        for (candidate, _) in group
            .slots
            .candidates
            .iter()
            .zip(named)
            .filter(|(_, named)| **named)
        {
            pods.add(candidate);
        }
    }
    let pods = pods.number();
    api::ServiceTableSpec {
        service_uid: service_uid.to_owned(),
        version,
        vips: vips.to_vec(),
        source_ranges: Vec::new(),
        traffic_policy: api::TrafficPolicy::Cluster,
        tracking: api::Tracking::Auto,
        groups: groups
            .iter()
            .zip(&named)
            .map(|(group, named)| pods.group(group, named))
            .collect(),
        nodes: pods.nodes,
        pods: pods.pods,
        watermarks: BTreeMap::new(),
    }
}

/// Which candidates something names.
fn named(slots: &Slots) -> Vec<bool> {
    let mut named = vec![false; slots.candidates.len()];
    let homes = slots.slots.iter().filter_map(|slot| slot.vacant?.home);
    let owners = slots
        .previous
        .iter()
        .flat_map(|previous| previous.owners.iter().copied());
    let older = slots
        .slots
        .iter()
        .flat_map(|slot| slot.older.iter().copied());
    let current = slots.slots.iter().filter_map(|slot| slot.current);
    for candidate in homes.chain(owners).chain(older).chain(current) {
        named[candidate as usize] = true;
    }
    named
}

/// Pods as they are collected: by UID and node; more than one entry only if a pod had several addresses of a family.
#[derive(Default)]
struct Pods<'a>(BTreeMap<(&'a str, &'a str), Vec<api::Pod>>);

impl<'a> Pods<'a> {
    fn add(&mut self, candidate: &'a Candidate) {
        let entries = self.0.entry((&candidate.uid, &candidate.node)).or_default();
        let fits = |pod: &&mut api::Pod| match candidate.address {
            IpAddr::V4(address) => pod.ipv4.is_none_or(|other| other == address),
            IpAddr::V6(address) => pod.ipv6.is_none_or(|other| other == address),
        };
        if entries.iter_mut().find(fits).is_none() {
            let uid = candidate.uid.to_string();
            entries.push(api::Pod {
                uid,
                node: 0,
                ipv4: None,
                ipv6: None,
            });
        }
        if let Some(pod) = entries.iter_mut().find(fits) {
            match candidate.address {
                IpAddr::V4(address) => pod.ipv4 = Some(address),
                IpAddr::V6(address) => pod.ipv6 = Some(address),
            }
        }
    }

    fn number(self) -> Dictionary {
        let mut nodes: Vec<String> = self.0.keys().map(|(_, node)| (*node).to_owned()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut dictionary = Dictionary {
            nodes,
            pods: Vec::new(),
            numbers: BTreeMap::new(),
        };
        for ((_, node), mut entries) in self.0 {
            entries.sort_by_key(|pod| (pod.ipv4, pod.ipv6));
            for mut pod in entries {
                let node = dictionary
                    .nodes
                    .binary_search_by(|name| name.as_str().cmp(node));
                pod.node = node.map_or(0, |at| at as u32);
                let number = dictionary.pods.len() as u32;
                for address in [pod.ipv4.map(IpAddr::V4), pod.ipv6.map(IpAddr::V6)] {
                    let Some(address) = address else { continue };
                    dictionary
                        .numbers
                        .insert((pod.uid.clone(), pod.node, address), number);
                }
                dictionary.pods.push(pod);
            }
        }
        dictionary
    }
}

struct Dictionary {
    nodes: Vec<String>,
    pods: Vec<api::Pod>,
    numbers: BTreeMap<(String, u32, IpAddr), u32>,
}

impl Dictionary {
    fn pod(&self, candidate: &Candidate) -> u32 {
        let node = self
            .nodes
            .binary_search_by(|name| name.as_str().cmp(&candidate.node));
        let key = (
            candidate.uid.to_string(),
            node.map_or(0, |at| at as u32),
            candidate.address,
        );
        self.numbers.get(&key).copied().unwrap_or(0)
    }

    fn group(&self, group: &Group, named: &[bool]) -> api::Group {
        let Group {
            family,
            ports,
            slots,
        } = group;
        let Numbers { kept, numbers } = Numbers::of(slots, named);
        let (targets, candidate_targets) = targets(&kept);
        let renumber = |list: &[u32]| {
            list.iter()
                .map(|c| numbers[*c as usize])
                .collect::<Vec<_>>()
        };
        let mut older: Vec<_> = slots
            .slots
            .iter()
            .map(|slot| renumber(&slot.older))
            .collect();
        while older.last().is_some_and(Vec::is_empty) {
            older.pop();
        }
        let previous = slots.previous.iter().map(|previous| {
            let mut owners = renumber(&previous.owners);
            owners.sort_unstable();
            let each = previous.shape.weights().each().unwrap_or_default();
            api::PreviousShape {
                shape: encode_shape(&previous.shape, each),
                owners,
            }
        });
        let weights: Vec<u16> = slots.weights.iter().map(|weight| weight.get()).collect();
        let vacant = slots.slots.iter().enumerate().filter_map(|(at, slot)| {
            let Vacant { since, home } = slot.vacant?;
            let home = home.map(|home| numbers[home as usize]);
            Some(api::Vacancy {
                slot: at as u16,
                since_ms: since.as_millisecond(),
                home,
            })
        });
        api::Group {
            family: *family,
            ports: ports.clone(),
            shape: encode_shape(&slots.shape, &weights),
            previous: previous.collect(),
            candidates: kept.iter().map(|candidate| self.pod(candidate)).collect(),
            targets,
            candidate_targets,
            current: slots
                .slots
                .iter()
                .map(|s| s.current.map(|c| numbers[c as usize]))
                .collect(),
            older,
            vacant: vacant.collect(),
        }
    }
}

/// Candidates that something names, in the order of names, and the number that each has there.
struct Numbers<'a> {
    kept: Vec<&'a Candidate>,
    /// By number in the slots; meaningless for those that nothing names.
    numbers: Vec<u32>,
}

impl<'a> Numbers<'a> {
    fn of(slots: &'a Slots, named: &[bool]) -> Self {
        let mut kept: Vec<usize> = (0..slots.candidates.len()).filter(|c| named[*c]).collect();
        kept.sort_by_key(|c| &slots.candidates[*c]);
        let mut numbers = vec![0; slots.candidates.len()];
        for (number, candidate) in (0..).zip(&kept) {
            numbers[*candidate] = number;
        }
        let kept = kept.into_iter().map(|c| &slots.candidates[c]).collect();
        Self { kept, numbers }
    }
}

/// The different lists of target ports, and which one each candidate has; left out if all have the first.
fn targets(candidates: &[&Candidate]) -> (Vec<Vec<u16>>, Vec<u32>) {
    let mut targets: Vec<Vec<u16>> = candidates.iter().map(|c| c.ports.to_vec()).collect();
    targets.sort_unstable();
    targets.dedup();
    let target = |c: &&Candidate| {
        targets
            .binary_search_by(|t| (**t).cmp(&c.ports))
            .unwrap_or(0)
    };
    let mut each: Vec<u32> = candidates.iter().map(|c| target(c) as u32).collect();
    if each.iter().all(|target| *target == 0) {
        each.clear();
    }
    (targets, each)
}

fn encode_shape(shape: &Shape, each: &[u16]) -> api::Shape {
    let mut weights: Vec<api::WeightRun> = Vec::new();
    for weight in each {
        match weights.last_mut() {
            Some(run) if run.weight == *weight => run.slots += 1,
            Some(_) | None => weights.push(api::WeightRun {
                weight: *weight,
                slots: 1,
            }),
        }
    }
    if each.iter().all(|weight| *weight == 1) {
        weights.clear();
    }
    api::Shape {
        slots: shape.slots(),
        size: shape.size().get(),
        weights,
        seed: shape.seed(),
        fields: match shape.fields() {
            HashFields::FiveTuple => api::Fields::FiveTuple,
            HashFields::Addresses => api::Fields::Addresses,
        },
    }
}
