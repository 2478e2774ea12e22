//! The interfaces of this node as the kernel lists them, and which of them get our programs. Pure: the listing itself
//! is [`super::network`]'s.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

/// Index of an interface; never 0.
pub type IfIndex = u32;

/// How XDP runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the network stack: slower, works everywhere.
    Generic,
}

impl XdpMode {
    /// As in status and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// An XDP program on an interface, whoever's it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpProgram {
    /// The kernel's id of it.
    pub id: u32,
    /// How it runs.
    pub mode: XdpMode,
}

/// What an interface is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRole {
    /// One by itself.
    Own,
    /// The loopback interface.
    Loopback,
    /// A port of a bridge or bond, whose packets pass that one's egress first.
    Port,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub ifindex: IfIndex,
    /// Its name.
    pub name: String,
    /// Its address, if it has one of Ethernet's kind.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet that it takes.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub running: bool,
    /// What it is to other interfaces.
    pub role: LinkRole,
    /// The XDP program on it.
    pub xdp: Option<XdpProgram>,
    /// Whether a default route of either family leads through it.
    pub default_route: bool,
    /// Whether a route to more than one address leads through it, the link-local subnet aside. Pods' interfaces have
    /// routes to single addresses only, or none.
    pub subnet: bool,
    /// Networks that it reaches without a router, the link-local subnet aside.
    pub on_link: BTreeSet<IpNet>,
}

impl Link {
    /// Whether replies to clients can leave through it.
    fn carries_replies(&self) -> bool {
        self.role == LinkRole::Own && (self.default_route || self.subnet)
    }
}

/// All interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links(BTreeMap<IfIndex, Link>);

impl FromIterator<Link> for Links {
    fn from_iter<I: IntoIterator<Item = Link>>(links: I) -> Self {
        Self(links.into_iter().map(|link| (link.ifindex, link)).collect())
    }
}

impl Links {
    /// The interface with this index.
    pub fn get(&self, ifindex: IfIndex) -> Option<&Link> {
        self.0.get(&ifindex)
    }

    /// The interface with this name.
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.iter().find(|link| link.name == name)
    }

    /// All, by index.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.values()
    }

    pub(super) fn get_mut(&mut self, ifindex: IfIndex) -> Option<&mut Link> {
        self.0.get_mut(&ifindex)
    }
}

/// Which interfaces get which program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// XDP.
    pub uplinks: Vec<IfIndex>,
    /// The egress program, and packets redirected by XDP: all uplinks among them.
    pub egress: Vec<IfIndex>,
    /// Interfaces that were named and do not exist.
    pub missing: Vec<String>,
}

/// XDP goes to the interfaces that are named or, if none is, to those with a default route.
pub fn wanted(links: &Links, named: &[String]) -> Wanted {
    let (uplinks, missing): (Vec<_>, Vec<_>) = if named.is_empty() {
        let found = links
            .iter()
            .filter(|link| link.default_route && link.role != LinkRole::Loopback)
            .map(|link| link.ifindex)
            .collect();
        (found, Vec::new())
    } else {
        (
            named
                .iter()
                .filter_map(|name| Some(links.by_name(name)?.ifindex))
                .collect(),
            named
                .iter()
                .filter(|name| links.by_name(name).is_none())
                .cloned()
                .collect(),
        )
    };
    let egress = links
        .iter()
        .filter(|link| link.carries_replies() || uplinks.contains(&link.ifindex))
        .map(|link| link.ifindex)
        .collect();
    Wanted {
        uplinks,
        egress,
        missing,
    }
}

#[cfg(test)]
pub(super) fn link(ifindex: IfIndex, name: &str) -> Link {
    Link {
        ifindex,
        name: name.to_string(),
        mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
        mtu: 1500,
        running: true,
        role: LinkRole::Own,
        xdp: None,
        default_route: false,
        subnet: false,
        on_link: BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Links {
        [
            Link {
                role: LinkRole::Loopback,
                subnet: true,
                ..link(1, "lo")
            },
            Link {
                default_route: true,
                subnet: true,
                ..link(2, "eth0")
            },
            Link {
                subnet: true,
                ..link(3, "eth1")
            },
            link(4, "cali1234"),
            Link {
                subnet: true,
                role: LinkRole::Port,
                ..link(5, "bond0p1")
            },
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn default_routes_choose_the_uplinks_and_subnets_the_way_back() {
        assert_eq!(
            wanted(&node(), &[]),
            Wanted {
                uplinks: vec![2],
                egress: vec![2, 3],
                missing: vec![],
            }
        );
    }

    #[test]
    fn named_interfaces_replace_the_default_and_missing_ones_are_told() {
        assert_eq!(
            wanted(&node(), &["cali1234".into(), "eth7".into()]),
            Wanted {
                uplinks: vec![4],
                egress: vec![2, 3, 4],
                missing: vec!["eth7".into()],
            }
        );
    }
}
