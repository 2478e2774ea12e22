//! The addresses of the benchmark's small world, and packets in it.
//!
//! Checksums of transport headers are not filled in: no program under test reads them whole, it only updates them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_controller::model::template::{self, NextHop, NodeAddresses, Place, PodPort, Sender};
use lb_ebpf::abi;
use lb_ebpf::wire::{Addr6, Be32, tcp_flag};

/// Balancer, and owner node of every pod that is delivered to.
pub(super) const BALANCER: Node = Node(1);
pub(super) const OWNER: Node = Node(2);
/// Another owner node, where relays go.
pub(super) const OTHER: Node = Node(3);

/// Port of every Service, and of every pod.
pub(super) const SERVICE_PORT: u16 = 80;
pub(super) const POD_PORT: u16 = 8080;
/// Client ports start here; the driver varies the lower bits.
pub(super) const CLIENT_PORT: u16 = 0x4000;
/// The cluster's secret in encapsulations.
pub(super) const SECRET: [Be32; 2] = [Be32::new(0x600d_5ec2), Be32::new(0xe7c0_ffee)];

/// A node by its number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Node(u8);

impl Node {
    pub(super) fn v4(self) -> [u8; 4] {
        [10, 1, 0, self.0]
    }
    pub(super) fn v6(self) -> [u8; 16] {
        ipv6(0x1, u32::from(self.0))
    }
    pub(super) fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self.0]
    }
    fn addresses(self) -> NodeAddresses {
        NodeAddresses {
            v4: Some(self.v4().into()),
            v6: Some(self.v6().into()),
        }
    }
}

fn ipv6(net: u16, host: u32) -> [u8; 16] {
    Ipv6Addr::from_bits(0xfd00_u128 << 112 | u128::from(net) << 96 | u128::from(host)).octets()
}

fn ipv4(net: [u8; 2], host: u32) -> [u8; 4] {
    Ipv4Addr::from_bits(u32::from_be_bytes([net[0], net[1], 0, 0]) + host).octets()
}

/// The VIP of Service number `n`.
pub(super) fn vip4(n: u32) -> [u8; 4] {
    ipv4([10, 96], n)
}
/// The VIP of Service number `n`.
pub(super) fn vip6(n: u32) -> [u8; 16] {
    ipv6(0x96, n)
}
/// What the single steps look up for Service number `n`: address, port and protocol as they lie in the packet.
pub(super) fn step_key(n: u32) -> [u32; 2] {
    let port = u32::from(SERVICE_PORT.to_be());
    [u32::from_ne_bytes(vip4(n)), port | 6 << 16]
}

/// Address of the pod with backend id `n`.
pub(super) fn pod4(n: u32) -> [u8; 4] {
    ipv4([10, 200], n)
}
/// Address of the pod with backend id `n`.
pub(super) fn pod6(n: u32) -> [u8; 16] {
    ipv6(0x200, n)
}
/// Which clients: those whose flows are known at the owner, and those whose are not.
#[derive(Clone, Copy)]
pub(super) enum Clients {
    Known,
    Strangers,
    /// Those of SYNs: a half-open flow would stand in the way of another one with the same ends.
    Newcomers,
}

/// Above the numbers of other clients.
const NEWCOMERS: u32 = 1 << 15;

impl Clients {
    pub(super) fn v4(self, host: u32) -> [u8; 4] {
        match self {
            Self::Known => ipv4([198, 18], host),
            Self::Strangers => ipv4([198, 19], host),
            Self::Newcomers => ipv4([198, 19], NEWCOMERS | host),
        }
    }
    pub(super) fn v6(self, host: u32) -> [u8; 16] {
        match self {
            Self::Known => ipv6(0x18, host),
            Self::Strangers => ipv6(0x19, host),
            Self::Newcomers => ipv6(0x19, NEWCOMERS | host),
        }
    }
}

/// An address of either family, as a map and a header want it.
pub(super) fn be32(bytes: [u8; 4]) -> Be32 {
    Be32::from_bytes(bytes)
}
/// See [`be32`].
pub(super) fn addr6(bytes: [u8; 16]) -> Addr6 {
    Addr6::from_bytes(bytes)
}

/// Family and protocol of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp4,
    Udp4,
    Tcp6,
}

impl Kind {
    pub(super) fn is_v6(self) -> bool {
        self == Self::Tcp6
    }
    pub(super) fn protocol(self) -> u8 {
        match self {
            Self::Tcp4 | Self::Tcp6 => lb_ebpf::wire::protocol::TCP,
            Self::Udp4 => lb_ebpf::wire::protocol::UDP,
        }
    }
    /// Bytes of Ethernet and IP header.
    pub(super) fn transport_at(self) -> usize {
        if self.is_v6() { 14 + 40 } else { 14 + 20 }
    }
}

/// Both ends of a packet.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) src: [u8; 16],
    pub(super) dst: [u8; 16],
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
}

impl Ends {
    /// Ends of IPv4: the address in the first four bytes.
    pub(super) fn v4(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16) -> Self {
        let wide = |a: [u8; 4]| {
            let mut b = [0; 16];
            b[..4].copy_from_slice(&a);
            b
        };
        Self {
            src: wide(src),
            dst: wide(dst),
            src_port,
            dst_port,
        }
    }
}

/// A frame of `len` bytes to `to`, with a TCP segment of these flags or a UDP datagram.
pub(super) fn frame(kind: Kind, to: Node, ends: &Ends, flags: u8, len: usize) -> Vec<u8> {
    let mut f = Vec::with_capacity(len);
    f.extend(to.mac());
    f.extend(OTHER.mac());
    if kind.is_v6() {
        f.extend([0x86, 0xdd]);
        f.extend(ip6_header(kind.protocol(), len - 54, &ends.src, &ends.dst));
    } else {
        f.extend([0x08, 0x00]);
        let (src, dst) = (&ends.src[..4], &ends.dst[..4]);
        f.extend(ip4_header(kind.protocol(), len - 34, src, dst));
    }
    f.extend(ends.src_port.to_be_bytes());
    f.extend(ends.dst_port.to_be_bytes());
    if kind == Kind::Udp4 {
        f.extend(((len - kind.transport_at()) as u16).to_be_bytes());
        f.extend([0x12, 0x34]);
    } else {
        f.extend(0x1000_0000_u32.to_be_bytes());
        f.extend(0x2000_0000_u32.to_be_bytes());
        f.extend([0x50, flags, 0xff, 0xff, 0x12, 0x34, 0, 0]);
    }
    f.resize(len, 0);
    f
}

/// Flags of a segment in the middle of a flow, and of a first one.
pub(super) const MIDDLE: u8 = tcp_flag::ACK;
pub(super) const FIRST: u8 = tcp_flag::SYN;

fn ip4_header(protocol: u8, payload: usize, src: &[u8], dst: &[u8]) -> Vec<u8> {
    let mut h = vec![0x45, 0];
    h.extend(((payload + 20) as u16).to_be_bytes());
    h.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    h.extend(src);
    h.extend(dst);
    let sum = !lb_ebpf::checksum::fold(lb_ebpf::checksum::sum(&h));
    h[10..12].copy_from_slice(&sum.to_ne_bytes());
    h
}

fn ip6_header(next: u8, payload: usize, src: &[u8], dst: &[u8]) -> Vec<u8> {
    let mut h = vec![0x60, 0, 0, 0];
    h.extend((payload as u16).to_be_bytes());
    h.extend([next, 64]);
    h.extend(src);
    h.extend(dst);
    h
}

/// A pod of `on`, as `from` reaches it. Its identity is the backend's id.
pub(super) fn backend(id: u32, kind: Kind, from: Node, on: Node) -> abi::Backend {
    let address = if kind.is_v6() {
        IpAddr::from(pod6(id))
    } else {
        IpAddr::from(pod4(id))
    };
    let pod = PodPort {
        address,
        port: POD_PORT,
        identity: id,
    };
    let hop = Some(NextHop {
        ifindex: 0,
        src: from.mac(),
        dst: on.mac(),
        mtu: 1500,
    });
    let place = if on == from {
        Place::Local
    } else {
        Place::Remote {
            node: on.addresses(),
            hop4: hop,
            hop6: hop,
        }
    };
    let sender = Sender {
        node: from.addresses(),
        secret: SECRET,
        geneve_port: abi::GENEVE_PORT,
    };
    template::backend(&pod, &place, &sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_whole_chunks_of_headers() {
        let ends = Ends::v4([198, 18, 0, 0], 1, [10, 96, 0, 0], 80);
        let f = frame(Kind::Tcp4, BALANCER, &ends, MIDDLE, 64);
        assert_eq!(f.len(), 64);
        assert_eq!(f[30..34], [10, 96, 0, 0]);
        assert_eq!(f[36..38], [0, 80]);
        assert_eq!(
            lb_ebpf::checksum::fold(lb_ebpf::checksum::sum(&f[14..34])),
            0xffff
        );
    }
}
