//! What is wrong with an advertisement or a peer: why it announces nothing, or less than it says. Pure. Who lives is not asked here: a
//! node that is down comes back, and nobody has to correct anything.

use std::collections::BTreeSet;
use std::fmt;

use super::choose::Node;
use super::facts::announcers;
use super::select::{Selection, fits};
use crate::api::bgp_advertisement::BGPAdvertisement;
use crate::api::bgp_peer::BGPPeer;
use crate::api::l2_advertisement::L2Advertisement;
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
    /// None of its nodes can be told of to routers.
    #[error(
        "none of its nodes can announce: that takes an agent of role balancer or both, and no label {}; see `kubectl get \
         loadbalancernodes`",
        super::facts::EXCLUDE_LABEL
    )]
    NoRouter,
    /// Peers that it names do not exist. Those that do are told.
    #[error("spec.peers names what is no BGPPeer: {}; create it, or correct the name", listed(.0))]
    PeerNotFound(Vec<String>),
    /// There is nobody to tell.
    #[error("there is no BGPPeer; create one")]
    NoPeer,
    /// A field has a value that it can not have.
    #[error("{0}")]
    Spec(String),
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
            Self::NoAnnouncer | Self::NoRouter => "NoAnnouncer",
            Self::PeerNotFound(_) => "PeerNotFound",
            Self::NoPeer => "NoPeer",
            Self::Spec(_) => "SpecInvalid",
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
    let selection = Selection::from(spec);
    let mut faults = of_selection(index, selection);
    if is_sound(&faults, "nodeSelector") {
        faults.extend(of_nodes(index, selection, &spec.interfaces));
    }
    faults
}

/// Everything that is wrong with an advertisement by BGP.
pub fn bgp_faults(index: &Index, advertisement: &BGPAdvertisement) -> Vec<Fault> {
    let spec = &advertisement.spec;
    let selection = Selection::from(spec);
    let mut faults: Vec<_> = spec.fault().map(Fault::Spec).into_iter().collect();
    faults.extend(of_selection(index, selection));
    let names = || {
        index
            .bgp_peers()
            .filter_map(|peer| peer.metadata.name.as_ref())
    };
    let missing = spec.peers.iter();
    let missing: Vec<_> = missing
        .filter(|peer| names().all(|name| name != *peer))
        .cloned()
        .collect();
    if !missing.is_empty() {
        faults.push(Fault::PeerNotFound(missing));
    } else if names().next().is_none() {
        faults.push(Fault::NoPeer);
    }
    if is_sound(&faults, "nodeSelector") {
        faults.extend(of_bgp_nodes(index, selection));
    }
    faults
}

/// Everything that is wrong with a peer.
pub fn peer_faults(index: &Index, peer: &BGPPeer) -> Vec<Fault> {
    let spec = &peer.spec;
    let selection = of_peer(peer);
    let mut faults: Vec<_> = spec.fault().map(Fault::Spec).into_iter().collect();
    faults.extend(selectors(selection));
    if is_sound(&faults, "nodeSelector") {
        faults.extend(of_bgp_nodes(index, selection));
    }
    faults
}

/// A peer selects nodes only.
pub(super) fn of_peer(peer: &BGPPeer) -> Selection<'_> {
    Selection {
        pools: &[],
        pool_selector: None,
        service_selector: None,
        node_selector: peer.spec.node_selector.as_ref(),
    }
}

fn is_sound(faults: &[Fault], field: &str) -> bool {
    let mut faults = faults.iter();
    !faults.any(|fault| matches!(fault, Fault::Selector { field: wrong, .. } if *wrong == field))
}

/// Selectors that can not be understood. That matters to agents too.
pub(super) fn selectors(selection: Selection<'_>) -> impl Iterator<Item = Fault> {
    let selectors = [
        ("poolSelector", selection.pool_selector),
        ("serviceSelector", selection.service_selector),
        ("nodeSelector", selection.node_selector),
    ];
    selectors.into_iter().filter_map(|(field, selector)| {
        let error = selector::matches(selector?, &Labels::new()).err()?;
        Some(Fault::Selector { field, error })
    })
}

fn of_selection(index: &Index, selection: Selection<'_>) -> Vec<Fault> {
    let mut faults: Vec<_> = selectors(selection).collect();
    let is_sound = is_sound(&faults, "poolSelector");
    faults.extend(of_pools(index, selection).filter(|fault| is_sound || *fault != Fault::NoPool));
    faults
}

fn of_pools(index: &Index, selection: Selection<'_>) -> impl Iterator<Item = Fault> {
    let names = || index.pools().filter_map(|pool| pool.metadata.name.as_ref());
    let missing: Vec<_> = selection
        .pools
        .iter()
        .filter(|pool| names().all(|name| name != *pool))
        .cloned()
        .collect();
    let selected = selection.pool_selector.is_none_or(|selector| {
        let mut pools = index.pools();
        pools.any(|pool| fits(selector, pool.metadata.labels.as_ref()))
    });
    let none = selection.pools.is_empty() && !selected;
    let missing = (!missing.is_empty()).then_some(Fault::PoolNotFound(missing));
    missing.into_iter().chain(none.then_some(Fault::NoPool))
}

fn is_selected(index: &Index, selection: Selection<'_>, name: &str) -> bool {
    let node = index.node(name);
    node.is_some_and(|node| selection.node(node))
}

fn no_node(index: &Index, selection: Selection<'_>) -> Option<Fault> {
    let mut nodes = index.nodes();
    let none = selection.node_selector.is_some() && !nodes.any(|node| selection.node(node));
    none.then_some(Fault::NoNode)
}

fn of_nodes(index: &Index, selection: Selection<'_>, interfaces: &[String]) -> Option<Fault> {
    if let Some(fault) = no_node(index, selection) {
        return Some(fault);
    }
    let nodes: Vec<Node> = announcers(index)
        .filter(|node| is_selected(index, selection, &node.name) && !node.interfaces.is_empty())
        .collect();
    if nodes.is_empty() {
        return Some(Fault::NoAnnouncer);
    }
    let there: BTreeSet<_> = nodes
        .iter()
        .flat_map(|node| &node.interfaces)
        .map(|uplink| &uplink.name)
        .collect();
    let missing: Vec<_> = interfaces
        .iter()
        .filter(|interface| !there.contains(interface))
        .cloned()
        .collect();
    (!missing.is_empty()).then_some(Fault::InterfaceNotFound(missing))
}

/// Routes lead to a node whatever interfaces it has.
fn of_bgp_nodes(index: &Index, selection: Selection<'_>) -> Option<Fault> {
    let mut announcers = announcers(index);
    no_node(index, selection).or_else(|| {
        let any = announcers.any(|node| is_selected(index, selection, &node.name));
        (!any).then_some(Fault::NoRouter)
    })
}

#[cfg(test)]
mod tests;
