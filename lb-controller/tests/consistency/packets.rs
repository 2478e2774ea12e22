//! The client's packets and the pods' answers as bytes, and what the packet path makes of them.

use std::net::Ipv4Addr;

use lb_ebpf::abi::Plain;
use lb_ebpf::back::{Covers, Skb};
use lb_ebpf::frame::{Buffer, Frame, Packet};
use lb_ebpf::path;
use lb_ebpf::tables::memory::Memory;
use lb_ebpf::verdict::Action;
use lb_ebpf::wire::tcp_flag;
use lb_ebpf::{abi::DropReason, back};

/// The client.
pub(crate) const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 7), 1000);
/// The VIP.
pub(crate) const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 1), 80);
/// The port of all pods.
pub(crate) const POD_PORT: u16 = 8080;

/// Where the IPv4 header starts.
const IP: usize = 14;
/// Where the TCP header starts.
const TCP: usize = IP + 20;

/// A TCP segment without data.
fn segment(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), flags: u8, seq: u32, ack: u32) -> Vec<u8> {
    let mut bytes = vec![0; TCP + 20];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(12, &[0x08, 0x00]);
    put(IP, &[0x45, 0, 0, 40]);
    put(IP + 8, &[64, 6]);
    put(IP + 12, &src.0.octets());
    put(IP + 16, &dst.0.octets());
    put(TCP, &src.1.to_be_bytes());
    put(TCP + 2, &dst.1.to_be_bytes());
    put(TCP + 4, &seq.to_be_bytes());
    put(TCP + 8, &ack.to_be_bytes());
    put(TCP + 12, &[0x50, flags]);
    bytes
}

/// The client's SYN.
pub(crate) fn syn() -> Vec<u8> {
    segment(CLIENT, VIP, tcp_flag::SYN, 1, 0)
}

/// Anything later from the client, which has accepted a SYN-ACK with this number.
pub(crate) fn data(isn: u32) -> Vec<u8> {
    segment(CLIENT, VIP, tcp_flag::ACK, 2, isn + 1)
}

/// What the client sends, whether or not it is encapsulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Syn,
    /// With its acknowledgement number.
    Data(u32),
}

/// What a delivered packet is.
pub(crate) fn kind(bytes: &[u8]) -> Kind {
    let word: [u8; 4] = std::array::from_fn(|at| bytes[TCP + 8 + at]);
    match bytes[TCP + 13] & tcp_flag::SYN {
        0 => Kind::Data(u32::from_be_bytes(word)),
        _ => Kind::Syn,
    }
}

/// Where a packet goes by its outer header.
pub(crate) fn destination(bytes: &[u8]) -> Ipv4Addr {
    let octets: [u8; 4] = std::array::from_fn(|at| bytes[IP + 16 + at]);
    octets.into()
}

/// What becomes of a packet at a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// To the pod at the destination.
    Delivered(Vec<u8>),
    /// To the node (or the client) at the destination.
    Sent(Vec<u8>),
    Dropped(DropReason),
}

/// Runs the program on a packet.
pub(crate) fn run(bytes: &[u8], tables: &Memory) -> Fate {
    let packet = Packet::new(bytes);
    match path::run(&mut Buffer(&packet), tables).action() {
        Action::Pass => Fate::Delivered(packet.bytes()),
        Action::Transmit | Action::Redirect(_) => Fate::Sent(packet.bytes()),
        Action::Drop(reason) => Fate::Dropped(reason),
    }
}

/// A pod's SYN-ACK leaves its node. Whether it went out in the VIP's name.
pub(crate) fn syn_ack(pod: Ipv4Addr, isn: u32, tables: &Memory) -> bool {
    let flags = tcp_flag::SYN | tcp_flag::ACK;
    let packet = Packet::new(&segment((pod, POD_PORT), CLIENT, flags, isn, 2));
    back::reply(&mut Outgoing(Buffer(&packet)), tables);
    packet.bytes()[IP + 12..IP + 16] == VIP.0.octets()
}

/// A packet at egress. Nobody here looks at checksums.
struct Outgoing<'a>(Buffer<'a>);

impl Skb for Outgoing<'_> {
    fn read<T: Plain>(&self, at: usize) -> Option<T> {
        self.0.read(at)
    }
    fn write<T: Plain>(&mut self, at: usize, value: T) -> Option<()> {
        self.0.write(at, value)
    }
    fn update_header(&mut self, _: usize, _: u64) -> Option<()> {
        Some(())
    }
    fn update_transport(&mut self, _: usize, _: u64, _: Covers) -> Option<()> {
        Some(())
    }
}
