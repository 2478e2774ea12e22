//! What one node tells routers, from objects: routes for the table, and what BIRD is to do with them. Pure.
//!
//! An aggregate never has an address that is not the pool's, and is never made of VIPs of policy Local, which other nodes do not
//! serve: these are announced one by one beside it, and routers follow the longer prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::config::{Config, Pattern, Peer, Told};
use crate::announce::fault::{self, Fault};
use crate::announce::select::{self, Selection};
use crate::api::address_pool::AddressPool;
use crate::api::bgp_advertisement::{BGPAdvertisement, BGPAdvertisementSpec};
use crate::api::bgp_peer::BGPPeer;
use crate::model::pool::Range;
use crate::source::index::{Index, Named};

/// A VIP that has a table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Vip {
    /// Services that have it.
    pub services: BTreeSet<Named>,
    /// Its packets may enter only where its pods are.
    pub is_local: bool,
    /// This node can take its packets.
    pub is_served: bool,
}

/// The node that announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own<'a> {
    /// Its name.
    pub node: &'a str,
    /// The table of its routes.
    pub table: u32,
    /// Its name among routers.
    pub router_id: Ipv4Addr,
}

/// What a node tells routers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Prefixes that its table has.
    pub prefixes: BTreeSet<IpNet>,
    /// What BIRD is to do.
    pub config: Config,
    /// Which object is wrong, and what to change.
    pub faults: Vec<(String, String)>,
}

/// An advertisement of this node.
struct Offer<'a> {
    name: &'a str,
    spec: &'a BGPAdvertisementSpec,
    patterns: BTreeSet<Pattern>,
}

/// Decides what a node tells routers.
pub fn plan(index: &Index, own: Own<'_>, vips: &BTreeMap<IpAddr, Vip>) -> Plan {
    let mut faults = Vec::new();
    let mut prefixes = BTreeSet::new();
    let mut offers = Vec::new();
    let pools: Vec<_> = index.pools().map(|pool| (pool, nets(pool))).collect();
    for advertisement in index.bgp_advertisements() {
        let selection = Selection::from(&advertisement.spec);
        let name = advertisement.metadata.name.as_deref().unwrap_or_default();
        let spec = advertisement.spec.fault().map(Fault::Spec);
        let wrong: Vec<_> = spec
            .into_iter()
            .chain(fault::selectors(selection))
            .collect();
        let is_wrong = told(&mut faults, "BGPAdvertisement", name, &wrong);
        let node = index.node(own.node);
        if is_wrong || !node.is_some_and(|node| selection.node(node)) {
            continue;
        }
        let (of_vips, patterns) = offer(index, advertisement, &pools, vips);
        prefixes.extend(of_vips);
        offers.push(Offer {
            name,
            spec: &advertisement.spec,
            patterns,
        });
    }
    let peers = index.bgp_peers();
    let peers = peers.filter_map(|object| peer(index, own, object, &offers, &mut faults));
    let peers = peers.collect();
    Plan {
        prefixes,
        config: Config {
            table: own.table,
            router_id: own.router_id,
            peers,
        },
        faults,
    }
}

/// Notes what is wrong with an object, and says whether anything is.
fn told(faults: &mut Vec<(String, String)>, kind: &str, name: &str, wrong: &[Fault]) -> bool {
    let sentences = wrong.iter().map(ToString::to_string);
    faults.extend(sentences.map(|sentence| (format!("{kind} {name}"), sentence)));
    !wrong.is_empty()
}

/// Routes that this node has for an advertisement, and those that it may have, as patterns.
fn offer(
    index: &Index,
    advertisement: &BGPAdvertisement,
    pools: &[(&AddressPool, Vec<IpNet>)],
    vips: &BTreeMap<IpAddr, Vip>,
) -> (Vec<IpNet>, BTreeSet<Pattern>) {
    let spec = &advertisement.spec;
    let selection = Selection::from(spec);
    let mut prefixes = Vec::new();
    let mut patterns = wide(spec, selection, pools);
    for (address, vip) in vips {
        let pool = select::pool_of(index, *address);
        let services = vip.services.iter().filter_map(|named| index.service(named));
        if !(selection.pool(pool) && selection.any_service(services)) {
            continue;
        }
        let mut of_pool = pools.iter().filter(|(of, _)| Some(*of) == pool);
        let nets = of_pool.next().map_or(&[][..], |(_, nets)| nets);
        let prefix = prefix(spec, *address, vip, nets);
        if vip.is_served {
            prefixes.push(prefix);
        }
        if !patterns.iter().any(|pattern| pattern.has(&prefix)) {
            patterns.insert(Pattern::only(prefix));
        }
    }
    (prefixes, patterns)
}

/// Prefixes of whatever VIPs an advertisement selects, now and later; none where only some of a pool are meant.
fn wide(
    spec: &BGPAdvertisementSpec,
    selection: Selection<'_>,
    pools: &[(&AddressPool, Vec<IpNet>)],
) -> BTreeSet<Pattern> {
    if selection.service_selector.is_some() {
        return BTreeSet::new();
    }
    let pattern = |net: &IpNet| Pattern {
        net: *net,
        length: length(spec, net),
    };
    let of_pools = pools.iter().filter(|(pool, _)| selection.pool(Some(pool)));
    let of_pools = of_pools.flat_map(|(_, nets)| nets).map(pattern);
    // What is shorter than an aggregate is announced one by one.
    let of_pools = of_pools.filter(|pattern| pattern.net.prefix_len() <= pattern.length);
    let everything = [
        IpNet::V4(ipnet::Ipv4Net::default()),
        IpNet::V6(ipnet::Ipv6Net::default()),
    ];
    let everything = everything
        .iter()
        .filter(|net| selection.is_of_any_pool() && length(spec, net) == net.max_prefix_len())
        .map(pattern);
    let all: BTreeSet<_> = everything.chain(of_pools).collect();
    let covered = |pattern: &Pattern| {
        let mut others = all.iter().filter(|other| *other != pattern);
        others.any(|other| other.length == pattern.length && other.net.contains(&pattern.net))
    };
    all.iter().filter(|one| !covered(one)).copied().collect()
}

/// How long the prefixes of VIPs are in a network's family.
fn length(spec: &BGPAdvertisementSpec, net: &IpNet) -> u8 {
    let asked = match net {
        IpNet::V4(_) => spec.aggregation_length,
        IpNet::V6(_) => spec.aggregation_length_v6,
    };
    asked.unwrap_or(net.max_prefix_len())
}

/// The prefix that a VIP is announced by.
fn prefix(spec: &BGPAdvertisementSpec, address: IpAddr, vip: &Vip, pool: &[IpNet]) -> IpNet {
    let host = IpNet::from(address);
    if vip.is_local {
        return host;
    }
    let aggregate = IpNet::new(address, length(spec, &host)).map(|net| net.trunc());
    let fits = |aggregate: &IpNet| pool.iter().any(|net| net.contains(aggregate));
    aggregate.ok().filter(fits).unwrap_or(host)
}

/// The networks of a pool, as few as there can be. Entries that are no ranges have none; the manager says so.
fn nets(pool: &AddressPool) -> Vec<IpNet> {
    let ranges = pool.spec.addresses.iter();
    let ranges = ranges.filter_map(|text| Range::parse(text).ok());
    let all: Vec<IpNet> = ranges
        .flat_map(|Range { first, last }| -> Vec<IpNet> {
            match (first, last) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
                }
                // A range of two families is none.
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
            }
        })
        .collect();
    IpNet::aggregate(&all)
}

/// A router as BIRD is told of it; none if it is not this node's, or wrong.
fn peer(
    index: &Index,
    own: Own<'_>,
    object: &BGPPeer,
    offers: &[Offer<'_>],
    faults: &mut Vec<(String, String)>,
) -> Option<Peer> {
    let spec = &object.spec;
    let name = object.metadata.name.clone().unwrap_or_default();
    let selection = fault::of_peer(object);
    let wrong = spec.fault().map(Fault::Spec).into_iter();
    let wrong: Vec<_> = wrong.chain(fault::selectors(selection)).collect();
    if told(faults, "BGPPeer", &name, &wrong) || !selection.node(index.node(own.node)?) {
        return None;
    }
    let is_told =
        |offer: &&Offer<'_>| offer.spec.peers.is_empty() || offer.spec.peers.contains(&name);
    let told = offers.iter().filter(is_told).filter_map(|offer| {
        let of_family =
            |pattern: &&Pattern| pattern.net.addr().is_ipv4() == spec.peer_address.is_ipv4();
        let prefixes: BTreeSet<_> = offer.patterns.iter().filter(of_family).copied().collect();
        (!prefixes.is_empty()).then(|| Told {
            advertisement: offer.name.to_owned(),
            prefixes,
            communities: offer.spec.communities.clone(),
            large_communities: offer.spec.large_communities.clone(),
            local_preference: offer.spec.local_preference,
        })
    });
    Some(Peer {
        told: told.collect(),
        address: spec.peer_address,
        port: spec.port,
        asn: spec.peer_asn,
        own_asn: spec.my_asn,
        source: spec.source_address,
        hops: spec.ebgp_multihop,
        password: spec.password_key.clone(),
        hold_time: spec.hold_time,
        keepalive_time: spec.keepalive_time,
        bfd: spec.bfd,
        graceful_restart: spec.graceful_restart,
        name,
    })
}

#[cfg(test)]
mod tests;
