//! Slot assignment: who inherits, who joins, who stands in, who is remembered. Pure; time is an argument.
//!
//! ```text
//! bury      the dead leave everything
//! settle    occupants stay; a changed target port or address makes the pod its own older; who returns gets its slot back
//! inherit   newcomers take freed slots: no row moves
//! open      newcomers without one wait 2 s for a freed slot, then new slots are opened
//! stand in  a slot still without an occupant gets the rendezvous choice: no row moves
//! shrink    slots without an occupant for 60 s are closed; the last slot's occupant moves into a hole
//! reshape   another number of slots, weights or hash fields make another table; the old one becomes previous
//! ```
//!
//! Nobody retires an older occupant or a previous table yet: they leave when they are dead, or when the next change needs
//! their place, the oldest first. A row can have more than `CANDIDATES_MAX` candidates, then: four in its slot and as many
//! in those of two previous tables. The packet path asks the first six, newest first; most rows name one slot in all
//! tables and so have four.
//!
//! The same input gives the same output again, so that nothing is written twice. A candidate is a number here, an index
//! into the group's dictionary.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lb_ebpf::abi::{PREVIOUS_MAX, SLOTS_MAX};
use siphasher::sip::SipHasher24;

use super::candidate::Candidate;
use super::shape::{HashFields, TableSize, Weight};
use super::slot::{Previous, Slot, Slots, Vacant, shape};

/// How long a surge pod waits for a slot to become free before a new one is opened.
pub const SURGE_WAIT: SignedDuration = SignedDuration::from_secs(2);
/// How long a slot goes without an occupant before it is closed.
pub const SHRINK_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// Vacancies that come due within this time are closed together, since each other table needs one of few places.
pub const SHRINK_TOGETHER: SignedDuration = SignedDuration::from_secs(10);

/// Who waits for a slot since when: per process, not stored, since a restart only makes somebody wait again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Waiting(BTreeMap<Arc<str>, Timestamp>);

/// What an assignment says beside the slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// When the same input may give another result.
    pub deadline: Option<Timestamp>,
    /// Candidates that found no slot, since there are [`SLOTS_MAX`].
    pub refused: usize,
}

/// What slots are assigned from.
pub struct Input<'a> {
    /// Candidates that may get new flows, one per UID.
    pub usable: &'a BTreeMap<Candidate, Weight>,
    /// What the flow hash covers.
    pub fields: HashFields,
    /// Whether a candidate is dead.
    pub dead: &'a dyn Fn(&Candidate) -> bool,
    /// Now.
    pub now: Timestamp,
}

/// Assigns the slots of a group anew.
pub fn assign(slots: &mut Slots, waiting: &mut Waiting, input: &Input<'_>) -> Outcome {
    let mut numbers: BTreeMap<Candidate, u32> = slots.candidates.iter().cloned().zip(0..).collect();
    let usable = input.usable.iter();
    let usable: Vec<_> = usable
        .map(|(c, w)| (slots.intern(&mut numbers, c), *w))
        .collect();
    let dead: Vec<bool> = slots.candidates.iter().map(|c| (input.dead)(c)).collect();
    let mut run = Assignment {
        usable: usable
            .into_iter()
            .filter(|(c, _)| !dead[*c as usize])
            .collect(),
        now: input.now,
        outcome: Outcome::default(),
        slots,
        newcomers: Vec::new(),
    };
    run.bury(&dead);
    let before = run.slots.slots.clone();
    run.settle();
    run.inherit();
    run.open(waiting);
    run.stand_in();
    run.shrink();
    run.reshape(input.fields, &before);
    run.outcome
}

struct Assignment<'a> {
    slots: &'a mut Slots,
    /// Living candidates that may get new flows, in the order of their names.
    usable: Vec<(u32, Weight)>,
    /// Those of them without a slot, in the same order.
    newcomers: Vec<(u32, Weight)>,
    now: Timestamp,
    outcome: Outcome,
}

impl Assignment<'_> {
    /// Slots of the current shape; closed ones follow.
    fn open_count(&self) -> usize {
        self.slots.weights.len()
    }

    fn wake_at(&mut self, at: Timestamp) {
        let deadline = self
            .outcome
            .deadline
            .map_or(at, |deadline| deadline.min(at));
        self.outcome.deadline = Some(deadline);
    }

    fn bury(&mut self, dead: &[bool]) {
        let is_dead = |candidate: u32| dead[candidate as usize];
        let open = self.open_count();
        for (at, slot) in self.slots.slots.iter_mut().enumerate() {
            slot.older.retain(|candidate| !is_dead(*candidate));
            if slot.current.is_some_and(is_dead) {
                slot.current = None;
                if at < open && slot.vacant.is_none() {
                    slot.vacant = Some(Vacant {
                        since: self.now,
                        home: None,
                    });
                }
            }
            if let Some(vacant) = &mut slot.vacant {
                vacant.home = vacant.home.filter(|home| !is_dead(*home));
            }
        }
        for previous in &mut self.slots.previous {
            previous.owners.retain(|candidate| !is_dead(*candidate));
        }
        self.slots
            .previous
            .retain(|previous| !previous.owners.is_empty());
    }

    fn settle(&mut self) {
        let open = self.open_count();
        let Slots {
            candidates,
            slots,
            weights,
            ..
        } = &mut *self.slots;
        let uid = |candidate: u32| &candidates[candidate as usize].uid;
        let mut unplaced: BTreeMap<&Arc<str>, (u32, Weight)> = self
            .usable
            .iter()
            .map(|(c, w)| (uid(*c), (*c, *w)))
            .collect();
        for (slot, weight) in slots[..open].iter_mut().zip(weights.iter_mut()) {
            if slot.vacant.is_some() {
                continue;
            }
            match slot
                .current
                .and_then(|current| unplaced.remove(uid(current)))
            {
                Some((next, asked)) => {
                    slot.replace(Some(next));
                    *weight = asked;
                }
                None => {
                    slot.vacant = Some(Vacant {
                        since: self.now,
                        home: slot.current,
                    });
                }
            }
        }
        for (slot, weight) in slots[..open].iter_mut().zip(weights.iter_mut()) {
            let home = slot.vacant.and_then(|vacant| vacant.home);
            if let Some((next, asked)) = home.and_then(|home| unplaced.remove(uid(home))) {
                slot.replace(Some(next));
                slot.vacant = None;
                *weight = asked;
            }
        }
        let newcomers = self
            .usable
            .iter()
            .filter(|(c, _)| unplaced.contains_key(uid(*c)));
        self.newcomers = newcomers.copied().collect();
    }

    /// Freed slots go first to newcomers of the same weight, so that no row moves; among slots those first that nobody
    /// may come back to.
    fn inherit(&mut self) {
        let open = self.open_count();
        let Slots { slots, weights, .. } = &mut *self.slots;
        let mut freed: Vec<_> = (0..open)
            .filter_map(|at| Some((slots[at].vacant?.home.is_some(), at)))
            .collect();
        freed.sort_unstable();
        for same_weight in [true, false] {
            self.newcomers.retain(|(next, asked)| {
                let fits = |(_, at): &(bool, usize)| !same_weight || weights[*at] == *asked;
                let Some(found) = freed.iter().position(fits) else {
                    return true;
                };
                let (_, at) = freed.remove(found);
                slots[at].replace(Some(*next));
                slots[at].vacant = None;
                weights[at] = *asked;
                false
            });
        }
    }

    fn open(&mut self, waiting: &mut Waiting) {
        let uid = |candidate: u32| self.slots.candidates[candidate as usize].uid.clone();
        let since = |c: u32| waiting.0.get(&uid(c)).copied().unwrap_or(self.now);
        let still = self
            .newcomers
            .iter()
            .map(|(c, _)| (uid(*c), since(*c)))
            .collect();
        waiting.0 = still;
        let Some(first) = waiting.0.values().min() else {
            return;
        };
        let due = first.saturating_add(SURGE_WAIT).unwrap_or(Timestamp::MAX);
        if self.open_count() > 0 && self.now < due {
            self.wake_at(due);
            return;
        }
        waiting.0.clear();
        for (next, weight) in std::mem::take(&mut self.newcomers) {
            let at = self.open_count();
            if at == SLOTS_MAX {
                self.outcome.refused += 1;
                continue;
            }
            if at == self.slots.slots.len() {
                self.slots.slots.push(Slot::default());
            }
            self.slots.slots[at].replace(Some(next));
            self.slots.weights.push(weight);
        }
    }

    fn stand_in(&mut self) {
        let open = self.open_count();
        let Slots {
            candidates, slots, ..
        } = &mut *self.slots;
        let mut usable = vec![false; candidates.len()];
        for (candidate, _) in &self.usable {
            usable[*candidate as usize] = true;
        }
        for (at, slot) in slots[..open].iter_mut().enumerate() {
            let serves = |c: u32| usable[c as usize];
            if slot.vacant.is_none() || slot.current.is_some_and(serves) {
                continue;
            }
            let score = |c: u32| rendezvous(at, &candidates[c as usize].uid);
            let choice = self
                .usable
                .iter()
                .map(|(c, _)| *c)
                .max_by_key(|c| score(*c));
            slot.replace(choice);
        }
    }

    /// Closes slots that have been vacant for long, unless others come due soon, when all are closed together. The last
    /// slots' occupants move into the holes. With nobody usable nothing is closed: there is nobody to move.
    fn shrink(&mut self) {
        let closing = self.due();
        let open = self.open_count() - closing.len();
        if closing.is_empty() || open == 0 {
            return;
        }
        let Slots { slots, weights, .. } = &mut *self.slots;
        let mut holes = closing.iter().copied().filter(|at| *at < open);
        for last in (open..weights.len()).rev() {
            let vacant = slots[last].vacant.take();
            if closing.contains(&last) {
                continue;
            }
            // As many slots behind the cut stay open as there are holes before it. One may be vacant, but not for long
            // enough: then it moves with its stand-in and its home.
            if let Some(hole) = holes.next() {
                let mover = slots[last].current;
                slots[hole].replace(mover);
                slots[hole].vacant = vacant;
                weights[hole] = weights[last];
            }
        }
        weights.truncate(open);
    }

    /// Slots to close now, in their order.
    fn due(&mut self) -> Vec<usize> {
        if self.usable.is_empty() {
            return Vec::new();
        }
        let vacant = |at: usize| {
            let since = self.slots.slots[at].vacant?.since;
            Some((
                at,
                since.saturating_add(SHRINK_AFTER).unwrap_or(Timestamp::MAX),
            ))
        };
        let vacant: Vec<_> = (0..self.open_count()).filter_map(vacant).collect();
        let (due, later): (Vec<_>, Vec<_>) =
            vacant.into_iter().partition(|(_, at)| *at <= self.now);
        if let Some(next) = later.iter().map(|(_, at)| *at).min() {
            self.wake_at(next);
            let first = due.iter().map(|(_, at)| *at).min();
            if let Some(first) = first.and_then(|at| at.saturating_add(SHRINK_TOGETHER).ok())
                && next <= first
                && self.now < first
            {
                return Vec::new();
            }
        }
        due.into_iter().map(|(slot, _)| slot).collect()
    }

    fn reshape(&mut self, fields: HashFields, before: &[Slot]) {
        let Slots {
            shape: current,
            weights,
            previous,
            slots,
            ..
        } = &mut *self.slots;
        let count = weights.len() as u16;
        let size = match current.slots() {
            0 => TableSize::choose(count),
            _ => current.size().keep_or_choose(count),
        };
        let next = shape(weights, size, fields);
        if next != *current {
            let old = std::mem::replace(current, next);
            let mut owners: Vec<u32> = before[..usize::from(old.slots())]
                .iter()
                .flat_map(Slot::candidates)
                .collect();
            owners.sort_unstable();
            owners.dedup();
            // A shape that returns is named once.
            previous.retain(|previous| previous.shape != *current && previous.shape != old);
            if !owners.is_empty() {
                previous.insert(0, Previous { shape: old, owners });
                previous.truncate(PREVIOUS_MAX);
            }
        }
        let named = previous
            .iter()
            .map(|p| usize::from(p.shape.slots()))
            .max()
            .unwrap_or(0);
        slots.truncate(named.max(weights.len()));
        for slot in &mut slots[weights.len()..] {
            slot.vacant = None;
        }
    }
}

/// How much a candidate is for a slot: the same on every node.
fn rendezvous(slot: usize, uid: &str) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(0, 1);
    hasher.write(&(slot as u64).to_le_bytes());
    hasher.write(uid.as_bytes());
    hasher.finish()
}
#[cfg(test)]
mod tests;
