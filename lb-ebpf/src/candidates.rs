//! Who may own a flow: its slot's occupants, newest first, in the current and the previous tables.

use crate::abi::{OLDER_MAX, PREVIOUS_MAX, SLOT_DEVIATES, ServiceEntry, TableRef, Tuple};
use crate::balance::{flow_hash, slot};
use crate::family::Family;
use crate::tables::Shared;

/// Places for candidates of one table: the current occupant and the older ones.
const PER_TABLE: usize = 1 + OLDER_MAX;
/// Places for all candidates: those of every table, and the standing substitute.
pub const PLACES: usize = PER_TABLE * (1 + PREVIOUS_MAX) + 1;

/// Backend ids in the order in which they are asked; 0 where a place is empty. May name a backend twice: whoever walks
/// the list skips those already asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// The places.
    pub ids: [u32; PLACES],
}

impl Candidates {
    /// The backend of a new flow: the occupant of the slot in the current table.
    #[inline(always)]
    pub const fn current(&self) -> u32 {
        self.ids[0]
    }
}

/// Fills in the candidates of a flow.
#[inline(always)]
pub fn of<F: Family, T: Shared>(
    tables: T,
    service: &ServiceEntry,
    tuple: &Tuple<F::Addr>,
    candidates: &mut Candidates,
) {
    candidates.ids = [0; PLACES];
    if service.current.size != 0 {
        add::<F, T>(tables, service, &service.current, tuple, candidates, 0);
    }
    let mut i = 0;
    while i < PREVIOUS_MAX {
        if service.previous[i].size != 0 {
            add::<F, T>(
                tables,
                service,
                &service.previous[i],
                tuple,
                candidates,
                PER_TABLE * (i + 1),
            );
        }
        i += 1;
    }
}

#[inline(never)]
fn add<F: Family, T: Shared>(
    tables: T,
    service: &ServiceEntry,
    table: &TableRef,
    tuple: &Tuple<F::Addr>,
    candidates: &mut Candidates,
    at: usize,
) {
    let hash = flow_hash::<F, T>(tables, tuple, table);
    let Some(slot) = slot(tables, service, table, hash) else {
        return;
    };
    candidates.ids[at] = slot.first;
    let Some(set) = tables.set(slot.set & !SLOT_DEVIATES) else {
        return;
    };
    if slot.set & SLOT_DEVIATES != 0 {
        candidates.ids[at] = set.current;
    }
    let mut i = 0;
    while i < OLDER_MAX {
        candidates.ids[at + 1 + i] = set.older[i];
        i += 1;
    }
    if at == 0 {
        candidates.ids[PLACES - 1] = set.substitute;
    }
}
