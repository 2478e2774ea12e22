//! The API server of the simulated cluster: Services, pods and nodes as objects, and what really runs.
//!
//! Who reads it reads what it says now; when they read it is the simulator's business.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{ObjectReference, Pod as PodObject};
use k8s_openapi::api::discovery::v1::{
    Endpoint as EndpointObject, EndpointConditions, EndpointPort, EndpointSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_controller::model::endpoint::{Cluster, Endpoints};
use lb_controller::model::problem::WEIGHT_ANNOTATION;
use lb_controller::model::service::{CLASS, Service as Checked};
use serde_json::json;

use super::segment::{ServiceId, Transport};
use super::wire::{NodeId, Place};

/// A pod's number, in the order of their starts.
pub(super) type PodId = u32;

/// What the API server says of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Object {
    Serving,
    Terminating,
    /// There is no object.
    Gone,
}

/// A pod: its object, and whether it runs.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) id: PodId,
    pub(super) uid: String,
    pub(super) service: ServiceId,
    pub(super) node: NodeId,
    pub(super) address: Ipv4Addr,
    pub(super) weight: u32,
    /// The Service's selector matches.
    pub(super) selected: bool,
    pub(super) ready: bool,
    pub(super) object: Object,
    /// It runs.
    pub(super) lives: bool,
}

impl Pod {
    /// Whether its object exists.
    pub(super) fn exists(&self) -> bool {
        self.object != Object::Gone
    }
}

/// A Service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) id: ServiceId,
    pub(super) name: &'static str,
    pub(super) transport: Transport,
    pub(super) vip: Ipv4Addr,
    pub(super) port: u16,
    pub(super) target_port: u16,
    pub(super) checked: Checked,
}

impl Service {
    /// Where clients send to.
    pub(super) fn place(&self) -> Place {
        (self.vip, self.port)
    }
}

/// A port that pods listen on besides the one that they are asked for: target ports change between the two.
pub(super) const TARGET_PORTS: [u16; 2] = [8080, 9090];

/// Objects and what runs.
#[derive(Debug, Default)]
pub(super) struct Api {
    pub(super) services: Vec<Service>,
    pub(super) pods: Vec<Pod>,
    /// Objects of pods by UID.
    objects: HashMap<String, PodObject>,
    pub(super) nodes: BTreeSet<NodeId>,
    names: BTreeSet<String>,
    /// Addresses of pods that have gone, by node, for the next ones.
    free: BTreeMap<NodeId, Vec<Ipv4Addr>>,
    given: BTreeMap<NodeId, u8>,
    /// Who has an address.
    by_address: HashMap<Ipv4Addr, PodId>,
}

impl Api {
    /// Adds a node.
    pub(super) fn add_node(&mut self, node: NodeId) {
        self.nodes.insert(node);
        self.names.insert(name(node));
    }

    /// A node's object is deleted, and its pods with it.
    pub(super) fn remove_node(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.names.remove(&name(node));
        let pods = self.pods.iter().filter(|pod| pod.node == node);
        for pod in pods.map(|pod| pod.id).collect::<Vec<_>>() {
            self.remove_pod(pod);
        }
    }

    /// Adds a Service without pods.
    pub(super) fn add_service(&mut self, name: &'static str, transport: Transport) -> ServiceId {
        let id = ServiceId(self.services.len() as u8);
        let vip = Ipv4Addr::new(203, 0, 113, id.0 + 1);
        let port = match transport {
            Transport::Tcp => 80,
            Transport::Udp => 53,
        };
        let protocol = protocol_name(transport);
        let object = json!({
            "metadata": {
                "name": name, "namespace": "churn", "uid": format!("service-{}", id.0),
                "annotations": {"bowline.dev/addresses": vip.to_string()},
            },
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": CLASS,
                "ports": [{"name": "main", "port": port, "protocol": protocol}],
            },
        });
        let object = serde_json::from_value(object).expect("the object above is a Service");
        let checked = Checked::parse(&object).expect("it is of our class");
        self.services.push(Service {
            id,
            name,
            transport,
            vip,
            port,
            target_port: TARGET_PORTS[0],
            checked,
        });
        id
    }

    /// Starts a pod; it is ready at once.
    pub(super) fn start_pod(&mut self, service: ServiceId, node: NodeId) -> PodId {
        let id = self.pods.len() as PodId;
        let address = self.free.get_mut(&node).and_then(Vec::pop);
        let address = address.unwrap_or_else(|| {
            let given = self.given.entry(node).or_insert(1);
            *given += 1;
            Ipv4Addr::new(10, 1, node.0, *given)
        });
        self.by_address.insert(address, id);
        self.pods.push(Pod {
            id,
            uid: format!("pod-{id}"),
            service,
            node,
            address,
            weight: 1,
            selected: true,
            ready: true,
            object: Object::Serving,
            lives: true,
        });
        self.write_object(id);
        id
    }

    /// Gives a pod another weight.
    pub(super) fn weigh(&mut self, id: PodId, weight: u32) {
        self.pods[id as usize].weight = weight;
        self.write_object(id);
    }

    fn write_object(&mut self, id: PodId) {
        let pod = &self.pods[id as usize];
        let weight = (WEIGHT_ANNOTATION.to_owned(), pod.weight.to_string());
        let object = PodObject {
            metadata: ObjectMeta {
                name: Some(pod.uid.clone()),
                namespace: Some("churn".to_owned()),
                uid: Some(pod.uid.clone()),
                annotations: (pod.weight != 1).then(|| [weight].into()),
                ..ObjectMeta::default()
            },
            ..PodObject::default()
        };
        self.objects.insert(pod.uid.clone(), object);
    }

    /// A pod stops running and its object goes. Its address is free for the next pod of the node.
    pub(super) fn remove_pod(&mut self, id: PodId) {
        self.kill_pod(id);
        let pod = &mut self.pods[id as usize];
        if pod.exists() {
            pod.object = Object::Gone;
            self.objects.remove(&pod.uid);
            self.by_address.remove(&pod.address);
            self.free.entry(pod.node).or_default().push(pod.address);
        }
    }

    /// A pod stops running, and the API server does not know yet.
    pub(super) fn kill_pod(&mut self, id: PodId) {
        self.pods[id as usize].lives = false;
    }

    /// A pod by its number.
    pub(super) fn pod(&self, id: PodId) -> &Pod {
        &self.pods[id as usize]
    }

    /// A pod by its number, to be changed.
    pub(super) fn pod_mut(&mut self, id: PodId) -> &mut Pod {
        &mut self.pods[id as usize]
    }

    /// The pod that runs at an address.
    pub(super) fn at(&self, address: Ipv4Addr) -> Option<&Pod> {
        let id = self.by_address.get(&address)?;
        Some(self.pod(*id)).filter(|pod| pod.lives)
    }

    /// Pods that a Service selects and that are neither gone nor going.
    pub(super) fn serving(&self, service: ServiceId) -> Vec<PodId> {
        let pods = self.pods.iter();
        let serving = pods
            .filter(|pod| pod.service == service && pod.selected && pod.object == Object::Serving);
        serving.map(|pod| pod.id).collect()
    }

    /// The slice of a Service, as the endpoint controller writes it.
    pub(super) fn slice(&self, service: &Service) -> EndpointSlice {
        let pods = self.pods.iter();
        let pods = pods.filter(|pod| pod.service == service.id && pod.exists() && pod.selected);
        let is_terminating = |pod: &Pod| pod.object == Object::Terminating;
        let endpoints = pods.map(|pod| EndpointObject {
            addresses: vec![pod.address.to_string()],
            node_name: Some(name(pod.node)),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                uid: Some(pod.uid.clone()),
                ..ObjectReference::default()
            }),
            conditions: Some(EndpointConditions {
                ready: Some(pod.ready && !is_terminating(pod)),
                serving: Some(pod.ready),
                terminating: Some(is_terminating(pod)),
            }),
            ..EndpointObject::default()
        });
        EndpointSlice {
            address_type: "IPv4".to_owned(),
            endpoints: Some(endpoints.collect()),
            metadata: ObjectMeta {
                name: Some(format!("{}-1", service.name)),
                namespace: Some("churn".to_owned()),
                ..ObjectMeta::default()
            },
            ports: Some(vec![EndpointPort {
                name: Some("main".to_owned()),
                port: Some(i32::from(service.target_port)),
                protocol: Some(protocol_name(service.transport).to_owned()),
                ..EndpointPort::default()
            }]),
        }
    }

    /// Where a Service's new flows may go now, and with which weight.
    pub(super) fn usable(&self, service: &Service) -> Vec<(Place, u16)> {
        let slice = self.slice(service);
        let endpoints = Endpoints::merge(&service.checked, &[&slice], self);
        let family = lb_controller::api::service_table::Family::IPv4;
        let usable = endpoints.usable(family, 0).into_values();
        usable
            .filter_map(|endpoint| match endpoint.address {
                std::net::IpAddr::V4(address) => {
                    Some(((address, endpoint.port), endpoint.weight.get()))
                }
                std::net::IpAddr::V6(_) => None,
            })
            .collect()
    }
}

impl Cluster for Api {
    fn is_leaving(&self, _node: &str) -> bool {
        false
    }

    fn pod(&self, uid: &str) -> Option<&PodObject> {
        self.objects.get(uid)
    }
    fn has_node(&self, name: &str) -> bool {
        self.names.contains(name)
    }
    fn is_complete(&self) -> bool {
        true
    }
}

/// A node's name.
pub(super) fn name(node: NodeId) -> String {
    format!("node-{}", node.0)
}

fn protocol_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_goes_to_the_next_pod_of_the_node() {
        let mut api = Api::default();
        api.add_node(NodeId(0));
        let web = api.add_service("web", Transport::Tcp);
        let first = api.start_pod(web, NodeId(0));
        let address = api.pod(first).address;
        api.remove_pod(first);
        assert!(api.at(address).is_none());
        let second = api.start_pod(web, NodeId(0));
        assert_eq!(api.at(address).map(|pod| pod.id), Some(second));
    }

    #[test]
    fn pods_go_with_their_node() {
        let mut api = Api::default();
        let [stays, goes] = [0, 1].map(NodeId);
        api.add_node(stays);
        api.add_node(goes);
        let web = api.add_service("web", Transport::Tcp);
        let [first, second] = [stays, goes].map(|node| api.start_pod(web, node));
        api.remove_node(goes);
        assert!(api.has_node("node-0") && !api.has_node("node-1"));
        assert!(Cluster::pod(&api, &api.pod(first).uid).is_some());
        assert!(Cluster::pod(&api, &api.pod(second).uid).is_none());
    }

    #[test]
    fn usable_are_the_ready_ones_and_the_terminating_ones_when_there_is_no_other() {
        let mut api = Api::default();
        api.add_node(NodeId(0));
        let web = api.add_service("web", Transport::Tcp);
        let [a, b] = [0, 1].map(|_| api.start_pod(web, NodeId(0)));
        api.weigh(b, 3);
        let place = |api: &Api, id| (api.pod(id).address, TARGET_PORTS[0]);
        let usable = |api: &Api| api.usable(&api.services[0]);
        assert_eq!(usable(&api), [(place(&api, a), 1), (place(&api, b), 3)]);
        api.pod_mut(a).object = Object::Terminating;
        assert_eq!(usable(&api), [(place(&api, b), 3)]);
        api.pod_mut(b).ready = false;
        assert_eq!(usable(&api), [(place(&api, a), 1)]);
    }
}
