//! The maps of the programs. Kinds, keys and values are documented in [`abi::map`]; sizes are the defaults of
//! [`abi::capacity`], which the loader may override, and the loader decides where they are pinned.
//!
//! Preallocated maps stay preallocated (no `BPF_F_NO_PREALLOC`): the packet path never waits for memory. LRU maps share
//! one list among processors (no `BPF_F_NO_COMMON_LRU`), so that all of their room serves a flood on one processor.
//! Arrays that every packet reads are mmap-able also when nobody maps them: such arrays start at a page, so that records
//! of 64 and 128 bytes do not straddle cache lines.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use lb_ebpf::abi::{
    AnnouncedKey, Announcement, Backend, Bucket, Claim, Config, Count, DropReason, FirstPod, Flow,
    FragmentKey, FragmentPorts, HalfOpen, Limited, LocalKey, LocalPod, Pin, ROWS_PER_ELEMENT,
    Region, ServiceKey4, ServiceKey6, ServiceRecord, Set, Slot, SourceKey, Stamp, Stat, Tuple,
    capacity,
};
use lb_ebpf::own::Scratch;
use lb_ebpf::wire::{Addr6, Be32};

/// A directory is one element: the index of an element goes through the stack, and every word's position would wait for it.
type Words = [u64; capacity::DIRECTORY as usize];

#[map(name = "services4")]
pub(crate) static SERVICES4: Array<ServiceRecord<ServiceKey4>> = Array::with_max_entries(
    capacity::SERVICES + 1 + capacity::SPARE_RECORDS,
    BPF_F_MMAPABLE,
);
#[map(name = "services6")]
pub(crate) static SERVICES6: Array<ServiceRecord<ServiceKey6>> = Array::with_max_entries(
    capacity::SERVICES + 1 + capacity::SPARE_RECORDS,
    BPF_F_MMAPABLE,
);
#[map(name = "directory4")]
pub(crate) static DIRECTORY4: Array<Words> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "directory6")]
pub(crate) static DIRECTORY6: Array<Words> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "rows")]
pub(crate) static ROWS: Array<[u16; ROWS_PER_ELEMENT as usize]> =
    Array::with_max_entries(capacity::ROWS, BPF_F_MMAPABLE);
#[map(name = "slots")]
pub(crate) static SLOTS: Array<Slot> = Array::with_max_entries(capacity::SLOTS, BPF_F_MMAPABLE);
#[map(name = "sets")]
pub(crate) static SETS: Array<Set> = Array::with_max_entries(capacity::SETS, 0);
/// Read by the agent alone; kept here because it describes `rows` and must live as long.
#[map(name = "regions")]
pub(crate) static REGIONS: Array<Region> = Array::with_max_entries(capacity::REGIONS, 0);
#[map(name = "backends")]
pub(crate) static BACKENDS: Array<Backend> =
    Array::with_max_entries(capacity::BACKENDS, BPF_F_MMAPABLE);
#[map(name = "pins4")]
pub(crate) static PINS4: HashMap<Tuple<Be32>, Pin> = HashMap::with_max_entries(capacity::PINS, 0);
#[map(name = "pins6")]
pub(crate) static PINS6: HashMap<Tuple<Addr6>, Pin> = HashMap::with_max_entries(capacity::PINS, 0);
#[map(name = "flows4")]
pub(crate) static FLOWS4: HashMap<Tuple<Be32>, Flow<Be32>> =
    HashMap::with_max_entries(capacity::FLOWS, 0);
#[map(name = "flows6")]
pub(crate) static FLOWS6: HashMap<Tuple<Addr6>, Flow<Addr6>> =
    HashMap::with_max_entries(capacity::FLOWS, 0);
#[map(name = "half_open4")]
pub(crate) static HALF_OPEN4: LruHashMap<Tuple<Be32>, HalfOpen<Be32>> =
    LruHashMap::with_max_entries(capacity::HALF_OPEN, 0);
#[map(name = "half_open6")]
pub(crate) static HALF_OPEN6: LruHashMap<Tuple<Addr6>, HalfOpen<Addr6>> =
    LruHashMap::with_max_entries(capacity::HALF_OPEN, 0);
#[map(name = "first4")]
pub(crate) static FIRST4: LruHashMap<Tuple<Be32>, FirstPod<Be32>> =
    LruHashMap::with_max_entries(capacity::HALF_OPEN, 0);
#[map(name = "first6")]
pub(crate) static FIRST6: LruHashMap<Tuple<Addr6>, FirstPod<Addr6>> =
    LruHashMap::with_max_entries(capacity::HALF_OPEN, 0);
#[map(name = "held4")]
pub(crate) static HELD4: LruHashMap<Tuple<Be32>, u64> =
    LruHashMap::with_max_entries(capacity::HELD, 0);
#[map(name = "held6")]
pub(crate) static HELD6: LruHashMap<Tuple<Addr6>, u64> =
    LruHashMap::with_max_entries(capacity::HELD, 0);
#[map(name = "fragments4")]
pub(crate) static FRAGMENTS4: LruHashMap<FragmentKey<Be32>, FragmentPorts<Be32>> =
    LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
#[map(name = "fragments6")]
pub(crate) static FRAGMENTS6: LruHashMap<FragmentKey<Addr6>, FragmentPorts<Addr6>> =
    LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
#[map(name = "locals4")]
pub(crate) static LOCALS4: HashMap<LocalKey<Be32>, LocalPod> =
    HashMap::with_max_entries(capacity::LOCALS, 0);
#[map(name = "locals6")]
pub(crate) static LOCALS6: HashMap<LocalKey<Addr6>, LocalPod> =
    HashMap::with_max_entries(capacity::LOCALS, 0);
#[map(name = "source_ranges")]
pub(crate) static SOURCE_RANGES: LpmTrie<SourceKey, u32> =
    LpmTrie::with_max_entries(capacity::SOURCE_RANGES, 0);
#[map(name = "peers")]
pub(crate) static PEERS: HashMap<Addr6, u32> = HashMap::with_max_entries(capacity::PEERS, 0);
#[map(name = "announced")]
pub(crate) static ANNOUNCED: HashMap<AnnouncedKey, Announcement> =
    HashMap::with_max_entries(capacity::ANNOUNCED, 0);
#[map(name = "claims")]
pub(crate) static CLAIMS: LruHashMap<Claim, u64> =
    LruHashMap::with_max_entries(capacity::CLAIMS, 0);
#[map(name = "interfaces")]
pub(crate) static INTERFACES: DevMapHash = DevMapHash::with_max_entries(capacity::INTERFACES, 0);
#[map(name = "config")]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map(name = "stamp")]
pub(crate) static STAMP: Array<Stamp> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map(name = "buckets")]
pub(crate) static BUCKETS: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(Limited::COUNT, 0);
#[map(name = "services_count")]
pub(crate) static SERVICES_COUNT: PerCpuArray<Count> =
    PerCpuArray::with_max_entries(capacity::SERVICES, 0);
#[map(name = "backends_count")]
pub(crate) static BACKENDS_COUNT: PerCpuArray<Count> =
    PerCpuArray::with_max_entries(capacity::BACKENDS, 0);
#[map(name = "drops")]
pub(crate) static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DropReason::COUNT, 0);
#[map(name = "stats")]
pub(crate) static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Stat::COUNT, 0);
/// What the owner's decision works on while a packet is here.
#[map(name = "scratch")]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "events")]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(capacity::EVENTS, 0);
