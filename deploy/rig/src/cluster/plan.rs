//! Names and addresses of a cluster: values only.
//!
//! ```text
//!  client 172.31.0.2–.9   fd00:31::2–9
//!     │
//!  ┌──┴──────────── fabric ─────────────┐      etcd, API server, controllers, scheduler, DNS;
//!  │ 172.31.0.1   bridge 172.30.0.1     │      routes between the networks of pods
//!  └──┬───────────┬───────────┬─────────┘
//! eth0│ .11   eth0│ .12   eth0│ .13
//!  ┌──┴──┐     ┌──┴──┐     ┌──┴──┐
//!  │node1│     │node2│     │node3│             containerd, kubelet, kube-proxy, pods
//!  └─────┘     └─────┘     └─────┘
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The machine with switch, router and control plane.
pub const FABRIC: &str = "fabric";
/// The machine behind the router.
pub const CLIENT: &str = "client";
/// Most nodes: the API server reads their tokens once, at its start.
pub const NODES_MAX: u8 = 16;
/// Frames between nodes: a pod's largest packet and room for an encapsulation.
pub(crate) const MTU: u32 = 1_620;
/// Packets of pods and of clients.
pub(crate) const POD_MTU: u32 = 1_500;
/// Ranges of cluster addresses, IPv4 first.
pub(crate) const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:96::/112";
/// Ranges that pods' addresses are from.
pub(crate) const POD_RANGES: &str = "10.244.0.0/16,fd00:10:244::/56";
/// How many addresses the client has in each family: one has 28,000 ports, which last a minute at 500 connections a second.
pub const CLIENT_ADDRESSES: u8 = 8;
/// Ranges for VIPs, in the nodes' own networks, IPv4 first.
pub const VIP_RANGES: [&str; 2] = ["172.30.0.128/26", "fd00:30::1:0/112"];

/// Name of a node, counted from 1.
pub fn node_name(index: u8) -> String {
    format!("node{index}")
}

/// MAC address of a node.
pub(crate) fn node_mac(index: u8) -> String {
    format!("02:00:00:00:01:{index:02x}")
}

/// MAC address of the client.
pub(crate) const CLIENT_MAC: &str = "02:00:00:00:00:02";

/// The number in a node's name.
pub(crate) fn node_index(name: &str) -> Option<u8> {
    let index = name.strip_prefix("node")?.parse().ok()?;
    (1..=NODES_MAX).contains(&index).then_some(index)
}

/// The router's addresses among the nodes; the API server is at the first.
pub const ROUTER: (Ipv4Addr, Ipv6Addr) = among_nodes(1);

/// A node's addresses.
pub const fn node_addresses(index: u8) -> (Ipv4Addr, Ipv6Addr) {
    among_nodes(10 + index)
}

const fn among_nodes(host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let six = Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, host as u16);
    (Ipv4Addr::new(172, 30, 0, host), six)
}

/// The router's addresses towards the client.
pub(crate) const CLIENT_GATEWAY: (Ipv4Addr, Ipv6Addr) = before_router(1);

/// The client's addresses, IPv4 and IPv6 in turn.
pub fn client_addresses() -> impl Iterator<Item = IpAddr> {
    (2..2 + CLIENT_ADDRESSES).flat_map(|host| {
        let (four, six) = before_router(host);
        [four.into(), six.into()]
    })
}

const fn before_router(host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let six = Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, host as u16);
    (Ipv4Addr::new(172, 31, 0, host), six)
}

/// Addresses that the API server's certificate names: on the fabric, and as a Service.
pub(crate) fn server_addresses() -> [IpAddr; 4] {
    [
        ROUTER.0.into(),
        ROUTER.1.into(),
        Ipv4Addr::new(10, 96, 0, 1).into(),
        Ipv4Addr::LOCALHOST.into(),
    ]
}

/// The API server's port.
pub(crate) const SERVER_PORT: u16 = 6443;

/// Where the API server listens.
pub(crate) fn server() -> String {
    format!("https://{}:{SERVER_PORT}", ROUTER.0)
}

/// An address with the length of its network's prefix.
pub(crate) fn with_prefix(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("{address}/24"),
        IpAddr::V6(_) => format!("{address}/64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_numbered_from_one() {
        assert_eq!(node_index("node1"), Some(1));
        assert_eq!(node_index("node0"), None);
        assert_eq!(node_index("node17"), None);
        assert_eq!(node_index("fabric"), None);
        assert_eq!(node_addresses(1).0.to_string(), "172.30.0.11");
    }
}
