//! Segments as the frames that programs meet, and back. Addresses are numbers: of clients, nodes, pods and VIPs.

use std::net::Ipv4Addr;

use lb_ebpf::wire::protocol;

use super::pod::ANSWER_LEN;
use super::segment::{FlowId, Segment, ServiceId, Transport};

/// Ethernet and IPv4 headers.
const IP_AT: usize = 14;
const TRANSPORT_AT: usize = IP_AT + 20;
/// The longest frame that is made here: headers, and the longest data.
const FRAME_MAX: usize = TRANSPORT_AT + 20 + ANSWER_LEN as usize;

/// Ports of clients start here.
const CLIENT_PORT: u32 = 20_000;
/// Low bits of a flow's number are in the client's address, the others in its port.
const CLIENT_BITS: u32 = 16;

/// An address and port.
pub(super) type Place = (Ipv4Addr, u16);

/// A node of the simulated cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct NodeId(pub(super) u8);

impl NodeId {
    /// Its address.
    pub(super) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, self.0 + 1)
    }

    /// The node with an address.
    pub(super) fn at(address: Ipv4Addr) -> Option<Self> {
        match address.octets() {
            [10, 0, 0, last] => last.checked_sub(1).map(Self),
            _ => None,
        }
    }

    /// As an index.
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Where the client of a flow is.
pub(super) fn client(flow: FlowId) -> Place {
    let host = flow.0 & ((1 << CLIENT_BITS) - 1);
    let address = Ipv4Addr::from_bits(0x6440_0000 | host);
    (address, (CLIENT_PORT + (flow.0 >> CLIENT_BITS)) as u16)
}

/// The flow of a client.
pub(super) fn flow((address, port): Place) -> Option<FlowId> {
    let host = address.to_bits() ^ 0x6440_0000;
    let high = u32::from(port).checked_sub(CLIENT_PORT)?;
    (host >> CLIENT_BITS == 0).then_some(FlowId(high << CLIENT_BITS | host))
}

/// A frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    bytes: [u8; FRAME_MAX],
    len: usize,
}

impl Frame {
    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// A segment between two places.
    pub(super) fn new(segment: &Segment, from: Place, to: Place) -> Self {
        let (proto, header) = match segment.transport {
            Transport::Tcp => (protocol::TCP, 20),
            Transport::Udp => (protocol::UDP, 8),
        };
        let payload = usize::from(segment.len);
        let mut frame = Self {
            bytes: [0; FRAME_MAX],
            len: TRANSPORT_AT + header + payload,
        };
        let bytes = &mut frame.bytes;
        bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        let ip_len = (20 + header + payload) as u16;
        bytes[14] = 0x45;
        bytes[16..18].copy_from_slice(&ip_len.to_be_bytes());
        bytes[20] = 0x40;
        bytes[22] = 64;
        bytes[23] = proto;
        bytes[26..30].copy_from_slice(&from.0.octets());
        bytes[30..34].copy_from_slice(&to.0.octets());
        let sum = checksum(sum(&bytes[IP_AT..TRANSPORT_AT]));
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        bytes[34..36].copy_from_slice(&from.1.to_be_bytes());
        bytes[36..38].copy_from_slice(&to.1.to_be_bytes());
        let checksum_at = match segment.transport {
            Transport::Tcp => {
                bytes[38..42].copy_from_slice(&segment.seq.to_be_bytes());
                bytes[42..46].copy_from_slice(&segment.ack.to_be_bytes());
                bytes[46] = 5 << 4;
                bytes[47] = segment.flags;
                bytes[48..50].copy_from_slice(&u16::MAX.to_be_bytes());
                50
            }
            Transport::Udp => {
                bytes[38..40].copy_from_slice(&(ip_len - 20).to_be_bytes());
                // The number of the question is its data.
                bytes[42..46].copy_from_slice(&segment.seq.to_be_bytes());
                40
            }
        };
        // Of UDP, a zero says that there is no checksum (RFC 768).
        let sum = match (
            segment.transport,
            checksum(transport_sum(&bytes[..frame.len])),
        ) {
            (Transport::Udp, 0) => u16::MAX,
            (Transport::Udp | Transport::Tcp, sum) => sum,
        };
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        frame
    }
}

/// What is wrong with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// Neither TCP nor UDP over IPv4 without options, or cut off.
    #[error("it is no whole TCP or UDP packet over IPv4")]
    Malformed,
    /// A checksum is wrong.
    #[error("its checksum of {0} is wrong")]
    Checksum(&'static str),
}

/// A frame taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Parsed {
    pub(super) from: Place,
    pub(super) to: Place,
    transport: Transport,
    seq: u32,
    ack: u32,
    flags: u8,
    len: u16,
}

impl Parsed {
    /// The segment, of a flow and a Service that its addresses say.
    pub(super) fn segment(&self, flow: FlowId, service: ServiceId) -> Segment {
        Segment {
            flow,
            service,
            transport: self.transport,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            len: self.len,
        }
    }
}

/// Takes a frame apart. What is behind its IP packet does not count.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, FrameError> {
    let malformed = FrameError::Malformed;
    let total = usize::from(u16_at(bytes, 16).ok_or(malformed)?);
    let bytes = bytes.get(..IP_AT + total).ok_or(malformed)?;
    if bytes.len() < TRANSPORT_AT + 8 || bytes[12..14] != [8, 0] || bytes[IP_AT] != 0x45 {
        return Err(malformed);
    }
    if checksum(sum(&bytes[IP_AT..TRANSPORT_AT])) != 0 {
        return Err(FrameError::Checksum("IPv4"));
    }
    let (transport, header) = match bytes[23] {
        protocol::TCP if bytes.len() >= TRANSPORT_AT + 20 => {
            (Transport::Tcp, usize::from(bytes[46] >> 4) * 4)
        }
        protocol::UDP => (Transport::Udp, 8),
        _ => return Err(malformed),
    };
    let len = bytes.len().checked_sub(TRANSPORT_AT + header);
    let len = len.ok_or(malformed)? as u16;
    let has_none = transport == Transport::Udp && bytes[40..42] == [0, 0];
    if !has_none && checksum(transport_sum(bytes)) != 0 {
        return Err(FrameError::Checksum("TCP or UDP"));
    }
    let address =
        |at: usize| Ipv4Addr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let port = |at| u16_at(bytes, at).unwrap_or_default();
    let word = |at| u32::from(port(at)) << 16 | u32::from(port(at + 2));
    let (seq, ack, flags) = match transport {
        Transport::Tcp => (word(38), word(42), bytes[47]),
        Transport::Udp => (word(42), 0, 0),
    };
    Ok(Parsed {
        from: (address(26), port(34)),
        to: (address(30), port(36)),
        transport,
        seq,
        ack,
        flags,
        len,
    })
}

/// The destination of the outermost IPv4 header.
pub(super) fn destination(bytes: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(30..34)?.try_into().ok()?;
    (bytes.get(12..14) == Some(&[8, 0])).then(|| octets.into())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([two[0], two[1]]))
}

fn sum(bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let pairs: u32 = pairs
        .iter()
        .map(|p| u32::from(u16::from_be_bytes(*p)))
        .sum();
    pairs + rest.first().map_or(0, |last| u32::from(*last) << 8)
}

/// The sum of pseudo-header, transport header and data.
fn transport_sum(bytes: &[u8]) -> u32 {
    let len = (bytes.len() - TRANSPORT_AT) as u32;
    sum(&bytes[26..34]) + u32::from(bytes[23]) + len + sum(&bytes[TRANSPORT_AT..])
}

fn checksum(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_and_clients_are_the_same_thing() {
        for number in [0, 1, 65_535, 65_536, 1_200_000, 2_000_000] {
            let id = FlowId(number);
            assert_eq!(flow(client(id)), Some(id));
        }
        assert_eq!(flow((Ipv4Addr::new(10, 0, 0, 1), 20_000)), None);
        assert_eq!(flow((Ipv4Addr::new(100, 64, 0, 1), 80)), None);
    }

    #[test]
    fn a_segment_comes_back_out_of_its_frame() {
        let vip = (Ipv4Addr::new(203, 0, 113, 1), 80);
        for (transport, flags, len) in [(Transport::Tcp, 0x18, 7), (Transport::Udp, 0, 6)] {
            let segment = Segment {
                flow: FlowId(70_000),
                service: ServiceId(2),
                transport,
                seq: 0x1234_5678,
                ack: if flags == 0 { 0 } else { 0x9abc_def0 },
                flags,
                len,
            };
            let frame = Frame::new(&segment, client(segment.flow), vip);
            let parsed = parse(frame.bytes()).unwrap();
            assert_eq!((flow(parsed.from), parsed.to), (Some(segment.flow), vip));
            assert_eq!(parsed.segment(segment.flow, segment.service), segment);
            let mut broken = frame.bytes().to_vec();
            broken[35] ^= 1;
            let error = parse(&broken).unwrap_err();
            assert_eq!(error, FrameError::Checksum("TCP or UDP"));
        }
    }

    #[test]
    fn datagrams_never_look_as_if_they_had_no_checksum() {
        let vip = (Ipv4Addr::new(203, 0, 113, 1), 53);
        let datagram = |seq| Segment {
            flow: FlowId(1),
            service: ServiceId(0),
            transport: Transport::Udp,
            seq,
            ack: 0,
            flags: 0,
            len: 6,
        };
        let frames =
            (0..=u32::from(u16::MAX)).map(|seq| Frame::new(&datagram(seq), client(FlowId(1)), vip));
        let mut all_ones = 0;
        for frame in frames {
            assert_ne!(frame.bytes()[40..42], [0, 0]);
            all_ones += u32::from(frame.bytes()[40..42] == [0xff, 0xff]);
            parse(frame.bytes()).unwrap();
        }
        assert!(
            all_ones > 0,
            "no datagram had the checksum that this is about"
        );
    }

    #[test]
    fn nodes_have_addresses_and_nobody_else_has_them() {
        assert_eq!(NodeId::at(NodeId(7).address()), Some(NodeId(7)));
        assert_eq!(NodeId::at(Ipv4Addr::new(10, 1, 0, 1)), None);
    }
}
