//! Tables in plain memory: for tests, simulators and golden packets.
//!
//! The maps that the packet path writes are behind cells; the others are public fields, filled by whoever sets the scene.

use core::cell::{Cell, RefCell, RefMut};
use core::hash::Hash;
use std::collections::HashMap;
use std::vec::Vec;

use super::{Shared, Tables};
use crate::abi::{
    AnnouncedKey, Announcement, Backend, Claim, Config, Count, DropReason, Event, FirstPod, Flow,
    FragmentKey, FragmentPorts, HalfOpen, Limited, LocalKey, LocalPod, Pin, ROWS_PER_ELEMENT,
    ServiceEntry, ServiceKey4, ServiceKey6, Set, Slot, SourceKey, SourceRange, Stamp, Stat, Tuple,
};
use crate::family::{Family, V4, V6};
use crate::frame::Frame;
use crate::own::Scratch;
use crate::parts::Parts;
use crate::wire::{Addr6, Be32};

/// The tables of one family.
#[derive(Debug)]
pub struct PerFamily<K, A> {
    /// Service entries.
    pub services: HashMap<K, ServiceEntry>,
    /// Pins.
    pub pins: HashMap<Tuple<A>, Pin>,
    /// Ports of this node's pods.
    pub locals: HashMap<LocalKey<A>, LocalPod>,
    /// Flows.
    pub flows: RefCell<HashMap<Tuple<A>, Flow<A>>>,
    /// Half-open flows.
    pub half_open: RefCell<HashMap<Tuple<A>, HalfOpen<A>>>,
    /// First pods.
    pub first: RefCell<HashMap<Tuple<A>, FirstPod<A>>>,
    /// Held-back flows.
    pub held: RefCell<HashMap<Tuple<A>, u64>>,
    /// Fragmented packets under way.
    pub fragments: RefCell<HashMap<FragmentKey<A>, FragmentPorts<A>>>,
}

impl<K, A> Default for PerFamily<K, A> {
    fn default() -> Self {
        Self {
            services: HashMap::new(),
            pins: HashMap::new(),
            locals: HashMap::new(),
            flows: RefCell::default(),
            half_open: RefCell::default(),
            first: RefCell::default(),
            held: RefCell::default(),
            fragments: RefCell::default(),
        }
    }
}

/// All tables of one node.
#[derive(Debug, Default)]
pub struct Memory {
    /// The node's configuration.
    pub config: Config,
    /// Four rows each.
    pub rows: Vec<[u16; ROWS_PER_ELEMENT as usize]>,
    /// Slots.
    pub slots: Vec<Slot>,
    /// Sets by id.
    pub sets: HashMap<u32, Set>,
    /// Backends by id.
    pub backends: HashMap<u32, Backend>,
    /// What every other id has: as in the kernel's array, zeroes.
    pub unused: Backend,
    /// The agent's sign of life.
    pub stamp: Stamp,
    /// Nodes.
    pub peers: std::collections::HashSet<Addr6>,
    /// Who may speak to Services with source ranges.
    pub source_ranges: Vec<SourceRange>,
    /// VIPs that this node answers for.
    pub announced: HashMap<AnnouncedKey, Announcement>,
    /// Claims of others to VIPs, and when they were heard last.
    pub claims: RefCell<HashMap<Claim, u64>>,
    /// What the clock says, in nanoseconds.
    pub now_ns: Cell<u64>,
    /// What is left of each limit.
    pub left: [Cell<u64>; Limited::COUNT as usize],
    /// Most flows there may be of one family.
    pub flows_max: usize,
    /// IPv4.
    pub v4: PerFamily<ServiceKey4, Be32>,
    /// IPv6.
    pub v6: PerFamily<ServiceKey6, Addr6>,
    /// Packets by service id.
    pub services_count: RefCell<HashMap<u32, Count>>,
    /// Packets by backend id.
    pub backends_count: RefCell<HashMap<u32, Count>>,
    /// What the owner's decision works on.
    pub scratch: RefCell<Scratch>,
    /// What the agent was told.
    pub events: RefCell<Vec<Event>>,
    /// What happened, by kind.
    pub stats: RefCell<HashMap<Stat, u64>>,
    /// Dropped packets.
    pub drops: RefCell<HashMap<DropReason, u64>>,
}

impl Memory {
    /// Empty tables with room for flows and relays.
    pub fn new() -> Self {
        Self {
            left: [const { Cell::new(u64::MAX) }; Limited::COUNT as usize],
            flows_max: usize::MAX,
            ..Self::default()
        }
    }

    /// How often something happened.
    pub fn stat(&self, stat: Stat) -> u64 {
        self.stats.borrow().get(&stat).copied().unwrap_or(0)
    }

    /// How many packets were dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.borrow().get(&reason).copied().unwrap_or(0)
    }
}

fn add(counts: &RefCell<HashMap<u32, Count>>, id: u32, bytes: usize) {
    let mut counts = counts.borrow_mut();
    let count = counts.entry(id).or_default();
    count.packets += 1;
    count.bytes += bytes as u64;
}

impl<'a> Shared for &'a Memory {
    type Scratch = RefMut<'a, Scratch>;

    fn scratch(&self) -> Option<RefMut<'a, Scratch>> {
        Some(self.scratch.borrow_mut())
    }
    fn config(&self) -> &Config {
        &self.config
    }
    fn row(&self, index: u32) -> Option<u16> {
        let element = self.rows.get((index / ROWS_PER_ELEMENT) as usize)?;
        Some(element[(index % ROWS_PER_ELEMENT) as usize])
    }
    fn slot(&self, index: u32) -> Option<Slot> {
        self.slots.get(index as usize).copied()
    }
    fn set(&self, id: u32) -> Option<&Set> {
        self.sets.get(&id)
    }
    fn backend(&self, id: u32) -> Option<&Backend> {
        Some(self.backends.get(&id).unwrap_or(&self.unused))
    }
    fn stamp(&self) -> Stamp {
        self.stamp
    }
    fn is_peer(&self, addr: &Addr6) -> bool {
        self.peers.contains(addr)
    }
    fn admits(&self, source: &SourceKey) -> bool {
        self.source_ranges
            .iter()
            .any(|range| range.contains(source))
    }
    fn announced(&self, key: &AnnouncedKey) -> Option<Announcement> {
        self.announced.get(key).copied()
    }
    fn insert_claim(&self, claim: &Claim, now_ns: u64) {
        self.claims.borrow_mut().insert(*claim, now_ns);
    }
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn take(&self, limited: Limited, _now_ns: u64) -> bool {
        let place = &self.left[limited as usize];
        let left = place.get();
        place.set(left.saturating_sub(1));
        left > 0
    }
    fn count_service(&self, id: u32, bytes: usize) {
        add(&self.services_count, id, bytes);
    }
    fn count_backend(&self, id: u32, bytes: usize) {
        add(&self.backends_count, id, bytes);
    }
    fn report(&self, event: &Event) {
        self.count(Stat::Reported);
        self.events.borrow_mut().push(*event);
    }
    fn count(&self, stat: Stat) {
        *self.stats.borrow_mut().entry(stat).or_default() += 1;
    }
    fn count_drop(&self, reason: u32) {
        *self
            .drops
            .borrow_mut()
            .entry(DropReason::ALL[reason as usize])
            .or_default() += 1;
    }
}

/// Copies the value out, so that a closure may look at the tables again, and back in.
fn change<K: Hash + Eq, V: Copy, R>(
    map: &RefCell<HashMap<K, V>>,
    key: &K,
    with: impl FnOnce(&mut V) -> R,
) -> Option<R> {
    let mut value = *map.borrow().get(key)?;
    let result = with(&mut value);
    if let Some(place) = map.borrow_mut().get_mut(key) {
        *place = value;
    }
    Some(result)
}

macro_rules! tables {
    ($family:ty, $field:ident) => {
        impl Tables<$family> for &Memory {
            fn service(&self, key: &<$family as Family>::ServiceKey) -> Option<&ServiceEntry> {
                self.$field.services.get(key)
            }
            fn pin(&self, key: &Tuple<<$family as Family>::Addr>) -> Option<Pin> {
                self.$field.pins.get(key).copied()
            }
            fn flow<R>(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                with: impl FnOnce(&mut Flow<<$family as Family>::Addr>) -> R,
            ) -> Option<R> {
                change(&self.$field.flows, key, with)
            }
            fn insert_flow(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                flow: &Flow<<$family as Family>::Addr>,
            ) -> bool {
                let mut flows = self.$field.flows.borrow_mut();
                let fits = flows.contains_key(key) || flows.len() < self.flows_max;
                if fits {
                    flows.insert(*key, *flow);
                }
                fits
            }
            fn remove_flow(&self, key: &Tuple<<$family as Family>::Addr>) {
                self.$field.flows.borrow_mut().remove(key);
            }
            fn half_open<R>(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                with: impl FnOnce(&mut HalfOpen<<$family as Family>::Addr>) -> R,
            ) -> Option<R> {
                change(&self.$field.half_open, key, with)
            }
            fn insert_half_open(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                half_open: &HalfOpen<<$family as Family>::Addr>,
            ) {
                self.$field.half_open.borrow_mut().insert(*key, *half_open);
            }
            fn remove_half_open(&self, key: &Tuple<<$family as Family>::Addr>) {
                self.$field.half_open.borrow_mut().remove(key);
            }
            fn first(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
            ) -> Option<FirstPod<<$family as Family>::Addr>> {
                self.$field.first.borrow().get(key).copied()
            }
            fn insert_first(
                &self,
                key: &Tuple<<$family as Family>::Addr>,
                pod: &FirstPod<<$family as Family>::Addr>,
            ) {
                self.$field.first.borrow_mut().insert(*key, *pod);
            }
            fn held(&self, key: &Tuple<<$family as Family>::Addr>) -> Option<u64> {
                self.$field.held.borrow().get(key).copied()
            }
            fn insert_held(&self, key: &Tuple<<$family as Family>::Addr>, first_ns: u64) {
                self.$field.held.borrow_mut().insert(*key, first_ns);
            }
            fn remove_held(&self, key: &Tuple<<$family as Family>::Addr>) {
                self.$field.held.borrow_mut().remove(key);
            }
            fn fragment(
                &self,
                key: &FragmentKey<<$family as Family>::Addr>,
            ) -> Option<FragmentPorts<<$family as Family>::Addr>> {
                self.$field.fragments.borrow().get(key).copied()
            }
            fn insert_fragment(
                &self,
                key: &FragmentKey<<$family as Family>::Addr>,
                ports: &FragmentPorts<<$family as Family>::Addr>,
            ) {
                self.$field.fragments.borrow_mut().insert(*key, *ports);
            }
            fn local(&self, key: &LocalKey<<$family as Family>::Addr>) -> Option<LocalPod> {
                self.$field.locals.get(key).copied()
            }
        }
    };
}

tables!(V4, v4);
tables!(V6, v6);

impl<X: Frame> Parts<X> for &Memory {}
