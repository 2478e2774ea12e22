//! Slots of a group of ports: who serves, who may still own flows, which tables may still own some. Values only; who gets a
//! slot is decided in [`super::assignment`]. A candidate is a number here, an index into the group's dictionary.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lb_ebpf::abi::OLDER_MAX;

use super::candidate::Candidate;
use super::shape::{HashFields, Shape, TableSize, Weight, Weights};

/// A slot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Slot {
    /// The candidate of new flows.
    pub current: Option<u32>,
    /// Candidates that may still own flows, newest first, at most [`OLDER_MAX`], without `current`.
    pub older: Vec<u32>,
    /// Set while it has no occupant of its own; `current` is a stand-in then.
    pub vacant: Option<Vacant>,
}

/// A slot without an occupant of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vacant {
    /// Since when.
    pub since: Timestamp,
    /// Who gets it back when it returns.
    pub home: Option<u32>,
}

impl Slot {
    /// Another candidate gets new flows; the one before is remembered.
    pub(super) fn replace(&mut self, next: Option<u32>) {
        if self.current == next {
            return;
        }
        let before = std::mem::replace(&mut self.current, next);
        self.older
            .retain(|candidate| Some(*candidate) != next && Some(*candidate) != before);
        if let Some(before) = before {
            self.older.insert(0, before);
        }
        // The oldest makes room, but not the one who comes back: most flows are its own.
        let home = self.vacant.and_then(|vacant| vacant.home);
        while self.older.len() > OLDER_MAX {
            let oldest = self
                .older
                .iter()
                .rposition(|candidate| Some(*candidate) != home);
            self.older.remove(oldest.unwrap_or(OLDER_MAX));
        }
    }

    pub(super) fn candidates(&self) -> impl Iterator<Item = u32> {
        self.current.into_iter().chain(self.older.iter().copied())
    }
}

/// A table that may still own flows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Previous {
    /// What it was made from.
    pub shape: Shape,
    /// Candidates that may own flows under it.
    pub owners: Vec<u32>,
}

/// Slots and tables of one group of ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slots {
    /// Everybody that slots and previous tables name.
    pub candidates: Vec<Candidate>,
    /// What the table of new flows is made from.
    pub shape: Shape,
    /// Weights of its slots as asked for, not yet divided by what they have in common.
    pub weights: Vec<Weight>,
    /// Tables that may still own flows, newest first, at most [`PREVIOUS_MAX`].
    pub previous: Vec<Previous>,
    /// Slots 0 … n−1 of `shape`, then closed ones that a previous shape names.
    pub slots: Vec<Slot>,
}

impl Slots {
    /// No slots yet.
    pub fn none(fields: HashFields) -> Self {
        Self {
            candidates: Vec::new(),
            shape: shape(&[], TableSize::choose(0), fields),
            weights: Vec::new(),
            previous: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Makes candidates that have become equal one: what names one of them names the first.
    pub fn join_equal(&mut self) {
        let mut first = BTreeMap::new();
        let numbers: Vec<u32> = self
            .candidates
            .iter()
            .zip(0..)
            .map(|(candidate, number)| *first.entry(candidate.clone()).or_insert(number))
            .collect();
        let renumber = |candidate: &mut u32| *candidate = numbers[*candidate as usize];
        for slot in &mut self.slots {
            slot.current.iter_mut().for_each(renumber);
            slot.older.iter_mut().for_each(renumber);
            if let Some(vacant) = &mut slot.vacant {
                vacant.home.iter_mut().for_each(renumber);
            }
            let mut seen: Vec<u32> = slot.current.into_iter().collect();
            slot.older.retain(|candidate| {
                let new = !seen.contains(candidate);
                seen.push(*candidate);
                new
            });
        }
        for previous in &mut self.previous {
            previous.owners.iter_mut().for_each(renumber);
            previous.owners.sort_unstable();
            previous.owners.dedup();
        }
    }

    /// The number of a candidate, which is added if it is new.
    pub(super) fn intern(
        &mut self,
        numbers: &mut BTreeMap<Candidate, u32>,
        candidate: &Candidate,
    ) -> u32 {
        *numbers.entry(candidate.clone()).or_insert_with(|| {
            self.candidates.push(candidate.clone());
            (self.candidates.len() - 1) as u32
        })
    }
}

pub(super) fn shape(weights: &[Weight], size: TableSize, fields: HashFields) -> Shape {
    Shape::new(weights.len() as u16, Weights::new(weights), size, 0, fields)
        .expect("slots are opened up to SLOTS_MAX only, and each has a weight")
}
