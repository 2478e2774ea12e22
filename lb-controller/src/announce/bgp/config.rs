//! What BIRD of one node is to do. Everything in here is of a type that can not say anything else than it means in a
//! configuration file.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};

use ipnet::IpNet;

use crate::api::bgp_peer::Bfd;
use crate::api::community::{Community, LargeCommunity};

/// All that BIRD is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Routing table that it exports.
    pub table: u32,
    /// Its name among routers.
    pub router_id: Ipv4Addr,
    /// Routers that it speaks with, by name.
    pub peers: Vec<Peer>,
}

/// A router.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Name of its object.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port, if it is not that of BGP.
    pub port: Option<NonZeroU16>,
    /// Number of its autonomous system.
    pub asn: NonZeroU32,
    /// Number of ours.
    pub own_asn: NonZeroU32,
    /// Address that is spoken from.
    pub source: Option<IpAddr>,
    /// Hops to it, if it is not on a network of the node.
    pub hops: Option<NonZeroU8>,
    /// Name of the file with the password.
    pub password: Option<String>,
    /// Seconds.
    pub hold_time: Option<u16>,
    /// Seconds.
    pub keepalive_time: Option<NonZeroU16>,
    /// How fast a dead node is noticed.
    pub bfd: Option<Bfd>,
    /// It is to keep routes while BIRD restarts.
    pub graceful_restart: bool,
    /// What it is told.
    pub told: Vec<Told>,
}

/// Routes that a router is told, and their attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// Name of the advertisement.
    pub advertisement: String,
    /// Which; not empty, of the router's family.
    pub prefixes: BTreeSet<Pattern>,
    /// Communities.
    pub communities: Vec<Community>,
    /// Large communities.
    pub large_communities: Vec<LargeCommunity>,
    /// Local preference.
    pub local_preference: Option<u32>,
}

/// Prefixes of one length within a network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Pattern {
    /// The network.
    pub net: IpNet,
    /// The length.
    pub length: u8,
}

impl Pattern {
    /// One prefix.
    pub fn only(prefix: IpNet) -> Self {
        let prefix = prefix.trunc();
        Self {
            net: prefix,
            length: prefix.prefix_len(),
        }
    }

    /// Whether a prefix is one of them.
    pub fn has(&self, prefix: &IpNet) -> bool {
        prefix.prefix_len() == self.length && self.net.contains(prefix)
    }
}

/// As BIRD writes it in a set.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { net, length } = self;
        write!(f, "{net}{{{length},{length}}}")
    }
}
