//! What differs between IPv4 and IPv6, and nothing else: one trait, two types without values.

use crate::abi::{
    HEADER_MAX, OVERHEAD_V4, OVERHEAD_V6, Plain, ServiceKey4, ServiceKey6, hash_fields,
};
use crate::checksum;
use crate::decap::Arrival;
use crate::hash;
use crate::own::{Scratch, Work};
use crate::wire::{Addr6, Be16, Be32, Ipv4, Ipv6, Ports, ethertype, protocol};

/// Hop limit of what this node sends in a VIP's name (the default of RFC 1700, and of Linux).
pub const HOPS: u8 = 64;

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V4 {}
/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum V6 {}

/// What directly follows the fixed IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// A transport header, of a whole packet.
    Whole,
    /// A transport header or a part of its payload, of a fragment.
    Fragment,
    /// IPv4 options or IPv6 extension headers.
    Options,
}

/// An IP family.
pub trait Family: Copy + 'static {
    /// An address.
    type Addr: Plain + Eq + Default + core::fmt::Debug + core::hash::Hash;
    /// Key of a service.
    type ServiceKey: Plain + Eq + core::fmt::Debug + core::hash::Hash;
    /// The fixed header.
    type Header: Plain;

    /// Bytes of the fixed header.
    const HEADER_LEN: usize;
    /// Where the source address is in it.
    const SRC_AT: usize;
    /// Where the destination address is in it.
    const DST_AT: usize;
    /// EtherType of the family.
    const ETHERTYPE: Be16;
    /// Protocol number of its ICMP.
    const ICMP: u8;
    /// Whether this is IPv6, for the few constants that depend on it.
    const IS_V6: bool;
    /// The outer bytes that MTU and MSS count with.
    const OVERHEAD: u16;

    /// Version and, for IPv4, the header length are what the fixed header wants.
    fn is_valid(header: &Self::Header) -> bool;
    /// What follows the fixed header.
    fn next(header: &Self::Header) -> Next;
    /// Source address.
    fn src(header: &Self::Header) -> Self::Addr;
    /// Destination address.
    fn dst(header: &Self::Header) -> Self::Addr;
    /// Protocol of what follows the fixed header.
    fn proto(header: &Self::Header) -> u8;
    /// Header and payload in bytes, as the header says.
    fn total_len(header: &Self::Header) -> usize;
    /// DSCP and ECN.
    fn traffic_class(header: &Self::Header) -> u8;
    /// Sources that no client can have.
    fn is_martian(src: Self::Addr) -> bool;

    /// This family's part of the scratch memory, and the arrival.
    fn work(scratch: &mut Scratch) -> (&mut Arrival, &mut Work<Self::Addr>);
    /// Key of a service.
    fn service_key(addr: Self::Addr, port: Be16, proto: u8) -> Self::ServiceKey;
    /// The address as it stands in maps that both families share.
    fn mapped(addr: Self::Addr) -> Addr6;
    /// The inverse of [`Family::mapped`].
    fn from_mapped(addr: Addr6) -> Self::Addr;
    /// The address at a place of a backend's template.
    fn addr_in(template: &[u8; HEADER_MAX], at: usize) -> Self::Addr;
    /// What replacing one address by another does to a one's complement sum.
    fn delta(old: Self::Addr, new: Self::Addr) -> u64;
    /// The flow hash over the fields that a table says.
    fn hash(
        key: &hash::Key,
        src: Self::Addr,
        dst: Self::Addr,
        ports: Ports,
        proto: u8,
        fields: u32,
    ) -> u64;
    /// The header after its destination became `new`, and its checksum, where it has one.
    fn with_dst(header: Self::Header, new: Self::Addr) -> Self::Header;
    /// The one's complement sum of an address.
    fn sum(addr: Self::Addr) -> u64;
    /// The header of a packet that this node sends in a VIP's name.
    fn header(proto: u8, payload_len: u16, src: Self::Addr, dst: Self::Addr) -> Self::Header;
    /// The header after its traffic class became `class`.
    fn with_traffic_class(header: Self::Header, class: u8) -> Self::Header;
}

/// Both ports as one native word.
#[inline(always)]
fn word(ports: Ports) -> u32 {
    u32::from(ports.src.raw()) | u32::from(ports.dst.raw()) << 16
}

impl Family for V4 {
    type Addr = Be32;
    type ServiceKey = ServiceKey4;
    type Header = Ipv4;

    const HEADER_LEN: usize = 20;
    const SRC_AT: usize = 12;
    const DST_AT: usize = 16;
    const ETHERTYPE: Be16 = ethertype::IPV4;
    const ICMP: u8 = protocol::ICMP;
    const IS_V6: bool = false;
    const OVERHEAD: u16 = OVERHEAD_V4;

    #[inline(always)]
    fn is_valid(header: &Ipv4) -> bool {
        header.version_ihl >> 4 == 4 && header.version_ihl & 0xf >= 5
    }

    #[inline(always)]
    fn next(header: &Ipv4) -> Next {
        if header.version_ihl != 0x45 {
            Next::Options
        } else if header.fragment.raw() & const { Be16::new(0x3fff).raw() } != 0 {
            Next::Fragment
        } else {
            Next::Whole
        }
    }

    #[inline(always)]
    fn src(header: &Ipv4) -> Be32 {
        header.src
    }

    #[inline(always)]
    fn dst(header: &Ipv4) -> Be32 {
        header.dst
    }

    #[inline(always)]
    fn proto(header: &Ipv4) -> u8 {
        header.protocol
    }

    #[inline(always)]
    fn total_len(header: &Ipv4) -> usize {
        header.total_len.get() as usize
    }

    #[inline(always)]
    fn traffic_class(header: &Ipv4) -> u8 {
        header.tos
    }

    #[inline(always)]
    fn is_martian(src: Be32) -> bool {
        // 127/8, 0/8, and from 224/4 up: RFC 1122, section 3.2.1.3.
        let first = src.to_bytes()[0];
        first == 0 || first == 127 || first >= 224
    }

    #[inline(always)]
    fn work(scratch: &mut Scratch) -> (&mut Arrival, &mut Work<Self::Addr>) {
        (&mut scratch.arrival, &mut scratch.v4)
    }

    #[inline(always)]
    fn service_key(addr: Be32, port: Be16, proto: u8) -> ServiceKey4 {
        ServiceKey4 {
            addr,
            port,
            proto,
            pad: 0,
        }
    }

    #[inline(always)]
    fn mapped(addr: Be32) -> Addr6 {
        Addr6::mapped(addr)
    }

    #[inline(always)]
    fn from_mapped(addr: Addr6) -> Be32 {
        addr.0[3]
    }

    #[inline(always)]
    fn addr_in(template: &[u8; HEADER_MAX], at: usize) -> Be32 {
        Be32::from_bytes([
            template[at],
            template[at + 1],
            template[at + 2],
            template[at + 3],
        ])
    }

    #[inline(always)]
    fn delta(old: Be32, new: Be32) -> u64 {
        checksum::delta(old.raw(), new.raw())
    }

    #[inline(always)]
    fn hash(key: &hash::Key, src: Be32, dst: Be32, ports: Ports, proto: u8, fields: u32) -> u64 {
        let mut sum = hash::start(key);
        sum = hash::add(sum, key, 0, src.raw());
        sum = hash::add(sum, key, 1, dst.raw());
        if fields == hash_fields::FIVE_TUPLE {
            sum = hash::add(sum, key, 8, word(ports));
            sum = hash::add(sum, key, 9, u32::from(proto));
        }
        hash::finish(sum)
    }

    #[inline(always)]
    fn with_dst(header: Ipv4, new: Be32) -> Ipv4 {
        let sum = checksum::update(header.checksum.raw(), Self::delta(header.dst, new));
        Ipv4 {
            dst: new,
            checksum: Be16::from_raw(sum),
            ..header
        }
    }

    #[inline(always)]
    fn sum(addr: Be32) -> u64 {
        u64::from(addr.raw())
    }

    #[inline(always)]
    fn header(proto: u8, payload_len: u16, src: Be32, dst: Be32) -> Ipv4 {
        let total_len = Be16::new(payload_len + 20);
        let header = Ipv4 {
            version_ihl: 0x45,
            total_len,
            ttl: HOPS,
            protocol: proto,
            src,
            dst,
            ..Ipv4::default()
        };
        let sum = u64::from(Be16::new(0x4500).raw())
            + u64::from(total_len.raw())
            + u64::from(Be16::new(u16::from(HOPS) << 8 | u16::from(proto)).raw())
            + u64::from(src.raw())
            + u64::from(dst.raw());
        Ipv4 {
            checksum: Be16::from_raw(!checksum::fold(sum)),
            ..header
        }
    }

    #[inline(always)]
    fn with_traffic_class(header: Ipv4, class: u8) -> Ipv4 {
        let old = u32::from(Be16::new(u16::from(header.tos)).raw());
        let new = u32::from(Be16::new(u16::from(class)).raw());
        let sum = checksum::update(header.checksum.raw(), checksum::delta(old, new));
        Ipv4 {
            tos: class,
            checksum: Be16::from_raw(sum),
            ..header
        }
    }
}

impl Family for V6 {
    type Addr = Addr6;
    type ServiceKey = ServiceKey6;
    type Header = Ipv6;

    const HEADER_LEN: usize = 40;
    const SRC_AT: usize = 8;
    const DST_AT: usize = 24;
    const ETHERTYPE: Be16 = ethertype::IPV6;
    const ICMP: u8 = protocol::ICMP6;
    const IS_V6: bool = true;
    const OVERHEAD: u16 = OVERHEAD_V6;

    #[inline(always)]
    fn is_valid(header: &Ipv6) -> bool {
        header.first.to_bytes()[0] >> 4 == 6
    }

    #[inline(always)]
    fn next(header: &Ipv6) -> Next {
        match header.next {
            protocol::FRAGMENT => Next::Fragment,
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                Next::Options
            }
            _ => Next::Whole,
        }
    }

    #[inline(always)]
    fn src(header: &Ipv6) -> Addr6 {
        header.src
    }

    #[inline(always)]
    fn dst(header: &Ipv6) -> Addr6 {
        header.dst
    }

    #[inline(always)]
    fn proto(header: &Ipv6) -> u8 {
        header.next
    }

    #[inline(always)]
    fn total_len(header: &Ipv6) -> usize {
        header.payload_len.get() as usize + Self::HEADER_LEN
    }

    #[inline(always)]
    fn traffic_class(header: &Ipv6) -> u8 {
        (header.first.get() >> 20) as u8
    }

    #[inline(always)]
    fn is_martian(src: Addr6) -> bool {
        let Addr6([a, b, c, d]) = src;
        let upper_zero = a.raw() | b.raw() == 0;
        // ff00::/8; ::ffff:0:0/96; ::1 and :: (RFC 4291, sections 2.5.2, 2.5.3, 2.5.5.2, 2.7).
        a.to_bytes()[0] == 0xff
            || (upper_zero && c.raw() == const { Be32::new(0xffff).raw() })
            || (upper_zero && c.raw() == 0 && d.get() <= 1)
    }

    #[inline(always)]
    fn work(scratch: &mut Scratch) -> (&mut Arrival, &mut Work<Self::Addr>) {
        (&mut scratch.arrival, &mut scratch.v6)
    }

    #[inline(always)]
    fn service_key(addr: Addr6, port: Be16, proto: u8) -> ServiceKey6 {
        ServiceKey6 {
            addr,
            port,
            proto,
            pad: 0,
        }
    }

    #[inline(always)]
    fn mapped(addr: Addr6) -> Addr6 {
        addr
    }

    #[inline(always)]
    fn from_mapped(addr: Addr6) -> Addr6 {
        addr
    }

    #[inline(always)]
    fn addr_in(template: &[u8; HEADER_MAX], at: usize) -> Addr6 {
        Addr6([
            V4::addr_in(template, at),
            V4::addr_in(template, at + 4),
            V4::addr_in(template, at + 8),
            V4::addr_in(template, at + 12),
        ])
    }

    #[inline(always)]
    fn delta(old: Addr6, new: Addr6) -> u64 {
        let (Addr6([a, b, c, d]), Addr6([e, f, g, h])) = (old, new);
        checksum::delta(a.raw(), e.raw())
            + checksum::delta(b.raw(), f.raw())
            + checksum::delta(c.raw(), g.raw())
            + checksum::delta(d.raw(), h.raw())
    }

    #[inline(always)]
    fn hash(key: &hash::Key, src: Addr6, dst: Addr6, ports: Ports, proto: u8, fields: u32) -> u64 {
        let (Addr6([a, b, c, d]), Addr6([e, f, g, h])) = (src, dst);
        let mut sum = hash::start(key);
        sum = hash::add(sum, key, 0, a.raw());
        sum = hash::add(sum, key, 1, b.raw());
        sum = hash::add(sum, key, 2, c.raw());
        sum = hash::add(sum, key, 3, d.raw());
        sum = hash::add(sum, key, 4, e.raw());
        sum = hash::add(sum, key, 5, f.raw());
        sum = hash::add(sum, key, 6, g.raw());
        sum = hash::add(sum, key, 7, h.raw());
        if fields == hash_fields::FIVE_TUPLE {
            sum = hash::add(sum, key, 8, word(ports));
            sum = hash::add(sum, key, 9, u32::from(proto));
        }
        hash::finish(sum)
    }

    #[inline(always)]
    fn with_dst(header: Ipv6, new: Addr6) -> Ipv6 {
        Ipv6 { dst: new, ..header }
    }

    #[inline(always)]
    fn sum(Addr6([a, b, c, d]): Addr6) -> u64 {
        u64::from(a.raw()) + u64::from(b.raw()) + u64::from(c.raw()) + u64::from(d.raw())
    }

    #[inline(always)]
    fn header(proto: u8, payload_len: u16, src: Addr6, dst: Addr6) -> Ipv6 {
        Ipv6 {
            first: Be32::new(0x6000_0000),
            payload_len: Be16::new(payload_len),
            next: proto,
            hops: HOPS,
            src,
            dst,
        }
    }

    #[inline(always)]
    fn with_traffic_class(header: Ipv6, class: u8) -> Ipv6 {
        let first = header.first.get() & !(0xff << 20) | u32::from(class) << 20;
        Ipv6 {
            first: Be32::new(first),
            ..header
        }
    }
}
