//! What a cluster of a given size holds, as an API server would send it. Knows nothing of how it is measured.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Nodes that pods are spread over.
pub(super) const NODES: u32 = 100;
/// Nodes of them that have an agent.
pub(super) const BALANCERS: u32 = 64;
/// The node whose agent is measured. Pods are spread over all nodes, so it has its share.
pub(super) const OWN_NODE: u32 = 0;
/// Where all Services are.
pub(super) const NAMESPACE: &str = "bench";
/// Namespace of Bowline.
pub(super) const SYSTEM: &str = "bowline-system";
/// First number of pods that take the place of others.
const REPLACEMENTS: u32 = 1_000_000;

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) services: u32,
    /// Per Service.
    pub(super) endpoints: u32,
}

/// One pod, by number.
#[derive(Clone, Copy, Debug)]
pub(super) struct PodNumber(pub(super) u32);

impl PodNumber {
    fn address(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a80_0000 + self.0)
    }

    pub(super) fn node(self) -> String {
        node_name(self.0 % NODES)
    }

    pub(super) fn name(self) -> String {
        format!("pod-{:07}-7d9c4b6f58", self.0)
    }

    pub(super) fn uid(self) -> String {
        format!("{:08x}-6a0c-4b1e-9a65-1f6f3a8f6a10", self.0)
    }
}

/// The slice of a Service: who is its first endpoint, and how that one is.
#[derive(Clone, Copy, Debug)]
pub(super) enum First {
    /// The one of the beginning, ready.
    Original,
    /// The one of the beginning, which has begun to end.
    Terminating,
    /// Another pod in its place, ready.
    Replaced,
}

impl Scale {
    pub(super) fn pod(self, service: u32, endpoint: u32) -> PodNumber {
        PodNumber(service * self.endpoints + endpoint)
    }

    /// All pods of the beginning.
    pub(super) fn pods(self) -> impl Iterator<Item = PodNumber> {
        (0..self.services * self.endpoints).map(PodNumber)
    }

    /// `uid` says which UID a pod has: the API server gives its own.
    pub(super) fn slice(
        self,
        service: u32,
        first: First,
        uid: impl Fn(PodNumber) -> String,
    ) -> Value {
        let endpoints: Vec<_> = (0..self.endpoints)
            .map(|endpoint| {
                let pod = match (endpoint, first) {
                    (0, First::Replaced) => replacement(service),
                    _ => self.pod(service, endpoint),
                };
                let ends = endpoint == 0 && matches!(first, First::Terminating);
                json!({
                    "addresses": [pod.address().to_string()],
                    "conditions": { "ready": !ends, "serving": true, "terminating": ends },
                    "nodeName": pod.node(),
                    "targetRef": {
                        "kind": "Pod", "namespace": NAMESPACE, "name": pod.name(), "uid": uid(pod),
                    },
                    "zone": "zone-a",
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-x7k2p", service_name(service)),
                "namespace": NAMESPACE,
                "labels": {
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": service_name(service),
                },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints,
        })
    }
}

/// Who takes the place of a Service's first pod.
pub(super) fn replacement(service: u32) -> PodNumber {
    PodNumber(REPLACEMENTS + service)
}

pub(super) fn service_name(number: u32) -> String {
    format!("service-{number:05}")
}

pub(super) fn service(number: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": service_name(number), "namespace": NAMESPACE, "labels": { "app": service_name(number) } },
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": "bowline.dev/xdp",
            "allocateLoadBalancerNodePorts": false,
            "selector": { "app": service_name(number) },
            "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 8080 }],
        },
    })
}

pub(super) fn pod(number: PodNumber) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": number.name(), "namespace": NAMESPACE, "labels": { "app": "bench" } },
        "spec": { "nodeName": number.node(), "containers": [{ "name": "c", "image": "i" }] },
    })
}

pub(super) fn node_name(number: u32) -> String {
    format!("node-{number}")
}

pub(super) fn node_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a01_0000 + number)
}

pub(super) fn node(number: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node_name(number) },
        "status": { "addresses": [{ "type": "InternalIP", "address": node_address(number).to_string() }] },
    })
}

pub(super) fn balancer(number: u32) -> Value {
    json!({
        "apiVersion": "bowline.dev/v1alpha1",
        "kind": "LoadBalancerNode",
        "metadata": { "name": node_name(number) },
        "spec": {
            "role": "both",
            "version": "0.1.0",
            "addresses": [node_address(number).to_string()],
            "interfaces": [{ "name": INTERFACE, "xdp": "native" }],
        },
    })
}

/// The uplink of every node.
pub(super) const INTERFACE: &str = "uplink0";

pub(super) fn pool() -> Value {
    json!({
        "apiVersion": "bowline.dev/v1alpha1",
        "kind": "AddressPool",
        "metadata": { "name": "bench" },
        "spec": { "addresses": ["198.18.0.0/15"] },
    })
}

pub(super) fn advertisement() -> Value {
    json!({
        "apiVersion": "bowline.dev/v1alpha1",
        "kind": "L2Advertisement",
        "metadata": { "name": "bench" },
        "spec": {},
    })
}
