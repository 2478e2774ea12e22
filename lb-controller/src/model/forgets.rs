//! Whether the maps know owners that a table does not name any more. One that forgets nobody relies on no pins.

use std::collections::HashSet;

use lb_ebpf::abi;

use super::installed::Installed;
use super::plan::{CELL, Entry, Service, cell};

impl Installed {
    /// Whether some flow that these maps find now might not be found after the table is applied. Substitutes do not count:
    /// flows that they have are pinned anyway.
    pub fn forgets(&self, service: &Service) -> bool {
        service.entries.iter().any(|entry| {
            let old = self.services.get(&entry.key);
            old.is_some_and(|old| self.forgets_rows(old, entry) || self.forgets_pods(old, entry))
        })
    }

    fn forgets_rows(&self, old: &abi::ServiceEntry, entry: &Entry) -> bool {
        let tables = entry.previous.iter().flatten().chain([&entry.current]);
        let named: HashSet<u32> = tables
            .filter_map(|table| self.regions.get(&table.digest))
            .filter_map(|id| Some(self.region_values.get(id)?.0.rows))
            .collect();
        let mut known = old.previous.iter().chain([&old.current]);
        known.any(|table| table.size > 0 && !named.contains(&table.rows))
    }

    fn forgets_pods(&self, old: &abi::ServiceEntry, entry: &Entry) -> bool {
        let from = old.slots as usize * CELL;
        let known = self.cells.iter().skip(from);
        let known: Vec<u32> = known
            .take(old.slot_count as usize * CELL)
            .copied()
            .collect();
        let mut slots = known.chunks_exact(CELL).enumerate();
        slots.any(|(at, ids)| {
            let named = entry.cells.get(at * CELL..(at + 1) * CELL);
            owners(ids).any(|id| !named.is_some_and(|named| owners(named).any(|own| own == id)))
        })
    }
}

/// Who may own flows of a slot.
fn owners(ids: &[u32]) -> impl Iterator<Item = u32> {
    let agreed = match ids[cell::AGREED] {
        0 => ids[cell::FIRST],
        agreed => agreed,
    };
    let older = ids[cell::OLDER].iter().copied();
    older.chain([agreed]).filter(|id| *id != 0)
}
