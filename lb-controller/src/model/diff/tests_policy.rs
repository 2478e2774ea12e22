//! Source ranges and policy Local on maps in memory, after every prefix of a plan.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::*;
use crate::api::service_table::TrafficPolicy;
use crate::model::plan::{port_of, source_range};

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The table of one pod, with ranges.
fn ranged(life: &mut Life, second: i64, ranges: &[&str]) -> ServiceTableSpec {
    let mut spec = pods(life, 0b1, second);
    spec.source_ranges = nets(ranges);
    spec
}

/// Whom the entries of a port let in: none if everybody, or if there is no entry.
fn let_in(maps: &Contents, port: u16) -> Option<BTreeSet<abi::SourceRange>> {
    let mut entries = maps.services.iter();
    let (_, entry) = entries.find(|(key, _)| port_of(**key).0 == port)?;
    let asks = entry.flags & abi::service_flag::SOURCE_RANGES != 0;
    let ranges = maps.source_ranges.iter();
    asks.then(|| {
        ranges
            .filter(|range| range.service() == entry.id)
            .copied()
            .collect()
    })
}

/// What a list of ranges is in the map for the id of a port.
fn wanted(maps: &Contents, port: u16, ranges: &[&str]) -> BTreeSet<abi::SourceRange> {
    let mut entries = maps.services.iter();
    let (_, entry) = entries.find(|(key, _)| port_of(**key).0 == port).unwrap();
    let ranges = nets(ranges).into_iter();
    ranges.map(|range| source_range(entry.id, range)).collect()
}

const V4: &str = "203.0.113.0/24";
const OTHER: &str = "192.0.2.0/25";
const V6: &str = "2001:db8::/32";

#[test]
fn ranges_are_there_before_anybody_asks_for_them() {
    let mut node = Node::new(CAPACITY);
    let mut life = Life::new(1, &[80, 443]);
    for op in node.want(&ranged(&mut life, 0, &[V4, V6])) {
        node.carry_out(&op);
        for port in [80, 443] {
            if let Some(found) = let_in(&node.maps, port) {
                assert_eq!(found, wanted(&node.maps, port, &[V4, V6]));
            } else {
                let there = node.maps.services.keys().any(|key| port_of(*key).0 == port);
                assert!(!there, "never open to everybody");
            }
        }
    }
    assert_eq!(node.maps.source_ranges.len(), 4);
}

#[test]
fn who_stays_let_in_is_let_in_throughout_a_change() {
    let mut node = Node::new(CAPACITY);
    let mut life = Life::new(1, &[80]);
    let ops = node.want(&ranged(&mut life, 0, &[V4, V6]));
    node.all(&ops);
    for op in node.want(&ranged(&mut life, 1, &[V4, OTHER])) {
        node.carry_out(&op);
        let found = let_in(&node.maps, 80).unwrap();
        assert!(found.is_superset(&wanted(&node.maps, 80, &[V4])));
    }
    assert_eq!(
        let_in(&node.maps, 80),
        Some(wanted(&node.maps, 80, &[V4, OTHER]))
    );
}

#[test]
fn ranges_taken_back_open_the_service_and_leave_the_map_later() {
    let mut node = Node::new(CAPACITY);
    let mut life = Life::new(1, &[80]);
    let ops = node.want(&ranged(&mut life, 0, &[V4]));
    node.all(&ops);
    let ops = node.want(&ranged(&mut life, 1, &[]));
    node.all(&ops);
    assert_eq!(let_in(&node.maps, 80), None);
    assert_eq!(node.maps.source_ranges.len(), 1, "packets may still ask");
    node.collect();
    assert_eq!(node.maps.source_ranges.len(), 0);
    let restarted = Installed::from_contents(&node.maps, CAPACITY, view());
    assert_eq!(restarted.contents(), node.maps);
}

#[test]
fn a_service_id_is_handed_on_without_its_ranges() {
    let mut node = Node::new(CAPACITY);
    let mut old = Life::new(1, &[80]);
    let ops = node.want(&ranged(&mut old, 0, &[V4]));
    node.all(&ops);
    let ops = node.installed.plan_removal("service-1");
    node.all(&ops);
    assert_eq!(node.maps.source_ranges.len(), 1, "not collected yet");
    for op in node.want(&ranged(&mut Life::new(3, &[81]), 1, &[OTHER])) {
        node.carry_out(&op);
        if let Some(found) = let_in(&node.maps, 81) {
            assert_eq!(found, wanted(&node.maps, 81, &[OTHER]));
        }
    }
    assert_eq!(node.maps.source_ranges.len(), 1);
}

#[test]
fn under_policy_local_new_flows_go_to_pods_of_this_node_and_others_are_remembered() {
    let mut node = Node::new(CAPACITY);
    let mut life = Life::new(1, &[80]);
    // Pods 0 and 3 are here, 1 and 2 are not.
    let mut spec = pods(&mut life, 0b1111, 0);
    spec.traffic_policy = TrafficPolicy::Local;
    let ops = node.want(&spec);
    node.all(&ops);
    let local = abi::service_flag::LOCAL_POLICY;
    let entry = |maps: &Contents| {
        *maps
            .services
            .values()
            .find(|e| e.flags & local != 0)
            .unwrap()
    };
    assert_eq!(entry(&node.maps).slot_count, 2);
    let first = entry(&node.maps).slots;
    let current = |at: u32| {
        let slot = node.maps.slots[&SlotIndex(first + at)];
        node.maps.backends[&BackendId(slot.first)].identity
    };
    let here = ["service-1-pod-0", "service-1-pod-3"].map(|uid| identity(uid, 8080));
    assert_eq!([current(0), current(1)], here);
    assert_eq!(node.maps.backends.len(), 3, "one of the other node");
    let mut away = pods(&mut life, 0b0110, 1);
    away.traffic_policy = TrafficPolicy::Local;
    let ops = node.want(&away);
    node.all(&ops);
    let slot = node.maps.slots[&SlotIndex(entry(&node.maps).slots)];
    assert_eq!(slot.first, 0, "nobody here takes new flows");
    assert_ne!(slot.set & SLOT_DEVIATES, 0, "but flows find their pods");
}
