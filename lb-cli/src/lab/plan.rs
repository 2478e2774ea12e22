//! What the lab consists of: names and addresses. Pure: values only, nothing is touched.
//!
//! ```text
//!                          ┌──────────┐ 10.50.11.0/24 ┌──────┐
//! ┌────────┐ 10.50.1.0/24  │          ├───────────────┤ lb-1 │      … lb-2
//! │ client ├───────────────┤  router  │               └──────┘
//! └────────┘ .10 … .17     │  (ECMP)  │ 10.50.21.0/24 ┌────────┐ 10.60.1.1/32 ┌───────┐
//!                          │          ├───────────────┤ node-1 ├──────────────┤ pod-1 │ …
//!                          └──────────┘ .1         .2 └────────┘              └───────┘   … node-3
//! ```
//!
//! Every subnet has its twin in `fd50::/16`, every pod in `fd60::/16`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Nodes with pods.
pub(crate) const NODES: u8 = 3;
/// Balancers without pods.
pub(crate) const BALANCERS: u8 = 2;
/// Addresses of the client in each family: one address has too few ports for everything that the lab opens in a minute.
pub(crate) const CLIENT_ADDRESSES: u8 = 8;
/// The VIPs of the examples are in here; the router sends all of it to the balancers.
pub(crate) const VIPS: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/64"];

/// What a machine of the lab does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Balancer without pods.
    Balancer,
    /// Has pods.
    Owner,
    /// Has pods, and the router sends packets for VIPs to it as well.
    Both,
}

impl Role {
    /// As `lb-controller agent --role` takes it.
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::Owner => "owner",
            Self::Both => "both",
        }
    }

    /// The router sends packets for VIPs to it.
    pub(crate) fn balances(self) -> bool {
        match self {
            Self::Balancer | Self::Both => true,
            Self::Owner => false,
        }
    }
}

/// A machine with an agent: a balancer or a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Its name: of its namespace (after the prefix), its Node object, and the router's link to it.
    pub(crate) name: String,
    /// What it does.
    pub(crate) role: Role,
    /// The third byte of its IPv4 subnet.
    subnet: u8,
    /// Its pods are `10.60.<node>.…`; none for balancers.
    node: Option<u8>,
}

impl Machine {
    /// Its addresses, IPv4 first.
    pub(crate) fn addresses(&self) -> [IpNet; 2] {
        subnet(self.subnet, 2)
    }

    /// The router's addresses on its link.
    pub(crate) fn router(&self) -> [IpNet; 2] {
        subnet(self.subnet, 1)
    }

    /// The prefixes of its pods; none for balancers.
    pub(crate) fn pods(&self) -> Option<[IpNet; 2]> {
        self.node.map(|node| {
            let [v4, v6] = pod_addresses(node, 0);
            [IpNet::new_assert(v4, 24), IpNet::new_assert(v6, 64)]
        })
    }

    /// Addresses of its pod with this number (from 1).
    pub(crate) fn pod(&self, number: u8) -> Option<[IpAddr; 2]> {
        self.node.map(|node| pod_addresses(node, number))
    }
}

/// The machines of a lab in which `balancers` of them get packets from the router: first those without pods, then nodes.
pub(crate) fn machines(balancers: u8) -> Vec<Machine> {
    let without_pods = (1..=BALANCERS).map(|i| Machine {
        name: format!("lb-{i}"),
        role: Role::Balancer,
        subnet: 10 + i,
        node: None,
    });
    let nodes = (1..=NODES).map(|i| Machine {
        name: format!("node-{i}"),
        role: if BALANCERS + i <= balancers {
            Role::Both
        } else {
            Role::Owner
        },
        subnet: 20 + i,
        node: Some(i),
    });
    without_pods.chain(nodes).collect()
}

/// The client's addresses, IPv4 first, and the router's on the same link.
pub(crate) fn client() -> (Vec<[IpNet; 2]>, [IpNet; 2]) {
    let addresses = (0..CLIENT_ADDRESSES).map(|i| subnet(1, 10 + i)).collect();
    (addresses, subnet(1, 1))
}

/// The address of the machine that floods come from, and the router's on the same link, IPv4 first.
pub(crate) fn stranger() -> ([IpNet; 2], [IpNet; 2]) {
    (subnet(2, 2), subnet(2, 1))
}

/// The router as pods see it: an address of every link to a pod, so that pods need no subnet.
pub(crate) fn pod_gateways() -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    ]
}

fn subnet(number: u8, host: u8) -> [IpNet; 2] {
    [
        IpNet::new_assert(Ipv4Addr::new(10, 50, number, host).into(), 24),
        IpNet::new_assert(
            Ipv6Addr::new(0xfd50, 0, 0, number.into(), 0, 0, 0, host.into()).into(),
            64,
        ),
    ]
}

fn pod_addresses(node: u8, number: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 60, node, number).into(),
        Ipv6Addr::new(0xfd60, 0, 0, node.into(), 0, 0, 0, number.into()).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::Role::{Balancer, Both, Owner};
    use super::*;

    #[test]
    fn nodes_become_balancers_when_asked() {
        let roles: Vec<Role> = machines(3)
            .into_iter()
            .map(|machine| machine.role)
            .collect();
        assert_eq!(roles, [Balancer, Balancer, Both, Owner, Owner]);
        assert_eq!(
            machines(5)
                .iter()
                .filter(|machine| machine.role.balances())
                .count(),
            5
        );
    }

    #[test]
    fn subnets_do_not_overlap() {
        let mut all: Vec<IpNet> = machines(2)
            .iter()
            .flat_map(|machine| {
                machine
                    .addresses()
                    .into_iter()
                    .chain(machine.pods().into_iter().flatten())
            })
            .chain(client().1)
            .chain(stranger().1)
            .map(|net| net.trunc())
            .collect();
        let before = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), before);
    }
}
