//! The answers of the local admin socket: HTTP/1.1 with JSON over a Unix socket that only root may open.
//!
//! ```text
//! GET  /v1/status    → Status         GET  /v1/flows?limit=&client=&vip=  → Flows
//! GET  /v1/services  → Services       GET  /v1/check                      → Checks
//! GET  /v1/backends  → Backends       POST /v1/explain ExplainRequest     → Explanation
//! ```
//!
//! Every refusal is a status code of 4xx or 5xx with an [`Error`]. Types only: who fills them is the agent's business, who
//! prints them `lbctl`'s. Fields are added, never renamed: scripts read them through `lbctl -o json`.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::load_balancer_node::NodeRole;

/// Where the agent listens if not told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/bowline/agent.sock";
/// Flows in one answer if the request names no limit.
pub const FLOWS_LIMIT_DEFAULT: usize = 1_000;
/// The most flows in one answer: about 20 MB of JSON, which still prints in a second.
pub const FLOWS_LIMIT_MAX: usize = 100_000;

/// Every refusal: one sentence that says what was asked and what to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// The sentence.
    pub error: String,
}

/// `GET /v1/status`: the agent at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name (`--node`).
    pub node: String,
    /// What the node does.
    pub role: Role,
    /// Version of the agent.
    pub version: String,
    /// Version of the map layout.
    pub abi_version: u32,
    /// Where links and maps are pinned.
    pub pin_dir: String,
    /// Since the agent started.
    pub uptime_seconds: u64,
    /// The node's addresses: peer key and outer source.
    pub addresses: Vec<IpAddr>,
    /// Interfaces that carry our programs, or should.
    pub interfaces: Vec<Interface>,
    /// Everything is listed and applied: the node may be used.
    pub ready: bool,
    /// Why it is not ready; empty when it is.
    pub not_ready_because: Vec<String>,
    /// The node may decide about packets of flows that nobody knows.
    pub fresh: bool,
    /// Where objects come from.
    pub sources: Vec<Source>,
    /// Services by state.
    pub services: ServiceCounts,
    /// What is wrong with which object, and what to change.
    pub problems: Vec<Problem>,
    /// How full the maps are.
    pub maps: Vec<MapUsage>,
    /// Dropped packets by reason, reasons without a drop left out.
    pub drops: Vec<Counter>,
    /// Other counters of the programs, zeroes left out.
    pub stats: Vec<Counter>,
    /// Nodes without a route or neighbour: their backends get no packets.
    pub next_hops_unresolved: Vec<UnresolvedNextHop>,
    /// Other nodes with an agent, as this one hears them.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// VIPs that this node announces.
    #[serde(default)]
    pub announced: Vec<Announced>,
    /// Pins; none if this node does not hand connections off.
    #[serde(default)]
    pub pins: Option<Pins>,
    /// Routes to VIPs; none if this node keeps none.
    #[serde(default)]
    pub routes: Option<Routes>,
    /// Of a manager: Services whose table's history should leave, or is leaving.
    #[serde(default)]
    pub retirements: Vec<Retirement>,
}

/// Routes to VIPs in a table of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// Which table.
    pub table: u32,
    /// Routes that it should have.
    pub wanted: usize,
    /// Routes that it had when it was last as it should be.
    pub installed: usize,
    /// BIRD; none if it is not configured by the agent.
    pub bird: Option<Bird>,
}

/// The routing daemon beside the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bird {
    /// It answers.
    pub answers: bool,
    /// It does what peers and advertisements say.
    pub configured: bool,
    /// Its sessions.
    pub sessions: Vec<BgpSession>,
}

/// A session with a router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpSession {
    /// Name of its `BGPPeer`.
    pub peer: String,
    /// `Established`, `Connect`, `Active`, `Idle` and so on (RFC 4271).
    pub state: String,
    /// It is established.
    pub is_up: bool,
    /// Since when it is in this state, about.
    pub since: Option<Timestamp>,
    /// Prefixes that the router is told.
    pub exported: u64,
    /// What was wrong last.
    pub error: Option<String>,
}

/// Flows that are found by pins instead of tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Flows of this node's own pods that it wants pinned at every balancer.
    pub own: u64,
    /// Flows that this node's maps have pinned, its own included.
    pub held: u64,
    /// Start of the agent in milliseconds since 1970, and how many changes of its own pins there were since.
    pub written: String,
    /// Nodes whose pins are not all here, and are waited for.
    pub missing: Vec<String>,
    /// Proposals of managers for which flows are handed off.
    pub proposals: u64,
    /// Flows that should be pinned and are not, since there are as many as there may be.
    #[serde(default)]
    pub unpinned: u64,
    /// What others wanted and was not taken, by cause.
    #[serde(default)]
    pub refused: Vec<Counter>,
    /// Streams to and from other nodes.
    pub streams: Vec<PinStream>,
}

/// The streams between this node and another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStream {
    /// The other node.
    pub node: String,
    /// It is told this node's pins.
    pub up: bool,
    /// Changes that it has not acknowledged; none if it has said nothing since this agent started.
    pub behind: Option<u64>,
    /// Changes sent to it.
    pub records: u64,
    /// Snapshots sent to it.
    pub snapshots: u64,
    /// Up to where its pins are here; none if it has sent none.
    pub received: Option<String>,
    /// Why it is not told.
    pub fault: Option<String>,
}

/// History of a Service's table that should leave, or is leaving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retirement {
    /// The Service: `namespace/name`.
    pub service: String,
    /// Why: `history-full`, `shape-waits` (a change waits for it), or `quiet`.
    pub because: String,
    /// `waiting` to begin, `spreading` the version, `handing-off` connections, `publishing` the next version, `settling`, or
    /// `paused` after an attempt that came to nothing.
    pub phase: String,
    /// Nodes whose agents are waited for.
    pub waits_for: Vec<String>,
    /// How long it has been wanted without any history leaving.
    pub for_seconds: u64,
}

/// Another node with an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub node: String,
    /// `alive`, `suspected`, `agent-away` (its programs forward), `down`, or `unheard` since this agent started.
    pub state: String,
    /// How long it has been so.
    pub for_seconds: u64,
}

/// A VIP that this node answers ARP and neighbour solicitations for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// The VIP.
    pub vip: IpAddr,
    /// The interface.
    pub interface: String,
    /// The MAC address that is answered.
    pub mac: String,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes packets from clients; has no pods of our Services.
    Balancer,
    /// Has pods of our Services; takes packets from balancers only.
    Owner,
    /// Both.
    Both,
    /// Assigns slots; touches no packet.
    #[value(skip)]
    Manager,
}

impl From<NodeRole> for Role {
    fn from(role: NodeRole) -> Self {
        match role {
            NodeRole::Balancer => Self::Balancer,
            NodeRole::Owner => Self::Owner,
            NodeRole::Both => Self::Both,
        }
    }
}

/// An interface and the programs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index; 0 while it does not exist.
    pub ifindex: u32,
    /// How XDP runs there: `native` or `generic`; none while it is not attached.
    pub xdp_mode: Option<String>,
    /// The kernel's id of the XDP program.
    pub xdp_program_id: Option<u32>,
    /// How the egress program is attached: `tcx` or `clsact`; none while it is not.
    pub tc_kind: Option<String>,
    /// What is wrong, and what to change.
    pub problem: Option<String>,
}

/// A source of objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The directory.
    pub name: String,
    /// The watch is alive.
    pub alive: bool,
    /// The last complete list; none before the first.
    pub last_list: Option<Timestamp>,
    /// The last time that the maps were brought in line with it.
    pub last_apply: Option<Timestamp>,
}

/// How many Services are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounts {
    /// Of type `LoadBalancer`, and of our class.
    pub total: usize,
    /// In the maps, as their newest version says.
    pub programmed: usize,
    /// Waiting, for an address or a table.
    pub pending: usize,
    /// In the maps, but not as their newest version says, or not at all.
    pub failed: usize,
}

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The object: `Service default/web`, `file web.yaml`, `interface eth0`.
    pub object: String,
    /// One sentence: what is wrong and what to change.
    pub sentence: String,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUsage {
    /// Its name.
    pub map: String,
    /// Used entries.
    pub used: u64,
    /// All entries.
    pub capacity: u64,
}

/// A named counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Its label, as in metrics.
    pub name: String,
    /// Packets since the maps were made.
    pub packets: u64,
}

/// A node that cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnresolvedNextHop {
    /// Its name.
    pub node: String,
    /// The address that was tried.
    pub address: IpAddr,
    /// What is missing: route, neighbour, link.
    pub reason: String,
}

/// `GET /v1/services`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// By namespace and name.
    pub services: Vec<Service>,
}

/// A Service of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its VIPs.
    pub vips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Version of its `ServiceTable` that is in the maps; none if it is not in the maps.
    pub version: Option<u64>,
    /// Digest of that version: nodes that agree show the same.
    pub digest: Option<String>,
    /// Why it is not in the maps as its newest version says, and what to change.
    pub problem: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name; empty if it has none.
    pub name: String,
    /// The port at the VIPs.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Slots in use.
    pub slots: u32,
    /// Rows of the current table; 0: there is none.
    pub table_size: u32,
    /// Previous tables that may still own flows.
    pub previous_tables: u32,
    /// Backends that get first packets.
    pub backends: u32,
    /// Packets of all its VIPs, as balancer.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// `GET /v1/backends`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends {
    /// By id.
    pub backends: Vec<Backend>,
}

/// A pod and port that tables name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its id on this node.
    pub id: u32,
    /// Address of the pod.
    pub address: IpAddr,
    /// Port of the pod.
    pub port: u16,
    /// Hash of pod UID and port: the same on every node.
    pub identity: u32,
    /// UID of the pod, if the objects still name it.
    pub pod_uid: Option<String>,
    /// `namespace/name` of the pod, if known.
    pub pod: Option<String>,
    /// Its node, if known.
    pub node: Option<String>,
    /// The pod is on this node.
    pub local: bool,
    /// Services that name it: `namespace/name`.
    pub services: Vec<String>,
    /// Slots whose first packets it gets.
    pub current_in: u32,
    /// Slots that remember it as older.
    pub older_in: u32,
    /// Packets sent to it by this node.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How it is reached.
    pub next_hop: NextHop,
}

/// How a backend is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextHop {
    /// On this node: no encapsulation.
    Local,
    /// Encapsulated.
    Via {
        /// Address of its node.
        node_address: IpAddr,
        /// MAC address of the next hop.
        mac: String,
        /// Interface index; 0: the one that the packet came in on.
        ifindex: u32,
        /// Largest packet, outer headers included.
        mtu: u16,
    },
    /// No route or neighbour: its packets are dropped as `no_next_hop`.
    Unresolved,
}

/// `GET /v1/flows`: flows whose pod is on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// In no order.
    pub flows: Vec<Flow>,
    /// There are more than the limit of the request.
    pub truncated: bool,
}

/// A flow at its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The client.
    pub client: SocketAddr,
    /// The VIP and port that it speaks to.
    pub vip: SocketAddr,
    /// The pod and port that answer.
    pub pod: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Where it stands.
    pub state: FlowState,
    /// Since its last packet; a tick of about a second is the finest that is known.
    pub idle_seconds: u64,
    /// Identity of the pod and port.
    pub identity: u32,
    /// Why it is pinned at every balancer; none: it is not, tables find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<PinReason>,
}

/// Why a flow is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PinReason {
    /// Its first packet went elsewhere than the agreed tables say.
    Deviation,
    /// All flows of its Service are pinned.
    Tracked,
    /// A table has forgotten its pod, or is to.
    HandedOff,
}

/// Where a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// The pod has confirmed it.
    Established,
    /// The pod has not.
    HalfOpen,
    /// Both sides sent a FIN, or one an RST.
    Closing,
}

/// `POST /v1/explain`: which way would this packet go?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// The client's address and port.
    pub client: SocketAddr,
    /// The VIP and port.
    pub vip: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// The way of a packet, from the same function that forwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `namespace/name` of the Service, if the maps' entry is one that the agent knows.
    pub service: Option<String>,
    /// Version of its table.
    pub version: Option<u64>,
    /// Digest of its table.
    pub digest: Option<String>,
    /// The flow hash.
    pub hash: u64,
    /// The row, in the current table.
    pub row: u32,
    /// The slot that the row names.
    pub slot: u32,
    /// Who may own the flow, in the order of asking.
    pub candidates: Vec<Candidate>,
    /// What happens to the first packet of such a flow: one sentence.
    pub first_packet: String,
    /// What happens to a packet in the middle of such a flow: one sentence.
    pub mid_flow: String,
}

/// Who may own a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Backend id on this node.
    pub backend: u32,
    /// The pod and port.
    pub pod: SocketAddr,
    /// `namespace/name` of the pod, if known.
    pub pod_name: Option<String>,
    /// Its node, if known.
    pub node: Option<String>,
    /// Why it is a candidate: `current`, `older`, `current of a previous table`, `substitute`.
    pub because: String,
    /// How it is reached.
    pub next_hop: NextHop,
}

/// `GET /v1/check`: is this machine fit?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// In the order of asking.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub outcome: Outcome,
    /// What was seen.
    pub detail: String,
    /// What to do; empty when nothing.
    pub advice: String,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Works, with a disadvantage.
    Warn,
    /// Does not work.
    Fail,
}
