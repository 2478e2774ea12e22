//! Where the tables are: one interface over the kernel's maps ([`bpf`]), plain memory ([`fake`]) and maps that fail on
//! purpose ([`faulty`]).

pub mod attach;
pub mod bpf;
pub mod claims;
mod egress;
#[expect(
    unsafe_code,
    reason = "a file descriptor that is waited for; the block names who keeps it open"
)]
pub mod events;
pub mod fake;
pub mod faulty;
pub mod flows;
pub mod links;
pub mod load;
#[expect(
    unsafe_code,
    reason = "memory maps; each block names the check it relies on"
)]
mod mapping;
mod netlink;
pub mod network;
pub mod next_hop;
#[expect(
    unsafe_code,
    reason = "system calls with pointers; each block names the check it relies on"
)]
pub mod packet;
pub mod pass;
pub mod pin;
mod records;
pub mod routes;
pub mod stamp;
#[expect(
    unsafe_code,
    reason = "system calls with pointers; each block names the check it relies on"
)]
mod sys;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_attach;
#[cfg(test)]
mod tests_neighbour;
mod xdp;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_ebpf::abi;
use lb_ebpf::wire::Addr6;

use crate::model::op::{BackendId, LocalKey, Op, PinKey, RegionId, ServiceKey, SetId, SlotIndex};

/// What the maps hold: read back on start, and compared against by the drift check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Used backends.
    pub backends: HashMap<BackendId, abi::Backend>,
    /// Regions and their rows.
    pub regions: HashMap<RegionId, (abi::Region, Vec<u16>)>,
    /// Used sets.
    pub sets: HashMap<SetId, abi::Set>,
    /// Slots that are not zero.
    pub slots: BTreeMap<SlotIndex, abi::Slot>,
    /// Service entries.
    pub services: BTreeMap<ServiceKey, abi::ServiceEntry>,
    /// Ports of this node's own pods.
    pub locals: HashMap<LocalKey, abi::LocalPod>,
    /// Pinned flows.
    pub pins: HashMap<PinKey, abi::Pin>,
    /// Nodes.
    pub peers: HashMap<Addr6, u32>,
    /// Who may speak to services with source ranges.
    pub source_ranges: BTreeSet<abi::SourceRange>,
    /// VIPs that this node answers for, by interface.
    pub announced: BTreeMap<abi::AnnouncedKey, abi::Announcement>,
    /// The node's configuration.
    pub config: abi::Config,
}

/// How many entries each map has, so that ids are never chosen beyond them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Entries of `backends`, the unused 0 included.
    pub backends: u32,
    /// Rows, four per element.
    pub rows: u32,
    /// Entries of `regions`.
    pub regions: u32,
    /// Entries of `sets`, the empty 0 included.
    pub sets: u32,
    /// Entries of `slots`.
    pub slots: u32,
    /// Entries of `services4` and of `services6`, each; also the number of service ids.
    pub services: u32,
}

impl Default for Capacity {
    /// The sizes that the object declares.
    fn default() -> Self {
        Self {
            backends: abi::capacity::BACKENDS,
            rows: abi::capacity::ROWS * abi::ROWS_PER_ELEMENT,
            regions: abi::capacity::REGIONS,
            sets: abi::capacity::SETS,
            slots: abi::capacity::SLOTS,
            services: abi::capacity::SERVICES,
        }
    }
}

/// Counters, summed over processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By service id, zeroes left out.
    pub services: HashMap<u32, abi::Count>,
    /// By backend, zeroes left out.
    pub backends: HashMap<BackendId, abi::Count>,
    /// By [`abi::DropReason`], in its order.
    pub drops: Vec<u64>,
    /// By [`abi::Stat`], in its order.
    pub stats: Vec<u64>,
}

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A hash map has no room left.
    #[error("map {map} is full ({limit} entries)")]
    Full {
        /// Its name.
        map: &'static str,
        /// Its size.
        limit: u32,
    },
    /// An index beyond the end of an array map: a bug of the caller.
    #[error("map {map} has no index {index}")]
    OutOfRange {
        /// Its name.
        map: &'static str,
        /// The index.
        index: u32,
    },
    /// Anything else that the kernel said.
    #[error("map {map}: {call}")]
    Syscall {
        /// Its name.
        map: &'static str,
        /// What was tried.
        call: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The maps of one node.
///
/// Calls block for microseconds (system calls on maps), never on the network.
pub trait Dataplane: Send {
    /// Sizes of the maps.
    fn capacity(&self) -> Capacity;
    /// Everything that is there.
    fn read(&mut self) -> Result<Contents, ApplyError>;
    /// Carries out one operation. On an error nothing of that operation has become visible to packets.
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError>;
    /// Counters, summed over processors.
    fn counters(&mut self) -> Result<Counters, ApplyError>;
}
