//! `ServiceTable`: what every node needs to know about one Service, written by the manager only.
//!
//! ```text
//! pods      the dictionary: everybody who serves or has served      ◀─ candidates name pods by index
//! groups    (family, ports that share one set of pods)
//!   shape, previous                                                 what the tables are made from
//!   candidates   pods with the target ports they have in this group ◀─ slots name candidates by index
//!   current, older, vacant   by slot: 0 … n−1 of the current shape, closed ones after them
//! ```
//!
//! Size: 5,000 pods in slots with 3 older occupants each and 2 families stay below 1 MiB of compact JSON as long as the
//! older ones are themselves among those 5,000 pods (a test keeps that). When every older occupant is a pod of its own
//! (20,000 pods) the object is larger than an API server takes; splitting it into numbered parts comes with the
//! Kubernetes source. A manifest directory has no such limit.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The tables of one Service, of the same name and namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bowline.dev",
    version = "v1alpha1",
    kind = "ServiceTable",
    namespaced,
    doc = "What every node needs to know about one Service. Written by the manager only.",
    derive = "PartialEq",
    shortname = "svct",
    category = "bowline",
    printcolumn = r#"{"name":"Version","type":"integer","jsonPath":".spec.version"}"#,
    printcolumn = r#"{"name":"VIPs","type":"string","jsonPath":".spec.vips"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceTableSpec {
    /// UID of the Service; versions of different UIDs do not compare.
    pub service_uid: String,
    /// Counts up with every change.
    pub version: u64,
    /// The addresses, at most one per family.
    pub vips: Vec<IpAddr>,
    /// Sources that may speak to it; everybody if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub source_ranges: Vec<IpNet>,
    /// Which pods packets go to.
    #[serde(default, skip_serializing_if = "is_default")]
    pub traffic_policy: TrafficPolicy,
    /// Which flows balancers find by pins.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tracking: Tracking,
    /// Names of nodes that pods refer to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Pods that serve or may still own flows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<Pod>,
    /// Ports by the set of pods that they share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// By name of a node that has handed flows off: how far its pins must be known before this version is applied. Only
    /// grows while the Node object exists.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub watermarks: BTreeMap<String, Watermark>,
}

/// How far a node's pins must be known.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Watermark {
    /// The start of its agent, in milliseconds since 1970.
    pub incarnation: u64,
    /// Number of its last change of pins that counts.
    pub seq: u64,
}

/// A pod, or an endpoint that is none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// UID of the pod; `endpoint:` and the address for an endpoint without a pod.
    pub uid: String,
    /// Its node: an index into `nodes`.
    pub node: u32,
    /// Its IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
}

/// `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum TrafficPolicy {
    /// To any pod.
    #[default]
    Cluster,
    /// To pods of the node where the packet enters.
    Local,
}

/// Which flows of a Service are pinned at every balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Tracking {
    /// Those that the tables of all nodes do not find.
    #[default]
    Auto,
    /// Each of them.
    All,
}

impl ServiceTableSpec {
    /// Whether each flow is pinned: it is asked for, or rows differ from node to node.
    pub fn tracks_all(&self) -> bool {
        self.tracking == Tracking::All || self.traffic_policy == TrafficPolicy::Local
    }
}

/// An IP family.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Family {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::IPv4,
            IpAddr::V6(_) => Self::IPv6,
        }
    }
}

/// A transport protocol.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP; target ports are the ports of the VIP.
    Sctp,
}

impl Protocol {
    /// The number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => lb_ebpf::wire::protocol::TCP,
            Self::Udp => lb_ebpf::wire::protocol::UDP,
            Self::Sctp => lb_ebpf::wire::protocol::SCTP,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Ports of one family that share one set of pods, and so one set of slots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Group {
    /// The family.
    pub family: Family,
    /// Its ports.
    pub ports: Vec<Port>,
    /// What the table of new flows is made from.
    pub shape: Shape,
    /// Tables that may still own flows, newest first, at most two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<PreviousShape>,
    /// The different lists of target ports, each one per port of the group.
    pub targets: Vec<Vec<u16>>,
    /// Candidates: indices into the table's `pods`.
    pub candidates: Vec<u32>,
    /// For each candidate an index into `targets`; left out when all are 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidate_targets: Vec<u32>,
    /// The candidate of new flows of each slot, none if nobody is usable: slots 0 … n−1 of the current shape, then closed
    /// ones that a previous shape still names.
    pub current: Vec<Option<u32>>,
    /// Candidates of each slot that may still own flows, newest first, at most three. Slots at the end that have none
    /// are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<Vec<u32>>,
    /// Slots without an occupant of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vacant: Vec<Vacancy>,
}

/// A port of the Service.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Its name; empty if the Service has one port without a name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What the flow hash covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Fields {
    /// Addresses, ports and protocol.
    #[default]
    FiveTuple,
    /// Addresses only: `sessionAffinity: ClientIP`.
    Addresses,
}

/// What a table is made from.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shape {
    /// How many slots.
    pub slots: u16,
    /// How many rows; a prime of the ladder.
    pub size: u32,
    /// Weights as runs of equal ones, in the order of slots; left out when all are equal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<WeightRun>,
    /// Seed of the permutations.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seed: u64,
    /// What the flow hash covers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fields: Fields,
}

/// Slots in a row that have the same weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightRun {
    /// The weight, 1 to 256.
    pub weight: u16,
    /// How many slots have it.
    pub slots: u16,
}

/// A table that may still own flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviousShape {
    /// What it was made from.
    pub shape: Shape,
    /// Candidates that may own flows under it; when the last of them is dead the table leaves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<u32>,
}

/// A slot without an occupant of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vacancy {
    /// The slot.
    pub slot: u16,
    /// Since when (Unix time in milliseconds); a stand-in serves meanwhile.
    pub since_ms: i64,
    /// The candidate that gets the slot back when it returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<u32>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde asks for"
)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    /// 5,000 pods in slots with three older occupants each, both families.
    fn largest() -> ServiceTableSpec {
        let pods = (0..5000_u32).map(|n| Pod {
            uid: format!("{n:08x}-6a0c-4b1e-9a65-1f6f3a8f6a10"),
            node: n % 1000,
            ipv4: Some(Ipv4Addr::from(0x0af0_0000 + n)),
            ipv6: Some(Ipv6Addr::from(
                0xfd00_0010_0244_0000_0000_0000_0000_0000 + u128::from(n),
            )),
        });
        let group = |family| Group {
            family,
            ports: vec![Port {
                name: "https".into(),
                port: 443,
                protocol: Protocol::Tcp,
            }],
            shape: Shape {
                slots: 5000,
                size: 524_287,
                ..Shape::default()
            },
            previous: vec![PreviousShape {
                shape: Shape {
                    slots: 4999,
                    size: 524_287,
                    ..Shape::default()
                },
                owners: (0..4999).collect(),
            }],
            targets: vec![vec![8443]],
            candidates: (0..5000).collect(),
            candidate_targets: vec![],
            current: (0..5000).map(Some).collect(),
            older: (0..5000)
                .map(|n| (1..4).map(|k| (n + k * 1000) % 5000).collect())
                .collect(),
            vacant: vec![],
        };
        ServiceTableSpec {
            service_uid: "0b9f5f0e-6a0c-4b1e-9a65-1f6f3a8f6a10".into(),
            version: 123_456,
            vips: vec![
                "198.51.100.1".parse().unwrap(),
                "2001:db8::1".parse().unwrap(),
            ],
            source_ranges: vec!["203.0.113.0/24".parse().unwrap()],
            traffic_policy: TrafficPolicy::Local,
            tracking: Tracking::All,
            nodes: (0..1000)
                .map(|n| format!("node-{n}.example.internal"))
                .collect(),
            pods: pods.collect(),
            groups: vec![group(Family::IPv4), group(Family::IPv6)],
            watermarks: (0..1000)
                .map(|n| {
                    let watermark = Watermark {
                        incarnation: 1_800_000_000_000 + n,
                        seq: 1_000_000 + n,
                    };
                    (format!("node-{n}.example.internal"), watermark)
                })
                .collect(),
        }
    }

    #[test]
    fn five_thousand_pods_with_history_fit_into_one_object() {
        let table = largest();
        let json = serde_json::to_string(&table).unwrap();
        assert!(json.len() < 1 << 20, "{} bytes", json.len());
        assert_eq!(
            serde_json::from_str::<ServiceTableSpec>(&json).unwrap(),
            table
        );
    }

    #[test]
    fn survives_yaml() {
        let mut spec = largest();
        spec.groups.truncate(1);
        spec.groups[0].older.truncate(2);
        let table = ServiceTable::new("web", spec);
        let yaml = serde_saphyr::to_string(&table).unwrap();
        assert_eq!(
            serde_saphyr::from_str::<ServiceTable>(&yaml).unwrap(),
            table
        );
    }

    #[test]
    fn has_a_schema() {
        let crd = ServiceTable::crd();
        assert_eq!(crd.spec.names.plural, "servicetables");
        assert!(crd.spec.versions[0].schema.is_some());
    }
}
