//! `externalTrafficPolicy: Local`: what one node makes of a group's slots. It serves with its own pods alone, so it has a shape
//! of its own, and each change of its pods is another shape.
//!
//! No previous shape is remembered: who may own a flow lives here, and is an older occupant of every slot as far as there is
//! room. TCP does not depend on that, since a node looks up its own flows by client and VIP first (`own::walk`).

use std::collections::BTreeSet;

use lb_ebpf::abi::OLDER_MAX;

use super::shape::{TableSize, Weight};
use super::slot::{Slot, Slots, shape};

/// The slots of one node: its serving pods in the order of the slots that they have, and those that may still own flows.
pub(super) fn of_node(slots: &Slots, node: &str) -> Slots {
    let serving = serving(slots, node);
    let taken: BTreeSet<u32> = serving.iter().map(|(candidate, _)| *candidate).collect();
    let is_here = |candidate: &u32| *slots.candidates[*candidate as usize].node == *node;
    let lingering = (0..slots.candidates.len() as u32)
        .filter(|candidate| is_here(candidate) && !taken.contains(candidate));
    // Numbers of this node's own: serving ones first.
    let everybody: Vec<u32> = serving
        .iter()
        .map(|(candidate, _)| *candidate)
        .chain(lingering)
        .collect();
    let mut weights: Vec<Weight> = serving.iter().map(|(_, weight)| *weight).collect();
    let count = weights.len() as u32;
    let lingering = count..everybody.len() as u32;
    let mut own: Vec<Slot> = (0..count)
        .map(|current| {
            let others = (current + 1..count).chain(0..current);
            Slot {
                current: Some(current),
                older: lingering.clone().chain(others).take(OLDER_MAX).collect(),
                vacant: None,
            }
        })
        .collect();
    if own.is_empty() && !lingering.is_empty() {
        // Nobody takes new flows, but flows live on.
        weights.push(Weight::ONE);
        own.push(Slot {
            current: None,
            older: lingering.take(OLDER_MAX).collect(),
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
        assert_eq!(shown(&a), ["pod-2: pod-0", "pod-0: pod-2"]);
        assert_eq!(
            (a.shape.slots(), a.shape.fields(), a.previous.len()),
            (2, HashFields::Addresses, 0)
        );
        assert_eq!(shown(&of_node(&all, "b")), ["pod-1: pod-3"]);
        assert_eq!(shown(&of_node(&all, "c")), [""; 0]);
    }

    #[test]
    fn a_pod_that_left_keeps_its_flows_though_nobody_serves() {
        let all = slots("ab", &[(Some(1), &[0])]);
        assert_eq!(shown(&of_node(&all, "a")), ["nobody: pod-0"]);
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
