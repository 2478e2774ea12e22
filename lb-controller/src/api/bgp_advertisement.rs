//! `BGPAdvertisement`: which VIPs routers are told by BGP, and with which attributes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::community::{COMMUNITY_PATTERN, Community, LARGE_COMMUNITY_PATTERN, LargeCommunity};
use super::selector;

/// Which VIPs routers are told by BGP, and with which attributes. A VIP that several select has the communities of all, and the
/// highest preference.
#[derive(CustomResource, Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bowline.dev",
    version = "v1alpha1",
    kind = "BGPAdvertisement",
    doc = "Which VIPs routers are told by BGP, and with which attributes.",
    status = "BGPAdvertisementStatus",
    derive = "PartialEq",
    shortname = "bgpadv",
    category = "bowline",
    printcolumn = r#"{"name":"Pools","type":"string","jsonPath":".spec.pools"}"#,
    printcolumn = r#"{"name":"Peers","type":"string","jsonPath":".spec.peers"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Why","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].message","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct BGPAdvertisementSpec {
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
    /// Names of `BGPPeer`s that are told; all if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 253)))]
    pub peers: Vec<String>,
    /// Communities (RFC 1997) of the routes, such as `64500:100`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 32), inner(length(max = 11), regex(pattern = COMMUNITY_PATTERN)))]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.all(c, c.split(':').all(n, int(n) <= 65535))",
        "message": "each community must be two numbers up to 65535, such as 64500:100",
    }]))]
    pub communities: Vec<Community>,
    /// Large communities (RFC 8092) of the routes, such as `64500:1:2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 32), inner(length(max = 32), regex(pattern = LARGE_COMMUNITY_PATTERN)))]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.all(c, c.split(':').all(n, int(n) <= 4294967295))",
        "message": "each large community must be three numbers up to 4294967295, such as 64500:1:2",
    }]))]
    pub large_communities: Vec<LargeCommunity>,
    /// Local preference of the routes, for peers of the nodes' own autonomous system; 100 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_preference: Option<u32>,
    /// IPv4 addresses are announced by prefixes of this length, as far as these are inside the pool; 32 if left out. VIPs of policy
    /// Local are announced one by one all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub aggregation_length: Option<u8>,
    /// The same for IPv6 addresses; 128 if left out.
    #[serde(
        default,
        rename = "aggregationLengthV6",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = 128))]
    pub aggregation_length_v6: Option<u8>,
}

impl BGPAdvertisementSpec {
    /// Why it can not be used, and what to change: what an API server sees to, for those that come from elsewhere.
    pub fn fault(&self) -> Option<String> {
        let is_out = |length: Option<u8>, most: u8| {
            length.is_some_and(|length| !(1..=most).contains(&length))
        };
        if is_out(self.aggregation_length, 32) {
            return Some("spec.aggregationLength must be from 1 to 32".to_owned());
        }
        is_out(self.aggregation_length_v6, 128)
            .then(|| "spec.aggregationLengthV6 must be from 1 to 128".to_owned())
    }
}

/// What the manager says about an advertisement.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPAdvertisementStatus {
    /// `Ready`: what it names exists.
    #[serde(default)]
    #[schemars(schema_with = "selector::conditions_schema")]
    pub conditions: Vec<Condition>,
}
