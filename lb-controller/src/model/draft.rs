//! A plan being made for one Service: operations by kind, and the ids that they use. See [`super::diff`] for their order.

use std::collections::BTreeSet;

use lb_ebpf::abi::{self, OLDER_MAX, ROWS_PER_ELEMENT, SLOT_DEVIATES, service_flag};

use super::backends;
use super::installed::{Installed, PlanError, range_len};
use super::maglev;
use super::op::{BackendId, Op, RegionId, ServiceKey, SetId, SlotIndex};
use super::plan::{CELL, Entry, Service, Table, cell, port_of, source_range, vip_key};

/// Cells compared at once: a kilobyte, which is one call of `memcmp` and still finds the one that changed quickly.
const CELLS_AT_ONCE: usize = 64;

/// The set of a slot and its flag.
fn set_of(from: &[u32]) -> (abi::Set, u32) {
    let mut older = [0; OLDER_MAX];
    older.copy_from_slice(&from[cell::OLDER]);
    let set = abi::Set {
        current: from[cell::AGREED],
        older,
        substitute: from[cell::SUBSTITUTE],
    };
    let flag = if set.current == 0 { 0 } else { SLOT_DEVIATES };
    (set, flag)
}

/// A plan being made: operations by kind, and ids chosen on the way.
pub(super) struct Draft<'a> {
    installed: &'a mut Installed,
    backends: Vec<Op>,
    rows: Vec<Op>,
    sets: Vec<Op>,
    slots: Vec<Op>,
    /// Source ranges that must be there before the entries.
    ranges: Vec<Op>,
    services: Vec<Op>,
    removals: Vec<Op>,
    /// Source ranges that may go after the entries.
    stale_ranges: Vec<Op>,
    /// Service ids whose source ranges are planned.
    ranged: Vec<u32>,
    next_set: u32,
    next_region: u32,
    next_service: u32,
    /// Regions of this plan, by digest.
    regions: Vec<(u64, abi::Region)>,
    /// Ids of this plan, by port and protocol.
    service_ids: Vec<((u16, u8), u32)>,
    slot_ranges: Vec<(u32, u32)>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(installed: &'a mut Installed) -> Self {
        Self {
            installed,
            backends: Vec::new(),
            rows: Vec::new(),
            sets: Vec::new(),
            slots: Vec::new(),
            ranges: Vec::new(),
            services: Vec::new(),
            removals: Vec::new(),
            stale_ranges: Vec::new(),
            ranged: Vec::new(),
            next_set: 1,
            next_region: 0,
            next_service: 0,
            regions: Vec::new(),
            service_ids: Vec::new(),
            slot_ranges: Vec::new(),
        }
    }

    pub(super) fn into_ops(self) -> Vec<Op> {
        let mut ops = self.backends;
        for more in [
            self.rows,
            self.sets,
            self.slots,
            self.ranges,
            self.services,
            self.removals,
            self.stale_ranges,
        ] {
            ops.extend(more);
        }
        ops
    }

    pub(super) fn entry(&mut self, service: &Service, entry: &Entry) -> Result<(), PlanError> {
        let old = self.installed.services.get(&entry.key).copied();
        let slots = self.slots(entry, old)?;
        let mut value = abi::ServiceEntry {
            id: 0,
            flags: entry.flags | self.installed.moving_flags(service, entry.key),
            slots,
            slot_count: entry.slot_count(),
            current: self.table(&entry.current)?,
            previous: Default::default(),
        };
        for (to, table) in value
            .previous
            .iter_mut()
            .zip(entry.previous.iter().flatten())
        {
            *to = self.table(table)?;
        }
        value.id = match old {
            Some(old) => old.id,
            None => self.service_id(service, entry.key)?,
        };
        self.source_ranges(service, value.id, old);
        if old != Some(value) {
            self.services.push(Op::Service {
                key: entry.key,
                value,
            });
        }
        self.marker(entry.key)
    }

    /// Ranges that are missing go before the entry. Those that are there in vain go after it; before it, if no packet asks
    /// for them yet: an id never inherits the ranges of its last owner. Those of a Service that has none any more are left
    /// to [`Installed::collect`], since packets under way may still ask for them.
    fn source_ranges(&mut self, service: &Service, id: u32, old: Option<abi::ServiceEntry>) {
        if service.source_ranges.is_empty() || self.ranged.contains(&id) {
            return;
        }
        self.ranged.push(id);
        let asked = old.is_some_and(|old| old.flags & service_flag::SOURCE_RANGES != 0);
        let ranges = service.source_ranges.iter();
        let wanted: BTreeSet<_> = ranges.map(|range| source_range(id, *range)).collect();
        let none = BTreeSet::new();
        let there = self.installed.source_ranges.get(&id).unwrap_or(&none);
        let stale = there.difference(&wanted);
        let stale = stale.map(|range| Op::RemoveSourceRange { range: *range });
        if asked {
            self.stale_ranges.extend(stale);
        } else {
            self.ranges.extend(stale);
        }
        let missing = wanted.difference(there);
        self.ranges
            .extend(missing.map(|range| Op::SourceRange { range: *range }));
    }

    /// The range of an entry's slots: the old one if there is room in it, else a new one.
    fn slots(&mut self, entry: &Entry, old: Option<abi::ServiceEntry>) -> Result<u32, PlanError> {
        let count = entry.slot_count();
        if count == 0 {
            return Ok(0);
        }
        if let Some(old) = old.filter(|old| old.slot_count > 0)
            && count <= self.installed.slot_ranges.len_at(old.slots)
        {
            self.fill(entry, old.slots, old.slots)?;
            return Ok(old.slots);
        }
        let len = range_len(count);
        let start = self.installed.slot_ranges.free(len, &self.slot_ranges);
        let limit = self.installed.capacity.slots;
        let start = start.ok_or(PlanError::Full {
            map: abi::map::SLOTS,
            limit,
        })?;
        self.slot_ranges.push((start, len));
        // Sets are immutable, so both ranges may name one.
        self.fill(entry, start, old.map_or(start, |old| old.slots))?;
        Ok(start)
    }

    /// Writes the slots of the range at `start` that differ. A slot of the range at `like` with the same older occupants
    /// lends its set.
    fn fill(&mut self, entry: &Entry, start: u32, like: u32) -> Result<(), PlanError> {
        let at = start as usize * CELL;
        for (block, wanted) in entry.cells.chunks(CELLS_AT_ONCE * CELL).enumerate() {
            let offset = block * CELLS_AT_ONCE;
            let from = at + offset * CELL;
            if self.installed.cells.get(from..from + wanted.len()) == Some(wanted) {
                continue;
            }
            for (n, ids) in wanted.chunks_exact(CELL).enumerate() {
                let slot = (offset + n) as u32;
                let here = from + n * CELL;
                if self.installed.cells.get(here..here + CELL) != Some(ids) {
                    self.slot(ids, start + slot, like + slot)?;
                }
            }
        }
        Ok(())
    }

    fn slot(&mut self, ids: &[u32], index: u32, like: u32) -> Result<(), PlanError> {
        for (place, id) in ids.iter().enumerate().filter(|(_, id)| **id != 0) {
            self.backend(BackendId(*id), place == cell::FIRST);
        }
        let (set, deviates) = set_of(ids);
        let set = if set == abi::Set::default() {
            0
        } else {
            self.set(set, like)?
        };
        let value = abi::Slot {
            first: ids[cell::FIRST],
            set: set | deviates,
        };
        self.slots.push(Op::Slot {
            index: SlotIndex(index),
            value,
        });
        Ok(())
    }

    /// Writes a backend that no table names yet.
    pub(super) fn pinned(&mut self, id: BackendId) {
        self.backend(id, false);
    }

    /// Writes a backend that is not there. Of two pods that have had one address here, the one that gets new flows
    /// (`first`) is the one that lives.
    fn backend(&mut self, id: BackendId, first: bool) {
        let Installed {
            backends,
            view,
            plan,
            locals,
            ..
        } = &mut *self.installed;
        if !backends.plan(id, *plan) {
            return;
        }
        let Some(entry) = backends.get(id) else {
            return;
        };
        let (Some(pod), Some(known)) = (entry.pod, &entry.known) else {
            return;
        };
        let value = if let Some(value) = &entry.value {
            **value
        } else {
            let value = view.render(&pod, &known.node);
            let op = Op::Backend {
                id,
                value: Box::new(value),
            };
            self.backends.push(op);
            value
        };
        let Some((key, value)) = backends::local(id, &pod, &value) else {
            return;
        };
        let planned = |op: &Op| matches!(op, Op::Local { key: other, .. } if *other == key);
        let taken = locals.contains_key(&key) || self.backends.iter().any(planned);
        if !taken || (first && locals.get(&key) != Some(&value)) {
            self.backends.push(Op::Local { key, value });
        }
    }

    fn set(&mut self, value: abi::Set, like: u32) -> Result<u32, PlanError> {
        let lent = self
            .installed
            .slots
            .get(like as usize)
            .map_or(0, |slot| slot.set & !SLOT_DEVIATES);
        if lent != 0 && self.installed.sets.get(lent as usize) == Some(&value) {
            return Ok(lent);
        }
        let limit = self.installed.capacity.sets;
        let id = self.installed.used_sets.free_from(self.next_set);
        let id = id.ok_or(PlanError::Full {
            map: abi::map::SETS,
            limit,
        })?;
        self.next_set = id + 1;
        self.sets.push(Op::Set {
            id: SetId(id),
            value,
        });
        Ok(id)
    }

    /// A table as a service names it; its rows are written if no region has them.
    fn table(&mut self, table: &Table) -> Result<abi::TableRef, PlanError> {
        let shape = &table.shape;
        let fields = shape.fields().to_abi();
        if shape.slots() == 0 {
            return Ok(abi::TableRef {
                rows: 0,
                size: 0,
                fields,
            });
        }
        let installed = self.installed.regions.get(&table.digest);
        let installed = installed
            .and_then(|id| self.installed.region_values.get(id))
            .map(|(region, _)| *region);
        let planned = || {
            self.regions
                .iter()
                .find(|(digest, _)| *digest == table.digest)
        };
        let region = match installed.or_else(|| planned().map(|(_, region)| *region)) {
            Some(region) => region,
            None => self.region(table)?,
        };
        Ok(abi::TableRef {
            rows: region.rows,
            size: region.size,
            fields,
        })
    }

    fn region(&mut self, table: &Table) -> Result<abi::Region, PlanError> {
        let size = table.shape.size().get();
        let taken: Vec<_> = self
            .regions
            .iter()
            .map(|(_, region)| {
                (
                    region.rows / ROWS_PER_ELEMENT,
                    region.size.div_ceil(ROWS_PER_ELEMENT),
                )
            })
            .collect();
        let start = self
            .installed
            .row_ranges
            .free(size.div_ceil(ROWS_PER_ELEMENT), &taken);
        let limit = self.installed.capacity.rows;
        let start = start.ok_or(PlanError::Full {
            map: abi::map::ROWS,
            limit,
        })?;
        let limit = self.installed.capacity.regions;
        let id = self.installed.used_regions.free_from(self.next_region);
        let id = id.ok_or(PlanError::Full {
            map: abi::map::REGIONS,
            limit,
        })?;
        self.next_region = id + 1;
        let region = abi::Region {
            rows: start * ROWS_PER_ELEMENT,
            size,
            digest: table.digest,
        };
        self.regions.push((table.digest, region));
        let rows = maglev::rows(&table.shape);
        self.rows.push(Op::Rows {
            id: RegionId(id),
            region,
            rows,
        });
        Ok(region)
    }

    /// The id that the entry of the other family has, else a fresh one.
    fn service_id(&mut self, service: &Service, key: ServiceKey) -> Result<u32, PlanError> {
        let port = port_of(key);
        if let Some((_, id)) = self.service_ids.iter().find(|(other, _)| *other == port) {
            return Ok(*id);
        }
        let mut twins = service
            .entries
            .iter()
            .filter(|entry| port_of(entry.key) == port);
        let twin = twins.find_map(|entry| self.installed.services.get(&entry.key));
        let id = if let Some(twin) = twin {
            twin.id
        } else {
            let id = self.fresh_service_id()?;
            self.services.push(Op::ClearCount { id });
            id
        };
        self.service_ids.push((port, id));
        Ok(id)
    }

    fn fresh_service_id(&mut self) -> Result<u32, PlanError> {
        let limit = self.installed.capacity.services;
        let id = self.installed.service_ids.free_from(self.next_service);
        let id = id.ok_or(PlanError::Full {
            map: abi::map::SERVICES4,
            limit,
        })?;
        self.next_service = id + 1;
        Ok(id)
    }

    /// Marks the VIP of a key, unless it is marked.
    fn marker(&mut self, key: ServiceKey) -> Result<(), PlanError> {
        let key = vip_key(key);
        let planned = |op: &Op| matches!(op, Op::Service { key: other, .. } if *other == key);
        if self.installed.services.contains_key(&key) || self.services.iter().any(planned) {
            return Ok(());
        }
        let id = self.fresh_service_id()?;
        let value = abi::ServiceEntry {
            id,
            flags: service_flag::VIP,
            ..Default::default()
        };
        self.services.push(Op::Service { key, value });
        Ok(())
    }

    /// Entries that the Service had and has no more.
    pub(super) fn removals(&mut self, service: &Service) {
        let Some(old) = self.installed.keys.get(&service.uid) else {
            return;
        };
        let kept = |key: &ServiceKey| service.entries.iter().any(|entry| entry.key == *key);
        let lost: Vec<_> = old.iter().copied().filter(|key| !kept(key)).collect();
        if lost.is_empty() {
            return;
        }
        self.removals = self.installed.removal(&lost);
        // A VIP that a planned entry is about to use keeps its marker.
        let used = |marker: ServiceKey| service.entries.iter().any(|e| vip_key(e.key) == marker);
        self.removals
            .retain(|op| !matches!(op, Op::RemoveService { key } if used(*key)));
    }
}
