use std::fmt::Write;

use super::*;
use crate::api::load_balancer_node::{LoadBalancerNodeSpec, NodeInterface};
use crate::source::files::{Content, Files};
use crate::source::parse::{Kind, Object, ObjectKey};

/// Two pools, three nodes with agents, and a Service with pods on the first two.
const CLUSTER: &str = "
apiVersion: bowline.dev/v1alpha1
kind: AddressPool
metadata: {name: shop, labels: {zone: a}}
spec: {addresses: [203.0.113.0/28, 198.51.100.10-198.51.100.20]}
---
apiVersion: bowline.dev/v1alpha1
kind: AddressPool
metadata: {name: office}
spec: {addresses: [192.0.2.0/24]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, labels: {tier: front}}
spec: {type: LoadBalancer, externalTrafficPolicy: POLICY}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], nodeName: n1}
- {addresses: [10.0.0.2], nodeName: n2, conditions: {ready: false, serving: true, terminating: true}}
ports: []
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
metadata: {name: n3, labels: {node.kubernetes.io/exclude-from-external-load-balancers: EXCLUDE}}
spec: {unschedulable: true}
";

/// A node with an agent and two interfaces, one of them without XDP.
fn balancer(node: &str) -> (ObjectKey, Object) {
    let interface = |name: &str, xdp| NodeInterface {
        name: name.to_owned(),
        xdp,
        mac: None,
        subnets: Vec::new(),
    };
    let spec = LoadBalancerNodeSpec {
        role: NodeRole::Both,
        version: "1".to_owned(),
        addresses: Vec::new(),
        interfaces: vec![
            interface("eth0", XdpMode::Native),
            interface("eth1", XdpMode::None),
        ],
    };
    let key = ObjectKey {
        kind: Kind::LoadBalancerNode,
        namespace: String::new(),
        name: node.to_owned(),
    };
    let object = Object::LoadBalancerNode(Box::new(LoadBalancerNode::new(node, spec)));
    (key, object)
}

fn index(exclude: &str, policy: &str, advertisement: &str) -> Index {
    let mut text = CLUSTER
        .replace("EXCLUDE", exclude)
        .replace("POLICY", policy);
    if !advertisement.is_empty() {
        let _ = write!(
            text,
            "---\napiVersion: bowline.dev/v1alpha1\nkind: L2Advertisement\nmetadata: {{name: all}}\nspec: {advertisement}\n"
        );
    }
    let mut index = Index::default();
    let mut files = Files::default();
    files.update("all.yaml", &Content::Text(text), &mut index);
    for node in ["n1", "n2", "n3"] {
        let (key, object) = balancer(node);
        index.apply(key, object);
    }
    index
}

fn web() -> Tabled {
    tabled(&[])
}

/// The Service's VIP, and the nodes that its table has serve.
fn tabled(nodes: &[&str]) -> Tabled {
    let nodes = nodes.iter().map(|node| Arc::from(*node)).collect();
    let named = Named {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
    };
    [("203.0.113.7".parse().unwrap(), [(named, nodes)].into())].into()
}

fn names(facts: &Facts) -> Vec<&str> {
    facts.nodes.iter().map(|node| &*node.name).collect()
}

#[test]
fn without_an_advertisement_nothing_is_announced() {
    let index = index("'true'", "Cluster", "");
    assert_eq!(facts(&index, &web(), |_| true), Facts::default());
}

#[test]
fn the_label_excludes_unless_it_says_false_and_unschedulable_does_not() {
    for (value, excluded) in [("'true'", true), ("''", true), ("'false'", false)] {
        let index = index(value, "Cluster", "{}");
        let facts = facts(&index, &web(), |_| true);
        let expected: &[&str] = if excluded {
            &["n1", "n2"]
        } else {
            &["n1", "n2", "n3"]
        };
        assert_eq!(names(&facts), expected);
        // Interfaces without XDP answer nothing.
        assert_eq!(facts.nodes[0].interfaces.len(), 1);
    }
}

#[test]
fn nodes_that_are_down_or_have_no_agent_are_left_out() {
    let mut index = index("'false'", "Cluster", "{}");
    assert_eq!(
        names(&facts(&index, &web(), |node| node != "n2")),
        ["n1", "n3"]
    );
    index.delete(&balancer("n3").0);
    assert_eq!(names(&facts(&index, &web(), |_| true)), ["n1", "n2"]);
}

#[test]
fn advertisements_select_by_pool_service_and_node() {
    for (spec, selected) in [
        ("{}", true),
        ("{pools: [shop]}", true),
        ("{pools: [office]}", false),
        ("{poolSelector: {matchLabels: {zone: a}}}", true),
        ("{poolSelector: {matchLabels: {zone: b}}}", false),
        ("{serviceSelector: {matchLabels: {tier: front}}}", true),
        ("{serviceSelector: {matchLabels: {tier: back}}}", false),
    ] {
        let index = index("'false'", "Cluster", spec);
        let facts = facts(&index, &web(), |_| true);
        assert_eq!(!facts.vips[0].advertisements.is_empty(), selected, "{spec}");
    }
    let index = index(
        "'false'",
        "Cluster",
        "{nodeSelector: {matchLabels: {rack: one}}}",
    );
    let facts = facts(&index, &web(), |_| true);
    assert_eq!(facts.from[0].nodes, Some(["n1".into()].into()));
}

#[test]
fn policy_local_asks_for_a_ready_endpoint_and_else_for_one_that_still_serves() {
    let with = |policy: &str| {
        let index = index("'false'", policy, "{}");
        facts(&index, &web(), |_| true).vips[0].only.clone()
    };
    assert_eq!(with("Cluster"), None);
    assert_eq!(with("Local"), Some(["n1".into()].into()));
}

/// What a rollout of the one pod goes through: the old pod on `n1`, the new one on `n2`.
#[test]
fn a_vip_of_policy_local_leaves_an_ending_pod_at_once_and_waits_for_the_table_of_a_new_one() {
    let (serves, ends, gone, none) = (
        "",
        "terminating: true, ready: false",
        "terminating: true, serving: false, ready: false",
        "ready: false",
    );
    let stages: [(&str, &str, &[&str], &str); 7] = [
        (serves, none, &["n1"], "n1"),
        // The new one is ready; its table is not here yet, then it is.
        (serves, serves, &["n1"], "n1"),
        (ends, serves, &["n1"], "n1"),
        (ends, serves, &["n1", "n2"], "n2"),
        (gone, serves, &["n2"], "n2"),
        // Nobody is in the table: who is ready, else who still serves.
        (ends, serves, &[], "n2"),
        (ends, none, &["n3"], "n1"),
    ];
    for (old, new, nodes, expected) in stages {
        let mut index = index("'false'", "Local", "{}");
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: default, labels: \
             {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: []\nendpoints:\n\
             - {{addresses: [10.0.0.1], nodeName: n1, conditions: {{{old}}}}}\n\
             - {{addresses: [10.0.0.2], nodeName: n2, conditions: {{{new}}}}}\n"
        );
        let slice = serde_saphyr::from_str(&text).unwrap();
        let key = ObjectKey {
            kind: Kind::EndpointSlice,
            namespace: "default".to_owned(),
            name: "web-1".to_owned(),
        };
        index.apply(key, Object::EndpointSlice(Box::new(slice)));
        let only = facts(&index, &tabled(nodes), |_| true).vips[0].only.clone();
        assert_eq!(
            only,
            Some([expected.into()].into()),
            "{old}|{new}|{nodes:?}"
        );
    }
}

#[test]
fn the_nodes_of_a_table_are_those_of_open_slots() {
    let table = "
serviceUid: u
version: 1
vips: [203.0.113.7]
trafficPolicy: Local
nodes: [n1, n2, n3]
pods: [{uid: a, node: 0}, {uid: b, node: 1}, {uid: c, node: 2}]
groups:
- family: IPv4
  ports: [{port: 80, protocol: TCP}]
  shape: {slots: 2, size: 509}
  targets: [[80]]
  candidates: [2, 1, 0]
  current: [2, null, 1]
";
    let mut table: ServiceTableSpec = serde_saphyr::from_str(table).unwrap();
    assert_eq!(tabled_nodes(&table), ["n1".into()].into());
    table.traffic_policy = TrafficPolicy::Cluster;
    assert_eq!(tabled_nodes(&table), BTreeSet::new());
}

#[test]
fn a_selector_that_is_none_is_named() {
    let spec = "{serviceSelector: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}";
    let index = index("'false'", "Cluster", spec);
    let facts = facts(&index, &web(), |_| true);
    assert_eq!(facts.faults.len(), 1);
    assert_eq!(facts.faults[0].0, "all");
    assert!(facts.vips[0].advertisements.is_empty());
}

#[test]
fn ranges_and_networks_hold_addresses_of_their_family() {
    let index = index("'false'", "Cluster", "");
    let shop = index
        .pools()
        .find(|pool| pool.metadata.name.as_deref() == Some("shop"))
        .unwrap();
    for (address, held) in [
        ("203.0.113.15", true),
        ("203.0.113.16", false),
        ("198.51.100.10", true),
        ("198.51.100.20", true),
        ("198.51.100.21", false),
        ("2001:db8::1", false),
    ] {
        let pool = select::pool_of(&index, address.parse().unwrap());
        assert_eq!(pool == Some(shop), held, "{address}");
    }
}
