//! What the kernel's netlink messages say about interfaces, routes and neighbours. Pure: messages in, values out.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use rtnetlink::packet_route::link::{
    InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};

use super::links::{IfIndex, Link, LinkRole, Links, XdpMode, XdpProgram};
use super::next_hop::{Neighbours, Route};

pub(super) fn link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        running: flags.contains(LinkFlags::Up | LinkFlags::Running),
        role: if flags.contains(LinkFlags::Loopback) {
            LinkRole::Loopback
        } else {
            LinkRole::Own
        },
        xdp: None,
        default_route: false,
        subnet: false,
        on_link: BTreeSet::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) if link.role != LinkRole::Loopback => {
                link.mac = mac.try_into().ok();
            }
            LinkAttribute::LinkInfo(infos) => {
                // A VRF is no bridge: packets of its members leave through them.
                let port = infos.iter().any(
                    |info| matches!(info, LinkInfo::PortKind(kind) if *kind != InfoPortKind::Vrf),
                );
                if port {
                    link.role = LinkRole::Port;
                }
            }
            LinkAttribute::Xdp(xdp) => link.xdp = xdp_program(&xdp),
            _ => {}
        }
    }
    link
}

fn xdp_program(attributes: &[LinkXdp]) -> Option<XdpProgram> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => Some(*id),
        _ => None,
    })?;
    let generic = attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkXdp::Attached(XdpAttached::SocketBuffer)));
    let mode = if generic {
        XdpMode::Generic
    } else {
        XdpMode::Native
    };
    Some(XdpProgram { id, mode })
}

/// Notes at its interfaces that a route leads through them.
pub(super) fn mark_route(links: &mut Links, message: &RouteMessage) {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return;
    }
    let (mut interfaces, mut network, mut by_router) = (Vec::new(), None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => interfaces.push(*ifindex),
            RouteAttribute::MultiPath(hops) => {
                interfaces.extend(hops.iter().map(|hop| hop.interface_index));
                by_router = true;
            }
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => by_router = true,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                network = IpNet::new((*address).into(), header.destination_prefix_length).ok();
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                network = IpNet::new((*address).into(), header.destination_prefix_length).ok();
            }
            _ => {}
        }
    }
    let link_local = network.is_some_and(
        |network| matches!(network.addr(), IpAddr::V6(address) if address.is_unicast_link_local()),
    );
    let single = network.is_some_and(|network| network.prefix_len() == network.max_prefix_len());
    let subnet = !single && !link_local;
    for ifindex in interfaces {
        let Some(link) = links.get_mut(ifindex) else {
            continue;
        };
        link.default_route |= header.destination_prefix_length == 0;
        link.subnet |= subnet;
        if subnet && !by_router {
            link.on_link.extend(network);
        }
    }
}

/// The kernel's answer to the question for one route.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let mut route = Route {
        own: message.header.kind == RouteType::Local,
        ifindex: 0,
        gateway: None,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => route.ifindex = *ifindex,
            RouteAttribute::Gateway(RouteAddress::Inet(address))
            | RouteAttribute::Via(RouteVia::Inet(address)) => {
                route.gateway = Some((*address).into());
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(address))
            | RouteAttribute::Via(RouteVia::Inet6(address)) => {
                route.gateway = Some((*address).into());
            }
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let usable = route.own || message.header.kind == RouteType::Unicast && route.ifindex != 0;
    usable.then_some(route)
}

/// Neighbours as the kernel lists them.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) usable: Neighbours,
    /// Need no request: managed already, or set by hand.
    pub(super) kept: HashSet<(IfIndex, IpAddr)>,
}

impl Listed {
    pub(super) fn add(&mut self, message: &NeighbourMessage) {
        let (mut address, mut mac, mut managed) = (None, None, false);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(*ip));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(*ip));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = bytes.as_slice().try_into().ok();
                }
                NeighbourAttribute::ExtFlags(flags) => {
                    managed = flags.contains(NeighbourExtFlags::Managed);
                }
                _ => {}
            }
        }
        let Some(address) = address else { return };
        let key = (message.header.ifindex, address);
        let state = message.header.state;
        if managed || state == NeighbourState::Permanent {
            self.kept.insert(key);
        }
        let usable = matches!(
            state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
                | NeighbourState::Noarp
        );
        if let (true, Some(mac)) = (usable, mac) {
            self.usable.insert(key, mac);
        }
    }
}
