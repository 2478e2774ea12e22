//! Addresses of all Services: from pools, or, in a directory without a pool, those that are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::State;
use crate::admin::Problem;
use crate::model::allocation::{Allocation, Placed, Usage};
use crate::model::claim::Claim;
use crate::model::ipam;
use crate::model::problem::{Fault, Problem as Wrong};
use crate::model::service::Service;
use crate::source::index::{Index, Named};

/// What becomes of requested addresses while there is no pool at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Requests {
    /// They are used: a directory of manifests is written by one person.
    Free,
    /// They are refused: whoever runs the cluster says which addresses there are.
    FromPools,
}

/// How a pool is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolState {
    /// Its use, or why it is not used: one word and one sentence.
    pub usage: Result<Usage, (&'static str, String)>,
    /// Addresses that Services keep though no pool has them.
    pub kept: Vec<IpAddr>,
}

/// Who has which address.
pub(super) struct Addresses {
    requests: Requests,
    allocation: Allocation,
    /// Services that lack an address: they are tried again when one may have become free.
    waiting: BTreeSet<Named>,
    /// The last settling was by pools.
    pooled: bool,
}

impl Addresses {
    pub(super) fn new(requests: Requests) -> Self {
        Self {
            requests,
            allocation: Allocation::default(),
            waiting: BTreeSet::new(),
            pooled: requests == Requests::FromPools,
        }
    }

    /// Reads Services that changed, and settles their addresses. Says which Services differ now.
    pub(super) fn settle(
        &mut self,
        index: &Index,
        services: &mut BTreeMap<Named, State>,
        defined: &BTreeSet<Named>,
        pools: bool,
    ) -> BTreeSet<Named> {
        let mut all = false;
        if pools {
            let labels = index.namespaces().filter_map(|namespace| {
                let meta = &namespace.metadata;
                Some((meta.name.clone()?, meta.labels.clone().unwrap_or_default()))
            });
            all = self.allocation.set_pools(index.pools(), labels.collect());
            let pooled = self.requests == Requests::FromPools || index.pools().next().is_some();
            all |= pooled != self.pooled;
            self.pooled = pooled;
        }
        if !self.pooled {
            return if all || !defined.is_empty() {
                requested(index, services)
            } else {
                BTreeSet::new()
            };
        }
        let wanted = if all {
            let known = services.keys().cloned();
            known.chain(index.services().filter_map(named_of)).collect()
        } else {
            defined.clone()
        };
        let mut changed = BTreeSet::new();
        let mut freed = all;
        for named in in_order(index, services, wanted) {
            let (moved, released) = self.place(index, services, &named);
            freed |= released;
            if moved {
                changed.insert(named);
            }
        }
        if freed {
            for named in in_order(index, services, self.waiting.clone()) {
                if self.place(index, services, &named).0 {
                    changed.insert(named);
                }
            }
        }
        changed
    }

    /// Reads one Service and places it. Says whether it differs now, and whether an address became free.
    fn place(
        &mut self,
        index: &Index,
        services: &mut BTreeMap<Named, State>,
        named: &Named,
    ) -> (bool, bool) {
        self.waiting.remove(named);
        let name = named.to_string();
        let parsed = index
            .service(named)
            .filter(|object| object.metadata.deletion_timestamp.is_none());
        let parsed = parsed.and_then(|object| Some((object, Service::parse(object)?)));
        let Some((object, mut service)) = parsed else {
            let released = self.allocation.release(&name);
            let Some(state) = services.get_mut(named) else {
                return (false, released);
            };
            return (state.service.take().is_some(), released);
        };
        let state = services.entry(named.clone()).or_default();
        let before = state.service.as_ref().map(|service| service.vips.clone());
        // Another object of the same name inherits nothing but its place in the queue.
        let same = state
            .service
            .as_ref()
            .is_none_or(|old| old.uid == service.uid);
        if !same {
            self.allocation.release(&name);
            state.remembered.clear();
        }
        let claim = Claim::of(object, &service);
        let placed = self.allocation.place(&claim, &state.remembered);
        state.remembered.clear();
        if !placed.refused.is_empty() {
            self.waiting.insert(named.clone());
        }
        give(&mut service, placed);
        let released =
            before.is_some_and(|before| before.iter().any(|vip| !service.vips.contains(vip)));
        let moved = state.service.as_ref() != Some(&service);
        state.service = Some(service);
        (moved, released || !same)
    }

    /// What is wrong with pools.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.allocation
            .faults()
            .iter()
            .map(|(name, fault)| Problem {
                object: format!("AddressPool {name}"),
                sentence: fault.to_string(),
            })
    }

    /// How each pool is.
    pub(super) fn pools(&self, services: &BTreeMap<Named, State>) -> BTreeMap<String, PoolState> {
        let usable = self
            .allocation
            .usage()
            .into_iter()
            .map(|(name, usage)| (name, Ok(usage)));
        let faulty = self.allocation.faults().iter();
        let faulty =
            faulty.map(|(name, fault)| (name.clone(), Err((fault.reason(), fault.to_string()))));
        let kept: Vec<IpAddr> = services
            .values()
            .filter_map(|state| state.service.as_ref())
            .flat_map(|service| &service.problems)
            .filter_map(|problem| match problem.fault {
                Fault::Kept(vip) => Some(vip),
                _ => None,
            })
            .collect();
        usable
            .chain(faulty)
            .map(|(name, usage)| {
                (
                    name,
                    PoolState {
                        usage,
                        kept: kept.clone(),
                    },
                )
            })
            .collect()
    }
}

/// Writes what was placed into a Service.
fn give(service: &mut Service, placed: Placed) {
    let Placed {
        vips,
        refused,
        kept,
    } = placed;
    service
        .problems
        .retain(|problem| problem.fault != Fault::NoAddress);
    let pending = vips.is_empty();
    let refused = refused.into_iter().map(|refusal| {
        if pending {
            Fault::Unallocated(refusal)
        } else {
            Fault::Refused(refusal)
        }
    });
    let faults: Vec<_> = refused.chain(kept.into_iter().map(Fault::Kept)).collect();
    if pending && faults.is_empty() {
        let fault = Wrong::new("Service", &service.name, Fault::NoAddress);
        service.problems.push(fault);
    }
    let name = service.name.clone();
    service.problems.extend(
        faults
            .into_iter()
            .map(|fault| Wrong::new("Service", &name, fault)),
    );
    service.vips = vips;
}

/// Those that have an address first, then by age: nobody loses what it had to somebody who had nothing.
fn in_order(
    index: &Index,
    services: &BTreeMap<Named, State>,
    wanted: BTreeSet<Named>,
) -> Vec<Named> {
    let mut order: Vec<_> = wanted.into_iter().collect();
    order.sort_by_cached_key(|named| {
        let has = services.get(named).is_some_and(|state| {
            !state.remembered.is_empty()
                || state.service.as_ref().is_some_and(|s| !s.vips.is_empty())
        });
        let created = index
            .service(named)
            .and_then(|object| object.metadata.creation_timestamp.as_ref().map(|t| t.0));
        (!has, created.is_none(), created, named.clone())
    });
    order
}

fn named_of(object: &k8s_openapi::api::core::v1::Service) -> Option<Named> {
    Some(Named {
        namespace: object.metadata.namespace.clone()?,
        name: object.metadata.name.clone()?,
    })
}

/// Without pools: reads all Services again, since addresses are settled between all. Says who has changed.
fn requested(index: &Index, services: &mut BTreeMap<Named, State>) -> BTreeSet<Named> {
    let ours = index
        .services()
        .filter_map(|object| Some((named_of(object)?, Service::parse(object)?)));
    let (names, mut settled): (Vec<_>, Vec<_>) = ours.unzip();
    ipam::settle(&mut settled);
    let mut parsed: BTreeMap<_, _> = names.into_iter().zip(settled).collect();
    let mut changed = BTreeSet::new();
    for (named, state) in services.iter_mut() {
        let service = parsed.remove(named);
        if state.service != service {
            state.service = service;
            changed.insert(named.clone());
        }
    }
    for (named, service) in parsed {
        changed.insert(named.clone());
        let state = State {
            service: Some(service),
            ..State::default()
        };
        services.insert(named, state);
    }
    changed
}
