use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn node(n: usize) -> Node {
    Node {
        name: format!("node-{n}").into(),
        interfaces: vec![Uplink {
            name: "eth0".to_owned(),
            subnets: vec!["192.0.2.0/24".parse().unwrap()],
        }],
    }
}

fn vip(n: usize) -> Vip {
    Vip {
        address: Ipv4Addr::from(0xcb00_7100 + n as u32).into(),
        advertisements: [0].into(),
        only: None,
    }
}

fn nodes(count: usize) -> Vec<Node> {
    (0..count).map(node).collect()
}

fn vips(count: usize) -> Vec<Vip> {
    (0..count).map(vip).collect()
}

fn everywhere() -> Vec<From> {
    vec![From::default()]
}

fn loads(chosen: &BTreeMap<IpAddr, Choice>) -> BTreeMap<Arc<str>, usize> {
    let mut loads = BTreeMap::new();
    for choice in chosen.values() {
        *loads.entry(Arc::clone(&choice.node)).or_default() += 1;
    }
    loads
}

#[test]
fn all_nodes_agree_on_the_ranks() {
    assert_eq!(
        hash("node-1", "203.0.113.7".parse().unwrap()),
        7_971_041_189_910_463_307
    );
    let chosen = choose(&vips(6), &nodes(3), &everywhere());
    let names: Vec<_> = chosen.values().map(|choice| &*choice.node).collect();
    let reversed: Vec<_> = nodes(3).into_iter().rev().collect();
    let again = choose(&vips(6), &reversed, &everywhere());
    assert_eq!(chosen, again, "{names:?}");
}

#[test]
fn nothing_is_announced_without_an_advertisement() {
    let unselected = Vip {
        advertisements: BTreeSet::new(),
        ..vip(1)
    };
    assert!(choose(&[unselected], &nodes(3), &everywhere()).is_empty());
    assert!(choose(&vips(3), &nodes(3), &[]).is_empty());
    assert!(choose(&vips(3), &[], &everywhere()).is_empty());
}

#[test]
fn nodes_on_the_link_of_a_vip_come_before_all_others() {
    let mut nodes = nodes(4);
    nodes[2].interfaces[0].subnets = vec!["203.0.113.0/24".parse().unwrap()];
    let chosen = choose(&vips(20), &nodes, &everywhere());
    assert!(chosen.values().all(|choice| &*choice.node == "node-2"));
    let elsewhere = Vip {
        address: "198.51.100.1".parse().unwrap(),
        ..vip(0)
    };
    assert_eq!(choose(&[elsewhere], &nodes, &everywhere()).len(), 1);
}

#[test]
fn policy_local_leaves_nodes_with_an_endpoint_only() {
    let local = |names: &[&str]| Vip {
        only: Some(names.iter().map(|name| Arc::from(*name)).collect()),
        ..vip(1)
    };
    let chosen = choose(&[local(&["node-1"])], &nodes(3), &everywhere());
    assert_eq!(&*chosen[&vip(1).address].node, "node-1");
    assert!(choose(&[local(&[])], &nodes(3), &everywhere()).is_empty());
}

#[test]
fn an_advertisement_may_name_nodes_and_interfaces() {
    let mut nodes = nodes(3);
    for node in &mut nodes {
        let second = Uplink {
            name: "eth1".to_owned(),
            subnets: Vec::new(),
        };
        node.interfaces.push(second);
    }
    let from = From {
        nodes: Some(["node-0".into()].into()),
        interfaces: ["eth1".to_owned()].into(),
    };
    let chosen = choose(&vips(5), &nodes, &[from]);
    for choice in chosen.values() {
        assert_eq!(&*choice.node, "node-0");
        assert_eq!(choice.interfaces, ["eth1".to_owned()].into());
    }
    let absent = From {
        nodes: None,
        interfaces: ["eth7".to_owned()].into(),
    };
    assert!(choose(&vips(5), &nodes, &[absent]).is_empty());
}

proptest! {
    #[test]
    fn no_node_has_more_than_its_share_and_a_quarter(vip_count in 1usize..200, node_count in 1usize..20) {
        let chosen = choose(&vips(vip_count), &nodes(node_count), &everywhere());
        prop_assert_eq!(chosen.len(), vip_count);
        let most = loads(&chosen).into_values().max().unwrap();
        prop_assert!(most <= share_max(vip_count, node_count));
    }

    /// A node that goes moves its own VIPs, and few others: those that had found their first choice full.
    #[test]
    fn a_node_that_goes_moves_few_vips_of_others(vip_count in 1usize..300, node_count in 2usize..20, gone in 0usize..20) {
        let before = choose(&vips(vip_count), &nodes(node_count), &everywhere());
        let gone = node(gone % node_count).name;
        let rest: Vec<_> = nodes(node_count).into_iter().filter(|node| node.name != gone).collect();
        let after = choose(&vips(vip_count), &rest, &everywhere());
        let moved = before
            .iter()
            .filter(|(vip, choice)| choice.node != gone && after[*vip].node != choice.node)
            .count();
        prop_assert!(moved <= vip_count / 3 + 2, "{} of {}", moved, vip_count);
    }
}
