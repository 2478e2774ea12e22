//! What may be retired, and the table without it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::service_table::{Family, Port, ServiceTableSpec};
use crate::model::candidate::Candidate;
use crate::model::pins::Position;
use crate::model::shape::Shape;
use crate::model::slot::{Slot, Slots};
use crate::model::table::{self, Group, TableError};

/// A table without some of its history, and who must agree.
#[derive(Clone, PartialEq, Debug)]
pub struct Proposal {
    /// The version that it was made from.
    pub base: u64,
    /// The table as it would be. Its version is the base's: it is never applied.
    pub table: ServiceTableSpec,
    /// What it lacks.
    pub retired: Retired,
    /// Nodes with pods whose flows may need what it lacks.
    pub owners: BTreeSet<Arc<str>>,
}

/// What is taken out of a table, and how far the pins that stand in for it must be known.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Retired {
    groups: BTreeMap<(Family, Vec<Port>), History>,
    /// By the nodes that handed flows off.
    pub watermarks: BTreeMap<Arc<str>, Position>,
}

/// A part of one group's history.
#[derive(Clone, PartialEq, Debug, Default)]
struct History {
    /// Older occupants by slot.
    older: BTreeSet<(usize, Candidate)>,
    previous: Vec<Shape>,
}

/// The table without the older occupants on `eligible` nodes and without the previous tables all of whose owners are on such
/// nodes: those that can hand flows off now. None if nothing can go.
pub fn proposal(
    table: &ServiceTableSpec,
    eligible: &dyn Fn(&str) -> bool,
) -> Result<Option<Proposal>, TableError> {
    let mut groups = table::decode(table)?;
    let mut owners = BTreeSet::new();
    let mut retired = Retired::default();
    for group in &groups {
        let history = History::of(&group.slots, eligible, &mut owners);
        if !history.is_empty() {
            retired.groups.insert(key(group), history);
        }
    }
    if retired.is_empty() {
        return Ok(None);
    }
    retired.take_out(&mut groups);
    let mut proposed = table::encode(&table.service_uid, table.version, &table.vips, &groups);
    proposed.source_ranges.clone_from(&table.source_ranges);
    proposed.traffic_policy = table.traffic_policy;
    proposed.tracking = table.tracking;
    proposed.watermarks.clone_from(&table.watermarks);
    Ok(Some(Proposal {
        base: table.version,
        table: proposed,
        retired,
        owners,
    }))
}

fn key(group: &Group) -> (Family, Vec<Port>) {
    (group.family, group.ports.clone())
}

impl Retired {
    /// Whether nothing is to go.
    pub fn is_empty(&self) -> bool {
        self.groups.values().all(History::is_empty)
    }

    /// Takes it out of groups, as far as it is there. A group whose ports are others now keeps its history.
    pub(in crate::model) fn take_out(&self, groups: &mut [Group]) {
        for group in groups {
            if let Some(history) = self.groups.get(&key(group)) {
                history.take_out(&mut group.slots);
            }
        }
    }

    /// Keeps only what is history in a newer version too. Whoever is first again somewhere is not retired there, even if
    /// another version makes it older once more: it has new flows.
    pub(super) fn keep_unused(&mut self, table: &ServiceTableSpec) -> Result<(), TableError> {
        let groups = table::decode(table)?;
        let mut groups: BTreeMap<_, _> = groups.iter().map(|group| (key(group), group)).collect();
        self.groups.retain(|key, history| {
            let Some(group) = groups.remove(key) else {
                return false;
            };
            history.keep_unused(&group.slots);
            !history.is_empty()
        });
        Ok(())
    }
}

impl History {
    fn is_empty(&self) -> bool {
        let Self { older, previous } = self;
        older.is_empty() && previous.is_empty()
    }

    /// What of a group's history is on eligible nodes; adds these to `owners`.
    fn of(slots: &Slots, eligible: &dyn Fn(&str) -> bool, owners: &mut BTreeSet<Arc<str>>) -> Self {
        let node = |number: u32| &slots.candidates[number as usize].node;
        let mut history = Self::default();
        for (at, slot) in slots.slots.iter().enumerate() {
            for older in slot.older.iter().filter(|older| eligible(node(**older))) {
                owners.insert(node(*older).clone());
                let candidate = slots.candidates[*older as usize].clone();
                history.older.insert((at, candidate));
            }
        }
        for previous in &slots.previous {
            if previous.owners.iter().all(|owner| eligible(node(*owner))) {
                owners.extend(previous.owners.iter().map(|owner| node(*owner).clone()));
                history.previous.push(previous.shape.clone());
            }
        }
        history
    }

    fn take_out(&self, slots: &mut Slots) {
        let Self { older, previous } = self;
        let candidates = &slots.candidates;
        for (at, slot) in slots.slots.iter_mut().enumerate() {
            slot.older.retain(|number| {
                let candidate = &candidates[*number as usize];
                !older.contains(&(at, candidate.clone()))
            });
        }
        slots.previous.retain(|one| !previous.contains(&one.shape));
        slots.close_unnamed();
    }

    fn keep_unused(&mut self, slots: &Slots) {
        let is_older = |at: usize, candidate: &Candidate| {
            let names = |number: &u32| slots.candidates[*number as usize] == *candidate;
            let slot: Option<&Slot> = slots.slots.get(at);
            slot.is_some_and(|slot| slot.older.iter().any(names))
        };
        self.older
            .retain(|(at, candidate)| is_older(*at, candidate));
        self.previous
            .retain(|shape| slots.previous.iter().any(|one| one.shape == *shape));
    }
}
