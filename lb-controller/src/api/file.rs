//! Files that the manager and the agents write below `DIR/.bowline`, beside the `ServiceTable`s.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `apiVersion` of everything here.
pub const API_VERSION: &str = "bowline.dev/v1alpha1";

/// Name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Metadata {
    /// Namespace; none for nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

/// `status/<namespace>_<service>.yaml`: what in a cluster is the Service's status subresource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `ServiceStatus`.
    pub kind: String,
    /// The Service.
    pub metadata: Metadata,
    /// Its addresses, at most one per family; empty while it is pending.
    #[serde(default)]
    pub vips: Vec<IpAddr>,
    /// Conditions, one per type.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What is wrong and what to change, one sentence each.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl ServiceStatus {
    /// The value of `kind`.
    pub const KIND: &str = "ServiceStatus";
}

/// Condition types on a Service.
pub mod condition {
    /// An address is known.
    pub const ADDRESS_ALLOCATED: &str = "bowline.dev/AddressAllocated";
    /// A `ServiceTable` is written.
    pub const PROGRAMMED: &str = "bowline.dev/Programmed";
}

/// A condition as Kubernetes has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// See [`condition`].
    #[serde(rename = "type")]
    pub kind: String,
    /// True or not.
    pub status: ConditionStatus,
    /// One word in camel case, for machines.
    pub reason: String,
    /// One sentence, for people.
    pub message: String,
    /// When `status` last changed.
    pub last_transition_time: Timestamp,
}

/// Truth of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
}

/// `nodes/<node>.yaml`: an agent about itself. Not written for endpoint changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerNode {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `LoadBalancerNode`.
    pub kind: String,
    /// The node.
    pub metadata: Metadata,
    /// `balancer`, `owner` or `both`.
    pub role: String,
    /// Version of the agent.
    pub version: String,
    /// Peer key and outer source, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Interfaces with our programs, and the mode: `eth0 native`.
    #[serde(default)]
    pub interfaces: Vec<String>,
}

impl LoadBalancerNode {
    /// The value of `kind`.
    pub const KIND: &str = "LoadBalancerNode";
}
