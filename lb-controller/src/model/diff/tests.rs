//! Plans carried out on maps in memory, and looked at as a packet would: after every prefix, and when done. One file: all
//! tests share the node and the life of its pods.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use proptest::prelude::*;

use lb_ebpf::abi::{self, SLOT_DEVIATES};

use super::*;
use crate::api::service_table::{Family, Port, Protocol, ServiceTableSpec};
use crate::dataplane::{Capacity, Contents};
use crate::model::assignment::{self, Input, Waiting};
use crate::model::backends::{NodeView, View};
use crate::model::candidate::Candidate;
use crate::model::maglev;
use crate::model::op::{BackendId, SetId, SlotIndex};
use crate::model::secret::identity;
use crate::model::shape::{HashFields, Weight};
use crate::model::slot::{Slots, WhenFull};
use crate::model::table::{self, Group};
use crate::model::template::{NextHop, NodeAddresses, Sender};

#[path = "tests_policy.rs"]
mod policy;

const CAPACITY: Capacity = Capacity {
    backends: 4096,
    rows: 1 << 20,
    regions: 64,
    sets: 4096,
    slots: 1 << 14,
    services: 1024,
};

fn view() -> View {
    let v4 = |n| NodeAddresses {
        v4: Some(Ipv4Addr::new(192, 0, 2, n)),
        v6: None,
    };
    let hop = NextHop {
        ifindex: 1,
        src: [2; 6],
        dst: [4; 6],
        mtu: 1500,
    };
    let far = NodeView {
        addresses: v4(2),
        hop4: Some(hop),
        hop6: None,
    };
    View {
        node: "here".into(),
        sender: Sender {
            node: v4(1),
            secret: Default::default(),
            geneve_port: 6081,
        },
        nodes: HashMap::from([("far".into(), far)]),
        hands_off: false,
        suspected: BTreeSet::new(),
    }
}

/// The maps of one node, and the bookkeeping beside them.
struct Node {
    installed: Installed,
    maps: Contents,
    wanted: BTreeMap<String, Service>,
}

impl Node {
    fn new(capacity: Capacity) -> Self {
        let maps = Contents::default();
        let installed = Installed::from_contents(&maps, capacity, view());
        Self {
            installed,
            maps,
            wanted: BTreeMap::new(),
        }
    }

    fn carry_out(&mut self, op: &Op) {
        apply(&mut self.maps, op);
        self.installed.record(op);
    }

    fn all(&mut self, ops: &[Op]) {
        for op in ops {
            self.carry_out(op);
        }
    }

    fn want(&mut self, spec: &ServiceTableSpec) -> Vec<Op> {
        let service = self.installed.decode(spec).unwrap();
        let ops = self.installed.plan(&service).unwrap();
        self.wanted.insert(spec.service_uid.clone(), service);
        ops
    }

    fn collect(&mut self) {
        let ops = self.installed.collect(self.wanted.values());
        self.all(&ops);
    }
}

/// What the maps hold after an operation.
fn apply(maps: &mut Contents, op: &Op) {
    match op {
        Op::Backend { id, value } => drop(maps.backends.insert(*id, **value)),
        Op::Rows { id, region, rows } => {
            drop(maps.regions.insert(*id, (*region, rows.to_vec())));
        }
        Op::Set { id, value } => {
            assert_eq!(maps.sets.insert(*id, *value), None, "sets are immutable");
        }
        Op::Slot { index, value } if *value == abi::Slot::default() => {
            maps.slots.remove(index);
        }
        Op::Slot { index, value } => drop(maps.slots.insert(*index, *value)),
        Op::Service { key, value } => drop(maps.services.insert(*key, *value)),
        Op::RemoveService { key } => drop(maps.services.remove(key)),
        Op::Local { key, value } => drop(maps.locals.insert(*key, *value)),
        Op::RemoveLocal { key } => drop(maps.locals.remove(key)),
        Op::Pin { key, value } => drop(maps.pins.insert(*key, *value)),
        Op::RemovePin { key } => drop(maps.pins.remove(key)),
        Op::Peer { addr, node } => drop(maps.peers.insert(*addr, *node)),
        Op::RemovePeer { addr } => drop(maps.peers.remove(addr)),
        Op::SourceRange { range } => drop(maps.source_ranges.insert(*range)),
        Op::RemoveSourceRange { range } => drop(maps.source_ranges.remove(range)),
        Op::Announce { key, value } => drop(maps.announced.insert(*key, *value)),
        Op::RemoveAnnounce { key } => drop(maps.announced.remove(key)),
        Op::Config { value } => maps.config = **value,
        Op::PurgeFlows { .. } | Op::ClearCount { .. } | Op::Grace => {}
        Op::FreeBackend { id } => drop(maps.backends.remove(id)),
        Op::FreeSet { id } => drop(maps.sets.remove(id)),
        Op::FreeRegion { id } => drop(maps.regions.remove(id)),
    }
}

/// Identities of a slot: current, then older; 0 for nobody.
type Owners = Vec<u32>;

/// The slots that the rows of each table of a service name, as a packet would find them.
fn tables(maps: &Contents, key: ServiceKey) -> Option<Vec<BTreeMap<u16, Owners>>> {
    let entry = maps.services.get(&key)?;
    let identity = |id: u32| match id {
        0 => 0,
        id => maps.backends[&BackendId(id)].identity,
    };
    let resolve = |slot: u16| {
        assert!(
            u32::from(slot) < entry.slot_count,
            "rows name slots of the service"
        );
        let index = SlotIndex(entry.slots + u32::from(slot));
        let slot = maps.slots.get(&index).copied().unwrap_or_default();
        let set = match slot.set & !SLOT_DEVIATES {
            0 => abi::Set::default(),
            id => maps.sets[&SetId(id)],
        };
        assert_eq!(slot.set & SLOT_DEVIATES != 0, set.current != 0);
        let older = [set.current].into_iter().chain(set.older);
        let older = older.filter(|id| *id != 0).map(identity);
        // A slot that deviates to a substitute has its agreed occupant in the set.
        let first = (set.current == 0 || slot.first == 0).then(|| identity(slot.first));
        first.into_iter().chain(older).collect()
    };
    let named = [entry.current, entry.previous[0], entry.previous[1]];
    let tables = named.iter().filter(|table| table.size > 0).map(|table| {
        let slots: BTreeSet<u16> = region(maps, table).iter().copied().collect();
        slots
            .into_iter()
            .map(|slot| (slot, resolve(slot)))
            .collect()
    });
    Some(tables.collect())
}

fn region<'a>(maps: &'a Contents, table: &abi::TableRef) -> &'a [u16] {
    let region = maps
        .regions
        .values()
        .find(|(region, _)| region.rows == table.rows);
    let (region, rows) = region.expect("a named table is there");
    assert_eq!((region.size, rows.len()), (table.size, table.size as usize));
    rows
}

/// One Service under test: its slots, and what it may ever resolve to.
struct Life {
    uid: String,
    vip: IpAddr,
    groups: Vec<Group>,
    waiting: Waiting,
    version: u64,
}

impl Life {
    fn new(n: u8, ports: &[u16]) -> Self {
        let port = |port: &u16| Port {
            name: String::new(),
            port: *port,
            protocol: Protocol::Tcp,
        };
        Self {
            uid: format!("service-{n}"),
            // Two Services share one VIP.
            vip: IpAddr::V4(Ipv4Addr::new(198, 51, 100, n / 2)),
            groups: vec![Group {
                family: Family::IPv4,
                ports: ports.iter().map(port).collect(),
                slots: Slots::none(HashFields::FiveTuple),
            }],
            waiting: Waiting::default(),
            version: 0,
        }
    }

    fn candidate(&self, pod: u8) -> Candidate {
        let at = self.uid.as_bytes()[self.uid.len() - 1];
        let ports = 0..self.groups[0].ports.len() as u16;
        Candidate {
            uid: format!("{}-pod-{pod}", self.uid).into(),
            node: if pod.is_multiple_of(3) { "here" } else { "far" }.into(),
            address: IpAddr::V4(Ipv4Addr::new(10, 0, at, pod)),
            ports: ports.map(|n| 8080 + n).collect(),
        }
    }

    /// The table when the pods of `mask` are usable and those of `dead` dead.
    fn next(&mut self, mask: u16, dead: u16, second: i64) -> ServiceTableSpec {
        let usable = (0..16).filter(|n| (mask & !dead) >> n & 1 != 0);
        let usable = usable.map(|n| (self.candidate(n), Weight::ONE)).collect();
        let corpses: HashSet<_> = (0..16)
            .filter(|n| dead >> n & 1 != 0)
            .map(|n| self.candidate(n).uid)
            .collect();
        let input = Input {
            usable: &usable,
            fields: HashFields::FiveTuple,
            dead: &|candidate| corpses.contains(&candidate.uid),
            when_full: WhenFull::Waits,
            now: Timestamp::from_second(second).unwrap(),
        };
        assignment::assign(&mut self.groups[0].slots, &mut self.waiting, &input);
        self.version += 1;
        table::encode(&self.uid, self.version, &[self.vip], &self.groups)
    }

    /// Identities that a table's slots name, in their order, for each port.
    fn owners(spec: &ServiceTableSpec) -> Vec<(ServiceKey, Vec<Owners>)> {
        let groups = table::decode(spec).unwrap();
        let ports = groups[0].ports.iter().enumerate().map(|(at, port)| {
            let slots = &groups[0].slots;
            let id = |c: u32| {
                let candidate = &slots.candidates[c as usize];
                identity(&candidate.uid, candidate.ports[at])
            };
            let owners = slots.slots.iter().map(|slot| {
                let older = slot.older.iter().map(|c| id(*c));
                [slot.current.map_or(0, id)]
                    .into_iter()
                    .chain(older)
                    .collect()
            });
            let key =
                crate::model::plan::service_key(spec.vips[0], port.port, port.protocol.number());
            (key, owners.collect())
        });
        ports.collect()
    }
}

/// Whether every row leads to somebody whom this Service may name, and to nobody only where a table says so.
fn check_rows(
    maps: &Contents,
    key: ServiceKey,
    allowed: &HashSet<u32>,
) -> Result<(), TestCaseError> {
    for owners in tables(maps, key)
        .iter()
        .flatten()
        .flat_map(BTreeMap::values)
    {
        prop_assert!(
            owners.iter().all(|owner| allowed.contains(owner)),
            "a row leads elsewhere"
        );
    }
    Ok(())
}

/// Whether the maps say exactly what a table says.
fn check_done(node: &Node, spec: &ServiceTableSpec) -> Result<(), TestCaseError> {
    let shape = table::decode(spec).unwrap()[0].slots.shape.clone();
    for (key, wanted) in Life::owners(spec) {
        let entry = node.maps.services[&key];
        prop_assert_eq!(entry.slot_count as usize, wanted.len());
        prop_assert!(
            node.maps.services.contains_key(&vip_key(key)),
            "the VIP is marked"
        );
        if shape.slots() == 0 {
            prop_assert_eq!(entry.current.size, 0);
            continue;
        }
        prop_assert_eq!(region(&node.maps, &entry.current), &*maglev::rows(&shape));
        for (slot, owners) in tables(&node.maps, key).iter().flatten().flatten() {
            prop_assert_eq!(owners, &wanted[usize::from(*slot)]);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Services come, change and go; each operation may be the last one before a failure, after which everything is
    /// planned again, sometimes by a new process.
    #[test]
    fn any_prefix_leaves_every_vip_usable(
        steps in prop::collection::vec(
            (0..4_u8, 1..65535_u16, prop::option::of(0..40_usize), 0..8_u8), 1..30),
    ) {
        let mut node = Node::new(CAPACITY);
        let ports: [&[u16]; 4] = [&[80], &[81], &[82], &[83, 443]];
        let mut lives: Vec<Life> = (0..).zip(ports).map(|(n, ports)| Life::new(n, ports)).collect();
        let mut specs: BTreeMap<u8, ServiceTableSpec> = BTreeMap::new();
        for (second, (who, mask, failure, kind)) in (0_i64..).zip(steps) {
            let life = &mut lives[usize::from(who)];
            if kind == 0 {
                let ops = node.installed.plan_removal(&life.uid);
                node.all(&ops);
                node.wanted.remove(&life.uid);
                specs.remove(&who);
                continue;
            }
            let dead = if kind == 1 { !mask } else { 0 };
            let spec = life.next(mask, dead, second * 25);
            // Everybody a slot of this Service names before or after; nobody only if one of both says nobody.
            let named = specs.get(&who).into_iter().chain([&spec]).flat_map(Life::owners);
            let allowed: HashSet<u32> = named.flat_map(|(_, slots)| slots).flatten().collect();
            let keys: Vec<_> = Life::owners(&spec).into_iter().map(|(key, _)| key).collect();
            let ops = node.want(&spec);
            let stop = failure.unwrap_or(usize::MAX);
            for op in ops.iter().take(stop) {
                node.carry_out(op);
                for key in &keys {
                    check_rows(&node.maps, *key, &allowed)?;
                }
            }
            if kind == 2 {
                node.installed = Installed::from_contents(&node.maps, CAPACITY, view());
                node.wanted.clear();
                for spec in specs.values() {
                    let again = node.want(spec);
                    node.all(&again);
                }
            }
            let ops = node.want(&spec);
            node.all(&ops);
            specs.insert(who, spec);
            node.collect();
            for spec in specs.values() {
                check_done(&node, spec)?;
                let service = node.wanted[&spec.service_uid].clone();
                prop_assert_eq!(node.installed.plan(&service).unwrap(), vec![]);
            }
            prop_assert_eq!(node.installed.collect(node.wanted.values()), vec![]);
            prop_assert_eq!(&node.installed.contents(), &node.maps);
            let read = Installed::from_contents(&node.maps, CAPACITY, view());
            prop_assert_eq!(&read.cells, &node.installed.cells[..read.cells.len()].to_vec());
        }
        for life in &lives {
            let ops = node.installed.plan_removal(&life.uid);
            node.all(&ops);
        }
        node.wanted.clear();
        let ops = node.installed.plan_locals(&HashSet::new(), &[]);
        node.all(&ops);
        node.collect();
        prop_assert_eq!(&node.maps, &Contents { config: node.maps.config, ..Contents::default() });
        prop_assert_eq!(node.installed.usage().slots, 0);
    }
}

fn pods(life: &mut Life, mask: u16, second: i64) -> ServiceTableSpec {
    life.next(mask, 0, second)
}

/// The pod that came also stands in for the other one now, instead of the pod that went.
#[test]
fn one_replaced_pod_is_a_backend_and_the_slots_that_name_it() {
    let mut node = Node::new(CAPACITY);
    let mut life = Life::new(1, &[80]);
    let ops = node.want(&pods(&mut life, 0b110, 0));
    node.all(&ops);
    let ops = node.want(&pods(&mut life, 0b1_0100, 1));
    let kinds: Vec<_> = ops
        .iter()
        .map(|op| format!("{op:?}").split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["Backend", "Set", "Set", "Slot", "Slot"]);
}

/// First packets of a suspected node's slots go to substitutes, those in the middle of flows ask others first; and back again.
#[test]
fn slots_of_a_suspected_node_deviate_and_return() {
    let mut node = Node::new(CAPACITY);
    let spec = pods(&mut Life::new(1, &[80]), 0b11, 0);
    let ops = node.want(&spec);
    node.all(&ops);
    let before = node.maps.slots.clone();
    let far = before.iter().find(|(_, slot)| {
        node.maps.backends[&BackendId(slot.first)].flags & abi::backend_flag::LOCAL == 0
    });
    let (index, slot) = far.map(|(index, slot)| (*index, *slot)).unwrap();
    let mut suspecting = view();
    suspecting.suspected = BTreeSet::from(["far".into()]);
    node.installed.set_view(suspecting);
    let backends = node.installed.plan_backends();
    node.all(&backends);
    let ops = node.want(&spec);
    node.all(&ops);
    let flags = |id: u32| node.maps.backends[&BackendId(id)].flags;
    assert_ne!(flags(slot.first) & abi::backend_flag::SUSPECTED, 0);
    let deviating = node.maps.slots[&index];
    assert_ne!(deviating.set & SLOT_DEVIATES, 0);
    let set = node.maps.sets[&SetId(deviating.set & !SLOT_DEVIATES)];
    assert_eq!(set.current, slot.first);
    assert_eq!(set.substitute, deviating.first);
    assert_eq!(
        flags(deviating.first) & abi::backend_flag::LOCAL,
        abi::backend_flag::LOCAL
    );
    node.installed.set_view(view());
    let ops = node.want(&spec);
    node.all(&ops);
    let firsts = |slots: &BTreeMap<SlotIndex, abi::Slot>| -> Vec<_> {
        slots
            .values()
            .map(|slot| (slot.first, slot.set & SLOT_DEVIATES))
            .collect()
    };
    let slots = node
        .maps
        .slots
        .iter()
        .map(|(index, slot)| (*index, *slot))
        .collect();
    assert_eq!(
        firsts(&slots),
        firsts(&before.iter().map(|(index, slot)| (*index, *slot)).collect())
    );
}

#[test]
fn first_service_comes_in_order() {
    let mut node = Node::new(CAPACITY);
    let ops = node.want(&pods(&mut Life::new(1, &[80]), 0b1001, 0));
    let kinds: Vec<_> = ops
        .iter()
        .map(|op| format!("{op:?}").split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds,
        [
            "Backend",
            "Local",
            "Backend",
            "Local",
            "Rows",
            "Set",
            "Set",
            "Slot",
            "Slot",
            "ClearCount",
            "Service",
            "Service"
        ]
    );
}

#[test]
fn whoever_gets_a_service_id_starts_counting_from_zero() {
    let mut node = Node::new(CAPACITY);
    let mut life = Life::new(1, &[80]);
    let named = |op: &Op| match op {
        Op::Service { value, .. } if value.flags & abi::service_flag::VIP == 0 => Some(value.id),
        _ => None,
    };
    let ops = node.want(&pods(&mut life, 0b1, 0));
    let at = ops.iter().position(|op| named(op).is_some()).unwrap();
    let id = named(&ops[at]).unwrap();
    let clears = |op: &Op| matches!(op, Op::ClearCount { id: cleared } if *cleared == id);
    assert!(ops[..at].iter().any(clears), "{ops:?}");
    node.all(&ops);
    let ops = node.want(&pods(&mut life, 0b11, 10));
    assert!(!ops.iter().any(clears), "its owner goes on counting");
}

#[test]
fn without_a_usable_pod_flows_still_find_theirs() {
    let mut node = Node::new(CAPACITY);
    let mut life = Life::new(1, &[80]);
    for (mask, second) in [(0b10, 0), (0b100, 1), (0, 2)] {
        let ops = node.want(&pods(&mut life, mask, second));
        node.all(&ops);
    }
    let slot = node.maps.slots[&SlotIndex(0)];
    assert_eq!((slot.first, slot.set & SLOT_DEVIATES), (0, SLOT_DEVIATES));
    let set = node.maps.sets[&SetId(slot.set & !SLOT_DEVIATES)];
    let owner = |id: u32| node.maps.backends[&BackendId(id)].identity;
    assert_eq!(owner(set.current), identity("service-1-pod-2", 8080));
    assert_eq!(owner(set.older[0]), identity("service-1-pod-1", 8080));
}

#[test]
fn restart_keeps_ids_and_plans_nothing() {
    let mut node = Node::new(CAPACITY);
    let mut life = Life::new(1, &[80, 443]);
    for (mask, second) in [
        (0b1_0110, 0),
        (0b11_0010, 1),
        (0b11_0011, 10),
        (0b11_0011, 13),
    ] {
        let ops = node.want(&pods(&mut life, mask, second));
        node.all(&ops);
    }
    node.collect();
    let spec = life.next(0b11_0011, 0, 14);
    node.installed = Installed::from_contents(&node.maps, CAPACITY, view());
    assert_eq!(node.want(&spec), []);
    assert_eq!(node.installed.plan_stale(node.wanted.values()), []);
    assert_eq!(node.installed.plan_backends(), []);
    node.wanted.clear();
    let stale = node.installed.plan_stale([]);
    assert_eq!(stale.len(), 3, "two ports and their VIP: {stale:?}");
    node.all(&stale[..2]);
    assert_eq!(
        node.installed.plan_stale([]),
        stale[2..],
        "a marker that was left goes, too"
    );
}

#[test]
fn services_of_one_shape_share_rows() {
    let mut node = Node::new(CAPACITY);
    for n in 0..4 {
        let ops = node.want(&pods(&mut Life::new(n, &[80 + u16::from(n)]), 0b1110, 0));
        node.all(&ops);
    }
    let usage = node.installed.usage();
    assert_eq!((usage.regions, usage.rows), (1, 512));
    assert_eq!(usage.services, 4 + 2);
}

#[test]
fn full_maps_are_an_error_that_names_the_map() {
    let mut node = Node::new(Capacity {
        slots: 8,
        ..CAPACITY
    });
    let ops = node.want(&pods(&mut Life::new(0, &[80]), 0b1110, 0));
    node.all(&ops);
    let service = node
        .installed
        .decode(&pods(&mut Life::new(1, &[81]), 0b1110, 0))
        .unwrap();
    assert_eq!(
        node.installed.plan(&service),
        Err(PlanError::Full {
            map: "slots",
            limit: 8
        })
    );
}

#[test]
fn next_hops_rewrite_backends_in_place() {
    let mut node = Node::new(CAPACITY);
    let ops = node.want(&pods(&mut Life::new(1, &[80]), 0b1110, 0));
    node.all(&ops);
    let mut view = view();
    view.nodes.clear();
    node.installed.set_view(view);
    let ops = node.installed.plan_backends();
    assert_eq!(ops.len(), 2, "the local pod stays: {ops:?}");
    for op in &ops {
        let Op::Backend { value, .. } = op else {
            panic!("{op:?}")
        };
        assert_ne!(value.flags & abi::backend_flag::NO_NEXT_HOP, 0);
    }
    node.all(&ops);
    assert_eq!(node.installed.plan_backends(), []);
}

#[test]
fn dead_local_pods_go_with_their_flows() {
    let mut node = Node::new(CAPACITY);
    let mut life = Life::new(1, &[80]);
    let ops = node.want(&pods(&mut life, 0b1001, 0));
    node.all(&ops);
    let alive = HashSet::from(["service-1-pod-0".to_owned()]);
    let wanted: Vec<_> = node.wanted.values().cloned().collect();
    let ops = node
        .installed
        .plan_locals(&alive, &wanted.iter().collect::<Vec<_>>());
    let gone = identity("service-1-pod-3", 8080);
    assert_eq!(ops.len(), 2);
    assert!(matches!(ops[0], Op::RemoveLocal { .. }));
    assert_eq!(ops[1], Op::PurgeFlows { identity: gone });
    node.all(&ops);
    assert_eq!(
        node.installed
            .plan_locals(&alive, &wanted.iter().collect::<Vec<_>>()),
        []
    );
    // After a restart only identities are known, and that is enough.
    let restarted = Installed::from_contents(&node.maps, CAPACITY, view());
    assert_eq!(restarted.plan_locals(&alive, &[]), []);
}

#[test]
fn peers_follow_nodes_and_go_only_when_all_are_known() {
    let mut node = Node::new(CAPACITY);
    let ops = node.installed.plan_peers(false);
    assert_eq!(ops.len(), 1);
    node.all(&ops);
    let mut view = view();
    view.nodes.clear();
    node.installed.set_view(view);
    assert_eq!(node.installed.plan_peers(false), []);
    assert_eq!(node.installed.plan_peers(true).len(), 1);
}

/// Services of five pods: ten thousand, or fewer where nothing is optimised.
#[test]
fn ten_thousand_services_share_their_rows() {
    let capacity = Capacity {
        backends: 1 << 17,
        slots: 1 << 18,
        sets: 1 << 16,
        services: 1 << 15,
        regions: 4096,
        rows: 1 << 22,
    };
    let mut installed = Installed::from_contents(&Contents::default(), capacity, view());
    let count = if cfg!(debug_assertions) {
        500
    } else {
        10_000_u32
    };
    let specs: Vec<_> = (0..count)
        .map(|n| {
            let mut slots = Slots::none(HashFields::FiveTuple);
            let usable = (0..5)
                .map(|pod| {
                    let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n * 8 + pod));
                    let uid = format!("{n}-{pod}").into();
                    (
                        Candidate {
                            uid,
                            node: "far".into(),
                            address,
                            ports: [8080].into(),
                        },
                        Weight::ONE,
                    )
                })
                .collect();
            let input = Input {
                usable: &usable,
                fields: HashFields::FiveTuple,
                dead: &|_| false,
                when_full: WhenFull::Waits,
                now: Timestamp::UNIX_EPOCH,
            };
            assignment::assign(&mut slots, &mut Waiting::default(), &input);
            let ports = vec![Port {
                name: String::new(),
                port: 80,
                protocol: Protocol::Tcp,
            }];
            let group = Group {
                family: Family::IPv4,
                ports,
                slots,
            };
            table::encode(
                &n.to_string(),
                1,
                &[IpAddr::V4(Ipv4Addr::from(0xc612_0000 + n))],
                &[group],
            )
        })
        .collect();
    let mut services = Vec::new();
    for spec in &specs {
        let service = installed.decode(spec).unwrap();
        for op in installed.plan(&service).unwrap() {
            installed.record(&op);
        }
        services.push(service);
    }
    assert_eq!(installed.collect(&services), []);
    assert_eq!(installed.usage().regions, 1);
    assert_eq!(installed.usage().backends, count * 5);
}

/// One pod of a thousand replaced, in nanoseconds of this build: `cargo test --release … -- --ignored --nocapture`.
#[test]
#[ignore = "prints a time"]
fn time_of_one_replaced_pod() {
    let capacity = Capacity {
        backends: 1 << 17,
        slots: 1 << 18,
        sets: 1 << 16,
        rows: 1 << 22,
        ..CAPACITY
    };
    let mut node = Node::new(capacity);
    let spec = |replaced: u32| {
        let mut slots = Slots::none(HashFields::FiveTuple);
        let mut waiting = Waiting::default();
        for last in [0, replaced] {
            let usable = (0..1000_u32)
                .map(|pod| {
                    let pod = if pod == 500 { 2000 + last } else { pod };
                    let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + pod));
                    (
                        Candidate {
                            uid: format!("{pod}").into(),
                            node: "far".into(),
                            address,
                            ports: [8080].into(),
                        },
                        Weight::ONE,
                    )
                })
                .collect();
            let input = Input {
                usable: &usable,
                fields: HashFields::FiveTuple,
                dead: &|_| false,
                when_full: WhenFull::Waits,
                now: Timestamp::UNIX_EPOCH,
            };
            assignment::assign(&mut slots, &mut waiting, &input);
        }
        let ports = vec![Port {
            name: String::new(),
            port: 80,
            protocol: Protocol::Tcp,
        }];
        table::encode(
            "u",
            1,
            &[IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1))],
            &[Group {
                family: Family::IPv4,
                ports,
                slots,
            }],
        )
    };
    let ops = node.want(&spec(0));
    node.all(&ops);
    let mut times = Vec::new();
    for n in 1..2000 {
        let service = node.installed.decode(&spec(1 + n % 7)).unwrap();
        let start = std::time::Instant::now();
        let ops = node.installed.plan(&service).unwrap();
        times.push(start.elapsed().as_nanos());
        assert!(ops.len() <= 3, "{ops:?}");
        for op in &ops {
            node.installed.record(op);
        }
        node.wanted.insert("u".into(), service);
        if n % 100 == 0 {
            for op in node.installed.collect(node.wanted.values()) {
                node.installed.record(&op);
            }
        }
    }
    times.sort_unstable();
    eprintln!(
        "plan: min {} ns, median {} ns",
        times[0],
        times[times.len() / 2]
    );
}
