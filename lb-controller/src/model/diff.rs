//! From one Service's wanted entries to operations, in the order in which every prefix leaves every VIP usable:
//!
//! ```text
//! backends (and that they are local)   nobody names them yet
//! rows of new shapes                   nobody names them yet
//! sets                                 fresh ids, so immutable for readers
//! slots                                one aligned store each: {first, set}; old rows find the new occupant
//! source ranges                        nobody asks for them yet
//! service entries                      from here on new rows are read; all slots they name are there
//! VIP markers                          a VIP answers once a port of it is there
//! removals of entries, then of markers
//! source ranges that went              the others are there
//! ```
//! What nothing names any more is freed later and after a grace period: see [`super::collect`].

use std::collections::HashSet;

use super::draft::Draft;
use super::installed::{Installed, PlanError};
use super::op::{Op, ServiceKey};
use super::plan::{Service, vip_key};

impl Installed {
    /// The operations that bring the maps in line with a Service. Empty if they are.
    ///
    /// One plan at a time: carry it out and [`Installed::record`] it before the next, since both would choose the same
    /// fresh ids.
    pub fn plan(&mut self, service: &Service) -> Result<Vec<Op>, PlanError> {
        self.plan = self.plan.wrapping_add(1);
        let mut draft = Draft::new(self);
        for entry in &service.entries {
            draft.entry(service, entry)?;
        }
        draft.removals(service);
        let ops = draft.into_ops();
        self.own(service);
        Ok(ops)
    }

    /// The operations that remove all entries of a Service, planned before by this process.
    pub fn plan_removal(&mut self, uid: &str) -> Vec<Op> {
        let keys = self.keys.get(uid).cloned().unwrap_or_default();
        self.removal(&keys)
    }

    /// The operations that remove all entries that none of `wanted` has. Only for a caller that knows all Services: what
    /// is not listed goes.
    pub fn plan_stale<'a>(&self, wanted: impl IntoIterator<Item = &'a Service>) -> Vec<Op> {
        let wanted: HashSet<ServiceKey> = wanted
            .into_iter()
            .flat_map(|service| &service.entries)
            .map(|entry| entry.key)
            .collect();
        let keys = || self.services.keys().copied();
        let is_marker = |key: ServiceKey| vip_key(key) == key;
        let stale: Vec<_> = keys()
            .filter(|key| !is_marker(*key) && !wanted.contains(key))
            .collect();
        // A marker without any entry is what a removal left that failed half-way.
        let used: HashSet<_> = keys().filter(|key| !is_marker(*key)).map(vip_key).collect();
        let lone = keys().filter(|key| is_marker(*key) && !used.contains(key));
        let lone: Vec<_> = lone.map(|key| Op::RemoveService { key }).collect();
        self.removal(&stale).into_iter().chain(lone).collect()
    }

    /// Entries first, then the markers of VIPs without any other entry.
    pub(super) fn removal(&self, keys: &[ServiceKey]) -> Vec<Op> {
        let mut gone: Vec<_> = keys
            .iter()
            .copied()
            .filter(|key| self.services.contains_key(key))
            .collect();
        gone.sort_unstable();
        let mut markers: Vec<_> = gone.iter().map(|key| vip_key(*key)).collect();
        markers.dedup();
        markers.retain(|marker| {
            let others = self
                .services
                .range(*marker..)
                .skip_while(|(key, _)| *key == marker);
            let mut others = others.take_while(|(key, _)| vip_key(**key) == *marker);
            self.services.contains_key(marker)
                && others.all(|(key, _)| gone.binary_search(key).is_ok())
        });
        gone.into_iter()
            .chain(markers)
            .map(|key| Op::RemoveService { key })
            .collect()
    }

    /// Notes whose the keys are. Not a fact about the maps, so it does not wait for operations.
    fn own(&mut self, service: &Service) {
        let keys: Vec<_> = service.entries.iter().map(|entry| entry.key).collect();
        let same = self.keys.get(&service.uid).is_some_and(|old| {
            *old == keys
                && keys
                    .iter()
                    .all(|key| self.owners.get(key) == Some(&service.uid))
        });
        if same {
            return;
        }
        for key in &keys {
            if let Some(old) = self.owners.insert(*key, service.uid.clone())
                && old != service.uid
                && let Some(others) = self.keys.get_mut(&old)
            {
                others.retain(|other| other != key);
            }
        }
        // Keys that the Service has lost stay noted until they are removed.
        let old = self.keys.entry(service.uid.clone()).or_default();
        old.retain(|key| !keys.contains(key) && self.services.contains_key(key));
        old.splice(0..0, keys);
    }
}

#[cfg(test)]
mod tests;
