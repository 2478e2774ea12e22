//! What is told about pools: how many addresses are used, and why a pool is not. Pure.

use jiff::Timestamp;

use super::conditions::{Holds, Said, condition};
use super::statuses::Change;
use crate::api::address_pool::{AddressPool, AddressPoolStatus, condition as kind};
use crate::manager::core::{Core, PoolState};

/// Addresses in one sentence; the others are counted.
const NAMED_MAX: usize = 10;

/// Statuses that differ from what is there.
pub(super) fn changes(core: &Core, wall: Timestamp) -> Vec<Change> {
    let states = core.pools();
    let pools = core.index().pools().filter_map(|pool| {
        let state = states.get(pool.metadata.name.as_ref()?)?;
        let wanted = status(pool, state, wall);
        Change::from(&pool.metadata, pool.status.as_ref(), &wanted)
    });
    pools.collect()
}

fn status(pool: &AddressPool, state: &PoolState, wall: Timestamp) -> AddressPoolStatus {
    let PoolState { usage, kept } = state;
    let before = pool.status.clone().unwrap_or_default();
    let (assigned, free) = usage
        .as_ref()
        .map_or((0, 0), |usage| (usage.assigned, usage.free));
    let ready = match usage {
        Ok(_) => Said {
            kind: kind::READY,
            holds: Holds::Yes,
            reason: "Used",
            message: "its addresses are used".to_owned(),
        },
        Err((reason, sentence)) => Said {
            kind: kind::READY,
            holds: Holds::No,
            reason,
            message: sentence.clone(),
        },
    };
    let shrunk = if kept.is_empty() {
        Said {
            kind: kind::SHRUNK,
            holds: Holds::No,
            reason: "AllInPools",
            message: "all addresses of Services are in pools".to_owned(),
        }
    } else {
        let list: Vec<_> = kept
            .iter()
            .take(NAMED_MAX)
            .map(ToString::to_string)
            .collect();
        Said {
            kind: kind::SHRUNK,
            holds: Holds::Yes,
            reason: "AddressesKept",
            message: format!(
                "{} addresses of Services are in no pool any more and are kept: {}",
                kept.len(),
                list.join(", ")
            ),
        }
    };
    let generation = pool.metadata.generation;
    AddressPoolStatus {
        conditions: [ready, shrunk]
            .map(|said| condition(said, &before.conditions, generation, wall))
            .into(),
        assigned,
        free,
    }
}
