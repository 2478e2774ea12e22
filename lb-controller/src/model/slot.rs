//! Slots of a group of ports: who serves, who may still own flows, which tables may still own some. Values only; who gets a
//! slot is decided in [`super::assignment`]. A candidate is a number here, an index into the group's dictionary.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use lb_ebpf::abi::{CANDIDATES_MAX, OLDER_MAX};

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
    /// Another candidate gets new flows; the one before is remembered. If that makes too many older ones, either nothing
    /// changes or the oldest makes room, as `room` says.
    pub(super) fn replace(&mut self, next: Option<u32>, room: Room) -> Result<(), HistoryFull> {
        if self.current == next {
            return Ok(());
        }
        let before = self.current;
        let is_kept = |candidate: &&u32| Some(**candidate) != next && Some(**candidate) != before;
        let kept = self.older.iter().filter(is_kept);
        let mut older: Vec<u32> = before.iter().chain(kept).copied().collect();
        match room.when_full {
            WhenFull::Waits if older.len() > room.most && older.len() > self.older.len() => {
                return Err(HistoryFull);
            }
            WhenFull::Waits => {}
            // But not the one who comes back: most flows are its own.
            WhenFull::OldestLeaves => {
                let home = self.vacant.and_then(|vacant| vacant.home);
                while older.len() > room.most {
                    let oldest = older.iter().rposition(|older| Some(*older) != home);
                    older.remove(oldest.unwrap_or(room.most));
                }
            }
        }
        self.current = next;
        self.older = older;
        Ok(())
    }

    pub(super) fn candidates(&self) -> impl Iterator<Item = u32> {
        self.current.into_iter().chain(self.older.iter().copied())
    }
}

/// What becomes of a change that would make more history than there is room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenFull {
    /// It waits until some history is retired, see [`super::retire`].
    Waits,
    /// The oldest history makes room, though flows may be lost with it: for as long as nobody can be asked to hand them off.
    OldestLeaves,
}

/// A slot remembers as many older occupants as it may: it keeps its current one until some are retired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HistoryFull;

/// Older occupants that a slot may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Room {
    /// How many.
    pub(super) most: usize,
    /// What becomes of one more.
    pub(super) when_full: WhenFull,
}

impl Room {
    /// Beside a number of previous tables: the row of a flow names a slot in each, and all their occupants together can be
    /// asked. Where the oldest leaves anyway, no place is left empty for that.
    pub(super) const fn beside(previous: usize, when_full: WhenFull) -> Self {
        let share = CANDIDATES_MAX / (1 + previous) - 1;
        let most = match when_full {
            WhenFull::Waits if share < OLDER_MAX => share,
            WhenFull::Waits | WhenFull::OldestLeaves => OLDER_MAX,
        };
        Self { most, when_full }
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

    /// Drops what nothing leads to any more: owners that no slot names, previous tables without owners, and closed slots that
    /// no previous table names.
    pub(super) fn close_unnamed(&mut self) {
        let named: BTreeSet<u32> = self.slots.iter().flat_map(Slot::candidates).collect();
        for previous in &mut self.previous {
            previous.owners.retain(|owner| named.contains(owner));
        }
        self.previous.retain(|previous| !previous.owners.is_empty());
        let previous = self.previous.iter();
        let count = previous
            .map(|p| usize::from(p.shape.slots()))
            .chain([self.weights.len()])
            .max();
        self.slots.truncate(count.unwrap_or(0));
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
