//! What is wrong with an object that a user wrote: one sentence each, naming the object and what to change. A problem
//! concerns one object, often one port or endpoint of it, and never stops another.

use std::net::IpAddr;

use crate::api::service_table::{Family, Protocol};

use lb_ebpf::abi::SLOTS_MAX;

use super::allocation::Refusal;
use super::shape::Weight;

/// Annotation with the addresses that a Service asks for.
pub const ADDRESSES_ANNOTATION: &str = "bowline.dev/addresses";
/// Annotation with the source ranges of a Service, older than the field.
pub const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Annotation with the weight of a Pod.
pub const WEIGHT_ANNOTATION: &str = "bowline.dev/weight";
/// On a Service: `all` has each of its flows pinned at every balancer, not only those that tables do not find.
pub const TRACKING_ANNOTATION: &str = "bowline.dev/tracking";

/// Ports named in one sentence; the rest is counted: a Service may have hundreds.
const PORTS_NAMED_MAX: usize = 3;

/// Ports that share a fault, at least one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ports(pub Vec<(u16, Protocol)>);

impl Ports {
    fn have(&self) -> &'static str {
        if self.0.len() == 1 { "has" } else { "have" }
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = self.0.iter().take(PORTS_NAMED_MAX);
        let named: Vec<_> = named
            .map(|(port, protocol)| format!("{port}/{protocol}"))
            .collect();
        let noun = if self.0.len() == 1 { "port" } else { "ports" };
        write!(f, "{noun} {}", named.join(", "))?;
        match self.0.len().saturating_sub(PORTS_NAMED_MAX) {
            0 => Ok(()),
            rest => write!(f, " and {rest} more"),
        }
    }
}

/// A fault and the object that has it. `Display` gives the whole sentence.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
#[error("{object}: {fault}")]
pub struct Problem {
    /// The object: `Service default/web`, `EndpointSlice default/web-x7k2p`.
    pub object: String,
    /// What is wrong.
    pub fault: Fault,
}

impl Problem {
    /// A problem of an object of a kind with a namespace.
    pub fn new(kind: &str, namespaced_name: &str, fault: Fault) -> Self {
        Self {
            object: format!("{kind} {namespaced_name}"),
            fault,
        }
    }
    /// One word in camel case, for conditions.
    pub fn reason(&self) -> &'static str {
        self.fault.reason()
    }
}

/// What can be wrong, and what to change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Fault {
    /// No VIP was asked for.
    #[error(
        "it has no address; set the annotation {ADDRESSES_ANNOTATION} or spec.loadBalancerIP, or add an AddressPool"
    )]
    NoAddress,
    /// It has no address, and this is why.
    #[error(transparent)]
    Unallocated(Refusal),
    /// It lacks one of its addresses.
    #[error(transparent)]
    Refused(Refusal),
    /// It keeps an address that has left the pools.
    #[error(
        "{0} is in no AddressPool any more and is kept; add it to a pool again, or ask for another address"
    )]
    Kept(IpAddr),
    /// Not an IP address.
    #[error(
        "{0:?} is not an IP address; write addresses such as 198.51.100.1, separated by commas"
    )]
    AddressMalformed(String),
    /// An address that no VIP can be.
    #[error("{0} cannot be a VIP; use a unicast address that is neither loopback nor link-local")]
    AddressUnusable(IpAddr),
    /// More than one of a family.
    #[error("it asks for more than one {0:?} address; keep one per family")]
    AddressTwice(Family),
    /// A family that the Service does not have.
    #[error(
        "{0} is of a family that spec.ipFamilies does not list; add the family or remove the address"
    )]
    AddressFamily(IpAddr),
    /// Somebody else has it.
    #[error(
        "{vip} port {port}/{protocol} belongs to Service {owner}; choose another port or address"
    )]
    AddressTaken {
        /// The VIP.
        vip: IpAddr,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
        /// Namespace and name of the older Service.
        owner: String,
    },
    /// Nothing to balance.
    #[error("it has no usable port; add one with protocol TCP, UDP or SCTP to spec.ports")]
    NoPorts,
    /// Not a port number.
    #[error("port {0} is not from 1 to 65535; correct it")]
    PortRange(i32),
    /// The same port and protocol again.
    #[error("port {port}/{protocol} is there twice and the second is ignored; remove one of them")]
    PortTwice {
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
    },
    /// A protocol that is not balanced.
    #[error("port {port} has protocol {protocol}, which is not balanced; use TCP, UDP or SCTP")]
    PortProtocol {
        /// The port.
        port: i32,
        /// The protocol.
        protocol: String,
    },
    /// The checksum of SCTP covers ports, so they can not be changed on the way.
    #[error(
        "port {port}/SCTP has target port {target} and gets no traffic; for SCTP both must be equal"
    )]
    SctpPort {
        /// The port of the VIP.
        port: u16,
        /// That of the endpoints.
        target: u16,
    },
    /// Not a range.
    #[error(
        "source range {0:?} is no CIDR and lets nobody in; write ranges such as 203.0.113.0/24 and 2001:db8::/32"
    )]
    SourceRange(String),
    /// Would be open to everybody.
    #[error(
        "none of its source ranges makes sense, so nothing is served rather than too much; correct or remove spec.loadBalancerSourceRanges (or the annotation {SOURCE_RANGES_ANNOTATION})"
    )]
    SourceRanges,
    /// A slice of another family than its addresses.
    #[error("address {address:?} is not {family:?} as addressType says; correct one of them")]
    EndpointFamily {
        /// The address.
        address: String,
        /// The slice's family.
        family: Family,
    },
    /// An address that no pod can have.
    #[error(
        "endpoint {0} cannot be a pod; use a unicast address that is neither loopback nor link-local"
    )]
    EndpointUnusable(IpAddr),
    /// Not an address type of Kubernetes.
    #[error("addressType {0:?} is none; use IPv4 or IPv6")]
    AddressType(String),
    /// No first address.
    #[error("endpoint number {0} has no address; add one or remove it")]
    EndpointEmpty(usize),
    /// Packets could not be sent there.
    #[error("endpoint {0} has no nodeName and gets no traffic; set it to the name of its Node")]
    NodeMissing(IpAddr),
    /// Packets could not be sent there.
    #[error(
        "endpoint {address} is on node {node:?}, which does not exist, and gets no traffic; add the Node or correct nodeName"
    )]
    NodeUnknown {
        /// The endpoint.
        address: IpAddr,
        /// Its node.
        node: String,
    },
    /// Nobody could tell it from its successor at the same address.
    #[error(
        "endpoint {0} has a targetRef without uid and gets no traffic; copy metadata.uid of its Pod"
    )]
    UidMissing(IpAddr),
    /// Its flows could not live.
    #[error(
        "endpoint {address} names Pod {uid}, which is not there (any more), and gets no traffic; add the Pod or remove the endpoint"
    )]
    PodUnknown {
        /// The endpoint.
        address: IpAddr,
        /// The Pod.
        uid: String,
    },
    /// Two pods say they have one address.
    #[error("endpoint {0} is claimed by two Pods, and the first by UID is taken; remove one")]
    AddressShared(IpAddr),
    /// Not a weight.
    #[error("annotation {WEIGHT_ANNOTATION}={0:?} is not a number from 1 to {max}, and 1 is used; correct it", max = Weight::MAX)]
    Weight(String),
    /// Not a way of tracking.
    #[error(
        "annotation {TRACKING_ANNOTATION}={0:?} is neither `all` nor `auto`, and `auto` is used; correct it"
    )]
    Tracking(String),
    /// More pods than slots.
    #[error(
        "{0} pods get no new connections since a Service has at most {SLOTS_MAX}; use fewer pods"
    )]
    TooManyPods(usize),
    /// Changes wait until some history is retired.
    #[error(
        "the history of its table is full, so {0} slots keep pods that have left until the nodes of earlier pods have handed their connections off; new connections are served meanwhile; if it stays so, look which agents are away"
    )]
    HistoryFull(usize),
    /// Nobody to send to.
    #[error(
        "{ports} over {family:?} {} no usable endpoint, so connections are refused; start pods or correct the selector",
        .ports.have()
    )]
    NoEndpoints {
        /// The family.
        family: Family,
        /// The ports.
        ports: Ports,
    },
    /// Nobody to send to.
    #[error(
        "{ports} over {family:?} {} no usable endpoint, so connections are dropped under externalTrafficPolicy Local; start pods or correct the selector",
        .ports.have()
    )]
    NoLocalEndpoints {
        /// The family.
        family: Family,
        /// The ports.
        ports: Ports,
    },
    /// History is lost.
    #[error(
        "its ServiceTable cannot be read ({0}); it is written anew, and connections to pods that no longer serve may break"
    )]
    TableUnreadable(String),
}

impl Fault {
    /// Whether the Service stays without tables because of it.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::NoAddress | Self::Unallocated(_) | Self::NoPorts | Self::SourceRanges
        )
    }

    /// One word in camel case, for conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoAddress => "NoAddress",
            Self::Unallocated(refusal) | Self::Refused(refusal) => refusal.reason(),
            Self::Kept(_) => "PoolShrunk",
            Self::AddressMalformed(_) | Self::AddressUnusable(_) => "AddressInvalid",
            Self::AddressTwice(_) | Self::AddressFamily(_) => "AddressFamily",
            Self::AddressTaken { .. } => "AddressTaken",
            Self::NoPorts
            | Self::PortRange(_)
            | Self::PortTwice { .. }
            | Self::PortProtocol { .. } => "PortInvalid",
            Self::SourceRange(_) | Self::SourceRanges => "SourceRangeInvalid",
            Self::EndpointFamily { .. }
            | Self::EndpointUnusable(_)
            | Self::AddressType(_)
            | Self::EndpointEmpty(_)
            | Self::NodeMissing(_)
            | Self::NodeUnknown { .. }
            | Self::UidMissing(_)
            | Self::PodUnknown { .. }
            | Self::AddressShared(_) => "EndpointInvalid",
            Self::Weight(_) => "WeightInvalid",
            Self::Tracking(_) => "TrackingInvalid",
            Self::TooManyPods(_) => "TooManyPods",
            Self::HistoryFull(_) => "HistoryFull",
            Self::NoEndpoints { .. } | Self::NoLocalEndpoints { .. } => "NoEndpoints",
            Self::SctpPort { .. } => "SctpPort",
            Self::TableUnreadable(_) => "TableUnreadable",
        }
    }
}
