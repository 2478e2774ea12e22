//! `ServiceTable` objects ⇄ slots: the manager's side. Reading checks everything, since a file may have been edited or cut
//! short; writing is canonical, so that equal slots are equal objects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use lb_ebpf::abi::{OLDER_MAX, PREVIOUS_MAX};

use super::candidate::Candidate;
use super::shape::{HashFields, Shape, ShapeError, TableSize, Weight, Weights};
use super::slot::{Previous, Slot, Slots, Vacant};
use crate::api::service_table as api;

/// Slots of a family's ports that share one set of pods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// The family.
    pub family: api::Family,
    /// The ports.
    pub ports: Vec<api::Port>,
    /// Their slots.
    pub slots: Slots,
}

/// Why a `ServiceTable` makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    /// An index that leads nowhere.
    #[error("{0} {1} does not exist")]
    Index(&'static str, u32),
    /// A list that is too long or too short.
    #[error("{0} has a wrong number of entries")]
    Length(&'static str),
    /// A pod without an address of the group's family.
    #[error("pod {0} has no address of the group's family")]
    Address(String),
    /// A time that is none.
    #[error("a time is out of range")]
    Time,
    /// A shape that is none.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// Reads all groups of a table.
pub fn decode(table: &api::ServiceTableSpec) -> Result<Vec<Group>, TableError> {
    let nodes: Vec<Arc<str>> = table
        .nodes
        .iter()
        .map(|name| name.as_str().into())
        .collect();
    let uids: Vec<Arc<str>> = table
        .pods
        .iter()
        .map(|pod| pod.uid.as_str().into())
        .collect();
    let reader = Reader { table, nodes, uids };
    table
        .groups
        .iter()
        .map(|group| reader.group(group))
        .collect()
}

/// The shape that an object describes, and its weights as they were asked for.
pub fn decode_shape(shape: &api::Shape) -> Result<(Shape, Vec<Weight>), TableError> {
    let api::Shape {
        slots,
        size,
        weights,
        seed,
        fields,
    } = shape;
    let mut each = Vec::new();
    for run in weights {
        let weight = Weight::try_from(u32::from(run.weight))?;
        each.extend(std::iter::repeat_n(weight, usize::from(run.slots)));
    }
    if weights.is_empty() {
        each = vec![Weight::ONE; usize::from(*slots)];
    }
    if each.len() != usize::from(*slots) {
        return Err(TableError::Length("weights"));
    }
    let fields = match fields {
        api::Fields::FiveTuple => HashFields::FiveTuple,
        api::Fields::Addresses => HashFields::Addresses,
    };
    let size = TableSize::try_from(*size)?;
    Ok((
        Shape::new(*slots, Weights::new(&each), size, *seed, fields)?,
        each,
    ))
}

struct Reader<'a> {
    table: &'a api::ServiceTableSpec,
    nodes: Vec<Arc<str>>,
    uids: Vec<Arc<str>>,
}

impl Reader<'_> {
    fn group(&self, group: &api::Group) -> Result<Group, TableError> {
        let candidates = self.candidates(group)?;
        let index = |candidate: &u32| match candidates.get(*candidate as usize) {
            Some(_) => Ok(*candidate),
            None => Err(TableError::Index("candidate", *candidate)),
        };
        let indices = |list: &[u32]| list.iter().map(index).collect::<Result<Vec<_>, _>>();
        let (shape, weights) = decode_shape(&group.shape)?;
        let previous = group.previous.iter().map(|previous| {
            let (shape, _) = decode_shape(&previous.shape)?;
            Ok(Previous {
                shape,
                owners: indices(&previous.owners)?,
            })
        });
        let previous = previous.collect::<Result<Vec<_>, TableError>>()?;
        let mut slots = Vec::with_capacity(group.current.len());
        for (at, current) in group.current.iter().enumerate() {
            let older = group.older.get(at).map_or(&[][..], Vec::as_slice);
            slots.push(Slot {
                current: current.as_ref().map(index).transpose()?,
                older: indices(older)?,
                vacant: None,
            });
        }
        for vacancy in &group.vacant {
            let slot = slots.get_mut(usize::from(vacancy.slot));
            let slot = slot.ok_or(TableError::Index("slot", vacancy.slot.into()))?;
            slot.vacant = Some(Vacant {
                since: Timestamp::from_millisecond(vacancy.since_ms)
                    .map_err(|_| TableError::Time)?,
                home: vacancy.home.as_ref().map(index).transpose()?,
            });
        }
        let named = previous
            .iter()
            .map(|p| p.shape.slots())
            .chain([shape.slots()])
            .max();
        if slots.len() != usize::from(named.unwrap_or(0))
            || group.older.len() > slots.len()
            || previous.len() > PREVIOUS_MAX
            || slots.iter().any(|slot| slot.older.len() > OLDER_MAX)
        {
            return Err(TableError::Length("slots"));
        }
        let slots = Slots {
            candidates,
            shape,
            weights,
            previous,
            slots,
        };
        Ok(Group {
            family: group.family,
            ports: group.ports.clone(),
            slots,
        })
    }

    fn candidates(&self, group: &api::Group) -> Result<Vec<Candidate>, TableError> {
        let mut targets: Vec<Arc<[u16]>> = Vec::new();
        for ports in &group.targets {
            if ports.len() != group.ports.len() {
                return Err(TableError::Length("targets"));
            }
            targets.push(ports.as_slice().into());
        }
        let each = &group.candidate_targets;
        if !each.is_empty() && each.len() != group.candidates.len() {
            return Err(TableError::Length("candidateTargets"));
        }
        let candidates = group.candidates.iter().enumerate();
        let candidates = candidates.map(|(at, number)| {
            let lost = TableError::Index("pod", *number);
            let pod = self.table.pods.get(*number as usize).ok_or(lost)?;
            let address = match group.family {
                api::Family::IPv4 => pod.ipv4.map(IpAddr::V4),
                api::Family::IPv6 => pod.ipv6.map(IpAddr::V6),
            };
            let node = self.nodes.get(pod.node as usize);
            let target = each.get(at).copied().unwrap_or(0);
            let ports = targets.get(target as usize);
            Ok(Candidate {
                uid: self.uids[*number as usize].clone(),
                node: node.ok_or(TableError::Index("node", pod.node))?.clone(),
                address: address.ok_or_else(|| TableError::Address(pod.uid.clone()))?,
                ports: ports.ok_or(TableError::Index("targets", target))?.clone(),
            })
        });
        candidates.collect()
    }
}

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
        groups: groups
            .iter()
            .zip(&named)
            .map(|(group, named)| pods.group(group, named))
            .collect(),
        nodes: pods.nodes,
        pods: pods.pods,
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
        let mut kept: Vec<u32> = (0..slots.candidates.len() as u32)
            .filter(|c| named[*c as usize])
            .collect();
        kept.sort_by_key(|c| &slots.candidates[*c as usize]);
        let mut numbers = vec![0; slots.candidates.len()];
        for (number, candidate) in kept.iter().enumerate() {
            numbers[*candidate as usize] = number as u32;
        }
        let candidates = || kept.iter().map(|c| &slots.candidates[*c as usize]);
        let mut targets: Vec<Vec<u16>> = candidates().map(|c| c.ports.to_vec()).collect();
        targets.sort_unstable();
        targets.dedup();
        let target = |c: &Candidate| {
            targets
                .binary_search_by(|t| (**t).cmp(&c.ports))
                .unwrap_or(0)
        };
        let mut candidate_targets: Vec<u32> = candidates().map(|c| target(c) as u32).collect();
        if candidate_targets.iter().all(|target| *target == 0) {
            candidate_targets.clear();
        }
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
            candidates: candidates().map(|c| self.pod(c)).collect(),
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
