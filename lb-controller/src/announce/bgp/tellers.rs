//! Which nodes tell routers of a VIP, as far as objects say. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::announce::facts::{self, Tabled};
use crate::announce::fault;
use crate::announce::select::{self, Selection};
use crate::api::bgp_advertisement::BGPAdvertisementSpec;
use crate::source::index::{Index, Named};

/// Nodes that tell at least one router of each VIP; VIPs that nobody tells of are left out. `is_live` as in [`facts::facts`].
pub fn tellers(
    index: &Index,
    vips: &Tabled,
    is_live: impl Fn(&str) -> bool,
) -> BTreeMap<IpAddr, BTreeSet<Arc<str>>> {
    let mut all: BTreeMap<IpAddr, BTreeSet<Arc<str>>> = BTreeMap::new();
    let live: Vec<_> = facts::announcers(index)
        .filter(|node| is_live(&node.name))
        .collect();
    for advertisement in index.bgp_advertisements() {
        let spec = &advertisement.spec;
        let selection = Selection::from(spec);
        if spec.fault().is_some() || fault::selectors(selection).next().is_some() {
            continue;
        }
        for (address, services) in vips {
            let objects = services.keys().filter_map(|named| index.service(named));
            let pool = select::pool_of(index, *address);
            if !(selection.pool(pool) && selection.any_service(objects)) {
                continue;
            }
            let tell = live.iter().filter(|one| {
                let told = |node: &Node| {
                    selection.node(node) && has_router(index, spec, node, address.is_ipv4())
                };
                index.node(&one.name).is_some_and(told) && serves(index, services, &one.name)
            });
            let names: BTreeSet<_> = tell.map(|one| Arc::clone(&one.name)).collect();
            if !names.is_empty() {
                all.entry(*address).or_default().extend(names);
            }
        }
    }
    all
}

/// Whether a node speaks to a router of a family that an advertisement names.
fn has_router(index: &Index, spec: &BGPAdvertisementSpec, node: &Node, is_ipv4: bool) -> bool {
    index.bgp_peers().any(|peer| {
        let name = peer.metadata.name.as_ref();
        let is_named = spec.peers.is_empty() || name.is_some_and(|name| spec.peers.contains(name));
        is_named
            && peer.spec.peer_address.is_ipv4() == is_ipv4
            && peer.spec.fault().is_none()
            && fault::of_peer(peer).node(node)
    })
}

/// Whether a node can take packets for all Services of a VIP: those of policy Local need pods there.
fn serves(index: &Index, services: &BTreeMap<Named, BTreeSet<Arc<str>>>, node: &str) -> bool {
    services.iter().all(|(named, nodes)| {
        let is_local = index.service(named).is_some_and(facts::is_local);
        !is_local || nodes.contains(node)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::load_balancer_node::{LoadBalancerNode, LoadBalancerNodeSpec, NodeRole};
    use crate::source::files::{Content, Files};
    use crate::source::parse::{Kind, Object, ObjectKey};

    /// Three nodes, of which the last is excluded; two VIPs of one pool, the second of policy Local.
    const CLUSTER: &str = "
apiVersion: bowline.dev/v1alpha1
kind: AddressPool
metadata: {name: shop}
spec: {addresses: [203.0.113.0/28]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: d}
spec: {type: LoadBalancer}
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: d}
spec: {type: LoadBalancer, externalTrafficPolicy: Local}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {rack: one}}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
---
apiVersion: v1
kind: Node
metadata: {name: n3, labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}}
---
apiVersion: bowline.dev/v1alpha1
kind: BGPAdvertisement
metadata: {name: all}
spec: {pools: [shop]}
";

    /// Who tells of the two VIPs, with a router as it is given.
    fn told(peer: &str, dead: &str) -> [Vec<String>; 2] {
        let mut index = Index::default();
        let yaml = format!(
            "{CLUSTER}---\napiVersion: bowline.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: rack}}\n\
             spec: {{peerASN: 64500, myASN: 64501, {peer}}}\n"
        );
        let mut files = Files::default();
        files.update("cluster", &Content::Text(yaml), &mut index);
        assert!(files.complete());
        for node in ["n1", "n2", "n3"] {
            let spec = LoadBalancerNodeSpec {
                role: NodeRole::Both,
                version: "1".to_owned(),
                addresses: Vec::new(),
                interfaces: Vec::new(),
            };
            let key = ObjectKey {
                kind: Kind::LoadBalancerNode,
                namespace: String::new(),
                name: node.to_owned(),
            };
            let object = LoadBalancerNode::new(node, spec);
            index.apply(key, Object::LoadBalancerNode(Box::new(object)));
        }
        let vip = |last: u8| IpAddr::from([203, 0, 113, last]);
        let named = |name: &str| Named {
            namespace: "d".to_owned(),
            name: name.to_owned(),
        };
        let vips = Tabled::from([
            (vip(1), BTreeMap::from([(named("web"), BTreeSet::new())])),
            (
                vip(2),
                BTreeMap::from([(named("near"), BTreeSet::from(["n2".into()]))]),
            ),
        ]);
        let told = tellers(&index, &vips, |node| node != dead);
        [1, 2].map(|last| {
            let nodes = told.get(&vip(last)).into_iter().flatten();
            nodes.map(ToString::to_string).collect()
        })
    }

    #[test]
    fn nodes_tell_of_what_they_can_take_if_they_live_and_have_a_router_of_its_family() {
        let router = "peerAddress: 192.0.2.1";
        assert_eq!(told(router, ""), [vec!["n1", "n2"], vec!["n2"]]);
        assert_eq!(told(router, "n2"), [vec!["n1"], vec![]]);
        let of_one = format!("{router}, nodeSelector: {{matchLabels: {{rack: one}}}}");
        assert_eq!(told(&of_one, ""), [vec!["n1"], vec![]]);
        let nobody = [Vec::<String>::new(), Vec::new()];
        assert_eq!(told("peerAddress: '2001:db8::1'", ""), nobody);
        assert_eq!(told(&format!("{router}, holdTime: 1"), ""), nobody);
    }
}
