//! `BGPPeer`: a router that nodes tell about VIPs by BGP.

use std::net::IpAddr;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selector;

/// A router that nodes tell about VIPs by BGP. It is told those that a `BGPAdvertisement` selects.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bowline.dev",
    version = "v1alpha1",
    kind = "BGPPeer",
    doc = "A router that nodes tell about VIPs by BGP.",
    status = "BGPPeerStatus",
    derive = "PartialEq",
    category = "bowline",
    printcolumn = r#"{"name":"Address","type":"string","jsonPath":".spec.peerAddress"}"#,
    printcolumn = r#"{"name":"PeerASN","type":"integer","jsonPath":".spec.peerASN"}"#,
    printcolumn = r#"{"name":"MyASN","type":"integer","jsonPath":".spec.myASN"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Why","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].message","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.sourceAddress) || !isIP(self.sourceAddress) || !isIP(self.peerAddress) || ip(self.sourceAddress).family() == ip(self.peerAddress).family()",
        "message": "sourceAddress and peerAddress must be of one family",
    },
    {
        "rule": "!has(self.holdTime) || self.holdTime == 0 || self.holdTime >= 3",
        "message": "holdTime must be 0 or at least 3 (RFC 4271)",
    },
    {
        "rule": "!has(self.keepaliveTime) || !has(self.holdTime) || self.holdTime == 0 || self.keepaliveTime < self.holdTime",
        "message": "keepaliveTime must be less than holdTime",
    },
]))]
pub struct BGPPeerSpec {
    /// Address of the router. VIPs of its family are told.
    #[schemars(with = "String", length(max = 45), extend("x-kubernetes-validations" = [{
        "rule": "isIP(self)",
        "message": "must be an IPv4 or IPv6 address",
    }]))]
    pub peer_address: IpAddr,
    /// Number of the router's autonomous system.
    #[serde(rename = "peerASN")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub peer_asn: NonZeroU32,
    /// Number of the nodes' autonomous system. Local preference counts only if both are the same.
    #[serde(rename = "myASN")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub my_asn: NonZeroU32,
    /// Port of the router; 179 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<NonZeroU16>,
    /// Labels of nodes that speak to it; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector::schema")]
    pub node_selector: Option<LabelSelector>,
    /// Address of a node that it speaks from; the one towards the router if left out. Useful with a `nodeSelector` for one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 45), extend("x-kubernetes-validations" = [{
        "rule": "isIP(self)",
        "message": "must be an IPv4 or IPv6 address",
    }]))]
    pub source_address: Option<IpAddr>,
    /// So many hops away the router may be; it is on a network of the node if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub ebgp_multihop: Option<NonZeroU8>,
    /// Key of the Secret `bowline-bgp` that has the password of TCP's MD5 signatures (RFC 2385); none if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub password_key: Option<String>,
    /// After so many seconds of silence the session is down; 90 if left out. The shorter of both sides' counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_535))]
    pub hold_time: Option<u16>,
    /// Every so many seconds something is said; a third of the hold time if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub keepalive_time: Option<NonZeroU16>,
    /// Tells the router within a fraction of a second that a node is dead (RFC 5880); not used if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// Asks the router to keep routes while the routing daemon restarts (RFC 4724). With `bfd` it will not: BFD's sessions end with
    /// the daemon.
    #[serde(default = "yes")]
    pub graceful_restart: bool,
}

fn yes() -> bool {
    true
}

/// How fast a dead node is noticed: after `intervalMilliseconds` times `multiplier`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bfd {
    /// Every so many milliseconds a packet is sent and expected.
    #[serde(default = "interval")]
    #[schemars(range(min = 10, max = 60_000))]
    pub interval_milliseconds: u32,
    /// So many missing in a row mean death.
    #[serde(default = "multiplier")]
    #[schemars(range(min = 2, max = 255))]
    pub multiplier: u8,
}

/// With the multiplier, a third of a second: short of anything that a client notices, long against delays of scheduling.
fn interval() -> u32 {
    100
}

fn multiplier() -> u8 {
    3
}

impl Default for Bfd {
    fn default() -> Self {
        Self {
            interval_milliseconds: interval(),
            multiplier: multiplier(),
        }
    }
}

/// Shortest and longest interval of BFD, as the schema says: BIRD takes no less, and more than a minute is no detection.
const INTERVAL_MS: std::ops::RangeInclusive<u32> = 10..=60_000;
/// Least multiplier: one lost packet is no death.
const MULTIPLIER_MIN: u8 = 2;
/// Least hold time but none (RFC 4271, 4.2).
const HOLD_TIME_MIN: u16 = 3;

impl BGPPeerSpec {
    /// Why it can not be used, and what to change: what an API server sees to, for those that come from elsewhere.
    pub fn fault(&self) -> Option<String> {
        let source = self.source_address;
        if source.is_some_and(|source| source.is_ipv4() != self.peer_address.is_ipv4()) {
            return Some(
                "spec.sourceAddress and spec.peerAddress must be of one family".to_owned(),
            );
        }
        if let Some(hold) = self.hold_time.filter(|hold| *hold != 0) {
            if hold < HOLD_TIME_MIN {
                return Some(format!(
                    "spec.holdTime must be 0 or at least {HOLD_TIME_MIN}"
                ));
            }
            if self.keepalive_time.is_some_and(|time| time.get() >= hold) {
                return Some("spec.keepaliveTime must be less than spec.holdTime".to_owned());
            }
        }
        if let Some(key) = &self.password_key {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if key.is_empty() || !key.chars().all(is_plain) || [".", ".."].contains(&key.as_str()) {
                return Some(
                    "spec.passwordKey must consist of letters, digits, '-', '_' and '.'".to_owned(),
                );
            }
        }
        let bfd = self.bfd?;
        if !INTERVAL_MS.contains(&bfd.interval_milliseconds) {
            return Some(format!(
                "spec.bfd.intervalMilliseconds must be from {} to {}",
                INTERVAL_MS.start(),
                INTERVAL_MS.end()
            ));
        }
        (bfd.multiplier < MULTIPLIER_MIN)
            .then(|| format!("spec.bfd.multiplier must be at least {MULTIPLIER_MIN}"))
    }
}

/// What the manager says about a peer.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPPeerStatus {
    /// `Ready`: what it names exists. How its sessions are, `lbctl status` of a node tells.
    #[serde(default)]
    #[schemars(schema_with = "selector::conditions_schema")]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(more: &str) -> Option<String> {
        let yaml = format!("{{peerAddress: 192.0.2.1, peerASN: 64500, myASN: 64501, {more}}}");
        let spec: BGPPeerSpec = serde_saphyr::from_str(&yaml).unwrap();
        spec.fault()
    }

    #[test]
    fn what_an_api_server_would_refuse_is_refused_of_files_too() {
        for good in [
            "port: 1179",
            "holdTime: 0, keepaliveTime: 5",
            "holdTime: 3, keepaliveTime: 1",
            "sourceAddress: 192.0.2.9",
            "passwordKey: rack-a.1_x",
            "bfd: {}",
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
        for (wrong, field) in [
            ("sourceAddress: '2001:db8::1'", "sourceAddress"),
            ("holdTime: 2", "holdTime"),
            ("holdTime: 9, keepaliveTime: 9", "keepaliveTime"),
            ("passwordKey: '../x'", "passwordKey"),
            ("passwordKey: '..'", "passwordKey"),
            ("passwordKey: ''", "passwordKey"),
            ("bfd: {intervalMilliseconds: 1}", "intervalMilliseconds"),
            ("bfd: {multiplier: 1}", "multiplier"),
        ] {
            let sentence = fault(wrong).unwrap_or_default();
            assert!(sentence.contains(field), "{wrong}: {sentence:?}");
        }
    }

    #[test]
    fn what_is_left_out_is_as_documented() {
        let yaml = "{peerAddress: 192.0.2.1, peerASN: 64500, myASN: 64501, bfd: {}}";
        let spec: BGPPeerSpec = serde_saphyr::from_str(yaml).unwrap();
        assert!(spec.graceful_restart);
        assert_eq!(spec.bfd, Some(Bfd::default()));
        assert_eq!(spec.port, None);
    }
}
