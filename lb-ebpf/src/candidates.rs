//! Who may own a flow: who has pinned it, then its slot's occupants, newest first, in the current and the previous tables,
//! then the substitute.

use crate::abi::{
    OLDER_MAX, PREVIOUS_MAX, SLOT_DEVIATES, ServiceEntry, TableRef, Tuple, service_flag,
};
use crate::balance::{flow_hash, slot};
use crate::family::Family;
use crate::tables::{Shared, Tables};

/// Places for candidates of one table: the current occupant and the older ones.
const PER_TABLE: usize = 1 + OLDER_MAX;
/// Places for those who have pinned the flow.
pub const PINNED: usize = 2;
/// Places for all candidates: the pinned, those of every table, and the standing substitute.
pub const PLACES: usize = PINNED + PER_TABLE * (1 + PREVIOUS_MAX) + 1;

/// Backend ids in the order in which they are asked; 0 where a place is empty. May name a backend twice: whoever walks
/// the list skips those already asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// The places.
    pub ids: [u32; PLACES],
    /// The backend of new flows: the occupant of the slot in the current table, or its substitute.
    pub first: u32,
    /// 1: that is the substitute.
    pub deviates: u32,
}

/// Who has pinned a flow last, or 0.
#[inline(always)]
pub fn pinned<F: Family, T: Tables<F>>(
    tables: T,
    service: &ServiceEntry,
    tuple: &Tuple<F::Addr>,
) -> u32 {
    if service.flags & service_flag::PINS == 0 {
        return 0;
    }
    tables.pin(tuple).map_or(0, |pin| pin.backends[0])
}

/// Fills in the candidates of a flow.
#[inline(always)]
pub fn of<F: Family, T: Tables<F>>(
    tables: T,
    service: &ServiceEntry,
    tuple: &Tuple<F::Addr>,
    candidates: &mut Candidates,
) {
    *candidates = Candidates::default();
    if service.flags & service_flag::PINS != 0
        && let Some(pin) = tables.pin(tuple)
    {
        let mut i = 0;
        while i < PINNED {
            candidates.ids[i] = pin.backends[i];
            i += 1;
        }
    }
    if service.current.size != 0 {
        add::<F, T>(tables, service, &service.current, tuple, candidates, PINNED);
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
                PINNED + PER_TABLE * (i + 1),
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
    if at == PINNED {
        candidates.first = slot.first;
        candidates.deviates = slot.set >> 31;
    }
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
    if at == PINNED {
        candidates.ids[PLACES - 1] = set.substitute;
    }
}
