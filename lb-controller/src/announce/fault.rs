//! What is wrong with an advertisement: why it announces nothing, or less than it says. Pure. Who lives is not asked here: a
//! node that is down comes back, and nobody has to correct anything.

use std::collections::BTreeSet;
use std::fmt;

use super::choose::Node;
use super::facts::{announcers, fits};
use crate::api::l2_advertisement::{L2Advertisement, L2AdvertisementSpec};
use crate::api::selector::{self, Labels, SelectorError};
use crate::source::index::Index;

/// Names in one sentence; the others are counted.
const NAMED_MAX: usize = 10;

/// Something that whoever wrote the advertisement, or runs the cluster, has to correct.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// A selector that can not be understood selects nothing.
    #[error("spec.{field} selects nothing: {error}; correct it")]
    Selector {
        /// Its field.
        field: &'static str,
        /// What is wrong with it.
        error: SelectorError,
    },
    /// Pools that it names do not exist. Those that do are announced.
    #[error("spec.pools names what is no AddressPool: {}; create it, or correct the name", listed(.0))]
    PoolNotFound(Vec<String>),
    /// It names no pool, and its selector matches none.
    #[error("spec.poolSelector matches no AddressPool; label one, or correct the selector")]
    NoPool,
    /// Its selector matches no Node.
    #[error("spec.nodeSelector matches no Node; label one, or correct the selector")]
    NoNode,
    /// None of its nodes can announce.
    #[error(
        "none of its nodes can announce: that takes an agent of role balancer or both, an interface with our program, and no \
         label {}; see `kubectl get loadbalancernodes`",
        super::facts::EXCLUDE_LABEL
    )]
    NoAnnouncer,
    /// Interfaces that it names are on none of its nodes. Those that are somewhere announce.
    #[error(
        "spec.interfaces names what no node that it selects has with our program: {}; correct the name, or have the agents \
         use it by --interface",
        listed(.0)
    )]
    InterfaceNotFound(Vec<String>),
}

impl Fault {
    /// In one word, for machines.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Selector { .. } => "SelectorInvalid",
            Self::PoolNotFound(_) => "PoolNotFound",
            Self::NoPool => "NoPool",
            Self::NoNode => "NoNode",
            Self::NoAnnouncer => "NoAnnouncer",
            Self::InterfaceNotFound(_) => "InterfaceNotFound",
        }
    }
}

/// A few names of a list.
struct Listed<'a>(&'a [String]);

fn listed(names: &[String]) -> Listed<'_> {
    Listed(names)
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = &self.0[..self.0.len().min(NAMED_MAX)];
        f.write_str(&named.join(", "))?;
        match self.0.len() - named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Everything that is wrong with an advertisement, the gravest first. What follows from another fault is left out.
pub fn faults(index: &Index, advertisement: &L2Advertisement) -> Vec<Fault> {
    let spec = &advertisement.spec;
    let mut faults: Vec<_> = selectors(spec).collect();
    let is_sound = |field: &str| {
        let mut selectors = faults.iter();
        !selectors
            .any(|fault| matches!(fault, Fault::Selector { field: wrong, .. } if *wrong == field))
    };
    let (pools, nodes) = (is_sound("poolSelector"), is_sound("nodeSelector"));
    faults.extend(of_pools(index, spec).filter(|fault| pools || *fault != Fault::NoPool));
    if nodes {
        faults.extend(of_nodes(index, spec));
    }
    faults
}

/// Selectors that can not be understood. That matters to agents too.
pub(super) fn selectors(spec: &L2AdvertisementSpec) -> impl Iterator<Item = Fault> {
    let selectors = [
        ("poolSelector", &spec.pool_selector),
        ("serviceSelector", &spec.service_selector),
        ("nodeSelector", &spec.node_selector),
    ];
    selectors.into_iter().filter_map(|(field, selector)| {
        let error = selector::matches(selector.as_ref()?, &Labels::new()).err()?;
        Some(Fault::Selector { field, error })
    })
}

fn of_pools(index: &Index, spec: &L2AdvertisementSpec) -> impl Iterator<Item = Fault> {
    let names = || index.pools().filter_map(|pool| pool.metadata.name.as_ref());
    let missing: Vec<_> = spec
        .pools
        .iter()
        .filter(|pool| names().all(|name| name != *pool))
        .cloned()
        .collect();
    let selected = spec.pool_selector.as_ref().is_none_or(|selector| {
        let mut pools = index.pools();
        pools.any(|pool| fits(selector, pool.metadata.labels.as_ref()))
    });
    let none = spec.pools.is_empty() && !selected;
    let missing = (!missing.is_empty()).then_some(Fault::PoolNotFound(missing));
    missing.into_iter().chain(none.then_some(Fault::NoPool))
}

fn of_nodes(index: &Index, spec: &L2AdvertisementSpec) -> Option<Fault> {
    let selected = |name: &str| {
        let labels = index.node(name).map(|node| node.metadata.labels.as_ref());
        let selector = spec.node_selector.as_ref();
        labels.is_some_and(|labels| selector.is_none_or(|selector| fits(selector, labels)))
    };
    let mut names = index.nodes().filter_map(|node| node.metadata.name.as_ref());
    if spec.node_selector.is_some() && !names.any(|name| selected(name)) {
        return Some(Fault::NoNode);
    }
    let nodes: Vec<Node> = announcers(index)
        .filter(|node| selected(&node.name) && !node.interfaces.is_empty())
        .collect();
    if nodes.is_empty() {
        return Some(Fault::NoAnnouncer);
    }
    let there: BTreeSet<_> = nodes
        .iter()
        .flat_map(|node| &node.interfaces)
        .map(|uplink| &uplink.name)
        .collect();
    let missing: Vec<_> = spec
        .interfaces
        .iter()
        .filter(|interface| !there.contains(interface))
        .cloned()
        .collect();
    (!missing.is_empty()).then_some(Fault::InterfaceNotFound(missing))
}

#[cfg(test)]
mod tests;
