//! Whether packets of a flow find its owner by tables alone: what decides if a flow needs a pin.
//!
//! Hash and row are the packet path's own functions. A standing substitute does not count, though packets find it: nodes may
//! disagree about it, so flows that it got are pinned.

use std::net::IpAddr;

use lb_ebpf::abi::{CANDIDATES_MAX, Tuple};
use lb_ebpf::family::{Family, V4, V6};
use lb_ebpf::hash::{self, Key};

use super::candidate::Candidate;
use super::maglev::Rows;
use super::op::PinKey;
use super::pins::{FlowKey, PinnedPod};
use super::secret::identity;
use super::shape::Shape;
use super::slot::Slot;
use super::table::{self, Group, TableError};
use crate::api::service_table as api;

/// A version of a Service's table, ready to be asked about flows.
#[derive(Clone, Debug)]
pub struct Finder {
    key: Key,
    policy: api::TrafficPolicy,
    vips: Vec<IpAddr>,
    groups: Vec<(Group, Vec<Rows>)>,
}

/// Somebody who may own a flow: a pod and the port that the flow is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found<'a> {
    /// The pod.
    pub candidate: &'a Candidate,
    /// Its target port.
    pub port: u16,
}

impl Found<'_> {
    /// Its identity in packets and maps.
    pub fn identity(&self) -> u32 {
        identity(&self.candidate.uid, self.port)
    }
}

impl Finder {
    /// Reads a table. `rows` builds what a shape stands for, or has it already.
    pub fn new(
        table: &api::ServiceTableSpec,
        key: Key,
        mut rows: impl FnMut(&Shape) -> Rows,
    ) -> Result<Self, TableError> {
        let groups = table::decode(table)?.into_iter().map(|group| {
            let previous = group.slots.previous.iter().map(|previous| &previous.shape);
            let shapes = std::iter::once(&group.slots.shape).chain(previous);
            let rows = shapes.map(&mut rows).collect();
            (group, rows)
        });
        Ok(Self {
            key,
            policy: table.traffic_policy,
            vips: table.vips.clone(),
            groups: groups.collect(),
        })
    }

    /// Who may own a flow, in the order in which packets ask when no node is suspected, each once.
    pub fn candidates(&self, flow: &FlowKey) -> Vec<Found<'_>> {
        let mut found: Vec<Found<'_>> = Vec::new();
        let Some((group, rows, at)) = self.group(flow) else {
            return found;
        };
        let slots = &group.slots;
        let previous = slots.previous.iter().map(|previous| &previous.shape);
        let shapes = std::iter::once(&slots.shape).chain(previous);
        for (shape, rows) in shapes.zip(rows) {
            let Some(slot) = self.slot(flow, shape, rows) else {
                continue;
            };
            let occupants = slots.slots.get(usize::from(slot)).map(Slot::candidates);
            for number in occupants.into_iter().flatten() {
                let candidate = &slots.candidates[number as usize];
                let next = Found {
                    candidate,
                    port: candidate.ports[at],
                };
                if found.iter().all(|one| one.identity() != next.identity()) {
                    found.push(next);
                }
            }
        }
        found
    }

    /// Whether packets of a flow find a pod, in whatever order they ask: suspicion of a node changes the order. Under policy
    /// Local every node has rows of its own, so nothing can be said.
    pub fn is_findable(&self, flow: &FlowKey, pod: &PinnedPod) -> bool {
        self.finds(flow, pod.identity(), pod.address)
    }

    /// The same for a pod that is known by its identity only.
    ///
    /// A previous table counts for those only who owned flows under it when it became previous. Packets may find others there,
    /// but nobody asks them before it is retired.
    pub fn finds(&self, flow: &FlowKey, identity: u32, address: IpAddr) -> bool {
        if self.policy == api::TrafficPolicy::Local || self.candidates(flow).len() > CANDIDATES_MAX
        {
            return false;
        }
        let Some((group, rows, at)) = self.group(flow) else {
            return false;
        };
        let slots = &group.slots;
        let is_pod = |number: u32| {
            let candidate = &slots.candidates[number as usize];
            let found = Found {
                candidate,
                port: candidate.ports[at],
            };
            found.identity() == identity && candidate.address == address
        };
        let named = |shape: &Shape, rows: &Rows| -> Vec<u32> {
            let slot = self.slot(flow, shape, rows);
            let slot = slot.and_then(|slot| slots.slots.get(usize::from(slot)));
            slot.map(|slot| slot.candidates().collect())
                .unwrap_or_default()
        };
        let Some((current, older)) = rows.split_first() else {
            return false;
        };
        named(&slots.shape, current).into_iter().any(is_pod)
            || slots.previous.iter().zip(older).any(|(previous, rows)| {
                let mut named = named(&previous.shape, rows).into_iter();
                named.any(|number| is_pod(number) && previous.owners.contains(&number))
            })
    }

    /// Whether a flow is one of this Service.
    pub fn is_about(&self, flow: &FlowKey) -> bool {
        self.vips.contains(&flow.vip().ip())
    }

    /// The group of a flow's VIP and port, with its rows and the place of the port.
    fn group(&self, flow: &FlowKey) -> Option<(&Group, &[Rows], usize)> {
        let vip = flow.vip();
        if !self.vips.contains(&vip.ip()) {
            return None;
        }
        let family = api::Family::of(vip.ip());
        let mut of_family = self
            .groups
            .iter()
            .filter(|(group, _)| group.family == family);
        of_family.find_map(|(group, rows)| {
            let is_port = |port: &api::Port| {
                (port.port, port.protocol.number()) == (vip.port(), flow.protocol())
            };
            Some((group, &rows[..], group.ports.iter().position(is_port)?))
        })
    }

    /// The slot of a flow in a table.
    fn slot(&self, flow: &FlowKey, shape: &Shape, rows: &Rows) -> Option<u16> {
        fn of<F: Family>(key: &Key, tuple: &Tuple<F::Addr>, fields: u32) -> u64 {
            F::hash(key, tuple.src, tuple.dst, tuple.ports, tuple.proto, fields)
        }
        let fields = shape.fields().to_abi();
        let hash = match flow.tuple() {
            PinKey::V4(tuple) => of::<V4>(&self.key, &tuple, fields),
            PinKey::V6(tuple) => of::<V6>(&self.key, &tuple, fields),
        };
        rows.get(hash::row(hash, rows.len() as u32) as usize)
            .copied()
    }
}

#[cfg(test)]
mod tests;
