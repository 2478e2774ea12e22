//! One announcer for each VIP: a function of what every node knows, so that all come to the same answer. Pure.
//!
//! Each VIP ranks its eligible nodes by a hash of both names, so that a node that goes moves its own VIPs only; a node takes
//! no more than its share and a quarter, so that few VIPs spread as evenly as many.

use std::cmp::Reverse;
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

/// Nodes that may announce a VIP, by position.
struct Eligible {
    nodes: Vec<usize>,
    /// They reach the VIP's network directly, and only interfaces that do count.
    on_link: bool,
}

/// Chooses for every VIP. One without an eligible node is left out. Each VIP is to come once, each node too.
pub fn choose(vips: &[Vip], nodes: &[Node], from: &[From]) -> BTreeMap<IpAddr, Choice> {
    let mut wanted: Vec<_> = vips
        .iter()
        .map(|vip| (vip, eligible(vip, nodes, from)))
        .filter(|(_, eligible)| !eligible.nodes.is_empty())
        .collect();
    // Whose turn it is must not depend on how the addresses were given out.
    wanted.sort_by_cached_key(|(vip, _)| (hash("", vip.address), vip.address));
    let mut shares = vec![false; nodes.len()];
    for at in wanted.iter().flat_map(|(_, eligible)| &eligible.nodes) {
        shares[*at] = true;
    }
    let sharing = shares.iter().filter(|shares| **shares).count();
    let share_max = share_max(wanted.len(), sharing);
    let mut load = vec![0; nodes.len()];
    let mut chosen = BTreeMap::new();
    for (vip, eligible) in wanted {
        let rank = |at: usize| {
            let name = &nodes[at].name;
            (hash(name, vip.address), Reverse(name))
        };
        let all = || eligible.nodes.iter().copied();
        let free = all()
            .filter(|at| load[*at] < share_max)
            .max_by_key(|at| rank(*at));
        // Where all are full, as under policy Local, the one with the least to do.
        let least = || all().min_by_key(|at| (load[*at], Reverse(rank(*at))));
        let Some(at) = free.or_else(least) else {
            continue;
        };
        load[at] += 1;
        let uplinks = uplinks(vip, &nodes[at], from, eligible.on_link);
        let choice = Choice {
            node: Arc::clone(&nodes[at].name),
            interfaces: uplinks.map(|uplink| uplink.name.clone()).collect(),
        };
        chosen.insert(vip.address, choice);
    }
    chosen
}

/// Most VIPs of one node: its share and a quarter, rounded up.
fn share_max(vips: usize, nodes: usize) -> usize {
    (vips * 5).div_ceil((nodes * 4).max(1))
}

/// Nodes that may announce a VIP. If any reaches the VIP's network directly, only those.
fn eligible(vip: &Vip, nodes: &[Node], from: &[From]) -> Eligible {
    let of = |on_link: bool| -> Vec<usize> {
        let may = |node: &Node| {
            let only = vip.only.as_ref();
            only.is_none_or(|only| only.contains(&node.name))
                && uplinks(vip, node, from, on_link).next().is_some()
        };
        let all = nodes.iter().enumerate();
        all.filter(|(_, node)| may(node))
            .map(|(at, _)| at)
            .collect()
    };
    let direct = of(true);
    if direct.is_empty() {
        Eligible {
            nodes: of(false),
            on_link: false,
        }
    } else {
        Eligible {
            nodes: direct,
            on_link: true,
        }
    }
}

/// Interfaces of a node that may announce a VIP.
fn uplinks<'a>(
    vip: &'a Vip,
    node: &'a Node,
    from: &'a [From],
    on_link: bool,
) -> impl Iterator<Item = &'a Uplink> {
    node.interfaces
        .iter()
        .filter(move |uplink| {
            !on_link || uplink.subnets.iter().any(|net| net.contains(&vip.address))
        })
        .filter(move |uplink| is_advertised(vip, node, &uplink.name, from))
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
