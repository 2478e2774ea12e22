//! `ServiceTable` objects ⇄ slots: the manager's side. Reading checks everything, since a file may have been edited or cut
//! short; writing is canonical, so that equal slots are equal objects.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use lb_ebpf::abi::{OLDER_MAX, PREVIOUS_MAX};

use super::candidate::Candidate;
use super::shape::{HashFields, Shape, ShapeError, TableSize, Weight, Weights};
use super::slot::{Previous, Slot, Slots, Vacant};
use crate::api::service_table as api;

mod encode;
pub use encode::encode;

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
