//! `AddressPool`: addresses that Services may get, written by whoever runs the cluster. Status is the manager's.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector;

/// Addresses that Services may get.
#[derive(CustomResource, Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bowline.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    doc = "Addresses that Services may get.",
    status = "AddressPoolStatus",
    derive = "PartialEq",
    shortname = "pool",
    category = "bowline",
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"Auto","type":"boolean","jsonPath":".spec.autoAssign"}"#,
    printcolumn = r#"{"name":"Assigned","type":"integer","jsonPath":".status.assigned"}"#,
    printcolumn = r#"{"name":"Free","type":"integer","jsonPath":".status.free"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Why","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].message","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// Ranges: each a CIDR (`198.51.100.0/28`) or a first and a last address (`198.51.100.10-198.51.100.20`).
    #[schemars(length(min = 1, max = 64), inner(length(max = 93)))]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.all(r, isCIDR(r) || (r.split('-').size() == 2 && r.split('-').all(a, isIP(a))))",
        "message": "each entry must be a CIDR such as 198.51.100.0/28, or first-last such as 198.51.100.10-198.51.100.20",
    }]))]
    pub addresses: Vec<String>,
    /// Leaves out IPv4 addresses that end in .0 or .255, which some networks refuse. They are not given even on request.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    /// Whether Services that ask for no address get one of these; otherwise only those that ask.
    #[serde(default = "yes")]
    pub auto_assign: bool,
    /// Among pools that a Service may use, the one with the highest priority that has a free address is used; of equal
    /// ones the first by name.
    #[serde(default)]
    pub priority: i32,
    /// Namespaces whose Services may use the pool. With `namespaceSelector`, either is enough; with neither, all may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 63)))]
    pub service_namespaces: Vec<String>,
    /// Labels of namespaces whose Services may use the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector::schema")]
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of Services that may use the pool; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector::schema")]
    pub service_selector: Option<LabelSelector>,
    /// Whether Services with one sharing key must be of one namespace to share an address of this pool.
    #[serde(default)]
    pub sharing: Sharing,
}

fn yes() -> bool {
    true
}

/// Who may share an address by `bowline.dev/sharing-key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Sharing {
    /// Services of one namespace.
    #[default]
    SameNamespace,
    /// Services of any namespaces.
    AnyNamespace,
}

/// What the manager says about a pool.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolStatus {
    /// `Ready`: its addresses are used. `Shrunk`: Services keep addresses that it no longer has.
    #[serde(default)]
    #[schemars(schema_with = "selector::conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Addresses that Services have.
    #[serde(default)]
    pub assigned: u32,
    /// Addresses that are free; 4294967295 stands for that many and more.
    #[serde(default)]
    pub free: u32,
}

/// Types of conditions of a pool.
pub mod condition {
    /// Its addresses are used.
    pub const READY: &str = "Ready";
    /// Services keep addresses that it no longer has.
    pub const SHRUNK: &str = "Shrunk";
}
