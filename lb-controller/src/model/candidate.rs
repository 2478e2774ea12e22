//! Who can own flows: a pod with its address and its target ports in one group of ports.

use std::net::IpAddr;
use std::sync::Arc;

/// Start of the UID that an endpoint without a pod is given.
pub const ENDPOINT_UID_PREFIX: &str = "endpoint:";

/// A pod (or an endpoint that is none) and the target ports it has in a group. Another target port or address is
/// another candidate of the same pod.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Candidate {
    /// UID of the pod, see [`ENDPOINT_UID_PREFIX`].
    pub uid: Arc<str>,
    /// Name of its node.
    pub node: Arc<str>,
    /// Its address.
    pub address: IpAddr,
    /// Its target ports, one per port of the group.
    pub ports: Arc<[u16]>,
}

impl Candidate {
    /// Whether it is an endpoint without a pod, whose death nobody reports.
    pub fn is_podless(&self) -> bool {
        self.uid.starts_with(ENDPOINT_UID_PREFIX)
    }
}
