//! `NodeDrain`: a node is to be left by everybody, so that it may be rebooted; of the same name as the Node. It lasts until it
//! is deleted, which puts the node to use again.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector;

/// How the drain of a node is done. What was asked for does not change: delete it and ask anew.
#[derive(
    CustomResource, Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "bowline.dev",
    version = "v1alpha1",
    kind = "NodeDrain",
    doc = "A node is to be left by everybody, so that it may be rebooted; of the same name as the Node. Deleting it puts the node to use again.",
    status = "NodeDrainStatus",
    derive = "PartialEq",
    shortname = "lbdrain",
    category = "bowline",
    validation = Rule::new("self.spec == oldSelf.spec").message("delete this drain and ask anew"),
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Open","type":"integer","jsonPath":".status.connections.open"}"#,
    printcolumn = r#"{"name":"SafeToReboot","type":"string","jsonPath":".status.conditions[?(@.type=='SafeToReboot')].status"}"#,
    printcolumn = r#"{"name":"Waits","type":"string","jsonPath":".status.waitsFor","priority":1}"#,
    printcolumn = r#"{"name":"By","type":"string","jsonPath":".spec.requestedBy","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeDrainSpec {
    /// Only what enters at the node goes elsewhere; its pods keep serving. Ends in `BalancerDrained`, never in `SafeToReboot`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub balancer_only: bool,
    /// Goes on although something is in the way: a node that does not answer, the last announcer of a VIP.
    #[serde(default, skip_serializing_if = "is_default")]
    pub force: bool,
    /// Nothing is done but to look what would be in the way and what would happen; `status.findings` tells.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dry_run: bool,
    /// After so many seconds a drain that is not done is given up, and the node is put to use again; never if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: Option<u32>,
    /// So many seconds routers take to send packets elsewhere; 5 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub convergence_seconds: Option<u32>,
    /// Who asked, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub requested_by: Option<String>,
    /// What asked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub trigger: Trigger,
}

/// Longest time after which a drain may be given up: a week, as the schema says.
pub const TIMEOUT_SECONDS_MAX: u32 = 604_800;
/// Longest time that routers may be given: an hour, as the schema says.
pub const CONVERGENCE_SECONDS_MAX: u32 = 3600;

impl NodeDrain {
    /// Why it can not be used, and what to change: what an API server sees to, for those that come from elsewhere. Its UID is what
    /// tells a drain from a later one of the same node.
    pub fn fault(&self) -> Option<String> {
        let is_out = |seconds: Option<u32>, least: u32, most: u32| {
            seconds.is_some_and(|seconds| !(least..=most).contains(&seconds))
        };
        if self.metadata.uid.as_deref().unwrap_or_default().is_empty() {
            return Some(
                "has no metadata.uid; write one, and another one for each new drain of the node"
                    .to_owned(),
            );
        }
        if is_out(self.spec.timeout_seconds, 1, TIMEOUT_SECONDS_MAX) {
            return Some(format!(
                "spec.timeoutSeconds must be from 1 to {TIMEOUT_SECONDS_MAX}; leave it out to never give up"
            ));
        }
        is_out(self.spec.convergence_seconds, 0, CONVERGENCE_SECONDS_MAX).then(|| {
            format!(
                "spec.convergenceSeconds must be from 0 to {CONVERGENCE_SECONDS_MAX}; leave it out for 5"
            )
        })
    }
}

/// What asked for a drain. All but `command` are asked for, and taken back, by the manager, if it is told to heed them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// Somebody, with `lbctl drain` or by making this object.
    #[default]
    Command,
    /// The Node's label `node.kubernetes.io/exclude-from-external-load-balancers`.
    ExcludeLabel,
    /// The Node's taint `ToBeDeletedByClusterAutoscaler`.
    AutoscalerTaint,
    /// The Node's kubelet says that it shuts down.
    Shutdown,
}

/// How far a drain is. Whatever is empty is written as such: a merge patch would leave what was there.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeDrainStatus {
    /// Where it stands. What agents go by.
    #[serde(default)]
    pub phase: Phase,
    /// Since when it stands there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub since: Option<Timestamp>,
    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub started_at: Option<Timestamp>,
    /// What it waits for, one sentence each.
    #[serde(default)]
    pub waits_for: Vec<String>,
    /// What was found before it began.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Connections of the node's pods.
    #[serde(default)]
    pub connections: Connections,
    /// Nodes that the connections are handed off to.
    #[serde(default)]
    pub balancers: Vec<Receiver>,
    /// What happened, oldest first; the last 32.
    #[serde(default)]
    pub log: Vec<Entry>,
    /// `SafeToReboot`, `BalancerDrained`.
    #[serde(default)]
    #[schemars(schema_with = "selector::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// Where a drain stands; in the order in which they come. Each is entered after all that the one before has asked for is done.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
pub enum Phase {
    /// It is looked at whether something is in the way.
    #[default]
    Preflight,
    /// The node's pods get no new connections, but where nobody else could serve.
    Exclude,
    /// The node pins all connections of its pods at every other.
    HandOff,
    /// Its announcements are the last that routers should choose.
    Deprefer,
    /// It announces nothing; what still arrives is forwarded.
    Withdraw,
    /// Until nothing arrives any more and its connections have ended.
    Quiesce,
    /// Done.
    Drained,
    /// Given up, and the node was put to use again.
    Failed,
}

/// Something to know before a drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Whether it is in the way, unless forced.
    pub blocks: bool,
    /// One sentence.
    pub message: String,
}

/// Connections of a node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// That were handed off.
    #[serde(default)]
    pub handed_off: u64,
    /// That are open now.
    #[serde(default)]
    pub open: u64,
}

/// A node that connections are handed off to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Receiver {
    /// Its name.
    pub node: String,
    /// How many changes it has still to acknowledge; none while the drained node does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
    /// Whether its agent is heard.
    pub heard: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// What, one sentence.
    pub message: String,
}

/// Types of conditions of a drain.
pub mod condition {
    /// Powering the node off breaks no connection.
    pub const SAFE_TO_REBOOT: &str = "SafeToReboot";
    /// Nothing enters at the node any more.
    pub const BALANCER_DRAINED: &str = "BalancerDrained";
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Self; 8] = [
        Self::Preflight,
        Self::Exclude,
        Self::HandOff,
        Self::Deprefer,
        Self::Withdraw,
        Self::Quiesce,
        Self::Drained,
        Self::Failed,
    ];

    /// Whether nothing more happens by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Drained | Self::Failed)
    }

    /// Whether the node is put to use, or put to use again.
    pub fn is_in_use(self) -> bool {
        matches!(self, Self::Preflight | Self::Failed)
    }

    /// Whether a drain has come to `phase`, and has not been given up.
    pub fn has_reached(self, phase: Self) -> bool {
        self != Self::Failed && self >= phase
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
