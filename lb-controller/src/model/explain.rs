//! Where a packet would go, and why: the packet path's own functions over a copy of the maps.

use std::net::{IpAddr, SocketAddr};

use lb_ebpf::abi::{DropReason, ROWS_PER_ELEMENT, ServiceEntry, TableRef, Tuple};
use lb_ebpf::balance;
use lb_ebpf::candidates::{self, Candidates, PINNED, PLACES};
use lb_ebpf::family::{Family, V4, V6};
use lb_ebpf::hash;
use lb_ebpf::tables::Tables;
use lb_ebpf::tables::memory::Memory;
use lb_ebpf::wire::{Addr6, Be16, Be32, Ports};

use super::op::{BackendId, PinKey, ServiceKey};
use crate::dataplane::Contents;

/// Why a backend may own a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Because {
    /// It is the occupant of the flow's slot.
    Current,
    /// It was, before.
    Older,
    /// It is the occupant of the flow's slot in a previous table.
    PreviousCurrent,
    /// It was, before.
    PreviousOlder,
    /// It stands in, should the occupant be unusable.
    Substitute,
    /// Who has pinned the flow.
    Pinned,
}

impl Because {
    /// In words.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Older => "older",
            Self::PreviousCurrent => "current of a previous table",
            Self::PreviousOlder => "older of a previous table",
            Self::Substitute => "substitute",
            Self::Pinned => "pinned by its owner",
        }
    }

    const fn of_place(place: usize) -> Self {
        let per_table = (PLACES - PINNED - 1) / (1 + lb_ebpf::abi::PREVIOUS_MAX);
        if place < PINNED {
            return Self::Pinned;
        }
        let place = place - PINNED;
        if place == PLACES - PINNED - 1 {
            Self::Substitute
        } else if place == 0 {
            Self::Current
        } else if place < per_table {
            Self::Older
        } else if place.is_multiple_of(per_table) {
            Self::PreviousCurrent
        } else {
            Self::PreviousOlder
        }
    }
}

/// The way of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// The entry that its address, port and protocol lead to.
    pub entry: ServiceEntry,
    /// The flow hash.
    pub hash: u64,
    /// The row in the current table.
    pub row: u32,
    /// The slot that the row names.
    pub slot: u32,
    /// Where the first packet of the flow goes.
    pub first: Result<BackendId, DropReason>,
    /// Where a packet in the middle of it goes first.
    pub mid_flow: Result<BackendId, DropReason>,
    /// Who may own the flow, in the order of asking, each once.
    pub candidates: Vec<(BackendId, Because)>,
}

/// Why there is no way to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoWay {
    /// Client and VIP are of different families.
    #[error(
        "the client {client} and the VIP {vip} are of different IP families; name two of the same family"
    )]
    Families {
        /// The client.
        client: IpAddr,
        /// The VIP.
        vip: IpAddr,
    },
    /// No service entry has this address, port and protocol.
    #[error(
        "no Service in the maps of this node has this VIP, port and protocol: such a packet passes to the host's stack"
    )]
    NoService,
}

/// A copy of the maps that the packet path's functions can read.
pub fn memory(contents: &Contents) -> Memory {
    let mut memory = Memory::new();
    memory.config = contents.config;
    for (region, rows) in contents.regions.values() {
        for (row, slot) in (region.rows..).zip(rows) {
            let element = (row / ROWS_PER_ELEMENT) as usize;
            if memory.rows.len() <= element {
                memory
                    .rows
                    .resize(element + 1, [0; ROWS_PER_ELEMENT as usize]);
            }
            memory.rows[element][(row % ROWS_PER_ELEMENT) as usize] = *slot;
        }
    }
    for (index, slot) in &contents.slots {
        let index = index.0 as usize;
        if memory.slots.len() <= index {
            memory
                .slots
                .resize(index + 1, lb_ebpf::abi::Slot::default());
        }
        memory.slots[index] = *slot;
    }
    memory.source_ranges = contents.source_ranges.iter().copied().collect();
    memory.sets = contents.sets.iter().map(|(id, set)| (id.0, *set)).collect();
    memory.backends = contents
        .backends
        .iter()
        .map(|(id, backend)| (id.0, *backend))
        .collect();
    for (key, entry) in &contents.services {
        match key {
            ServiceKey::V4(key) => drop(memory.v4.services.insert(*key, *entry)),
            ServiceKey::V6(key) => drop(memory.v6.services.insert(*key, *entry)),
        }
    }
    for (key, pin) in &contents.pins {
        match key {
            PinKey::V4(key) => drop(memory.v4.pins.insert(*key, *pin)),
            PinKey::V6(key) => drop(memory.v6.pins.insert(*key, *pin)),
        }
    }
    // What is asked is where packets go while the agent works.
    memory.stamp.fresh_since_ns = 1;
    memory
}

/// The way of a packet from `client` to `vip`.
pub fn way(
    memory: &Memory,
    client: SocketAddr,
    vip: SocketAddr,
    protocol: u8,
) -> Result<Way, NoWay> {
    let ports = Ports {
        src: Be16::new(client.port()),
        dst: Be16::new(vip.port()),
    };
    match (client.ip(), vip.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => way_of::<V4>(
            memory,
            Be32::from_bytes(client.octets()),
            Be32::from_bytes(vip.octets()),
            ports,
            protocol,
        ),
        (IpAddr::V6(client), IpAddr::V6(vip)) => way_of::<V6>(
            memory,
            Addr6::from_bytes(client.octets()),
            Addr6::from_bytes(vip.octets()),
            ports,
            protocol,
        ),
        (client, vip) => Err(NoWay::Families { client, vip }),
    }
}

fn way_of<'a, F: Family>(
    memory: &'a Memory,
    src: F::Addr,
    dst: F::Addr,
    ports: Ports,
    proto: u8,
) -> Result<Way, NoWay>
where
    &'a Memory: Tables<F>,
{
    let tuple = Tuple {
        src,
        dst,
        ports,
        proto,
        pad: [0; 3],
    };
    let entry = *Tables::<F>::service(&memory, &F::service_key(dst, ports.dst, proto))
        .ok_or(NoWay::NoService)?;
    let TableRef { rows, size, .. } = entry.current;
    let hash = balance::flow_hash::<F, _>(memory, &tuple, &entry.current);
    let row = hash::row(hash, size);
    // A table without rows names no slot; row 0 of the map is another table's.
    let named = (size != 0).then(|| lb_ebpf::tables::Shared::row(&memory, rows + row));
    let slot = named.flatten().unwrap_or_default();
    let mut list = Candidates::default();
    candidates::of::<F, _>(memory, &entry, &tuple, &mut list);
    let admitted = balance::admits::<F, _>(memory, &entry, src);
    let chosen = |is_first: bool| {
        if !admitted {
            return Err(DropReason::SourceRange);
        }
        let pinned = candidates::pinned::<F, _>(memory, &entry, &tuple);
        if pinned != 0 {
            return Ok(BackendId(pinned));
        }
        let choice = balance::choose(&memory, &entry, hash, || is_first)?;
        Ok(BackendId(choice.backend))
    };
    Ok(Way {
        entry,
        hash,
        row,
        slot: slot.into(),
        first: chosen(true),
        mid_flow: chosen(false),
        candidates: once_each(&list),
    })
}

fn once_each(list: &Candidates) -> Vec<(BackendId, Because)> {
    let mut seen: Vec<(BackendId, Because)> = Vec::new();
    for (place, id) in list.ids.iter().enumerate() {
        let id = BackendId(*id);
        if id.0 != 0 && !seen.iter().any(|(known, _)| *known == id) {
            seen.push((id, Because::of_place(place)));
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use lb_ebpf::abi::{Backend, Region, ServiceKey4, Set, Slot};

    use super::*;
    use crate::model::op::{RegionId, SetId, SlotIndex};

    fn contents() -> Contents {
        let mut contents = Contents::default();
        let vip = Be32::from_bytes([198, 51, 100, 1]);
        let key = ServiceKey4 {
            addr: vip,
            port: Be16::new(80),
            proto: 6,
            pad: 0,
        };
        let current = TableRef {
            rows: 4,
            size: 3,
            fields: 0,
        };
        let previous = [
            TableRef {
                rows: 8,
                size: 2,
                fields: 0,
            },
            TableRef::default(),
        ];
        let entry = ServiceEntry {
            id: 1,
            slots: 2,
            slot_count: 2,
            current,
            previous,
            ..ServiceEntry::default()
        };
        contents.services.insert(ServiceKey::V4(key), entry);
        contents.regions.insert(
            RegionId(1),
            (
                Region {
                    rows: 4,
                    size: 3,
                    digest: 1,
                },
                vec![0, 0, 0],
            ),
        );
        contents.regions.insert(
            RegionId(2),
            (
                Region {
                    rows: 8,
                    size: 2,
                    digest: 2,
                },
                vec![1, 1],
            ),
        );
        contents
            .slots
            .insert(SlotIndex(2), Slot { first: 7, set: 3 });
        contents
            .slots
            .insert(SlotIndex(3), Slot { first: 9, set: 0 });
        contents.sets.insert(
            SetId(3),
            Set {
                older: [8, 9, 0],
                ..Set::default()
            },
        );
        for id in 7..=9 {
            contents.backends.insert(
                BackendId(id),
                Backend {
                    identity: id,
                    ..Backend::default()
                },
            );
        }
        contents
    }

    #[test]
    fn candidates_are_named_once_in_the_order_of_asking() {
        let memory = memory(&contents());
        let client = "203.0.113.9:51312".parse().expect("an address");
        let way = way(
            &memory,
            client,
            "198.51.100.1:80".parse().expect("an address"),
            6,
        )
        .expect("a way");
        assert_eq!(
            (way.slot, way.first, way.mid_flow),
            (0, Ok(BackendId(7)), Ok(BackendId(7)))
        );
        let expected = [
            (7, Because::Current),
            (8, Because::Older),
            (9, Because::Older),
        ];
        assert_eq!(
            way.candidates,
            expected.map(|(id, because)| (BackendId(id), because))
        );
    }

    #[test]
    fn a_port_that_no_service_owns_passes() {
        let memory = memory(&contents());
        let client = "203.0.113.9:51312".parse().expect("an address");
        let vip = "198.51.100.1:81".parse().expect("an address");
        assert_eq!(way(&memory, client, vip, 6), Err(NoWay::NoService));
    }
}
