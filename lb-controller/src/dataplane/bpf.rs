//! The maps of the kernel, pinned so that they outlive the agent.
//!
//! Order and visibility: rows and slots are stores of eight aligned bytes through a memory map. An entry of a hash map
//! becomes visible whole, and so does a service (see [`super::records`]). An element of an array is copied in place, so a packet may meet half of it: sets are therefore
//! written only while nothing names them, and backends that something names change in their next hop alone, where a mixture
//! costs the packets of that instant, which had no good next hop anyway. Rows are stored before their region is written,
//! and callers write a service entry only after both, so no packet meets a half-written table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use lb_ebpf::abi::{self, ROWS_PER_ELEMENT, map};
use lb_ebpf::wire::{Addr6, Be32};

use super::claims::Claims;
use super::events::{Events, EventsError, Ring};
use super::flows::Flows;
use super::load::{self, LoadError, Programs, Sizes};
use super::mapping::Mapping;
use super::pin::{PinDir, PinError};
use super::records::{self, Services};
use super::stamp::StampWriter;
use super::sys::{GracePeriods, More};
use super::table::{ArrayTable, HashTable, PerCpuTable, PrefixTable};
use super::{ApplyError, Capacity, Contents, Counters, Dataplane};
use crate::model::op::{BackendId, LocalKey, Op, PinKey, RegionId, ServiceKey, SetId, SlotIndex};

/// The kernel's maps of one node.
pub struct BpfDataplane {
    services4: Services<abi::ServiceKey4>,
    services6: Services<abi::ServiceKey6>,
    rows: ArrayTable<[u16; ROWS_PER_ELEMENT as usize]>,
    rows_memory: Mapping,
    slots: ArrayTable<abi::Slot>,
    slots_memory: Mapping,
    sets: ArrayTable<abi::Set>,
    regions: ArrayTable<abi::Region>,
    backends: ArrayTable<abi::Backend>,
    locals4: HashTable<abi::LocalKey<Be32>, abi::LocalPod>,
    locals6: HashTable<abi::LocalKey<Addr6>, abi::LocalPod>,
    pins4: HashTable<abi::Tuple<Be32>, abi::Pin>,
    pins6: HashTable<abi::Tuple<Addr6>, abi::Pin>,
    peers: HashTable<Addr6, u32>,
    source_ranges: PrefixTable<abi::SourceRange, u32>,
    announced: HashTable<abi::AnnouncedKey, abi::Announcement>,
    config: ArrayTable<abi::Config>,
    services_count: PerCpuTable<abi::Count>,
    backends_count: PerCpuTable<abi::Count>,
    drops: PerCpuTable<u64>,
    stats: PerCpuTable<u64>,
    flows: Flows,
    graces: GracePeriods,
    cpus: usize,
    /// One more than the largest service id and backend id seen: counters beyond are zero and need not be read.
    service_ids: u32,
    backend_ids: u32,
    /// Held for its lock on the directory.
    pins: PinDir,
}

/// Loads the programs and opens the maps below `pin_dir`, making those that are not there.
///
/// The maps come first in what is returned: they hold the lock on the directory and must be kept as long as the
/// programs.
pub fn open(pin_dir: &Path, sizes: &Sizes) -> Result<(BpfDataplane, Programs), LoadError> {
    open_object(load::OBJECT, pin_dir, sizes)
}

/// As [`open`], with another object of the same layout: upgrades are tested with it.
pub fn open_object(
    object: &[u8],
    pin_dir: &Path,
    sizes: &Sizes,
) -> Result<(BpfDataplane, Programs), LoadError> {
    load::check_system()?;
    let mut pins = PinDir::new(pin_dir);
    pins.prepare()?;
    let programs = load::load(object, &pins, sizes)?;
    Ok((BpfDataplane::new(pins)?, programs))
}

impl BpfDataplane {
    fn new(pins: PinDir) -> Result<Self, LoadError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| LoadError::System {
            what: "counting the possible processors",
            source,
        })?;
        let mapped = |source| LoadError::System {
            what: "mapping rows and slots",
            source,
        };
        let rows = ArrayTable::open(&pins, map::ROWS)?;
        let rows_memory = Mapping::new(rows.fd(), rows.len() as usize).map_err(mapped)?;
        let slots = ArrayTable::open(&pins, map::SLOTS)?;
        let slots_memory = Mapping::new(slots.fd(), slots.len() as usize).map_err(mapped)?;
        let services_count = PerCpuTable::open(&pins, map::SERVICES_COUNT, cpus)?;
        let backends_count = PerCpuTable::open(&pins, map::BACKENDS_COUNT, cpus)?;
        Ok(Self {
            services4: Services::open(&pins, map::SERVICES4, map::DIRECTORY4)?,
            services6: Services::open(&pins, map::SERVICES6, map::DIRECTORY6)?,
            rows,
            rows_memory,
            slots,
            slots_memory,
            sets: ArrayTable::open(&pins, map::SETS)?,
            regions: ArrayTable::open(&pins, map::REGIONS)?,
            backends: ArrayTable::open(&pins, map::BACKENDS)?,
            locals4: HashTable::open(&pins, map::LOCALS4)?,
            locals6: HashTable::open(&pins, map::LOCALS6)?,
            pins4: HashTable::open(&pins, map::PINS4)?,
            pins6: HashTable::open(&pins, map::PINS6)?,
            peers: HashTable::open(&pins, map::PEERS)?,
            source_ranges: PrefixTable::open(&pins, map::SOURCE_RANGES)?,
            announced: HashTable::open(&pins, map::ANNOUNCED)?,
            config: ArrayTable::open(&pins, map::CONFIG)?,
            service_ids: services_count.len(),
            services_count,
            backend_ids: backends_count.len(),
            backends_count,
            drops: PerCpuTable::open(&pins, map::DROPS, cpus)?,
            stats: PerCpuTable::open(&pins, map::STATS, cpus)?,
            flows: Flows::open(&pins)?,
            graces: GracePeriods::new().map_err(|source| LoadError::System {
                what: "making a map of maps",
                source,
            })?,
            cpus,
            pins,
        })
    }

    /// Where everything is pinned.
    pub fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// The flows of this node.
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// A second handle on the flows, for another task.
    pub fn open_flows(&self) -> Result<Flows, PinError> {
        Flows::open(&self.pins)
    }

    /// A handle on the claims of others to VIPs.
    pub fn open_claims(&self) -> Result<Claims, PinError> {
        Claims::open(&self.pins)
    }

    /// The programs' reports. Needs a tokio runtime.
    pub fn open_events(&self) -> Result<Events, EventsError> {
        Events::open(&self.pins)
    }

    /// The programs' reports, for who does not wait for them.
    pub fn open_ring(&self) -> Result<Ring, EventsError> {
        Ring::open(&self.pins)
    }

    /// A handle on the agent's sign of life.
    pub fn open_stamp(&self) -> Result<StampWriter, LoadError> {
        StampWriter::open(&self.pins)
    }

    fn write_rows(
        &self,
        id: RegionId,
        region: &abi::Region,
        rows: &[u16],
    ) -> Result<(), ApplyError> {
        self.regions.check(id.0)?;
        let elements = rows.len().div_ceil(ROWS_PER_ELEMENT as usize);
        let first = (region.rows / ROWS_PER_ELEMENT) as usize;
        if first + elements > self.rows.len() as usize {
            return Err(ApplyError::OutOfRange {
                map: map::ROWS,
                index: region.rows,
            });
        }
        for (element, four) in rows.chunks(ROWS_PER_ELEMENT as usize).enumerate() {
            self.rows_memory.store(first + element, pack_rows(four));
        }
        self.regions.put(id.0, region)
    }

    fn read_rows(&self, region: &abi::Region) -> Vec<u16> {
        let first = (region.rows / ROWS_PER_ELEMENT) as usize;
        let elements = region.size.div_ceil(ROWS_PER_ELEMENT) as usize;
        let mut rows: Vec<u16> = (first..first + elements)
            .take_while(|element| *element < self.rows.len() as usize)
            .flat_map(|element| unpack_rows(self.rows_memory.load(element)))
            .collect();
        rows.truncate(region.size as usize);
        rows
    }

    fn read_announced(&self) -> Result<BTreeMap<abi::AnnouncedKey, abi::Announcement>, ApplyError> {
        let mut announced = BTreeMap::new();
        self.announced.scan(|key, value| {
            announced.insert(*key, *value);
            More::Yes
        })?;
        Ok(announced)
    }

    fn free_backend(&self, id: BackendId) -> Result<(), ApplyError> {
        self.backends.put(id.0, &abi::Backend::default())?;
        // The next owner of the id starts counting from zero.
        self.backends_count.clear(id.0)
    }

    fn service(&mut self, key: &ServiceKey, value: &abi::ServiceEntry) -> Result<(), ApplyError> {
        self.service_ids = self.service_ids.max(value.id.saturating_add(1));
        match key {
            ServiceKey::V4(key) => self.services4.put(key, value, &self.graces),
            ServiceKey::V6(key) => self.services6.put(key, value, &self.graces),
        }
    }

    fn sum(&self, values: &[abi::Count]) -> Vec<(u32, abi::Count)> {
        (0..)
            .zip(values.chunks(self.cpus))
            .map(|(id, cpus)| {
                let mut sum = abi::Count::default();
                for count in cpus {
                    sum.packets = sum.packets.wrapping_add(count.packets);
                    sum.bytes = sum.bytes.wrapping_add(count.bytes);
                }
                (id, sum)
            })
            .filter(|(_, sum)| *sum != abi::Count::default())
            .collect()
    }

    fn totals(&self, table: &PerCpuTable<u64>) -> Result<Vec<u64>, ApplyError> {
        let values = table.read(table.len())?;
        Ok(values
            .chunks(self.cpus)
            .map(|cpus| cpus.iter().sum())
            .collect())
    }
}

/// Four rows in one word, as `[u16; 4]` lies in memory.
fn pack_rows(rows: &[u16]) -> u64 {
    let mut bytes = [0; 8];
    for (to, row) in bytes.chunks_exact_mut(2).zip(rows) {
        to.copy_from_slice(&row.to_ne_bytes());
    }
    u64::from_ne_bytes(bytes)
}

fn unpack_rows(word: u64) -> [u16; ROWS_PER_ELEMENT as usize] {
    let bytes = word.to_ne_bytes();
    [0, 2, 4, 6].map(|at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]))
}

/// A slot in one word, as [`abi::Slot`] lies in memory.
fn pack_slot(slot: abi::Slot) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&slot.first.to_ne_bytes());
    bytes[4..].copy_from_slice(&slot.set.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn unpack_slot(word: u64) -> abi::Slot {
    let bytes = word.to_ne_bytes();
    let [first, set] = [0, 4]
        .map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
    abi::Slot { first, set }
}

/// Index and value of all elements that are not zero.
fn used<V: PartialEq + Default>(values: Vec<V>) -> impl Iterator<Item = (u32, V)> {
    (0..)
        .zip(values)
        .filter(|(_, value)| *value != V::default())
}

impl Dataplane for BpfDataplane {
    fn capacity(&self) -> Capacity {
        Capacity {
            backends: self.backends.len(),
            rows: self.rows.len() * ROWS_PER_ELEMENT,
            regions: self.regions.len(),
            sets: self.sets.len(),
            slots: self.slots.len(),
            services: self.services4.limit(),
        }
    }

    fn read(&mut self) -> Result<Contents, ApplyError> {
        let backends: HashMap<_, _> = used(self.backends.read(self.backends.len())?)
            .map(|(id, value)| (BackendId(id), value))
            .collect();
        let regions = used(self.regions.read(self.regions.len())?)
            .map(|(id, region)| (RegionId(id), (region, self.read_rows(&region))))
            .collect();
        let sets = used(self.sets.read(self.sets.len())?)
            .map(|(id, set)| (SetId(id), set))
            .collect();
        let slots: BTreeMap<_, _> = (0..self.slots.len())
            .map(|index| (index, self.slots_memory.load(index as usize)))
            .filter(|(_, word)| *word != 0)
            .map(|(index, word)| (SlotIndex(index), unpack_slot(word)))
            .collect();
        let mut services = BTreeMap::new();
        let (four, six) = (self.services4.all()?, self.services6.all()?);
        services.extend(
            four.into_iter()
                .map(|(key, entry)| (ServiceKey::V4(key), entry)),
        );
        services.extend(
            six.into_iter()
                .map(|(key, entry)| (ServiceKey::V6(key), entry)),
        );
        let mut pins = HashMap::new();
        self.pins4.scan(|key, value| {
            pins.insert(PinKey::V4(*key), *value);
            More::Yes
        })?;
        self.pins6.scan(|key, value| {
            pins.insert(PinKey::V6(*key), *value);
            More::Yes
        })?;
        let mut locals = HashMap::new();
        self.locals4.scan(|key, value| {
            locals.insert(LocalKey::V4(*key), *value);
            More::Yes
        })?;
        self.locals6.scan(|key, value| {
            locals.insert(LocalKey::V6(*key), *value);
            More::Yes
        })?;
        let mut peers = HashMap::new();
        self.peers.scan(|key, value| {
            peers.insert(*key, *value);
            More::Yes
        })?;
        self.backend_ids = backends.keys().map(|id| id.0 + 1).max().unwrap_or(0);
        self.service_ids = services
            .values()
            .map(|entry| entry.id.saturating_add(1))
            .max()
            .unwrap_or(0);
        Ok(Contents {
            backends,
            regions,
            sets,
            slots,
            services,
            locals,
            pins,
            peers,
            source_ranges: self.source_ranges.keys()?.into_iter().collect(),
            announced: self.read_announced()?,
            config: self.config.get(0)?,
        })
    }

    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        match op {
            Op::Backend { id, value } => {
                self.backend_ids = self.backend_ids.max(id.0.saturating_add(1));
                self.backends.put(id.0, value)
            }
            Op::Rows { id, region, rows } => self.write_rows(*id, region, rows),
            Op::Set { id, value } => self.sets.put(id.0, value),
            Op::Slot { index, value } => {
                self.slots.check(index.0)?;
                self.slots_memory.store(index.0 as usize, pack_slot(*value));
                Ok(())
            }
            Op::Service { key, value } => self.service(key, value),
            Op::ClearCount { id } => self.services_count.clear(*id),
            Op::RemoveService {
                key: ServiceKey::V4(key),
            } => {
                self.services4.remove(key);
                Ok(())
            }
            Op::RemoveService {
                key: ServiceKey::V6(key),
            } => {
                self.services6.remove(key);
                Ok(())
            }
            Op::Local {
                key: LocalKey::V4(key),
                value,
            } => self.locals4.put(key, value),
            Op::Local {
                key: LocalKey::V6(key),
                value,
            } => self.locals6.put(key, value),
            Op::RemoveLocal {
                key: LocalKey::V4(key),
            } => self.locals4.remove(key),
            Op::RemoveLocal {
                key: LocalKey::V6(key),
            } => self.locals6.remove(key),
            Op::Pin {
                key: PinKey::V4(key),
                value,
            } => self.pins4.put(key, value),
            Op::Pin {
                key: PinKey::V6(key),
                value,
            } => self.pins6.put(key, value),
            Op::RemovePin {
                key: PinKey::V4(key),
            } => self.pins4.remove(key),
            Op::RemovePin {
                key: PinKey::V6(key),
            } => self.pins6.remove(key),
            Op::PurgeFlows { identity } => self
                .flows
                .purge(&HashSet::from([*identity]))
                .map(|_removed| ()),
            Op::Peer { addr, node } => self.peers.put(addr, node),
            Op::RemovePeer { addr } => self.peers.remove(addr),
            Op::SourceRange { range } => self.source_ranges.put(range, &1),
            Op::RemoveSourceRange { range } => self.source_ranges.remove(range),
            Op::Announce { key, value } => self.announced.put(key, value),
            Op::RemoveAnnounce { key } => self.announced.remove(key),
            Op::Config { value } => self.config.put(0, value),
            Op::Grace => {
                records::wait(&self.graces)?;
                self.services4.grace();
                self.services6.grace();
                Ok(())
            }
            Op::FreeBackend { id } => self.free_backend(*id),
            Op::FreeSet { id } => self.sets.put(id.0, &abi::Set::default()),
            Op::FreeRegion { id } => self.regions.put(id.0, &abi::Region::default()),
        }
    }

    fn counters(&mut self) -> Result<Counters, ApplyError> {
        Ok(Counters {
            services: self
                .sum(&self.services_count.read(self.service_ids)?)
                .into_iter()
                .collect(),
            backends: self
                .sum(&self.backends_count.read(self.backend_ids)?)
                .into_iter()
                .map(|(id, count)| (BackendId(id), count))
                .collect(),
            drops: self.totals(&self.drops)?,
            stats: self.totals(&self.stats)?,
        })
    }
}
