//! What the maps should hold for one Service: its `ServiceTable` in the form that is compared with what they do hold.
//!
//! Slots are flat arrays of backend ids, so that finding the one that changed among thousands is a comparison of memory.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb_ebpf::abi::{self, PREVIOUS_MAX, service_flag};
use lb_ebpf::wire::{Addr6, Be16, Be32};

use super::backends::Known;
use super::installed::{Installed, PlanError};
use super::local;
use super::op::ServiceKey;
use super::secret::identity;
use super::shape::Shape;
use super::slot::Slots;
use super::substitute::Substitutes;
use super::table;
use super::template::PodPort;
use crate::api::service_table::{Family, ServiceTableSpec, TrafficPolicy};

/// Backend ids per slot in [`Entry::cells`], 0 where there is none; see [`cell`].
pub const CELL: usize = cell::SUBSTITUTE + 1;

/// Places of a slot's backend ids.
pub mod cell {
    use lb_ebpf::abi::OLDER_MAX;

    /// Who gets first packets.
    pub const FIRST: usize = 0;
    /// The agreed occupant, if the slot deviates from it; else 0.
    pub const AGREED: usize = 1;
    /// The older occupants, newest first.
    pub const OLDER: std::ops::Range<usize> = AGREED + 1..AGREED + 1 + OLDER_MAX;
    /// Who gets first packets wherever the occupant cannot.
    pub const SUBSTITUTE: usize = OLDER.end;
}

/// One Service.
#[derive(Clone, PartialEq, Debug)]
pub struct Service {
    /// Its UID.
    pub uid: Arc<str>,
    /// Version of the table.
    pub version: u64,
    /// Sources that may speak to it; everybody if there is none.
    pub source_ranges: Vec<IpNet>,
    /// The pins of all its live owner nodes are here, as far as they can be waited for.
    pub streams_up: bool,
    /// One per VIP and port.
    pub entries: Vec<Entry>,
}

/// One VIP and port.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Its key.
    pub key: ServiceKey,
    /// See [`abi::service_flag`].
    pub flags: u32,
    /// The table of new flows; none if there are no slots.
    pub current: Table,
    /// Tables that may still own flows, newest first.
    pub previous: [Option<Table>; PREVIOUS_MAX],
    /// [`CELL`] backend ids per slot.
    pub cells: Vec<u32>,
}

impl Entry {
    /// How many slots it has, closed ones included.
    pub fn slot_count(&self) -> u32 {
        (self.cells.len() / CELL) as u32
    }
}

/// A shape and its digest.
#[derive(Clone, PartialEq, Debug)]
pub struct Table {
    /// What it is made from.
    pub shape: Arc<Shape>,
    /// [`Shape::digest`], computed once.
    pub digest: u64,
}

impl Table {
    /// The table of a shape.
    pub fn new(shape: Shape) -> Self {
        Self {
            digest: shape.digest(),
            shape: Arc::new(shape),
        }
    }
}

/// An address as it stands in maps that both families share.
pub fn mapped(address: IpAddr) -> Addr6 {
    match address {
        IpAddr::V4(a) => Addr6::mapped(Be32::from_bytes(a.octets())),
        IpAddr::V6(a) => Addr6::from_bytes(a.octets()),
    }
}

/// The inverse of [`mapped`].
pub fn address_of(mapped: Addr6) -> IpAddr {
    IpAddr::from(mapped.to_bytes()).to_canonical()
}

/// The key of a VIP and port.
pub fn service_key(vip: IpAddr, port: u16, protocol: u8) -> ServiceKey {
    let port = Be16::new(port);
    match vip {
        IpAddr::V4(a) => ServiceKey::V4(abi::ServiceKey4 {
            addr: Be32::from_bytes(a.octets()),
            port,
            proto: protocol,
            pad: 0,
        }),
        IpAddr::V6(a) => ServiceKey::V6(abi::ServiceKey6 {
            addr: Addr6::from_bytes(a.octets()),
            port,
            proto: protocol,
            pad: 0,
        }),
    }
}

/// The key that marks the VIP of a key (port 0, protocol 0).
pub fn vip_key(key: ServiceKey) -> ServiceKey {
    match key {
        ServiceKey::V4(key) => ServiceKey::V4(abi::ServiceKey4 {
            port: Be16::new(0),
            proto: 0,
            ..key
        }),
        ServiceKey::V6(key) => ServiceKey::V6(abi::ServiceKey6 {
            port: Be16::new(0),
            proto: 0,
            ..key
        }),
    }
}

/// Port and protocol of a key: what the entries of both families have in common.
pub(crate) fn port_of(key: ServiceKey) -> (u16, u8) {
    match key {
        ServiceKey::V4(key) => (key.port.get(), key.proto),
        ServiceKey::V6(key) => (key.port.get(), key.proto),
    }
}

impl Installed {
    /// Turns a table into ids: every candidate gets its backend id, which stays its own while anything names it.
    pub fn decode(&mut self, spec: &ServiceTableSpec) -> Result<Service, PlanError> {
        let mut entries = Vec::new();
        let flags = flags(spec, self.view.hands_off);
        for group in table::decode(spec)? {
            let slots = &match spec.traffic_policy {
                TrafficPolicy::Cluster => group.slots,
                TrafficPolicy::Local => local::of_node(&group.slots, &self.view.node),
            };
            let substitutes = Substitutes::new(slots, &self.view.suspected);
            let current = Table::new(slots.shape.clone());
            let previous = std::array::from_fn(|at| {
                slots
                    .previous
                    .get(at)
                    .map(|previous| Table::new(previous.shape.clone()))
            });
            let of_family = |vip: &&std::net::IpAddr| Family::of(**vip) == group.family;
            for (at, port) in group.ports.iter().enumerate() {
                let ids = slots.candidates.iter().map(|candidate| {
                    let pod = PodPort {
                        address: candidate.address,
                        port: candidate.ports[at],
                        identity: identity(&candidate.uid, candidate.ports[at]),
                    };
                    // Names of nodes are shared: there are many more pods.
                    let node = self.view.nodes.get_key_value(&candidate.node);
                    let known = Known {
                        node: node.map_or(&candidate.node, |(name, _)| name).clone(),
                        uid: candidate.uid.clone(),
                        podless: candidate.is_podless(),
                    };
                    let limit = self.capacity.backends;
                    let full = PlanError::Full {
                        map: abi::map::BACKENDS,
                        limit,
                    };
                    Ok(self.backends.intern(pod, known).ok_or(full)?.0)
                });
                let ids = ids.collect::<Result<Vec<u32>, PlanError>>()?;
                let cells = cells(slots, &ids, &substitutes);
                for vip in spec.vips.iter().filter(of_family) {
                    entries.push(Entry {
                        key: service_key(*vip, port.port, port.protocol.number()),
                        flags,
                        current: current.clone(),
                        previous: previous.clone(),
                        cells: cells.clone(),
                    });
                }
            }
        }
        Ok(Service {
            uid: spec.service_uid.as_str().into(),
            version: spec.version,
            source_ranges: spec.source_ranges.clone(),
            streams_up: true,
            entries,
        })
    }
}

/// The slots in ids.
fn cells(slots: &Slots, ids: &[u32], substitutes: &Substitutes<'_>) -> Vec<u32> {
    let id = |candidate: Option<u32>| candidate.map_or(0, |candidate| ids[candidate as usize]);
    let mut cells = vec![0; slots.slots.len() * CELL];
    for (at, (to, slot)) in cells.chunks_exact_mut(CELL).zip(&slots.slots).enumerate() {
        let mut older = slot.older.iter().copied();
        let substitute = substitutes.of(at);
        to[cell::FIRST] = id(slot.current);
        match slot.current {
            // It refuses first packets, but packets in the middle of flows still go to who may own them: it deviates from
            // the newest older one to nobody.
            None => to[cell::AGREED] = id(older.next()),
            Some(current) if substitutes.is_out(slot) => {
                to[cell::AGREED] = id(Some(current));
                to[cell::FIRST] = id(substitute.or(Some(current)));
            }
            Some(_) => {}
        }
        for (to, older) in to[cell::OLDER].iter_mut().zip(older) {
            *to = id(Some(older));
        }
        to[cell::SUBSTITUTE] = id(substitute);
    }
    cells
}

/// What packets of a Service must be looked at for.
fn flags(spec: &ServiceTableSpec, hands_off: bool) -> u32 {
    let ranges = match spec.source_ranges.as_slice() {
        [] => 0,
        [..] => service_flag::SOURCE_RANGES,
    };
    let policy = match spec.traffic_policy {
        TrafficPolicy::Cluster => 0,
        TrafficPolicy::Local => service_flag::LOCAL_POLICY,
    };
    let tracking = if hands_off && spec.tracks_all() {
        service_flag::TRACK_ALL
    } else {
        0
    };
    ranges | policy | tracking
}

/// A range of sources of a service id.
pub(super) fn source_range(id: u32, range: IpNet) -> abi::SourceRange {
    // In front of the address are 32 bits of the id, and for IPv4 the 96 bits of a mapped address.
    let (is_v6, in_front) = match range {
        IpNet::V4(_) => (false, 32 + 96),
        IpNet::V6(_) => (true, 32),
    };
    abi::SourceRange {
        prefix_len: in_front + u32::from(range.prefix_len()),
        key: abi::SourceKey::new(id, is_v6, mapped(range.network())),
    }
}
