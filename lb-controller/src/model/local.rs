//! `externalTrafficPolicy: Local`: what one node makes of a group's slots. It serves with its own pods alone, so it has a shape
//! of its own, and each change of its pods is another shape.
//!
//! No previous shape is remembered: who may own a flow is an older occupant of every slot as far as there is room, pods of
//! this node and one of each of the next other nodes with pods, so that flows live on when packets enter at another node than
//! before. A node looks up its own TCP flows by client and VIP first (`own::walk`), so any pod of it will do. Datagrams are
//! never passed on to other nodes, since nobody can tell a first one.

use std::collections::{BTreeMap, BTreeSet};

use lb_ebpf::abi::OLDER_MAX;

use super::shape::{TableSize, Weight};
use super::slot::{Slot, Slots, shape};

/// Other nodes that every slot names. Those whom they name are reached through them.
const OTHERS_MAX: usize = 2;

/// The slots of one node: its serving pods in the order of the slots that they have, and those that may still own flows.
/// None if no pod of it may own any: then nothing that enters here is for it.
pub(super) fn of_node(slots: &Slots, node: &str) -> Slots {
    let serving = serving(slots, node);
    let taken: BTreeSet<u32> = serving.iter().map(|(candidate, _)| *candidate).collect();
    let is_here = |candidate: &u32| *slots.candidates[*candidate as usize].node == *node;
    let lingering = (0..slots.candidates.len() as u32)
        .filter(|candidate| is_here(candidate) && !taken.contains(candidate));
    // Numbers of this node's own: serving ones first, those of other nodes last.
    let mut everybody: Vec<u32> = serving
        .iter()
        .map(|(candidate, _)| *candidate)
        .chain(lingering)
        .collect();
    let mut weights: Vec<Weight> = serving.iter().map(|(_, weight)| *weight).collect();
    let (count, here) = (weights.len() as u32, everybody.len() as u32);
    if here > 0 {
        everybody.extend(of_other_nodes(slots, node));
    }
    let (lingering, others) = (count..here, here..everybody.len() as u32);
    let older = |of_here: &mut dyn Iterator<Item = u32>| -> Vec<u32> {
        let of_here = of_here.take(OLDER_MAX - others.len());
        of_here.chain(others.clone()).collect()
    };
    let mut own: Vec<Slot> = (0..count)
        .map(|current| {
            let serving = (current + 1..count).chain(0..current);
            Slot {
                current: Some(current),
                older: older(&mut lingering.clone().chain(serving)),
                vacant: None,
            }
        })
        .collect();
    if own.is_empty() && !lingering.is_empty() {
        // Nobody takes new flows, but flows live on.
        weights.push(Weight::ONE);
        own.push(Slot {
            current: None,
            older: older(&mut lingering.clone()),
            vacant: None,
        });
    }
    let size = TableSize::choose(weights.len() as u16);
    Slots {
        candidates: everybody
            .iter()
            .map(|candidate| slots.candidates[*candidate as usize].clone())
            .collect(),
        shape: shape(&weights, size, slots.shape.fields()),
        weights,
        previous: Vec::new(),
        slots: own,
    }
}

/// A pod of each of the next other nodes that have any, in a ring of their names, which leads everywhere from anywhere.
/// One that serves rather than one that is leaving.
fn of_other_nodes(slots: &Slots, node: &str) -> Vec<u32> {
    let serving = slots.slots.iter().filter_map(|slot| slot.current);
    let all = 0..slots.candidates.len() as u32;
    let mut nodes: BTreeMap<&str, u32> = BTreeMap::new();
    for candidate in serving.chain(all) {
        let pod = &slots.candidates[candidate as usize];
        if *pod.node != *node && !pod.is_podless() {
            nodes.entry(&pod.node).or_insert(candidate);
        }
    }
    let after = nodes.iter().filter(|(name, _)| **name > node);
    let before = nodes.iter().filter(|(name, _)| **name < node);
    let ring = after.chain(before).map(|(_, candidate)| *candidate);
    ring.take(OTHERS_MAX).collect()
}

/// This node's occupants of open slots, each once: those of slots of their own first, then those that stand in.
fn serving(slots: &Slots, node: &str) -> Vec<(u32, Weight)> {
    let open = || slots.slots.iter().zip(&slots.weights);
    let own = open().filter(|(slot, _)| slot.vacant.is_none());
    let stand_ins = open().filter(|(slot, _)| slot.vacant.is_some());
    let mut seen = BTreeSet::new();
    own.chain(stand_ins)
        .filter_map(|(slot, weight)| Some((slot.current?, *weight)))
        .filter(|(candidate, _)| *slots.candidates[*candidate as usize].node == *node)
        .filter(|(candidate, _)| seen.insert(*candidate))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::candidate::Candidate;
    use crate::model::shape::HashFields;

    /// Candidates `0 … n`, on the nodes that the letters name, and slots with current and older occupants.
    fn slots(nodes: &str, occupants: &[(Option<u32>, &[u32])]) -> Slots {
        let weights = vec![Weight::ONE; occupants.len()];
        let candidate = |(number, node): (usize, char)| Candidate {
            uid: format!("pod-{number}").into(),
            node: node.to_string().into(),
            address: [10, 0, 0, number as u8].into(),
            ports: [8080].into(),
        };
        Slots {
            candidates: nodes.chars().enumerate().map(candidate).collect(),
            shape: shape(
                &weights,
                TableSize::choose(occupants.len() as u16),
                HashFields::Addresses,
            ),
            weights,
            previous: Vec::new(),
            slots: occupants
                .iter()
                .map(|(current, older)| Slot {
                    current: *current,
                    older: older.to_vec(),
                    vacant: None,
                })
                .collect(),
        }
    }

    /// Current and older pods of each slot of a node.
    fn shown(slots: &Slots) -> Vec<String> {
        let name = |candidate: &u32| slots.candidates[*candidate as usize].uid.to_string();
        let slot = |slot: &Slot| {
            let current = slot.current.as_ref().map_or("nobody".into(), name);
            let older: Vec<_> = slot.older.iter().map(name).collect();
            format!("{current}: {}", older.join(" "))
        };
        slots.slots.iter().map(slot).collect()
    }

    #[test]
    fn a_node_serves_with_its_own_pods_in_slot_order() {
        let all = slots("abab", &[(Some(2), &[]), (Some(1), &[]), (Some(0), &[3])]);
        let a = of_node(&all, "a");
        assert_eq!(shown(&a), ["pod-2: pod-0 pod-1", "pod-0: pod-2 pod-1"]);
        assert_eq!(
            (a.shape.slots(), a.shape.fields(), a.previous.len()),
            (2, HashFields::Addresses, 0)
        );
        assert_eq!(shown(&of_node(&all, "b")), ["pod-1: pod-3 pod-2"]);
        assert_eq!(shown(&of_node(&all, "c")), [""; 0]);
    }

    #[test]
    fn a_pod_that_left_keeps_its_flows_though_nobody_serves() {
        let all = slots("ab", &[(Some(1), &[0])]);
        assert_eq!(shown(&of_node(&all, "a")), ["nobody: pod-0 pod-1"]);
    }

    #[test]
    fn flows_that_entered_elsewhere_are_found_over_a_ring_of_nodes() {
        let all = slots("abcd", &[0, 1, 2, 3].map(|pod| (Some(pod), [].as_slice())));
        let of = |node| shown(&of_node(&all, node)).concat();
        assert_eq!(of("a"), "pod-0: pod-1 pod-2");
        assert_eq!(of("b"), "pod-1: pod-2 pod-3");
        assert_eq!(of("d"), "pod-3: pod-0 pod-1");
    }

    #[test]
    fn another_node_is_asked_by_a_pod_that_serves_if_it_has_one() {
        let all = slots("abb", &[(Some(0), &[1]), (Some(2), &[])]);
        assert_eq!(shown(&of_node(&all, "a")), ["pod-0: pod-2"]);
    }

    #[test]
    fn pods_of_the_own_node_leave_room_for_other_nodes() {
        let all = slots(
            "aaaabc",
            &[0, 1, 2, 3, 4, 5].map(|pod| (Some(pod), [].as_slice())),
        );
        assert_eq!(
            shown(&of_node(&all, "a")),
            [
                "pod-0: pod-1 pod-4 pod-5",
                "pod-1: pod-2 pod-4 pod-5",
                "pod-2: pod-3 pod-4 pod-5",
                "pod-3: pod-0 pod-4 pod-5"
            ]
        );
    }

    #[test]
    fn a_stand_in_serves_once() {
        let mut all = slots("aa", &[(Some(0), &[]), (Some(0), &[]), (Some(1), &[])]);
        all.slots[0].vacant = Some(crate::model::slot::Vacant {
            since: jiff::Timestamp::UNIX_EPOCH,
            home: None,
        });
        assert_eq!(shown(&of_node(&all, "a")), ["pod-0: pod-1", "pod-1: pod-0"]);
    }
}
