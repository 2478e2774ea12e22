//! The maps and programs in the real kernel. Needs root; says so and passes without.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use lb_ebpf::abi::{self, map};
use lb_ebpf::wire::{Addr6, Be16, Be32, Mac, Ports};

use super::bpf::{self, BpfDataplane};
use super::flows::{IdleTimeouts, TCP};
use super::load::{self, LoadError, Programs, Sizes};
use super::pin::PinError;
use super::table::HashTable;
use super::testing::{BpfDir, SIZES, is_root};
use super::{Contents, Counters, Dataplane, sys};
use crate::model::op::{BackendId, LocalKey, Op, RegionId, ServiceKey, SetId, SlotIndex};

pub(super) fn open(dir: &BpfDir) -> (BpfDataplane, Programs) {
    bpf::open(&dir.path().join("bowline"), &SIZES).unwrap()
}

fn v4_key(port: u16) -> ServiceKey {
    ServiceKey::V4(abi::ServiceKey4 {
        addr: Be32::from_bytes([192, 0, 2, 1]),
        port: Be16::new(port),
        proto: TCP,
        pad: 0,
    })
}

fn source_range(prefix_len: u32, service: u32) -> abi::SourceRange {
    abi::SourceRange {
        prefix_len,
        key: abi::SourceKey::new(service, true, Addr6::default()),
    }
}

fn announced(ifindex: u32) -> abi::AnnouncedKey {
    abi::AnnouncedKey {
        addr: Addr6::mapped(Be32::from_bytes([198, 51, 100, 1])),
        ifindex,
    }
}

fn some_of_each() -> Vec<Op> {
    let backend = abi::Backend {
        mtu: 1500,
        identity: 77,
        header: [9; abi::HEADER_MAX],
        ..abi::Backend::default()
    };
    vec![
        Op::Backend {
            id: BackendId(3),
            value: Box::new(backend),
        },
        Op::Rows {
            id: RegionId(1),
            region: abi::Region {
                rows: 8,
                size: 509,
                digest: 42,
            },
            rows: (0..509).map(|row| row % 7).collect(),
        },
        Op::Set {
            id: SetId(5),
            value: abi::Set {
                older: [3, 0, 0],
                ..abi::Set::default()
            },
        },
        Op::Slot {
            index: SlotIndex(11),
            value: abi::Slot { first: 3, set: 5 },
        },
        Op::Service {
            key: v4_key(80),
            value: abi::ServiceEntry {
                id: 4,
                slots: 11,
                slot_count: 1,
                ..abi::ServiceEntry::default()
            },
        },
        Op::Service {
            key: ServiceKey::V6(abi::ServiceKey6::default()),
            value: abi::ServiceEntry::default(),
        },
        Op::Local {
            key: LocalKey::V6(abi::LocalKey::default()),
            value: abi::LocalPod {
                identity: 77,
                backend: 3,
            },
        },
        Op::Peer {
            addr: Addr6::mapped(Be32::from_bytes([10, 0, 0, 1])),
            node: 1,
        },
        Op::SourceRange {
            range: source_range(32, 1),
        },
        Op::SourceRange {
            range: source_range(160, 2),
        },
        Op::SourceRange {
            range: source_range(40, 1),
        },
        Op::RemoveSourceRange {
            range: source_range(40, 1),
        },
        Op::Announce {
            key: announced(1),
            value: abi::Announcement {
                mac: Mac::from_bytes([2, 0, 0, 0, 0, 1]),
                pad: [0; 2],
            },
        },
        Op::Announce {
            key: announced(2),
            value: abi::Announcement::default(),
        },
        Op::RemoveAnnounce { key: announced(2) },
        Op::Config {
            value: Box::new(abi::Config {
                mss4: 1400,
                ..abi::Config::default()
            }),
        },
    ]
}

/// What the same operations leave in plain memory.
fn expected(ops: &[Op]) -> Contents {
    let mut fake = super::fake::FakeDataplane::new(SIZES.capacity);
    for op in ops {
        fake.apply(op).unwrap();
    }
    fake.read().unwrap()
}

#[test]
fn operations_read_back_and_survive_the_agent() {
    if !is_root("operations_read_back_and_survive_the_agent") {
        return;
    }
    let dir = BpfDir::new();
    let ops = some_of_each();
    let (mut maps, programs) = open(&dir);
    assert_eq!(maps.capacity(), SIZES.capacity);
    assert_eq!(maps.read().unwrap(), Contents::default());
    for op in &ops {
        maps.apply(op).unwrap();
    }
    assert_eq!(maps.read().unwrap(), expected(&ops));
    drop((maps, programs));

    let (mut again, _programs) = open(&dir);
    assert_eq!(again.read().unwrap(), expected(&ops));
    for op in [
        Op::ClearCount { id: 1 },
        Op::RemoveService { key: v4_key(80) },
        Op::RemoveService { key: v4_key(80) },
        Op::Grace,
        Op::FreeBackend { id: BackendId(3) },
        Op::FreeSet { id: SetId(5) },
        Op::FreeRegion { id: RegionId(1) },
    ] {
        again.apply(&op).unwrap();
    }
    let left = again.read().unwrap();
    assert!(left.backends.is_empty() && left.sets.is_empty() && left.regions.is_empty());
    assert_eq!(left.services.len(), 1);
}

#[test]
fn slot_stored_through_memory_is_what_a_lookup_finds() {
    if !is_root("slot_stored_through_memory_is_what_a_lookup_finds") {
        return;
    }
    let dir = BpfDir::new();
    let (mut maps, _programs) = open(&dir);
    let slot = abi::Slot { first: 7, set: 9 };
    maps.apply(&Op::Slot {
        index: SlotIndex(500),
        value: slot,
    })
    .unwrap();
    let fd = sys::open(&maps.pins().map(map::SLOTS)).unwrap();
    let found: abi::Slot = sys::lookup(fd.as_fd(), &500_u32).unwrap();
    assert_eq!(found, slot);
}

#[test]
fn full_map_and_index_beyond_the_end_are_told_apart() {
    if !is_root("full_map_and_index_beyond_the_end_are_told_apart") {
        return;
    }
    let dir = BpfDir::new();
    let (mut maps, _programs) = open(&dir);
    let mut fill = (0..).map(|port| {
        maps.apply(&Op::Service {
            key: v4_key(port),
            value: abi::ServiceEntry::default(),
        })
    });
    let refused = fill.position(|done| {
        matches!(
            done,
            Err(super::ApplyError::Full {
                map: map::SERVICES4,
                limit: 64
            })
        )
    });
    assert_eq!(refused, Some(64));
    let beyond = maps.apply(&Op::Slot {
        index: SlotIndex(512),
        value: abi::Slot::default(),
    });
    assert!(matches!(
        beyond,
        Err(super::ApplyError::OutOfRange {
            map: map::SLOTS,
            index: 512
        })
    ));
}

#[test]
fn other_sizes_than_the_pinned_ones_are_refused_by_name() {
    if !is_root("other_sizes_than_the_pinned_ones_are_refused_by_name") {
        return;
    }
    let dir = BpfDir::new();
    drop(open(&dir));
    let other = Sizes {
        flows: 8_192,
        ..SIZES
    };
    let error = bpf::open(&dir.path().join("bowline"), &other)
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            LoadError::Pins(PinError::Size {
                map: map::FLOWS4,
                pinned: 4_096,
                wanted: 8_192,
                ..
            })
        ),
        "{error}"
    );
}

#[test]
fn two_agents_do_not_share_a_pin_directory() {
    if !is_root("two_agents_do_not_share_a_pin_directory") {
        return;
    }
    let dir = BpfDir::new();
    let first = open(&dir);
    let second = bpf::open(&dir.path().join("bowline"), &SIZES);
    assert!(matches!(
        second.err().unwrap(),
        LoadError::Pins(PinError::InUse { .. })
    ));
    drop(first);
    open(&dir);
}

#[test]
fn pin_directory_elsewhere_is_refused_with_a_remedy() {
    if !is_root("pin_directory_elsewhere_is_refused_with_a_remedy") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let error = bpf::open(&dir.path().join("bowline"), &SIZES)
        .err()
        .unwrap();
    assert!(error.to_string().contains("mount -t bpf"), "{error}");
}

fn tuple(port: u16) -> abi::Tuple<Be32> {
    abi::Tuple {
        ports: Ports {
            src: Be16::new(port),
            dst: Be16::new(80),
        },
        proto: TCP,
        ..abi::Tuple::default()
    }
}

#[test]
fn ended_flows_are_swept_and_dead_pods_flows_purged() {
    if !is_root("ended_flows_are_swept_and_dead_pods_flows_purged") {
        return;
    }
    let dir = BpfDir::new();
    let (mut maps, _programs) = open(&dir);
    let flows: HashTable<abi::Tuple<Be32>, abi::Flow<Be32>> =
        HashTable::open(maps.pins(), map::FLOWS4).unwrap();
    let now = 1_000_000;
    for port in 1..=3_000 {
        let flow = abi::Flow {
            seen: if port <= 10 { now - 200_000 } else { now },
            identity: u32::from(port % 3 + 1),
            ..abi::Flow::default()
        };
        flows.put(&tuple(port), &flow).unwrap();
    }
    let swept = maps.flows().sweep(now, &IdleTimeouts::default()).unwrap();
    assert_eq!(swept, 10);
    maps.apply(&Op::PurgeFlows { identity: 1 }).unwrap();
    let known = maps.flows().count_known().unwrap();
    assert_eq!(known.get(&1), None);
    assert_eq!(known.values().sum::<u64>(), 1993);
    assert_eq!(flows.get(&tuple(12)).unwrap(), None);

    let usage = maps.flows().usage().unwrap();
    assert!(usage.contains(&(map::FLOWS4, 1993, 4_096)), "{usage:?}");

    let mut listed = 0;
    maps.flows()
        .list(|record| {
            assert_eq!(record.pod.port(), 80);
            listed += 1;
            listed < 50
        })
        .unwrap();
    assert_eq!(listed, 50);
}

#[test]
fn entry_changed_since_it_was_chosen_is_not_removed() {
    if !is_root("entry_changed_since_it_was_chosen_is_not_removed") {
        return;
    }
    let dir = BpfDir::new();
    let (maps, _programs) = open(&dir);
    let flows: HashTable<abi::Tuple<Be32>, abi::Flow<Be32>> =
        HashTable::open(maps.pins(), map::FLOWS4).unwrap();
    let flow = abi::Flow {
        seen: 7,
        ..abi::Flow::default()
    };
    flows.put(&tuple(1), &flow).unwrap();
    // A reply that does not find its flow for a moment leaves under the pod's address, and the client resets the connection.
    let done = AtomicBool::new(false);
    let looked = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut looked = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(flows.get(&tuple(1)).unwrap(), Some(flow));
                looked += 1;
            }
            looked
        });
        let chosen =
            (0..20_000).filter(|_| flows.remove_if(&tuple(1), |_, flow| flow.seen < 7).unwrap());
        let removed = chosen.count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(removed, 0);
        reader.join().unwrap()
    });
    assert!(looked > 0);
    assert!(
        flows
            .remove_if(&tuple(1), |_, flow| flow.seen == 7)
            .unwrap()
    );
    assert!(!flows.remove_if(&tuple(1), |_, _| true).unwrap());
}

#[test]
fn counters_of_an_idle_node_are_zero_and_complete() {
    if !is_root("counters_of_an_idle_node_are_zero_and_complete") {
        return;
    }
    let dir = BpfDir::new();
    let (mut maps, _programs) = open(&dir);
    assert_eq!(
        maps.counters().unwrap(),
        Counters {
            drops: vec![0; abi::DropReason::COUNT as usize],
            stats: vec![0; abi::Stat::COUNT as usize],
            ..Counters::default()
        }
    );
}

#[test]
fn verifier_accepts_all_programs_and_counts_their_instructions() {
    if !is_root("verifier_accepts_all_programs_and_counts_their_instructions") {
        return;
    }
    let verified = load::verify(load::OBJECT).unwrap();
    let names: Vec<_> = verified
        .iter()
        .map(|program| program.name.as_str())
        .collect();
    assert_eq!(names, [load::EGRESS, "bowline_pass", load::XDP]);
    assert!(
        verified
            .iter()
            .all(|program| program.verified_instructions > 0 && program.translated_bytes > 0),
        "{verified:?}"
    );
}
