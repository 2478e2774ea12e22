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
//! Older occupants and previous tables leave when they are dead or retired (see [`super::retire`]), and for nothing else, unless
//! nobody can be asked to hand flows off ([`WhenFull::OldestLeaves`]). A
//! change that finds no place for what it would make history waits: a slot keeps its occupant, though agents may send its new
//! flows elsewhere, a pod goes to another slot, and another shape is not made. So that a flow's candidates can all be asked,
//! slots remember the fewer older occupants the more previous tables there are ([`room`]).
//!
//! The same input gives the same output again, so that nothing is written twice. A candidate is a number here, an index
//! into the group's dictionary.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use lb_ebpf::abi::{PREVIOUS_MAX, SLOTS_MAX};
use siphasher::sip::SipHasher24;

use super::candidate::Candidate;
use super::shape::{HashFields, TableSize, Weight};
use super::slot::{HistoryFull, Previous, Room, Slot, Slots, Vacant, WhenFull, shape};

/// How long a surge pod waits for a slot to become free before a new one is opened.
pub const SURGE_WAIT: SignedDuration = SignedDuration::from_secs(2);
/// How long a slot goes without an occupant before it is closed.
pub const SHRINK_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// Vacancies that come due within this time are closed together, since each other table needs one of few places.
pub const SHRINK_TOGETHER: SignedDuration = SignedDuration::from_secs(10);

/// Shapes made in one assignment. One is usual; with it, slots may have become free that somebody waits for.
const SHAPES_MAX: usize = PREVIOUS_MAX + 1;

/// Who waits for a slot since when: per process, not stored, since a restart only makes somebody wait again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Waiting(BTreeMap<Arc<str>, Timestamp>);

/// What an assignment says beside the slots.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// When the same input may give another result.
    pub deadline: Option<Timestamp>,
    /// Candidates that found no slot, since there are [`SLOTS_MAX`].
    pub refused: usize,
    /// Candidates that keep slots which others should have, since the history of these is full: a retirement is wanted.
    pub history_full: BTreeSet<u32>,
    /// Another shape is wanted, and there is no place for the present one among the previous ones, or too much history for
    /// one table more: a retirement is wanted.
    pub shape_waits: bool,
}

/// What slots are assigned from.
pub struct Input<'a> {
    /// Candidates that may get new flows, one per UID.
    pub usable: &'a BTreeMap<Candidate, Weight>,
    /// What the flow hash covers.
    pub fields: HashFields,
    /// Whether a candidate is dead.
    pub dead: &'a dyn Fn(&Candidate) -> bool,
    /// What becomes of a change that has no room for its history.
    pub when_full: WhenFull,
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
    let usable: Vec<_> = usable
        .into_iter()
        .filter(|(c, _)| !dead[*c as usize])
        .collect();
    bury(slots, &dead, input.now);
    let mut outcome = Outcome::default();
    for _ in 0..SHAPES_MAX {
        let shape = slots.shape.clone();
        outcome = attempt(slots, waiting, &usable, input);
        if slots.shape == shape {
            break;
        }
    }
    outcome
}

/// Assigns once, with another shape if there is place for that.
fn attempt(
    slots: &mut Slots,
    waiting: &mut Waiting,
    usable: &[(u32, Weight)],
    input: &Input<'_>,
) -> Outcome {
    let (mut free, mut free_waiting) = (slots.clone(), waiting.clone());
    let outcome = run(&mut free, &mut free_waiting, usable, input, Reshape::Free);
    let is_kept = free.shape == slots.shape;
    let room = Room::beside(free.previous.len().min(PREVIOUS_MAX), input.when_full);
    let fits = free.previous.len() <= PREVIOUS_MAX
        && free.slots.iter().all(|slot| slot.older.len() <= room.most);
    if is_kept || fits {
        (*slots, *waiting) = (free, free_waiting);
        return outcome;
    }
    run(slots, waiting, usable, input, Reshape::Waits)
}

/// Whether another shape may be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reshape {
    /// It may; the caller looks whether it has place.
    Free,
    /// It has none.
    Waits,
}

fn run(
    slots: &mut Slots,
    waiting: &mut Waiting,
    usable: &[(u32, Weight)],
    input: &Input<'_>,
    reshape: Reshape,
) -> Outcome {
    let before = slots.slots.clone();
    let mut run = Assignment {
        room: Room::beside(slots.previous.len().min(PREVIOUS_MAX), input.when_full),
        reshape,
        usable,
        now: input.now,
        outcome: Outcome {
            shape_waits: reshape == Reshape::Waits,
            ..Outcome::default()
        },
        full: BTreeSet::new(),
        slots,
        newcomers: Vec::new(),
    };
    run.settle();
    run.inherit();
    run.open(waiting);
    run.stand_in();
    if reshape == Reshape::Free {
        run.shrink();
        run.reshape(input.fields, &before);
        match input.when_full {
            WhenFull::Waits => {}
            WhenFull::OldestLeaves => run.slots.previous.truncate(PREVIOUS_MAX),
        }
    }
    run.slots.close_unnamed();
    for slot in &mut run.slots.slots[run.slots.weights.len()..] {
        slot.vacant = None;
    }
    let Assignment {
        full,
        slots,
        mut outcome,
        ..
    } = run;
    let kept = full.iter().filter_map(|at| slots.slots.get(*at)?.current);
    outcome.history_full = kept.collect();
    outcome
}

/// The dead leave everything.
fn bury(slots: &mut Slots, dead: &[bool], now: Timestamp) {
    let is_dead = |candidate: u32| dead[candidate as usize];
    let open = slots.weights.len();
    for (at, slot) in slots.slots.iter_mut().enumerate() {
        slot.older.retain(|candidate| !is_dead(*candidate));
        if slot.current.is_some_and(is_dead) {
            slot.current = None;
            if at < open && slot.vacant.is_none() {
                slot.vacant = Some(Vacant {
                    since: now,
                    home: None,
                });
            }
        }
        if let Some(vacant) = &mut slot.vacant {
            vacant.home = vacant.home.filter(|home| !is_dead(*home));
        }
    }
    for previous in &mut slots.previous {
        previous.owners.retain(|candidate| !is_dead(*candidate));
    }
    slots
        .previous
        .retain(|previous| !previous.owners.is_empty());
}

struct Assignment<'a> {
    slots: &'a mut Slots,
    /// Older occupants that a slot may have.
    room: Room,
    reshape: Reshape,
    /// Slots that others should have, but their history is full.
    full: BTreeSet<usize>,
    /// Living candidates that may get new flows, in the order of their names.
    usable: &'a [(u32, Weight)],
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

    /// Gives a slot to a candidate, or notes who keeps it since its history is full.
    fn replace(&mut self, at: usize, next: Option<u32>) -> Result<(), HistoryFull> {
        let slot = &mut self.slots.slots[at];
        let replaced = slot.replace(next, self.room);
        if replaced.is_err() {
            self.full.insert(at);
        }
        replaced
    }

    /// A slot's weight becomes that of its occupant, unless that must wait.
    fn weigh(&mut self, at: usize, asked: Weight) {
        if self.reshape == Reshape::Free {
            self.slots.weights[at] = asked;
        }
    }

    fn settle(&mut self) {
        let uids = self.slots.candidates.iter();
        let uids: Vec<Arc<str>> = uids.map(|candidate| candidate.uid.clone()).collect();
        let uid = |candidate: u32| &uids[candidate as usize];
        let usable = self.usable.iter();
        let mut unplaced: BTreeMap<&Arc<str>, (u32, Weight)> =
            usable.map(|(c, w)| (uid(*c), (*c, *w))).collect();
        for at in 0..self.open_count() {
            let slot = &mut self.slots.slots[at];
            if slot.vacant.is_some() {
                continue;
            }
            let current = slot.current;
            match current.and_then(|current| unplaced.remove(uid(current))) {
                Some((next, asked)) => {
                    if self.replace(at, Some(next)).is_ok() {
                        self.weigh(at, asked);
                    }
                }
                None => {
                    slot.vacant = Some(Vacant {
                        since: self.now,
                        home: current,
                    });
                }
            }
        }
        for at in 0..self.open_count() {
            let home = self.slots.slots[at].vacant.and_then(|vacant| vacant.home);
            let Some(&(next, asked)) = home.and_then(|home| unplaced.get(uid(home))) else {
                continue;
            };
            // Without room it looks for another slot, like a newcomer.
            let slot = &mut self.slots.slots[at];
            if slot.replace(Some(next), self.room).is_ok() {
                slot.vacant = None;
                unplaced.remove(uid(next));
                self.weigh(at, asked);
            }
        }
        let is_new = |(c, _): &&(u32, Weight)| unplaced.contains_key(uid(*c));
        self.newcomers = self.usable.iter().filter(is_new).copied().collect();
    }

    /// Freed slots go first to newcomers of the same weight, so that no row moves; among slots those first that nobody
    /// may come back to. Those with a full history are left out.
    fn inherit(&mut self) {
        let home = |at: usize| Some((self.slots.slots[at].vacant?.home.is_some(), at));
        let mut freed: Vec<_> = (0..self.open_count()).filter_map(home).collect();
        freed.sort_unstable();
        for same_weight in [true, false] {
            for (next, asked) in std::mem::take(&mut self.newcomers) {
                let fits = |(_, at): &(bool, usize)| {
                    let mut slot = self.slots.slots[*at].clone();
                    (!same_weight || self.slots.weights[*at] == asked)
                        && slot.replace(Some(next), self.room).is_ok()
                };
                let found = freed.iter().position(fits).map(|found| freed.remove(found));
                if let Some((_, at)) = found
                    && self.replace(at, Some(next)).is_ok()
                {
                    self.slots.slots[at].vacant = None;
                    self.weigh(at, asked);
                } else {
                    self.newcomers.push((next, asked));
                }
            }
        }
        if !self.newcomers.is_empty() {
            self.full.extend(freed.iter().map(|(_, at)| *at));
        }
    }

    fn open(&mut self, waiting: &mut Waiting) {
        if self.open_count() == SLOTS_MAX {
            waiting.0.clear();
            self.outcome.refused = self.newcomers.len();
            return;
        }
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
        if self.reshape == Reshape::Waits {
            return;
        }
        for (next, weight) in std::mem::take(&mut self.newcomers) {
            let at = self.open_count();
            if at == SLOTS_MAX {
                self.outcome.refused += 1;
            } else {
                if at == self.slots.slots.len() {
                    self.slots.slots.push(Slot::default());
                }
                // A closed slot has a history of its own.
                if self.replace(at, Some(next)).is_err() {
                    return;
                }
                self.slots.weights.push(weight);
            }
            waiting.0.remove(&self.slots.candidates[next as usize].uid);
        }
    }

    fn stand_in(&mut self) {
        let mut usable = vec![false; self.slots.candidates.len()];
        for (candidate, _) in self.usable {
            usable[*candidate as usize] = true;
        }
        for at in 0..self.open_count() {
            let slot = &self.slots.slots[at];
            let serves = |c: u32| usable[c as usize];
            if slot.vacant.is_none() || slot.current.is_some_and(serves) {
                continue;
            }
            let score = |c: u32| rendezvous(at, &self.slots.candidates[c as usize].uid);
            let usable = self.usable.iter().map(|(c, _)| *c);
            let choice = usable.max_by_key(|c| score(*c));
            // Without room the slot keeps naming who left, and agents choose for themselves.
            let _kept = self.replace(at, choice);
        }
    }

    /// Closes slots that have been vacant for long, unless others come due soon, when all are closed together. The last
    /// slots' occupants move into the holes; if the history of one is full, all wait. With nobody usable nothing is closed:
    /// there is nobody to move.
    fn shrink(&mut self) {
        let closing = self.due();
        let open = self.open_count() - closing.len();
        if closing.is_empty() || open == 0 {
            return;
        }
        let (slots, weights) = (self.slots.slots.clone(), self.slots.weights.clone());
        let mut holes = closing.iter().copied().filter(|at| *at < open);
        for last in (open..weights.len()).rev() {
            let vacant = self.slots.slots[last].vacant.take();
            if closing.contains(&last) {
                continue;
            }
            // As many slots behind the cut stay open as there are holes before it. One may be vacant, but not for long
            // enough: then it moves with its stand-in and its home.
            if let Some(hole) = holes.next() {
                let mover = self.slots.slots[last].current;
                if self.replace(hole, mover).is_err() {
                    (self.slots.slots, self.slots.weights) = (slots, weights);
                    return;
                }
                self.slots.slots[hole].vacant = vacant;
                self.slots.weights[hole] = weights[last];
            }
        }
        self.slots.weights.truncate(open);
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
            }
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
