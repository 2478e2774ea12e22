//! `L2Advertisement`: which VIPs are announced by ARP and neighbour discovery, from which nodes and interfaces.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector;

/// Which VIPs are announced on the local network, and from where. A VIP is announced if any advertisement selects it.
#[derive(CustomResource, Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bowline.dev",
    version = "v1alpha1",
    kind = "L2Advertisement",
    doc = "Which VIPs are announced by ARP and neighbour discovery, and from where.",
    status = "L2AdvertisementStatus",
    derive = "PartialEq",
    shortname = "l2adv",
    category = "bowline",
    printcolumn = r#"{"name":"Pools","type":"string","jsonPath":".spec.pools"}"#,
    printcolumn = r#"{"name":"Interfaces","type":"string","jsonPath":".spec.interfaces"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Why","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].message","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct L2AdvertisementSpec {
    /// Names of pools whose addresses are announced. With `poolSelector`, either is enough; with neither, all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 253)))]
    pub pools: Vec<String>,
    /// Labels of pools whose addresses are announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector::schema")]
    pub pool_selector: Option<LabelSelector>,
    /// Labels of Services whose addresses are announced; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector::schema")]
    pub service_selector: Option<LabelSelector>,
    /// Labels of nodes that announce; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector::schema")]
    pub node_selector: Option<LabelSelector>,
    /// Interfaces that announce; all with our programs if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 15)))]
    pub interfaces: Vec<String>,
}

/// What the manager says about an advertisement.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L2AdvertisementStatus {
    /// `Ready`: what it names exists.
    #[serde(default)]
    #[schemars(schema_with = "selector::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Types of conditions of an advertisement.
pub mod condition {
    /// What it names exists.
    pub const READY: &str = "Ready";
}
