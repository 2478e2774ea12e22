//! Candidates by a table, compared with those that the packet path finds in maps that hold the same.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use lb_ebpf::abi::{Backend, ROWS_PER_ELEMENT, ServiceEntry, Set, Slot as AbiSlot, TableRef};
use lb_ebpf::candidates::{self, Candidates};
use lb_ebpf::tables::memory::Memory;
use proptest::prelude::*;

use super::*;
use crate::model::assignment::{self, Input, Waiting};
use crate::model::maglev;
use crate::model::secret::hash_key;
use crate::model::shape::{HashFields, Weight};
use crate::model::slot::{Slots, WhenFull};

const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const PORTS: [u16; 2] = [80, 443];

fn candidate(n: u8) -> Candidate {
    Candidate {
        uid: format!("pod-{n}").into(),
        node: format!("node-{}", n % 3).into(),
        address: [10, 0, 0, n].into(),
        ports: [8080, 8443].into(),
    }
}

fn pinned(candidate: &Candidate, port: u16) -> PinnedPod {
    PinnedPod {
        uid: candidate.uid.clone(),
        node: candidate.node.clone(),
        address: candidate.address,
        port,
    }
}

fn flow(client: u16, port: u16) -> FlowKey {
    let client = format!("192.0.2.7:{client}").parse().unwrap();
    FlowKey::new(6, client, (IpAddr::V4(VIP), port).into()).unwrap()
}

/// Slots after pods came and went: each step says who may serve, a bit per pod.
fn slots(steps: &[u16], fields: HashFields) -> Slots {
    let mut slots = Slots::none(fields);
    let mut waiting = Waiting::default();
    for (mask, minute) in steps.iter().zip(0..) {
        let usable = (0..12).filter(|n| mask >> n & 1 != 0);
        let usable: BTreeMap<_, _> = usable.map(|n| (candidate(n), Weight::ONE)).collect();
        for second in [0, 3] {
            let input = Input {
                usable: &usable,
                fields,
                dead: &|_| false,
                when_full: WhenFull::Waits,
                now: Timestamp::from_second(minute * 100 + second).unwrap(),
            };
            assignment::assign(&mut slots, &mut waiting, &input);
        }
    }
    slots
}

fn table(slots: &Slots) -> api::ServiceTableSpec {
    let ports = PORTS.map(|port| api::Port {
        name: format!("p{port}"),
        port,
        protocol: api::Protocol::Tcp,
    });
    let group = Group {
        family: api::Family::IPv4,
        ports: ports.into(),
        slots: slots.clone(),
    };
    table::encode("uid", 1, &[VIP.into()], &[group])
}

fn key() -> Key {
    hash_key(&[7; 32])
}

fn finder(table: &api::ServiceTableSpec) -> Finder {
    Finder::new(table, key(), maglev::rows).unwrap()
}

/// Maps that hold the slots, with ids one above the numbers of candidates, for the port at a place.
fn maps(slots: &Slots, at: usize) -> (Memory, ServiceEntry) {
    let mut memory = Memory::new();
    memory.config.hash_key = key();
    let id = |number: u32| number + 1;
    for (candidate, number) in slots.candidates.iter().zip(0..) {
        let backend = Backend {
            identity: identity(&candidate.uid, candidate.ports[at]),
            ..Backend::default()
        };
        memory.backends.insert(id(number), backend);
    }
    for (slot, number) in slots.slots.iter().zip(1..) {
        let mut set = Set::default();
        for (place, older) in set.older.iter_mut().zip(&slot.older) {
            *place = id(*older);
        }
        memory.sets.insert(number, set);
        let first = slot.current.map_or(0, id);
        memory.slots.push(AbiSlot { first, set: number });
    }
    let mut place = |shape: &Shape| {
        let rows = maglev::rows(shape);
        let at = memory.rows.len() as u32 * ROWS_PER_ELEMENT;
        for chunk in rows.chunks(ROWS_PER_ELEMENT as usize) {
            let element = std::array::from_fn(|n| chunk.get(n).copied().unwrap_or(0));
            memory.rows.push(element);
        }
        TableRef {
            rows: at,
            size: rows.len() as u32,
            fields: shape.fields().to_abi(),
        }
    };
    let mut entry = ServiceEntry {
        current: place(&slots.shape),
        slot_count: slots.slots.len() as u32,
        ..ServiceEntry::default()
    };
    for (to, previous) in entry.previous.iter_mut().zip(&slots.previous) {
        *to = place(&previous.shape);
    }
    (memory, entry)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_table_has_the_candidates_that_the_packet_path_finds(
        steps in prop::collection::vec(1..4095_u16, 1..6),
        affinity in any::<bool>(),
    ) {
        let fields = if affinity { HashFields::Addresses } else { HashFields::FiveTuple };
        let slots = slots(&steps, fields);
        let finder = finder(&table(&slots));
        for (at, port) in PORTS.into_iter().enumerate() {
            let (memory, entry) = maps(&slots, at);
            for client in 0..64 {
                let flow = flow(1000 + client, port);
                let PinKey::V4(tuple) = flow.tuple() else { panic!("both ends are IPv4") };
                let mut list = Candidates::default();
                candidates::of::<V4, _>(&memory, &entry, &tuple, &mut list);
                let mut expected: Vec<u32> = Vec::new();
                for id in list.ids.into_iter().filter(|id| *id != 0) {
                    let identity = memory.backends[&id].identity;
                    if !expected.contains(&identity) {
                        expected.push(identity);
                    }
                }
                let found = finder.candidates(&flow);
                let identities: Vec<u32> = found.iter().map(Found::identity).collect();
                prop_assert_eq!(&identities, &expected);
                prop_assert!(expected.len() <= CANDIDATES_MAX, "all of them can be asked");
                for candidate in &slots.candidates {
                    let pod = pinned(candidate, candidate.ports[at]);
                    let is_named = expected.contains(&pod.identity());
                    let is_found = finder.is_findable(&flow, &pod);
                    prop_assert!(is_named || !is_found, "packets find whoever is relied upon");
                    // Of those that only previous tables lead to, not all are relied upon.
                    let is_alone = slots.previous.is_empty();
                    prop_assert!(!is_alone || is_named == is_found);
                }
            }
        }
    }
}

#[test]
fn a_pod_with_another_port_or_address_is_somebody_else() {
    let finder = finder(&table(&slots(&[1], HashFields::FiveTuple)));
    let pod = pinned(&candidate(0), 8080);
    assert!(finder.is_findable(&flow(1, 80), &pod));
    assert!(!finder.is_findable(&flow(1, 443), &pod), "its port is 8443");
    assert!(!finder.is_findable(&flow(1, 81), &pod), "no such port");
    let udp = FlowKey::new(17, flow(1, 80).client(), flow(1, 80).vip()).unwrap();
    assert!(!finder.is_findable(&udp, &pod));
    let vip = "198.51.100.2:80".parse().unwrap();
    let elsewhere = FlowKey::new(6, flow(1, 80).client(), vip).unwrap();
    assert!(!finder.is_findable(&elsewhere, &pod));
    let moved = PinnedPod {
        address: [10, 0, 0, 99].into(),
        ..pod
    };
    assert!(!finder.is_findable(&flow(1, 80), &moved));
}

#[test]
fn under_policy_local_nobody_is_found_by_the_agreed_table() {
    let mut table = table(&slots(&[1], HashFields::FiveTuple));
    table.traffic_policy = api::TrafficPolicy::Local;
    let pod = pinned(&candidate(0), 8080);
    assert!(!finder(&table).is_findable(&flow(1, 80), &pod));
}

#[test]
fn a_row_with_more_candidates_than_can_be_asked_finds_nobody_for_sure() {
    let mut slots = slots(&[0b1111, 0b11_1111_1111], HashFields::FiveTuple);
    let [previous] = &slots.previous[..] else {
        panic!("it has grown once");
    };
    assert_eq!((previous.shape.slots(), slots.shape.slots()), (4, 10));
    // A table that an earlier manager has written: four in each slot, and both tables name other slots for some rows.
    for (at, slot) in slots.slots.iter_mut().enumerate() {
        let mut others = (0..10).filter(|other| slot.current != Some(*other));
        slot.older = others.by_ref().skip(at % 3 * 3).take(3).collect();
    }
    let finder = finder(&table(&slots));
    let flows: Vec<_> = (0..500).map(|client| flow(1000 + client, 80)).collect();
    let crowded = flows
        .iter()
        .find(|flow| finder.candidates(flow).len() > CANDIDATES_MAX)
        .unwrap();
    let first = finder.candidates(crowded)[0].candidate;
    assert!(!finder.is_findable(crowded, &pinned(first, 8080)));
}
