//! Which objects concern each other: slices of a Service, Services that use a pod, pods by UID.

use std::collections::{BTreeMap, BTreeSet};

use super::{Changed, Named};
use crate::source::parse::{Object, ObjectKey};

/// Label of a slice that names its Service.
pub(in crate::source) const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Kept in line with the objects, so that a change costs nothing for all others.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Relations {
    /// Names of slices by Service.
    slices: BTreeMap<Named, BTreeSet<String>>,
    /// Services by the pods that their slices name. Counted, since several slices may name one pod.
    users: BTreeMap<Named, BTreeMap<Named, usize>>,
    /// Pods by UID. More than one only while a pod is defined twice under different names.
    uids: BTreeMap<String, BTreeSet<Named>>,
}

impl Relations {
    /// Names of the slices of a Service.
    pub(super) fn slices_of(&self, service: &Named) -> impl Iterator<Item = &String> {
        self.slices.get(service).into_iter().flatten()
    }

    /// Services whose slices name a pod.
    pub(super) fn users_of(&self, pod: &Named) -> impl Iterator<Item = &Named> {
        self.users.get(pod).into_iter().flat_map(BTreeMap::keys)
    }

    /// The pod of a UID.
    pub(super) fn pod_of(&self, uid: &str) -> Option<&Named> {
        self.uids.get(uid)?.first()
    }

    /// An object comes.
    pub(super) fn link(&mut self, key: &ObjectKey, object: &Object) {
        if let Some(uid) = uid_of(object) {
            let named = Named {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            };
            self.uids.entry(uid).or_default().insert(named);
        }
        let Some(service) = service_of(object) else {
            return;
        };
        self.slices
            .entry(service.clone())
            .or_default()
            .insert(key.name.clone());
        for pod in pods_of(object) {
            *self
                .users
                .entry(pod)
                .or_default()
                .entry(service.clone())
                .or_default() += 1;
        }
    }

    /// An object goes, or another one takes its place. Notes what loses by it.
    pub(super) fn unlink(&mut self, key: &ObjectKey, object: &Object, changed: &mut Changed) {
        if let Some(uid) = uid_of(object) {
            let named = Named {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            };
            if let Some(names) = self.uids.get_mut(&uid) {
                names.remove(&named);
                if names.is_empty() {
                    self.uids.remove(&uid);
                }
            }
            // A pod that is replaced by one of the same name has gone.
            changed.pods.insert(uid);
        }
        let Some(service) = service_of(object) else {
            return;
        };
        // A slice that moves to another Service concerns the one that it leaves.
        changed.services.insert(service.clone());
        if let Some(names) = self.slices.get_mut(&service) {
            names.remove(&key.name);
            if names.is_empty() {
                self.slices.remove(&service);
            }
        }
        for pod in pods_of(object) {
            let Some(users) = self.users.get_mut(&pod) else {
                continue;
            };
            if let Some(count) = users.get_mut(&service) {
                *count -= 1;
                if *count == 0 {
                    users.remove(&service);
                }
            }
            if users.is_empty() {
                self.users.remove(&pod);
            }
        }
    }
}

/// The UID of a pod.
pub(super) fn uid_of(object: &Object) -> Option<String> {
    let Object::Pod(pod) = object else {
        return None;
    };
    pod.metadata.uid.clone()
}

/// The Service of a slice.
pub(super) fn service_of(object: &Object) -> Option<Named> {
    let slice = match object {
        Object::EndpointSlice(slice) => slice,
        Object::Serving(serving) => return Some(serving.service.clone()),
        _ => return None,
    };
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?.clone();
    Some(Named {
        namespace: slice.metadata.namespace.clone().unwrap_or_default(),
        name,
    })
}

/// The pods of a slice.
fn pods_of(object: &Object) -> Vec<Named> {
    let Object::EndpointSlice(slice) = object else {
        return Vec::new();
    };
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    let targets = slice
        .endpoints
        .iter()
        .flatten()
        .filter_map(|endpoint| endpoint.target_ref.as_ref());
    targets
        .filter(|target| target.kind.as_deref() == Some("Pod"))
        .filter_map(|target| target.name.clone())
        .map(|name| Named {
            namespace: namespace.clone(),
            name,
        })
        .collect()
}
