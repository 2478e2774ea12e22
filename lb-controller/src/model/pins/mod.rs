//! Pins: which pod owns a flow, told by the owner's node to every balancer. Values, the owner's side ([`Writer`]) and the
//! balancer's ([`Receiver`]); who carries messages between them, and what a kernel map is, is not known here.
//!
//! ```text
//! owner node     Writer ── read(position) ──▶ records, or a snapshot ──▶ Message …      at least once, in order
//! balancer       Message ──▶ Receiver::take ──▶ PinOp … ──▶ pins4, pins6 ──▶ its position is the acknowledgement
//! ```
//!
//! Pins are kept by writer and flow, so there is nothing to merge: what comes twice changes nothing, and a writer that starts
//! again replaces all of its own pins at the end of its first snapshot.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_ebpf::abi::{LocalKey, Tuple};
use lb_ebpf::wire::{Addr6, Be16, Be32, Ports};

use super::op::{BackendId, LocalKey as LocalPort, PinKey};
use super::secret::identity;
use crate::api::service_table::Watermark;

mod receiver;
mod writer;

pub use receiver::{Receiver, Refusal, Taken};
pub use writer::{Batch, Snapshot, Writer, WriterFull};

/// Pins of all writers at one balancer, unless it is told otherwise: as many as the map of each family has places.
pub const PINS_MAX: usize = lb_ebpf::abi::capacity::PINS as usize;

/// Changes that a writer remembers. A balancer that is further behind gets a snapshot, which is no larger.
pub const LOG_MAX: usize = 1 << 16;

/// One start of an agent, in milliseconds since 1970: later ones are higher.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Incarnation(pub u64);

/// Number of a change within an [`Incarnation`], from 1. 0 is before the first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// How much of a writer's changes is meant: everything up to here. Ordered, later incarnations last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    /// The start of the writer's agent.
    pub incarnation: Incarnation,
    /// Its last change.
    pub seq: Seq,
}

impl From<Watermark> for Position {
    fn from(Watermark { incarnation, seq }: Watermark) -> Self {
        Self {
            incarnation: Incarnation(incarnation),
            seq: Seq(seq),
        }
    }
}

impl From<Position> for Watermark {
    fn from(Position { incarnation, seq }: Position) -> Self {
        Self {
            incarnation: incarnation.0,
            seq: seq.0,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.incarnation.0, self.seq.0)
    }
}

/// A flow as balancers see it: the client and the VIP, both of one family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FlowKey {
    protocol: u8,
    client: SocketAddr,
    vip: SocketAddr,
}

/// Why two ends are no flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("client {client} and VIP {vip} are of different IP families")]
pub struct MixedFamilies {
    /// The client.
    pub client: SocketAddr,
    /// The VIP.
    pub vip: SocketAddr,
}

impl FlowKey {
    /// A flow of a client to a VIP. IPv4 addresses in IPv6 form become plain ones, so that equal flows are equal keys.
    pub fn new(protocol: u8, client: SocketAddr, vip: SocketAddr) -> Result<Self, MixedFamilies> {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (client, vip) = (plain(client), plain(vip));
        if client.is_ipv4() != vip.is_ipv4() {
            return Err(MixedFamilies { client, vip });
        }
        Ok(Self {
            protocol,
            client,
            vip,
        })
    }

    /// Number of the transport protocol.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The client.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// The VIP and port.
    pub fn vip(&self) -> SocketAddr {
        self.vip
    }

    /// The key in the maps.
    pub fn tuple(&self) -> PinKey {
        let Self {
            protocol,
            client,
            vip,
        } = *self;
        let ports = Ports {
            src: Be16::new(client.port()),
            dst: Be16::new(vip.port()),
        };
        match (client.ip(), vip.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => PinKey::V4(Tuple {
                src: Be32::from_bytes(src.octets()),
                dst: Be32::from_bytes(dst.octets()),
                ports,
                proto: protocol,
                pad: [0; 3],
            }),
            (src, dst) => PinKey::V6(Tuple {
                src: in_v6(src),
                dst: in_v6(dst),
                ports,
                proto: protocol,
                pad: [0; 3],
            }),
        }
    }

    /// The flow of a key in the maps.
    pub fn of_tuple(tuple: &PinKey) -> Self {
        let end = |ip: IpAddr, port: Be16| SocketAddr::new(ip, port.get());
        match tuple {
            PinKey::V4(t) => Self {
                protocol: t.proto,
                client: end(IpAddr::from(t.src.to_bytes()), t.ports.src),
                vip: end(IpAddr::from(t.dst.to_bytes()), t.ports.dst),
            },
            PinKey::V6(t) => Self {
                protocol: t.proto,
                client: end(IpAddr::from(t.src.to_bytes()), t.ports.src),
                vip: end(IpAddr::from(t.dst.to_bytes()), t.ports.dst),
            },
        }
    }
}

fn in_v6(address: IpAddr) -> Addr6 {
    match address {
        IpAddr::V4(a) => Addr6::from_bytes(a.to_ipv6_mapped().octets()),
        IpAddr::V6(a) => Addr6::from_bytes(a.octets()),
    }
}

/// The owner of a flow. Records name pods, since ids of backends mean nothing at another node.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PinnedPod {
    /// Its UID.
    pub uid: Arc<str>,
    /// Its node, which is the only one that may pin its flows.
    pub node: Arc<str>,
    /// Its address.
    pub address: IpAddr,
    /// The port that the flow is for.
    pub port: u16,
}

impl PinnedPod {
    /// Its identity in packets and maps.
    pub fn identity(&self) -> u32 {
        identity(&self.uid, self.port)
    }

    /// Where the maps of its own node have it.
    pub fn local_key(&self) -> LocalPort {
        let port = Be16::new(self.port);
        match self.address {
            IpAddr::V4(a) => LocalPort::V4(LocalKey {
                addr: Be32::from_bytes(a.octets()),
                port,
                pad: 0,
            }),
            IpAddr::V6(a) => LocalPort::V6(LocalKey {
                addr: Addr6::from_bytes(a.octets()),
                port,
                pad: 0,
            }),
        }
    }
}

/// One change of a writer's pins.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// The pod owns the flow.
    Pin(FlowKey, PinnedPod),
    /// The flow has ended, or needs no pin any more.
    Unpin(FlowKey),
}

/// What a writer tells a balancer after both know who they are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Message {
    /// Changes in a row.
    Records {
        /// Position of the first of them.
        first: Position,
        /// At least one.
        changes: Vec<Change>,
    },
    /// All pins at a position follow.
    SnapshotBegin {
        /// The position.
        position: Position,
    },
    /// Some of them.
    SnapshotChunk {
        /// Flows and their owners.
        pins: Vec<(FlowKey, PinnedPod)>,
    },
    /// That was all: they replace what the writer had pinned before.
    SnapshotEnd,
}

/// Whom a place of a pin names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Pinned {
    /// The pod that its node has named.
    Pod(PinnedPod),
    /// Whom the map named when this agent started; nothing but its id is known here.
    Inherited(BackendId),
}

/// What the map must hold for a flow: its owners, newest first. Nobody: no entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinOp {
    /// The flow.
    pub key: FlowKey,
    /// The owners.
    pub pods: [Option<Pinned>; 2],
}

#[cfg(test)]
mod tests;
