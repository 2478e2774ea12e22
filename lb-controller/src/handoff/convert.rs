//! Between values of the model and messages on the wire. What comes in is checked here, once: what cannot be is refused with a
//! sentence, whatever it is.

mod control;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::message::{Hello, Reason, Refused};
use super::{RECORDS_MAX, wire};
use crate::model::pins::{
    Change, FlowKey, Incarnation, Message, MixedFamilies, PinnedPod, Position, Seq,
};

/// Longest name that Kubernetes gives (RFC 1123 subdomain); UIDs and digests are shorter.
const NAME_MAX: usize = 253;
/// Longest sentence taken from a peer.
const SENTENCE_MAX: usize = 1024;

/// Why a message can not be understood.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// A part is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A part that has no place there.
    #[error("{0} has no place here")]
    Unexpected(&'static str),
    /// A number that does not fit.
    #[error("{0} is out of its range")]
    Range(&'static str),
    /// Not 4 and not 16 bytes.
    #[error("an address has {0} bytes; 4 or 16 make one")]
    Address(usize),
    /// A name that is empty or too long.
    #[error("{0} is empty or longer than {NAME_MAX} bytes")]
    Name(&'static str),
    /// More than a message may have.
    #[error("a message has {0} records or none; 1 to {RECORDS_MAX} make one")]
    Count(usize),
    /// Client and VIP do not fit together.
    #[error(transparent)]
    Families(#[from] MixedFamilies),
    /// The proposed table.
    #[error("the proposed table can not be read: {0}")]
    Table(#[source] serde_json::Error),
}

/// What a [`wire::PinMessage`] is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// The first message of a stream.
    Hello(Hello),
    /// Any other.
    Message(Message),
}

impl From<Position> for wire::Position {
    fn from(Position { incarnation, seq }: Position) -> Self {
        Self {
            incarnation: incarnation.0,
            seq: seq.0,
        }
    }
}

impl From<wire::Position> for Position {
    fn from(wire::Position { incarnation, seq }: wire::Position) -> Self {
        Self {
            incarnation: Incarnation(incarnation),
            seq: Seq(seq),
        }
    }
}

fn position(position: Option<wire::Position>) -> Result<Position, Malformed> {
    let position = position.ok_or(Malformed::Missing("a position"))?;
    // Positions are counted on from; no stream ever comes near the end.
    if position.seq > u64::MAX / 2 {
        return Err(Malformed::Range("a position"));
    }
    Ok(position.into())
}

fn name(what: &'static str, name: String) -> Result<Arc<str>, Malformed> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(Malformed::Name(what));
    }
    Ok(name.into())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, Malformed> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| Malformed::Address(bytes.len()))?;
    Ok(v6.into())
}

fn port(port: u32) -> Result<u16, Malformed> {
    port.try_into().map_err(|_| Malformed::Range("a port"))
}

impl From<&FlowKey> for wire::FlowKey {
    fn from(key: &FlowKey) -> Self {
        Self {
            protocol: u32::from(key.protocol()),
            client: octets(key.client().ip()),
            client_port: u32::from(key.client().port()),
            vip: octets(key.vip().ip()),
            vip_port: u32::from(key.vip().port()),
        }
    }
}

impl TryFrom<wire::FlowKey> for FlowKey {
    type Error = Malformed;

    fn try_from(key: wire::FlowKey) -> Result<Self, Malformed> {
        let protocol = key.protocol.try_into();
        let protocol = protocol.map_err(|_| Malformed::Range("a protocol"))?;
        let client = SocketAddr::new(address(&key.client)?, port(key.client_port)?);
        let vip = SocketAddr::new(address(&key.vip)?, port(key.vip_port)?);
        Ok(Self::new(protocol, client, vip)?)
    }
}

impl From<&PinnedPod> for wire::Pod {
    fn from(pod: &PinnedPod) -> Self {
        let PinnedPod {
            uid,
            node,
            address,
            port,
        } = pod;
        Self {
            uid: uid.to_string(),
            node: node.to_string(),
            address: octets(*address),
            port: u32::from(*port),
        }
    }
}

impl TryFrom<wire::Pod> for PinnedPod {
    type Error = Malformed;

    fn try_from(pod: wire::Pod) -> Result<Self, Malformed> {
        Ok(Self {
            uid: name("the UID of a pod", pod.uid)?,
            node: name("the node of a pod", pod.node)?,
            address: address(&pod.address)?.to_canonical(),
            port: port(pod.port)?,
        })
    }
}

fn to_pin(key: &FlowKey, pod: &PinnedPod) -> wire::Pin {
    wire::Pin {
        key: Some(key.into()),
        pod: Some(pod.into()),
    }
}

fn pin(pin: wire::Pin) -> Result<(FlowKey, PinnedPod), Malformed> {
    let key = pin.key.ok_or(Malformed::Missing("the flow of a pin"))?;
    let pod = pin.pod.ok_or(Malformed::Missing("the pod of a pin"))?;
    Ok((key.try_into()?, pod.try_into()?))
}

impl From<&Change> for wire::pin_message::Record {
    fn from(change: &Change) -> Self {
        use wire::pin_message::record::Change as Wire;
        let change = match change {
            Change::Pin(key, pod) => Wire::Pin(to_pin(key, pod)),
            Change::Unpin(key) => Wire::Unpin(key.into()),
        };
        Self {
            change: Some(change),
        }
    }
}

impl TryFrom<wire::pin_message::Record> for Change {
    type Error = Malformed;

    fn try_from(record: wire::pin_message::Record) -> Result<Self, Malformed> {
        use wire::pin_message::record::Change as Wire;
        match record.change.ok_or(Malformed::Missing("a change"))? {
            Wire::Pin(told) => pin(told).map(|(key, pod)| Self::Pin(key, pod)),
            Wire::Unpin(key) => Ok(Self::Unpin(key.try_into()?)),
        }
    }
}

impl From<&Hello> for wire::PinMessage {
    fn from(hello: &Hello) -> Self {
        let Hello {
            node,
            position,
            acknowledged,
        } = hello;
        Self {
            message: Some(wire::pin_message::Message::Hello(
                wire::pin_message::Hello {
                    node: node.to_string(),
                    position: Some((*position).into()),
                    acknowledged: acknowledged.map(Into::into),
                },
            )),
        }
    }
}

impl From<&Message> for wire::PinMessage {
    fn from(message: &Message) -> Self {
        use wire::pin_message::{Message as Wire, Records, SnapshotChunk, SnapshotEnd};
        let message = match message {
            Message::Records { first, changes } => Wire::Records(Records {
                first: Some((*first).into()),
                records: changes.iter().map(Into::into).collect(),
            }),
            Message::SnapshotBegin { position } => Wire::SnapshotBegin((*position).into()),
            Message::SnapshotChunk { pins } => Wire::SnapshotChunk(SnapshotChunk {
                pins: pins.iter().map(|(key, pod)| to_pin(key, pod)).collect(),
            }),
            Message::SnapshotEnd => Wire::SnapshotEnd(SnapshotEnd {}),
        };
        Self {
            message: Some(message),
        }
    }
}

impl TryFrom<wire::PinMessage> for Told {
    type Error = Malformed;

    fn try_from(message: wire::PinMessage) -> Result<Self, Malformed> {
        use wire::pin_message::Message as Wire;
        let message = message.message.ok_or(Malformed::Missing("a message"))?;
        let message = match message {
            Wire::Hello(hello) => {
                return Ok(Self::Hello(Hello {
                    node: name("the name of a node", hello.node)?,
                    position: position(hello.position)?,
                    acknowledged: hello.acknowledged.map(Into::into),
                }));
            }
            Wire::Records(told) => Message::Records {
                first: position(told.first)?,
                changes: counted(told.records)?
                    .map(TryInto::try_into)
                    .collect::<Result<_, _>>()?,
            },
            Wire::SnapshotBegin(told) => Message::SnapshotBegin {
                position: position(Some(told))?,
            },
            Wire::SnapshotChunk(told) => Message::SnapshotChunk {
                pins: counted(told.pins)?.map(pin).collect::<Result<_, _>>()?,
            },
            Wire::SnapshotEnd(wire::pin_message::SnapshotEnd {}) => Message::SnapshotEnd,
        };
        Ok(Self::Message(message))
    }
}

/// As many as a message may have.
fn counted<T>(records: Vec<T>) -> Result<impl Iterator<Item = T>, Malformed> {
    if (1..=RECORDS_MAX).contains(&records.len()) {
        return Ok(records.into_iter());
    }
    Err(Malformed::Count(records.len()))
}

/// Records that a message carries.
pub(super) fn records(message: &wire::PinMessage) -> u64 {
    use wire::pin_message::Message as Wire;
    match &message.message {
        Some(Wire::Records(records)) => records.records.len() as u64,
        Some(Wire::SnapshotChunk(chunk)) => chunk.pins.len() as u64,
        Some(Wire::Hello(_) | Wire::SnapshotBegin(_) | Wire::SnapshotEnd(_)) | None => 0,
    }
}

/// What a balancer answers: the position that its maps hold, none before the first snapshot has ended.
pub type Answer = Result<Option<Position>, Refused>;

pub(super) fn to_ack(answer: &Answer) -> wire::PinAck {
    use wire::pin_ack::{Answer as Wire, Held};
    use wire::refusal::Reason as WireReason;
    let answer = match answer {
        Ok(position) => Wire::Held(Held {
            position: position.map(Into::into),
        }),
        Err(Refused { reason, sentence }) => {
            let reason = match reason {
                Reason::Gap => WireReason::Gap,
                Reason::Stale => WireReason::Stale,
                Reason::Full => WireReason::Full,
                Reason::Foreign => WireReason::Foreign,
                Reason::Malformed => WireReason::Malformed,
                Reason::Unavailable => WireReason::Unavailable,
            };
            Wire::Refused(wire::Refusal {
                reason: reason.into(),
                sentence: sentence.clone(),
            })
        }
    };
    wire::PinAck {
        answer: Some(answer),
    }
}

pub(super) fn answer(ack: wire::PinAck) -> Result<Answer, Malformed> {
    use wire::pin_ack::Answer as Wire;
    use wire::refusal::Reason as WireReason;
    match ack.answer.ok_or(Malformed::Missing("an answer"))? {
        Wire::Held(held) => Ok(Ok(held.position.map(Into::into))),
        Wire::Refused(refused) => {
            let reason = match refused.reason() {
                WireReason::Gap => Reason::Gap,
                WireReason::Stale => Reason::Stale,
                WireReason::Full => Reason::Full,
                WireReason::Foreign => Reason::Foreign,
                WireReason::Malformed => Reason::Malformed,
                // A reason that only later versions know asks for patience as well.
                WireReason::Unavailable | WireReason::Unspecified => Reason::Unavailable,
            };
            Ok(Err(Refused {
                reason,
                sentence: sentence(refused.sentence),
            }))
        }
    }
}

/// A peer's sentence, no longer than a log should have it.
fn sentence(mut sentence: String) -> String {
    let end = sentence.floor_char_boundary(SENTENCE_MAX);
    sentence.truncate(end);
    sentence
}
