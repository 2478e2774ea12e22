//! An advertisement in a small cluster, and what is said about it.

use super::*;
use crate::api::load_balancer_node::LoadBalancerNode;
use crate::source::files::{Content, Files};
use crate::source::parse::{Kind, Object, ObjectKey};

/// Two pools, and three nodes: one with agent and two interfaces, one of which has no program on it; one whose agent is no
/// balancer; one without an agent.
const CLUSTER: &str = "
apiVersion: bowline.dev/v1alpha1
kind: AddressPool
metadata: {name: shop, labels: {zone: a}}
spec: {addresses: [203.0.113.0/28]}
---
apiVersion: bowline.dev/v1alpha1
kind: AddressPool
metadata: {name: office}
spec: {addresses: [192.0.2.0/24]}
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {rack: one}}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {rack: two}}
---
apiVersion: v1
kind: Node
metadata: {name: n3, labels: {rack: three}}
";

fn index(manifests: &str) -> Index {
    let mut index = Index::default();
    let mut files = Files::default();
    let text = Content::Text(manifests.to_owned());
    files.update("cluster.yaml", &text, &mut index);
    for (name, spec) in [
        (
            "n1",
            "{role: both, version: '1', interfaces: [{name: eth0, xdp: native}, {name: eth1, xdp: none}]}",
        ),
        (
            "n2",
            "{role: owner, version: '1', interfaces: [{name: eth9, xdp: native}]}",
        ),
    ] {
        let key = ObjectKey {
            kind: Kind::LoadBalancerNode,
            namespace: String::new(),
            name: name.to_owned(),
        };
        let node = LoadBalancerNode::new(name, serde_saphyr::from_str(spec).unwrap());
        index.apply(key, Object::LoadBalancerNode(Box::new(node)));
    }
    index
}

fn said_in(index: &Index, spec: &str) -> Vec<(&'static str, String)> {
    let spec = serde_saphyr::from_str(spec).unwrap();
    let found = faults(index, &L2Advertisement::new("all", spec));
    let said = found.iter();
    said.map(|fault| (fault.reason(), fault.to_string()))
        .collect()
}

fn said(spec: &str) -> Vec<(&'static str, String)> {
    said_in(&index(CLUSTER), spec)
}

#[test]
fn what_names_only_what_exists_is_sound() {
    for spec in [
        "{}",
        "{pools: [shop, office], interfaces: [eth0]}",
        "{poolSelector: {matchLabels: {zone: a}}, nodeSelector: {matchLabels: {rack: one}}}",
        // Services come later; that none is there yet is no mistake.
        "{serviceSelector: {matchLabels: {tier: front}}}",
        // The selector is not needed beside a name.
        "{pools: [shop], poolSelector: {matchLabels: {zone: z}}}",
    ] {
        assert_eq!(said(spec), [], "{spec}");
    }
}

#[test]
fn a_selector_that_makes_no_sense_is_told_without_what_follows_from_it() {
    let wrong = "{matchExpressions: [{key: rack, operator: In}]}";
    let found = said(&format!(
        "{{poolSelector: {wrong}, serviceSelector: {wrong}, nodeSelector: {wrong}, interfaces: [eth7]}}"
    ));
    let reasons: Vec<_> = found.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(reasons, ["SelectorInvalid"; 3], "{found:?}");
    for ((_, sentence), field) in
        found
            .iter()
            .zip(["poolSelector", "serviceSelector", "nodeSelector"])
    {
        let start = format!("spec.{field} selects nothing: label selector: ");
        assert!(sentence.starts_with(&start), "{sentence}");
        assert!(sentence.ends_with("; correct it"), "{sentence}");
    }
}

#[test]
fn pools_that_do_not_exist_are_named() {
    assert_eq!(
        said("{pools: [shop, shoop, offices]}"),
        [(
            "PoolNotFound",
            "spec.pools names what is no AddressPool: shoop, offices; create it, or correct the name".to_owned()
        )]
    );
    assert_eq!(
        said("{poolSelector: {matchLabels: {zone: z}}}"),
        [(
            "NoPool",
            "spec.poolSelector matches no AddressPool; label one, or correct the selector"
                .to_owned()
        )]
    );
}

#[test]
fn of_many_names_a_few_are_told() {
    let names: Vec<_> = (0..12).map(|number| format!("p{number}")).collect();
    let [(_, sentence)] = &said(&format!("{{pools: [{}]}}", names.join(", ")))[..] else {
        panic!("one fault");
    };
    assert!(sentence.contains("p9 and 2 more;"), "{sentence}");
}

#[test]
fn nodes_that_are_not_there_differ_from_nodes_that_can_not_announce() {
    assert_eq!(
        said("{nodeSelector: {matchLabels: {rack: nine}}}"),
        [(
            "NoNode",
            "spec.nodeSelector matches no Node; label one, or correct the selector".to_owned()
        )]
    );
    for rack in ["two", "three"] {
        let found = said(&format!(
            "{{nodeSelector: {{matchLabels: {{rack: {rack}}}}}}}"
        ));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, "NoAnnouncer");
    }
    let excluded = CLUSTER.replace(
        "rack: one",
        "node.kubernetes.io/exclude-from-external-load-balancers: ''",
    );
    assert_eq!(said_in(&index(&excluded), "{}")[0].0, "NoAnnouncer");
}

#[test]
fn an_interface_counts_only_with_our_program_and_on_a_node_that_is_selected() {
    assert_eq!(
        said("{interfaces: [eth0, eth1, eth9]}"),
        [(
            "InterfaceNotFound",
            "spec.interfaces names what no node that it selects has with our program: eth1, eth9; correct the name, or have \
             the agents use it by --interface"
                .to_owned()
        )]
    );
}

#[test]
fn independent_faults_are_all_told() {
    let found = said("{pools: [shoop], interfaces: [eth7]}");
    let reasons: Vec<_> = found.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(reasons, ["PoolNotFound", "InterfaceNotFound"]);
}
