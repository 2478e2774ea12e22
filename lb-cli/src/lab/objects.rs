//! `Node`, `Pod` and `EndpointSlice` objects as Kubernetes would write them, the latter from Services and Pods as the endpoint
//! controller does. Pure: values in, values out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::plan::Machine;

/// Where a pod is in its life, as slices tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Gets new connections.
    Ready,
    /// Fails its readiness probe; lives.
    Unready,
    /// Was told to end; still serves.
    Terminating,
    /// Is in no slice any more; its Pod object, and the pod, are there.
    Gone,
}

/// A pod of the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Its name.
    pub(crate) name: String,
    /// Its UID.
    pub(crate) uid: String,
    /// The value of its label `app`.
    pub(crate) app: String,
    /// Its node.
    pub(crate) node: String,
    /// IPv4 and IPv6.
    pub(crate) addresses: [IpAddr; 2],
    /// Where it is in its life.
    pub(crate) phase: Phase,
}

/// The Node of a machine.
pub(crate) fn node(machine: &Machine) -> Value {
    let addresses: Vec<Value> = machine
        .addresses()
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.addr()}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": machine.name, "uid": format!("node-{}", machine.name)},
        "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// The Pod.
pub(crate) fn pod(pod: &Pod) -> Value {
    let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": "default",
            "uid": pod.uid,
            "labels": {"app": pod.app},
        },
        "spec": {
            "nodeName": pod.node,
            "containers": [{"name": "server", "image": "bowline-lab"}],
        },
        "status": {"phase": "Running", "podIP": pod.addresses[0], "podIPs": ips},
    })
}

/// The `EndpointSlice` objects of a Service, by name: one per address family.
pub(crate) fn slices(service: &Service, pods: &[Pod]) -> anyhow::Result<BTreeMap<String, Value>> {
    let name = service
        .metadata
        .name
        .as_deref()
        .context("a Service has no name")?;
    let spec = service
        .spec
        .as_ref()
        .with_context(|| format!("Service {name} has no spec"))?;
    let selector = spec.selector.clone().unwrap_or_default();
    let ports: Vec<Value> = spec.ports.iter().flatten().map(slice_port).collect();
    let families = spec
        .ip_families
        .clone()
        .unwrap_or_else(|| vec!["IPv4".to_owned()]);
    let selected: Vec<&Pod> = pods
        .iter()
        .filter(|pod| pod.phase != Phase::Gone && selects(&selector, pod))
        .collect();
    let mut slices = BTreeMap::new();
    for family in families {
        let endpoints: Vec<Value> = selected.iter().map(|pod| endpoint(pod, &family)).collect();
        let slice_name = format!("{name}-{}", family.to_lowercase());
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": slice_name,
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family,
            "ports": ports,
            "endpoints": endpoints,
        });
        slices.insert(slice_name, slice);
    }
    Ok(slices)
}

fn selects(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| key == "app" && *value == pod.app)
}

fn slice_port(port: &ServicePort) -> Value {
    let target = match &port.target_port {
        Some(IntOrString::Int(target)) => *target,
        // The lab's pods name no ports.
        Some(IntOrString::String(_)) | None => port.port,
    };
    json!({
        "name": port.name,
        "protocol": port.protocol.as_deref().unwrap_or("TCP"),
        "port": target,
    })
}

fn endpoint(pod: &Pod, family: &str) -> Value {
    let address = pod.addresses[usize::from(family == "IPv6")];
    let (ready, serving, terminating) = match pod.phase {
        Phase::Ready => (true, true, false),
        Phase::Terminating => (false, true, true),
        Phase::Unready | Phase::Gone => (false, false, false),
    };
    json!({
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": pod.node,
        "targetRef": {"kind": "Pod", "namespace": "default", "name": pod.name, "uid": pod.uid},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Service {
        serde_saphyr::from_str(include_str!("../../../deploy/examples/web.yaml")).unwrap()
    }

    fn some_pod(name: &str, phase: Phase) -> Pod {
        Pod {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            app: "web".to_owned(),
            node: "node-1".to_owned(),
            addresses: [
                "10.60.1.1".parse().unwrap(),
                "fd60:0:0:1::1".parse().unwrap(),
            ],
            phase,
        }
    }

    #[test]
    fn slices_hold_the_selected_pods_that_have_not_left() {
        let mut other = some_pod("other", Phase::Ready);
        other.app = "other".to_owned();
        let pods = [
            some_pod("a", Phase::Ready),
            some_pod("b", Phase::Gone),
            other,
            some_pod("c", Phase::Terminating),
        ];
        let slices = slices(&web(), &pods).unwrap();
        let names: Vec<&String> = slices.keys().collect();
        assert_eq!(names, ["web-ipv4", "web-ipv6"]);
        let endpoints = slices["web-ipv6"]["endpoints"].as_array().unwrap();
        let uids: Vec<&Value> = endpoints
            .iter()
            .map(|endpoint| &endpoint["targetRef"]["uid"])
            .collect();
        assert_eq!(uids, ["uid-a", "uid-c"]);
        assert_eq!(endpoints[0]["addresses"][0], "fd60:0:0:1::1");
        assert_eq!(endpoints[1]["conditions"]["terminating"], true);
    }

    #[test]
    fn slices_name_target_ports() {
        let slices = slices(&web(), &[]).unwrap();
        assert_eq!(
            slices["web-ipv4"]["ports"],
            json!([
                {"name": "http", "protocol": "TCP", "port": 8080},
                {"name": "dns", "protocol": "UDP", "port": 5353},
            ])
        );
    }
}
