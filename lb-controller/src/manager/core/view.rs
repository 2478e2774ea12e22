//! The cluster as the model asks about it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as k8s;

use crate::model::endpoint::Cluster;
use crate::source::index::Index;

/// What the model asks about the cluster.
pub(super) struct View<'a> {
    /// All objects.
    pub(super) index: &'a Index,
    /// Whoever is not among them does not exist.
    pub(super) complete: bool,
    /// Nodes whose pods are to get no new flows.
    pub(super) leaving: &'a BTreeSet<String>,
}

impl Cluster for View<'_> {
    fn pod(&self, uid: &str) -> Option<&k8s::Pod> {
        self.index.pod_by_uid(uid)
    }

    fn has_node(&self, name: &str) -> bool {
        self.index.has_node(name)
    }

    fn is_leaving(&self, node: &str) -> bool {
        self.leaving.contains(node)
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}
