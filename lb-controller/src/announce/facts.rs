//! What [`super::choose`] needs, from objects. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{self as k8s, Service};

use super::choose::{From, Node, Uplink, Vip};
use super::fault;
use super::select::{self, Selection, fits};
use crate::api::l2_advertisement::L2Advertisement;
use crate::api::load_balancer_node::{LoadBalancerNode, NodeRole, XdpMode};
use crate::api::node_drain::Phase;
use crate::api::service_table::{ServiceTableSpec, TrafficPolicy};
use crate::source::index::{Index, Named};

/// Label of nodes that announce nothing.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What the choice is made from.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Facts {
    /// VIPs that have a table.
    pub vips: Vec<Vip>,
    /// Nodes that could announce.
    pub nodes: Vec<Node>,
    /// Advertisements.
    pub from: Vec<From>,
    /// What is wrong with an advertisement: its name, and a sentence.
    pub faults: Vec<(String, String)>,
}

/// Services of VIPs that have tables, each with the nodes that its table has serve; none under policy Cluster, where it does
/// not matter.
pub type Tabled = BTreeMap<IpAddr, BTreeMap<Named, BTreeSet<Arc<str>>>>;

/// Collects what the choice is made from. `is_live` says whether a node may announce as far as the others hear.
pub fn facts(index: &Index, vips: &Tabled, is_live: impl Fn(&str) -> bool) -> Facts {
    let mut facts = Facts::default();
    let advertisements: Vec<_> = index.advertisements().collect();
    if advertisements.is_empty() {
        return facts;
    }
    facts.from = advertisements
        .iter()
        .map(|advertisement| from(index, advertisement, &mut facts.faults))
        .collect();
    facts.nodes = announcers(index)
        .filter(|node| is_live(&node.name))
        .collect();
    facts.vips = vips
        .iter()
        .map(|(address, services)| vip(index, *address, services, &advertisements))
        .collect();
    facts
}

/// Nodes that could announce, whether they live or not.
pub(in crate::announce) fn announcers(index: &Index) -> impl Iterator<Item = Node> {
    index
        .balancers()
        .filter(|balancer| balancer.spec.role != NodeRole::Owner)
        .filter(move |balancer| is_eligible(index, balancer))
        .map(node)
}

fn name(balancer: &LoadBalancerNode) -> &str {
    balancer.metadata.name.as_deref().unwrap_or_default()
}

/// Its Node exists, is not excluded and not being drained so far. Whether it is ready or may be scheduled says nothing about forwarding.
fn is_eligible(index: &Index, balancer: &LoadBalancerNode) -> bool {
    let Some(node) = index.node(name(balancer)) else {
        return false;
    };
    let drain = index
        .drain(name(balancer))
        .and_then(|drain| drain.status.as_ref());
    if drain.is_some_and(|drain| drain.phase.has_reached(Phase::Deprefer)) {
        return false;
    }
    !is_excluded(node)
}

/// Whether a node's label excludes it from load balancing.
pub fn is_excluded(node: &k8s::Node) -> bool {
    let label = node.metadata.labels.as_ref();
    let value = label.and_then(|labels| labels.get(EXCLUDE_LABEL));
    value.is_some_and(|value| value != "false")
}

fn node(balancer: &LoadBalancerNode) -> Node {
    let uplinks = balancer.spec.interfaces.iter();
    Node {
        name: name(balancer).into(),
        interfaces: uplinks
            .filter(|interface| interface.xdp != XdpMode::None)
            .map(|interface| Uplink {
                name: interface.name.clone(),
                subnets: interface.subnets.clone(),
            })
            .collect(),
    }
}

fn from(
    index: &Index,
    advertisement: &L2Advertisement,
    faults: &mut Vec<(String, String)>,
) -> From {
    let spec = &advertisement.spec;
    let name = || advertisement.metadata.name.clone().unwrap_or_default();
    faults.extend(fault::selectors(Selection::from(spec)).map(|fault| (name(), fault.to_string())));
    From {
        nodes: spec.node_selector.as_ref().map(|selector| {
            index
                .nodes()
                .filter(|node| fits(selector, node.metadata.labels.as_ref()))
                .filter_map(|node| node.metadata.name.as_deref().map(Arc::from))
                .collect()
        }),
        interfaces: spec.interfaces.iter().cloned().collect(),
    }
}

fn vip(
    index: &Index,
    address: IpAddr,
    services: &BTreeMap<Named, BTreeSet<Arc<str>>>,
    advertisements: &[&L2Advertisement],
) -> Vip {
    let pool = select::pool_of(index, address);
    let objects: Vec<_> = services
        .keys()
        .filter_map(|named| Some((named, index.service(named)?)))
        .collect();
    let selected = advertisements
        .iter()
        .enumerate()
        .filter(|(_, advertisement)| {
            let selection = Selection::from(&advertisement.spec);
            let services = objects.iter().map(|(_, service)| *service);
            selection.pool(pool) && selection.any_service(services)
        })
        .map(|(at, _)| at);
    let local: Vec<_> = objects
        .iter()
        .filter(|(_, service)| is_local(service))
        .collect();
    Vip {
        address,
        advertisements: selected.collect(),
        only: (!local.is_empty()).then(|| {
            local
                .iter()
                .flat_map(|(named, _)| serving_nodes(index, named, &services[*named]))
                .collect()
        }),
    }
}

/// Whether a Service wants packets to enter where its pods are.
pub fn is_local(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local")
}

/// Nodes with an endpoint that gets new flows: one that is ready and not terminating; if there is none anywhere, one that
/// still serves while it terminates. Those that the table has serve come before all others: the others' pods are not in their
/// maps yet, so a VIP waits for the table of a new pod where it can, and leaves a pod that ends at once.
fn serving_nodes(index: &Index, named: &Named, tabled: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
    let mut ready = BTreeSet::new();
    let mut leaving = BTreeSet::new();
    for serving in index.serving(named) {
        ready.extend(serving.ready().map(Arc::from));
        leaving.extend(serving.leaving().map(Arc::from));
    }
    let in_table = |nodes: &BTreeSet<_>| nodes.intersection(tabled).cloned().collect();
    [in_table(&ready), in_table(&leaving), ready, leaving]
        .into_iter()
        .find(|nodes| !nodes.is_empty())
        .unwrap_or_default()
}

/// Whether packets of a table's Service are taken only where it has pods.
pub fn is_local_table(table: &ServiceTableSpec) -> bool {
    table.traffic_policy == TrafficPolicy::Local
}

/// Nodes that a table has serve new flows, under policy Local.
pub fn tabled_nodes(table: &ServiceTableSpec) -> BTreeSet<Arc<str>> {
    if table.traffic_policy == TrafficPolicy::Cluster {
        return BTreeSet::new();
    }
    let current = table.groups.iter().flat_map(|group| {
        let open = group.current.iter().take(usize::from(group.shape.slots));
        open.flatten()
            .filter_map(|candidate| group.candidates.get(*candidate as usize))
    });
    // A table that names what is not there is refused where it is applied.
    let nodes: BTreeSet<_> = current
        .filter_map(|pod| Some(table.pods.get(*pod as usize)?.node))
        .collect();
    nodes
        .into_iter()
        .filter_map(|node| table.nodes.get(node as usize))
        .map(|node| Arc::from(node.as_str()))
        .collect()
}

#[cfg(test)]
mod tests;
