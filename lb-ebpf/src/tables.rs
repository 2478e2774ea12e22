//! What the packet path reads and writes besides the packet: the maps, as traits.
//!
//! The programs implement them over the kernel's maps, [`memory`] over plain collections. Values that the path changes
//! in place are reached through closures, so that both can hand out the place itself.
//!
//! Implementations are `Copy` handles: a type without size in the kernel, a reference on the host.

use core::ops::DerefMut;

use crate::abi::{
    AnnouncedKey, Announcement, Backend, Claim, Config, Event, FirstPod, Flow, FragmentKey,
    FragmentPorts, HalfOpen, Limited, LocalKey, LocalPod, Pin, ServiceEntry, Set, Slot, SourceKey,
    Stamp, Stat, Tuple,
};
use crate::family::{Family, V4, V6};
use crate::own::Scratch;
use crate::wire::Addr6;

/// Tables that both families share.
pub trait Shared: Copy {
    /// Memory for the owner's decision, one for each processor.
    type Scratch: DerefMut<Target = Scratch>;

    /// That memory. `None` only where the verifier must see that it might be missing.
    fn scratch(&self) -> Option<Self::Scratch>;
    /// The node's configuration.
    fn config(&self) -> &Config;
    /// The slot number in a row.
    fn row(&self, index: u32) -> Option<u16>;
    /// A slot.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// A set; `id` without [`crate::abi::SLOT_DEVIATES`].
    fn set(&self, id: u32) -> Option<&Set>;
    /// A backend; 0 has none.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// The agent's sign of life.
    fn stamp(&self) -> Stamp;
    /// Whether a node may send us encapsulated packets.
    fn is_peer(&self, addr: &Addr6) -> bool;
    /// Whether a source may speak to a Service with source ranges.
    fn admits(&self, source: &SourceKey) -> bool;
    /// What is announced for an address on an interface.
    fn announced(&self, key: &AnnouncedKey) -> Option<Announcement>;
    /// Notes that somebody claims a VIP; the oldest claim gives way.
    fn insert_claim(&self, claim: &Claim, now_ns: u64);
    /// Coarse monotonic time (a few milliseconds), in nanoseconds.
    fn now_ns(&self) -> u64;
    /// Takes one out of this processor's share of a limit. False: nothing is left.
    fn take(&self, limited: Limited, now_ns: u64) -> bool;
    /// Counts a packet of a service.
    fn count_service(&self, id: u32, bytes: usize);
    /// Counts a packet for a backend.
    fn count_backend(&self, id: u32, bytes: usize);
    /// Tells the agent of a flow.
    fn report(&self, event: &Event);
    /// Counts an event.
    fn count(&self, stat: Stat);
    /// Counts a dropped packet, by the number of its [`crate::abi::DropReason`].
    fn count_drop(&self, reason: u32);
}

/// Tables of one family.
pub trait Tables<F: Family>: Shared {
    /// A service entry.
    fn service(&self, key: &F::ServiceKey) -> Option<&ServiceEntry>;
    /// Owners of a pinned flow (client and VIP).
    fn pin(&self, key: &Tuple<F::Addr>) -> Option<Pin>;
    /// A flow (client and pod), to be changed in place.
    fn flow<R>(
        &self,
        key: &Tuple<F::Addr>,
        with: impl FnOnce(&mut Flow<F::Addr>) -> R,
    ) -> Option<R>;
    /// Adds a flow. `false`: the table is full.
    fn insert_flow(&self, key: &Tuple<F::Addr>, flow: &Flow<F::Addr>) -> bool;
    /// Ends a flow.
    fn remove_flow(&self, key: &Tuple<F::Addr>);
    /// A half-open flow (client and pod), to be changed in place.
    fn half_open<R>(
        &self,
        key: &Tuple<F::Addr>,
        with: impl FnOnce(&mut HalfOpen<F::Addr>) -> R,
    ) -> Option<R>;
    /// Adds or replaces a half-open flow; the oldest gives way.
    fn insert_half_open(&self, key: &Tuple<F::Addr>, half_open: &HalfOpen<F::Addr>);
    /// Ends a half-open flow.
    fn remove_half_open(&self, key: &Tuple<F::Addr>);
    /// The pod of this node that a client's SYN (client and VIP) went to.
    fn first(&self, key: &Tuple<F::Addr>) -> Option<FirstPod<F::Addr>>;
    /// Notes it.
    fn insert_first(&self, key: &Tuple<F::Addr>, pod: &FirstPod<F::Addr>);
    /// When a held-back flow (client and VIP) was seen first.
    fn held(&self, key: &Tuple<F::Addr>) -> Option<u64>;
    /// Notes it.
    fn insert_held(&self, key: &Tuple<F::Addr>, first_ns: u64);
    /// Forgets it.
    fn remove_held(&self, key: &Tuple<F::Addr>);
    /// What the first fragment told.
    fn fragment(&self, key: &FragmentKey<F::Addr>) -> Option<FragmentPorts<F::Addr>>;
    /// Notes it.
    fn insert_fragment(&self, key: &FragmentKey<F::Addr>, ports: &FragmentPorts<F::Addr>);
    /// The pod port of this node at an address.
    fn local(&self, key: &LocalKey<F::Addr>) -> Option<LocalPod>;
}

/// All tables.
pub trait AllTables: Tables<V4> + Tables<V6> {}
impl<T: Tables<V4> + Tables<V6>> AllTables for T {}

#[cfg(any(test, feature = "host"))]
pub mod memory;
