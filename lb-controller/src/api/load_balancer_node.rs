//! `LoadBalancerNode`: an agent about its own node; of the same name as the Node. Not written for endpoint changes.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector;

/// A node with an agent, as that agent sees it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bowline.dev",
    version = "v1alpha1",
    kind = "LoadBalancerNode",
    doc = "A node with an agent, as that agent sees it. Written by the agent only.",
    status = "LoadBalancerNodeStatus",
    derive = "PartialEq",
    shortname = "lbnode",
    category = "bowline",
    printcolumn = r#"{"name":"Role","type":"string","jsonPath":".spec.role"}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".spec.version"}"#,
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"XDP","type":"string","jsonPath":".spec.interfaces[*].xdp"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerNodeSpec {
    /// What the node does.
    pub role: NodeRole,
    /// Version of the agent.
    pub version: String,
    /// Peer key and outer source, at most one per family.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Interfaces with our programs.
    #[serde(default)]
    pub interfaces: Vec<NodeInterface>,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Clients' packets enter here.
    Balancer,
    /// Its pods own flows.
    Owner,
    /// Both.
    Both,
}

/// An interface with our programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeInterface {
    /// Its name.
    pub name: String,
    /// How XDP is attached.
    pub xdp: XdpMode,
    /// Its MAC address, `02:00:00:00:00:01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Networks that it reaches without a router.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub subnets: Vec<IpNet>,
}

/// How XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// Behind the driver: slower.
    Generic,
    /// Not at all: only what pods send is handled.
    None,
}

/// What an agent says about how it is.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerNodeStatus {
    /// `Ready`: all Services are programmed.
    #[serde(default)]
    #[schemars(schema_with = "selector::conditions_schema")]
    pub conditions: Vec<Condition>,
}
