//! Everything about the maps that is not one Service's change: freeing what nothing names, pods of this node, next hops,
//! peers, configuration.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use lb_ebpf::abi::{self, SLOT_DEVIATES, service_flag};
use lb_ebpf::wire::{Addr6, Be32, Mac};

use super::backends;
use super::installed::Installed;
use super::op::{BackendId, LocalKey, Op, RegionId, SetId, SlotIndex};
use super::plan::{Service, address_of, mapped};
use super::secret::identity;

impl Installed {
    /// Frees what nothing names any more, after a grace period: a program that has read a slot may still read its set and
    /// backends. Ids that `wanted` Services name stay, whether in the maps yet or not, so `wanted` must be all that were
    /// decoded and are still to be planned. Empty if there is nothing to free.
    ///
    /// Costs a pass over all slots, so it is called once after a batch of changes, not after each.
    pub fn collect<'a>(&self, wanted: impl IntoIterator<Item = &'a Service>) -> Vec<Op> {
        let mut live = Live::new(self);
        for service in wanted {
            for entry in &service.entries {
                live.backends(&entry.cells);
            }
        }
        let mut ops = live.stray_slots();
        ops.extend(live.free_sets());
        ops.extend(live.free_regions());
        ops.extend(live.free_backends());
        ops.extend(live.free_source_ranges());
        if !ops.is_empty() || !self.orphans.is_empty() {
            ops.insert(0, Op::Grace);
        }
        ops
    }

    /// Rewrites the backends whose way or place has changed.
    pub fn plan_backends(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for (id, entry) in self.backends.iter() {
            let (Some(pod), Some(known), Some(old)) = (entry.pod, &entry.known, &entry.value)
            else {
                continue;
            };
            let value = self.view.render(&pod, &known.node);
            if **old != value {
                ops.push(Op::Backend {
                    id,
                    value: Box::new(value),
                });
            }
        }
        ops
    }

    /// Brings the list of this node's pod ports in line: those of living pods are there, those of dead ones go and their
    /// flows with them. `alive` are the UIDs of this node's pods that are neither gone, Failed nor Succeeded; only for a
    /// caller that knows them all.
    pub fn plan_locals(&self, alive: &HashSet<String>, wanted: &[&Service]) -> Vec<Op> {
        let mut live = Live::new(self);
        for service in wanted {
            for entry in &service.entries {
                live.backends(&entry.cells);
            }
        }
        let mut places: HashMap<LocalKey, (bool, abi::LocalPod)> = HashMap::new();
        for (id, entry) in self.backends.iter() {
            let (Some(pod), Some(value)) = (entry.pod, &entry.value) else {
                continue;
            };
            let Some((key, value)) = backends::local(id, &pod, value) else {
                continue;
            };
            let lives = match &entry.known {
                Some(known) if known.podless => live.backends.contains(&id.0),
                Some(known) => alive.contains(&*known.uid),
                None => alive
                    .iter()
                    .any(|uid| identity(uid, pod.port) == pod.identity),
            };
            // Two pods may have had one address: the one that is alive counts, of two the newer id.
            let place = places.entry(key).or_insert((lives, value));
            if (lives, value.backend) > (place.0, place.1.backend) {
                *place = (lives, value);
            }
        }
        let mut ops = Vec::new();
        for (key, old) in &self.locals {
            let next = places.get(key).filter(|(lives, _)| *lives);
            if next.is_none_or(|(_, value)| value.identity != old.identity) {
                if next.is_none() {
                    ops.push(Op::RemoveLocal { key: *key });
                }
                ops.push(Op::PurgeFlows {
                    identity: old.identity,
                });
            }
        }
        for (key, (lives, value)) in places {
            if lives && self.locals.get(&key) != Some(&value) {
                ops.insert(0, Op::Local { key, value });
            }
        }
        ops
    }

    /// Brings the list of peers in line with the view's nodes. Those that are not there any more go only if the caller
    /// knows all nodes (`complete`).
    pub fn plan_peers(&self, complete: bool) -> Vec<Op> {
        let mut ops = Vec::new();
        let mut wanted = HashSet::new();
        let mut taken: HashSet<u32> = self.peers.values().copied().collect();
        let mut nodes: Vec<_> = self.view.nodes.iter().collect();
        nodes.sort_by_key(|(name, _)| *name);
        for (name, node) in nodes {
            if *name == self.view.node {
                continue;
            }
            let v4 = node
                .addresses
                .v4
                .map(|a| Addr6::mapped(Be32::from_bytes(a.octets())));
            let v6 = node.addresses.v6.map(|a| Addr6::from_bytes(a.octets()));
            let addresses: Vec<Addr6> = v4.into_iter().chain(v6).collect();
            let known = addresses
                .iter()
                .find_map(|addr| self.peers.get(addr).copied());
            let number = known.or_else(|| (1..=u32::MAX).find(|number| !taken.contains(number)));
            let Some(number) = number else { continue };
            taken.insert(number);
            for addr in addresses {
                wanted.insert(addr);
                if self.peers.get(&addr) != Some(&number) {
                    ops.push(Op::Peer { addr, node: number });
                }
            }
        }
        if complete {
            let gone = self.peers.keys().filter(|addr| !wanted.contains(addr));
            ops.extend(gone.map(|addr| Op::RemovePeer { addr: *addr }));
        }
        ops
    }

    /// Brings what this node answers for in line with `wanted`: VIP, interface, and the MAC of that interface. What is not
    /// wanted any more goes first. VIPs whose entries are not written are wanted in vain: the caller leaves them out.
    pub fn plan_announced(&self, wanted: &BTreeSet<(IpAddr, u32, [u8; 6])>) -> Vec<Op> {
        let wanted: BTreeMap<_, _> = wanted
            .iter()
            .map(|(vip, ifindex, mac)| {
                let key = abi::AnnouncedKey {
                    addr: mapped(*vip),
                    ifindex: *ifindex,
                };
                let mac = Mac::from_bytes(*mac);
                (key, abi::Announcement { mac, pad: [0; 2] })
            })
            .collect();
        let gone = self.announced.keys().copied();
        let gone = gone
            .filter(|key| !wanted.contains_key(key))
            .map(|key| Op::RemoveAnnounce { key });
        let new = wanted
            .iter()
            .filter(|(key, value)| self.announced.get(key) != Some(value))
            .map(|(key, value)| Op::Announce {
                key: *key,
                value: *value,
            });
        gone.chain(new).collect()
    }

    /// VIPs that this node answers for, by interface.
    pub fn announced(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.announced
            .keys()
            .map(|key| (address_of(key.addr), key.ifindex))
    }

    /// Writes the configuration if it differs.
    pub fn plan_config(&self, value: abi::Config) -> Option<Op> {
        (self.config != value).then(|| Op::Config {
            value: Box::new(value),
        })
    }
}

/// What something names.
struct Live<'a> {
    installed: &'a Installed,
    backends: HashSet<u32>,
    sets: HashSet<u32>,
    /// Slots that a service entry covers, as ranges in ascending order.
    covered: Vec<(u32, u32)>,
}

impl<'a> Live<'a> {
    /// What service entries name, and what this node's pods are.
    fn new(installed: &'a Installed) -> Self {
        let entries = installed
            .services
            .values()
            .filter(|entry| entry.slot_count > 0);
        let mut covered: Vec<_> = entries
            .map(|entry| (entry.slots, entry.slot_count))
            .collect();
        covered.sort_unstable();
        let mut live = Self {
            installed,
            backends: HashSet::new(),
            sets: HashSet::new(),
            covered,
        };
        for (start, count) in live.covered.clone() {
            let slots = start as usize..((start + count) as usize).min(installed.slots.len());
            live.sets.extend(
                installed.slots[slots]
                    .iter()
                    .map(|slot| slot.set & !SLOT_DEVIATES),
            );
            live.backends.extend(
                installed
                    .slots
                    .iter()
                    .skip(start as usize)
                    .take(count as usize)
                    .map(|slot| slot.first),
            );
        }
        for set in &live.sets {
            let Some(set) = installed.sets.get(*set as usize) else {
                continue;
            };
            let abi::Set {
                current,
                older,
                substitute,
            } = set;
            live.backends
                .extend(older.iter().chain([current, substitute]));
        }
        live.backends
            .extend(installed.locals.values().map(|local| local.backend));
        let pins = installed.pins.values();
        live.backends.extend(pins.flat_map(|pin| pin.backends));
        live.backends.extend(installed.config.opinions);
        live
    }

    fn backends(&mut self, cells: &[u32]) {
        self.backends.extend(cells);
    }

    /// Slots outside all service entries that are not zero.
    fn stray_slots(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        let mut covered = self.covered.iter().copied().peekable();
        for (at, slot) in self.installed.slots.iter().enumerate() {
            let index = at as u32;
            while covered
                .next_if(|(start, count)| start + count <= index)
                .is_some()
            {}
            let inside = covered.peek().is_some_and(|(start, _)| *start <= index);
            if !inside && *slot != abi::Slot::default() {
                ops.push(Op::Slot {
                    index: SlotIndex(index),
                    value: abi::Slot::default(),
                });
            }
        }
        ops
    }

    fn free_sets(&self) -> impl Iterator<Item = Op> {
        let sets = self.installed.used_sets.iter().skip(1);
        sets.filter(|set| !self.sets.contains(set))
            .map(|set| Op::FreeSet { id: SetId(set) })
    }

    fn free_regions(&self) -> Vec<Op> {
        let services = self.installed.services.values();
        let tables = services.flat_map(|entry| entry.previous.into_iter().chain([entry.current]));
        let named: HashSet<u32> = tables
            .filter(|table| table.size > 0)
            .map(|table| table.rows)
            .collect();
        let regions = self.installed.region_values.iter();
        let free = regions.filter(|(_, (region, _))| !named.contains(&region.rows));
        free.map(|(RegionId(id), _)| Op::FreeRegion { id: RegionId(*id) })
            .collect()
    }

    /// Source ranges of ids that no entry asks about.
    fn free_source_ranges(&self) -> Vec<Op> {
        let entries = self.installed.services.values();
        let asking: HashSet<u32> = entries
            .filter(|entry| entry.flags & service_flag::SOURCE_RANGES != 0)
            .map(|entry| entry.id)
            .collect();
        let ranges = self.installed.source_ranges.iter();
        ranges
            .filter(|(id, _)| !asking.contains(id))
            .flat_map(|(_, ranges)| ranges)
            .map(|range| Op::RemoveSourceRange { range: *range })
            .collect()
    }

    fn free_backends(&self) -> Vec<Op> {
        let all = self.installed.backends.iter();
        let free = all.filter(|(BackendId(id), _)| !self.backends.contains(id));
        free.map(|(id, _)| Op::FreeBackend { id }).collect()
    }
}
