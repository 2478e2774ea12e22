//! `ServiceTable`s and a node's view for the suite.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use lb_controller::api::service_table::{
    Family, Group, Pod, Port, Protocol, ServiceTableSpec, Shape,
};
use lb_controller::model::backends::{NodeView, View};
use lb_controller::model::template::{NextHop, NodeAddresses, Sender};
use lb_ebpf::abi;
use lb_ebpf::wire::Be32;

/// Nodes that pods are spread over.
const NODES: u32 = 100;

/// A Service of one port whose pods are numbered from `first`; slot `n` has pod `first + n`.
pub(super) fn service(number: u32, first: u32, slots: u16, size: u32) -> ServiceTableSpec {
    let count = u32::from(slots);
    ServiceTableSpec {
        service_uid: format!("{number:08x}-0000-4000-8000-000000000000"),
        version: 1,
        vips: vec![IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + number))],
        nodes: (0..NODES).map(node).collect(),
        pods: (first..first + count).map(pod).collect(),
        groups: vec![Group {
            family: Family::IPv4,
            ports: vec![Port {
                name: String::new(),
                port: 80,
                protocol: Protocol::Tcp,
            }],
            shape: Shape {
                slots,
                size,
                ..Shape::default()
            },
            previous: Vec::new(),
            targets: vec![vec![8080]],
            candidates: (0..count).collect(),
            candidate_targets: Vec::new(),
            current: (0..count).map(Some).collect(),
            older: Vec::new(),
            vacant: Vec::new(),
        }],
        ..ServiceTableSpec::default()
    }
}

/// The next version of a table of [`service`]: pod `new` has taken a slot over.
pub(super) fn with_replaced_pod(
    mut table: ServiceTableSpec,
    slot: u32,
    new: u32,
) -> ServiceTableSpec {
    let number = table.pods.len() as u32;
    table.version += 1;
    table.pods.push(pod(new));
    if let [group] = table.groups.as_mut_slice() {
        let at = slot as usize;
        group.candidates.push(number);
        group.older.resize(at + 1, Vec::new());
        group.older[at] = group.current[at].into_iter().collect();
        group.current[at] = Some(number);
    }
    table
}

fn node(number: u32) -> String {
    format!("node-{number}")
}

fn pod(number: u32) -> Pod {
    Pod {
        uid: format!("{number:08x}-6a0c-4b1e-9a65-1f6f3a8f6a10"),
        node: number % NODES,
        ipv4: Some(Ipv4Addr::from_bits(0x0ac8_0000 + number)),
        ipv6: None,
    }
}

/// What a balancer without pods knows: all nodes and the ways to them.
pub(super) fn view() -> View {
    let addresses = |number: u32| NodeAddresses {
        v4: Some(Ipv4Addr::from_bits(0x0a01_0000 + number)),
        v6: None,
    };
    let hop = NextHop {
        ifindex: 1,
        src: [2, 0, 0, 0, 0, 1],
        dst: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
    };
    let nodes: HashMap<_, _> = (0..NODES)
        .map(|number| {
            let seen = NodeView {
                addresses: addresses(number),
                hop4: Some(hop),
                hop6: None,
            };
            (node(number).into(), seen)
        })
        .collect();
    View {
        hands_off: false,
        suspected: BTreeSet::new(),
        node: "balancer".into(),
        sender: Sender {
            node: addresses(0xffff),
            secret: [Be32::new(1), Be32::new(2)],
            geneve_port: abi::GENEVE_PORT,
        },
        nodes,
    }
}
