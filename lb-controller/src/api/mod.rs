//! Objects of our own, group `bowline.dev/v1alpha1`: as Kubernetes stores them, and as files of a manifest directory.
//! Types only; rules about them are in [`crate::model`].

pub mod address_pool;
pub mod bgp_advertisement;
pub mod bgp_peer;
pub mod community;
pub mod crds;
pub mod file;
pub mod l2_advertisement;
pub mod load_balancer_node;
pub mod node_drain;
pub mod selector;
pub mod service_table;
