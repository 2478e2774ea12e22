//! What is kept of an object: only what somebody uses. Memory is one reason; the other is that a change of the rest (a
//! heartbeat of a Node, managed fields) is then no change.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Namespace, Node, NodeCondition, NodeSpec, NodeStatus, Pod, Secret, Service, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::DynamicObject;
use serde::de::DeserializeOwned;

use super::Decoded;
use crate::api::address_pool::AddressPool;
use crate::api::bgp_advertisement::BGPAdvertisement;
use crate::api::bgp_peer::BGPPeer;
use crate::api::l2_advertisement::L2Advertisement;
use crate::api::load_balancer_node::LoadBalancerNode;
use crate::api::node_drain::NodeDrain;
use crate::api::service_table::ServiceTable;
use crate::model::problem::WEIGHT_ANNOTATION;
use crate::source::kubelet::tells_shutdown;
use crate::source::parse::{Kind, Object, ObjectKey};
use crate::source::serving::Serving;

/// What `kubectl apply` remembers: as large as the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object that loses what nobody uses.
pub(super) trait Strip: Into<Object> + Clone + std::fmt::Debug {
    /// Its kind.
    const KIND: Kind;
    /// Its metadata.
    fn meta(&mut self) -> &mut ObjectMeta;
    /// Drops the rest.
    fn strip(&mut self) {}
}

/// An object of which only the metadata are fetched.
pub(super) trait FromMeta: Strip {
    fn from_meta(meta: ObjectMeta) -> Self;
}

/// An object that is sound by its type.
pub(super) fn whole<K: Strip>(mut object: K) -> Decoded {
    let key = key(K::KIND, object.meta());
    strip_meta(object.meta());
    object.strip();
    // The model takes an object without a namespace for one of the default namespace.
    object.meta().namespace = Some(key.namespace.clone());
    (key, Ok(object.into()))
}

/// A Service for an agent: whether it is ours, which labels select it, where its packets may enter, and its addresses.
pub(super) fn outline(mut service: Service) -> Decoded {
    let labels = service.metadata.labels.take();
    service.metadata = ObjectMeta {
        namespace: service.metadata.namespace.take(),
        labels,
        ..bare(&service.metadata)
    };
    service.spec = service.spec.take().map(|spec| ServiceSpec {
        type_: spec.type_,
        load_balancer_class: spec.load_balancer_class,
        external_traffic_policy: spec.external_traffic_policy,
        ..ServiceSpec::default()
    });
    if let Some(status) = &mut service.status {
        status.conditions = None;
    }
    whole(service)
}

/// An endpoint slice for an agent.
pub(super) fn serving(slice: EndpointSlice) -> Decoded {
    let (key, object) = whole(slice);
    let object = object.and_then(|object| {
        let slice = object.endpoint_slice();
        let serving = slice.and_then(Serving::of);
        let serving =
            serving.ok_or("it names no Service; set its label kubernetes.io/service-name")?;
        Ok(Object::Serving(Box::new(serving)))
    });
    (key, object)
}

/// An object of our own, which another version of us may have written.
pub(super) fn ours<K>(object: DynamicObject) -> Decoded
where
    K: Strip + Resource<DynamicType = ()> + DeserializeOwned,
{
    let key = key(K::KIND, &object.metadata);
    let value = serde_json::to_value(object).and_then(serde_json::from_value::<K>);
    match value {
        Ok(object) => whole(object),
        Err(error) => {
            let sentence = format!("{error}; it may be of another version of Bowline, correct it");
            (key, Err(sentence))
        }
    }
}

fn key(kind: Kind, meta: &ObjectMeta) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    }
}

fn strip_meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// Name, UID and what else is asked for.
fn bare(meta: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        ..ObjectMeta::default()
    }
}

macro_rules! strip {
    ($($t:ident $(|$object:ident| $strip:expr)?),* $(,)?) => { $(
        impl Strip for $t {
            const KIND: Kind = Kind::$t;
            fn meta(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
            $(fn strip(&mut self) {
                let $object = self;
                $strip;
            })?
        }
    )* };
}

strip!(
    Service,
    Node | node | strip_node(node),
    EndpointSlice | slice | strip_slice(slice),
    Pod | pod | strip_pod(pod),
    Namespace | namespace | strip_namespace(namespace),
    AddressPool,
    L2Advertisement,
    BGPPeer,
    BGPAdvertisement,
    NodeDrain,
    LoadBalancerNode,
    ServiceTable,
    Secret,
);

impl FromMeta for Pod {
    fn from_meta(metadata: ObjectMeta) -> Self {
        Self {
            metadata,
            ..Self::default()
        }
    }
}

impl FromMeta for Namespace {
    fn from_meta(metadata: ObjectMeta) -> Self {
        Self {
            metadata,
            ..Self::default()
        }
    }
}

/// Heartbeats, images and capacities of nodes concern nobody here.
fn strip_node(node: &mut Node) {
    node.metadata = ObjectMeta {
        labels: node.metadata.labels.take(),
        ..bare(&node.metadata)
    };
    let taints = node.spec.take().and_then(|spec| spec.taints);
    node.spec = taints.map(|taints| NodeSpec {
        taints: Some(taints),
        ..NodeSpec::default()
    });
    let status = node.status.take().unwrap_or_default();
    let conditions = status.conditions.into_iter().flatten();
    let shutdown: Vec<_> = conditions.filter(tells_shutdown).map(undated).collect();
    let status = NodeStatus {
        addresses: status.addresses,
        conditions: (!shutdown.is_empty()).then_some(shutdown),
        ..NodeStatus::default()
    };
    node.status = (status != NodeStatus::default()).then_some(status);
}

/// What a condition says, whenever it was said.
fn undated(condition: NodeCondition) -> NodeCondition {
    NodeCondition {
        last_heartbeat_time: None,
        last_transition_time: None,
        ..condition
    }
}

fn strip_pod(pod: &mut Pod) {
    let weight = pod
        .metadata
        .annotations
        .as_mut()
        .and_then(|annotations| annotations.remove(WEIGHT_ANNOTATION));
    pod.metadata = ObjectMeta {
        annotations: weight.map(|weight| BTreeMap::from([(WEIGHT_ANNOTATION.to_owned(), weight)])),
        ..bare(&pod.metadata)
    };
}

fn strip_namespace(namespace: &mut Namespace) {
    namespace.metadata = ObjectMeta {
        labels: namespace.metadata.labels.take(),
        ..bare(&namespace.metadata)
    };
}

fn strip_slice(slice: &mut EndpointSlice) {
    slice.metadata = ObjectMeta {
        labels: slice.metadata.labels.take(),
        ..bare(&slice.metadata)
    };
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.deprecated_topology = None;
        endpoint.hints = None;
        endpoint.hostname = None;
        endpoint.zone = None;
        // Only the first address of an endpoint is ever used.
        endpoint.addresses.truncate(1);
        endpoint.addresses.shrink_to_fit();
        if let Some(target) = &mut endpoint.target_ref {
            target.api_version = None;
            target.field_path = None;
            target.namespace = None;
            target.resource_version = None;
        }
    }
    if let Some(endpoints) = &mut slice.endpoints {
        endpoints.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_of_a_node_is_no_change() {
        let node = |beat: &str| {
            let yaml = format!(
                "metadata: {{name: n1, uid: u, labels: {{a: b}}, resourceVersion: '{beat}', managedFields: []}}\n\
                 spec: {{podCIDR: 10.0.0.0/24}}\n\
                 status: {{addresses: [{{type: InternalIP, address: 10.0.0.1}}], conditions: [{{type: Ready, status: \
                 'True', lastHeartbeatTime: '2026-01-01T00:00:0{beat}Z'}}]}}"
            );
            whole(serde_saphyr::from_str::<Node>(&yaml).unwrap())
        };
        assert_eq!(node("1"), node("2"));
    }

    #[test]
    fn a_kubelet_that_shuts_down_is_kept_in_mind() {
        let node = |ready: &str| {
            let yaml =
                format!("{{metadata: {{name: n1, uid: u}}, status: {{conditions: [{ready}]}}}}");
            whole(serde_saphyr::from_str::<Node>(&yaml).unwrap()).1
        };
        let ready = node("{type: Ready, status: 'True', message: kubelet is posting ready status}");
        let ends = |time: &str| {
            node(&format!(
                "{{type: Ready, status: 'False', message: node is shutting down, lastHeartbeatTime: '{time}'}}"
            ))
        };
        let early = ends("2026-01-01T00:00:00Z");
        assert_ne!(ready, early);
        assert_eq!(early, ends("2026-01-01T00:00:10Z"));
    }

    #[test]
    fn a_pod_keeps_its_uid_and_its_weight() {
        let pod: Pod = serde_saphyr::from_str(
            "metadata: {name: p, namespace: x, uid: u, annotations: {a: b, bowline.dev/weight: '3'}, labels: {c: d}}",
        )
        .unwrap();
        let kept: Pod = serde_saphyr::from_str(
            "metadata: {name: p, namespace: x, uid: u, annotations: {bowline.dev/weight: '3'}}",
        )
        .unwrap();
        assert_eq!(whole(pod).1, Ok(Object::Pod(Box::new(kept))));
    }

    #[test]
    fn an_object_of_another_version_is_refused_alone() {
        let object: DynamicObject = serde_saphyr::from_str(
            "{apiVersion: bowline.dev/v1alpha1, kind: AddressPool, metadata: {name: a}, spec: {addresses: 5}}",
        )
        .unwrap();
        let (key, refused) = ours::<AddressPool>(object);
        assert_eq!(key.to_string(), "AddressPool a");
        assert!(refused.unwrap_err().contains("invalid type"));
    }
}
