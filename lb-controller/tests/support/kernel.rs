//! The programs in the kernel, with the tables of a scene: written by the agent's map code below a BPF filesystem of the
//! test's own. What the packet path itself writes is put and read through the pinned maps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{Program as Loaded, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod as Bytes};
use lb_controller::dataplane::bpf::{self, BpfDataplane};
use lb_controller::dataplane::load::{self, Sizes};
use lb_controller::dataplane::pin::{mount_bpffs, unmount_bpffs};
use lb_controller::dataplane::{Capacity, Dataplane};
use lb_controller::model::op::{
    BackendId, LocalKey, Op, PinKey, RegionId, ServiceKey, SetId, SlotIndex,
};
use lb_ebpf::abi::{
    ABI_VERSION, AnnouncedKey, Announcement, Bucket, DropReason, Flow, HalfOpen, Limited, Region,
    SourceRange, Stamp, Stat, TICK_SHIFT, map,
};
use lb_ebpf::tables::memory::Memory;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Uid;

use crate::golden::cases::{Case, Program};
use crate::golden::host;
use crate::golden::outcome::{Outcome, State, Written};
use crate::golden::scene::NOW_NS;

const SIZES: Sizes = Sizes {
    capacity: Capacity {
        backends: 256,
        rows: 65_536,
        regions: 16,
        sets: 64,
        slots: 512,
        services: 64,
    },
    flows: 4_096,
    pins: 1024,
};

/// The loopback interface, the one that every network namespace has.
const LOOPBACK: u32 = 1;

/// XDP's and TC's verdicts (`linux/bpf.h`, `linux/pkt_cls.h`).
const VERDICTS: [&str; 5] = ["aborted", "drop", "pass", "transmit", "redirect"];
const TC_ACT_UNSPEC: u32 = u32::MAX;

/// A BPF filesystem of its own.
struct BpfDir(tempfile::TempDir);

impl Drop for BpfDir {
    fn drop(&mut self) {
        unmount_bpffs(self.0.path()).unwrap();
    }
}

/// The programs and the maps.
pub(crate) struct Kernel {
    dataplane: BpfDataplane,
    programs: Ebpf,
    maps: PathBuf,
    _dir: BpfDir,
}

/// What `bpf_ktime_get_coarse_ns` says.
fn coarse_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}

impl Kernel {
    /// `None` without root.
    pub(crate) fn new() -> Option<Self> {
        if !Uid::effective().is_root() {
            return None;
        }
        let dir = BpfDir(tempfile::tempdir().unwrap());
        mount_bpffs(dir.0.path()).unwrap();
        let base = dir.0.path().join("golden");
        let (dataplane, _) = bpf::open(&base, &SIZES).unwrap();
        let maps = base.join(format!("abi-{ABI_VERSION}")).join("maps");
        let kernel = Self {
            dataplane,
            programs: load_beside(&maps),
            maps,
            _dir: dir,
        };
        let interfaces = kernel.open(map::INTERFACES);
        let mut interfaces = aya::maps::xdp::DevMapHash::try_from(interfaces).unwrap();
        interfaces.insert(LOOPBACK, LOOPBACK, None, 0).unwrap();
        Some(kernel)
    }

    fn open(&self, name: &str) -> aya::maps::Map {
        let data = MapData::from_pin(self.maps.join(name)).unwrap();
        aya::maps::Map::from_map_data(data).unwrap()
    }

    /// Runs one case.
    pub(crate) fn run(&mut self, case: &Case) -> Outcome {
        let tables = &case.tables.tables;
        self.write_tables(tables);
        let shift = coarse_ns() - NOW_NS;
        let stamp = Stamp {
            stamped_ns: shifted(tables.stamp.stamped_ns, shift),
            fresh_since_ns: shifted(tables.stamp.fresh_since_ns, shift),
        };
        let mut array = aya::maps::Array::<_, Stamp>::try_from(self.open(map::STAMP)).unwrap();
        array.set(0, stamp, 0).unwrap();
        self.empty_buckets();
        self.write_state(&host::state(tables), shift);
        let before = self.state();
        let start_ns = coarse_ns();
        let (verdict, output) = self.meet(case);
        self.state().outcome(&before, start_ns, verdict, output)
    }

    fn meet(&self, case: &Case) -> (&'static str, Vec<u8>) {
        let mut output = vec![0; 4096];
        let options = TestRunOptions {
            data_in: Some(&case.input),
            data_out: Some(&mut output),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let name = match case.program {
            Program::Xdp => load::XDP,
            Program::Egress => load::EGRESS,
        };
        let result = match self.programs.program(name).unwrap() {
            Loaded::Xdp(program) => program.test_run(options).unwrap(),
            Loaded::SchedClassifier(program) => program.test_run(options).unwrap(),
            _ => panic!("{name} is another kind of program"),
        };
        output.truncate(result.data_size_out as usize);
        let verdict = match case.program {
            Program::Xdp => VERDICTS[result.return_value as usize],
            Program::Egress => {
                assert_eq!(result.return_value, TC_ACT_UNSPEC, "{}", case.name);
                "next"
            }
        };
        (verdict, output)
    }

    /// What a scene says, in place of what the one before said.
    fn write_tables(&mut self, tables: &Memory) {
        let old = self.dataplane.read().unwrap();
        let mut ops: Vec<Op> = Vec::new();
        ops.extend(
            old.services
                .into_keys()
                .map(|key| Op::RemoveService { key }),
        );
        ops.extend(old.locals.into_keys().map(|key| Op::RemoveLocal { key }));
        ops.extend(old.pins.into_keys().map(|key| Op::RemovePin { key }));
        ops.extend(old.peers.into_keys().map(|addr| Op::RemovePeer { addr }));
        ops.push(Op::Grace);
        ops.extend(bystanders(old.source_ranges, old.announced, tables));
        ops.extend(old.backends.into_keys().map(|id| Op::FreeBackend { id }));
        ops.extend(tables.backends.iter().map(|(id, value)| Op::Backend {
            id: BackendId(*id),
            value: Box::new(*value),
        }));
        ops.extend(
            tables
                .rows
                .iter()
                .enumerate()
                .map(|(place, rows)| Op::Rows {
                    id: RegionId(place as u32 + 1),
                    region: Region {
                        rows: 4 * place as u32,
                        size: 4,
                        digest: 1,
                    },
                    rows: rows.as_slice().into(),
                }),
        );
        for id in 1..=6 {
            let value = tables.sets.get(&id).copied().unwrap_or_default();
            ops.push(Op::Set {
                id: SetId(id),
                value,
            });
        }
        ops.extend(
            tables
                .slots
                .iter()
                .enumerate()
                .map(|(place, value)| Op::Slot {
                    index: SlotIndex(place as u32),
                    value: *value,
                }),
        );
        ops.push(Op::Config {
            value: Box::new(tables.config),
        });
        let peers = tables.peers.iter().enumerate();
        ops.extend(peers.map(|(node, addr)| Op::Peer {
            addr: *addr,
            node: node as u32,
        }));
        for (key, value) in &tables.v4.locals {
            ops.push(Op::Local {
                key: LocalKey::V4(*key),
                value: *value,
            });
        }
        for (key, value) in &tables.v6.locals {
            ops.push(Op::Local {
                key: LocalKey::V6(*key),
                value: *value,
            });
        }
        for (key, value) in &tables.v4.pins {
            ops.push(Op::Pin {
                key: PinKey::V4(*key),
                value: *value,
            });
        }
        for (key, value) in &tables.v6.pins {
            ops.push(Op::Pin {
                key: PinKey::V6(*key),
                value: *value,
            });
        }
        for (key, value) in &tables.v4.services {
            ops.push(Op::Service {
                key: ServiceKey::V4(*key),
                value: *value,
            });
        }
        for (key, value) in &tables.v6.services {
            ops.push(Op::Service {
                key: ServiceKey::V6(*key),
                value: *value,
            });
        }
        for op in &ops {
            self.dataplane.apply(op).unwrap();
        }
    }

    fn empty_buckets(&self) {
        let mut buckets = PerCpuArray::<_, Bucket>::try_from(self.open(map::BUCKETS)).unwrap();
        for at in 0..Limited::COUNT {
            let empty = vec![Bucket::default(); aya::util::nr_cpus().unwrap()];
            buckets
                .set(at, PerCpuValues::try_from(empty).unwrap(), 0)
                .unwrap();
        }
    }

    fn write_state(&self, state: &State, shift: u64) {
        let State {
            v4,
            v6,
            claims,
            counts: _,
        } = state;
        self.fill(map::CLAIMS, claims, |at| *at = shifted(*at, shift));
        let flow = |flow: &mut Flow<_>| flow.seen = shifted_tick(flow.seen, shift);
        let half_open = |entry: &mut HalfOpen<_>| entry.seen = shifted_tick(entry.seen, shift);
        self.fill(map::FLOWS4, &v4.flows, flow);
        self.fill(map::HALF_OPEN4, &v4.half_open, half_open);
        self.fill(map::FIRST4, &v4.first, |_| ());
        self.fill(map::HELD4, &v4.held, |at| *at = shifted(*at, shift));
        self.fill(map::FRAGMENTS4, &v4.fragments, |_| ());
        let flow = |flow: &mut Flow<_>| flow.seen = shifted_tick(flow.seen, shift);
        let half_open = |entry: &mut HalfOpen<_>| entry.seen = shifted_tick(entry.seen, shift);
        self.fill(map::FLOWS6, &v6.flows, flow);
        self.fill(map::HALF_OPEN6, &v6.half_open, half_open);
        self.fill(map::FIRST6, &v6.first, |_| ());
        self.fill(map::HELD6, &v6.held, |at| *at = shifted(*at, shift));
        self.fill(map::FRAGMENTS6, &v6.fragments, |_| ());
    }

    /// Makes a map hold `entries` and nothing else.
    fn fill<K: Bytes, V: Bytes>(
        &self,
        name: &str,
        entries: &std::collections::HashMap<K, V>,
        change: impl Fn(&mut V),
    ) {
        let mut map = HashMap::<_, K, V>::try_from(self.open(name)).unwrap();
        let keys: Vec<K> = map.keys().map(Result::unwrap).collect();
        for key in keys {
            map.remove(&key).unwrap();
        }
        for (key, value) in entries {
            let mut value = *value;
            change(&mut value);
            map.insert(key, value, 0).unwrap();
        }
    }

    fn entries<K: Bytes + Eq + std::hash::Hash, V: Bytes>(
        &self,
        name: &str,
    ) -> std::collections::HashMap<K, V> {
        let map = HashMap::<_, K, V>::try_from(self.open(name)).unwrap();
        map.iter().map(Result::unwrap).collect()
    }

    fn state(&mut self) -> State {
        State {
            v4: Written {
                flows: self.entries(map::FLOWS4),
                half_open: self.entries(map::HALF_OPEN4),
                first: self.entries(map::FIRST4),
                held: self.entries(map::HELD4),
                fragments: self.entries(map::FRAGMENTS4),
            },
            v6: Written {
                flows: self.entries(map::FLOWS6),
                half_open: self.entries(map::HALF_OPEN6),
                first: self.entries(map::FIRST6),
                held: self.entries(map::HELD6),
                fragments: self.entries(map::FRAGMENTS6),
            },
            claims: self.entries(map::CLAIMS),
            counts: self.counts(),
        }
    }

    fn counts(&mut self) -> BTreeMap<String, u64> {
        let counters = self.dataplane.counters().unwrap();
        let mut counts = BTreeMap::new();
        for (id, count) in counters.services {
            counts.insert(format!("service {id} packets"), count.packets);
            counts.insert(format!("service {id} bytes"), count.bytes);
        }
        for (id, count) in counters.backends {
            counts.insert(format!("backend {} packets", id.0), count.packets);
            counts.insert(format!("backend {} bytes", id.0), count.bytes);
        }
        for (stat, count) in Stat::ALL.iter().zip(counters.stats) {
            counts.insert(stat.label().to_string(), count);
        }
        for (reason, count) in DropReason::ALL.iter().zip(counters.drops) {
            counts.insert(format!("drop {}", reason.label()), count);
        }
        counts
    }
}

/// What is not looked up for every packet: source ranges and announcements, the old ones and those of a scene.
fn bystanders(
    ranges: BTreeSet<SourceRange>,
    announced: BTreeMap<AnnouncedKey, Announcement>,
    tables: &Memory,
) -> Vec<Op> {
    let mut ops: Vec<Op> = Vec::new();
    ops.extend(
        ranges
            .into_iter()
            .map(|range| Op::RemoveSourceRange { range }),
    );
    ops.extend(announced.into_keys().map(|key| Op::RemoveAnnounce { key }));
    let ranges = tables.source_ranges.iter().copied();
    ops.extend(ranges.map(|range| Op::SourceRange { range }));
    ops.extend(tables.announced.iter().map(|(key, value)| Op::Announce {
        key: *key,
        value: *value,
    }));
    ops
}

/// The programs once more, over the maps that are pinned: the agent's own handle gives no way to run them.
fn load_beside(maps: &Path) -> Ebpf {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    let pinned: Vec<PathBuf> = std::fs::read_dir(maps)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for path in &pinned {
        loader.map_pin_path(path.file_name().unwrap().to_str().unwrap(), path);
    }
    let mut programs = loader.load(load::OBJECT).unwrap();
    for (_, program) in programs.programs_mut() {
        match program {
            Loaded::Xdp(program) => program.load().unwrap(),
            Loaded::SchedClassifier(program) => program.load().unwrap(),
            _ => panic!("another kind of program"),
        }
    }
    programs
}

/// A time of the host's clock on the kernel's; 0 stays "never".
fn shifted(at_ns: u64, shift: u64) -> u64 {
    if at_ns == 0 {
        0
    } else {
        at_ns.wrapping_add(shift)
    }
}

fn shifted_tick(tick: u32, shift: u64) -> u32 {
    tick.wrapping_add((shift >> TICK_SHIFT) as u32)
}
