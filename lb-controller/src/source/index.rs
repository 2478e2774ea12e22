//! All objects, and which Services a change concerns. No I/O: [`Index::apply`], [`Index::delete`] and [`Index::reset`]
//! are all there is to it, and each says whether anything changed. The result does not depend on their order.

mod relations;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use self::relations::{Relations, service_of, uid_of};
use super::parse::{Kind, Object, ObjectKey};
use super::serving::Serving;
use crate::api::address_pool::AddressPool;
use crate::api::bgp_advertisement::BGPAdvertisement;
use crate::api::bgp_peer::BGPPeer;
use crate::api::l2_advertisement::L2Advertisement;
use crate::api::load_balancer_node::LoadBalancerNode;
use crate::api::node_drain::NodeDrain;
use crate::api::service_table::ServiceTable;

pub(super) use self::relations::SERVICE_LABEL;

/// Namespace and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Named {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a source tells.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// An object came or changed.
    Apply(ObjectKey, Object),
    /// An object went.
    Delete(ObjectKey),
    /// An object is there, but can not be understood: its last good form stays. The sentence says why.
    Refused(ObjectKey, String),
    /// These are all objects of a kind, as after a list; those refused are there too.
    Reset {
        /// The kind.
        kind: Kind,
        /// Its objects.
        objects: BTreeMap<ObjectKey, Object>,
        /// Those that can not be understood, and why.
        refused: BTreeMap<ObjectKey, String>,
    },
}

/// What changed since it was last taken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changed {
    /// Services of which an own field, a slice or a pod changed.
    pub services: BTreeSet<Named>,
    /// Services of which the object itself came, changed or went.
    pub defined: BTreeSet<Named>,
    /// UIDs of Pods that came, changed or went.
    pub pods: BTreeSet<String>,
    /// Some Node came, changed or went: any Service may be concerned.
    pub nodes: bool,
    /// Some Node came or went.
    pub node_names: bool,
    /// Kinds of which some object came, changed or went.
    pub kinds: BTreeSet<Kind>,
}

impl Changed {
    /// Nothing did.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// All objects.
#[derive(Clone, Debug, Default)]
pub struct Index {
    objects: BTreeMap<ObjectKey, Object>,
    relations: Relations,
    changed: Changed,
}

impl PartialEq for Index {
    /// Equal when they hold the same objects, whatever has changed on the way.
    fn eq(&self, other: &Self) -> bool {
        self.objects == other.objects && self.relations == other.relations
    }
}

impl Index {
    /// Adds or replaces an object.
    pub fn apply(&mut self, key: ObjectKey, object: Object) -> bool {
        if self.objects.get(&key) == Some(&object) {
            return false;
        }
        self.unlink(&key);
        self.relations.link(&key, &object);
        let marked = key.clone();
        let is_new = self.objects.insert(key, object).is_none();
        self.changed.node_names |= is_new && marked.kind == Kind::Node;
        self.mark(&marked);
        true
    }

    /// Removes an object.
    pub fn delete(&mut self, key: &ObjectKey) -> bool {
        if !self.objects.contains_key(key) {
            return false;
        }
        self.mark(key);
        self.unlink(key);
        self.objects.remove(key);
        self.changed.node_names |= key.kind == Kind::Node;
        true
    }

    /// Makes these all there is of one kind, as after a new list. Those in `kept` stay as they are.
    pub fn reset_kind(
        &mut self,
        kind: Kind,
        objects: BTreeMap<ObjectKey, Object>,
        kept: &BTreeMap<ObjectKey, String>,
    ) -> bool {
        let gone: Vec<_> = self
            .keys(kind)
            .filter(|key| !objects.contains_key(*key) && !kept.contains_key(*key))
            .cloned()
            .collect();
        let mut changed = false;
        for key in &gone {
            changed |= self.delete(key);
        }
        for (key, object) in objects {
            changed |= self.apply(key, object);
        }
        changed
    }

    /// Takes in what a source tells. A refused object stays as it is.
    pub fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Apply(key, object) => self.apply(key, object),
            Event::Delete(key) => self.delete(&key),
            Event::Refused(..) => false,
            Event::Reset {
                kind,
                objects,
                refused,
            } => self.reset_kind(kind, objects, &refused),
        }
    }

    /// Makes these all there is, as after a new list.
    pub fn reset(&mut self, objects: BTreeMap<ObjectKey, Object>) -> bool {
        let gone: Vec<_> = self
            .objects
            .keys()
            .filter(|key| !objects.contains_key(*key))
            .cloned()
            .collect();
        let mut changed = false;
        for key in &gone {
            changed |= self.delete(key);
        }
        for (key, object) in objects {
            changed |= self.apply(key, object);
        }
        changed
    }

    /// What changed since the last call.
    pub fn take_changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    /// All objects.
    pub fn objects(&self) -> BTreeMap<ObjectKey, Object> {
        self.objects.clone()
    }

    /// An object.
    pub fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    /// Marks a Service as changed, though its objects are the same.
    pub fn touch(&mut self, named: Named) {
        self.changed.services.insert(named);
    }

    /// Marks everything as changed, as if it came just now.
    pub fn touch_all(&mut self) {
        let keys: Vec<_> = self.objects.keys().cloned().collect();
        for key in &keys {
            self.mark(key);
        }
        self.changed.node_names = true;
    }

    /// All tables, by name.
    pub fn tables(&self) -> impl Iterator<Item = &ServiceTable> {
        self.of_kind(Kind::ServiceTable)
            .filter_map(|(_, object)| object.service_table())
    }

    /// Keys of a kind, by name.
    pub fn keys(&self, kind: Kind) -> impl Iterator<Item = &ObjectKey> {
        self.of_kind(kind).map(|(key, _)| key)
    }

    /// Objects of a kind, by name.
    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Object)> {
        let first = ObjectKey {
            kind,
            namespace: String::new(),
            name: String::new(),
        };
        self.objects
            .range(first..)
            .take_while(move |(key, _)| key.kind == kind)
    }

    /// All Services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.of_kind(Kind::Service)
            .filter_map(|(_, object)| object.service())
    }

    /// All Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.of_kind(Kind::Node)
            .filter_map(|(_, object)| object.node())
    }

    /// All Pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.of_kind(Kind::Pod)
            .filter_map(|(_, object)| object.pod())
    }

    /// All pools, by name.
    pub fn pools(&self) -> impl Iterator<Item = &AddressPool> {
        self.of_kind(Kind::AddressPool)
            .filter_map(|(_, object)| object.address_pool())
    }

    /// All advertisements, by name.
    pub fn advertisements(&self) -> impl Iterator<Item = &L2Advertisement> {
        self.of_kind(Kind::L2Advertisement)
            .filter_map(|(_, object)| object.l2_advertisement())
    }

    /// All routers that are told by BGP, by name.
    pub fn bgp_peers(&self) -> impl Iterator<Item = &BGPPeer> {
        self.of_kind(Kind::BGPPeer)
            .filter_map(|(_, object)| object.bgp_peer())
    }

    /// All advertisements by BGP, by name.
    pub fn bgp_advertisements(&self) -> impl Iterator<Item = &BGPAdvertisement> {
        self.of_kind(Kind::BGPAdvertisement)
            .filter_map(|(_, object)| object.bgp_advertisement())
    }

    /// All drains, by name of the node.
    pub fn drains(&self) -> impl Iterator<Item = &NodeDrain> {
        self.of_kind(Kind::NodeDrain)
            .filter_map(|(_, object)| object.node_drain())
    }

    /// The drain of a node.
    pub fn drain(&self, node: &str) -> Option<&NodeDrain> {
        self.object(&ObjectKey::of_drain(node))?.node_drain()
    }

    /// What all agents say about their nodes, by name.
    pub fn balancers(&self) -> impl Iterator<Item = &LoadBalancerNode> {
        self.of_kind(Kind::LoadBalancerNode)
            .filter_map(|(_, object)| object.load_balancer_node())
    }

    /// All Namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.of_kind(Kind::Namespace)
            .filter_map(|(_, object)| object.namespace())
    }

    /// A Service.
    pub fn service(&self, named: &Named) -> Option<&Service> {
        self.get(Kind::Service, named)?.service()
    }

    /// A Pod.
    pub fn pod(&self, named: &Named) -> Option<&Pod> {
        self.get(Kind::Pod, named)?.pod()
    }

    /// A Node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        let named = Named {
            namespace: String::new(),
            name: name.to_owned(),
        };
        self.get(Kind::Node, &named)?.node()
    }

    /// Whether there is a Node of this name.
    pub fn has_node(&self, name: &str) -> bool {
        self.node(name).is_some()
    }

    /// The Pod of a UID.
    pub fn pod_by_uid(&self, uid: &str) -> Option<&Pod> {
        self.pod(self.relations.pod_of(uid)?)
    }

    /// The slices of a Service, by name.
    pub fn slices(&self, service: &Named) -> impl Iterator<Item = &EndpointSlice> {
        self.slice_objects(service)
            .filter_map(Object::endpoint_slice)
    }

    /// Where the endpoints of a Service serve, by slice.
    pub fn serving(&self, service: &Named) -> impl Iterator<Item = Cow<'_, Serving>> {
        self.slice_objects(service).filter_map(|object| {
            let whole = || object.endpoint_slice().and_then(Serving::of);
            let kept = object.serving().map(Cow::Borrowed);
            kept.or_else(|| whole().map(Cow::Owned))
        })
    }

    fn slice_objects(&self, service: &Named) -> impl Iterator<Item = &Object> {
        let namespace = service.namespace.clone();
        self.relations.slices_of(service).filter_map(move |name| {
            let named = Named {
                namespace: namespace.clone(),
                name: name.clone(),
            };
            self.get(Kind::EndpointSlice, &named)
        })
    }

    fn get(&self, kind: Kind, Named { namespace, name }: &Named) -> Option<&Object> {
        self.objects.get(&ObjectKey {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
        })
    }

    /// Notes which Services an object concerns. Called while the object is linked.
    fn mark(&mut self, key: &ObjectKey) {
        let named = Named {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        self.changed.kinds.insert(key.kind);
        match key.kind {
            Kind::Node => self.changed.nodes = true,
            Kind::Service => {
                self.changed.defined.insert(named.clone());
                self.changed.services.insert(named);
            }
            Kind::Pod => {
                self.changed
                    .pods
                    .extend(self.objects.get(key).and_then(uid_of));
                let users = self.relations.users_of(&named);
                self.changed.services.extend(users.cloned());
            }
            Kind::EndpointSlice => self
                .changed
                .services
                .extend(self.objects.get(key).and_then(service_of)),
            Kind::Namespace
            | Kind::AddressPool
            | Kind::L2Advertisement
            | Kind::BGPPeer
            | Kind::BGPAdvertisement
            | Kind::NodeDrain
            | Kind::LoadBalancerNode
            | Kind::ServiceTable
            | Kind::Secret => {}
        }
    }

    fn unlink(&mut self, key: &ObjectKey) {
        if let Some(object) = self.objects.get(key) {
            self.relations.unlink(key, object, &mut self.changed);
        }
    }
}
