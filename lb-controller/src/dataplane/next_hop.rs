//! Where the packets to another node leave, and to whom. Pure: follows from what the kernel answered about routes,
//! links and neighbours; asking it is [`super::network`]'s.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::links::{IfIndex, Links};
use crate::model::template::NextHop;

/// The way as a backend names it: interface 0 (back out of where the packet came in) if this node takes packets on the
/// next hop's interface only, since `XDP_TX` is cheaper than a redirect.
pub fn turned_round(hop: NextHop, xdp_interfaces: &[IfIndex]) -> NextHop {
    if xdp_interfaces == [hop.ifindex] {
        NextHop { ifindex: 0, ..hop }
    } else {
        hop
    }
}

/// Why there is no way to a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoNextHop {
    /// The kernel has no route.
    #[error("no route to {address}")]
    NoRoute {
        /// The node.
        address: IpAddr,
    },
    /// The address belongs to this node.
    #[error("{address} is an address of this node")]
    Own {
        /// The node.
        address: IpAddr,
    },
    /// The route leads through an interface that is gone, down or without a carrier.
    #[error("the route to {address} leads through {interface}, which is down")]
    LinkDown {
        /// The node.
        address: IpAddr,
        /// The interface.
        interface: String,
    },
    /// The interface has no Ethernet addresses, for instance a tunnel.
    #[error("the route to {address} leads through {interface}, which has no Ethernet address")]
    NoMac {
        /// The node.
        address: IpAddr,
        /// The interface.
        interface: String,
    },
    /// The neighbour has not answered, or not yet.
    #[error("{neighbour} on {interface}, on the way to {address}, does not answer")]
    NoNeighbour {
        /// The node.
        address: IpAddr,
        /// Whose address is unknown: the node's own or its router's.
        neighbour: IpAddr,
        /// The interface.
        interface: String,
    },
}

/// The ways to all nodes that were asked for; each through an interface that exists, never 0.
pub type NextHops = BTreeMap<IpAddr, Result<NextHop, NoNextHop>>;

/// What the kernel answers when it is asked for a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Whether it leads to this node itself.
    pub own: bool,
    /// Interface.
    pub ifindex: IfIndex,
    /// Router; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// MTU of the route or of the path, when smaller than the link's.
    pub mtu: Option<u32>,
}

impl Route {
    /// Whose Ethernet address is needed to reach `destination`.
    pub fn neighbour(&self, destination: IpAddr) -> (IfIndex, IpAddr) {
        (self.ifindex, self.gateway.unwrap_or(destination))
    }
}

/// Usable neighbours, by interface and address.
pub type Neighbours = HashMap<(IfIndex, IpAddr), [u8; 6]>;

/// The way to `address`, by `route` (none: there is no route).
pub fn next_hop(
    address: IpAddr,
    route: Option<&Route>,
    links: &Links,
    neighbours: &Neighbours,
) -> Result<NextHop, NoNextHop> {
    let route = route.ok_or(NoNextHop::NoRoute { address })?;
    if route.own {
        return Err(NoNextHop::Own { address });
    }
    let link = links
        .get(route.ifindex)
        .filter(|link| link.running)
        .ok_or_else(|| NoNextHop::LinkDown {
            address,
            interface: links.get(route.ifindex).map_or_else(
                || format!("interface {}", route.ifindex),
                |link| link.name.clone(),
            ),
        })?;
    let interface = || link.name.clone();
    let src = link.mac.ok_or_else(|| NoNextHop::NoMac {
        address,
        interface: interface(),
    })?;
    let key = route.neighbour(address);
    let dst = *neighbours.get(&key).ok_or_else(|| NoNextHop::NoNeighbour {
        address,
        neighbour: key.1,
        interface: interface(),
    })?;
    let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
    Ok(NextHop {
        ifindex: link.ifindex,
        src,
        dst,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::super::links::{Link, link};
    use super::*;

    const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 7));
    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const MAC: [u8; 6] = [6; 6];

    fn links() -> Links {
        [
            link(2, "eth0"),
            Link {
                running: false,
                ..link(3, "eth1")
            },
            Link {
                mac: None,
                ..link(4, "tun0")
            },
        ]
        .into_iter()
        .collect()
    }

    fn resolve(route: Option<&Route>) -> Result<NextHop, NoNextHop> {
        let neighbours = Neighbours::from([((2, ROUTER), MAC)]);
        next_hop(NODE, route, &links(), &neighbours)
    }

    fn route(ifindex: IfIndex, gateway: Option<IpAddr>) -> Route {
        Route {
            own: false,
            ifindex,
            gateway,
            mtu: None,
        }
    }

    #[test]
    fn router_in_front_of_the_node_is_the_next_hop() {
        let hop = NextHop {
            ifindex: 2,
            src: [2, 0, 0, 0, 0, 2],
            dst: MAC,
            mtu: 1500,
        };
        assert_eq!(resolve(Some(&route(2, Some(ROUTER)))), Ok(hop));
        let smaller = Route {
            mtu: Some(1400),
            ..route(2, Some(ROUTER))
        };
        assert_eq!(resolve(Some(&smaller)), Ok(NextHop { mtu: 1400, ..hop }));
    }

    #[test]
    fn what_is_missing_is_named() {
        let reason = |route: Option<&Route>| resolve(route).unwrap_err().to_string();
        assert_eq!(reason(None), "no route to 10.1.0.7");
        assert_eq!(
            reason(Some(&route(2, None))),
            "10.1.0.7 on eth0, on the way to 10.1.0.7, does not answer"
        );
        assert_eq!(
            reason(Some(&route(3, Some(ROUTER)))),
            "the route to 10.1.0.7 leads through eth1, which is down"
        );
        assert_eq!(
            reason(Some(&route(4, None))),
            "the route to 10.1.0.7 leads through tun0, which has no Ethernet address"
        );
        assert_eq!(
            reason(Some(&route(9, None))),
            "the route to 10.1.0.7 leads through interface 9, which is down"
        );
        let own = Route {
            own: true,
            ..route(1, None)
        };
        assert_eq!(reason(Some(&own)), "10.1.0.7 is an address of this node");
    }

    #[test]
    fn packets_turn_round_only_where_all_of_them_come_in() {
        let hop = resolve(Some(&route(2, Some(ROUTER)))).unwrap();
        assert_eq!(turned_round(hop, &[2]).ifindex, 0);
        assert_eq!(turned_round(hop, &[2, 3]), hop);
        assert_eq!(turned_round(hop, &[3]), hop);
    }
}
