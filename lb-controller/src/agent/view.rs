//! What the agent sees, in the words of the model and of the maps. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use lb_ebpf::abi;
use lb_ebpf::wire::{Addr6, Be16, Be32};

use super::core::Core;
use crate::admin::Role;
use crate::api::file::{API_VERSION, LoadBalancerNode, Metadata};
use crate::api::load_balancer_node::{LoadBalancerNodeSpec, NodeInterface, NodeRole, XdpMode};
use crate::dataplane::{Contents, links};
use crate::liveness::{Liveness, State};
use crate::model::backends::{NodeView, View};
use crate::model::endpoint::is_alive;
use crate::model::secret::{self, EncapSecret};
use crate::model::template::{NodeAddresses, Sender};
use crate::source::secret::ClusterSecrets;

/// Relays per second that this node sends at most: a third of what one processor can, so that a flood of packets of
/// unknown flows neither starves the rest nor is amplified without bound.
const RELAYS_PER_SECOND: u64 = 500_000;
/// ICMP errors per second that this node sends at most: a quarter of it on one receive queue, which is Linux's own limit
/// (`net.ipv4.icmp_msgs_per_sec`).
const ICMP_ERRORS_PER_SECOND: u32 = 4_000;
/// The share of all pins that half-open flows of all nodes may take at a balancer: a flood must leave room for those of real ones.
const HALF_OPEN_SHARE: u32 = 2;
/// How long such a flow keeps its pin at most: until its pod has sent its last SYN-ACK, half a minute after the first
/// (`net.ipv4.tcp_synack_retries`), and a look through the flows has found that nothing came of it.
const HALF_OPEN_PIN_SECONDS: u32 = 60;
/// Four, since each processor may send a quarter.
const HALF_OPEN_REPORTS_MIN: u32 = 4;
/// Flows that a node with few pins reports per second while they are half-open: as many as may begin while many slots deviate.
const HALF_OPEN_REPORTS_MAX: u32 = 1_000;
/// What an uplink takes if nothing is known of it.
const MTU_DEFAULT: u32 = 1500;
/// Headers that an MSS does not count: IP and TCP.
const TCP_HEADERS: [u32; 2] = [20 + 20, 40 + 20];
/// Smallest MSS that is ever told: below it are only misconfigured uplinks (RFC 879, RFC 8200).
const MSS_MIN: [u32; 2] = [536, 1220];

/// Networks that are told of one interface, so that the node's object stays small whatever routes there are.
const SUBNETS_MAX: usize = 64;

/// The first internal address of each family.
pub(super) fn addresses(node: &Node) -> NodeAddresses {
    let all = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    let internal = all
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok());
    internal.collect()
}

/// Both, as a list.
pub(super) fn list(NodeAddresses { v4, v6 }: NodeAddresses) -> Vec<IpAddr> {
    [v4.map(IpAddr::V4), v6.map(IpAddr::V6)]
        .into_iter()
        .flatten()
        .collect()
}

/// Addresses of this node: as told, else of its Node object, else as last known.
pub(super) fn own_addresses(core: &Core) -> NodeAddresses {
    if !core.settings.addresses.is_empty() {
        return core.own;
    }
    let own = core
        .index
        .nodes()
        .find(|node| node.metadata.name.as_deref() == Some(&core.settings.node));
    own.map(addresses)
        .filter(|found| *found != NodeAddresses::default())
        .unwrap_or(core.own)
}

/// The configuration of the programs.
pub(super) fn config(core: &Core, secrets: &ClusterSecrets) -> abi::Config {
    let own = core.own;
    let mtu = core.uplink_mtu().unwrap_or(MTU_DEFAULT);
    let encap = secret::encap_secret(secrets.encap);
    abi::Config {
        hash_key: secret::hash_key(&secrets.hash),
        secrets: [
            encap,
            secrets.encap_previous.map_or(encap, secret::encap_secret),
        ],
        relays_per_second: RELAYS_PER_SECOND,
        node4: own.v4.map_or(Be32::default(), |address| {
            Be32::from_bytes(address.octets())
        }),
        node6: own.v6.map_or(Addr6::default(), |address| {
            Addr6::from_bytes(address.octets())
        }),
        geneve_port: Be16::new(abi::GENEVE_PORT),
        mss4: mss(mtu, own, 0),
        mss6: mss(mtu, own, 1),
        flags: config_flags(core),
        icmp_errors_per_second: ICMP_ERRORS_PER_SECOND,
        opinions: core.installed.config().opinions,
        half_open_reports_per_second: half_open_reports(core),
        pad: 0,
    }
}

/// Flows that this node reports per second while they are half-open. What is left out is reported when its client answers.
pub(super) fn half_open_reports(core: &Core) -> u32 {
    let nodes = u32::try_from(core.agents.len() + 1).unwrap_or(u32::MAX);
    let before = core.installed.config().half_open_reports_per_second;
    let pins = u32::try_from(core.own_pin_count()).unwrap_or(u32::MAX);
    half_open_rate(core.settings.pins, nodes, pins, before)
}

/// Of one of so many nodes, which has so many pins of its own and has reported at that rate before. One that has its share of
/// pins may be flooded: from then on it makes no more than end meanwhile, until a quarter of them is gone.
fn half_open_rate(room: u32, nodes: u32, pins: u32, before: u32) -> u32 {
    let share = room / HALF_OPEN_SHARE / nodes;
    let slow = (share / HALF_OPEN_PIN_SECONDS).max(HALF_OPEN_REPORTS_MIN);
    let may_have = if before == slow {
        share - share / 4
    } else {
        share
    };
    if pins < may_have {
        HALF_OPEN_REPORTS_MAX
    } else {
        slow
    }
}

/// What this node does not do.
fn config_flags(core: &Core) -> u16 {
    let relay = if core.settings.relay {
        0
    } else {
        abi::config_flag::RELAY_OFF
    };
    let pins = match core.settings.role {
        Role::Owner => abi::config_flag::NO_PINS,
        Role::Balancer | Role::Both | Role::Manager => 0,
    };
    relay | pins
}

/// Largest MSS so that a client's segments fit with outer headers. `family` is 0 for IPv4.
fn mss(mtu: u32, own: NodeAddresses, family: usize) -> u16 {
    let overhead = if family == 0 && own.v4.is_some() {
        abi::OVERHEAD_V4
    } else {
        abi::OVERHEAD_V6
    };
    let room = mtu.saturating_sub(u32::from(overhead) + TCP_HEADERS[family]);
    u16::try_from(room.max(MSS_MIN[family])).unwrap_or(u16::MAX)
}

/// What the model needs to know of this node and the others.
pub(super) fn of(core: &Core, secrets: &ClusterSecrets) -> View {
    let own = core.settings.node.as_str();
    let named = core.index.nodes().filter_map(|node| {
        let name = Arc::from(node.metadata.name.as_deref()?);
        Some((name, addresses(node)))
    });
    let unnamed = &core.announcing.liveness.unnamed;
    let unnamed = unnamed.iter().map(|(name, node)| (Arc::clone(name), *node));
    // What an object says of a node counts more.
    let others = unnamed.chain(named).filter(|(name, _)| **name != *own);
    let nodes = others.map(|(name, addresses): (Arc<str>, _)| {
        let hop = |address: Option<IpAddr>| core.way_to(address?);
        let view = NodeView {
            addresses,
            hop4: hop(addresses.v4.map(Into::into)),
            hop6: hop(addresses.v6.map(Into::into)),
        };
        (name, view)
    });
    View {
        node: own.into(),
        sender: Sender {
            node: core.own,
            secret: secret::encap_secret(secrets.encap),
            geneve_port: abi::GENEVE_PORT,
        },
        nodes: nodes.collect(),
        hands_off: core.settings.hands_off,
        suspected: suspected(&core.announcing.liveness),
    }
}

/// Nodes that seem to be down.
pub(super) fn suspected(liveness: &Liveness) -> BTreeSet<Arc<str>> {
    let peers = liveness.peers.iter();
    peers
        .filter(|(_, peer)| peer.state == State::Down)
        .map(|(node, _)| Arc::clone(node))
        .collect()
}

/// Before anything is known.
pub(super) fn nobody(node: &str) -> View {
    let sender = Sender {
        node: NodeAddresses::default(),
        secret: EncapSecret::default(),
        geneve_port: abi::GENEVE_PORT,
    };
    View {
        node: node.into(),
        sender,
        nodes: HashMap::new(),
        hands_off: false,
        suspected: BTreeSet::new(),
    }
}

/// UIDs of the pods that are alive on this node. Objects do not always say on which node a pod is, so all are taken:
/// pods elsewhere have no local port.
pub(super) fn living(core: &Core) -> HashSet<String> {
    core.index
        .pods()
        .filter(|pod| is_alive(pod))
        .filter_map(|pod| pod.metadata.uid.clone())
        .collect()
}

/// How many entries differ.
pub(super) fn drift(found: &Contents, wanted: &Contents) -> u64 {
    let Contents {
        backends,
        regions,
        sets,
        slots,
        services,
        locals,
        pins,
        peers,
        source_ranges,
        announced,
        config,
    } = found;
    differing(backends, &wanted.backends)
        + differing(regions, &wanted.regions)
        + differing(sets, &wanted.sets)
        + differing(slots, &wanted.slots)
        + differing(services, &wanted.services)
        + differing(locals, &wanted.locals)
        + differing(pins, &wanted.pins)
        + differing(peers, &wanted.peers)
        + source_ranges
            .symmetric_difference(&wanted.source_ranges)
            .count() as u64
        + differing(announced, &wanted.announced)
        + u64::from(*config != wanted.config)
}

fn differing<'a, K: 'a + Eq + Hash, V: 'a + PartialEq>(
    found: impl IntoIterator<Item = (&'a K, &'a V)>,
    wanted: impl IntoIterator<Item = (&'a K, &'a V)>,
) -> u64 {
    let mut wanted: HashMap<_, _> = wanted.into_iter().collect();
    let wrong = found
        .into_iter()
        .filter(|(key, value)| wanted.remove(key) != Some(value))
        .count();
    (wrong + wanted.len()) as u64
}

/// What the node's object says.
pub(super) fn node_object(core: &Core) -> LoadBalancerNodeSpec {
    let interfaces = core.interfaces.iter().map(|interface| {
        let link = core.links.get(interface.ifindex);
        NodeInterface {
            name: interface.name.clone(),
            xdp: match interface.xdp.map(|xdp| xdp.mode) {
                Some(links::XdpMode::Native) => XdpMode::Native,
                Some(links::XdpMode::Generic) => XdpMode::Generic,
                None => XdpMode::None,
            },
            mac: link.and_then(|link| link.mac).map(mac_text),
            subnets: link
                .map(|link| link.on_link.iter().copied().take(SUBNETS_MAX).collect())
                .unwrap_or_default(),
        }
    });
    LoadBalancerNodeSpec {
        role: match core.settings.role {
            Role::Balancer => NodeRole::Balancer,
            Role::Owner => NodeRole::Owner,
            // A manager has no agent's core.
            Role::Both | Role::Manager => NodeRole::Both,
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        addresses: list(core.own),
        interfaces: interfaces.collect(),
    }
}

/// `02:00:00:00:00:01`.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The bytes of `02:00:00:00:00:01`.
pub(super) fn mac_of(text: &str) -> Option<[u8; 6]> {
    let bytes: Result<Vec<_>, _> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect();
    bytes.ok()?.try_into().ok()
}

/// What the node's file says.
pub(super) fn node_file(core: &Core) -> LoadBalancerNode {
    LoadBalancerNode {
        api_version: API_VERSION.to_owned(),
        kind: LoadBalancerNode::KIND.to_owned(),
        metadata: Metadata {
            namespace: None,
            name: core.settings.node.clone(),
        },
        role: match core.settings.role {
            Role::Balancer => "balancer",
            Role::Owner => "owner",
            Role::Both => "both",
            Role::Manager => "manager",
        }
        .to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        addresses: list(core.own),
        interfaces: core
            .interfaces
            .iter()
            .map(|interface| {
                let mode = interface.xdp.map_or("without XDP", |xdp| xdp.mode.label());
                format!("{} {mode}", interface.name)
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_with_its_share_of_pins_reports_half_open_flows_slowly_until_many_are_gone() {
        const NODES: u32 = 8;
        const ROOM: u32 = abi::capacity::PINS;
        let share = ROOM / HALF_OPEN_SHARE / NODES;
        let slow = half_open_rate(ROOM, NODES, share, HALF_OPEN_REPORTS_MAX);
        assert_eq!(
            half_open_rate(ROOM, NODES, share - 1, HALF_OPEN_REPORTS_MAX),
            HALF_OPEN_REPORTS_MAX
        );
        assert_eq!(half_open_rate(ROOM, NODES, share - 1, slow), slow);
        assert_eq!(
            half_open_rate(ROOM, NODES, share * 3 / 4 - 1, slow),
            HALF_OPEN_REPORTS_MAX
        );
        // All nodes together, for as long as such a pin may stay.
        assert!(slow * HALF_OPEN_PIN_SECONDS * NODES <= ROOM / HALF_OPEN_SHARE);
        // The first rate, before anything is configured.
        assert_eq!(half_open_rate(ROOM, 1, 0, 0), HALF_OPEN_REPORTS_MAX);
        assert_eq!(half_open_rate(ROOM, u32::MAX, 0, 0), HALF_OPEN_REPORTS_MIN);
    }
}
