//! A node in a small cluster, and what it tells routers.

use super::*;
use crate::announce::fault::bgp_faults;
use crate::source::files::{Content, Files};

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {rack: one}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {tier: gold}}
---
apiVersion: v1
kind: Service
metadata: {name: mail, namespace: shop}
---
apiVersion: bowline.dev/v1alpha1
kind: AddressPool
metadata: {name: shop, labels: {zone: a}}
spec: {addresses: [198.51.100.0/24, '2001:db8:1::/64']}
---
apiVersion: bowline.dev/v1alpha1
kind: AddressPool
metadata: {name: office}
spec: {addresses: [192.0.2.8-192.0.2.19]}
---
apiVersion: bowline.dev/v1alpha1
kind: BGPPeer
metadata: {name: tor}
spec: {peerAddress: 10.0.0.1, peerASN: 64500, myASN: 64501}
";

fn index(more: &str) -> Index {
    let mut index = Index::default();
    let text = Content::Text(format!("{CLUSTER}---{more}"));
    Files::default().update("cluster.yaml", &text, &mut index);
    index
}

fn named(name: &str) -> Named {
    Named {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

fn vip(service: &str) -> Vip {
    Vip {
        services: [named(service)].into(),
        is_local: false,
        is_served: true,
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vips() -> BTreeMap<IpAddr, Vip> {
    let served = [
        ("198.51.100.1", "web"),
        ("198.51.100.2", "mail"),
        ("192.0.2.9", "mail"),
        ("2001:db8:1::1", "web"),
        ("203.0.113.1", "mail"),
    ];
    served
        .map(|(text, service)| (address(text), vip(service)))
        .into()
}

fn advertisement(spec: &str) -> String {
    format!(
        "\napiVersion: bowline.dev/v1alpha1\nkind: BGPAdvertisement\nmetadata: {{name: all}}\nspec: {spec}\n"
    )
}

const OWN: Own<'_> = Own {
    node: "n1",
    table: 6081,
    router_id: Ipv4Addr::new(10, 0, 0, 11),
};

/// Prefixes of the table, and patterns that the router is told.
fn told_of(index: &Index, vips: &BTreeMap<IpAddr, Vip>) -> (Vec<String>, Vec<String>) {
    let plan = plan(index, OWN, vips);
    assert_eq!(plan.faults, []);
    let peers = plan.config.peers.iter().flat_map(|peer| &peer.told);
    let patterns = peers.flat_map(|told| &told.prefixes);
    (
        plan.prefixes.iter().map(ToString::to_string).collect(),
        patterns.map(ToString::to_string).collect(),
    )
}

fn told(spec: &str, vips: &BTreeMap<IpAddr, Vip>) -> (Vec<String>, Vec<String>) {
    told_of(&index(&advertisement(spec)), vips)
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn an_advertisement_without_selectors_tells_all_vips() {
    let expected = texts(&[
        "192.0.2.9/32",
        "198.51.100.1/32",
        "198.51.100.2/32",
        "203.0.113.1/32",
        "2001:db8:1::1/128",
    ]);
    assert_eq!(
        told("{}", &vips()),
        (expected, texts(&["0.0.0.0/0{32,32}"]))
    );
}

#[test]
fn nothing_is_told_without_an_advertisement() {
    assert_eq!(told_of(&index(""), &vips()), (Vec::new(), Vec::new()));
}

#[test]
fn pools_are_selected_by_name_or_label() {
    let (prefixes, patterns) = told("{pools: [office]}", &vips());
    assert_eq!(prefixes, ["192.0.2.9/32"]);
    assert_eq!(patterns, ["192.0.2.8/29{32,32}", "192.0.2.16/30{32,32}"]);
    let (prefixes, patterns) = told("{poolSelector: {matchLabels: {zone: a}}}", &vips());
    assert_eq!(
        prefixes,
        ["198.51.100.1/32", "198.51.100.2/32", "2001:db8:1::1/128"]
    );
    assert_eq!(patterns, ["198.51.100.0/24{32,32}"]);
}

#[test]
fn vips_of_selected_services_are_named_one_by_one() {
    let (prefixes, patterns) = told("{serviceSelector: {matchLabels: {tier: gold}}}", &vips());
    assert_eq!(prefixes, ["198.51.100.1/32", "2001:db8:1::1/128"]);
    assert_eq!(patterns, ["198.51.100.1/32{32,32}"]);
}

#[test]
fn vips_that_are_not_served_here_have_no_route_and_change_no_filter() {
    let mut vips = vips();
    let before = told("{serviceSelector: {}}", &vips).1;
    for vip in vips.values_mut() {
        vip.is_served = false;
    }
    assert_eq!(told("{serviceSelector: {}}", &vips), (Vec::new(), before));
}

#[test]
fn new_vips_of_a_pool_change_no_filter() {
    let mut vips = vips();
    let before = told("{pools: [shop]}", &vips).1;
    vips.insert(address("198.51.100.77"), vip("web"));
    let (prefixes, patterns) = told("{pools: [shop]}", &vips);
    assert!(prefixes.contains(&"198.51.100.77/32".to_owned()));
    assert_eq!(patterns, before);
}

#[test]
fn an_aggregate_stands_for_its_vips() {
    let (prefixes, patterns) = told("{pools: [shop], aggregationLength: 28}", &vips());
    assert_eq!(prefixes, ["198.51.100.0/28", "2001:db8:1::1/128"]);
    assert_eq!(patterns, ["198.51.100.0/24{28,28}"]);
}

#[test]
fn an_aggregate_never_has_addresses_that_are_not_of_the_pool() {
    let mut vips = vips();
    vips.insert(address("192.0.2.17"), vip("web"));
    let (prefixes, patterns) = told("{pools: [office], aggregationLength: 29}", &vips);
    assert_eq!(prefixes, ["192.0.2.8/29", "192.0.2.17/32"]);
    assert_eq!(patterns, ["192.0.2.8/29{29,29}", "192.0.2.17/32{32,32}"]);
    let (prefixes, _) = told("{aggregationLength: 8}", &vips);
    assert!(prefixes.iter().all(|prefix| !prefix.ends_with("/8")));
    assert!(
        prefixes.contains(&"203.0.113.1/32".to_owned()),
        "of no pool"
    );
}

#[test]
fn a_local_vip_is_told_beside_the_aggregate_of_others() {
    let mut vips = vips();
    vips.get_mut(&address("198.51.100.2")).unwrap().is_local = true;
    let (prefixes, patterns) = told("{pools: [shop], aggregationLength: 24}", &vips);
    assert_eq!(
        prefixes,
        ["198.51.100.0/24", "198.51.100.2/32", "2001:db8:1::1/128"]
    );
    assert_eq!(
        patterns,
        ["198.51.100.0/24{24,24}", "198.51.100.2/32{32,32}"]
    );
    // Where its pods are gone, it goes, and the filter stays.
    vips.get_mut(&address("198.51.100.2")).unwrap().is_served = false;
    let after = told("{pools: [shop], aggregationLength: 24}", &vips);
    assert_eq!(after.0, ["198.51.100.0/24", "2001:db8:1::1/128"]);
    assert_eq!(after.1, patterns);
}

#[test]
fn nodes_are_selected_by_advertisements_and_by_peers() {
    let (prefixes, patterns) = told("{nodeSelector: {matchLabels: {rack: two}}}", &vips());
    assert_eq!((prefixes, patterns), (Vec::new(), Vec::new()));
    let other = "
apiVersion: bowline.dev/v1alpha1
kind: BGPPeer
metadata: {name: other}
spec: {peerAddress: 10.0.0.2, peerASN: 64500, myASN: 64501, nodeSelector: {matchLabels: {rack: two}}}
";
    let plan = plan(&index(other), OWN, &vips());
    let peers: Vec<_> = plan.config.peers.iter().map(|peer| &peer.name).collect();
    assert_eq!(peers, ["tor"], "it is told nothing, and spoken with");
}

#[test]
fn a_peer_is_told_what_names_it_in_its_family() {
    let peer = "
apiVersion: bowline.dev/v1alpha1
kind: BGPPeer
metadata: {name: tor6}
spec: {peerAddress: '2001:db8::1', peerASN: 64500, myASN: 64501}
---";
    let advertisement =
        advertisement("{peers: [tor6], communities: ['1:2'], localPreference: 300}");
    let plan = plan(&index(&format!("{peer}{advertisement}")), OWN, &vips());
    let [tor, tor6] = &plan.config.peers[..] else {
        panic!("{:?}", plan.config.peers);
    };
    assert_eq!(tor.told, []);
    let [told] = &tor6.told[..] else {
        panic!("{:?}", tor6.told);
    };
    assert_eq!(told.advertisement, "all");
    assert_eq!(told.local_preference, Some(300));
    let prefixes: Vec<_> = told.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["::/0{128,128}"]);
}

#[test]
fn a_wrong_object_stops_no_other() {
    let wrong = "
apiVersion: bowline.dev/v1alpha1
kind: BGPAdvertisement
metadata: {name: wrong}
spec: {nodeSelector: {matchExpressions: [{key: rack, operator: Like, values: [a]}]}}
---";
    let index = index(&format!("{wrong}{}", advertisement("{pools: [office]}")));
    let plan = plan(&index, OWN, &vips());
    assert_eq!(plan.prefixes.len(), 1);
    let [(object, sentence)] = &plan.faults[..] else {
        panic!("{:?}", plan.faults);
    };
    assert_eq!(object, "BGPAdvertisement wrong");
    assert!(sentence.contains("spec.nodeSelector"), "{sentence}");
}

#[test]
fn what_an_advertisement_names_and_is_not_there_is_said() {
    let index = index(&advertisement("{pools: [shop, gone], peers: [gone]}"));
    let object = index.bgp_advertisements().next().unwrap();
    let reasons: Vec<_> = bgp_faults(&index, object)
        .iter()
        .map(Fault::reason)
        .collect();
    assert_eq!(reasons, ["PoolNotFound", "PeerNotFound", "NoAnnouncer"]);
}
