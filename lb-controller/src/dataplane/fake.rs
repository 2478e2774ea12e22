//! The maps in plain memory: what tests, the simulator and `--dry-run` use in place of the kernel's.
//!
//! Refuses what the kernel would refuse (a full hash map, an index beyond an array) and, beyond that, what no caller may
//! ask for: naming what is not there. It must not know why an operation is made.

use lb_ebpf::abi::{self, map};

use super::{ApplyError, Capacity, Contents, Counters, Dataplane};
use crate::model::op::{Op, ServiceKey};

/// Maps in plain memory.
#[derive(Clone, Debug)]
pub struct FakeDataplane {
    capacity: Capacity,
    contents: Contents,
    counters: Counters,
    purged: Vec<u32>,
    graces: u64,
}

impl Default for FakeDataplane {
    /// Empty maps of the default sizes.
    fn default() -> Self {
        Self::new(Capacity::default())
    }
}

impl FakeDataplane {
    /// Empty maps of these sizes.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            contents: Contents::default(),
            counters: Counters {
                drops: vec![0; abi::DropReason::COUNT as usize],
                stats: vec![0; abi::Stat::COUNT as usize],
                ..Counters::default()
            },
            purged: Vec::new(),
            graces: 0,
        }
    }

    /// What is there now.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// For tests that break the maps behind the owner's back.
    pub fn contents_mut(&mut self) -> &mut Contents {
        &mut self.contents
    }

    /// For tests that let packets pass.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Identities whose flows were ended, oldest first.
    pub fn purged(&self) -> &[u32] {
        &self.purged
    }

    /// Grace periods waited for.
    pub fn graces(&self) -> u64 {
        self.graces
    }

    fn write_rows(
        &mut self,
        id: crate::model::op::RegionId,
        region: abi::Region,
        rows: &[u16],
    ) -> Result<(), ApplyError> {
        index_below(map::REGIONS, id.0, self.capacity.regions)?;
        let end = u64::from(region.rows) + u64::from(region.size);
        if end > u64::from(self.capacity.rows) {
            return Err(ApplyError::OutOfRange {
                map: map::ROWS,
                index: region.rows,
            });
        }
        assert_eq!(
            rows.len(),
            region.size as usize,
            "a region has as many rows as it says"
        );
        self.contents.regions.insert(id, (region, rows.to_vec()));
        Ok(())
    }

    fn write_service(
        &mut self,
        key: ServiceKey,
        value: abi::ServiceEntry,
    ) -> Result<(), ApplyError> {
        let (name, same_family): (_, fn(&ServiceKey) -> bool) = match key {
            ServiceKey::V4(_) => (map::SERVICES4, |key| matches!(key, ServiceKey::V4(_))),
            ServiceKey::V6(_) => (map::SERVICES6, |key| matches!(key, ServiceKey::V6(_))),
        };
        let services = &mut self.contents.services;
        let full = services.keys().filter(|key| same_family(key)).count()
            >= self.capacity.services as usize;
        if full && !services.contains_key(&key) {
            return Err(ApplyError::Full {
                map: name,
                limit: self.capacity.services,
            });
        }
        services.insert(key, value);
        Ok(())
    }
}

fn index_below(map: &'static str, index: u32, limit: u32) -> Result<(), ApplyError> {
    if index < limit {
        Ok(())
    } else {
        Err(ApplyError::OutOfRange { map, index })
    }
}

impl Dataplane for FakeDataplane {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn read(&mut self) -> Result<Contents, ApplyError> {
        Ok(self.contents.clone())
    }

    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let Capacity {
            backends,
            rows: _,
            regions,
            sets,
            slots,
            services: _,
        } = self.capacity;
        match op {
            Op::Backend { id, value } => {
                index_below(map::BACKENDS, id.0, backends)?;
                self.contents.backends.insert(*id, **value);
            }
            Op::Rows { id, region, rows } => self.write_rows(*id, *region, rows)?,
            Op::Set { id, value } => {
                index_below(map::SETS, id.0, sets)?;
                self.contents.sets.insert(*id, *value);
            }
            Op::Slot { index, value } => {
                index_below(map::SLOTS, index.0, slots)?;
                if *value == abi::Slot::default() {
                    self.contents.slots.remove(index);
                } else {
                    self.contents.slots.insert(*index, *value);
                }
            }
            Op::Service { key, value } => self.write_service(*key, *value)?,
            Op::ClearCount { id } => {
                self.counters.services.remove(id);
            }
            Op::RemoveService { key } => {
                self.contents.services.remove(key);
            }
            Op::Local { key, value } => {
                self.contents.locals.insert(*key, *value);
            }
            Op::Pin { key, value } => {
                self.contents.pins.insert(*key, *value);
            }
            Op::RemovePin { key } => {
                self.contents.pins.remove(key);
            }
            Op::RemoveLocal { key } => {
                self.contents.locals.remove(key);
            }
            Op::PurgeFlows { identity } => self.purged.push(*identity),
            Op::Peer { addr, node } => {
                self.contents.peers.insert(*addr, *node);
            }
            Op::RemovePeer { addr } => {
                self.contents.peers.remove(addr);
            }
            Op::SourceRange { range } => {
                self.contents.source_ranges.insert(*range);
            }
            Op::RemoveSourceRange { range } => {
                self.contents.source_ranges.remove(range);
            }
            Op::Announce { key, value } => {
                self.contents.announced.insert(*key, *value);
            }
            Op::RemoveAnnounce { key } => {
                self.contents.announced.remove(key);
            }
            Op::Config { value } => self.contents.config = **value,
            Op::Grace => self.graces += 1,
            Op::FreeBackend { id } => {
                index_below(map::BACKENDS, id.0, backends)?;
                self.contents.backends.remove(id);
                self.counters.backends.remove(id);
            }
            Op::FreeSet { id } => {
                index_below(map::SETS, id.0, sets)?;
                self.contents.sets.remove(id);
            }
            Op::FreeRegion { id } => {
                index_below(map::REGIONS, id.0, regions)?;
                self.contents.regions.remove(id);
            }
        }
        Ok(())
    }

    fn counters(&mut self) -> Result<Counters, ApplyError> {
        Ok(self.counters.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::op::{BackendId, SlotIndex};

    #[test]
    fn zeroed_slots_are_not_among_the_contents() {
        let mut fake = FakeDataplane::default();
        let slot = |first| Op::Slot {
            index: SlotIndex(3),
            value: abi::Slot { first, set: 0 },
        };
        fake.apply(&slot(7)).unwrap();
        assert_eq!(fake.contents().slots.len(), 1);
        fake.apply(&slot(0)).unwrap();
        assert_eq!(fake.read().unwrap(), Contents::default());
    }

    #[test]
    fn full_services_and_indices_beyond_the_end_are_refused() {
        let mut fake = FakeDataplane::new(Capacity {
            services: 1,
            backends: 2,
            ..Capacity::default()
        });
        let service = |port| Op::Service {
            key: ServiceKey::V4(abi::ServiceKey4 {
                port: lb_ebpf::wire::Be16::new(port),
                ..abi::ServiceKey4::default()
            }),
            value: abi::ServiceEntry::default(),
        };
        fake.apply(&service(1)).unwrap();
        fake.apply(&service(1)).unwrap();
        assert!(matches!(
            fake.apply(&service(2)),
            Err(ApplyError::Full {
                map: map::SERVICES4,
                limit: 1
            })
        ));
        let backend = Op::Backend {
            id: BackendId(2),
            value: Box::default(),
        };
        assert!(matches!(
            fake.apply(&backend),
            Err(ApplyError::OutOfRange {
                map: map::BACKENDS,
                index: 2
            })
        ));
    }
}
