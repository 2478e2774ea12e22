//! Headers as they are on the wire. Multi-byte fields keep the wire's order in their type ([`Be16`], [`Be32`]), so that
//! a host integer is never mistaken for one, and keep their natural alignment, so that the BPF back end loads words.
//!
//! Knows nothing of maps or decisions.

use crate::abi::plain;

/// A 16-bit field in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub struct Be16(u16);

impl Be16 {
    /// From a host integer.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }
    /// As a host integer.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
    /// The two bytes as one native integer, for hashing and checksums, where only consistency matters.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }
    /// The inverse of [`Be16::raw`].
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }
}

/// A 32-bit field in network byte order; IPv4 addresses are one.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub struct Be32(u32);

impl Be32 {
    /// From a host integer.
    #[inline(always)]
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }
    /// As a host integer.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }
    /// The four bytes as one native integer, for hashing and checksums.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }
    /// The inverse of [`Be32::raw`].
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }
    /// From the bytes in wire order.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }
    /// The bytes in wire order.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
    /// From the halves of a field that is not aligned.
    #[inline(always)]
    pub const fn from_halves([first, second]: [Be16; 2]) -> Self {
        let (a, b) = (first.0.to_ne_bytes(), second.0.to_ne_bytes());
        Self(u32::from_ne_bytes([a[0], a[1], b[0], b[1]]))
    }
    /// The inverse of [`Be32::from_halves`].
    #[inline(always)]
    pub const fn halves(self) -> [Be16; 2] {
        let b = self.0.to_ne_bytes();
        [
            Be16(u16::from_ne_bytes([b[0], b[1]])),
            Be16(u16::from_ne_bytes([b[2], b[3]])),
        ]
    }
}

/// An IPv6 address in wire order. IPv4 addresses that must live in the same map are mapped (`::ffff:a.b.c.d`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord, Debug)]
pub struct Addr6(pub [Be32; 4]);

impl Addr6 {
    /// From the bytes in wire order.
    pub const fn from_bytes(b: [u8; 16]) -> Self {
        Self([
            Be32::from_bytes([b[0], b[1], b[2], b[3]]),
            Be32::from_bytes([b[4], b[5], b[6], b[7]]),
            Be32::from_bytes([b[8], b[9], b[10], b[11]]),
            Be32::from_bytes([b[12], b[13], b[14], b[15]]),
        ])
    }
    /// The bytes in wire order.
    pub const fn to_bytes(self) -> [u8; 16] {
        let Self([a, b, c, d]) = self;
        let (a, b, c, d) = (a.to_bytes(), b.to_bytes(), c.to_bytes(), d.to_bytes());
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }
    /// The IPv4-mapped form (RFC 4291, section 2.5.5.2).
    #[inline(always)]
    pub const fn mapped(v4: Be32) -> Self {
        Self([Be32(0), Be32(0), Be32::new(0xffff), v4])
    }
}

/// A MAC address.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Mac(pub [Be16; 3]);

impl Mac {
    /// From the bytes in wire order.
    pub const fn from_bytes(b: [u8; 6]) -> Self {
        Self([
            Be16(u16::from_ne_bytes([b[0], b[1]])),
            Be16(u16::from_ne_bytes([b[2], b[3]])),
            Be16(u16::from_ne_bytes([b[4], b[5]])),
        ])
    }
    /// The bytes in wire order.
    pub const fn to_bytes(self) -> [u8; 6] {
        let [a, b, c] = self.0;
        let (a, b, c) = (a.0.to_ne_bytes(), b.0.to_ne_bytes(), c.0.to_ne_bytes());
        [a[0], a[1], b[0], b[1], c[0], c[1]]
    }
}

/// Ethernet II (IEEE 802.3).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// EtherType of what follows.
    pub kind: Be16,
}

/// IPv4 without options (RFC 791, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ipv4 {
    /// Version (4) and header length in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Header and payload in bytes.
    pub total_len: Be16,
    /// Identification, for fragments.
    pub id: Be16,
    /// Flags and fragment offset.
    pub fragment: Be16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: Be16,
    /// Source address.
    pub src: Be32,
    /// Destination address.
    pub dst: Be32,
}

/// IPv6, the fixed header (RFC 8200, section 3).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ipv6 {
    /// Version (6), traffic class, flow label.
    pub first: Be32,
    /// Bytes after this header.
    pub payload_len: Be16,
    /// Type of the next header.
    pub next: u8,
    /// Hop limit.
    pub hops: u8,
    /// Source address.
    pub src: Addr6,
    /// Destination address.
    pub dst: Addr6,
}

/// The fragment extension header of IPv6 (RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Fragment6 {
    /// Type of the next header.
    pub next: u8,
    /// Reserved.
    pub reserved: u8,
    /// Offset in 8-byte units (13 bits), reserved, more-fragments flag.
    pub offset: Be16,
    /// Identification.
    pub id: Be32,
}

/// The first four bytes of TCP, UDP and SCTP.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash, Debug)]
pub struct Ports {
    /// Source port.
    pub src: Be16,
    /// Destination port.
    pub dst: Be16,
}

/// TCP without options (RFC 9293, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tcp {
    /// Ports.
    pub ports: Ports,
    /// Sequence number.
    pub seq: Be32,
    /// Acknowledgement number.
    pub ack: Be32,
    /// Header length in words, in the upper four bits.
    pub offset: u8,
    /// Flags, see [`tcp_flag`].
    pub flags: u8,
    /// Window.
    pub window: Be16,
    /// Checksum over pseudo-header, header and data.
    pub checksum: Be16,
    /// Urgent pointer.
    pub urgent: Be16,
}

/// SCTP and the head of its first chunk (RFC 9260, section 3).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sctp {
    /// Ports.
    pub ports: Ports,
    /// Verification tag: what the receiver has chosen for the association; 0 with an INIT.
    pub tag: Be32,
    /// `CRC32c` of the packet, without a pseudo-header.
    pub checksum: Be32,
    /// Type of the first chunk, see [`sctp_chunk`].
    pub chunk: u8,
    /// Its flags.
    pub chunk_flags: u8,
    /// Its length in bytes.
    pub chunk_len: Be16,
}

/// UDP (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Udp {
    /// Ports.
    pub ports: Ports,
    /// Header and data in bytes.
    pub len: Be16,
    /// Checksum; zero means none (not over IPv6, tunnels excepted).
    pub checksum: Be16,
}

/// ICMP and ICMPv6 (RFC 792, RFC 4443): the first eight bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: Be16,
    /// Identifier and sequence, MTU, or unused.
    pub rest: Be32,
}

/// ARP for IPv4 over Ethernet (RFC 826). The addresses are not aligned, so they are halves.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Arp {
    /// Hardware type: 1, Ethernet.
    pub hardware: Be16,
    /// Protocol type: the `EtherType` of IPv4.
    pub protocol: Be16,
    /// Bytes of a hardware address: 6.
    pub hardware_len: u8,
    /// Bytes of a protocol address: 4.
    pub protocol_len: u8,
    /// 1: request, 2: reply.
    pub operation: Be16,
    /// MAC address of the sender.
    pub sender_mac: Mac,
    /// IPv4 address of the sender; 0 in probes (RFC 5227, section 1.1).
    pub sender: [Be16; 2],
    /// MAC address of the target; of no meaning in requests.
    pub target_mac: Mac,
    /// IPv4 address of the target.
    pub target: [Be16; 2],
}

/// Neighbour solicitation and advertisement without options (RFC 4861, sections 4.3 and 4.4).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Neighbour {
    /// Type, code, checksum; flags in `rest`.
    pub icmp: Icmp,
    /// Whom it is about.
    pub target: Addr6,
}

/// The option of neighbour discovery that tells a MAC address (RFC 4861, section 4.6.1).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LinkAddress {
    /// 1: of the sender, 2: of the target.
    pub kind: u8,
    /// Length in units of eight bytes: 1.
    pub len: u8,
    /// The address.
    pub mac: Mac,
}

/// Geneve, the fixed header (RFC 8926, section 3.4).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Geneve {
    /// Version (0) and length of the options in words.
    pub version_len: u8,
    /// Control and critical-options flags.
    pub flags: u8,
    /// EtherType of the payload.
    pub kind: Be16,
    /// 24-bit VNI and a reserved byte.
    pub vni: Be32,
}

/// The header of our Geneve option (RFC 8926, section 3.5) and its first four bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GeneveOption {
    /// Option class.
    pub class: Be16,
    /// Type; the upper bit marks a critical option.
    pub kind: u8,
    /// Length of the data in words, in the lower five bits.
    pub len: u8,
    /// Our flags, see [`crate::abi::mark`].
    pub mark: u8,
    /// Zero.
    pub reserved: u8,
    /// Port of the pod.
    pub port: Be16,
}

/// Both in one.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GeneveHead {
    /// The fixed header.
    pub geneve: Geneve,
    /// The head of our option.
    pub option: GeneveOption,
}

plain!(Be16, 0: u16);
plain!(Be32, 0: u32);
plain!(Addr6, 0: [Be32; 4]);
plain!(Mac, 0: [Be16; 3]);
plain!(Ethernet, dst: Mac, src: Mac, kind: Be16);
plain!(Ipv4, version_ihl: u8, tos: u8, total_len: Be16, id: Be16, fragment: Be16, ttl: u8, protocol: u8,
    checksum: Be16, src: Be32, dst: Be32);
plain!(Ipv6, first: Be32, payload_len: Be16, next: u8, hops: u8, src: Addr6, dst: Addr6);
plain!(Fragment6, next: u8, reserved: u8, offset: Be16, id: Be32);
plain!(Ports, src: Be16, dst: Be16);
plain!(Sctp, ports: Ports, tag: Be32, checksum: Be32, chunk: u8, chunk_flags: u8, chunk_len: Be16);
plain!(Tcp, ports: Ports, seq: Be32, ack: Be32, offset: u8, flags: u8, window: Be16, checksum: Be16, urgent: Be16);
plain!(Udp, ports: Ports, len: Be16, checksum: Be16);
plain!(Icmp, kind: u8, code: u8, checksum: Be16, rest: Be32);
plain!(Arp, hardware: Be16, protocol: Be16, hardware_len: u8, protocol_len: u8, operation: Be16, sender_mac: Mac,
    sender: [Be16; 2], target_mac: Mac, target: [Be16; 2]);
plain!(Neighbour, icmp: Icmp, target: Addr6);
plain!(LinkAddress, kind: u8, len: u8, mac: Mac);
plain!(GeneveHead, geneve: Geneve, option: GeneveOption);
plain!(Geneve, version_len: u8, flags: u8, kind: Be16, vni: Be32);
plain!(GeneveOption, class: Be16, kind: u8, len: u8, mark: u8, reserved: u8, port: Be16);

/// Values of `EtherType` (IANA, IEEE 802 numbers).
pub mod ethertype {
    use super::Be16;
    /// IPv4.
    pub const IPV4: Be16 = Be16::new(0x0800);
    /// ARP.
    pub const ARP: Be16 = Be16::new(0x0806);
    /// IPv6.
    pub const IPV6: Be16 = Be16::new(0x86dd);
    /// 802.1Q.
    pub const VLAN: Be16 = Be16::new(0x8100);
    /// 802.1ad (QinQ), outer tag.
    pub const VLAN_OUTER: Be16 = Be16::new(0x88a8);
}

/// Protocol numbers (IANA).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flags (RFC 9293, section 3.1).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// Types of SCTP chunks (RFC 9260, section 3.2).
pub mod sctp_chunk {
    /// Opens an association.
    pub const INIT: u8 = 1;
    /// Answers it.
    pub const INIT_ACK: u8 = 2;
    /// Ends it at once.
    pub const ABORT: u8 = 6;
    /// No more data from the sender.
    pub const SHUTDOWN: u8 = 7;
    /// Answers it: no more data from the other side either.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Ends an orderly shutdown.
    pub const SHUTDOWN_COMPLETE: u8 = 14;

    /// Chunks that carry no tag of the receiver's, or may carry the sender's own (RFC 9260, section 8.5.1).
    const UNTAGGED: u32 = 1 << INIT | 1 << ABORT;
    const OPENING: u32 = 1 << INIT | 1 << INIT_ACK;
    const ENDING: u32 = 1 << SHUTDOWN | 1 << SHUTDOWN_ACK | 1 << SHUTDOWN_COMPLETE;

    /// The TCP flags that a first chunk amounts to, so that flows of both protocols are followed by the same code.
    ///
    /// By sets of bits: a `match` becomes a table in memory, whose index the verifier can not bound.
    #[inline(always)]
    pub const fn flags(chunk: u8) -> u8 {
        use super::tcp_flag::{ACK, FIN, RST, SYN};
        let bit = if chunk < 32 { 1 << (chunk & 31) } else { 0 };
        let mut flags = 0;
        if bit & UNTAGGED == 0 {
            flags |= ACK;
        }
        if bit & OPENING != 0 {
            flags |= SYN;
        }
        if bit & ENDING != 0 {
            flags |= FIN;
        }
        if bit & 1 << ABORT != 0 {
            flags |= RST;
        }
        flags
    }
}
