//! What is watched, and how it is filtered.

use crate::source::parse::Kind;

/// A watch: a kind with its filter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wanted {
    /// All Services.
    Services,
    /// All Services, of each no more than an agent asks about.
    ServicesInOutline,
    /// Slices that name a Service, but for headless ones, which have no VIP.
    EndpointSlices,
    /// The same, of each only on which nodes somebody serves.
    ServingNodes,
    /// All Nodes.
    Nodes,
    /// Metadata of all Namespaces.
    Namespaces,
    /// Metadata of all Pods that live: leaving this list is death.
    Pods,
    /// Metadata of the living Pods of one node.
    PodsOfNode(String),
    /// All pools.
    AddressPools,
    /// All advertisements.
    L2Advertisements,
    /// All routers that are told by BGP.
    BGPPeers,
    /// All advertisements by BGP.
    BGPAdvertisements,
    /// All drains.
    NodeDrains,
    /// What all agents say of their nodes.
    LoadBalancerNodes,
    /// All tables.
    ServiceTables,
    /// One Secret.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// What a manager follows.
pub fn manager() -> Vec<Wanted> {
    vec![
        Wanted::Services,
        Wanted::EndpointSlices,
        Wanted::Nodes,
        Wanted::Namespaces,
        Wanted::Pods,
        Wanted::AddressPools,
        Wanted::L2Advertisements,
        Wanted::BGPPeers,
        Wanted::BGPAdvertisements,
        Wanted::NodeDrains,
        Wanted::LoadBalancerNodes,
        Wanted::ServiceTables,
    ]
}

/// What the agent of `node` follows; `namespace` is where Bowline's Secret is.
pub fn agent(node: &str, namespace: &str) -> Vec<Wanted> {
    vec![
        Wanted::ServicesInOutline,
        Wanted::ServingNodes,
        Wanted::Nodes,
        Wanted::PodsOfNode(node.to_owned()),
        Wanted::AddressPools,
        Wanted::L2Advertisements,
        Wanted::BGPPeers,
        Wanted::BGPAdvertisements,
        Wanted::NodeDrains,
        Wanted::LoadBalancerNodes,
        Wanted::ServiceTables,
        Wanted::Secret {
            namespace: namespace.to_owned(),
            name: crate::source::secret::NAME.to_owned(),
        },
    ]
}

/// Pods that have not ended.
const ALIVE: &str = "status.phase!=Failed,status.phase!=Succeeded";

impl Wanted {
    /// The kind of its objects.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Services | Self::ServicesInOutline => Kind::Service,
            Self::EndpointSlices | Self::ServingNodes => Kind::EndpointSlice,
            Self::Nodes => Kind::Node,
            Self::Namespaces => Kind::Namespace,
            Self::Pods | Self::PodsOfNode(_) => Kind::Pod,
            Self::AddressPools => Kind::AddressPool,
            Self::L2Advertisements => Kind::L2Advertisement,
            Self::BGPPeers => Kind::BGPPeer,
            Self::BGPAdvertisements => Kind::BGPAdvertisement,
            Self::NodeDrains => Kind::NodeDrain,
            Self::LoadBalancerNodes => Kind::LoadBalancerNode,
            Self::ServiceTables => Kind::ServiceTable,
            Self::Secret { .. } => Kind::Secret,
        }
    }

    /// The resource as rules of RBAC name it: plural, then the group if it has one.
    pub fn resource(&self) -> &'static str {
        match self {
            Self::Services | Self::ServicesInOutline => "services",
            Self::EndpointSlices | Self::ServingNodes => "endpointslices.discovery.k8s.io",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
            Self::Pods | Self::PodsOfNode(_) => "pods",
            Self::AddressPools => "addresspools.bowline.dev",
            Self::L2Advertisements => "l2advertisements.bowline.dev",
            Self::BGPPeers => "bgppeers.bowline.dev",
            Self::BGPAdvertisements => "bgpadvertisements.bowline.dev",
            Self::NodeDrains => "nodedrains.bowline.dev",
            Self::LoadBalancerNodes => "loadbalancernodes.bowline.dev",
            Self::ServiceTables => "servicetables.bowline.dev",
            Self::Secret { .. } => "secrets",
        }
    }

    pub(super) fn labels(&self) -> Option<String> {
        match self {
            Self::EndpointSlices | Self::ServingNodes => {
                Some("kubernetes.io/service-name,!service.kubernetes.io/headless".to_owned())
            }
            Self::Services
            | Self::ServicesInOutline
            | Self::Nodes
            | Self::Namespaces
            | Self::Pods
            | Self::PodsOfNode(_)
            | Self::AddressPools
            | Self::L2Advertisements
            | Self::BGPPeers
            | Self::BGPAdvertisements
            | Self::NodeDrains
            | Self::LoadBalancerNodes
            | Self::ServiceTables
            | Self::Secret { .. } => None,
        }
    }

    pub(super) fn fields(&self) -> Option<String> {
        match self {
            Self::Pods => Some(ALIVE.to_owned()),
            Self::PodsOfNode(node) => Some(format!("spec.nodeName={node},{ALIVE}")),
            Self::Secret { name, .. } => Some(format!("metadata.name={name}")),
            Self::Services
            | Self::ServicesInOutline
            | Self::EndpointSlices
            | Self::ServingNodes
            | Self::Nodes
            | Self::Namespaces
            | Self::AddressPools
            | Self::L2Advertisements
            | Self::BGPPeers
            | Self::BGPAdvertisements
            | Self::NodeDrains
            | Self::LoadBalancerNodes
            | Self::ServiceTables => None,
        }
    }
}
