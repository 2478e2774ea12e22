//! Who gets the first packets of a slot wherever its occupant cannot: the same on every node that sees the same, without asking
//! anybody, and another for few slots when a pod comes or goes.
//!
//! Pods lie on a ring by a hash of their UID; a slot starts somewhere on it and takes the first pod that is not its occupant's.
//! Rendezvous hashing would spread a slot's load a little better and takes a hash for every slot and pod: half a second of every
//! node's time for a Service of five thousand pods.

use std::collections::BTreeSet;
use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher24;

use super::slot::{Slot, Slots};

/// The substitutes of one group's slots.
pub(super) struct Substitutes<'a> {
    slots: &'a Slots,
    suspected: &'a BTreeSet<Arc<str>>,
    /// Candidates that serve some slot on a node that is not suspected, by their places on the ring.
    ring: Vec<(u64, u32)>,
}

impl<'a> Substitutes<'a> {
    pub(super) fn new(slots: &'a Slots, suspected: &'a BTreeSet<Arc<str>>) -> Self {
        let open = usize::from(slots.shape.slots());
        let open = slots.slots.iter().take(open);
        let serving = open
            .filter(|slot| !has_left(slot))
            .filter_map(|slot| slot.current);
        let serving: BTreeSet<u32> = serving.collect();
        let ring = serving.into_iter().filter_map(|number| {
            let candidate = slots.candidates.get(number as usize)?;
            let serves = !suspected.contains(&candidate.node);
            serves.then(|| (place(candidate.uid.as_bytes()), number))
        });
        let mut ring: Vec<_> = ring.collect();
        ring.sort_unstable();
        Self {
            slots,
            suspected,
            ring,
        }
    }

    /// Whether a slot's occupant gets no first packets: it has left, or its node seems to be down.
    pub(super) fn is_out(&self, slot: &Slot) -> bool {
        let is_suspected = |number: u32| {
            let candidate = self.slots.candidates.get(number as usize);
            candidate.is_some_and(|candidate| self.suspected.contains(&candidate.node))
        };
        has_left(slot) || !self.suspected.is_empty() && slot.current.is_some_and(is_suspected)
    }

    /// The substitute of a slot; none if it has no occupant to stand in for, or nobody else serves.
    pub(super) fn of(&self, at: usize) -> Option<u32> {
        let current = self.slots.slots.get(at)?.current?;
        let uid = |number: u32| &self.slots.candidates[number as usize].uid;
        let start = place(&(at as u64).to_le_bytes());
        let from = self.ring.partition_point(|(place, _)| *place < start);
        let (before, behind) = self.ring.split_at(from);
        behind
            .iter()
            .chain(before)
            .map(|(_, number)| *number)
            .find(|number| uid(*number) != uid(current))
    }
}

/// Whether a slot names somebody who serves no more, since there was no room to remember who did: see
/// [`super::slot::WhenFull::Waits`].
fn has_left(slot: &Slot) -> bool {
    slot.vacant
        .is_some_and(|vacant| vacant.home.is_some() && vacant.home == slot.current)
}

/// A place on the ring. Unkeyed: clients have no say in UIDs and slots.
fn place(of: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(0, 2);
    hasher.write(of);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::model::assignment::{Input, Waiting, assign};
    use crate::model::candidate::Candidate;
    use crate::model::shape::{HashFields, Weight};
    use crate::model::slot::{Vacant, WhenFull};

    /// Slots of pods p0 … on nodes n0, n1, n2.
    fn slots(pods: usize) -> Slots {
        let usable: BTreeMap<_, _> = (0..pods)
            .map(|pod| {
                let candidate = Candidate {
                    uid: format!("p{pod}").into(),
                    node: format!("n{}", pod % 3).into(),
                    address: std::net::Ipv4Addr::from(pod as u32).into(),
                    ports: [80].into(),
                };
                (candidate, Weight::ONE)
            })
            .collect();
        let mut slots = Slots::none(HashFields::FiveTuple);
        let input = Input {
            usable: &usable,
            fields: HashFields::FiveTuple,
            dead: &|_| false,
            when_full: WhenFull::Waits,
            now: Timestamp::UNIX_EPOCH,
        };
        assign(&mut slots, &mut Waiting::default(), &input);
        slots
    }

    fn suspects(nodes: &[&str]) -> BTreeSet<Arc<str>> {
        nodes.iter().map(|node| Arc::from(*node)).collect()
    }

    fn all(slots: &Slots, suspected: &BTreeSet<Arc<str>>) -> Vec<Option<Arc<str>>> {
        let substitutes = Substitutes::new(slots, suspected);
        let uid = |number: u32| slots.candidates[number as usize].uid.clone();
        (0..slots.slots.len())
            .map(|at| substitutes.of(at).map(uid))
            .collect()
    }

    #[test]
    fn everybody_has_another_for_a_substitute_and_many_have_different_ones() {
        let slots = slots(30);
        let found = all(&slots, &suspects(&[]));
        for (slot, found) in slots.slots.iter().zip(&found) {
            let own = &slots.candidates[slot.current.unwrap() as usize].uid;
            assert_ne!(found.as_ref().unwrap(), own);
        }
        let different: BTreeSet<_> = found.iter().collect();
        assert!(different.len() > 10, "{different:?}");
    }

    #[test]
    fn nobody_stands_in_for_the_only_pod() {
        assert_eq!(all(&slots(1), &suspects(&[])), [None]);
    }

    #[test]
    fn who_has_left_stands_in_for_nobody_and_gets_no_first_packets() {
        let mut slots = slots(3);
        let none = suspects(&[]);
        assert!(!Substitutes::new(&slots, &none).is_out(&slots.slots[1]));
        let left = slots.slots[1].current;
        slots.slots[1].vacant = Some(Vacant {
            since: Timestamp::UNIX_EPOCH,
            home: left,
        });
        let substitutes = Substitutes::new(&slots, &none);
        assert!(substitutes.is_out(&slots.slots[1]));
        for at in 0..3 {
            assert!(
                substitutes
                    .of(at)
                    .is_some_and(|number| Some(number) != left)
            );
        }
    }

    #[test]
    fn only_slots_whose_substitute_is_suspected_get_another_one() {
        let slots = slots(30);
        let (before, after) = (all(&slots, &suspects(&[])), all(&slots, &suspects(&["n1"])));
        let node = |uid: &Arc<str>| {
            let found = slots.candidates.iter().find(|one| one.uid == *uid).unwrap();
            found.node.clone()
        };
        for (before, after) in before.iter().zip(&after) {
            let (before, after) = (before.as_ref().unwrap(), after.as_ref().unwrap());
            assert_ne!(&*node(after), "n1");
            if &*node(before) != "n1" {
                assert_eq!(before, after);
            }
        }
        assert_eq!(all(&slots, &suspects(&["n0", "n1", "n2"])), vec![None; 30]);
    }
}
