//! Who has which address of which pool. Each Service is placed by itself, so that a change of one costs nothing for the
//! others; what it has, it keeps as long as it may. Pure.
//!
//! An address has one holder, or several that share a key. A port of an address has one owner, always.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::claim::{Claim, SHARING_ANNOTATION, Stacks};
use super::pool::{Pool, PoolFault, Range, after, is_buggy};
use crate::api::address_pool::{AddressPool, Sharing};
use crate::api::selector::Labels;
use crate::api::service_table::Family;

/// Why a Service does not get an address, and what to change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Refusal {
    /// No pool at all for it.
    #[error(
        "no AddressPool gives this Service {0:?} addresses by itself; add a pool, or ask for an address with the annotation bowline.dev/addresses"
    )]
    NoPool(Family),
    /// All taken.
    #[error(
        "all {family:?} addresses of the pools that it may use ({pools}) are taken; add addresses to one of them"
    )]
    Exhausted {
        /// The family.
        family: Family,
        /// Their names.
        pools: String,
    },
    /// Not an address of a pool.
    #[error(
        "{0} is in no AddressPool that this Service may use; ask for another address, or add it to a pool"
    )]
    Outside(IpAddr),
    /// Somebody else has it.
    #[error(
        "{vip} belongs to Service {owner}, and {why}; choose another address, or set the same annotation {SHARING_ANNOTATION} on both"
    )]
    Held {
        /// The address.
        vip: IpAddr,
        /// The other Service.
        owner: String,
        /// Why they can not share it.
        why: &'static str,
    },
}

impl Refusal {
    /// One word in camel case, for conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoPool(_) => "NoPool",
            Self::Exhausted { .. } => "PoolExhausted",
            Self::Outside(_) => "AddressOutsidePools",
            Self::Held { .. } => "AddressTaken",
        }
    }
}

/// What a Service got.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placed {
    /// Its addresses, IPv4 first.
    pub vips: Vec<IpAddr>,
    /// Why it did not get more.
    pub refused: Vec<Refusal>,
    /// Addresses that it keeps although no pool has them any more.
    pub kept: Vec<IpAddr>,
}

/// A Service that has addresses.
#[derive(Clone, PartialEq, Debug)]
struct Holder {
    claim: Claim,
    vips: Vec<IpAddr>,
}

/// How a pool is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Addresses of it that Services have.
    pub assigned: u32,
    /// Addresses of it that are free, as far as that can be said in 32 bits.
    pub free: u32,
}

/// All pools and who has what.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Allocation {
    /// Usable ones, by priority and name.
    pools: Vec<Pool>,
    /// Why the others are not used, by name.
    faults: BTreeMap<String, PoolFault>,
    /// Labels of namespaces, which pools select by.
    namespaces: BTreeMap<String, Labels>,
    holders: BTreeMap<String, Holder>,
    addresses: BTreeMap<IpAddr, BTreeSet<String>>,
    keys: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Where the search for a free address goes on, by pool and range: addresses come back into use late.
    cursors: BTreeMap<(String, Range), IpAddr>,
}

impl Allocation {
    /// Takes in all pools and the labels of all namespaces. Says whether anything changed: then every Service is to be
    /// placed again.
    pub fn set_pools<'a>(
        &mut self,
        objects: impl IntoIterator<Item = &'a AddressPool>,
        namespaces: BTreeMap<String, Labels>,
    ) -> bool {
        let mut pools = Vec::new();
        let mut faults = BTreeMap::new();
        for object in objects {
            match Pool::parse(object) {
                Ok(pool) => pools.push(pool),
                Err(fault) => {
                    _ = faults.insert(object.metadata.name.clone().unwrap_or_default(), fault);
                }
            }
        }
        // Of two that overlap the older one is used, so that a mistake takes no address from anybody.
        pools.sort_by(|a, b| {
            let age = |pool: &Pool| (pool.created.is_none(), pool.created, pool.name.clone());
            age(a).cmp(&age(b))
        });
        let mut usable: Vec<Pool> = Vec::new();
        for pool in pools {
            let overlap = usable
                .iter()
                .find_map(|other| Some((pool.overlap(other)?, other.name.clone())));
            match overlap {
                Some((range, other)) => {
                    _ = faults.insert(pool.name, PoolFault::Overlaps { range, other });
                }
                None => usable.push(pool),
            }
        }
        usable.sort_by(|a, b| {
            (std::cmp::Reverse(a.priority), &a.name).cmp(&(std::cmp::Reverse(b.priority), &b.name))
        });
        let changed =
            (&self.pools, &self.faults, &self.namespaces) != (&usable, &faults, &namespaces);
        self.pools = usable;
        self.faults = faults;
        self.namespaces = namespaces;
        changed
    }

    /// Pools that are not used, and why.
    pub fn faults(&self) -> &BTreeMap<String, PoolFault> {
        &self.faults
    }

    /// Usable pools, and how they are used.
    pub fn usage(&self) -> BTreeMap<String, Usage> {
        let of = |pool: &Pool| {
            let held = pool
                .ranges
                .iter()
                .map(|range| self.addresses.range(range.first..=range.last).count());
            let assigned = held.sum::<usize>();
            let total = pool
                .ranges
                .iter()
                .fold(0_u128, |sum, range| sum.saturating_add(range.len()));
            let free = total.saturating_sub(assigned as u128);
            Usage {
                assigned: u32::try_from(assigned).unwrap_or(u32::MAX),
                free: u32::try_from(free).unwrap_or(u32::MAX),
            }
        };
        self.pools
            .iter()
            .map(|pool| (pool.name.clone(), of(pool)))
            .collect()
    }

    /// The pool of an address.
    pub fn pool_of(&self, address: IpAddr) -> Option<&str> {
        self.pools
            .iter()
            .find(|pool| pool.ranges.iter().any(|range| range.contains(address)))
            .map(|pool| pool.name.as_str())
    }

    /// Takes the addresses of a Service that is gone. Says whether it had any.
    pub fn release(&mut self, name: &str) -> bool {
        let Some(Holder { claim, vips }) = self.holders.remove(name) else {
            return false;
        };
        for vip in &vips {
            let Some(names) = self.addresses.get_mut(vip) else {
                continue;
            };
            names.remove(name);
            if !names.is_empty() {
                continue;
            }
            self.addresses.remove(vip);
            if let Some(key) = &claim.key
                && let Some(shared) = self.keys.get_mut(key)
            {
                shared.remove(vip);
                if shared.is_empty() {
                    self.keys.remove(key);
                }
            }
        }
        !vips.is_empty()
    }

    /// Places a Service: what it has, or `remembered` from before a restart, it keeps as long as it may.
    pub fn place(&mut self, claim: &Claim, remembered: &[IpAddr]) -> Placed {
        let before = self
            .holders
            .get(&claim.name)
            .map(|holder| holder.vips.clone());
        let before = before.unwrap_or_else(|| remembered.to_vec());
        self.release(&claim.name);
        let mut placed = Placed::default();
        for family in &claim.families {
            let had = before
                .iter()
                .copied()
                .find(|vip| Family::of(*vip) == *family);
            match self.address(claim, *family, had) {
                Ok(vip) => {
                    placed.vips.push(vip);
                    if claim.stacks == Stacks::First {
                        placed.refused.clear();
                        break;
                    }
                }
                Err(refusal) => placed.refused.push(refusal),
            }
        }
        match claim.stacks {
            // What it had it keeps: an upgrade that fails takes nothing away.
            Stacks::All if !placed.refused.is_empty() => {
                placed.vips.retain(|vip| before.contains(vip));
            }
            // The second family was a preference only, unless an address of it was asked for.
            Stacks::Some if !placed.vips.is_empty() => placed
                .refused
                .retain(|refusal| matches!(refusal, Refusal::Outside(_) | Refusal::Held { .. })),
            Stacks::All | Stacks::Some | Stacks::First => {}
        }
        placed.vips.sort();
        placed.kept = placed
            .vips
            .iter()
            .copied()
            .filter(|vip| self.pool_of(*vip).is_none())
            .collect();
        self.hold(claim, &placed.vips);
        placed
    }

    fn hold(&mut self, claim: &Claim, vips: &[IpAddr]) {
        for vip in vips {
            let place = self.pools.iter().find_map(|pool| {
                let range = pool.ranges.iter().find(|range| range.contains(*vip))?;
                Some((pool.name.clone(), *range))
            });
            // One that was asked for says nothing about where free ones are.
            if let Some(place) = place.filter(|_| claim.asked.is_empty()) {
                self.cursors.insert(place, *vip);
            }
            self.addresses
                .entry(*vip)
                .or_default()
                .insert(claim.name.clone());
            if let Some(key) = &claim.key {
                self.keys.entry(key.clone()).or_default().insert(*vip);
            }
        }
        if !vips.is_empty() {
            let holder = Holder {
                claim: claim.clone(),
                vips: vips.to_vec(),
            };
            self.holders.insert(claim.name.clone(), holder);
        }
    }

    /// An address of a family: the one it had, or the one it asks for, or any.
    fn address(
        &mut self,
        claim: &Claim,
        family: Family,
        had: Option<IpAddr>,
    ) -> Result<IpAddr, Refusal> {
        let asked = claim
            .asked
            .iter()
            .copied()
            .find(|vip| Family::of(*vip) == family);
        if let Some(asked) = asked {
            let pools = self.pools.iter().filter(|pool| self.admits(pool, claim));
            if had != Some(asked) && !pools.into_iter().any(|pool| pool.gives(asked)) {
                return Err(Refusal::Outside(asked));
            }
            return self.may_hold(claim, asked).map(|()| asked);
        }
        if let Some(had) = had
            && self.may_hold(claim, had).is_ok()
        {
            return Ok(had);
        }
        self.any(claim, family)
    }

    fn admits(&self, pool: &Pool, claim: &Claim) -> bool {
        pool.admits(claim, self.namespaces.get(&claim.namespace))
    }

    /// Whether a Service may have an address, as far as those are concerned that have it.
    fn may_hold(&self, claim: &Claim, vip: IpAddr) -> Result<(), Refusal> {
        for name in self.addresses.get(&vip).into_iter().flatten() {
            let Some(holder) = self.holders.get(name) else {
                continue;
            };
            if let Some(why) = self.conflict(claim, &holder.claim, vip) {
                return Err(Refusal::Held {
                    vip,
                    owner: name.clone(),
                    why,
                });
            }
        }
        Ok(())
    }

    /// Why two Services can not share an address.
    fn conflict(&self, a: &Claim, b: &Claim, vip: IpAddr) -> Option<&'static str> {
        let crosses = || {
            let pool = self.pools.iter().find(|pool| pool.gives(vip));
            pool.is_some_and(|pool| pool.sharing == Sharing::AnyNamespace)
        };
        if a.key.is_none() || a.key != b.key {
            Some("they have no sharing key in common")
        } else if a.ports.iter().any(|port| b.ports.contains(port)) {
            Some("they have a port in common")
        } else if a.namespace != b.namespace && !crosses() {
            Some("its pool lets only Services of one namespace share")
        } else if (a.local || b.local) && a.selector != b.selector {
            Some("with externalTrafficPolicy Local only Services of equal selectors share")
        } else {
            None
        }
    }

    /// Any address of a family: one that is shared by key, else a free one.
    fn any(&mut self, claim: &Claim, family: Family) -> Result<IpAddr, Refusal> {
        let usable: Vec<usize> = (0..self.pools.len())
            .filter(|at| {
                let pool = &self.pools[*at];
                pool.auto
                    && self.admits(pool, claim)
                    && pool.ranges.iter().any(|r| Family::of(r.first) == family)
            })
            .collect();
        if usable.is_empty() {
            return Err(Refusal::NoPool(family));
        }
        let shared = claim.key.as_ref().and_then(|key| self.keys.get(key));
        let shared = shared.into_iter().flatten().copied().find(|vip| {
            Family::of(*vip) == family
                && usable.iter().any(|at| self.pools[*at].gives(*vip))
                && self.may_hold(claim, *vip).is_ok()
        });
        if let Some(vip) = shared {
            return Ok(vip);
        }
        for at in &usable {
            for range in self.pools[*at].ranges.clone() {
                if Family::of(range.first) != family {
                    continue;
                }
                if let Some(vip) = self.free(*at, range) {
                    return Ok(vip);
                }
            }
        }
        let names: Vec<_> = usable
            .iter()
            .map(|at| self.pools[*at].name.as_str())
            .collect();
        Err(Refusal::Exhausted {
            family,
            pools: names.join(", "),
        })
    }

    /// A free address of a range, after the one given out last.
    fn free(&self, pool: usize, range: Range) -> Option<IpAddr> {
        let pool = &self.pools[pool];
        let last = self.cursors.get(&(pool.name.clone(), range));
        let start = last
            .and_then(|last| after(*last))
            .filter(|start| range.contains(*start));
        let from = |mut candidate: IpAddr| {
            let mut taken = self
                .addresses
                .range(candidate..=range.last)
                .map(|(vip, _)| *vip)
                .peekable();
            loop {
                let is_taken = taken.next_if_eq(&candidate).is_some();
                let is_avoided = pool.avoid_buggy && is_buggy(candidate);
                if !(is_taken || is_avoided) {
                    return Some(candidate);
                }
                candidate = after(candidate).filter(|next| range.contains(*next))?;
            }
        };
        start.and_then(from).or_else(|| from(range.first))
    }
}

#[cfg(test)]
mod tests;
