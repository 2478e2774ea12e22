//! What one node's maps hold, as far as operations have happened: ids, mirrors of the arrays, and how a `ServiceTable`
//! becomes ids. Bookkeeping changes in [`Installed::record`] only, after the operation that it describes.
//!
//! Use, one Service at a time:
//! ```text
//! service = installed.decode(&table)?              keep it: it names ids
//! for op in installed.plan(&service)?  { dataplane.apply(&op)?; installed.record(&op) }
//! for op in installed.collect(&all)    { dataplane.apply(&op)?; installed.record(&op) }
//! ```
//! After a failure stop there and plan that Service again later: the plan starts from what was recorded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use lb_ebpf::abi::{self, ROWS_PER_ELEMENT, SLOT_DEVIATES};
use lb_ebpf::wire::Addr6;

use super::backends::{Backends, View};
use super::ids::{Extents, Used};
use super::maglev::Rows;
use super::op::{BackendId, LocalKey, Op, PinKey, RegionId, ServiceKey, SetId, SlotIndex};
use super::plan::{CELL, cell};
use super::table::TableError;
use super::template::PodPort;
use crate::dataplane::{Capacity, Contents};

/// Why something cannot be planned. Other Services are not concerned.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// A map has no room.
    #[error("map {map} is full ({limit} entries); give the agent larger maps or remove Services")]
    Full {
        /// Its name.
        map: &'static str,
        /// Its size.
        limit: u32,
    },
    /// A table that makes no sense.
    #[error("the ServiceTable makes no sense: {0}")]
    Table(#[from] TableError),
}

/// What one node's maps hold.
#[derive(Clone, Debug)]
pub struct Installed {
    pub(super) capacity: Capacity,
    pub(super) view: View,
    pub(super) backends: Backends,
    pub(super) sets: Vec<abi::Set>,
    pub(super) used_sets: Used,
    pub(super) slots: Vec<abi::Slot>,
    /// [`CELL`] backend ids per slot: what `slots` and `sets` come to.
    pub(super) cells: Vec<u32>,
    pub(super) slot_ranges: Extents,
    /// Slot ranges that no service names any more, but a program may still read.
    pub(super) orphans: Vec<u32>,
    pub(super) regions: HashMap<u64, RegionId>,
    pub(super) region_values: BTreeMap<RegionId, (abi::Region, Rows)>,
    pub(super) used_regions: Used,
    pub(super) row_ranges: Extents,
    pub(super) services: BTreeMap<ServiceKey, abi::ServiceEntry>,
    pub(super) service_ids: Used,
    /// How many entries have an id.
    service_id_users: HashMap<u32, u32>,
    /// Which Service planned a key last.
    pub(super) owners: HashMap<ServiceKey, Arc<str>>,
    pub(super) keys: HashMap<Arc<str>, Vec<ServiceKey>>,
    pub(super) locals: HashMap<LocalKey, abi::LocalPod>,
    pub(super) pins: HashMap<PinKey, abi::Pin>,
    /// How many of them each service entry has.
    pub(super) pins_by_service: HashMap<ServiceKey, u32>,
    pub(super) peers: HashMap<Addr6, u32>,
    /// By service id.
    pub(super) source_ranges: BTreeMap<u32, BTreeSet<abi::SourceRange>>,
    pub(super) announced: BTreeMap<abi::AnnouncedKey, abi::Announcement>,
    pub(super) config: abi::Config,
    /// Number of the last plan.
    pub(super) plan: u32,
}

/// How much of the maps is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Backends that stand for pods.
    pub backends: u32,
    /// Rows.
    pub rows: u32,
    /// Regions of rows: different tables.
    pub regions: u32,
    /// Sets.
    pub sets: u32,
    /// Slots.
    pub slots: u32,
    /// Service entries of both families, VIP markers included.
    pub services: u32,
}

impl Installed {
    /// Starts from what the maps hold.
    pub fn from_contents(contents: &Contents, capacity: Capacity, view: View) -> Self {
        let Contents {
            backends,
            regions,
            sets,
            slots,
            services,
            locals,
            pins,
            peers,
            source_ranges,
            announced,
            config,
        } = contents;
        let mut installed = Self::empty(capacity, view);
        let mut ids: Vec<_> = backends.iter().collect();
        ids.sort_by_key(|(id, _)| **id);
        for (id, value) in ids {
            installed.backends.set(*id, value);
        }
        for (id, (region, rows)) in regions {
            installed.set_region(*id, *region, rows.as_slice().into());
        }
        for (id, value) in sets {
            installed.set_set(*id, *value);
        }
        for (index, value) in slots {
            installed.set_slot(*index, *value);
        }
        for (key, value) in services {
            // The room behind a range is not known any more: the next one may start right there.
            installed.slot_ranges.insert(value.slots, value.slot_count);
            installed.set_service(*key, *value);
        }
        installed.locals.clone_from(locals);
        for (key, value) in pins {
            installed.record(&Op::Pin {
                key: *key,
                value: *value,
            });
        }
        installed.peers.clone_from(peers);
        for range in source_ranges {
            installed.set_source_range(*range);
        }
        installed.announced.clone_from(announced);
        installed.config = *config;
        installed
    }

    fn empty(capacity: Capacity, view: View) -> Self {
        let mut used_sets = Used::new(capacity.sets);
        used_sets.insert(0);
        Self {
            view,
            backends: Backends::new(capacity.backends),
            sets: vec![abi::Set::default()],
            used_sets,
            slots: Vec::new(),
            cells: Vec::new(),
            slot_ranges: Extents::new(capacity.slots),
            orphans: Vec::new(),
            regions: HashMap::new(),
            region_values: BTreeMap::new(),
            used_regions: Used::new(capacity.regions),
            row_ranges: Extents::new(capacity.rows / ROWS_PER_ELEMENT),
            services: BTreeMap::new(),
            service_ids: Used::new(capacity.services),
            service_id_users: HashMap::new(),
            owners: HashMap::new(),
            keys: HashMap::new(),
            locals: HashMap::new(),
            pins: HashMap::new(),
            pins_by_service: HashMap::new(),
            peers: HashMap::new(),
            source_ranges: BTreeMap::new(),
            announced: BTreeMap::new(),
            config: abi::Config::default(),
            plan: 0,
            capacity,
        }
    }

    /// This node's view of itself and the others. Call [`Installed::plan_backends`] and [`Installed::plan_peers`] after a
    /// change.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Replaces the view.
    pub fn set_view(&mut self, view: View) {
        self.view = view;
    }

    /// The configuration of the programs.
    pub fn config(&self) -> &abi::Config {
        &self.config
    }

    /// How much of the maps is in use.
    pub fn usage(&self) -> Usage {
        Usage {
            backends: self.backends.len() - self.asked_for_opinions(),
            rows: self.row_ranges.len() * ROWS_PER_ELEMENT,
            regions: self.used_regions.len(),
            sets: self.used_sets.len() - 1,
            slots: self.slot_ranges.len(),
            services: self.services.len() as u32,
        }
    }

    /// What the maps should hold after everything recorded so far: what a read-back is compared with.
    pub fn contents(&self) -> Contents {
        let backends = self.backends.iter();
        let slots = self
            .slots
            .iter()
            .zip(0..)
            .filter(|(slot, _)| **slot != abi::Slot::default());
        let sets = self.used_sets.iter().skip(1);
        let regions = self.region_values.iter();
        Contents {
            backends: backends
                .filter_map(|(id, e)| Some((id, **e.value.as_ref()?)))
                .collect(),
            regions: regions
                .map(|(id, (region, rows))| (*id, (*region, rows.to_vec())))
                .collect(),
            sets: sets.map(|id| (SetId(id), self.sets[id as usize])).collect(),
            slots: slots
                .map(|(slot, index)| (SlotIndex(index), *slot))
                .collect(),
            services: self.services.clone(),
            locals: self.locals.clone(),
            pins: self.pins.clone(),
            peers: self.peers.clone(),
            source_ranges: self.source_ranges.values().flatten().copied().collect(),
            announced: self.announced.clone(),
            config: self.config,
        }
    }

    /// The service entries.
    pub fn services(&self) -> &BTreeMap<ServiceKey, abi::ServiceEntry> {
        &self.services
    }

    /// Backend ids with who they are, and what the map holds for them.
    pub fn backends(&self) -> impl Iterator<Item = (BackendId, PodPort, Option<&abi::Backend>)> {
        let all = self.backends.iter();
        all.filter_map(|(id, entry)| Some((id, entry.pod?, entry.value.as_deref())))
    }

    /// UID and node of a backend, once a table has named it.
    pub fn whereabouts(&self, id: BackendId) -> Option<(&str, &str)> {
        let known = self.backends.get(id)?.known.as_ref()?;
        Some((&*known.uid, &*known.node))
    }

    /// Notes that an operation has happened.
    pub fn record(&mut self, op: &Op) {
        match op {
            Op::Backend { id, value } => self.backends.set(*id, value),
            Op::Rows { id, region, rows } => self.set_region(*id, *region, rows.clone()),
            Op::Set { id, value } => self.set_set(*id, *value),
            Op::Slot { index, value } => self.set_slot(*index, *value),
            Op::Service { key, value } => self.set_service(*key, *value),
            Op::RemoveService { key } => self.remove_service(*key),
            Op::Local { key, value } => {
                self.locals.insert(*key, *value);
            }
            Op::RemoveLocal { key } => {
                self.locals.remove(key);
            }
            Op::Pin { key, value } => {
                if self.pins.insert(*key, *value).is_none() {
                    *self.pins_by_service.entry(key.service()).or_insert(0) += 1;
                }
            }
            Op::RemovePin { key } => self.remove_pin(key),
            Op::PurgeFlows { identity: _ } | Op::ClearCount { id: _ } => {}
            Op::Peer { addr, node } => {
                self.peers.insert(*addr, *node);
            }
            Op::RemovePeer { addr } => {
                self.peers.remove(addr);
            }
            Op::SourceRange { range } => self.set_source_range(*range),
            Op::RemoveSourceRange { range } => self.remove_source_range(range),
            Op::Announce { key, value } => {
                self.announced.insert(*key, *value);
            }
            Op::RemoveAnnounce { key } => {
                self.announced.remove(key);
            }
            Op::Config { value } => self.config = **value,
            Op::Grace => {
                for start in self.orphans.drain(..) {
                    self.slot_ranges.remove(start);
                }
            }
            Op::FreeBackend { id } => self.backends.free(*id),
            Op::FreeSet { id } => {
                self.set_set(*id, abi::Set::default());
                self.used_sets.remove(id.0);
            }
            Op::FreeRegion { id } => self.free_region(*id),
        }
    }

    fn remove_pin(&mut self, key: &PinKey) {
        if self.pins.remove(key).is_none() {
            return;
        }
        let service = key.service();
        if let Some(count) = self.pins_by_service.get_mut(&service) {
            *count -= 1;
            if *count == 0 {
                self.pins_by_service.remove(&service);
            }
        }
    }

    fn set_source_range(&mut self, range: abi::SourceRange) {
        let ranges = self.source_ranges.entry(range.service()).or_default();
        ranges.insert(range);
    }

    fn remove_source_range(&mut self, range: &abi::SourceRange) {
        if let Some(ranges) = self.source_ranges.get_mut(&range.service()) {
            ranges.remove(range);
            if ranges.is_empty() {
                self.source_ranges.remove(&range.service());
            }
        }
    }

    fn set_region(&mut self, id: RegionId, region: abi::Region, rows: Rows) {
        self.used_regions.insert(id.0);
        let start = region.rows / ROWS_PER_ELEMENT;
        self.row_ranges
            .insert(start, region.size.div_ceil(ROWS_PER_ELEMENT));
        self.regions.insert(region.digest, id);
        self.region_values.insert(id, (region, rows));
    }

    fn free_region(&mut self, id: RegionId) {
        self.used_regions.remove(id.0);
        if let Some((region, _)) = self.region_values.remove(&id) {
            self.row_ranges.remove(region.rows / ROWS_PER_ELEMENT);
            if self.regions.get(&region.digest) == Some(&id) {
                self.regions.remove(&region.digest);
            }
        }
    }

    fn set_set(&mut self, id: SetId, value: abi::Set) {
        let at = id.0 as usize;
        if at >= self.sets.len() {
            self.sets.resize(at + 1, abi::Set::default());
        }
        self.sets[at] = value;
        self.used_sets.insert(id.0);
    }

    fn set_slot(&mut self, index: SlotIndex, value: abi::Slot) {
        let at = index.0 as usize;
        if at >= self.slots.len() {
            self.slots.resize(at + 1, abi::Slot::default());
            self.cells.resize((at + 1) * CELL, 0);
        }
        self.slots[at] = value;
        let set = self
            .sets
            .get((value.set & !SLOT_DEVIATES) as usize)
            .copied()
            .unwrap_or_default();
        let abi::Set {
            current,
            older,
            substitute,
        } = set;
        let to = &mut self.cells[at * CELL..(at + 1) * CELL];
        to[cell::FIRST] = value.first;
        to[cell::AGREED] = if value.set & SLOT_DEVIATES == 0 {
            0
        } else {
            current
        };
        to[cell::OLDER].copy_from_slice(&older);
        to[cell::SUBSTITUTE] = substitute;
    }

    fn set_service(&mut self, key: ServiceKey, value: abi::ServiceEntry) {
        self.service_ids.insert(value.id);
        *self.service_id_users.entry(value.id).or_insert(0) += 1;
        if let Some(old) = self.services.insert(key, value) {
            if old.slots != value.slots || value.slot_count == 0 {
                self.orphan(old);
            }
            self.free_service_id(old.id);
        }
        if value.slot_count > 0 && self.slot_ranges.len_at(value.slots) == 0 {
            self.slot_ranges
                .insert(value.slots, range_len(value.slot_count));
        }
    }

    fn remove_service(&mut self, key: ServiceKey) {
        if let Some(old) = self.services.remove(&key) {
            self.orphan(old);
            self.free_service_id(old.id);
        }
        if let Some(uid) = self.owners.remove(&key)
            && let Some(keys) = self.keys.get_mut(&uid)
        {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.keys.remove(&uid);
            }
        }
    }

    fn orphan(&mut self, old: abi::ServiceEntry) {
        if old.slot_count > 0 {
            self.orphans.push(old.slots);
        }
    }

    /// An id is shared by the entries of one Service and port in both families.
    fn free_service_id(&mut self, id: u32) {
        let users = self.service_id_users.entry(id).or_insert(1);
        *users -= 1;
        if *users == 0 {
            self.service_id_users.remove(&id);
            self.service_ids.remove(id);
        }
    }
}

/// Slots set aside for a service of `count`: room to grow by one pod or an eighth without moving the range.
pub(super) fn range_len(count: u32) -> u32 {
    match count {
        0 => 0,
        1..64 => count.next_multiple_of(8),
        64.. => (count + count / 8).next_multiple_of(8),
    }
}
