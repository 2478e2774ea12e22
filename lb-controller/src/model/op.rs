//! Operations on the maps: what `diff` answers and [`crate::dataplane::Dataplane`] carries out, in order.
//!
//! Operations say everything that the carrier needs (ids are already chosen), so that carrying them out holds no
//! policy, and any prefix of a list leaves every VIP usable.

use std::sync::Arc;

use lb_ebpf::abi;
use lb_ebpf::wire::{Addr6, Be32};

/// Index into `backends`. 0 is never used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BackendId(pub u32);
/// Index into `sets`. 0 is the empty set and never written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SetId(pub u32);
/// Index into `regions`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RegionId(pub u32);
/// Index into `slots`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SlotIndex(pub u32);

/// Key of a service, either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ServiceKey {
    /// In `services4`.
    V4(abi::ServiceKey4),
    /// In `services6`.
    V6(abi::ServiceKey6),
}

/// Key of a local pod's port, either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LocalKey {
    /// In `locals4`.
    V4(abi::LocalKey<Be32>),
    /// In `locals6`.
    V6(abi::LocalKey<Addr6>),
}

/// Key of a pinned flow (client and VIP), either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PinKey {
    /// In `pins4`.
    V4(abi::Tuple<Be32>),
    /// In `pins6`.
    V6(abi::Tuple<Addr6>),
}

impl PinKey {
    /// The service entry that packets of the flow meet.
    pub fn service(&self) -> ServiceKey {
        match self {
            Self::V4(tuple) => ServiceKey::V4(abi::ServiceKey4 {
                addr: tuple.dst,
                port: tuple.ports.dst,
                proto: tuple.proto,
                pad: 0,
            }),
            Self::V6(tuple) => ServiceKey::V6(abi::ServiceKey6 {
                addr: tuple.dst,
                port: tuple.ports.dst,
                proto: tuple.proto,
                pad: 0,
            }),
        }
    }
}

/// One change of the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Writes a backend. The id is either fresh or has the same pod, port and identity (a next hop changed).
    Backend {
        #[doc = "Where."]
        id: BackendId,
        #[doc = "What."]
        value: Box<abi::Backend>,
    },
    /// Fills a fresh region of rows; the region is written after its rows.
    Rows {
        #[doc = "Where."]
        id: RegionId,
        #[doc = "What."]
        region: abi::Region,
        #[doc = "`region.size` of them."]
        rows: Arc<[u16]>,
    },
    /// Writes a fresh set.
    Set {
        #[doc = "Where."]
        id: SetId,
        #[doc = "What."]
        value: abi::Set,
    },
    /// Replaces one slot by an aligned 8-byte store.
    Slot {
        #[doc = "Where."]
        index: SlotIndex,
        #[doc = "What."]
        value: abi::Slot,
    },
    /// Adds or replaces a service entry.
    Service {
        #[doc = "Where."]
        key: ServiceKey,
        #[doc = "What."]
        value: abi::ServiceEntry,
    },
    /// Zeroes the counters of a service id, before it is first named again.
    ClearCount {
        #[doc = "Whose."]
        id: u32,
    },
    /// Removes a service entry.
    RemoveService {
        #[doc = "Which."]
        key: ServiceKey,
    },
    /// Says that a pod port lives on this node.
    Local {
        #[doc = "Where."]
        key: LocalKey,
        #[doc = "What."]
        value: abi::LocalPod,
    },
    /// Says that it does no longer.
    RemoveLocal {
        #[doc = "Which."]
        key: LocalKey,
    },
    /// Says who owns a flow, whatever tables say. Its backends are written before.
    Pin {
        #[doc = "Which."]
        key: PinKey,
        #[doc = "Who."]
        value: abi::Pin,
    },
    /// Leaves it to the tables again.
    RemovePin {
        #[doc = "Which."]
        key: PinKey,
    },
    /// Ends all flows of a dead pod port: `flows`, `half_open`, `first` of that identity.
    PurgeFlows {
        #[doc = "Whose."]
        identity: u32,
    },
    /// Adds a node that may send us encapsulated packets.
    Peer {
        #[doc = "Its address, IPv4 mapped."]
        addr: Addr6,
        #[doc = "Its number."]
        node: u32,
    },
    /// Removes it.
    RemovePeer {
        #[doc = "Which."]
        addr: Addr6,
    },
    /// Lets a range of sources speak to a service id. Written before an entry with that id says that it has ranges.
    SourceRange {
        #[doc = "Which."]
        range: abi::SourceRange,
    },
    /// Ends that. The last range of an id goes only after no entry with that id says so.
    RemoveSourceRange {
        #[doc = "Which."]
        range: abi::SourceRange,
    },
    /// Answers for a VIP on an interface from now on.
    Announce {
        #[doc = "Where."]
        key: abi::AnnouncedKey,
        #[doc = "What."]
        value: abi::Announcement,
    },
    /// Does no longer.
    RemoveAnnounce {
        #[doc = "Where."]
        key: abi::AnnouncedKey,
    },
    /// Writes the node's configuration.
    Config {
        #[doc = "What."]
        value: Box<abi::Config>,
    },
    /// Waits until no program can still hold what the operations before have unnamed (an RCU grace period).
    Grace,
    /// Zeroes a backend that nothing names.
    FreeBackend {
        #[doc = "Which."]
        id: BackendId,
    },
    /// Zeroes a set that nothing names.
    FreeSet {
        #[doc = "Which."]
        id: SetId,
    },
    /// Zeroes a region that no service names.
    FreeRegion {
        #[doc = "Which."]
        id: RegionId,
    },
}
