//! One announcer for each VIP: a function of what every node knows, so that all come to the same answer. Pure.
//!
//! Each VIP ranks its eligible nodes by a hash of both names, so that a node that goes moves its own VIPs only; a node takes
//! no more than its share and a quarter, so that few VIPs spread as evenly as many.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use siphasher::sip::SipHasher24;

/// A node that could announce: it has an agent, lives and is not excluded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its interfaces with XDP.
    pub interfaces: Vec<Uplink>,
}

/// An interface that could announce.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Networks that it reaches without a router; empty when not known.
    pub subnets: Vec<ipnet::IpNet>,
}

/// A VIP that advertisements select.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vip {
    /// The address.
    pub address: IpAddr,
    /// Advertisements that select it, by position; none: it is not announced.
    pub advertisements: BTreeSet<usize>,
    /// Nodes with a usable endpoint, if only those may announce it.
    pub only: Option<BTreeSet<Arc<str>>>,
}

/// From where an advertisement announces.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct From {
    /// Nodes that it selects; all if none.
    pub nodes: Option<BTreeSet<Arc<str>>>,
    /// Interfaces; all with XDP if empty.
    pub interfaces: BTreeSet<String>,
}

/// Who announces a VIP, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The node.
    pub node: Arc<str>,
    /// Its interfaces, by name.
    pub interfaces: BTreeSet<String>,
}

/// A node that may announce a VIP.
struct Candidate<'a> {
    rank: u64,
    node: &'a Node,
    interfaces: BTreeSet<String>,
}

/// Chooses for every VIP. One without an eligible node is left out. Each VIP is to come once, each node too.
pub fn choose(vips: &[Vip], nodes: &[Node], from: &[From]) -> BTreeMap<IpAddr, Choice> {
    let mut wanted: Vec<_> = vips
        .iter()
        .map(|vip| (vip, candidates(vip, nodes, from)))
        .filter(|(_, candidates)| !candidates.is_empty())
        .collect();
    // Whose turn it is must not depend on how the addresses were given out.
    wanted.sort_by_key(|(vip, _)| (hash("", vip.address), vip.address));
    let sharing: BTreeSet<_> = wanted
        .iter()
        .flat_map(|(_, candidates)| candidates.iter().map(|candidate| &candidate.node.name))
        .collect();
    let share_max = share_max(wanted.len(), sharing.len());
    let mut load: BTreeMap<&str, usize> = BTreeMap::new();
    let mut chosen = BTreeMap::new();
    for (vip, mut candidates) in wanted {
        candidates.sort_by(|a, b| b.rank.cmp(&a.rank).then(a.node.name.cmp(&b.node.name)));
        let loaded = |candidate: &Candidate<'_>| load.get(&*candidate.node.name).copied();
        let free = candidates
            .iter()
            .position(|candidate| loaded(candidate).unwrap_or(0) < share_max);
        // Where all are full, as under policy Local, the one with the least to do.
        let least = || (0..candidates.len()).min_by_key(|at| loaded(&candidates[*at]).unwrap_or(0));
        let Some(at) = free.or_else(least) else {
            continue;
        };
        let Candidate {
            node, interfaces, ..
        } = candidates.swap_remove(at);
        *load.entry(&node.name).or_default() += 1;
        let choice = Choice {
            node: Arc::clone(&node.name),
            interfaces,
        };
        chosen.insert(vip.address, choice);
    }
    chosen
}

/// Most VIPs of one node: its share and a quarter, rounded up.
fn share_max(vips: usize, nodes: usize) -> usize {
    (vips * 5).div_ceil((nodes * 4).max(1))
}

/// Nodes that may announce a VIP, with the interfaces to do it on. If any reaches the VIP's network directly, only those.
fn candidates<'a>(vip: &Vip, nodes: &'a [Node], from: &[From]) -> Vec<Candidate<'a>> {
    let of = |only_on_link: bool| -> Vec<Candidate<'a>> {
        let eligible = nodes.iter().filter(|node| {
            vip.only
                .as_ref()
                .is_none_or(|only| only.contains(&node.name))
        });
        let interfaces = |node: &Node| -> BTreeSet<String> {
            node.interfaces
                .iter()
                .filter(|uplink| {
                    !only_on_link || uplink.subnets.iter().any(|net| net.contains(&vip.address))
                })
                .filter(|uplink| is_advertised(vip, node, &uplink.name, from))
                .map(|uplink| uplink.name.clone())
                .collect()
        };
        eligible
            .map(|node| Candidate {
                rank: hash(&node.name, vip.address),
                node,
                interfaces: interfaces(node),
            })
            .filter(|candidate| !candidate.interfaces.is_empty())
            .collect()
    };
    let on_link = of(true);
    if on_link.is_empty() {
        of(false)
    } else {
        on_link
    }
}

fn is_advertised(vip: &Vip, node: &Node, interface: &str, from: &[From]) -> bool {
    vip.advertisements
        .iter()
        .filter_map(|at| from.get(*at))
        .any(|from| {
            let node_fits = from
                .nodes
                .as_ref()
                .is_none_or(|nodes| nodes.contains(&node.name));
            let fits = from.interfaces.is_empty() || from.interfaces.contains(interface);
            node_fits && fits
        })
}

/// The rank of a node for a VIP; all nodes must agree on it, so it is pinned by a test.
fn hash(node: &str, vip: IpAddr) -> u64 {
    let mut hasher = SipHasher24::new_with_key(b"bowline announce");
    match vip {
        IpAddr::V4(vip) => hasher.write(&vip.to_ipv6_mapped().octets()),
        IpAddr::V6(vip) => hasher.write(&vip.octets()),
    }
    hasher.write(node.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests;
