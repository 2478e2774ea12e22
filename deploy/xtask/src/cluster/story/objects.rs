//! The objects that the story applies, and their addresses: values only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use authority::handoff::Files;
use rig::cluster::plan;
use serde_json::{Map, Value, json};

use super::router;

/// Pods of the Service `web` that a rollout replaces.
pub(super) const WEB_PODS: u32 = 10;
/// Pods of the Service `web` that stay.
pub(super) const STAY_PODS: u32 = 3;
/// Grace of a pod that is told to end: it serves on until then, as programs that drain do. Kubernetes gives 30 s if nothing
/// is said; a third of that still lets a busy machine hear of the end in time.
pub(super) const GRACE_S: u32 = 10;
/// VIPs of the Service `web`.
pub(super) const WEB: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 30, 0, 130)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 1, 0x130)),
];

/// VIPs that a router learns by BGP.
pub(super) const ROUTED: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 29, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x29, 0, 0, 0, 0, 0, 1)),
];

/// What nodes say of them.
pub(super) const COMMUNITY: &str = "64501:100";

/// TCP of the Service `routed`, over both families.
pub(super) fn routed_tcp() -> [SocketAddr; 2] {
    ROUTED.map(|vip| SocketAddr::new(vip, 80))
}

/// TCP of the Service `web`, over both families.
pub(super) fn web_tcp() -> [SocketAddr; 2] {
    WEB.map(|vip| SocketAddr::new(vip, 80))
}

/// UDP of the Service `web`, over IPv4.
pub(super) fn web_udp() -> SocketAddr {
    SocketAddr::new(WEB[0], 53)
}

/// VIP of a Service that is applied to measure the time.
pub(super) fn first_vip(number: u32) -> IpAddr {
    let [a, b, c, _] = [172, 30, 0, 0];
    Ipv4Addr::new(a, b, c, 140 + (number % 40) as u8).into()
}

/// A pool of the nodes' own network, announced there.
pub(super) fn addresses() -> Value {
    let api = "bowline.dev/v1alpha1";
    list(&[
        json!({
            "apiVersion": api,
            "kind": "AddressPool",
            "metadata": { "name": "story" },
            "spec": { "addresses": plan::VIP_RANGES },
        }),
        json!({
            "apiVersion": api,
            "kind": "L2Advertisement",
            "metadata": { "name": "story" },
            "spec": { "pools": ["story"] },
        }),
    ])
}

/// A pool in no network of the nodes, the router that is told of it, and a Service with addresses of it for the pods of `web`.
pub(super) fn routed() -> Value {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "bowline.dev/v1alpha1",
            "kind": kind,
            "metadata": { "name": name, "labels": { "story": "routed" } },
            "spec": spec,
        })
    };
    let peer = |name: &str, address: IpAddr| {
        let spec = json!({
            "peerAddress": address,
            "peerASN": router::ROUTER_AS,
            "myASN": router::NODES_AS,
            "bfd": { "intervalMilliseconds": router::BFD_INTERVAL_MS },
        });
        object("BGPPeer", name, spec)
    };
    let [four, six] = ROUTED;
    let pool = json!({ "addresses": [format!("{four}/32"), format!("{six}/128")] });
    let mut service = service("routed", &format!("{four},{six}"));
    service["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
    list(&[
        object("AddressPool", "routed", pool),
        peer("router4", plan::ROUTER.0.into()),
        peer("router6", plan::ROUTER.1.into()),
        object(
            "BGPAdvertisement",
            "routed",
            json!({ "pools": ["routed"], "communities": [COMMUNITY] }),
        ),
        service,
    ])
}

/// Pods of the Service `web` that say who they are, on TCP port 8080 and UDP port 5353.
pub(super) fn deployment(name: &str, replicas: u32) -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name, "serves": "web" } },
                "spec": {
                    "terminationGracePeriodSeconds": GRACE_S,
                    "automountServiceAccountToken": false,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": { "matchLabels": { "app": name } },
                    }],
                    "containers": [{
                        "name": "echo",
                        "image": "localhost/bowline-echo:dev",
                        "args": ["--pod", "$(POD)", "--uid", "$(POD_UID)", "--tcp", "8080", "--udp", "5353"],
                        "env": [field("POD", "metadata.name"), field("POD_UID", "metadata.uid")],
                        "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
                    }],
                },
            },
        },
    })
}

/// The Service `web`: both families, TCP and UDP.
pub(super) fn web(policy: &str) -> Value {
    let [four, six] = WEB;
    let mut service = service("web", &format!("{four},{six}"));
    service["spec"]["externalTrafficPolicy"] = policy.into();
    service["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
    service
}

/// A Service of our class for the same pods, with requested addresses.
pub(super) fn service(name: &str, vips: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "annotations": { "bowline.dev/addresses": vips } },
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": "bowline.dev/xdp",
            "allocateLoadBalancerNodePorts": false,
            "selector": { "serves": "web" },
            "ports": [
                { "name": "tcp", "protocol": "TCP", "port": 80, "targetPort": 8080 },
                { "name": "udp", "protocol": "UDP", "port": 53, "targetPort": 5353 },
            ],
        },
    })
}

/// Several objects as one.
pub(super) fn list(items: &[Value]) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// A Secret with what a program reads to speak with other nodes.
pub(super) fn certificates(namespace: &str, name: &str, files: &Files) -> Value {
    let data: Map<_, _> = files
        .iter()
        .map(|(file, text)| ((*file).to_owned(), Value::from(text.as_str())))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "namespace": namespace, "name": name },
        "stringData": data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dual_stack_service_asks_for_an_address_of_each_family() {
        let web = web("Local");
        assert_eq!(
            web["metadata"]["annotations"]["bowline.dev/addresses"],
            "172.30.0.130,fd00:30::1:130"
        );
        assert_eq!(web["spec"]["externalTrafficPolicy"], "Local");
    }

    #[test]
    fn a_secret_of_certificates_has_the_files_that_programs_read() {
        let files = [("ca.crt", "1"), ("tls.crt", "2"), ("tls.key", "3")];
        let files = files.map(|(name, text)| (name, text.to_owned()));
        let secret = certificates("here", "agent", &files);
        assert_eq!(
            secret["metadata"],
            json!({ "namespace": "here", "name": "agent" })
        );
        assert_eq!(
            secret["stringData"],
            json!({ "ca.crt": "1", "tls.crt": "2", "tls.key": "3" })
        );
    }

    #[test]
    fn addresses_of_measured_services_are_all_different() {
        let all: std::collections::BTreeSet<_> = (0..20).map(first_vip).collect();
        assert_eq!(all.len(), 20);
        assert!(WEB.iter().all(|vip| !all.contains(vip)));
    }
}
